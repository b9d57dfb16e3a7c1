"""The engine: one thread that plans steps, runs them and hands out new tokens; requests come from any thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from moesaic.errors import ModelError, OverloadedError, ServeError
from moesaic.model import Transformer
from moesaic.model.kernels import KernelChoice
from moesaic.serve.blocks import BlockPool
from moesaic.serve.decoder import Decoder, TorchDecoder
from moesaic.serve.draft import Draft, Lookup, ModelDraft
from moesaic.serve.gain import Gain
from moesaic.serve.local import LocalModel
from moesaic.serve.native import BLOCK_SIZE, NativeDecoder, open_library, uncovered
from moesaic.serve.options import Options
from moesaic.serve.record import StepRecord, Usage
from moesaic.serve.requests import Request
from moesaic.serve.runner import Runner
from moesaic.serve.sampling import check_vocabulary
from moesaic.serve.scheduler import Limits, Scheduler
from moesaic.serve.step_plan import Event, FinishReason, StepPlan, StepResult, TokenNote
from moesaic.serve.step_time import StepTime

RECORDS = 600
_LOGGER = logging.getLogger(__name__)
STALL_S, STALL_RATIO = 5.0, 10.0  # without a step while there is work: so long, or so many times what was expected


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to serve. `max_token_latency_s` is the knob; the rest has defaults that fit."""

    max_token_latency_s: float | None = None
    """Time between two tokens of an answer to stay under; None takes all that fits into a step."""
    kv_memory: int = 1 << 30
    """Bytes for keys and values."""
    block_size: int = 16
    """Positions in a block."""
    prefix_cache: bool = True
    max_running: int = 256
    max_waiting: int = 1024
    max_positions: int = 2048
    """New positions in a step."""
    draft: Path | Literal["lookup"] | None = None
    """A smaller model folder that guesses, or the prompt itself."""
    draft_length: int = 4
    kernels: KernelChoice = "auto"
    batch_invariant: bool = False
    """Answers do not depend, to the bit, on what else is served."""


@dataclass(frozen=True)
class Delivery:
    """New tokens of one request, a note for each. The last has a reason and what the answer took."""

    request: int
    tokens: tuple[int, ...]
    notes: tuple[TokenNote, ...]
    finish: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Health:
    """Whether the engine's thread lives, takes requests, and gets on with those it has."""

    alive: bool
    ready: bool
    progressing: bool
    reason: str
    idle_s: float
    """Since the last step ended, or since work came to an idle engine."""
    waiting: int
    running: int


@dataclass
class _Answer:
    sink: Callable[[Delivery], None]
    usage: Usage


