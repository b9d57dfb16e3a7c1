"""Where the model computes: degrees of parallelism, and every rule a layout must obey."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part
from moesaic.recipe.model import Model
from moesaic.recipe.stage import Stage


class Layout(Part):
    """Dense weights on pp x dp x cp x tp ranks, experts on pp x edp x ep x etp over the same ranks."""

    pp: PositiveInt = 1
    """Pipeline stages. | ranks | weights do not fit one tensor-parallel group."""
    dp: PositiveInt = 1
    """Data-parallel replicas. | ranks | the batch should be computed faster."""
    cp: PositiveInt = 1
    """Context-parallel ranks: one sequence split over them. | ranks | activations of long sequences do not fit."""
    tp: PositiveInt = 1
    """Tensor-parallel ranks, within one node. | ranks | a layer does not fit one device."""
    ep: PositiveInt = 1
    """Expert-parallel ranks, folded over dp x cp x tp. | ranks | experts do not fit beside each other."""
    etp: PositiveInt = 1
    """Tensor-parallel ranks within one expert: 1 (whole experts) or tp. | ranks | one expert does not fit a device."""
    zero: Literal[0, 1, 3] = 1
    """What data parallelism shards: nothing, optimizer state, or parameters per block too. | ZeRO stage | memory (raise) or traffic (lower)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass. | none | activations do not fit."""
    schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    """Order of micro-batches in the pipeline. | none | the bubble is too large."""
    chunks: PositiveInt = 2
    """Pieces of the model on each rank of an interleaved pipeline; 1f1b has one, zero_bubble two. | pieces | the bubble is too large (raise)."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic in which gradients are summed over replicas. | none | traffic (bf16)."""
    compile: bool = False
    """Compile each layer with torch.compile. | none | a GPU; the first step takes minutes."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def edp(self) -> int:
        """Replicas of each expert shard: ep x etp x edp = dp x cp x tp."""
        return self.dp * self.cp * self.tp // (self.ep * self.etp)

    @property
    def chunks_per_rank(self) -> int:
        """Pieces of the model that one rank holds."""
        if self.pp == 1:
            return 1
        return {"1f1b": 1, "interleaved": self.chunks, "zero_bubble": 2}[self.schedule]

    @property
    def narrows_experts(self) -> bool:
        """Whether ZeRO gathers experts in the type of their products, be it narrower than fp32.

        Not with zero-bubble schedules: their passes for weights alone add up micro-batches in the type of what was
        gathered, and that sum must be fp32.
        """
        return self.zero > 0 and self.edp > 1 and not (self.pp > 1 and self.schedule == "zero_bubble")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.etp not in (1, self.tp):
            raise ValueError(f"etp = {self.etp}: experts are whole or split like dense blocks; use 1 or tp = {self.tp}")
        ranks, each = self.dp * self.cp * self.tp, self.ep * self.etp
        if ranks % each:
            what = f"ep = {self.ep}" if self.etp == 1 else f"ep x etp = {self.ep} x {self.etp}"
            raise ValueError(
                f"{what} does not divide dp x cp x tp = {ranks}; "
                "experts are folded over those ranks: change ep to a divisor"
            )
        return self

    def problems(self, model: Model, stages: Sequence[Stage] = ()) -> list[str]:
        """Every reason why `model` cannot run in this layout; empty when it can."""
        out: list[str] = []

        def divides(n: int, name: str, value: int, what: str) -> None:
            if value % n:
                out.append(f"{name} = {n} does not divide {what} = {value}; change {name} or {what}")

        divides(self.tp, "tp", model.n_heads, "n_heads")
        divides(self.tp, "tp", model.d_model, "d_model")
        divides(self.tp, "tp", model.d_ff, "d_ff")  # and with it experts that are split: etp is 1 or tp
        if model.dense_layers and model.dense_d_ff:
            divides(self.tp, "tp", model.dense_d_ff, "dense_d_ff")
        divides(self.tp, "tp", model.vocab_size, "vocab_size")
        divides(self.ep, "ep", model.n_experts, "n_experts")
        if model.n_kv_heads % self.tp and self.tp % model.n_kv_heads:
            out.append(
                f"n_kv_heads = {model.n_kv_heads} neither divides tp = {self.tp} (replicated heads) nor is divided "
                "by it (split heads); change tp"
            )
        if self.pp * self.chunks_per_rank > model.n_layers:
            chunks = "" if self.chunks_per_rank == 1 else f" of {self.chunks_per_rank} pieces"
            out.append(f"pp = {self.pp} stages{chunks} for n_layers = {model.n_layers}; lower pp or chunks")
        if self.tp > 1 and model.qk_norm == "all":
            out.append(f"qk_norm = 'all' spans all heads, tp = {self.tp} splits them; use tp = 1")
        if self.zero == 3 and self.pp > 1 and self.schedule == "zero_bubble":
            out.append(
                "zero = 3 gives weights away between the two halves of a zero-bubble backward pass; use zero = 1 or "
                "another schedule"
            )
        if self.recompute == "full" and self.pp > 1 and self.schedule == "zero_bubble":
            out.append(
                "recompute = 'full' would compute each layer anew for both halves of a zero-bubble backward pass; use "
                "recompute = 'selective' or another schedule"
            )
        for stage in stages:
            # Each context rank takes one piece from the front and one from the back of a sequence (see parallel/).
            pieces = self.tp * (2 * self.cp if self.cp > 1 else 1)
            if stage.seq_len % pieces:
                what = f"tp = {pieces}" if self.cp == 1 else f"cp = {self.cp} (2 cp x tp = {pieces})"
                out.append(f"{what} does not divide stages.{stage.name}.seq_len = {stage.seq_len}; change it")
            if stage.teacher is not None and self.pp * self.tp * self.cp > 1:
                out.append(f"stages.{stage.name}.teacher: distillation needs pp = tp = cp = 1; use dp and ep")
            if stage.trainable != ("*",) and self.zero and self.world > 1:
                out.append(f"stages.{stage.name}.trainable freezes weights: use zero = 0 on several processes")
            for step in stage.batch:
                dp = step.dp or self.dp
                divides(dp, "dp", step.tokens // stage.seq_len, f"sequences of a {stage.name} batch")
                if step.dp and (step.dp * self.cp * self.tp) % (self.ep * self.etp):
                    out.append(f"dp = {step.dp} of a {stage.name} batch: ep = {self.ep} does not divide dp x cp x tp")
        return out


class Hardware(Part):
    """The devices the layout is meant for."""

    name: str = "this machine"
    """What the device is called. | none | you rent another."""
    count: PositiveInt = 1
    """Devices at hand; a layout may not need more. | devices | you rent more."""
    memory_gb: PositiveFloat | None = None
    """Memory of one device. | 1e9 bytes | you rent another."""
