"""Which rank does what: several views of the same ranks, pipeline slowest and tensor fastest.

data      pp x dp x cp x tp            who reads which sequences, and which part of them
dense     pp x fsdp x tp               who holds which piece of dense weights (fsdp = dp x cp)
experts   pp x edp x ep x etp          the same ranks again, for experts (parallel folding)
"""

from dataclasses import dataclass
from functools import cached_property

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from moesaic.errors import LayoutError
from moesaic.parallel.private import unflatten
from moesaic.parallel.world import World
from moesaic.recipe import Layout


@dataclass(frozen=True)
class Place:
    """Coordinates of one rank."""

    pp: int
    dp: int
    cp: int
    tp: int

    @classmethod
    def of(cls, rank: int, layout: Layout) -> "Place":
        """Pipeline slowest, tensor fastest."""
        rank, tp = divmod(rank, layout.tp)
        rank, cp = divmod(rank, layout.cp)
        pp, dp = divmod(rank, layout.dp)
        return cls(pp, dp, cp, tp)


class Meshes:
    """Process groups of one layout. With one process there is none, and every group is None."""

    def __init__(self, layout: Layout, world: World) -> None:
        """Raises LayoutError when the number of processes is another than the layout's."""
        if world.size != layout.world:
            raise LayoutError(
                f"the layout is for {layout.world} processes (pp {layout.pp} x dp {layout.dp} x cp {layout.cp} x "
                f"tp {layout.tp}) and {world.size} are running; start {layout.world}, or change --layout"
            )
        self.layout, self.world, self.place = layout, world, Place.of(world.rank, layout)
        self.dense: DeviceMesh | None = None
        self.experts: DeviceMesh | None = None
        self._data: DeviceMesh | None = None
        self._sequence: DeviceMesh | None = None
        if world.size == 1:
            return
        L = layout
        device = "cpu" if world.device.type == "meta" else world.device.type  # shapes alone: see scale.py
        everyone = init_device_mesh(device, (L.world,), mesh_dim_names=("world",))
        self.dense = unflatten(everyone, (L.pp, L.dp * L.cp, L.tp), ("pp", "fsdp", "tp"))
        self.experts = unflatten(everyone, (L.pp, L.edp, L.ep, L.etp), ("_pp", "edp", "ep", "etp"))
        if L.cp > 1:
            self._data = unflatten(everyone, (L.pp, L.dp, L.cp, L.tp), ("__pp", "dp", "cp", "_tp"))
            self._sequence = unflatten(everyone, (L.pp, L.dp, L.cp * L.tp), ("___pp", "_dp", "sequence"))

    def _group(self, mesh: DeviceMesh | None, name: str, size: int) -> ProcessGroup | None:
        """Ranks that differ in one coordinate alone; None when that is this rank alone."""
        return None if mesh is None or size == 1 else mesh.get_group(name)

    @cached_property
    def tp(self) -> ProcessGroup | None:
        """Tensor ranks."""
        return self._group(self.dense, "tp", self.layout.tp)

    @cached_property
    def fsdp(self) -> ProcessGroup | None:
        """Replicas of dense weights: data and context ranks."""
        return self._group(self.dense, "fsdp", self.layout.dp * self.layout.cp)

    @cached_property
    def pp(self) -> ProcessGroup | None:
        """Stages of this rank's pipeline."""
        return self._group(self.dense, "pp", self.layout.pp)

    @cached_property
    def edp(self) -> ProcessGroup | None:
        """Replicas of this rank's experts."""
        return self._group(self.experts, "edp", self.layout.edp)

    @cached_property
    def ep(self) -> ProcessGroup | None:
        """Ranks among which all experts of a layer are dealt out."""
        return self._group(self.experts, "ep", self.layout.ep)

    @cached_property
    def cp(self) -> ProcessGroup | None:
        """Ranks that share sequences."""
        return self._group(self._data, "cp", self.layout.cp)

    @cached_property
    def sequence(self) -> ProcessGroup | None:
        """Context and tensor ranks: between them lie whole sequences of the residual stream."""
        if self.layout.cp == 1:
            return self.tp
        return self._group(self._sequence, "sequence", self.layout.cp * self.layout.tp)

    @cached_property
    def ends(self) -> ProcessGroup | None:
        """The first and the last stage of this rank's pipeline, which both hold a tied embedding."""
        L = self.layout
        if L.pp == 1 or L.schedule == "zero_bubble":  # there both ends lie on one rank
            return None
        if L.pp == 2:
            return self.pp
        each = L.world // L.pp
        pairs = [[r, r + (L.pp - 1) * each] for r in range(each)]
        group, _ = dist.new_subgroups_by_enumeration(pairs)
        return group if self.place.pp in (0, L.pp - 1) else None
