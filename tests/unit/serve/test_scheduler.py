"""Scheduler and block pool, without a model: any order of arrivals, steps and cancellations keeps every invariant."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moesaic.errors import OverloadedError
from moesaic.serve.blocks import BlockPool
from moesaic.serve.requests import Request
from moesaic.serve.scheduler import Limits, Scheduler
from moesaic.serve.step_plan import Outcome, StepPlan, StepResult, Work
from moesaic.serve.step_time import StepTime

STOP = 7


class AnyOrder(RuleBasedStateMachine):
    """Requests of a small vocabulary, so that beginnings are shared and answers stop; a pool too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(blocks=12, block_size=4)
        self.drafts = 0
        limits = Limits(max_token_latency_s=0.01, max_running=5, max_waiting=8, max_positions=24)
        self.scheduler = Scheduler(self.pool, limits, StepTime(8, 2), 40, lambda batch: self.drafts)
        self.flying: list[StepPlan] = []
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.next_id = 0
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}  # block, offset -> all tokens up to there

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=39),
        max_tokens=st.integers(1, 30),
        priority=st.integers(0, 1),
    )
    def arrive(self, prompt: list[int], max_tokens: int, priority: int) -> None:
        self.next_id += 1
        request = Request(self.next_id, tuple(prompt), max_tokens, frozenset({STOP}), priority)
        try:
            self.scheduler.add(request)
        except OverloadedError:
            assert self.scheduler.waiting == 8
            return
        self.requests[request.id], self.answers[request.id] = request, []

    @rule(drafts=st.integers(0, 3))
    def draft(self, drafts: int) -> None:
        self.drafts = drafts

    @rule()
    def plan(self) -> None:
        plan = self.scheduler.plan()
        if plan is None:
            return
        assert plan.work
        assert plan.positions <= 24 + 5 * 4
        for work in plan.work:
            request, answer = self.requests[work.request], self.answers[work.request]
            known = [*request.prompt, *answer]
            assert work.tokens == tuple(known[work.start : work.start + len(work.tokens)])
            assert work.sample == (work.start + len(work.tokens) == len(known))
            assert len(set(work.blocks)) * 4 >= work.start + work.width
        self.flying.append(plan)
        works = [work for plan in self.flying for work in plan.work]
        for writer in works:  # what a step in flight writes to, no other request has
            written = set(writer.blocks[writer.start // 4 :])
            assert not any(written & set(w.blocks) for w in works if w is not writer)

    def compute(self, work: Work, accepted: list[int]) -> None:
        """What the model does: every position before must be there, and hold this very beginning."""
        request = self.requests[work.request]
        known = [*request.prompt, *self.answers[work.request]][: work.start + len(work.tokens)]
        for p in range(work.start):
            assert self.memory[work.blocks[p // 4], p % 4] == tuple(known[: p + 1])
        guesses = accepted + [-1] * (work.drafts - len(accepted))  # -1: a guess that is refused
        for p, token in enumerate([*work.tokens, *guesses], work.start):
            before = self.memory[work.blocks[(p - 1) // 4], (p - 1) % 4] if p else ()
            self.memory[work.blocks[p // 4], p % 4] = (*before, token)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def land(self, data: Any) -> None:
        plan = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        outcomes = []
        for work in plan.work:
            accepted = data.draw(st.integers(0, work.drafts))
            token = st.sampled_from([0, 1, 2, STOP])
            tokens = data.draw(st.lists(token, min_size=accepted + 1, max_size=accepted + 1)) if work.sample else []
            outcomes.append(Outcome(tuple(tokens), drafted=work.drafts))
            self.compute(work, tokens[:-1])
        events = self.scheduler.commit(StepResult(plan.number, tuple(outcomes), 0.001 * plan.positions))
        for event in events:
            assert event.request not in self.ended
            answer, request = self.answers[event.request], self.requests[event.request]
            answer.extend(event.tokens)
            assert STOP not in answer[:-1]
            assert len(answer) <= request.max_tokens
            full = len(answer) == request.max_tokens or len(request.prompt) + len(answer) == 40
            expected = "stop" if answer[-1] == STOP else "length" if full else None
            assert event.finish == expected
            if event.finish:
                self.ended.add(event.request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        request = data.draw(st.sampled_from(sorted(self.requests)))
        assert self.scheduler.end(request) == (request not in self.ended)
        self.ended.add(request)
        assert not self.scheduler.end(request)

    @invariant()
    def whole(self) -> None:
        self.scheduler.check()

    def teardown(self) -> None:
        """Everybody gets an answer in the end, and nothing is left."""
        for _ in range(2000):
            plan = self.flying.pop(0) if self.flying else self.scheduler.plan()
            if plan is None:
                break
            outcomes = tuple(Outcome((1,) * w.sample, drafted=0) for w in plan.work)
            for event in self.scheduler.commit(StepResult(plan.number, outcomes, 0.001)):
                if event.finish:
                    self.ended.add(event.request)
            self.scheduler.check()
        assert self.scheduler.idle
        assert self.ended == set(self.requests)
        assert self.pool.free == self.pool.size


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=100, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase
