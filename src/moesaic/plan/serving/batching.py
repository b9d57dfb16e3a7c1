"""Continuous batching as a fixed point: decode steps, prompts that interrupt them, and the clients that wait.

By Little's law the sequences in flight are the rate of requests times their time in the system. Prompts take part of
the machine's time, so steps stretch, so requests stay longer, so more are in flight: solved by iteration, vectorised.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.routing import Numbers
from moesaic.plan.serving.memory import stages
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.replica import Replica
from moesaic.plan.serving.roofline import StageTimer

ITERATIONS, DAMPING, TOLERANCE = 400, 0.2, 1e-6


@dataclass(frozen=True)
class Load:
    """A steady state. Arrays of one shape; rates are of the whole replica."""

    concurrency: Numbers  # requests in the system
    decoding: Numbers  # of them decoding
    step_s: Numbers  # one decode step alone, through all stages
    token_s: Numbers  # between two tokens of a request, prompts of others included
    first_s: Numbers  # time to first token
    requests_per_s: Numbers

    def output_tokens_per_s(self, output: float) -> Numbers:
        """Output tokens of the replica in a second."""
        return self.requests_per_s * output


class ReplicaTimer:
    """Times of a whole replica: its slowest stage sets the pace, all stages together the latency.

    With `pp` stages the decoding sequences run as `pp` micro-batches, one on each stage: a token takes `pp` turns of
    the slowest stage (turns are in lock-step), and in that time every micro-batch has made one token.
    """

    def __init__(self, model: Replica, constants: Profile, engine: str, first: int | None = None) -> None:
        self.model, self.constants = model, constants
        self.timers = [StageTimer(model, s, constants, engine) for s in stages(model, first)]
        self.engine = constants.engine(engine)
        self.burst = constants.burst
        d = model.device
        # Neighbouring stages lie in one fast domain when the whole replica does.
        speed = d.domain_gb_s if model.devices <= d.domain else d.network_gb_s
        self._hop = speed * 1e9 * constants.link
        self._alpha = constants.generation(d.generation).alpha_s
        # Stages of one kind take the same time: price each kind once.
        self._kinds = {(t.stage.layers, t.stage.sparse, t.stage.embeds, t.stage.heads): t for t in self.timers}

    def _hop_s(self, tokens: Numbers) -> Numbers:
        if self.model.pp == 1:
            return np.zeros_like(tokens)
        return self._alpha + tokens * self.model.shape.d_model * 2.0 / self.model.tp / self._hop

    def turn(
        self,
        sequences: Numbers,
        context: Numbers,
        prompt: Numbers,
        before: Numbers,
        each: int = 1,
        prompts: Numbers | float = 1.0,
    ) -> Numbers:
        """Seconds of one turn: the slowest stage on one micro-batch, and the hand-over. Arguments as of `run`."""
        times = [t.run(sequences, context, prompt, before, each, prompts).seconds for t in self._kinds.values()]
        slowest: Numbers = np.max(times, axis=0)
        return slowest + self._hop_s(sequences * each + prompts * prompt)

    def step(self, decoding: Numbers, context: Numbers, each: int = 1) -> Numbers:
        """Seconds of one decode step of all `decoding` sequences of the replica: `pp` turns. `each` as in `run`."""
        m, zero = self.model, np.zeros(1)
        micro = np.maximum(decoding / (m.pp * m.dp), 1.0)
        return m.pp * self.turn(micro, context, zero, zero, each)

    def prompt(
        self, tokens: Numbers, decoding: Numbers, context: Numbers, chunk: float, waiting: Numbers
    ) -> tuple[Numbers, Numbers]:
        """Seconds that one prompt takes from the machine (its turns), and from its start to its first token.

        A long prompt is cut into equal chunks of at most `chunk` tokens; short ones share a pass of at most `chunk`
        tokens when several are `waiting` on the replica. In a mixed engine decoding sequences ride along and only the
        added time counts.
        """
        m, zero = self.model, np.zeros(1)
        chunks = np.ceil(tokens / chunk)
        size = tokens / chunks
        before = (tokens - size) / 2  # on average over the chunks
        joined = np.clip(waiting / m.dp, 1.0, np.maximum(chunk / tokens, 1.0))
        if self.engine.mixed:
            micro = decoding / (m.pp * m.dp)
            whole = self.turn(micro, context, size, before, prompts=joined)
            added = np.maximum(whole - self.turn(np.maximum(micro, 1e-9), context, zero, zero), 0)
        else:
            whole = added = self.turn(zero, zero, size, before, prompts=joined)
        return chunks * added / joined / m.dp, (chunks + m.pp - 1) * whole

    def closed(
        self, concurrency: Numbers, prompt: Numbers, output: Numbers, chunk: float = 8192, together: bool = False
    ) -> Load:
        """The steady state of `concurrency` clients that each ask again as soon as they are answered.

        A request waits for the prompts before it, as many as the others have on average before their first token
        (Schweitzer's approximation of mean value analysis), the one at work half done; or, when all clients start
        `together` as benchmarks do, for a fitted share of half the others' prompts.
        """
        concurrency, prompt, output = np.broadcast_arrays(
            *(np.asarray(x, float) for x in (concurrency, prompt, output))
        )
        context = prompt + output / 2
        decoding = concurrency.astype(float)
        step = token = first = np.zeros_like(decoding)
        for _ in range(ITERATIONS):
            step = self.step(decoding, context)
            # While a request makes one token, others finish and start: decoding / output prompts for each step.
            starting = decoding / output
            taken, alone = self.prompt(prompt, decoding, context, chunk, starting / self.model.pp)
            others = (concurrency - 1) / concurrency
            token = step + others * starting * taken
            ahead = np.maximum(others * (concurrency - decoding) - starting * taken / token / 2, 0)
            if together:
                ahead = self.burst * np.maximum(concurrency - 1, 0) / 2
            wait = ahead * taken
            first = self.engine.request_s + alone + wait + step / self.model.pp / 2
            stay = first + (output - 1) * token
            new = concurrency * (output - 1) * token / stay
            change = np.max(np.abs(new - decoding) / concurrency)
            decoding = DAMPING * decoding + (1 - DAMPING) * new
            if change < TOLERANCE:
                break
        stay = first + (output - 1) * token
        return Load(concurrency, decoding, step, token, first, concurrency / stay)

    def open(self, requests_per_s: float, prompt: float, output: float, limit: int, chunk: float = 8192) -> Load:
        """The steady state at a rate of arrivals, by bisection on the concurrency that sustains it.

        Raises PlanError when `limit` concurrent requests do not sustain the rate.
        """

        def state(n: float) -> Load:
            return self.closed(np.array([n]), np.array([prompt]), np.array([output]), chunk)

        most = state(float(limit))
        if most.requests_per_s[0] < requests_per_s:
            raise PlanError(
                f"overloaded: {requests_per_s:g} requests/s asked, {most.requests_per_s[0]:.3g} sustained by the "
                f"{limit} sequences that fit; add clusters or shorten the prompts"
            )
        low, high = 0.0, float(limit)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if state(middle).requests_per_s[0] < requests_per_s else (low, middle)
        return state(high)

    def static(self, batch: Numbers, prompt: Numbers, output: Numbers, chunk: float = 16384) -> tuple[Numbers, Numbers]:
        """Seconds of the prefill and of all decode steps of one fixed batch that starts and ends together."""
        batch, prompt, output = np.broadcast_arrays(*(np.asarray(x, float) for x in (batch, prompt, output)))
        m = self.model
        each = batch / m.dp
        # The batch prefills in as few passes as the chunk allows; its prompts do not see each other.
        per_pass = np.maximum(np.floor(chunk / prompt), 1)
        passes = np.ceil(each / per_pass)
        size = each / passes
        zero = np.zeros(1)
        prefill = (passes + m.pp - 1) * self.turn(zero, zero, prompt, zero, prompts=size)
        return prefill, (output - 1) * self.step(batch, prompt + output / 2)
