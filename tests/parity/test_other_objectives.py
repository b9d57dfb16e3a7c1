"""What the matrix of layouts leaves out: a teacher's loss, and bf16 products with the kernels of a CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moesaic.model import Transformer, initialise
from moesaic.model.kernels import choose_kernels, native
from moesaic.parallel.engine import Engine
from moesaic.parallel.launch import run_ranks
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Model
from moesaic.recipe.layout_text import parse_layout
from moesaic.train import verify
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep
from moesaic.train.verify import Case

CASE = Case(Model.model_validate(verify.MODEL.model_dump() | {"n_layers": 2}), sequences=8)
SEED = 3
# Every token goes to every expert: a rounding in bf16 changes no choice, after which all would differ.
WITHOUT_CHOICE = Case(CASE.model.model_copy(update={"n_experts": 4, "top_k": 4}), sequences=8)
Found = dict[str, Tensor]


def gradients_of(step: TrainStep) -> Found:
    """Loss and every gradient of one batch, on the first rank."""
    engine = step.engine
    whole = verify.batch(SEED, CASE.model.vocab_size, CASE.sequences, CASE.seq_len)
    loss, *_ = step.accumulate(verify.share(whole, engine.layout, engine.world.rank))
    engine.gradients.finish()
    named = {n: engine.model_order(n, p.grad) for n, p in engine.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(loss)} | {n: t.clone() for n, t in engine.gather(named)}


def world_of(rank: int, layout: Layout) -> World:
    return World(rank, layout.world, torch.device("cpu"))


def taught(rank: int, text: str, share: float) -> Found:
    layout = parse_layout(text)
    engine = Engine(CASE.model, layout, world_of(rank, layout))
    engine.initialise(SEED)
    teacher = Transformer(CASE.model)
    initialise(teacher, SEED + 1)
    stage = CASE.stage().model_copy(update={"teacher_share": share})
    optimizer = build_optimizer(engine.named_parameters(), stage.optimizer)
    return gradients_of(TrainStep(engine, stage, optimizer, teacher.requires_grad_(False)))


def in_arithmetic(rank: int, text: str, dtype: torch.dtype) -> Found:
    layout = parse_layout(text)
    kernels = choose_kernels("native", torch.device("cpu"), True)[0] if dtype == torch.bfloat16 else None
    engine = Engine(WITHOUT_CHOICE.model, layout, world_of(rank, layout), kernels, dtype)
    engine.initialise(SEED)
    stage = CASE.stage()
    return gradients_of(TrainStep(engine, stage, build_optimizer(engine.named_parameters(), stage.optimizer)))


def relative(found: Found, expected: Found) -> dict[str, float]:
    """Norm of the difference, of the norm of what is expected."""
    assert found.keys() == expected.keys()
    return {n: float((found[n] - e).norm() / e.norm()) for n, e in expected.items()}


def on_ranks(function: Callable[..., Found], text: str, *args: object) -> Found:
    first: Found = run_ranks(function, parse_layout(text).world, text, *args)[0]
    return first


@pytest.mark.parametrize("text", ["dp=2", "dp=2,ep=2", "dp=2,ep=2,zero=3"])
def test_a_teachers_loss_is_that_of_one_process(text: str) -> None:
    expected = taught(0, "dp=1", 0.7)
    assert abs(float(expected["loss"]) - float(taught(0, "dp=1", 0.0)["loss"])) > 0.1  # the teacher has a say
    found = on_ranks(taught, text, 0.7)
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-5)
    assert max(relative(found, expected).values()) < 1e-5


@pytest.mark.parametrize("text", ["dp=2", "tp=2", "tp=2,etp=2"])
def test_native_kernels_in_bf16_are_close_to_one_process(text: str) -> None:
    """As far from fp32 as one process in bf16 is, whose every product is off by up to 2^-9 too."""
    if isinstance(library := native.build(), str):
        pytest.skip(library)
    exact = in_arithmetic(0, "dp=1", torch.float32)
    alone = relative(in_arithmetic(0, "dp=1", torch.bfloat16), exact)
    found = relative(on_ranks(in_arithmetic, text, torch.bfloat16), exact)
    assert max(alone.values()) > 1e-3  # bf16 it was
    for name, error in alone.items():
        assert found[name] < 2 * error + 1e-4, name
