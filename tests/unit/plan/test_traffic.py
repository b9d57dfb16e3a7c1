"""Bytes of a step by hand for small cases, and what must hold for all. Real ranks: tests/unit/test_comm_bytes.py."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.parallel.stages import piece_of, split_layers
from moesaic.plan.local_weights import local_weights
from moesaic.plan.traffic import Operation, StepShape, by_group, total_bytes, traffic
from moesaic.recipe import Layout, Model, read_recipe

MODEL = Model(
    vocab_size=64, d_model=32, n_layers=4, n_heads=4, head_dim=8, n_kv_heads=1, d_ff=48, n_experts=4, top_k=2
)  # fmt: skip
STEP = StepShape(micro_batches=4, micro_batch=2, seq_len=32, product_bytes=2)
EXPERTS = 4 * 4 * 3 * 32 * 48  # parameters
TOKENS = 2 * 32
STREAM = 4 * TOKENS * 32  # bytes of the residual stream of a micro-batch

layouts = st.sampled_from(
    [
        Layout(pp=pp, dp=dp, cp=cp, tp=tp, ep=ep, etp=etp, zero=zero, schedule=schedule, recompute=recompute)
        for pp, schedule in [(1, "1f1b"), (2, "1f1b"), (2, "interleaved"), (2, "zero_bubble"), (4, "1f1b")]
        for dp, cp, tp in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
        for ep in (1, 2)
        for etp in {1, tp}
        if dp * cp * tp % (ep * etp) == 0
        for zero in (0, 1, 3)
        for recompute in ("none", "full")
    ]
)


def sent(layout: Layout, step: StepShape = STEP, model: Model = MODEL, rank: int = 0, **chosen: str) -> float:
    split = split_layers(model, layout.pp * layout.chunks_per_rank)
    rows = traffic(model, layout, step, {p: split[p] for p in piece_of(layout, rank)})
    return sum(r.bytes for r in rows if all(getattr(r, k) == v for k, v in chosen.items()))


def test_one_process_sends_nothing() -> None:
    assert traffic(MODEL, Layout(recompute="full"), STEP) == []


def test_gradients_of_replicas() -> None:
    dense = MODEL.parameters() - EXPERTS
    assert sent(Layout(dp=4, zero=0), group="fsdp") == 2 * 3 / 4 * 4 * dense
    assert sent(Layout(dp=4, zero=0), group="edp") == 2 * 3 / 4 * 4 * EXPERTS
    assert sent(Layout(dp=4, ep=2, zero=0), group="edp") == 2 * 1 / 2 * 4 * EXPERTS / 2
    # Everything divides by 4, so that nothing is padded. Experts are gathered in bf16, the rest in fp32.
    zero1 = Layout(dp=4, zero=1, reduce="bf16")
    assert sent(zero1, group="edp", operation="all_gather") == 3 / 4 * 2 * EXPERTS
    assert sent(zero1, group="edp", operation="reduce_scatter") == 3 / 4 * 2 * EXPERTS
    assert sent(zero1, group="fsdp") == 3 / 4 * (4 + 2) * dense


def test_zero_3_gathers_layers_twice_and_the_ends_once_for_each_micro_batch() -> None:
    ends = MODEL.embedding_parameters + MODEL.d_model
    layers = MODEL.parameters() - ends
    three = Layout(dp=4, zero=3)
    gathered = sent(three, operation="all_gather")
    assert gathered == 3 / 4 * 4 * (2 * (4 * (layers - EXPERTS) + 2 * EXPERTS) + 4 * ends)
    assert sent(three, operation="reduce_scatter") == 3 / 4 * 4 * 4 * (layers + ends)


def test_zero_3_in_a_pipeline_keeps_layers_from_one_backward_pass_to_the_next_forward_pass() -> None:
    layers, experts = (MODEL.parameters() - MODEL.embedding_parameters - MODEL.d_model) / 2, EXPERTS / 2
    piped = Layout(pp=2, dp=4, zero=3)
    embedding = MODEL.embedding_parameters
    once = 4 * (layers - experts) + 2 * experts
    assert sent(piped, operation="all_gather") == 3 / 4 * (5 * once + 4 * embedding)  # 4 micro-batches and one more
    assert sent(piped, operation="reduce_scatter") == 3 / 4 * 4 * (layers + embedding)


def test_zero_bubble_gathers_experts_in_fp32() -> None:
    def weights(schedule: str) -> float:
        layout = Layout.model_validate({"pp": 2, "dp": 4, "zero": 1, "schedule": schedule})
        return sent(layout, group="edp", operation="all_gather")

    assert weights("zero_bubble") == 2 * weights("1f1b") == 3 / 4 * 4 * EXPERTS / 2


def test_rows_that_do_not_divide_are_padded() -> None:
    norm_of = 32  # 32 values over 5 replicas: 7 each
    rows = traffic(MODEL.model_copy(update={"n_layers": 0}), Layout(dp=5, zero=1), STEP, {0: range(0)})
    (gathered,) = [r for r in rows if r.operation == "all_gather"]
    assert gathered.bytes == 4 / 5 * 4 * (5 * 7 + 5 * 13 * norm_of)  # the norm, and 64 rows of the embedding


def test_tensor_ranks_gather_and_sum_what_is_around_attention_and_dense_blocks() -> None:
    dense = MODEL.model_copy(update={"n_experts": 1, "top_k": 1})
    half = TOKENS * 32 * 2 / 2  # bf16, 2 ranks
    layout = Layout(tp=2, zero=0)
    what = "residual stream around attention and split blocks"
    # 4 layers x 4 micro-batches, each (attention, block) x (forward, backward)
    assert sent(layout, model=dense, what=what, operation="all_gather") == 4 * 4 * 4 * half
    assert sent(layout, model=dense, what=what, operation="reduce_scatter") == 4 * 4 * 4 * half
    assert sent(layout, what=what) == 4 * 4 * 4 * half  # whole experts leave their tokens where they are
    again = Layout(tp=2, zero=0, recompute="full")
    assert sent(again, model=dense, what=what, operation="all_gather") == 4 * 4 * 6 * half
    assert sent(again, model=dense, what=what, operation="reduce_scatter") == 4 * 4 * 5 * half


def test_weights_that_all_tensor_ranks_hold() -> None:
    small = 4 * (2 * 32 + 4 * 32 + 2 * 8 * 32) + 32  # norms, router, one key/value head; final norm
    what = "gradients of weights that all hold whole"
    assert sent(Layout(tp=4, zero=0), what=what) == 2 * 3 / 4 * 4 * small
    assert sent(Layout(tp=4, dp=2, zero=1), what=what) == 2 * 3 / 4 * 4 * small / 2
    two_heads = MODEL.model_copy(update={"n_kv_heads": 2})
    without = 4 * (2 * 32 + 4 * 32) + 32
    assert sent(Layout(tp=2, zero=0), model=two_heads, what=what) == 4 * without


def test_rows_of_experts() -> None:
    rows = TOKENS * 2 * 32 * 2  # both choices, bf16
    assert sent(Layout(dp=2, ep=2, zero=0), what="rows of experts") == 4 * 4 * 4 * rows / 2
    # Folded over tensor ranks each has half the tokens; with split experts each has all of them.
    assert sent(Layout(tp=2, ep=2, zero=0), what="rows of experts") == 4 * 4 * 4 * rows / 2 / 2
    split = Layout(dp=2, tp=2, ep=2, etp=2, zero=0)
    assert sent(split, what="rows of experts") == 4 * 4 * 4 * rows / 2
    again = Layout(dp=2, ep=2, zero=0, recompute="full")
    assert sent(again, what="rows of experts") == 4 * 4 * 6 * rows / 2
    assert sent(again, what="numbers of rows") == 4 * 4 * 2 * 8 * 4 / 2


def test_keys_and_values_of_context_ranks() -> None:
    kv = 2 * 8 * TOKENS * 2  # one head each, whole sequences, bf16
    assert sent(Layout(cp=4, zero=0), group="cp") == 4 * 4 * 2 * kv * 3 / 4
    assert sent(Layout(cp=4, zero=0, recompute="selective"), group="cp") == 4 * 4 * 3 * kv * 3 / 4


@pytest.mark.parametrize(
    ("layout", "rank", "hops"),
    [
        (Layout(pp=4), 0, 1),
        (Layout(pp=4), 1, 2),
        (Layout(pp=4), 3, 1),
        (Layout(pp=2, schedule="interleaved"), 0, 1 + 2),
        (Layout(pp=2, schedule="zero_bubble"), 0, 2),  # the two ends
        (Layout(pp=2, schedule="zero_bubble"), 1, 2),  # between its own pieces nothing travels
        (Layout(pp=4, tp=2, cp=2), 1, 2 / 4),
    ],
)
def test_pipelines_send_the_residual_stream(layout: Layout, rank: int, hops: float) -> None:
    assert sent(layout, rank=rank, group="pp") == 4 * hops * STREAM


def test_both_ends_of_a_pipeline_sum_a_tied_embedding() -> None:
    assert [sent(Layout(pp=4), rank=r, group="ends") for r in range(4)] == [4 * 64 * 32, 0, 0, 4 * 64 * 32]
    assert sent(Layout(pp=2, schedule="zero_bubble"), group="ends") == 0
    untied = MODEL.model_copy(update={"tie_embeddings": False})
    assert sent(Layout(pp=4), model=untied, group="ends") == 0


@given(layouts)
def test_more_micro_batches_add_the_same_each(layout: Layout) -> None:
    one, two, three = (sent(layout, StepShape(m, 2, 32, 2)) for m in (1, 2, 3))
    assert three - two == pytest.approx(two - one)


@given(layouts)
def test_pipeline_ranks_together_hold_what_one_stage_would(layout: Layout) -> None:
    """Within a replica of the pipeline all but what belongs to pipelines adds up to the model in one piece."""
    flat = layout.model_copy(update={"pp": 1})
    if layout.zero == 3 and layout.pp > 1:  # gathers otherwise, see traffic
        return
    step = replace(STEP, product_bytes=4)  # zero-bubble schedules gather experts in nothing else
    for operation in ("all_gather", "reduce_scatter", "all_to_all"):
        whole = sent(flat, step, operation=operation)
        pieces = sum(sent(layout, step, rank=r, operation=operation) for r in range(layout.pp))
        copy = layout.pp > 1 and layout.zero > 0 and operation != "all_to_all"  # of the tied embedding
        n = layout.dp * layout.cp
        assert pieces == pytest.approx(whole + copy * 4 * 64 / layout.tp * 32 * (n - 1) / n), operation


@given(layouts)
def test_weights_on_all_ranks_are_those_of_the_model(layout: Layout) -> None:
    local = list(local_weights(MODEL, layout, range(MODEL.n_layers), first=True, last=True))
    count = sum(w.numel * (layout.ep * layout.etp if w.routed else 1 if w.summed_over_tp else layout.tp) for w in local)
    assert count == MODEL.parameters()


def test_gpt4_in_nearly_its_own_layout() -> None:
    """The described run: what a rank of a middle stage sends in a step of 35 micro-batches, in GB."""
    recipe = read_recipe("gpt4", ["layout.recompute=selective", "layout.chunks=2"])
    step = StepShape(35, 1, 8192, 2)
    split = split_layers(recipe.model, recipe.layout.pp * recipe.layout.chunks_per_rank)
    rows = traffic(recipe.model, recipe.layout, step, {p: split[p] for p in piece_of(recipe.layout, 7)})
    found = {(group, operation): size / 1e9 for group, operation, size in by_group(rows)}
    layers = 8
    stream = 35 * 8192 * 10_752 * 2 * layers * 2 * 7 / 8 / 1e9  # attention only, forward and backward
    assert found["tp", "all_gather"] == pytest.approx(stream)
    assert found["ep", "all_to_all"] == pytest.approx(
        35 * 8192 / 8 * 2 * 10_752 * 2 * layers * 4 * 15 / 16 / 1e9, rel=1e-3
    )
    experts = 3 * 10_752 * 28_672 * layers  # one on each rank
    assert found["edp", "reduce_scatter"] == pytest.approx(4 * experts * 103 / 104 / 1e9, rel=0.01)
    operation: Operation = "send"
    assert total_bytes(rows, operation) == total_bytes(rows, group="pp") == 35 * 4 * 4 * 8192 * 10_752 / 8
