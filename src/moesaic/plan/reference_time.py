"""Seconds of a training step of one layout, term by term: `step.py` is tied to it. Read `reference.py` first.

Sources beside those: [C] collectives as rings of n ranks, n - 1 steps of 1/n of the data each way (Patarasuk and Yuan
2009); [L] Liu et al. 2023, arXiv:2310.01889.
"""

from moesaic.plan.reference import Matrix, Reference


class ReferenceTime(Reference):
    """One layout in seconds."""

    @property
    def bandwidth(self) -> float:
        """Bytes/s of memory that a stack reaches."""
        return self.device.memory_tb_s * 1e12 * self.stack.memory

    @property
    def peak(self) -> float:
        """FLOP/s of large products."""
        peak = self.device.peak(self.job.precision) * self.stack.rate(self.stack.gemm, self.device.generation)
        return peak if self.job.precision in ("bf16", "fp16") else peak * self.stack.low_precision

    @property
    def domain_rate(self) -> float:
        """Bytes/s that a device sends over the fast link."""
        return self.device.domain_gb_s * 1e9 * self.stack.domain

    @property
    def network_rate(self) -> float:
        """Bytes/s that a device sends over its network card."""
        return self.device.network_gb_s * 1e9 * self.stack.network

    @property
    def latency(self) -> float:
        """Seconds before a collective's first byte."""
        return self.stack.latency_us * 1e-6

    # ---- Operators ----------------------------------------------------------------------------------------------

    def product(self, m: Matrix) -> float:
        """A product's arithmetic, 2 FLOP for each weight and row, and its traffic: weights, inputs, outputs."""
        flop = 2 * m.rows * m.padding * m.inputs * m.outputs
        return flop / self.peak + 2 * (m.weights + m.rows * (m.inputs + m.outputs)) / self.bandwidth

    def keys_seen(self) -> float:
        """Keys that a query meets, mean over positions and layers."""
        s, n = self.shape, self.job.seq_len
        if not self.stack.flash:
            return n  # the whole square is computed and masked
        # Position i sees itself and those before it. Its own key counts half, as in the usual s / 2.
        full = sum(i + 0.5 for i in range(n)) / n
        near = sum(min(i + 1, s.window) - 0.5 for i in range(n)) / n if s.window else full
        return (s.windowed_layers * near + (s.n_layers - s.windowed_layers) * full) / s.n_layers

    def core(self) -> tuple[float, float]:
        """Attention between its projections, forward and backward."""
        key_width, value_width = self.q * self.tp / self.shape.n_heads, self.v_head()
        flop = 2 * self.tokens * self.keys_seen() * (key_width + value_width) * self.shape.n_heads / self.tp
        peak = self.device.peak("fp16" if self.job.precision == "fp16" else "bf16")
        generation = self.device.generation
        if self.stack.flash:  # backward: 5 products of that size for 2, as scores are computed again [F]
            forward = flop / (peak * self.stack.rate(self.stack.attention, generation))
            return forward, 5 / 2 * forward
        pairs = self.tokens * self.job.seq_len * self.shape.n_heads / self.tp
        forward = flop / (peak * self.stack.rate(self.stack.gemm, generation))
        forward += self.stack.scores * 2 * pairs / self.bandwidth
        return forward, (3 if self.recompute == "selective" else 2) * forward

    def v_head(self) -> int:
        """Width of one head's values."""
        return self.shape.latent.value_dim if self.shape.latent else self.shape.head_dim

    def element_wise(self, sparse: bool) -> float:
        """Traffic of everything between products."""
        s, d = self.shape, self.shape.d_model
        values = s.norms * 2 * self.normed * d  # read, write
        values += 2 * 3 * self.normed * d  # two residual sums: two reads, a write
        values += 2 * self.tokens * (self.q + self.k + self.v + self.o)  # rotation and layout: read, write
        if a := s.latent:
            values += 2 * self.normed * (a.kv_rank + (a.q_rank or 0))
        if s.qk_norm:
            values += 2 * self.tokens * (self.q + self.k)
        if not sparse:  # gate and up read, product written; or up read, activation written
            values += s.ffn_matrices * self.tokens * s.d_ff / self.tp
        else:
            values += s.ffn_matrices * self.routed * s.d_expert / self.etp
            values += 4 * 2 * self.routed * d  # to the sending order, to the experts', and back twice: read, write
            values += s.ffn_matrices * self.tokens * s.d_shared / self.tp if s.n_shared else 0
        return self.stack.elementwise * 2 * values / self.bandwidth

    # ---- Collectives --------------------------------------------------------------------------------------------

    def all_reduce(self, bytes_: float, ranks: int) -> float:
        """Ring over neighbouring ranks [C]."""
        rate = self.domain_rate if ranks <= self.device.domain else self.network_rate
        seconds = self.latency if ranks > 1 else 0.0
        for _ in range(2 * (ranks - 1)):  # reduce-scatter, then all-gather
            seconds += bytes_ / ranks / rate
        return seconds

    def all_to_all(self, bytes_: float) -> float:
        """Tokens to the ranks of their experts, which lie `etp` apart; each rank is as likely as any other."""
        if self.ep == 1:
            return 0.0
        near = min(self.ep, max(1, self.device.domain / self.etp))  # ranks of the group in one domain, with itself
        to_each = bytes_ / self.ep
        return (near - 1) * to_each / self.domain_rate + (self.ep - near) * to_each / self.network_rate + self.latency

    def ring(self) -> float:
        """One round of keys and values past all context-parallel ranks, which lie `tp` apart [L]."""
        rate = self.domain_rate if self.tp * self.cp <= self.device.domain else self.network_rate
        seconds = 0.0
        for _ in range(self.cp - 1):
            seconds += 2 * self.tokens * (self.k + self.v) / rate + self.latency
        return seconds

    # ---- A layer and a stage ------------------------------------------------------------------------------------

    def layer(self, sparse: bool) -> dict[str, tuple[float, float]]:
        """Forward and backward seconds on one micro-batch."""
        s, stack = self.shape, self.stack
        gemm = sum(self.product(m) for m in self.matrices(sparse) + (self.experts() if sparse else []))
        # Further weights of attention: read, and met by each token; their widths are not known.
        gemm += 2 * self.tokens * s.attention_extra / self.peak + 2 * s.attention_extra / self.bandwidth
        core, core_backward = self.core()
        element = self.element_wise(sparse)
        whole = 2 * self.tokens * s.d_model  # bytes of a micro-batch's activations
        tensor = self.all_reduce(whole, self.tp)  # after attention [K, fig. 5]
        if not sparse and not s.parallel_block:
            tensor += self.all_reduce(whole, self.tp)  # after the block
        if sparse:
            tensor += self.all_reduce(2 * self.routed * s.d_model, self.etp)  # split experts
            tensor += self.all_reduce(whole, self.tp) if s.n_shared else 0
        tensor *= stack.exposed_tp
        expert = 0.0
        if sparse:  # out to the experts and back
            expert = 2 * self.all_to_all(whole / self.tp * s.top_k * self.job.imbalance) * stack.exposed_ep
        ring, ring_backward = self.ring(), 2 * self.ring()  # backward: keys and values, and their gradients
        context = max(ring - core, 0.0)  # hidden behind the scores of the block before
        context_backward = max(ring_backward - core_backward, 0.0)
        busy = gemm + core + element + tensor + expert + context
        # The host launches while the device works; what it needs longer the device waits, and for counts of tokens.
        host = (stack.sparse_us if sparse else stack.layer_us) * 1e-6
        stall = max(host - busy, 0.0) + (stack.sync_us * 1e-6 if sparse else 0.0)
        return {
            "gemm": (gemm, 2 * gemm),  # backward: gradients of inputs and of weights
            "attention": (core, core_backward),
            "elementwise": (element, 2 * element),
            "tensor_parallel": (tensor, tensor),
            "expert_parallel": (expert, expert),
            "context_parallel": (context, context_backward),
            "stalls": (stall, stall),
        }

    def head(self) -> float:
        """Forward of the output head and its loss: a product, and logits in fp32 written and read."""
        logits = self.tokens * self.shape.vocab_size / self.tp
        product = Matrix(self.tokens, self.shape.d_model, self.shape.vocab_size / self.tp)
        return self.product(product) + 2 * 4 * logits / self.bandwidth

    def stage(self, stage: int) -> dict[str, float]:
        """Seconds of one micro-batch on a stage, forward and backward, by the parts of `StepTime`."""
        found = dict.fromkeys(("gemm", "attention", "elementwise", "recompute", "tensor_parallel"), 0.0)
        found |= dict.fromkeys(("expert_parallel", "context_parallel", "stalls"), 0.0)
        kinds = {sparse: self.layer(sparse) for sparse in (False, True) if not sparse or self.shape.n_experts > 1}
        for share in self.layers(stage):
            for sparse, parts in kinds.items():
                part = share if sparse else 1 - share
                for name, (forward, backward) in parts.items():
                    found[name] += part * (forward + backward)
                    found["recompute"] += part * forward if self.recompute == "full" else 0.0
        if stage == self.pp - 1:
            found["gemm"] += 3 * self.head()
        return found

    # ---- The step -----------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """Seconds of a step by the parts of `StepTime`."""
        stages = [self.stage(stage) for stage in range(self.pp)]
        each = [sum(parts.values()) for parts in stages]
        slow = each.index(max(each))
        found = {name: self.micro_batches * seconds for name, seconds in stages[slow].items()}
        # The first micro-batch comes through the stages before, the last leaves through them, and those behind answer
        # first: one pass of all others [N, sec. 2.2], of one chunk each. Split backward passes fill two thirds of it
        # (Qi et al. 2024, table 1, with F = B = W).
        fill = 1 / self.chunks / (3 if self.job.zero_bubble else 1)
        found["bubble"] = fill * sum(seconds for stage, seconds in enumerate(each) if stage != slow)
        found["pipeline"] = self.sending()
        found["data_parallel"] = self.exchange(slow, each[slow] - stages[slow]["recompute"])
        plain, routed = self.parameters(slow)
        held = plain / self.replicas + routed / self.expert_replicas if self.zero >= 1 else plain + routed
        moved = 2 * self.job.optimizer_bytes + self.job.gradient_bytes + 2  # states read and written, gradient, weight
        found["optimizer"] = held * moved / self.bandwidth + self.stack.step_ms * 1e-3
        found["pace"] = (self.stack.pace - 1) * sum(found.values())
        return found

    def sending(self) -> float:
        """Activations to the next stage and gradients back, split over tensor ranks [N, sec. 4.1]."""
        if self.pp == 1:
            return 0.0
        apart = self.tp * self.cp * self.dp  # ranks between stages
        rate = self.domain_rate if apart < self.device.domain else self.network_rate
        once = 2 * self.tokens * self.shape.d_model / self.tp / rate + self.latency
        steady = self.micro_batches * self.chunks * self.stack.exposed_pp
        return 2 * once * (steady + self.pp - 1)

    def exchange(self, stage: int, busy: float) -> float:
        """Exposed seconds in which replicas exchange gradients and weights [R, sec. 7]."""
        plain, routed = self.parameters(stage)

        def ring(bytes_each: float) -> float:
            """n - 1 steps of 1/n of the data: reduce-scatter or all-gather."""
            seconds = 0.0
            for held, n, apart in (
                (plain, self.replicas, self.tp),
                (routed, self.expert_replicas, self.ep * self.etp),
            ):
                rate = self.domain_rate
                if n * apart > self.device.domain:
                    # A ring crosses a node's border once, for all its members there, and takes all their cards.
                    cards = max(1, min(n, self.device.domain // apart)) if self.stack.rails else 1
                    rate = min(cards * self.network_rate, rate)
                seconds += (n - 1) * bytes_each * held / n / rate
            return seconds

        gradients, weights = ring(self.job.gradient_bytes), ring(2)
        if self.zero < 3:  # all-reduce, or reduce-scatter and all-gather; one micro-batch at most hides it
            whole = gradients + (gradients if self.zero == 0 else weights)
            return max(whole * self.stack.exposed_dp, whole - busy)
        seconds = 0.0
        for _ in range(self.micro_batches):  # weights for forward and backward, gradients; hidden while work lasts
            all_of_it = 2 * weights + gradients
            seconds += max(all_of_it - busy, 0.0) + self.stack.exposed_zero3 * min(all_of_it, busy)
        return seconds
