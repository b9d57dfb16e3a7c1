"""The parity matrix: any layout computes what one process computes, on the model of `verify` and on models of other
kinds. All layouts of one number of ranks share one set of processes.
"""

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from parity_matrix import MATRIX, matrix_cases, measure, reference
from torch import Tensor

from moesaic.parallel.stages import split_layers
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Model
from moesaic.recipe.layout_text import parse_layout
from moesaic.recipe.rope import RopeScaling
from moesaic.train import verify
from moesaic.train.verify import Case

Cases = dict[str, tuple[Case, Layout]]


def small(case: dict[str, Any] | None = None, **model: Any) -> Case:
    """The model of the check with two layers and other traits."""
    changed = Model.model_validate(verify.MODEL.model_dump() | {"n_layers": 2} | model)
    return Case(**({"model": changed, "sequences": 8} | (case or {})))


SPLIT_KV = small(n_kv_heads=2)
BIASED = small(attention_bias=True, qk_norm="head", tie_embeddings=False)
MIXED = small(n_layers=3, dense_layers=(1,), dense_d_ff=48, norm_top_k=False)
DENSE = small(n_experts=1, top_k=1, mlp_bias=True, attention_bias=True)
WINDOW = small(window=6)
BY_BATCH = small(balance_scope="previous_batch", n_layers=4)
UNEVEN = small(vocab_size=251, d_ff=30, n_experts=6, d_model=36, head_dim=6, n_heads=3)
SEVEN = small(n_layers=7)
STARVED = small({"starved": 6}, top_k=2)
ONE_CHOICE = small(top_k=1, norm_top_k=False)
SINGLE = small({"micro_batch": 1})
FEW = small({"sequences": 2}, n_layers=8)
FROZEN = small({"trainable": ("layers.*.experts.*", "layers.*.attention.wk", "norm.weight")}, n_layers=2)
DYNAMIC = small(rope_scaling=RopeScaling(kind="dynamic", factor=4.0, original_context=8))
ONLY_NORM = small({"trainable": ("norm.weight",)}, n_layers=4)
ONLY_FIRST = small({"trainable": ("layers.0.*",)}, n_layers=4)
ONLY_LAST = small({"trainable": ("layers.3.*",)}, n_layers=4)
ONLY_ENDS = small({"trainable": ("embedding",)}, n_layers=4)
MANY = small({"sequences": 64, "micro_batch": 1})

