"""Why a layout cannot run: every broken rule in words, with the nearest numbers that would do."""

from collections.abc import Callable, Mapping

from moesaic.plan.device import Device
from moesaic.plan.shape import Shape

DEGREES = ("tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks")


def problems(
    shape: Shape, row: Mapping[str, int | str], batch: int, device: Device, gpus: int | None = None
) -> list[str]:
    """What is wrong with one layout (a row of `Layouts`) for a batch of sequences; empty where `layouts.valid` holds.

    `device` says how far the fast link reaches. With `gpus`, the layout must also use exactly so many.
    """
    n = {name: int(row[name]) for name in DEGREES}
    if low := [f"{name} = {value}: give at least 1" for name, value in n.items() if value < 1]:
        return low
    found = [
        _tensor(shape, n, device),
        _stages(shape, n),
        _interleave(shape, n),
        _experts(shape, n),
        _split_experts(shape, n),
        _ranks(shape, n),
        _batch(n, batch),
        _world(n, gpus, device) if gpus is not None else "",
    ]
    return [text for text in found if text]


def nearest(fits: Callable[[int], bool], value: int, most: int) -> str:
    """The nearest numbers below and above `value`, up to `most`, that fit: "4 or 8"."""
    below = next((n for n in range(min(value - 1, most), 0, -1) if fits(n)), None)
    above = next((n for n in range(value + 1, most + 1) if fits(n)), None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def _tensor(shape: Shape, n: dict[str, int], device: Device) -> str:
    heads, kv, d, tp = shape.n_heads, shape.n_kv_heads, shape.d_model, n["tp"]

    def split(size: int) -> bool:
        """Whether each rank gets whole heads of keys and values, or all ranks of a head the same one."""
        return shape.latent is not None or kv % size == 0 or size % kv == 0

    if heads % tp:
        why = f"does not divide {heads} heads"
    elif d % tp:
        why = f"does not divide the width {d}"
    elif shape.d_ff % tp:
        why = f"does not divide the feed-forward width {shape.d_ff}"
    elif not split(tp):
        why = f"neither divides {kv} key/value heads nor is a multiple of them"
    else:
        return ""
    widths = (heads, d, shape.d_ff)
    use = nearest(lambda size: all(w % size == 0 for w in widths) and split(size), tp, heads)
    reach = f" ({device.domain} {device.label} share the fast link)" if tp > device.domain else ""
    return f"tp = {tp} {why}; use tp = {use}{reach}"


def _stages(shape: Shape, n: dict[str, int]) -> str:
    if n["pp"] <= shape.n_layers:
        return ""
    return f"pp = {n['pp']} stages are more than {shape.n_layers} layers; use pp = {shape.n_layers} or fewer"


def _interleave(shape: Shape, n: dict[str, int]) -> str:
    layers, pp, chunks = shape.n_layers, n["pp"], n["chunks"]

    def fits(count: int) -> bool:
        return count == 1 or (-layers % (pp * count) <= 2 and pp * count <= layers + 2)

    if chunks == 1 or (pp > 1 and fits(chunks)):
        return ""
    if pp == 1:
        return f"chunks = {chunks} interleaves stages, and pp = 1 has only one; use chunks = 1 or a larger pp"
    use = nearest(fits, chunks, (layers + 2) // pp) or "1"
    return (
        f"chunks = {chunks} x pp = {pp} are not equal parts of {layers} layers (up to 2 may be missing, for embedding "
        f"and head); use chunks = {use}"
    )


def _experts(shape: Shape, n: dict[str, int]) -> str:
    if shape.n_experts % n["ep"] == 0:
        return ""
    if shape.n_experts == 1:
        return f"ep = {n['ep']}, but the model has no experts; use ep = 1"
    use = nearest(lambda ep: shape.n_experts % ep == 0, n["ep"], shape.n_experts)
    return f"ep = {n['ep']} does not divide {shape.n_experts} experts; use ep = {use}"


def _split_experts(shape: Shape, n: dict[str, int]) -> str:
    if n["etp"] in (1, n["tp"]):
        if shape.d_expert % n["etp"] == 0:
            return ""
        return f"etp = {n['etp']} does not divide the width {shape.d_expert} of an expert; use etp = 1 or another tp"
    use = "1" if n["tp"] == 1 or shape.d_expert % n["tp"] else f"1 or {n['tp']} (tp)"
    return f"etp = {n['etp']}: experts are whole or split like dense blocks; use etp = {use}"


def _ranks(shape: Shape, n: dict[str, int]) -> str:
    ranks, each = n["dp"] * n["cp"] * n["tp"], n["ep"] * n["etp"]
    if ranks % each == 0:
        return ""
    rule = f"ep x etp = {n['ep']} x {n['etp']} = {each} does not divide the dp x cp x tp = {ranks} ranks of a stage"
    ep = nearest(lambda ep: shape.n_experts % ep == 0 and ranks % (ep * n["etp"]) == 0, n["ep"], shape.n_experts)
    dp = nearest(lambda dp: dp * n["cp"] * n["tp"] % each == 0, n["dp"], n["dp"] + each)
    return f"{rule}; use " + (f"ep = {ep}, or " if ep else "") + f"dp = {dp}"


def _batch(n: dict[str, int], batch: int) -> str:
    once = n["dp"] * n["micro_batch"]
    rounds = n["pp"] if n["chunks"] > 1 else 1  # micro-batches that a replica needs at least
    if batch >= once * rounds:
        return ""
    if batch < once:
        rule = (
            f"a batch of {batch:,} sequences is less than dp x micro-batch = {n['dp']} x {n['micro_batch']} = {once:,}"
        )
    else:
        rule = f"{batch // once} micro-batches are less than a round of pp = {rounds}, which interleaving needs"
    dp = batch // (n["micro_batch"] * rounds)
    change = f"use dp = {dp} or fewer" if dp else "lower the micro-batch" + (" or the interleave" if rounds > 1 else "")
    return f"{rule}; {change}, or raise the batch to {once * rounds:,} sequences"


def _world(n: dict[str, int], gpus: int, device: Device) -> str:
    inner = n["tp"] * n["pp"] * n["cp"]
    if inner * n["dp"] == gpus:
        return ""
    if gpus < inner:
        return f"tp x pp x cp = {inner:,} needs more than the {gpus:,} {device.label} given; lower one of them"
    fewer = gpus // inner
    sizes = [fewer] if gpus % inner == 0 else [fewer, fewer + 1]
    use = " or ".join(f"dp = {dp} ({inner * dp:,} devices)" for dp in sizes)
    rule = f"tp x pp x cp x dp = {n['tp']} x {n['pp']} x {n['cp']} x {n['dp']} = {inner * n['dp']:,}"
    return f"{rule} is not the {gpus:,} {device.label} given; use {use}"
