"""Does a layout compute what one process computes? Loss, every gradient, norm, and weights after two steps.

In fp32, on a small model with every part that a layout can break: multi-query attention, experts, packed documents,
padding, accumulation over micro-batches, a tied embedding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.data import IGNORE, Batch
from moesaic.parallel.engine import Engine
from moesaic.parallel.meshes import Place
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Model, Optimizer, Stage
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep

TOLERANCE = 1e-5
"""Of the largest value of a tensor, or absolute for tensors below 1: fp32 sums in another order differ by less, and
an error of parallelism by far more (the planted faults of the tests differ by 1e-2 and up)."""
STEPS, LR, EPS = 2, 1e-3, 1e-6
SEQUENCES, SEQ_LEN = 16, 64

MODEL = Model(
    vocab_size=256, d_model=64, n_layers=8, n_heads=8, head_dim=8, n_kv_heads=1, d_ff=64, n_experts=8, top_k=2,
    context=SEQ_LEN, init_std=0.15,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One tensor that differs."""

    what: str
    """`loss`, `norm`, or `gradient` or `weight` and the name."""
    largest: float
    """Largest difference of a value."""
    scale: float
    """Largest value of the reference, at least 1."""


def stage(micro_batch: int = 2) -> Stage:
    """Optimizer and micro-batch of the check."""
    return Stage(
        name="verify", sources=("none",), tokens=1, seq_len=SEQ_LEN, batch=({"tokens": SEQ_LEN},), precision="fp32",
        micro_batch=micro_batch, optimizer=Optimizer(lr=LR, eps=EPS, clip_norm=0.25, spike_factor=0),
    )  # fmt: skip


def batch(seed: int, vocab_size: int, sequences: int = SEQUENCES, seq_len: int = SEQ_LEN) -> Batch:
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


def trace(config: Model, layout: Layout, world: World, seed: int = 1, micro_batch: int = 2) -> dict[str, Tensor]:
    """What two steps compute in `layout`, on the first rank; every rank must call this. The others get {}."""
    engine = Engine(config, layout, world)
    engine.initialise(seed)
    settings = stage(micro_batch)
    step = TrainStep(engine, settings, build_optimizer(engine.named_parameters(), settings.optimizer))
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        data = share(batch(seed + number, config.vocab_size), layout, world.rank).to(world.device)
        loss, balance, z, counts_LE = step.accumulate(data)
        if number == 0:
            engine.gradients.finish()
            named = {n: engine.model_order(n, p.grad) for n, p in engine.named_parameters() if p.grad is not None}
            gradients = {f"gradient {n}": t.cpu().clone() for n, t in engine.gather(named)}
            norm = engine.gradients.norm()
            found |= {"loss": loss, "balance loss": balance, "z loss": z, "norm": norm}  # type: ignore[dict-item]
            found |= {"expert load": counts_LE} | gradients
            _update(step, norm)
        else:
            step.update(LR)
        step.previous_load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp(min=1)
    found |= {f"weight {n}": t.cpu().clone() for n, t in engine.gather(engine.weights())}
    return {n: torch.as_tensor(t).cpu() for n, t in found.items()} if world.is_first else {}


def _update(step: TrainStep, norm: float) -> None:
    """The update of a step whose gradients are whole already."""
    if norm > step.stage.optimizer.clip_norm:
        step.engine.gradients.scale(step.stage.optimizer.clip_norm / norm)
    step.optimizer.step()
    step.optimizer.zero_grad()


def differences(reference: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[Difference]:
    """Every tensor that differs by more than the tolerance, in the order of the computation; missing ones too."""
    out = []
    for name, expected in reference.items():
        if name not in found:
            out.append(Difference(f"{name} (missing)", float("inf"), 1.0))
            continue
        scale = max(1.0, float(expected.abs().max()))
        largest = float((found[name].double() - expected.double()).abs().max())
        if not largest <= TOLERANCE * scale:
            out.append(Difference(name, largest, scale))
    return out + [Difference(f"{n} (left over)", float("inf"), 1.0) for n in found.keys() - reference.keys()]


def largest_difference(reference: Mapping[str, Tensor], found: Mapping[str, Tensor], kinds: Iterable[str]) -> float:
    """Largest difference of a value, relative as in `differences`, over the tensors whose name begins with a kind."""
    worst = 0.0
    for name, expected in reference.items():
        if any(name.startswith(kind) for kind in kinds):
            scale = max(1.0, float(expected.abs().max()))
            worst = max(worst, float((found[name].double() - expected.double()).abs().max()) / scale)
    return worst
