"""Each of five faults of parallel training, planted in the ranks, is caught by the comparison that `verify` makes.

Without the fault the same layout passes. Every fault lets training go on, but for the rank that stays away from a
collective: that one ends in an error within the limit.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import moesaic.parallel.expert
import moesaic.parallel.gradients
import moesaic.parallel.part
import moesaic.parallel.shard
import moesaic.parallel.tensor
from moesaic.parallel.launch import RanksFailed, run_ranks
from moesaic.recipe import Model
from moesaic.recipe.layout_text import parse_layout
from moesaic.train import verify
from moesaic.train.verify import Case

SMALL = Model.model_validate(verify.MODEL.model_dump() | {"n_layers": 2})
CASE = Case(SMALL, sequences=8)
STARVED = Case(SMALL, sequences=8, starved=4)


def sound() -> None:
    """No fault."""


def kv_gradient_unreduced() -> None:
    """Key and value weights, whole on every tensor rank, keep the pull of the rank's own query heads."""
    deal = moesaic.parallel.tensor._deal

    def forgetful(module: Any, prefix: str, mesh: Any, split: Any, ledger: Any) -> None:
        deal(module, prefix, mesh, split, ledger)
        ledger.summed_over_tp -= {name for name in ledger.summed_over_tp if name.endswith((".wk", ".wv"))}

    moesaic.parallel.tensor._deal = forgetful


def experts_left_out_of_the_norm() -> None:
    """As a norm over the weights of one mesh would."""
    norm = moesaic.parallel.gradients.Gradients.norm

    def partial_norm(self: Any) -> float:
        every = self.weights
        self.weights = lambda: (w for w in every() if w.name not in self.routed)
        try:
            return norm(self)
        finally:
            del self.weights

    moesaic.parallel.gradients.Gradients.norm = partial_norm  # type: ignore[method-assign]


def copies_counted_in_the_norm() -> None:
    """Each rank's copy of a weight counts once more."""
    moesaic.parallel.gradients.Gradients._copies = lambda self, name: 1  # type: ignore[method-assign]


def rank_without_tokens_stays_away() -> None:
    """A rank whose experts get no token goes on without sending their (empty) outputs home."""
    bring = moesaic.parallel.expert.Exchange._return

    def hasty(self: Any, module: Any, args: tuple[Any, ...], y_RD: torch.Tensor) -> torch.Tensor:
        if len(y_RD):
            return bring(self, module, args, y_RD)
        (routing, *_), self._way = self._way, None
        return y_RD.new_zeros(routing.experts_TK.shape[0], y_RD.shape[1])

    moesaic.parallel.expert.Exchange._return = hasty  # type: ignore[method-assign]


def balance_loss_of_each_micro_batch() -> None:
    """A mean over each micro-batch, added up: as many times too large as there are micro-batches."""
    attach = moesaic.parallel.part._Attach.apply

    class Scaled:
        @staticmethod
        def apply(x: torch.Tensor, term: torch.Tensor) -> Any:
            return attach(x, term * (CASE.sequences / CASE.micro_batch))

    moesaic.parallel.part._Attach = Scaled  # type: ignore[assignment, misc]


def sharded_gradient_divided() -> None:
    """FSDP's own mean over replicas, where the objective is a sum."""
    module = moesaic.parallel.shard.FSDPModule
    module.set_gradient_divide_factor = lambda self, factor: None  # type: ignore[method-assign]
    module.set_force_sum_reduction_for_comms = lambda self, enable: None  # type: ignore[method-assign]


# fault, layout, the first tensor that differs
FAULTS: list[tuple[Callable[[], None], str, str]] = [
    (kv_gradient_unreduced, "tp=2", "gradient layers.1.attention.wk"),
    (experts_left_out_of_the_norm, "dp=2,ep=2", "norm"),
    (copies_counted_in_the_norm, "dp=2,ep=2,zero=0", "norm"),
    (balance_loss_of_each_micro_batch, "pp=2", "gradient layers.1.router.weight"),
    (sharded_gradient_divided, "dp=2", "gradient norm.weight"),
]


def planted(rank: int, fault: Callable[[], None], cases: list[tuple[Case, Any, int]]) -> Any:
    fault()
    return verify.traces(rank, cases)


@cache
def reference(case: Case) -> verify.Reference:
    return verify.reference(case)


def verdict(fault: Callable[[], None], text: str) -> verify.Verdict:
    layout = parse_layout(text)
    (found,), *_ = run_ranks(planted, layout.world, fault, [(CASE, layout, reference(CASE).seed)])
    return verify.compare(layout, reference(CASE).values, found)


@pytest.mark.parametrize(("fault", "text", "first"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_a_planted_fault_is_caught_and_named(fault: Callable[[], None], text: str, first: str) -> None:
    assert verdict(sound, text).equal
    caught = verdict(fault, text)
    assert caught.first is not None
    assert caught.first.what == first
    assert caught.first.largest > 50 * verify.TOLERANCE * caught.first.scale


def test_a_rank_that_stays_away_from_a_collective_ends_all_within_the_limit() -> None:
    layout = parse_layout("dp=2,ep=2")
    cases = [(STARVED, layout, reference(STARVED).seed)]
    found, *_ = run_ranks(planted, 2, sound, cases)
    assert verify.compare(layout, reference(STARVED).values, found[0]).equal
    began = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank \d of 2"):
        run_ranks(planted, 2, rank_without_tokens_stays_away, cases, limit_s=20)
    assert time.monotonic() - began < 60


def test_routing_of_the_starved_leaves_a_rank_without_rows() -> None:
    """Else the test above would show nothing."""
    load = reference(STARVED).values["expert load"]
    assert (load[:, 4:] == 0).all()
    assert (load[:, :4].sum(dim=1) > 0).all()
