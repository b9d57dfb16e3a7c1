"""A step: what it changes, what it leaves alone, and what it refuses."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moesaic.errors import ModelError
from moesaic.model import Transformer, select_trainable
from moesaic.parallel.engine import Engine
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import StepResult, TrainStep
from tiny import batch, model, stage

ROWS = [[20, 9], [32], [5, 5, 5], [31, 1]]


def trainer(built: Transformer, teacher: Transformer | None = None, **changes: Any) -> TrainStep:
    """A step over the weights of `built`, which are the engine's from now on."""
    settings, engine = stage(**changes), Engine(built.config, Layout(), World())
    first = dict(built.named_parameters())
    engine.fill(lambda name, shape: first[name].detach())
    for name, parameter in engine.named_parameters():
        module, _, last = name.rpartition(".")
        built.get_submodule(module)._parameters[last] = parameter.requires_grad_(first[name].requires_grad)
    return TrainStep(engine, settings, build_optimizer(engine.named_parameters(), settings.optimizer), teacher)


def copy_of(built: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in built.named_parameters()}


def changed(before: dict[str, torch.Tensor], built: Transformer) -> set[str]:
    return {name for name, p in built.named_parameters() if not torch.equal(before[name], p)}


def test_a_step_changes_every_tensor_and_lowers_the_loss() -> None:
    built = model(init_std=0.1)
    step, data, before = trainer(built), batch(ROWS, 32), copy_of(built)
    losses = [step(data, lr=1e-2).loss for _ in range(10)]
    assert changed(before, built) == set(before)
    assert losses[-1] < losses[0] - 0.5


def test_a_step_is_a_function_of_its_arguments() -> None:
    def run() -> tuple[list[StepResult], dict[str, torch.Tensor]]:
        built = model()
        step = trainer(built)
        return [step(batch(ROWS, 32, seed), lr=1e-3) for seed in range(3)], copy_of(built)

    (first, weights), (second, again) = run(), run()
    assert [r.loss for r in first] == [r.loss for r in second]
    assert all(torch.equal(weights[n], again[n]) for n in weights)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_training_goes_on(poison: float) -> None:
    built = model()
    step, data = trainer(built), batch(ROWS, 32)
    step(data, lr=1e-3)
    before, moments = copy_of(built), step.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    handle = built.norm.weight.register_hook(lambda grad: grad * poison)
    result = step(data, lr=1e-3)
    handle.remove()
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert not changed(before, built)
    assert torch.equal(step.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    after = step(data, lr=1e-3)
    assert not after.skipped
    assert math.isfinite(after.grad_norm)  # nothing of the refused gradient is left
    assert changed(before, built) == set(before)


def test_a_spike_is_skipped() -> None:
    built = model()
    step, data = trainer(built), batch(ROWS, 32)
    for seed in range(17):  # enough to know what is usual
        assert not step(batch(ROWS, 32, seed), lr=1e-4).skipped
    before = copy_of(built)
    handle = built.norm.weight.register_hook(lambda grad: grad + 1e4)
    result = step(data, lr=1e-4)
    handle.remove()
    assert result.skipped
    assert not changed(before, built)
    assert not step(data, lr=1e-4).skipped


def test_gradients_are_clipped_to_the_norm() -> None:
    """Two steps whose gradients differ by a factor, both clipped, are the same step."""

    def run(factor: float) -> tuple[StepResult, dict[str, torch.Tensor]]:
        built = model()
        settings = {"clip_norm": 1e-3, "eps": 1.0, "weight_decay": 0.0}  # a large eps: AdamW feels the size
        step = trainer(built, optimizer=settings)
        for parameter in built.parameters():
            parameter.register_hook(lambda grad: grad * factor)
        return step(batch(ROWS, 32), lr=1.0), copy_of(built)

    (small, ours), (large, theirs) = run(1), run(16)
    assert large.grad_norm == pytest.approx(16 * small.grad_norm, rel=1e-5)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


def test_what_is_frozen_stays_bit_for_bit() -> None:
    built = model()
    before = copy_of(built)
    chosen = select_trainable(built, ["layers.1.*", "norm.weight"])
    step = trainer(built)
    for seed in range(3):
        step(batch(ROWS, 32, seed), lr=1e-2)
    assert changed(before, built) == set(chosen)
    assert chosen
    assert all(n.startswith("layers.1.") or n == "norm.weight" for n in chosen)
    held = {id(p) for group in step.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in built.named_parameters() if n in chosen}  # no moments for the rest either
    assert select_trainable(built, ["*"]) == list(before)
    assert all(p.requires_grad for p in built.parameters())


def test_a_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"'layer\.\*'.*names look like"):
        select_trainable(model(), ["layer.*"])


