"""Does a layout compute what one process computes? Loss, every gradient, norm, and weights after two steps.

In fp32, on a small model with every part that a layout can break: multi-query attention, experts, packed documents,
padding, accumulation over micro-batches, a tied embedding.

A token whose k-th and next router logit are almost equal goes elsewhere after a rounding error, and a whole row of the
gradient with it. So the seed is the first one that gives no token so close a choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moesaic.data import IGNORE, Batch
from moesaic.errors import LayoutError
from moesaic.model import initial_value
from moesaic.parallel.engine import Engine
from moesaic.parallel.launch import RanksFailed, run_ranks
from moesaic.parallel.meshes import Place
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Model, Optimizer, Stage
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep

TOLERANCE, TOLERANCE_BF16 = 1e-5, 1e-2
"""Of the largest value of a tensor, or absolute for tensors below 1: fp32 sums in another order differ by less, and
an error of parallelism by far more (see the planted faults of the tests). The second is for what follows a reduction
in bf16, which rounds to 1 part in 512; AdamW makes of that up to twice its rate in each step."""
GAP = 1e-4  # between the logits of the last expert chosen and the first not chosen
STEPS, LR, EPS, CLIP = 2, 1e-3, 1e-6, 0.25
MOST_RANKS = 32  # processes on this machine, about 0.3 GB each
SEEDS = range(1, 50)
KINDS = ("loss", "gradient", "norm", "weight")

MODEL = Model(
    vocab_size=256, d_model=32, n_layers=4, n_heads=8, head_dim=4, n_kv_heads=1, d_ff=32, n_experts=8, top_k=2,
    context=32, init_std=0.2, balance_weight=0.1, z_weight=0.01,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is computed."""

    model: Model = MODEL
    sequences: int = 16
    seq_len: int = 32
    micro_batch: int = 2
    starved: int = 0
    """Experts at the end of every layer that no token ever chooses."""
    trainable: tuple[str, ...] = ("*",)
    """Weights that are trained: globs of their names."""

    def stage(self) -> Stage:
        """Optimizer, batch and micro-batch."""
        return Stage(
            name="verify", sources=("none",), tokens=self.sequences * self.seq_len, seq_len=self.seq_len,
            batch=({"tokens": self.sequences * self.seq_len},), precision="fp32", micro_batch=self.micro_batch,
            trainable=self.trainable, optimizer=Optimizer(lr=LR, eps=EPS, clip_norm=CLIP, spike_factor=0),
        )  # fmt: skip

    def value(self, name: str, shape: torch.Size, seed: int) -> Tensor:
        """First value of a weight. To starve experts, every token gets a feature that all routers read as their no."""
        value = initial_value(self.model, name, shape, seed)
        if self.starved and name == "embedding":
            value[:, 0] = 2.0
        if self.starved and name.endswith("router.weight"):
            value[-self.starved :, 0] = -20.0
        return value


def case_for(layout: Layout, like: Model | None = None) -> Case:
    """The model of the check with as many layers as `layout` has pieces, or a small one of the kind of `like`."""
    layers = max(MODEL.n_layers, layout.pp * layout.chunks_per_rank)
    if like is None:
        return Case(MODEL.model_copy(update={"n_layers": layers}))
    kept = like.model_dump(exclude={"vocab_size", "d_model", "head_dim", "d_ff", "n_layers", "context", "init_std"})
    kept["dense_layers"] = tuple(n for n in range(layers) if n in like.dense_layers)
    if like.dense_layers and not kept["dense_layers"]:
        kept["dense_layers"] = (0,)
    if like.dense_d_ff:
        kept["dense_d_ff"] = 2 * MODEL.d_ff
    if like.window:
        kept["window"] = MODEL.context // 4
    sizes = MODEL.model_dump(include={"vocab_size", "d_model", "head_dim", "d_ff", "context", "init_std"})
    return Case(Model.model_validate(kept | sizes | {"n_layers": layers}))


@dataclass(frozen=True)
class Difference:
    """One tensor that differs."""

    what: str
    """`loss`, `norm`, or `gradient` or `weight` and the name."""
    largest: float
    """Largest difference of a value."""
    scale: float
    """Largest value of the reference, at least 1."""


