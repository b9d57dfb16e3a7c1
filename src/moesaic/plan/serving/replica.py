"""One copy of a model on a group of devices: how it is cut, and in which precisions it is held."""

from dataclasses import dataclass

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.shape import Shape

# Bytes per weight with scales: nvfp4 blocks of 16 with an fp8 scale, mxfp4 of 32 with a byte, int4 of 32 with fp16.
WEIGHT_BYTES = {
    "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625, "mxfp4": 0.53125, "int4": 0.5625
}  # fmt: skip
KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
FOUR_BIT = ("nvfp4", "mxfp4", "int4")


@dataclass(frozen=True)
class Replica:
    """A model on `tp * pp * dp` devices. Build it with `replica`, which checks the rules.

    `dp` counts attention copies whose tokens share one set of experts (DeepSeek-V3, arXiv:2412.19437, sec. 3.4);
    experts are spread over `ep` groups of the `tp * dp` ranks of a stage and cut over the rest.
    """

    shape: Shape
    device: Device
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    weights: str = "bf16"
    kv: str = "bf16"

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tp * self.pp * self.dp

    @property
    def expert_tp(self) -> int:
        """Ranks over which one expert is cut."""
        return self.tp * self.dp // self.ep

    @property
    def expert_bytes(self) -> float:
        """Bytes per weight of a routed expert."""
        return WEIGHT_BYTES[self.weights]

    @property
    def other_bytes(self) -> float:
        """Bytes per weight of everything else in the layers: 4-bit checkpoints of sparse models keep it in 16 bit
        (DeepSeek-R1-FP4, gpt-oss and Kimi-K2.5 model cards)."""
        return 2.0 if self.weights in FOUR_BIT and self.shape.n_experts > 1 else WEIGHT_BYTES[self.weights]

    @property
    def kv_value_bytes(self) -> float:
        """Bytes per value of the cache."""
        return KV_BYTES[self.kv]

    @property
    def kv_heads(self) -> int:
        """Key/value heads that the fullest device holds: replicated when there are fewer heads than ranks."""
        return 1 if self.shape.latent else max(1, -(-self.shape.n_kv_heads // self.tp))

    @property
    def group(self) -> float:
        """Query heads on one device for each key/value head there."""
        return 1.0 if self.shape.latent else max(1.0, self.shape.n_heads / self.tp / self.kv_heads)

    @property
    def kv_bytes_per_token_layer(self) -> float:
        """Bytes of cache for one token in one layer on one device. A latent (MLA) is replicated over TP."""
        if self.shape.latent:
            return self.shape.kv_values_per_token * KV_BYTES[self.kv]
        return 2 * self.kv_heads * self.shape.head_dim * KV_BYTES[self.kv]


def _divisors(n: int, limit: int) -> str:
    return ", ".join(str(d) for d in range(1, limit + 1) if n % d == 0)


def replica(
    shape: Shape,
    device: Device,
    *,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    ep: int = 1,
    weights: str = "bf16",
    kv: str | None = None,
) -> Replica:
    """A checked `Replica`. `kv` is 16 bit with 16-bit weights and 8 bit otherwise unless said.

    Raises PlanError that names the rule and the nearest feasible numbers.
    """
    for name, value in (("tp", tp), ("pp", pp), ("dp", dp), ("ep", ep)):
        if value < 1:
            raise PlanError(f"{name} {value}: give at least 1")
    if weights not in WEIGHT_BYTES:
        raise PlanError(f"no weight precision '{weights}'; use one of {', '.join(WEIGHT_BYTES)}")
    kv = kv or ("bf16" if weights in ("bf16", "fp16") else "fp8")
    if kv not in KV_BYTES:
        raise PlanError(f"no cache precision '{kv}'; use one of {', '.join(KV_BYTES)}")
    if shape.n_heads % tp:
        allowed = _divisors(shape.n_heads, min(shape.n_heads, 64))
        raise PlanError(f"tp {tp} does not divide {shape.n_heads} heads; use one of {allowed}")
    if pp > shape.n_layers:
        raise PlanError(f"pp {pp} is more than {shape.n_layers} layers; use at most {shape.n_layers}")
    if shape.n_experts % ep:
        allowed = _divisors(shape.n_experts, shape.n_experts)
        raise PlanError(f"ep {ep} does not divide {shape.n_experts} experts; use one of {allowed}")
    if (tp * dp) % ep:
        raise PlanError(f"ep {ep} does not divide the {tp * dp} ranks of a stage; use one of {_divisors(tp * dp, ep)}")
    return Replica(shape, device, tp, pp, dp, ep, weights, kv)
