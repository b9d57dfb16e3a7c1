"""Seconds of one pass of one stage: decode steps, prompt chunks, and both in one pass. Vectorised over NumPy arrays.

A pass streams weights and cache from memory and multiplies; each of the three kinds of work (dense products, experts,
attention) takes a soft maximum of its memory and arithmetic time, and to these are added collectives and fixed times.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.routing import Numbers, busiest_load, touched
from moesaic.plan.serving.memory import Stage
from moesaic.plan.serving.profile import Engine, Profile
from moesaic.plan.serving.replica import Replica
from moesaic.plan.serving.work import Work, stage_work


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass by cause; arrays of one shape."""

    products: Numbers
    experts: Numbers
    attention: Numbers
    collectives: Numbers
    fixed: Numbers

    @property
    def seconds(self) -> Numbers:
        """The whole pass on the stage."""
        return self.products + self.experts + self.attention + self.collectives + self.fixed


class StageTimer:
    """Times of one stage of a replica on one engine; counts are made once, arrays are cheap after that."""

    def __init__(self, model: Replica, stage: Stage, constants: Profile, engine: str) -> None:
        self.model, self.stage, self.constants = model, stage, constants
        self.engine: Engine = constants.engine(engine)
        self.work: Work = stage_work(model, stage)
        device = model.device
        generation = constants.generation(device.generation)
        self._alpha = generation.alpha_s * self.engine.comm
        self._memory = device.memory_tb_s * 1e12 * generation.hbm
        self._gemm = generation.gemm

    def _rate(self, precision: str, width: float) -> float:
        c = self.constants
        factor = {"fp8": c.fp8, "int8": c.fp8, "nvfp4": c.fp4}.get(precision, 1.0)
        return self.model.device.peak(precision) * self._gemm * factor * width / (width + c.width)

    def _join(self, memory: Numbers, arithmetic: Numbers) -> Numbers:
        p = self.constants.sharp
        top: Numbers = np.maximum(np.maximum(memory, arithmetic), 1e-30)
        joined: Numbers = top * ((memory / top) ** p + (arithmetic / top) ** p) ** (1 / p)
        return joined

    def _link(self, ranks: int) -> float:
        d = self.model.device
        return (d.domain_gb_s if ranks <= d.domain else d.network_gb_s) * 1e9 * self.constants.link

    def _collectives(self, tokens: Numbers) -> Numbers:
        """Two all-reduces a layer over TP, and dispatch and combine of every sparse layer when attention has copies."""
        m, w = self.model, self.work
        total = np.zeros_like(tokens)
        if m.tp > 1:
            volume = tokens * m.shape.d_model * 2.0
            once = self._alpha * np.log2(m.tp) + 2 * (m.tp - 1) / m.tp * volume / self._link(m.tp)
            total = total + 2 * w.layers * once
        if m.dp > 1 and w.sparse:
            ranks = m.tp * m.dp
            sent = tokens * min(m.shape.top_k, m.ep) * m.shape.d_model * (1 - 1 / ranks)
            width = (
                1.0 if m.expert_bytes <= 1 else 2.0
            ) + 2.0  # dispatch in the format of the products, combine in 16 bit
            total = total + w.sparse * (2 * self._alpha * np.log2(ranks) + sent * width / self._link(ranks))
        return total

    def run(
        self,
        sequences: Numbers,
        context: Numbers,
        prompt: Numbers,
        before: Numbers,
        each: int = 1,
        prompts: Numbers | float = 1.0,
    ) -> Pass:
        """One pass in which `sequences` decode at `context` cached tokens beside `prompts` prompts, each with `prompt`
        tokens that follow `before` cached ones. `each` tokens of a sequence are computed together: 1, or drafts + 1
        when they are checked. All are counts per attention copy and broadcast together."""
        w, m, c = self.work, self.model, self.constants
        sequences, context, prompt, before, prompts = np.broadcast_arrays(
            *(np.asarray(x, float) for x in (sequences, context, prompt, before, prompts))
        )
        tokens = sequences * each + prompts * prompt
        logits = sequences * each + prompts * (prompt > 0)
        flops = w.other_flops * tokens
        products = self._join(
            np.full_like(tokens, w.other_bytes) / self._memory,
            flops / self._rate(w.other_compute, w.other_width)
            + logits * w.head_flops / self._rate("fp16", w.other_width),
        )
        experts = np.zeros_like(tokens)
        if w.sparse:
            group = tokens * m.dp
            read = touched(m.shape.n_experts, m.shape.top_k, group, m.ep) * w.expert_bytes * w.sparse
            load = busiest_load(m.shape.top_k, group, m.ep) * w.expert_flops * w.sparse
            rate = self._rate(w.expert_compute, w.expert_width) * c.expert_gemm
            experts = self._join(read / (self._memory * c.expert_hbm), load / rate)
        attention = self._decoding(sequences, context, each) + prompts * self._prompting(prompt, before)
        fixed = w.layers * c.layer_s + w.sparse * c.sparse_s + (w.layers * c.latent_s if m.shape.latent else 0.0)
        host = (c.step_s + sequences * m.dp * c.sequence_s) if self.stage.heads else np.zeros_like(tokens)
        return Pass(products, experts, attention, self._collectives(tokens), fixed * self.engine.overhead + host)

    def _decoding(self, sequences: Numbers, context: Numbers, each: int) -> Numbers:
        """Attention of decoding sequences over their cache."""
        w, c = self.work, self.constants
        peak = self.model.device.peak("fp16") * c.attention
        seen = np.minimum(context, w.window)
        again = 1 + self.engine.regroup * (self.model.group - 1)
        read = again * sequences * (context * w.kv_bytes + seen * w.kv_window_bytes)
        scores = sequences * each * (context * w.score_flops + seen * w.score_window_flops)
        return self._join(read / (self._memory * c.kv), scores / peak)

    def _prompting(self, prompt: Numbers, before: Numbers) -> Numbers:
        """Attention of one prompt's tokens over each other and over what is cached before them."""
        w, c = self.work, self.constants
        peak = self.model.device.peak("fp16") * c.attention
        middle = before + prompt / 2  # a causal prompt token sees half of its own prompt on average
        seen = np.minimum(middle, w.window)
        scores = prompt * (middle * w.prompt_score_flops + seen * w.prompt_score_window_flops)
        reread = before * (w.kv_bytes + w.kv_window_bytes) / (self._memory * c.kv)
        return self._join(reread, scores / peak)

    def bytes_read(self, sequences: Numbers, context: Numbers) -> Numbers:
        """Weights and cache that one decode step of the stage reads on one device, without repeated reads."""
        w, m = self.work, self.model
        cache = sequences * (context * w.kv_bytes + np.minimum(context, w.window) * w.kv_window_bytes)
        experts = touched(m.shape.n_experts, m.shape.top_k, sequences * m.dp, m.ep) * w.expert_bytes * w.sparse
        return w.other_bytes + experts + cache