@dataclass(frozen=True)
class Reference:
    """What one process computes."""

    seed: int
    gap: float
    """The closest choice of a router: between the logits of the last expert chosen and the first not chosen."""
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """How a layout compares with one process."""

    layout: Layout
    largest: Mapping[str, float]
    """Largest difference by kind of tensor (KINDS), relative to the largest value of a tensor above 1."""
    first: Difference | None
    """The first tensor that differs: losses, gradients as the backward pass makes them, norm, weights."""
    error: str | None = None
    """Why nothing could be compared."""

    @property
    def equal(self) -> bool:
        """Whether the layout computes the same."""
        return self.first is None and self.error is None


def batch(seed: int, vocab_size: int, sequences: int, seq_len: int) -> Batch:
    """Random tokens in documents of uneven length, some rows with padding at the end, some labels without loss."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sequences, seq_len)
    tokens = torch.randint(vocab_size, shape, generator=generator)
    labels = torch.randint(vocab_size, shape, generator=generator)
    cuts = torch.rand(shape, generator=generator) < 0.06
    cuts[:, 0] = False
    documents = cuts.long().cumsum(dim=1)
    labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE
    filled = torch.randint(seq_len // 2, seq_len + 1, (sequences, 1), generator=generator)
    filled[::2] = seq_len
    padding = torch.arange(seq_len) >= filled
    labels[padding], documents[padding], tokens[padding] = IGNORE, -1, 0
    position = torch.arange(seq_len).expand(shape)
    begins = torch.where(torch.nn.functional.pad(documents.diff(dim=1) != 0, (1, 0), value=True), position, 0)
    positions = position - begins.cummax(dim=1).values
    return Batch(tokens, labels, documents, positions, {"none": int((~padding).sum())})


def share(whole: Batch, layout: Layout, rank: int) -> Batch:
    """The sequences of this rank's replica."""
    each = whole.tokens.shape[0] // layout.dp
    rows = slice(Place.of(rank, layout).dp * each, (Place.of(rank, layout).dp + 1) * each)
    return Batch(
        whole.tokens[rows], whole.labels[rows], whole.documents[rows], whole.positions[rows], whole.source_tokens,
        of_sequences=whole.tokens.shape[0],
    )  # fmt: skip


def trace(case: Case, layout: Layout, world: World, seed: int) -> dict[str, Tensor]:
    """What two steps compute in `layout`, on the first rank; every rank must call this. The others get {}."""
    return _trace(Engine(case.model, layout, world), case, seed)


def _trace(engine: Engine, case: Case, seed: int) -> dict[str, Tensor]:
    engine.fill(lambda name, shape: case.value(name, shape, seed))
    engine.freeze(case.trainable)
    settings, world = case.stage(), engine.world
    step = TrainStep(engine, settings, build_optimizer(engine.named_parameters(), settings.optimizer))
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        whole = batch(seed + number, case.model.vocab_size, case.sequences, case.seq_len)
        loss, balance, z, counts_LE = step.accumulate(share(whole, engine.layout, world.rank).to(world.device))
        if number == 0:
            engine.gradients.finish()
            named = {n: engine.model_order(n, p.grad) for n, p in engine.named_parameters() if p.grad is not None}
            gradients = {f"gradient {n}": t.cpu().clone() for n, t in engine.gather(named)}
            norm = engine.gradients.norm()
            found |= {"loss": torch.tensor([loss, balance, z]), "expert load": counts_LE.cpu()}
            found |= {n: gradients[n] for n in sorted(gradients, key=_backward_order)}
            found |= {"norm": torch.tensor(norm, dtype=torch.float64)}
            _update(step, norm)
        else:
            step.update(LR)
        step.previous_load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp(min=1)
    found |= {f"weight {n}": t.cpu().clone() for n, t in engine.gather(engine.weights())}
    return found if world.is_first else {}


def _update(step: TrainStep, norm: float) -> None:
    """The update of a step whose gradients are whole already."""
    if norm > step.stage.optimizer.clip_norm:
        step.engine.gradients.scale(step.stage.optimizer.clip_norm / norm)
    step.optimizer.step()
    step.optimizer.zero_grad()


