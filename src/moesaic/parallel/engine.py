"""A model in a layout: built without memory, changed from outside in one fixed order, then filled.

Tensor -> expert -> context parallelism -> recomputation -> compilation -> sharding over replicas -> pipeline stages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moesaic.data import IGNORE, Batch
from moesaic.model import Transformer, initial_value, matching
from moesaic.model.attention import Attention
from moesaic.model.experts import Experts
from moesaic.model.kernels import RowKernels
from moesaic.model.norm import RMSNorm
from moesaic.model.transformer import extended
from moesaic.parallel.collectives import sum_
from moesaic.parallel.context import apply_context_parallel
from moesaic.parallel.cut import SequenceCut
from moesaic.parallel.expert import apply_expert_parallel
from moesaic.parallel.gradients import Gradients
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Loss, Part, StepScale, Tally
from moesaic.parallel.pipeline import Pipeline
from moesaic.parallel.private import box_of, local
from moesaic.parallel.recompute import apply_recompute
from moesaic.parallel.shard import apply_sharding, shards_weights, sync_gradients
from moesaic.parallel.stages import micro_batches, piece_of, split_layers
from moesaic.parallel.tensor import apply_tensor_parallel
from moesaic.parallel.weights import Ledger, store_width_first
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Model


class Engine:
    """This rank's parts of the model, and what a training step does with them."""

    def __init__(
        self,
        config: Model,
        layout: Layout,
        world: World,
        kernels: RowKernels | None = None,
        compute_dtype: torch.dtype = torch.float32,
        model: Transformer | None = None,
    ) -> None:
        """Weights are not filled yet: see `initialise`, `fill`; with `model`, they are its own.

        Where the layout narrows experts (`Layout.narrows_experts`), they are gathered in `compute_dtype` for good.

        Raises LayoutError for a wrong number of processes.
        """
        self.layout, self.world, self.config = layout, world, config
        self.meshes = Meshes(layout, world)
        self.expert_dtype = compute_dtype if layout.narrows_experts else torch.float32  # in which ZeRO gathers them
        self.parts, ledgers = self._build(model)
        self.ledger = Ledger(*(set().union(*kinds) for kinds in zip(*(vars(x).values() for x in ledgers), strict=True)))
        self.gradients = Gradients(self.parts, ledgers, self.meshes)
        self.pipeline = Pipeline(self.parts, self.pieces, self.meshes) if layout.pp > 1 else None
        self.set_compute_dtype(compute_dtype)
        if kernels is not None:
            self.use_kernels(kernels)

    @classmethod
    def over(cls, model: Transformer, layout: Layout | None = None) -> Self:
        """One process that trains the weights of `model` in place."""
        device = model.embedding.device
        return cls(model.config, layout or Layout(), World(device=device), model.kernels, model.compute_dtype, model)

    def _build(self, model: Transformer | None) -> tuple[list[Part], list[Ledger]]:
        layout, meshes = self.layout, self.meshes
        filled = model is not None
        if model is None:
            with torch.device("meta"):
                model = Transformer(self.config)
        self.names = [name for name, _ in model.named_parameters()]  # of the whole model, in its order
        self.pieces = piece_of(layout, meshes.place.pp)
        ranges = split_layers(self.config, layout.pp * layout.chunks_per_rank)
        parts, ledgers = [], []
        for number in self.pieces:
            ends = (number == 0, number == len(ranges) - 1)
            part, ledger = Part(model, ranges[number], *ends, SequenceCut.of(meshes)), Ledger()
            if shards_weights(layout):
                store_width_first(part, ledger, layout.edp)
            apply_tensor_parallel(part, meshes, ledger)
            apply_expert_parallel(part, meshes, ledger)
            if layout.cp > 1:
                apply_context_parallel(part)
            apply_recompute(part, layout)
            if layout.compile:
                for block in part.blocks:
                    block.compile()
            apply_sharding(part, meshes, self.expert_dtype)
            parts.append(part)
            ledgers.append(ledger)
        if not filled and self.world.device.type != "meta":
            for part in parts:
                part.to_empty(device=self.world.device)
        return parts, ledgers

    def use_kernels(self, kernels: RowKernels) -> None:
        """Compute what lies between the matrix products with `kernels` from now on."""
        for part in self.parts:
            part.kernels = kernels
            for module in part.modules():
                if isinstance(module, RMSNorm | Attention | Experts):
                    module.kernels = kernels

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Arithmetic of matrix products. Raises ValueError for a wider type than experts are gathered in."""
        if dtype.itemsize > self.expert_dtype.itemsize:
            raise ValueError(f"products in {dtype}, but the engine was built to gather experts in {self.expert_dtype}")
        self.compute_dtype = dtype
        for part in self.parts:
            part.compute_dtype = dtype

    def extend(self, context: int, rope_theta: float | None = None) -> None:
        """Raise the longest sequence and, if given, the rotary base; weights stay. Raises ModelError."""
        self.config = extended(self.config, context, rope_theta)
        for part in self.parts:
            part.config = self.config

    def freeze(self, globs: Sequence[str]) -> list[str]:
        """Freeze all weights but those that match one of `globs`; the names in the whole model of what is trained.

        A rank may be left without trained weights. Raises ModelError, on every rank, when nothing matches.
        """
        chosen = matching(self.names, globs)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        return chosen

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name in the whole model and weight, of every part; a tied embedding may come twice."""
        for part in self.parts:
            yield from part.named_parameters()

    def model_order(self, name: str, stored: Tensor) -> Tensor:
        """A weight, its gradient or a moment of it, with the dimensions that it has in the model; a view."""
        return self.ledger.model_order(name, stored)

    def equal_ends(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Both copies of a tied embedding where one rank holds both ends of the pipeline: first, last."""
        copies = [p for name, p in self.named_parameters() if name == "embedding"]
        return [(copies[0], copies[1])] if len(copies) == 2 else []

    def weights(self) -> dict[str, Tensor]:
        """This rank's weights in the model's order, sharing memory."""
        return {name: self.model_order(name, p.detach()) for name, p in self.named_parameters()}

    def initialise(self, seed: int) -> None:
        """Fill all weights from `seed`, the same in every layout."""
        self.fill(lambda name, shape: initial_value(self.config, name, shape, seed))

    @torch.no_grad()
    def fill(self, value_of: Callable[[str, torch.Size], Tensor]) -> None:
        """Take this rank's pieces of whole weights."""
        for name, parameter in self.named_parameters():
            weight = self.model_order(name, parameter.detach())
            value = value_of(name, weight.shape)
            box = box_of(weight) if isinstance(weight, dist.tensor.DTensor) else ()
            local(weight).copy_(value[box])

    def gather(self, named: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors from the pieces of all ranks, one after the other, on the first rank alone.

        Every rank must call this and exhaust it; the others get nothing.
        """
        everyone: list[list[str]] = [list(named)]
        if self.world.size > 1:
            everyone = [[] for _ in range(self.world.size)]
            dist.all_gather_object(everyone, list(named))
        owner: dict[str, int] = {}
        for rank, names in enumerate(everyone):
            for name in names:
                owner.setdefault(name, rank)
        for name, rank in owner.items():
            mine = named.get(name)
            whole = None
            if mine is not None:
                whole = mine.full_tensor() if isinstance(mine, dist.tensor.DTensor) else mine
            if rank != 0:
                if self.world.rank == rank:
                    assert whole is not None
                    dist.send_object_list([(tuple(whole.shape), whole.dtype)], 0)
                    dist.send(whole.contiguous(), 0)
                if self.world.rank == 0:
                    said: list[tuple[tuple[int, ...], torch.dtype]] = [((), torch.float32)]
                    dist.recv_object_list(said, rank)
                    whole = torch.empty(*said[0][0], dtype=said[0][1], device=self.world.device)
                    dist.recv(whole, rank)
            if self.world.rank == 0:
                assert whole is not None
                yield name, whole.cpu()  # an accelerator has no room for the whole model

    def whole(self) -> Transformer | None:
        """The model in one piece: the same weights with one process, a copy on the first of several, None elsewhere."""
        with torch.device("meta"):
            model = Transformer(self.config)
        alone = self.world.size == 1
        gathered = self.weights() if alone else {n: t.detach().clone() for n, t in self.gather(self.weights())}
        if not self.world.is_first:
            return None
        model.load_state_dict(gathered, assign=True)
        model.compute_dtype = self.compute_dtype
        model.use_kernels(self.parts[0].kernels)
        return model

    def count(self, own: int) -> int:
        """Sum over data-parallel ranks of a number that all others of a replica agree on."""
        if self.layout.dp == 1:
            return own
        place = self.meshes.place
        counts = place.pp == place.cp == place.tp == 0
        total = torch.tensor(own if counts else 0, device=self.world.device)
        return int(sum_(total, dist.group.WORLD))

    def accumulate(
        self, batch: Batch, micro: int, scale: StepScale, loss_of: Callable[[Batch], Loss] | None = None
    ) -> Tally:
        """Gradients of all micro-batches of this rank's rows; what they add up to, on all ranks together.

        `micro`: sequences in a micro-batch, at most. `loss_of`: another loss than that of the next token.
        """
        tally = Tally.empty(len(self.config.sparse_layers), self.config.n_experts, self.world.device)
        for part in self.parts:
            part.tally, part.scale = tally, scale
        if self.pipeline is None:
            self._accumulate_here(batch, micro, loss_of)
        else:
            size, count = micro_batches(self.layout, batch.tokens.shape[0], micro)
            full = padded(batch, size * count)
            self.pipeline.step(full.tokens, full.positions, full.documents, full.labels, size)
        if self.world.size > 1:
            together = torch.cat((torch.stack((tally.loss, tally.balance, tally.z)), tally.counts_LE.flatten()))
            sum_(together, dist.group.WORLD)
            loss, balance, z = together[:3]
            return Tally(loss, balance, z, together[3:].view_as(tally.counts_LE))
        return tally

    def _accumulate_here(self, batch: Batch, micro: int, loss_of: Callable[[Batch], Loss] | None) -> None:
        (part,) = self.parts
        pieces = list(cut_rows(batch, micro))
        for i, piece in enumerate(pieces):
            sync_gradients(part, self.layout, last=i == len(pieces) - 1)
            part.loss = None if loss_of is None else loss_of(piece)
            part(piece.tokens, piece.positions, piece.documents, piece.labels).sum().backward()


def cut_rows(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most `size` sequences."""
    for lo in range(0, batch.tokens.shape[0], size):
        rows = slice(lo, lo + size)
        yield Batch(batch.tokens[rows], batch.labels[rows], batch.documents[rows], batch.positions[rows])


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with empty sequences up to `rows`: padding has no loss, no load, and no gradient."""
    missing = rows - batch.tokens.shape[0]
    if not missing:
        return batch
    tokens, positions = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in (batch.tokens, batch.positions))
    labels = torch.nn.functional.pad(batch.labels, (0, 0, 0, missing), value=IGNORE)
    documents = torch.nn.functional.pad(batch.documents, (0, 0, 0, missing), value=-1)
    return replace(batch, tokens=tokens, labels=labels, documents=documents, positions=positions)
