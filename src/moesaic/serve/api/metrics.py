"""Prometheus metrics, in a registry of their own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from moesaic.serve.api.totals import Totals
from moesaic.serve.engine import Engine
from moesaic.serve.record import StepRecord, Usage

TOKEN_BUCKETS = (0.001, 0.002, 0.004, 0.007, 0.01, 0.015, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATIO_BUCKETS = (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4)
FAMILIES = {
    "moesaic_generated_tokens": ("Tokens of answers", "new_tokens"),
    "moesaic_prompt_positions": ("Positions of prompts that were computed", "prompt_positions"),
    "moesaic_prompt_tokens": ("Tokens of prompts of answers that have ended", "prompt_tokens"),
    "moesaic_cached_prompt_tokens": ("Of these, tokens that the prefix cache had", "cached_tokens"),
    "moesaic_draft_tokens": ("Guesses that were checked", "drafted"),
    "moesaic_draft_accepted_tokens": ("Guesses that were accepted", "accepted"),
    "moesaic_lenient_tokens": ("Accepted guesses that the exact rule would have rejected", "lenient"),
    "moesaic_shift": ("Total-variation shift, summed over tokens", "shift"),
    "moesaic_steps": ("Steps of the engine", "steps"),
    "moesaic_busy_seconds": ("Time in steps", "busy_s"),
}
"""Counters: what they count, and the field of `Totals`."""


class Metrics:
    """All that `/metrics` shows."""

    def __init__(self, engine: Engine, totals: Totals) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"moesaic_{name}", what, buckets=buckets, registry=self.registry)

        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token", REQUEST_BUCKETS)
        self._queue = histogram("queue_seconds", "From arrival to the first step", REQUEST_BUCKETS)
        self._whole = histogram("request_seconds", "From arrival to the last token", REQUEST_BUCKETS)
        self._between = histogram("inter_token_seconds", "Between two tokens of an answer", TOKEN_BUCKETS)
        self._actual = histogram("step_seconds", "Time of a step", TOKEN_BUCKETS)
        self._predicted = histogram("step_predicted_seconds", "Time that was predicted of a step", TOKEN_BUCKETS)
        self._ratio = histogram(
            "step_actual_over_predicted",
            "Time of a step over its prediction",
            (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4),
        )
        self._batch = histogram("step_batch", "Answers written in a step", (0, 1, 2, 4, 8, 16, 32, 64, 128, 256))
        self._refused = Counter(
            "moesaic_refused_requests", "Requests that got an error, by its status", ["status"], registry=self.registry
        )
        self.registry.register(_State(engine, totals))

    def step(self, record: StepRecord) -> None:
        """Add a step; called on the engine's thread."""
        self._actual.observe(record.seconds)
        self._batch.observe(record.batch)
        if record.predicted_s:
            self._predicted.observe(record.predicted_s)
            self._ratio.observe(record.seconds / record.predicted_s)

    def answer(self, usage: Usage) -> None:
        """Add an answer that has ended."""
        if usage.started is not None:
            self._queue.observe(usage.started - usage.arrived)
        if usage.first_token is not None:
            self._first.observe(usage.first_token - usage.arrived)
        if usage.ended is not None:
            self._whole.observe(usage.ended - usage.arrived)
        for before, after in zip(usage.token_times, usage.token_times[1:], strict=False):
            self._between.observe(after - before)

    def refused(self, status: int) -> None:
        """Add a request that got an error."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """In the exposition format."""
        return generate_latest(self.registry)


class _State(Collector):
    """What is read when somebody asks: totals, and the state of the engine."""

    def __init__(self, engine: Engine, totals: Totals) -> None:
        self._engine, self._totals = engine, totals
        self._blocks = engine.description["blocks"]

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry then does not ask the engine when this is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        totals, engine = self._totals, self._engine
        for name, (what, attribute) in FAMILIES.items():
            yield CounterMetricFamily(name, what, value=getattr(totals, attribute))
        finished = CounterMetricFamily("moesaic_requests", "Answers that have ended, by how", labels=["finish"])
        for finish, count in sorted(totals.finishes.items()):
            finished.add_metric([finish], count)
        yield finished
        experts = CounterMetricFamily(
            "moesaic_expert_positions", "Positions that each expert computed", labels=["layer", "expert"]
        )
        for layer, row in enumerate(totals.experts_LE.tolist()):
            for expert, count in enumerate(row):
                experts.add_metric([str(layer), str(expert)], count)
        yield experts
        yield from self._cost()
        yield from self._now(engine)

    def _cost(self) -> Iterator[Metric]:
        totals = self._totals
        if totals.price is None:
            return
        spent = CounterMetricFamily("moesaic_cost", "At the configured price, by what it bought", labels=["kind"])
        parts = {"prompt": totals.prompt_s, "generated": totals.answer_s - totals.waste_s, "waste": totals.waste_s}
        for kind, seconds in parts.items():
            spent.add_metric([kind], totals.price.of(seconds))
        yield spent
        per_1k = GaugeMetricFamily("moesaic_cost_per_1k_tokens", "At the configured price", labels=["kind"])
        for kind, cost in (totals.per_1k() or {}).items():
            per_1k.add_metric([kind], cost)
        yield per_1k

    def _now(self, engine: Engine) -> Iterator[Metric]:
        health, records = engine.health(), engine.records()
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "moesaic_running_requests": ("Requests that hold memory", lambda: health.running),
            "moesaic_waiting_requests": ("Requests that wait for memory", lambda: health.waiting),
            "moesaic_kv_blocks": ("Blocks of keys and values", lambda: self._blocks),
            "moesaic_kv_blocks_used": ("Of these, held", lambda: records[-1].blocks_used if health.running else 0),
            "moesaic_progressing": (
                "0 when work waits and no step ends",
                lambda: health.alive and health.progressing,
            ),
            "moesaic_latency_cap_seconds": ("--max-token-latency", lambda: engine.settings.max_token_latency_s or 0),
        }
        for name, (what, value) in gauges.items():
            yield GaugeMetricFamily(name, what, value=value())