def _backward_order(name: str) -> tuple[int, int, int]:
    """Head and last norm, then layers from the last; within a layer experts and router, then attention."""
    parts = name.removeprefix("gradient ").split(".")
    if parts[0] != "layers":
        return {"head": 0, "norm": 1}.get(parts[0], 3), 0, 0
    within = ("experts", "router", "attention")
    return 2, -int(parts[1]), within.index(parts[2]) if parts[2] in within else len(within)


def reference(case: Case) -> Reference:
    """What one process computes, from the first seed that gives routers no close choice. Raises LayoutError."""
    for seed in SEEDS:
        engine = Engine(case.model, Layout(), World())
        gaps = [float("inf")]
        for block in engine.parts[0].blocks:
            if block.router is not None and case.model.top_k < case.model.n_experts:
                block.router.register_forward_hook(
                    lambda router, args, out: gaps.append(_closest(router, *args))  # noqa: B023
                )
        values = _trace(engine, case, seed)
        if min(gaps) > GAP:
            return Reference(seed, min(gaps), values)
    raise LayoutError(f"no seed below {SEEDS.stop} gives routers clear choices; use a model of fewer layers or experts")


@torch.no_grad()
def _closest(router: nn.Module, x_BSD: Tensor, real_BS: Tensor) -> float:
    """Smallest gap between the k-th logit and the next over the tokens that are not padding."""
    weight: Tensor = router.weight  # type: ignore[assignment]
    k: int = router.top_k  # type: ignore[assignment]
    logits = torch.nn.functional.linear(x_BSD.float(), weight)[real_BS].sort(dim=-1, descending=True).values
    gaps = logits[:, k - 1] - logits[:, k]
    return float(gaps.min()) if len(gaps) else float("inf")


def tolerance(layout: Layout, name: str) -> float:
    """How much a tensor may differ."""
    rounded = layout.reduce == "bf16" and name not in ("loss", "expert load")
    return TOLERANCE_BF16 if rounded else TOLERANCE


def compare(layout: Layout, reference: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Verdict:
    """The first tensor that is missing or differs beyond its tolerance, and the largest difference of each kind."""
    first, largest = None, dict.fromkeys(KINDS, 0.0)
    for name, expected in reference.items():
        scale, got = max(1.0, _largest(expected)), found.get(name)
        by = float("inf") if got is None else _largest(got.double() - expected.double())
        kind = name.partition(" ")[0]
        if kind in largest:
            largest[kind] = max(largest[kind], by / scale)
        if first is None and not by <= tolerance(layout, name) * scale:
            first = Difference(name if got is not None else f"{name} (missing)", by, scale)
    more = [Difference(f"{n} (left over)", float("inf"), 1.0) for n in found if n not in reference]
    return Verdict(layout, largest, first or next(iter(more), None))


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def traces(rank: int, cases: Sequence[tuple[Case, Layout, int]]) -> list[dict[str, Tensor]]:
    """On a rank of `run_ranks`: what each case computes in its layout from its seed."""
    world = World(rank, dist.get_world_size(), torch.device("cpu"))
    return [trace(case, layout, world, seed) for case, layout, seed in cases]


def check(case: Case, layout: Layout, expected: Reference, limit_s: float) -> Verdict:
    """Compare `layout`, on gloo ranks started here, with one process."""
    try:
        (found,), *_ = run_ranks(traces, layout.world, [(case, layout, expected.seed)], limit_s=limit_s)
    except RanksFailed as failed:
        return Verdict(layout, dict.fromkeys(KINDS, float("inf")), None, str(failed))
    return compare(layout, expected.values, found)


def problems(layout: Layout, like: Model | None = None) -> list[str]:
    """Why `layout` cannot be checked here, for the small model and for the one it stands for; empty when it can."""
    if layout.world > MOST_RANKS:
        return [f"{layout.world} processes; here at most {MOST_RANKS} are started: lower pp, dp, cp or tp"]
    case = case_for(layout, like)
    of_like = layout.problems(like) if like is not None else []
    return of_like or layout.problems(case.model, [case.stage()])


def words(layout: Layout) -> str:
    """A layout as the command line takes it."""
    said = layout.model_dump(exclude_defaults=True)
    return ",".join(f"{key}={str(value).lower()}" for key, value in said.items()) or "dp=1"
