"""The planner's training model for one layout, term by term: the textbook that `memory.py` and `step.py` are tied to.

Plain floats and loops over stages, layers, matrices, operators and micro-batches; nothing here is fast. Read it from
top to bottom: what a layer holds, computes, keeps and sends, then a stage, then the step.
Sources: [K] Korthikanti et al. 2022, arXiv:2205.05198; [N] Narayanan et al. 2021, arXiv:2104.04473; [R] Rajbhandari
et al. 2019 (ZeRO), arXiv:1910.02054; [D] DeepSeek-V2, arXiv:2405.04434; [F] Dao et al. 2022, arXiv:2205.14135.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moesaic.plan.device import Device
from moesaic.plan.job import Job
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack


@dataclass(frozen=True)
class Matrix:
    """A weight matrix on one rank and the rows that it multiplies in one micro-batch, forward."""

    rows: float
    inputs: float
    outputs: float
    copies: float = 1.0  # matrices of this shape on the rank (experts); rows are those of all
    padding: float = 1.0  # rows that are computed for each that is needed

    @property
    def weights(self) -> float:
        return self.inputs * self.outputs * self.copies


class Reference:
    """One layout. `row` is a row of `Layouts`. Bytes and seconds are those of one device."""

    def __init__(self, shape: Shape, job: Job, row: Mapping[str, int | str], device: Device, stack: Stack) -> None:
        self.shape, self.job, self.device, self.stack = shape, job, device, stack
        self.tp, self.pp, self.cp, self.dp = (int(row[n]) for n in ("tp", "pp", "cp", "dp"))
        self.ep, self.etp, self.zero = (int(row[n]) for n in ("ep", "etp", "zero"))
        self.micro_batch, self.chunks = int(row["micro_batch"]), int(row["chunks"])
        self.recompute = str(row["recompute"])
        self.micro_batches = job.batch // self.dp // self.micro_batch
        if self.chunks > 1:  # interleaving takes whole rounds [N, sec. 2.2.2]
            self.micro_batches -= self.micro_batches % self.pp
        self.tokens = self.micro_batch * job.seq_len / self.cp  # of a micro-batch, on one rank
        self.normed = self.tokens / self.tp if stack.sequence_parallel else self.tokens  # of them, that it norms [K]
        # Copies of tokens that the experts of the busiest rank receive. Whole experts (etp = 1) take tokens of each
        # tensor rank once; split ones see those of all their tensor ranks.
        self.routed = self.tokens * shape.top_k * job.imbalance / (self.tp if self.etp == 1 else 1)
        self.local_experts = shape.n_experts / self.ep
        self.replicas, self.expert_replicas = self.dp * self.cp, self.dp * self.cp * self.tp // (self.ep * self.etp)
        if a := shape.latent:
            self.q, self.v = (
                shape.n_heads // self.tp * (a.nope_dim + a.rope_dim),
                shape.n_heads // self.tp * a.value_dim,
            )
            self.k, self.o = self.q, self.v
        else:  # a rank has whole heads: its share of queries, and at least one head of keys and values
            self.q = self.o = shape.n_heads // self.tp * shape.head_dim
            self.k = self.v = max(1, shape.n_kv_heads // self.tp) * shape.head_dim

    # ---- What a layer holds -------------------------------------------------------------------------------------

    def attention(self) -> dict[str, Matrix]:
        s, t, d = self.shape, self.tokens, self.shape.d_model
        if a := s.latent:  # [D, sec. 2.1]: projections down to latents are whole on each rank, and their tokens split
            heads = s.n_heads // self.tp
            found = {"down to keys and values": Matrix(self.normed, d, a.kv_rank + a.rope_dim)}
            if a.q_rank:
                found["down to queries"] = Matrix(self.normed, d, a.q_rank)
            found["queries"] = Matrix(t, a.q_rank or d, self.q)
            found["keys and values"] = Matrix(t, a.kv_rank, heads * (a.nope_dim + a.value_dim))
        else:
            found = {"queries, keys and values": Matrix(t, d, self.q + self.k + self.v)}
        return found | {"attention output": Matrix(t, self.o, d)}

    def block(self, width: int, rows: float, split: int, copies: float = 1.0, padding: float = 1.0) -> list[Matrix]:
        """Feed-forward: gate and up (or up alone) in one product, then down."""
        inner = width / split
        up = Matrix(rows, self.shape.d_model, (self.shape.ffn_matrices - 1) * inner, copies, padding)
        return [up, Matrix(rows, inner, self.shape.d_model, copies, padding)]

    def experts(self) -> list[Matrix]:
        # The last tile of 128 rows of each expert is half empty on average.
        padding = 1 + 128 / 2 / max(self.routed / self.local_experts, 1)
        return self.block(self.shape.d_expert, self.routed, self.etp, self.local_experts, padding)

    def matrices(self, sparse: bool) -> list[Matrix]:
        """All products of a layer but those with experts."""
        s, found = self.shape, list(self.attention().values())
        if not sparse:
            return found + self.block(s.d_ff, self.tokens, self.tp)
        found.append(Matrix(self.normed, s.d_model, s.n_experts))  # router
        return found + (self.block(s.d_shared, self.tokens, self.tp) if s.n_shared else [])

    def block_biases(self, width: int, split: int) -> float:
        s = self.shape
        return (s.ffn_matrices - 1) * width / split + s.d_model if s.biases or s.ffn_biases else 0.0

    def layer_weights(self, sparse: bool) -> tuple[float, float]:
        """Parameters of a layer on one rank: those that all tensor ranks' replicas share, and its experts'."""
        s, d = self.shape, self.shape.d_model
        plain = sum(m.weights for m in self.matrices(sparse)) + s.norms * s.norm_values * d + s.attention_extra
        if a := s.latent:
            plain += a.kv_rank + (a.q_rank or 0)  # norms of latents
        else:
            plain += s.qk_norm + (self.q + self.k + self.v + d if s.biases else 0)
        if not sparse:
            return plain + self.block_biases(s.d_ff, self.tp), 0.0
        plain += s.router_extra + (self.block_biases(s.d_shared, self.tp) if s.n_shared else 0)
        routed = sum(m.weights for m in self.experts()) + self.local_experts * self.block_biases(s.d_expert, self.etp)
        return plain, routed

    # ---- What a layer keeps for its backward pass ---------------------------------------------------------------

    def kept(self, sparse: bool) -> dict[str, float]:
        """Bytes of one micro-batch by operand; 2 bytes a value unless said otherwise [K, sec. 4.1]."""
        s, d = self.shape, self.shape.d_model
        # Selective recomputation drops scores [K, sec. 5]; with flash attention, which keeps none, it drops what is
        # cheap to compute again: outputs of norms and of activation functions.
        cheap = self.recompute == "selective" and self.stack.flash
        scores = not self.stack.flash and self.recompute != "selective"
        found: dict[str, float] = {}
        for n in range(s.norms):
            found[f"norm {n}: input"] = 2 * self.normed * d
            if n < 2 and not cheap:  # a norm after a block hands its output to the residual sum, which keeps nothing
                found[f"norm {n}: output, input of projections"] = 2 * self.normed * d
        if a := s.latent:
            found["latents: input of their norms, rotary key"] = 2 * self.normed * (a.kv_rank + a.rope_dim)
            found["latent of queries: input of its norm"] = 2 * self.normed * (a.q_rank or 0)
            if not cheap:
                found["latents: output of norms"] = 2 * self.normed * (a.kv_rank + (a.q_rank or 0))
        if s.qk_norm and not cheap:
            found["queries and keys before their norm"] = 2 * self.tokens * (self.q + self.k)
        for name, width in {"queries": self.q, "keys": self.k, "values": self.v, "output of heads": self.o}.items():
            found[name] = 2 * self.tokens * width
        pairs = self.tokens * self.job.seq_len * s.n_heads / self.tp  # query, key, head
        if self.stack.flash:
            found["logarithm of softmax sums, fp32 [F]"] = 4 * self.tokens * s.n_heads / self.tp
        if scores:
            found["softmax"] = 2 * pairs
        if scores and self.stack.dropout:
            found["mask of softmax, 1 byte"] = pairs
            found["softmax after dropout"] = 2 * pairs
        if self.stack.dropout:
            found["masks after attention and block, 1 byte"] = 2 * self.normed * d
        inner = s.ffn_matrices - cheap  # gate and up, their product; or up, its activation
        if not sparse:
            found["inside the block"] = 2 * self.tokens * inner * s.d_ff / self.tp
            return found
        found["router's probabilities, fp32"] = 4 * self.normed * s.n_experts
        found["tokens at their experts"] = 2 * self.routed * d
        found["inside experts"] = 2 * self.routed * inner * s.d_expert / self.etp
        found["output of experts, for the gates"] = 2 * self.routed * d
        if s.n_shared:
            found["inside shared experts"] = 2 * self.tokens * inner * s.d_shared / self.tp
        return found

    # ---- Stages and their memory --------------------------------------------------------------------------------

    def layers(self, stage: int) -> list[float]:
        """How sparse each layer of a stage is: 0 or 1, or the model's mean where dense layers are scattered."""
        s, few, more = self.shape, self.shape.n_layers // self.pp, self.shape.n_layers % self.pp
        counts = [few + (self.pp - 1 - more <= i < self.pp - 1) for i in range(self.pp)]
        start = sum(counts[:stage])
        exact = [float(s.is_sparse(n)) for n in range(s.n_layers)]
        share = [sum(exact) / s.n_layers] * s.n_layers if s.dense_at else exact
        return share[start : start + counts[stage]]

    def outside(self, stage: int) -> float:
        """Parameters of a stage beside its layers."""
        s, matrix = self.shape, self.shape.vocab_size / self.tp * self.shape.d_model
        found = 0.0
        if stage == 0:
            found += matrix + s.positions * s.d_model
        if stage == self.pp - 1:
            found += s.norm_values * s.d_model + s.extra
            if not s.tied or self.pp > 1:  # a tied head is a second copy, unless it is on the embedding's stage
                found += matrix
        return found

    def in_flight(self, stage: int) -> float:
        """Micro-batches of which a stage keeps activations at most."""
        if self.job.zero_bubble:  # Qi et al. 2024, arXiv:2401.10241, sec. 2.3
            return min(self.pp, self.micro_batches)
        if self.chunks == 1:  # 1F1B: one forward for each stage from here on before the first backward [N, fig. 4]
            return min(self.pp - stage, self.micro_batches)
        warm_up = 2 * (self.pp - 1 - stage) + (self.chunks - 1) * self.pp  # in chunks [N, sec. 2.2.2]
        return min(warm_up + 1, self.micro_batches * self.chunks) / self.chunks

    def parameters(self, stage: int) -> tuple[float, float]:
        """Parameters of a stage on one rank: those outside the experts, and theirs."""
        plain, routed = self.outside(stage), 0.0
        for share in self.layers(stage):
            for sparse, part in ((False, 1 - share), (True, share)):
                held = self.layer_weights(sparse) if part else (0.0, 0.0)
                plain, routed = plain + part * held[0], routed + part * held[1]
        return plain, routed

    def stage_memory(self, stage: int) -> dict[str, float]:
        """Bytes by the parts of `Memory`."""
        layers, (plain, routed) = self.layers(stage), self.parameters(stage)
        present = [sparse for sparse in (False, True) if any(share if sparse else 1 - share for share in layers)]

        def held(bytes_each: int, sharded: bool) -> float:  # [R, fig. 1]
            return bytes_each * (plain / self.replicas + routed / self.expert_replicas if sharded else plain + routed)

        gathered = 0.0
        if self.zero == 3:  # the layer at work and the one being fetched, as far as other ranks own parts of them
            for sparse in present:
                shared, experts = self.layer_weights(sparse)
                whole = shared * (self.replicas > 1) + experts * (self.expert_replicas > 1)
                gathered = max(gathered, 2 * min(2, len(layers)) * whole)
        whole_layer = {sparse: sum(self.kept(sparse).values()) for sparse in present}
        activations = 0.0
        for share in layers:
            for sparse in present:
                each = 2 * self.normed * self.shape.d_model if self.recompute == "full" else whole_layer[sparse]
                activations += self.in_flight(stage) * (share if sparse else 1 - share) * each
        if self.recompute == "full":  # one layer is whole while its backward pass runs
            activations += max(whole_layer.values()) - 2 * self.normed * self.shape.d_model  # its input is kept already
        logits = 0.0
        if stage == self.pp - 1:  # in 16 bit, and in fp32 for the loss
            logits = (2 + 4) * self.tokens * self.shape.vocab_size / self.tp
        found = {
            "weights": held(2, self.zero >= 3),
            "gradients": held(self.job.gradient_bytes, self.zero >= 2),
            "optimizer": held(self.job.optimizer_bytes, self.zero >= 1),
            "gathered": gathered,
            "activations": activations,
            "logits": logits,
        }
        return found | {"reserve": 1.5e9 + 0.03 * sum(found.values())}

    def memory(self) -> dict[str, float]:
        """Bytes of the heaviest of all stages."""
        return max((self.stage_memory(stage) for stage in range(self.pp)), key=lambda parts: sum(parts.values()))
