"""Where the model computes: degrees of parallelism, and every rule a layout must obey."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part
from moesaic.recipe.model import Model
from moesaic.recipe.stage import Stage


class Layout(Part):
    """Dense weights on pp x dp x cp x tp ranks, experts on pp x edp x ep over the same ranks."""

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
    zero: Literal[0, 1, 3] = 1
    """What data parallelism shards: nothing, optimizer state, or parameters per block too. | ZeRO stage | memory (raise) or traffic (lower)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass. | none | activations do not fit."""
    schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    """Order of micro-batches in the pipeline. | none | the bubble is too large."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def edp(self) -> int:
        """Replicas of each expert shard: ep x edp = dp x cp x tp."""
        return self.dp * self.cp * self.tp // self.ep

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.dp * self.cp * self.tp) % self.ep:
            raise ValueError(
                f"ep = {self.ep} does not divide dp x cp x tp = {self.dp * self.cp * self.tp}; "
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
        divides(self.tp, "tp", model.d_ff, "d_ff")
        divides(self.tp, "tp", model.vocab_size, "vocab_size")
        divides(self.ep, "ep", model.n_experts, "n_experts")
        if model.n_kv_heads % self.tp and self.tp % model.n_kv_heads:
            out.append(
                f"n_kv_heads = {model.n_kv_heads} neither divides tp = {self.tp} (replicated heads) nor is divided "
                "by it (split heads); change tp"
            )
        if self.pp > model.n_layers:
            out.append(f"pp = {self.pp} stages for n_layers = {model.n_layers}; lower pp")
        for stage in stages:
            divides(self.cp, "cp", stage.seq_len, f"stages.{stage.name}.seq_len")
            for step in stage.batch:
                divides(self.dp, "dp", step.tokens // stage.seq_len, f"sequences of a {stage.name} batch")
        return out


class Hardware(Part):
    """The devices the layout is meant for."""

    name: str = "this machine"
    """What the device is called. | none | you rent another."""
    count: PositiveInt = 1
    """Devices at hand; a layout may not need more. | devices | you rent more."""
    memory_gb: PositiveFloat | None = None
    """Memory of one device. | 1e9 bytes | you rent another."""
