"""Micro-batches through the stages of a pipeline, in the order of one of torch's schedules.

Stages are made once for a shape of micro-batches; when the ramp changes their number, the schedule is made anew over
the same stages.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part

Schedule = Schedule1F1B | ScheduleInterleaved1F1B | ScheduleZBVZeroBubble


class Pipeline:
    """The parts of this rank as stages."""

    def __init__(self, parts: list[Part], pieces: list[int], meshes: Meshes) -> None:
        """`pieces`: number of each part among all stages."""
        self.parts, self.pieces, self.meshes = parts, pieces, meshes
        self.total = meshes.layout.pp * meshes.layout.chunks_per_rank
        self._stages: dict[tuple[int, int], list[PipelineStage]] = {}
        self._schedules: dict[tuple[int, int, int], Schedule] = {}

    def step(self, tokens: Tensor, positions: Tensor, documents: Tensor, labels: Tensor, micro: int) -> None:
        """Forward and backward of all micro-batches of `micro` sequences; every tensor is `[B, S]`."""
        schedule = self._schedule(tokens.shape[0] // micro, micro, tokens.shape[1])
        args = (tokens,) if self.pieces[0] == 0 else ()
        target = labels if self.pieces[-1] == self.total - 1 else None
        more: dict[str, Any] = {"positions_BS": positions, "documents_BS": documents, "labels_BS": labels}
        schedule.step(*args, target=target, return_outputs=False, **more)

    def _schedule(self, count: int, micro: int, seq: int) -> Schedule:
        key, stages = (count, micro, seq), self._stages_of(micro, seq)
        if key not in self._schedules:
            kinds = {
                "1f1b": Schedule1F1B,
                "interleaved": ScheduleInterleaved1F1B,
                "zero_bubble": ScheduleZBVZeroBubble,
            }
            kind = self.meshes.layout.schedule
            what: Any = stages[0] if kind == "1f1b" else stages
            # Each loss is already a share of the whole batch.
            self._schedules[key] = kinds[kind](what, count, loss_fn=lambda out, _: out.sum(), scale_grads=False)
        return self._schedules[key]

    def _stages_of(self, micro: int, seq: int) -> list[PipelineStage]:
        key = (micro, seq)
        if key not in self._stages:
            self._stages, self._schedules = {}, {}  # receive buffers of another shape are not kept
            made = []
            for part, number in zip(self.parts, self.pieces, strict=True):
                length = part.cut.local_length(seq)
                stream = torch.empty(micro, length, part.config.d_model, device="meta", requires_grad=True)
                tokens = torch.empty(micro, seq, dtype=torch.int64, device="meta")
                made.append(
                    PipelineStage(
                        part,
                        number,
                        self.total,
                        self.meshes.world.device,
                        input_args=tokens if part.first else stream,
                        output_args=torch.empty(1, device="meta", requires_grad=True) if part.last else stream,
                        group=self.meshes.pp,
                    )
                )
            self._stages[key] = made
        return self._stages[key]
