"""Runs steps: lays out the rows, asks the decoder for logits, chooses tokens.

What a request needs beyond its blocks (its generator, the counts for penalties) lives here from `begin` to `end`, also
while its blocks are given up.
"""

import time
from collections.abc import Sequence

import numpy as np

from moesaic.serve.batch import StepBatch
from moesaic.serve.decoder import Decoder
from moesaic.serve.options import Options
from moesaic.serve.sampling import RowState, choose
from moesaic.serve.step_plan import Outcome, StepPlan, StepResult


class Runner:
    """A decoder, and the state of the requests that it answers. One thread."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._rows: dict[int, RowState] = {}

    def begin(self, request: int, prompt: Sequence[int], options: Options) -> None:
        """A request will come."""
        self._rows[request] = RowState(options, prompt)

    def end(self, request: int) -> None:
        """And will not come again."""
        self._rows.pop(request, None)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step."""
        began = time.perf_counter()
        batch = StepBatch.of(plan.work)
        logits_RV, counts_LE = self.decoder.step(batch)
        rows = [self._rows[w.request] for w in plan.work if w.sample]
        tokens, notes = choose(logits_RV, rows) if rows else ([], [])
        for row, token in zip(rows, tokens, strict=True):
            row.note(token)
        chosen = iter(zip(tokens, notes, strict=True))
        outcomes = []
        for w in plan.work:
            if w.sample:
                token, note = next(chosen)
                outcomes.append(Outcome((token,), (note,)))
            else:
                outcomes.append(Outcome())
        experts = tuple(map(tuple, np.asarray(counts_LE).tolist()))
        return StepResult(plan.number, tuple(outcomes), time.perf_counter() - began, experts)