def test_only_matrices_decay() -> None:
    built = model()
    groups = build_optimizer(built.named_parameters(), stage().optimizer).param_groups
    names = {id(p): n for n, p in built.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    exempt = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert exempt == {n for n in names.values() if n.endswith("norm.weight") or n in ("embedding", "head")}
    assert decayed | exempt == set(names.values())


def test_embedding_head_and_norms_learn_at_a_rate_of_their_own() -> None:
    """Adam's first step moves every weight with a gradient by its rate, whatever the gradient's size."""
    built = model(tie_embeddings=False)
    before = copy_of(built)
    step = trainer(built, optimizer={"vector_factor": 8.0, "weight_decay": 0.0, "eps": 1e-30})
    step(batch(ROWS, 32), 1e-4)
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in built.named_parameters()}
    vectors = {n for n in moved if n in ("embedding", "head") or n.endswith("norm.weight")}
    assert {n: round(by, 6) for n, by in moved.items()} == {n: 8e-4 if n in vectors else 1e-4 for n in moved}


def divergence(teacher: Transformer, student: Transformer) -> float:
    """KL(teacher || student), mean over tokens of data that neither was trained on."""
    data = batch(ROWS, 32, seed=99)
    with torch.no_grad():
        logs = [F.log_softmax(m(data.tokens, data.positions, data.documents), dim=-1) for m in (student, teacher)]
    real = data.documents >= 0
    return float(F.kl_div(logs[0][real], logs[1][real], reduction="batchmean", log_target=True))


def test_distillation_brings_the_student_to_the_teacher() -> None:
    teacher, student, alone = model(seed=7), model(seed=8), model(seed=8)
    before, frozen = divergence(teacher, student), copy_of(teacher)
    taught = trainer(student, teacher.requires_grad_(False), teacher_share=1.0)
    untaught = trainer(alone)
    losses = []
    for seed in range(60):
        losses.append(taught(batch(ROWS, 32, seed), lr=5e-3).loss)
        untaught(batch(ROWS, 32, seed), lr=5e-3)
    assert losses[-1] < 0.6 * losses[0]
    assert divergence(teacher, student) < 0.6 * before
    assert divergence(teacher, student) < divergence(teacher, alone)
    assert not changed(frozen, teacher)


def test_the_share_mixes_both_losses() -> None:
    data, losses = batch(ROWS, 32), {}
    for share in (0.0, 0.25, 1.0):
        losses[share] = trainer(model(seed=8), model(seed=7).requires_grad_(False), teacher_share=share)(data, 0.0).loss
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert losses[0.0] == pytest.approx(trainer(model(seed=8))(data, 0.0).loss, rel=1e-5)


def test_a_teacher_like_the_student_teaches_nothing() -> None:
    result = trainer(model(balance_weight=0.0, z_weight=0.0), model().requires_grad_(False), teacher_share=1.0)(
        batch(ROWS, 32), lr=0.0
    )
    assert result.loss == pytest.approx(0, abs=1e-5)
    assert result.grad_norm == pytest.approx(0, abs=1e-4)


def test_state_survives_json() -> None:
    import json

    built = model(balance_scope="previous_batch")
    step = trainer(built)
    for seed in range(3):
        step(batch(ROWS, 32, seed), lr=1e-3)
    fresh = trainer(built)
    fresh.load_state_dict(json.loads(json.dumps(step.state_dict())))
    assert torch.equal(fresh.previous_load_LE, step.previous_load_LE)
    assert fresh.state_dict() == step.state_dict()
