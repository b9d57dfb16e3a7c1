"""Losses mean what their formulas say, and how a batch is cut changes none of them.

Tolerances: fp32 sums in another order, 1e-6 of values of about one (losses) and 1e-6 of the gradient's largest entry
(micro-batches); 1e-5 where 512 logits are summed.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.data import Batch
from moesaic.model import (
    IGNORE,
    Router,
    RouterStats,
    balance_loss,
    expert_load,
    next_token,
    next_token_loss,
    next_token_loss_reference,
    z_loss,
)
from moesaic.parallel.engine import Engine
from moesaic.parallel.vocabulary import vocabulary_loss
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import StepResult, TrainStep
from ranks import run_ranks
from tiny import batch, model, stage

ROWS = [[20, 9], [32], [5, 5, 5], [31, 1], [16, 16], [7], [12, 20], [30]]


# Next token


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.sampled_from([1, 7, 8, 9, 512]),
    st.sampled_from([8, 24]),
    st.integers(2, 300),
    st.floats(0, 1),
)
def test_next_token_loss_equals_the_reference(
    tokens: int, chunk: int, width: int, vocab: int, hidden_share: float
) -> None:
    g = torch.Generator().manual_seed(tokens * vocab)
    hidden, head = torch.randn(tokens, width, generator=g), torch.randn(vocab, width, generator=g) / width**0.5
    labels = torch.randint(vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < hidden_share] = IGNORE

    def run(function: object) -> list[Tensor]:
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = function(h, w, labels)  # type: ignore[operator]
        return [loss.detach(), *torch.autograd.grad(loss * 0.25, (h, w))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_token, "CHUNK", chunk)
        for ours, theirs in zip(run(next_token_loss), run(next_token_loss_reference), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_without_labels_there_is_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    head = torch.randn(9, 8, requires_grad=True)
    loss = next_token_loss(hidden, head, torch.full((5,), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden.grad.count_nonzero() == head.grad.count_nonzero() == 0


def test_next_token_loss_in_bf16_is_near_the_reference() -> None:
    """Within 2^-7 of the reference in fp32: logits and probabilities are rounded to 8 bits, the sum is not."""
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(256, 32, generator=g), torch.randn(300, 32, generator=g) / 32**0.5
    labels = torch.randint(300, (256,), generator=g)
    exact = next_token_loss_reference(hidden, head, labels)
    assert float(next_token_loss(hidden.bfloat16(), head, labels)) == pytest.approx(float(exact), rel=2**-7)


@pytest.mark.parametrize("count", [300, 777])
def test_the_mean_over_labels_scales_bf16_gradients_exactly(count: int) -> None:
    """1/300 and 1/777 are 0.2 % off in bf16, the same for all: the body would learn at another rate than the head."""
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(256, 32, generator=g).bfloat16().requires_grad_(), torch.randn(300, 32, generator=g)
    labels = torch.randint(300, (256,), generator=g)
    whole, mean = (
        torch.autograd.grad(next_token_loss(hidden, head, labels) / n, hidden)[0].double() for n in (1, count)
    )
    assert float((mean * whole).sum() / whole.square().sum() * count) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_the_scale_of_the_gradient_of_hidden_is_not_rounded(shared: bool) -> None:
    """1 / 773 is 0.15 % off in bf16, 1 / 641 0.2 %: not for the body, if not for the head."""
    if shared:
        ours, theirs = run_ranks(scales, 1)[0]
    else:
        ours, theirs = gradients_of_hidden(next_token_loss)
    for mine, exact in zip(ours, theirs, strict=True):
        assert float((mine * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=1e-3)


def gradients_of_hidden(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """In bf16, and of the reference in fp32 on the same operands."""
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(512, 64, generator=g).bfloat16(), (torch.randn(64, 64, generator=g) / 8).bfloat16()
    labels = torch.randint(64, (512,), generator=g)
    ours, theirs = [], []
    for divisor in (641, 773, 1279):
        a, b = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
        (loss(a, head, labels) / divisor).backward()
        (next_token_loss_reference(b, head.float(), labels) / divisor).backward()
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == torch.bfloat16
        ours.append(a.grad.float())
        theirs.append(b.grad)
    return ours, theirs


def scales(rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """With the vocabulary of a group of one."""
    group = torch.distributed.group.WORLD
    assert group is not None
    return gradients_of_hidden(lambda hidden, head, labels: vocabulary_loss(hidden, head, labels, group))


# Router losses


def stats_of(probabilities_BSE: Tensor, real_BS: Tensor, top_k: int = 1) -> RouterStats:
    """Statistics of a router that yields these probabilities."""
    n_experts = probabilities_BSE.shape[-1]
    router = Router(n_experts, n_experts, top_k)
    router.weight = torch.nn.Parameter(torch.eye(n_experts), requires_grad=False)
    routing = router(probabilities_BSE.log(), real_BS)
    assert routing.stats is not None
    stats: RouterStats = routing.stats
    return stats


@pytest.mark.parametrize("n_experts", [2, 4, 16])
@pytest.mark.parametrize("certainty", [0.6, 0.99])
def test_balance_loss_is_one_at_perfect_balance(n_experts: int, certainty: float) -> None:
    """Each expert is chosen equally often with the same certainty, whatever that certainty is."""
    p = torch.full((3, 2 * n_experts, n_experts), (1 - certainty) / (n_experts - 1))
    for t in range(2 * n_experts):
        p[:, t, t % n_experts] = certainty
    stats = stats_of(p, torch.ones(p.shape[:2], dtype=torch.bool))
    assert float(balance_loss(stats, top_k=1)) / 3 == pytest.approx(1, abs=1e-6)
    even_E = torch.full((n_experts,), 1 / n_experts)
    assert float(balance_loss(stats, 1, even_E)) / 3 == pytest.approx(1, abs=1e-6)


def test_balance_loss_is_the_number_of_experts_at_collapse() -> None:
    p = torch.full((1, 6, 4), 1e-7)
    p[..., 2] = 1
    stats = stats_of(p / p.sum(dim=-1, keepdim=True), torch.ones(1, 6, dtype=torch.bool))
    assert float(balance_loss(stats, top_k=1)) == pytest.approx(4, abs=1e-5)


def test_balance_loss_by_the_formula_and_its_gradient() -> None:
    """E sum f P per sequence; f is a count and has no gradient."""
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(2, 9, 5, generator=g), dim=-1).requires_grad_()
    stats = stats_of(p, torch.ones(2, 9, dtype=torch.bool), top_k=2)
    loss = balance_loss(stats, top_k=2)
    by_hand = torch.zeros(())
    for b in range(2):
        chosen = p[b].topk(2).indices
        f = torch.bincount(chosen.flatten(), minlength=5) / (9 * 2)
        by_hand = by_hand + 5 * (f * p[b].mean(dim=0)).sum()
    torch.testing.assert_close(loss, by_hand, atol=1e-6, rtol=0)
    (ours,) = torch.autograd.grad(loss, p)
    (theirs,) = torch.autograd.grad(by_hand, p)
    # The router takes logits: of a gradient with respect to probabilities only the part within the simplex is seen.
    within = next(x - (x * p).sum(dim=-1, keepdim=True) for x in (theirs,))
    torch.testing.assert_close(ours, within, atol=1e-6, rtol=1e-5)


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=g)
    router = Router(8, 4, 2)
    with torch.no_grad():
        router.weight.normal_(generator=g)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    stats = router(x, real).stats
    total = 0.0
    for b, n in enumerate((5, 3)):
        logits = (x[b, :n] @ router.weight.T).tolist()
        total += sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits) / n
    assert float(z_loss(stats).detach()) == pytest.approx(total, rel=1e-5)


def test_padding_counts_nothing() -> None:
    """Statistics of a padded sequence are those of the sequence without its padding, whatever stands there."""
    g = torch.Generator().manual_seed(0)
    x, junk = torch.randn(1, 6, 8, generator=g), torch.randn(1, 4, 8, generator=g) * 9
    router = Router(8, 4, 2)
    with torch.no_grad():
        router.weight.normal_(generator=g)
    alone = router(x, torch.ones(1, 6, dtype=torch.bool)).stats
    padded = router(torch.cat((x, junk), dim=1), torch.tensor([[True] * 6 + [False] * 4])).stats
    for name in ("counts_BE", "probability_sum_BE", "z_sum_B", "tokens_B"):
        torch.testing.assert_close(getattr(padded, name), getattr(alone, name), atol=1e-6, rtol=1e-6)
    assert int(expert_load([padded]).sum()) == 6 * 2


def test_a_sequence_of_nothing_but_padding_adds_zero() -> None:
    stats = stats_of(torch.full((1, 4, 4), 0.25), torch.zeros(1, 4, dtype=torch.bool))
    assert float(balance_loss(stats, 1)) == float(z_loss(stats)) == 0


# A step, cut into micro-batches


def one_step(
    micro_batch: int, train_batch: Batch, scope: str = "sequence"
) -> tuple[StepResult, dict[str, Tensor], TrainStep]:
    """The first step of a fresh model; gradients as they are before the update."""
    built = model(balance_scope=scope, balance_weight=0.5, z_weight=0.1, init_std=0.1)
    settings_ = stage(micro_batch=micro_batch)
    step = TrainStep(Engine.over(built), settings_, build_optimizer(built.named_parameters(), settings_.optimizer))
    grads: dict[str, Tensor] = {}
    admit = step.spikes.admit

    def look(norm: float) -> bool:
        grads.update({n: p.grad.clone() for n, p in built.named_parameters() if p.grad is not None})
        return admit(norm)

    step.spikes.admit = look  # type: ignore[method-assign]
    return step(train_batch, lr=0.0), grads, step


@pytest.mark.parametrize("scope", ["sequence", "previous_batch"])
def test_the_size_of_micro_batches_changes_neither_losses_nor_gradients(scope: str) -> None:
    train_batch = batch(ROWS, 32)
    whole, grads, _ = one_step(8, train_batch, scope)
    for size in (1, 2, 4):
        result, cut, _ = one_step(size, train_batch, scope)
        for name in ("loss", "balance_loss", "z_loss", "grad_norm"):
            assert getattr(result, name) == pytest.approx(getattr(whole, name), abs=1e-6, rel=1e-6), (size, name)
        assert result.load == whole.load
        assert cut.keys() == grads.keys()
        for name, gradient in grads.items():
            limit = 1e-6 * max(1.0, float(gradient.abs().max()))
            assert float((cut[name] - gradient).abs().max()) <= limit, (size, name)


def test_losses_of_a_step_are_means_over_the_global_batch() -> None:
    """Next-token loss over labels; balance and z over sequences and layers."""
    train_batch = batch(ROWS, 32)
    result, *_ = one_step(3, train_batch)
    built = model(balance_weight=0.5, z_weight=0.1, init_std=0.1)
    with torch.no_grad():
        _hidden, stats = built.hidden(
            train_batch.tokens, train_batch.positions, train_batch.documents, collect_stats=True
        )
        logits = built(train_batch.tokens, train_batch.positions, train_batch.documents)
    expected = F.cross_entropy(logits.flatten(0, 1), train_batch.labels.flatten(), ignore_index=IGNORE)
    assert result.loss == pytest.approx(float(expected), abs=1e-5)
    assert result.balance_loss == pytest.approx(sum(float(balance_loss(s, 2)) for s in stats) / (8 * 2), abs=1e-6)
    assert result.z_loss == pytest.approx(sum(float(z_loss(s)) for s in stats) / (8 * 2), abs=1e-6)
    assert all(sum(row) == pytest.approx(1, abs=1e-6) for row in result.load)


def test_the_objective_weighs_each_layer_fully() -> None:
    """The gradient of a step is that of loss + sum over layers of balance_weight * balance + z_weight * z."""
    train_batch = batch(ROWS, 32)
    _, grads, _ = one_step(8, train_batch)
    built = model(init_std=0.1)
    hidden, stats = built.hidden(train_batch.tokens, train_batch.positions, train_batch.documents, collect_stats=True)
    labels = train_batch.labels.flatten()
    objective = next_token_loss_reference(hidden.flatten(0, 1), built.head_weight, labels) / (labels != IGNORE).sum()
    for s in stats:
        objective = objective + (0.5 * balance_loss(s, 2) + 0.1 * z_loss(s)) / 8
    objective.backward()
    for name, parameter in built.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_previous_batch_uses_the_load_of_the_last_step_over_all_its_micro_batches() -> None:
    first, second = batch(ROWS, 32, seed=1), batch(ROWS, 32, seed=2)
    result, _, step = one_step(2, first, "previous_batch")
    assert result.balance_loss == pytest.approx(1, abs=1e-6)  # before the first step load counts as even
    built = step.engine.whole()
    assert built is not None
    with torch.no_grad():
        _, stats = built.hidden(first.tokens, first.positions, first.documents, collect_stats=True)
        load_LE = expert_load(stats) / expert_load(stats).sum(dim=1, keepdim=True)
        torch.testing.assert_close(torch.tensor(result.load), load_LE)
        _, stats = built.hidden(second.tokens, second.positions, second.documents, collect_stats=True)
        expected = sum(float(balance_loss(s, 2, load_LE[i])) for i, s in enumerate(stats)) / (8 * 2)
    assert step(second, lr=0.0).balance_loss == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(1, abs=1e-4)
    copy = one_step(2, second, "previous_batch")[2]
    copy.load_state_dict(step.state_dict())
    assert torch.equal(copy.previous_load_LE, step.previous_load_LE)


def test_a_dense_model_has_no_router_losses() -> None:
    built = model(n_experts=1, top_k=1)
    settings_ = stage()
    step = TrainStep(Engine.over(built), settings_, build_optimizer(built.named_parameters(), settings_.optimizer))
    result = step(batch(ROWS, 32), lr=1e-3)
    assert (result.balance_loss, result.z_loss, result.load) == (0, 0, [])
    assert result.loss > 0
