"""Continuous batching: which requests go into the next step, with how many tokens, under a cap on its time.

Every step takes the next token of each running answer (iteration-level scheduling, Yu et al. 2022), then as much of
waiting prompts as the cap leaves room for (chunked prefill, Agrawal et al. 2024). When memory runs out the last to
come gives its blocks up and is computed again later (recompute, Kwon et al. 2023, section 4.5).

Neither torch nor clocks nor tasks: what comes out is a function of what it is told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from moesaic.errors import OverloadedError, ServeError
from moesaic.serve.blocks import BlockPool
from moesaic.serve.requests import Request
from moesaic.serve.step_plan import Event, FinishReason, Outcome, StepPlan, StepResult, Work
from moesaic.serve.step_time import Load, StepTime

PRIORITY_LEAD = 1000
LEAST_CHUNK = 16  # tokens of a prompt that a step takes whatever the cap: prompts must get on
UNKNOWN_CHUNK = 64  # and before anything is known of the time of a step


@dataclass(frozen=True)
class Limits:
    """What a step and the queue may hold. `max_token_latency_s` is the knob; the others guard memory."""

    max_token_latency_s: float | None = None
    """Time between two tokens of an answer to stay under; None takes all that fits into a step."""
    max_running: int = 256
    max_waiting: int = 1024
    max_positions: int = 2048
    """New positions in a step."""


@dataclass
class _Sequence:
    """A request on its way. `tokens[:computed]` are in its blocks."""

    request: Request
    order: int
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    flying: bool = False  # in a step whose result has not come
    ended: bool = False  # given up while flying: the step may still write to its blocks
    preemptions: int = 0
    cached: int = 0  # of the prompt, at first

    @property
    def missing(self) -> int:
        """Known tokens that are not computed: 1 while an answer is written, more in a prompt."""
        return len(self.tokens) - self.computed


class Scheduler:
    """Requests, waiting and running, and the blocks that they hold."""

    def __init__(
        self,
        pool: BlockPool,
        limits: Limits,
        times: StepTime,
        context: int,
        draft_length: Callable[[int], int] = lambda batch: 0,
    ) -> None:
        """`context`: longest prompt and answer together; `draft_length`: guesses for each of a batch so large."""
        self.pool, self.limits, self.times, self.draft_length = pool, limits, times, draft_length
        self.room = min(context, pool.size * pool.block_size)
        self.prompt_tokens = self.reused_tokens = self.preemptions = 0
        self._waiting: dict[int, _Sequence] = {}
        self._running: dict[int, _Sequence] = {}
        self._flying: dict[int, tuple[StepPlan, tuple[_Sequence, ...]]] = {}
        self._arrivals = self._steps = 0

    @property
    def waiting(self) -> int:
        """Requests that hold no memory: not yet, or not any more."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold memory."""
        return len(self._running)

    def sequences(self) -> list[dict[str, object]]:
        """What is known of each request, in the order in which they are served; for people."""
        return [
            {
                "request": s.request.id,
                "state": "ending" if s.ended else "in a step" if s.flying else "running" if running else "waiting",
                "prompt": len(s.request.prompt),
                "answer": len(s.tokens) - len(s.request.prompt),
                "computed": s.computed,
                "blocks": len(s.blocks),
                "preemptions": s.preemptions,
            }
            for running, of in ((True, self._running), (False, self._waiting))
            for s in self._ordered(of)
        ]

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do."""
        return not (self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Let a request wait. Raises ServeError if it can never be answered, OverloadedError if the queue is full."""
        if request.id in self._waiting or request.id in self._running:
            raise ServeError(f"request {request.id} is here already; give each a number of its own")
        if not request.prompt or request.max_tokens < 1:
            raise ServeError("a request needs a prompt, and an answer of at least one token")
        if len(request.prompt) >= self.room:
            raise ServeError(
                f"the prompt has {len(request.prompt)} tokens, and {self.room} must hold the answer too; "
                f"shorten it to at most {self.room - 1}"
            )
        if len(self._waiting) >= self.limits.max_waiting:
            raise OverloadedError(f"{len(self._waiting)} requests are waiting, which is the limit; try again later")
        self._arrivals += 1
        order = self._arrivals - PRIORITY_LEAD * request.priority
        self._waiting[request.id] = _Sequence(request, order, list(request.prompt))

    def end(self, request: int) -> bool:
        """Give a request up, wherever it is; False when it is not here, or was given up before."""
        if self._waiting.pop(request, None) is not None:
            return True
        sequence = self._running.get(request)
        if sequence is None or sequence.ended:
            return False
        if sequence.flying:
            sequence.ended = True
        else:
            self._leave(sequence)
        return True

    def plan(self) -> StepPlan | None:
        """The next step; None when there is nothing to do before a result comes."""
        chosen: list[tuple[_Sequence, Work]] = []
        load = Load()
        writing = [s for s in self._ordered(self._running) if s.missing == 1 and not s.flying]
        drafts = self.draft_length(len(writing)) if writing else 0
        for sequence in writing:
            if sequence.request.id in self._running and (work := self._next_token(sequence, drafts)):
                chosen.append((sequence, work))
                load = load.with_work(work.start, work.width)
        written = load.positions
        for sequence in self._prompts(written):
            width = self._chunk(sequence, load, first=load.positions == written)
            if not width:
                break
            last = width == sequence.missing
            tokens = tuple(sequence.tokens[sequence.computed : sequence.computed + width])
            chosen.append(
                (sequence, Work(sequence.request.id, sequence.computed, tokens, tuple(sequence.blocks), last))
            )
            load = load.with_work(sequence.computed, width)
        if not chosen:
            return None
        for sequence, _ in chosen:
            sequence.flying = True
        self._steps += 1
        plan = StepPlan(self._steps, tuple(work for _, work in chosen), self.times.predict(load))
        self._flying[plan.number] = (plan, tuple(sequence for sequence, _ in chosen))
        return plan

    def commit(self, result: StepResult) -> list[Event]:
        """Take in what a step gave. Results may come in any order."""
        plan, sequences = self._flying.pop(result.number)
        load, events = Load(), []
        for sequence, work, outcome in zip(sequences, plan.work, result.outcomes, strict=True):
            load = load.with_work(work.start, len(work.tokens) + outcome.drafted)
            sequence.flying = False
            if sequence.ended:
                self._leave(sequence)
                continue
            known, root = sequence.computed // self.pool.block_size, sequence.request.root
            sequence.computed += len(work.tokens) + max(0, len(outcome.tokens) - 1)
            event = self._append(sequence, outcome) if work.sample else None
            self.pool.publish(sequence.blocks, sequence.tokens[: sequence.computed], known, root)
            if event is not None:
                events.append(event)
                if event.finish is not None:
                    self._leave(sequence)
        self.times.learn(load, result.seconds)
        return events

    def largest_batch(self, context: int) -> tuple[int, str]:
        """Answers of so many tokens that can be written at once, and what does not let it be more."""
        memory = self.pool.size // self.pool.blocks_for(context)
        most, why = min((memory, "memory"), (self.limits.max_running, "max_running"))
        if not self._under_cap(_writing(most, context)):
            low, high = 0, most  # low fits, high does not
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._under_cap(_writing(middle, context)) else (low, middle)
            most, why = max(low, 1), "latency cap"
        return most, why

    def _ordered(self, of: dict[int, _Sequence]) -> list[_Sequence]:
        return sorted(of.values(), key=lambda s: s.order)

    def _next_token(self, sequence: _Sequence, drafts: int) -> Work | None:
        """Work of an answer that is being written, with a block for it; None when memory does not allow it now."""
        left = sequence.request.max_tokens - (len(sequence.tokens) - len(sequence.request.prompt))
        drafts = min(drafts, left - 1, self.room - len(sequence.tokens) - 1)
        while not self._grow(sequence, sequence.computed + 1 + drafts):
            if drafts:
                drafts = 0
                continue
            victims = [s for s in self._ordered(self._running) if s.order >= sequence.order and not s.flying]
            self._preempt(victims[-1])
            if victims[-1] is sequence:
                return None
        blocks = tuple(sequence.blocks)
        return Work(sequence.request.id, sequence.computed, (sequence.tokens[-1],), blocks, sample=True, drafts=drafts)

    def _grow(self, sequence: _Sequence, positions: int) -> bool:
        new = self.pool.take(max(0, self.pool.blocks_for(positions) - len(sequence.blocks)))
        if new is None:
            return False
        sequence.blocks += new
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._leave(sequence)
        sequence.blocks, sequence.computed = [], 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._waiting[sequence.request.id] = sequence

    def _leave(self, sequence: _Sequence) -> None:
        del self._running[sequence.request.id]
        self.pool.release(sequence.blocks)

    def _prompts(self, written: int) -> Iterator[_Sequence]:
        """Sequences with tokens to compute before the next one: those that run, then those that can begin."""
        yield from [s for s in self._ordered(self._running) if s.missing > 1 and not s.flying]
        load = Load()
        for sequence in self._running.values():
            load = load.with_work(len(sequence.tokens), 1)
        for sequence in self._ordered(self._waiting):
            load = load.with_work(len(sequence.tokens), 1)
            full = len(self._running) >= self.limits.max_running
            if full or (self._running and not self._under_cap(load)) or not self._admit(sequence):
                return
            yield sequence

    def _admit(self, sequence: _Sequence) -> bool:
        """Give a sequence blocks for all its tokens and one more, if every running one can still grow by a block."""
        found = self.pool.match(sequence.tokens, sequence.request.root)
        self.pool.hold(found)
        need = self.pool.blocks_for(len(sequence.tokens) + 1) - len(found)
        if need + len(self._running) > self.pool.free or (new := self.pool.take(need)) is None:
            self.pool.release(found)
            return False
        del self._waiting[sequence.request.id]
        self._running[sequence.request.id] = sequence
        sequence.blocks, sequence.computed = found + new, len(found) * self.pool.block_size
        if not sequence.preemptions:
            self.prompt_tokens += len(sequence.tokens)
            self.reused_tokens += sequence.computed
            sequence.cached = sequence.computed
        return True

    def _chunk(self, sequence: _Sequence, load: Load, first: bool) -> int:
        """Tokens of a prompt that still fit into a step; `first`: it is the first prompt of the step."""
        most = min(sequence.missing, self.limits.max_positions - load.positions)
        cap = self.limits.max_token_latency_s
        if most <= 0 or cap is None or not load.positions:  # nobody waits for a token
            return max(most, 0)
        if self.times.predict(load) is None:
            return min(most, UNKNOWN_CHUNK)
        low, high = 0, most + 1  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._under_cap(load.with_work(sequence.computed, middle))
            low, high = (middle, high) if fits else (low, middle)
        return max(low, min(most, LEAST_CHUNK)) if first else low

    def _under_cap(self, load: Load) -> bool:
        cap, seconds = self.limits.max_token_latency_s, self.times.bound(load)
        return cap is None or seconds is None or seconds <= cap

    def _append(self, sequence: _Sequence, outcome: Outcome) -> Event:
        request, new = sequence.request, []
        finish: FinishReason | None = None
        for token in outcome.tokens:
            sequence.tokens.append(token)
            new.append(token)
            if token in request.stop_ids:
                finish = "stop"
            elif len(sequence.tokens) - len(request.prompt) == request.max_tokens or len(sequence.tokens) == self.room:
                finish = "length"
            if finish:
                break
        sequence.computed = min(sequence.computed, len(sequence.tokens) - 1)
        return Event(request.id, tuple(new), outcome.notes[: len(new)], finish, sequence.cached)

    def check(self) -> None:
        """Every invariant. Raises AssertionError."""
        self.pool.check([s.blocks for s in self._running.values()])
        assert len(self._running) <= self.limits.max_running
        flying = [s for _, sequences in self._flying.values() for s in sequences]
        assert len({id(s) for s in flying}) == len(flying), "a sequence is in two steps"
        for sequence in self._waiting.values():
            assert not sequence.blocks
            assert not sequence.computed
            assert not sequence.flying
            assert not sequence.ended
        for sequence in self._running.values():
            assert sequence.flying == any(s is sequence for s in flying)
            assert 0 <= sequence.computed < len(sequence.tokens) <= self.room
            assert len(sequence.blocks) >= self.pool.blocks_for(sequence.computed)
            assert not sequence.ended or sequence.flying


def _writing(batch: int, context: int) -> Load:
    """A step that adds a token to so many answers."""
    pairs = batch * (context + 1.0)
    return Load(batch, batch * (context + 1), pairs)