VARIANTS: dict[str, tuple[Case, str]] = {
    "two kv heads split": (SPLIT_KV, "tp=2"),
    "two kv heads, two ranks each": (SPLIT_KV, "tp=4"),
    "two kv heads in context": (SPLIT_KV, "cp=2"),
    "biases, head norm, untied, tensor": (BIASED, "tp=2,ep=2"),
    "biases, head norm, untied, copied": (BIASED, "dp=2,zero=3"),
    "untied over a pipeline": (BIASED, "pp=2,tp=2"),
    "dense and sparse layers": (MIXED, "tp=2,ep=2"),
    "dense and sparse layers, sharded": (MIXED, "dp=2,ep=2,zero=3"),
    "dense and sparse layers, piped": (MIXED, "pp=2,dp=2,ep=2"),
    "dense model, tensor": (DENSE, "tp=2"),
    "dense model, tensor, sharded": (DENSE, "dp=2,tp=2,zero=3"),
    "dense model, piped": (DENSE, "pp=2"),
    "sliding window in context": (WINDOW, "cp=2"),
    "sliding window in context, tensor": (WINDOW, "cp=2,tp=2"),
    "load of the last batch": (BY_BATCH, "pp=2,dp=2"),
    "load of the last batch, context": (BY_BATCH, "pp=2,dp=2,cp=2,schedule=zero_bubble"),
    "uneven shards": (UNEVEN, "dp=4,ep=2"),
    "uneven shards, weights too": (UNEVEN, "dp=4,ep=2,zero=3"),
    "uneven shards of all experts": (UNEVEN, "dp=4,zero=3"),
    "uneven stages, two": (SEVEN, "pp=2"),
    "uneven stages, four": (SEVEN, "pp=4"),
    "uneven stages, interleaved": (SEVEN, "pp=2,schedule=interleaved,chunks=3"),
    "fewer sequences than stages": (FEW, "pp=4"),
    "fewer sequences than stages, interleaved": (FEW, "pp=4,schedule=interleaved"),
    "fewer sequences than stages, zero bubble": (FEW, "pp=4,schedule=zero_bubble"),
    "experts without tokens": (STARVED, "dp=4,ep=4"),
    "experts without tokens, weights sharded": (STARVED, "dp=4,ep=2,zero=3"),
    "experts without tokens, tensor": (STARVED, "tp=2,ep=2"),
    "one sequence at a time, context": (SINGLE, "cp=2"),
    "one sequence at a time, tensor": (SINGLE, "tp=2,etp=2"),
    "one sequence at a time, context and tensor": (SINGLE, "cp=2,tp=2,ep=4"),
    "one expert a token": (ONE_CHOICE, "dp=2,ep=2"),
    "frozen weights, copied": (FROZEN, "dp=2,zero=0"),
    "frozen weights, tensor": (FROZEN, "tp=2,dp=2,zero=0,ep=2"),
    "frozen weights, piped": (FROZEN, "pp=2,zero=0"),
    "dynamic rotary scaling, context": (DYNAMIC, "cp=2"),
    "dynamic rotary scaling, piped": (DYNAMIC, "pp=2,tp=2"),
    "first stage frozen whole": (ONLY_NORM, "pp=2,zero=0"),
    "first stage frozen whole, recomputed": (ONLY_LAST, "pp=2,zero=0,recompute=full"),
    "first stage frozen whole, replicas": (ONLY_LAST, "pp=2,dp=2,ep=2,zero=0"),
    "last stage frozen whole": (ONLY_FIRST, "pp=2,zero=0"),
    "last stage frozen whole, interleaved": (ONLY_FIRST, "pp=2,zero=0,schedule=interleaved"),
    "one layer trained, zero bubble": (ONLY_FIRST, "pp=2,zero=0,schedule=zero_bubble"),
    "middle stages frozen whole": (ONLY_ENDS, "pp=4,zero=0"),
    "summed in bf16, many micro-batches": (MANY, "dp=2,reduce=bf16"),
    "summed in bf16, many micro-batches, piped": (MANY, "pp=2,dp=2,reduce=bf16"),
    "summed in bf16, many micro-batches, piped, weights sharded": (MANY, "pp=2,dp=2,zero=3,reduce=bf16"),
}
TWICE = ("dp=2,tp=2,ep=4", "pp=2,dp=2,ep=2,schedule=zero_bubble,recompute=selective")


def every_layout(world: int, case: Case) -> list[Layout]:
    """All layouts of so many ranks in which `case` can run."""
    out = []
    sizes = [n for n in range(1, world + 1) if world % n == 0]
    kinds = itertools.product(
        sizes, sizes, sizes, sizes, sizes, (False, True), (0, 1, 3), ("none", "selective", "full"),
        ("1f1b", "interleaved", "zero_bubble"),
    )  # fmt: skip
    for pp, dp, cp, tp, ep, split, zero, recompute, schedule in kinds:
        etp = tp if split else 1
        fits = pp * dp * cp * tp == world and dp * cp * tp % (ep * etp) == 0
        same = (split and tp == 1) or (pp == 1 and schedule != "1f1b")  # said twice
        if fits and not same:
            layout = Layout(
                pp=pp, dp=dp, cp=cp, tp=tp, ep=ep, etp=etp, zero=zero, recompute=recompute, schedule=schedule
            )
            if not layout.problems(case.model, [case.stage()]):
                out.append(layout)
    return out


DRAWN = random.Random(7).sample(every_layout(4, small(n_layers=4)), 6)


@cache
def cases() -> Cases:
    variants = {name: (case, parse_layout(text)) for name, (case, text) in VARIANTS.items()}
    again = {f"again {text}": matrix_cases()[text] for text in TWICE}
    drawn = {f"drawn {verify.words(layout)}": (small(n_layers=4), layout) for layout in DRAWN}
    return matrix_cases() | variants | again | drawn


@cache
def found(world: int) -> dict[str, dict[str, Tensor]]:
    return measure({name: pair for name, pair in cases().items() if pair[1].world == world})


def values(name: str) -> Mapping[str, Tensor]:
    return found(cases()[name][1].world)[name]


