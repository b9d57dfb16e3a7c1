"""Runs steps: lays out the rows, lets a draft guess, asks the decoder for logits, chooses tokens.

What a request needs beyond its blocks (its generator, the counts for penalties) lives here from `begin` to `end`, also
while its blocks are given up.
"""

import time
from collections.abc import Sequence

from moesaic.serve.batch import StepBatch
from moesaic.serve.decoder import Decoder
from moesaic.serve.draft import Asked, Draft, Guessed
from moesaic.serve.options import Options
from moesaic.serve.sampling import RowState
from moesaic.serve.step_plan import Outcome, StepPlan, StepResult
from moesaic.serve.verify import verify


class Runner:
    """A decoder, perhaps a draft, and the state of the requests that they answer. One thread."""

    def __init__(self, decoder: Decoder, draft: Draft | None = None) -> None:
        self.decoder, self.draft = decoder, draft
        self._rows: dict[int, RowState] = {}
        self._tokens: dict[int, list[int]] = {}

    def begin(self, request: int, prompt: Sequence[int], options: Options) -> None:
        """A request will come. Raises ServeError."""
        self._rows[request] = RowState(options, prompt)
        self._tokens[request] = list(prompt)

    def end(self, request: int) -> None:
        """And will not come again."""
        self._rows.pop(request, None)
        self._tokens.pop(request, None)
        if self.draft is not None:
            self.draft.end(request)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step."""
        began = time.perf_counter()
        guessed = self._guess(plan)
        logits_NV, counts_LE = self.decoder.step(StepBatch.of(plan.work, guessed.tokens))
        sampled = [i for i, w in enumerate(plan.work) if w.sample]
        rows = [self._rows[plan.work[i].request] for i in sampled]
        verdicts = verify(logits_NV, [guessed.tokens[i] for i in sampled], guessed.q_MV, rows) if rows else []
        outcomes = [Outcome()] * len(plan.work)
        for i, row, verdict in zip(sampled, rows, verdicts, strict=True):
            work = plan.work[i]
            for token in verdict.tokens:
                row.note(token)
            self._tokens[work.request] += verdict.tokens
            if self.draft is not None and guessed.tokens[i]:
                self.draft.checked(work.request, work.start, verdict.accepted)
            outcomes[i] = Outcome(verdict.tokens, verdict.notes, len(guessed.tokens[i]))
        experts = tuple(tuple(row) for row in counts_LE.tolist())
        return StepResult(plan.number, tuple(outcomes), time.perf_counter() - began, experts)

    def _guess(self, plan: StepPlan) -> Guessed:
        if self.draft is None:
            return Guessed([[] for _ in plan.work])
        asked = []
        for w in plan.work:
            row = self._rows[w.request]
            asked.append(Asked(w, w.drafts if row.options.speculate else 0, row, self._tokens[w.request]))
        return self.draft.guess(asked)