class Engine:
    """Serves one model. Every method may be called from any thread; sinks and observers are called on the engine's."""

    def __init__(self, model: LocalModel, settings: EngineSettings | None = None) -> None:
        """Raises ServeError when the memory does not hold a single block, ModelError for kernels that cannot be had."""
        began = time.perf_counter()
        self.model, self.settings = model, settings or EngineSettings()
        s, config = self.settings, model.model.config
        element = torch.empty(0, dtype=model.model.compute_dtype).element_size()
        block = 2 * config.n_layers * config.n_kv_heads * config.head_dim * element * s.block_size
        most = s.max_running * -(-config.context // s.block_size)
        blocks = min(s.kv_memory // block, most)
        if blocks < 1:
            raise ServeError(f"{s.kv_memory} bytes do not hold a block of keys and values; give at least {block}")
        self.runner = Runner(_decoder(model.model, blocks, s, config.context), _draft(model, blocks, s))
        self.gain = Gain(s.draft_length) if s.draft is not None else None
        self.times = StepTime(config.n_experts, config.top_k)
        limits = Limits(s.max_token_latency_s, s.max_running, s.max_waiting, s.max_positions)
        pool = BlockPool(blocks, s.block_size, s.prefix_cache)
        draft_length = self.gain.length if self.gain is not None else lambda batch: 0
        self.scheduler = Scheduler(pool, limits, self.times, config.context, draft_length)
        self.observers: list[Callable[[StepRecord], None]] = []
        self.timeline: list[tuple[str, float]] = [("pages and kernels", time.perf_counter() - began)]
        self._work = threading.Condition()
        self._answers: dict[int, _Answer] = {}
        self._gone: list[tuple[int, FinishReason]] = []  # ended from outside, to be told on the engine's thread
        self._records: deque[StepRecord] = deque(maxlen=RECORDS)
        self._numbers = 0
        self._closing = self._draining = False
        self._failure: str | None = None
        self._moved = time.monotonic()
        self._flying: StepPlan | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def description(self) -> dict[str, Any]:
        """What is served, for people."""
        pool, model = self.scheduler.pool, self.model.model
        return {
            "name": self.model.folder.name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(model.compute_dtype).removeprefix("torch."),
            "kernels": self.runner.decoder.name,
            "draft": None if self.runner.draft is None else self.runner.draft.name,
            "context": self.scheduler.room,
            "blocks": pool.size,
            "block_size": pool.block_size,
            "kv_tokens": pool.size * pool.block_size,
            "timeline": self.timeline,
        }

    def start(self) -> None:
        """Begin to take requests."""
        self._moved = time.monotonic()
        self._thread.start()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, prompt: Sequence[int], options: Options, sink: Callable[[Delivery], None], priority: int = 0
    ) -> int:
        """The number of a new request. `sink` gets its tokens and must only pass them on.

        Raises ServeError when it can never be answered, OverloadedError when it could be later.
        """
        if wrong := [t for t in prompt if not 0 <= t < self.model.model.config.vocab_size]:
            raise ServeError(f"token {wrong[0]} is not in the vocabulary; use the model's own tokenizer")
        check_vocabulary(options, self.model.model.config.vocab_size)
        with self._work:
            if self._failure is not None or self._closing:
                raise OverloadedError(self._failure or "the engine is closed; start it again")
            if self._draining:
                raise OverloadedError("the engine is draining and takes no new requests; ask another")
            number = self._numbers + 1
            stop_ids = frozenset(options.stop_ids)
            self.scheduler.add(Request(number, tuple(prompt), options.max_tokens, stop_ids, priority))
            self._numbers = number
            now = time.monotonic()
            if len(self._answers) == 0:
                self._moved = now
            self._answers[number] = _Answer(sink, Usage(len(prompt), arrived=now))
            self.runner.begin(number, prompt, options)
            self._work.notify_all()
        return number

    def cancel(self, request: int) -> None:
        """Give a request up; it ends with "abort". Nothing happens when it is not here any more."""
        self._end(request, "abort")

    def stop_early(self, request: int) -> None:
        """End an answer that said what it should stop at; it ends with "stop"."""
        self._end(request, "stop")

    def records(self) -> list[StepRecord]:
        """The last steps, the oldest first."""
        with self._work:
            return list(self._records)

    def health(self) -> Health:
        """See `Health`. Waits for nothing but the planning of a step."""
        with self._work:
            alive = self._thread.is_alive() and self._failure is None
            ready = alive and not (self._draining or self._closing)
            idle = time.monotonic() - self._moved
            expected = (self._flying.predicted_s or 0.0) if self._flying is not None else 0.0
            stalled = bool(self._answers) and idle > max(STALL_S, STALL_RATIO * expected)
            waiting, running = self.scheduler.waiting, self.scheduler.running
        if not alive:
            reason = self._failure or "the engine is not running"
        elif stalled:
            reason = f"no step for {idle:.0f} s while {waiting + running} requests wait"
        else:
            reason = "draining" if not ready else "ok"
        return Health(alive, ready, alive and not stalled, reason, idle, waiting, running)

    def snapshot(self) -> dict[str, Any]:
        """The state of the scheduler, for a log."""
        with self._work:
            pool, flying = self.scheduler.pool, self._flying
            return {
                "requests": self.scheduler.sequences(),
                "blocks": pool.size,
                "free": pool.free,
                "in_flight": None if flying is None else {"step": flying.number, "positions": flying.positions},
                "idle_s": time.monotonic() - self._moved,
                "prices": self.times.prices,
            }

    def largest_batches(self) -> list[tuple[int, int, str]]:
        """For contexts up to the longest: answers that can be written at once, and what does not let it be more."""
        contexts = [c for c in (512, 1024, 2048, 4096, 8192, 16384, 32768) if c < self.scheduler.room]
        with self._work:
            return [(c, *self.scheduler.largest_batch(c)) for c in (*contexts, self.scheduler.room)]

    def drain(self, timeout_s: float) -> bool:
        """Take no new requests and finish those that are here; whether all ended in time."""
        with self._work:
            self._draining = True
            return self._work.wait_for(lambda: not self._answers, timeout_s)

    def close(self) -> None:
        """Give up what is left and end the thread."""
        with self._work:
            self._closing = True
            for request in list(self._answers):
                self._end(request, "abort")
            self._work.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _end(self, request: int, reason: FinishReason) -> None:
        with self._work:
            if self.scheduler.end(request):
                self._gone.append((request, reason))
                self._work.notify_all()

    def _run(self) -> None:
        try:
            while (plan := self._next()) is not None:
                self._commit(plan, self.runner.run(plan))
        except Exception as error:  # whatever it is, nobody may wait for ever
            _LOGGER.exception("the engine failed")
            self._fail(f"the engine failed: {type(error).__name__}: {error}")

    def _next(self) -> StepPlan | None:
        """The next step, waited for; None when the engine closes."""
        while True:
            with self._work:
                gone, self._gone = self._gone, []
                plan = None if gone else self.scheduler.plan()
                if plan is not None:
                    self._flying = plan
                    self._note_beginnings(plan)
                    return plan
                if not gone:
                    if self._closing:
                        return None
                    self._work.wait()
            for request, reason in gone:
                self._finish(request, reason)

    def _note_beginnings(self, plan: StepPlan) -> None:
        now = time.monotonic()
        for work in plan.work:
            answer = self._answers.get(work.request)
            if answer is not None and answer.usage.started is None:
                answer.usage.started = now

    def _commit(self, plan: StepPlan, result: StepResult) -> None:
        with self._work:
            self._flying, now = None, time.monotonic()
            self._moved = now
            events = self.scheduler.commit(result)
            self._learn_gain(plan, result)
            record = self._record(plan, result)
            self._records.append(record)
        for work, outcome in zip(plan.work, result.outcomes, strict=True):
            if outcome.drafted and (answer := self._answers.get(work.request)) is not None:
                answer.usage.drafted += outcome.drafted
        for observer in self.observers:  # first: who reads the end of an answer finds its last step counted
            observer(record)
        for event in events:
            self._deliver(event, now)

    def _learn_gain(self, plan: StepPlan, result: StepResult) -> None:
        """Steps that computed prompts too say nothing of drafts."""
        if self.gain is None or any(not w.sample or len(w.tokens) > 1 for w in plan.work):
            return
        batch = len(plan.work)
        drafted = round(sum(o.drafted for o in result.outcomes) / batch)
        tokens = sum(len(o.tokens) for o in result.outcomes) / batch
        self.gain.learn(batch, drafted, tokens, result.seconds)

    def _deliver(self, event: Event, now: float) -> None:
        answer = self._answers.get(event.request)
        if answer is None:
            return
        usage = answer.usage
        usage.cached_tokens = event.cached
        usage.first_token = now if usage.first_token is None else usage.first_token
        usage.completion_tokens += len(event.tokens)
        usage.token_times += [now] * len(event.tokens)
        usage.accepted += sum(n.drafted for n in event.notes)
        usage.lenient += sum(n.lenient for n in event.notes)
        usage.shift += sum(n.shift for n in event.notes)
        if event.finish is None:
            answer.sink(Delivery(event.request, event.tokens, event.notes))
        else:
            self._finish(event.request, event.finish, event.tokens, event.notes)

    def _finish(
        self, request: int, reason: FinishReason, tokens: tuple[int, ...] = (), notes: tuple[TokenNote, ...] = ()
    ) -> None:
        with self._work:
            answer = self._answers.pop(request, None)
            self.runner.end(request)
            self._work.notify_all()
        if answer is not None:
            answer.usage.ended = time.monotonic()
            answer.sink(Delivery(request, tokens, notes, reason, answer.usage))

    def _fail(self, reason: str) -> None:
        with self._work:
            self._failure = reason
        for request in list(self._answers):
            self._finish(request, "abort")

    def _record(self, plan: StepPlan, result: StepResult) -> StepRecord:
        notes = [n for outcome in result.outcomes for n in outcome.notes]
        return StepRecord(
            number=plan.number,
            at=time.time(),
            seconds=result.seconds,
            predicted_s=plan.predicted_s,
            prompt_positions=sum(len(w.tokens) for w in plan.work if len(w.tokens) > 1 or not w.sample),
            batch=sum(w.sample and len(w.tokens) == 1 for w in plan.work),
            new_tokens=len(notes),
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            blocks_used=self.scheduler.pool.size - self.scheduler.pool.free,
            drafted=sum(o.drafted for o in result.outcomes),
            accepted=sum(n.drafted for n in notes),
            shift=sum(n.shift for n in notes),
            lenient=sum(n.lenient for n in notes),
            experts=result.experts,
        )


def _decoder(model: Transformer, blocks: int, settings: EngineSettings, context: int) -> Decoder:
    """The native decoder where it is wanted and can be had, else torch. Raises ModelError."""
    why = "as asked"
    if settings.kernels != "torch":
        why = uncovered(model) or (f"blocks of {settings.block_size}" if settings.block_size != BLOCK_SIZE else "")
        if not why:
            library = open_library()
            if not isinstance(library, str):
                return NativeDecoder(model, library, blocks, context, torch.get_num_threads())
            why = library
        if settings.kernels == "native":
            raise ModelError(f"no native kernels here ({why}); use --kernels torch, or install a C++ compiler")
    return TorchDecoder(model, blocks, settings.block_size, settings.batch_invariant, why)


def _draft(model: LocalModel, blocks: int, settings: EngineSettings) -> Draft | None:
    """What guesses. Raises ModelError for a draft that does not share the tokenizer."""
    if settings.draft is None:
        return None
    if settings.draft == "lookup":
        return Lookup()
    small = LocalModel(settings.draft)
    sizes = {m.model.config.vocab_size for m in (model, small)}
    if len(sizes) > 1 or not small.tokenizer.shares_tokens(model.tokenizer):
        raise ModelError(f"{settings.draft} has another tokenizer than {model.folder}; a draft must share it")
    return ModelDraft(_decoder(small.model, blocks, settings, model.model.config.context), small.folder.name)