def test_the_matrix_is_what_was_promised() -> None:
    layouts = [layout for _, layout in matrix_cases().values()]
    assert len(layouts) >= 24
    assert {x.world for x in layouts} == {2, 4, 8}
    assert {x.schedule for x in layouts if x.pp > 1} == {"1f1b", "interleaved", "zero_bubble"}
    assert {x.zero for x in layouts if x.dp > 1} == {0, 1, 3}
    assert any(x.pp == x.tp == x.ep == 2 and x.recompute == "full" for x in layouts)
    for case, layout in cases().values():
        assert not layout.problems(case.model, [case.stage()]), verify.words(layout)


@pytest.mark.parametrize("name", [*MATRIX, *VARIANTS, *(f"drawn {verify.words(x)}" for x in DRAWN)])
def test_a_layout_computes_what_one_process_computes(name: str) -> None:
    case, layout = cases()[name]
    assert reference(case).gap > 1e-4  # between the last expert chosen and the next, for every token
    verdict = verify.compare(layout, reference(case).values, values(name))
    assert verdict.first is None, verdict
    bound = 1e-2 if layout.reduce == "bf16" else 1e-5
    assert all(by <= bound for by in verdict.largest.values())
    assert verdict.largest["loss"] <= 1e-5


IN_BF16 = [*(t for t in MATRIX if "bf16" in t), *(name for name, (_, text) in VARIANTS.items() if "bf16" in text)]


@pytest.mark.parametrize("name", IN_BF16)
def test_a_sum_in_bf16_is_rounded_on_the_wire_alone(name: str) -> None:
    """Addends and sum are each off by at most 2^-9 of a value, whatever the number of micro-batches."""
    case, _ = cases()[name]
    for what, expected in reference(case).values.items():
        if what.startswith("gradient "):
            error = (values(name)[what] - expected).norm() / expected.norm()
            assert 1e-4 < error < 2**-8, what  # below: nothing was rounded


@pytest.mark.parametrize("text", TWICE)
def test_the_same_layout_twice_is_the_same_bit_for_bit(text: str) -> None:
    once, again = values(text), values(f"again {text}")
    assert once.keys() == again.keys()
    assert all(torch.equal(once[n], again[n]) for n in once)


def test_the_reference_is_what_it_says() -> None:
    """Gradients are clipped, all weights have one and move, documents are packed, rows padded."""
    case = verify.case_for(Layout())
    one = reference(case)
    assert case.model.n_kv_heads == 1
    assert case.model.n_experts > case.model.top_k
    assert one.values["norm"] > 1.5 * verify.CLIP
    for name, value in one.values.items():
        assert value.abs().max() > 0, name
        if name.startswith("weight "):
            first = case.value(name.removeprefix("weight "), value.shape, one.seed)
            assert (value - first).abs().max() > verify.LR / 10, name
    data = verify.batch(one.seed, 256, case.sequences, case.seq_len)
    assert (data.documents.max(dim=1).values > 0).any()
    assert (data.documents < 0).any()


def test_experts_without_tokens_get_none_and_a_gradient_of_zero() -> None:
    load = values("experts without tokens")["expert load"]
    assert (load[:, :2] > 0).all()
    assert (load[:, 2:] == 0).all()
    gradient = values("experts without tokens")["gradient layers.0.experts.w_in"]
    assert gradient[:2].abs().max() > 0
    assert (gradient[2:] == 0).all()


def test_frozen_weights_have_no_gradient_and_do_not_move() -> None:
    for name in ("frozen weights, copied", "frozen weights, tensor", "frozen weights, piped"):
        got, seed = values(name), reference(FROZEN).seed
        trained = {n.removeprefix("gradient ") for n in got if n.startswith("gradient ")}
        assert "layers.0.experts.w_in" in trained
        assert "layers.1.attention.wq" not in trained
        for key, value in got.items():
            kind, _, weight = key.partition(" ")
            if kind == "weight":
                assert torch.equal(value, FROZEN.value(weight, value.shape, seed)) == (weight not in trained), weight


def test_dynamic_scaling_goes_by_the_sequence_and_not_by_the_micro_batch() -> None:
    one = replace(DYNAMIC, micro_batch=1)
    seed = reference(DYNAMIC).seed
    verdict = verify.compare(Layout(), reference(DYNAMIC).values, verify.trace(one, Layout(), World(), seed))
    assert verdict.equal, verdict
    plain = small()
    assert not verify.compare(Layout(), reference(DYNAMIC).values, verify.trace(plain, Layout(), World(), seed)).equal


def test_uneven_stages_are_uneven() -> None:
    for pieces in (2, 4, 6):
        assert len({len(piece) for piece in split_layers(SEVEN.model, pieces)}) == 2
