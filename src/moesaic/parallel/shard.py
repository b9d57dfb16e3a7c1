"""ZeRO over replicas through FSDP2: optimizer state and gradients (zero = 1) or weights of each layer too (zero = 3).

With a pipeline zero = 3 saves less: until the last micro-batch torch's stages keep weights whole after a backward pass,
and gradients too. Between steps everything is dealt out.

Dense weights are dealt out over data and context ranks, experts over the replicas of their shard.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part
from moesaic.recipe import Layout


def shards_weights(layout: Layout) -> bool:
    """Whether replicas divide anything among them."""
    return layout.zero > 0 and (layout.dp * layout.cp > 1 or layout.edp > 1)


def apply_sharding(part: Part, meshes: Meshes, expert_dtype: torch.dtype) -> None:
    """Wrap experts, layers and the rest, from the inside out. Does nothing for zero = 0.

    Experts, nearly all of a model, are gathered in `expert_dtype`, and so comes their gradient of one micro-batch.
    Layers hold routers and norms, which stay in fp32.
    """
    layout = meshes.layout
    if not shards_weights(layout) or meshes.dense is None or meshes.experts is None:
        return
    # What torch warns of: nothing here changes what a layer returns in place, and whole weights, gathered at the end of
    # a stage, may take two steps.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    # Micro-batches add up in fp32 in any case.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    of_experts = replace(policy, param_dtype=expert_dtype)
    dense, experts = meshes.dense["fsdp"], meshes.experts["edp"]
    wrapped: list[nn.Module] = []
    # Experts that no other rank holds are left alone: FSDP over one rank would keep a copy of them.
    alone = {p for b in part.blocks if b.router and layout.edp == 1 for p in b.experts.parameters()}
    wrap = partial(fully_shard, ignored_params=alone)
    for block in part.blocks:
        if block.router is not None and layout.edp > 1:
            wrap(block.experts, mesh=experts, mp_policy=of_experts, reshard_after_forward=layout.zero == 3)
            wrapped.append(block.experts)
        wrap(block, mesh=dense, mp_policy=policy, reshard_after_forward=layout.zero == 3)
        wrapped.append(block)
    wrap(part, mesh=dense, mp_policy=policy, reshard_after_forward=False)
    for module in (*wrapped, part):
        assert isinstance(module, FSDPModule)
        # Our objective is a sum over ranks, so gradients are summed and not averaged.
        if layout.reduce == "bf16":
            reduce_in_bf16(module)
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)


def reduce_in_bf16(module: FSDPModule) -> None:
    """Send the gradients of `module` in bf16."""
    reduction: Any = Bf16Reduction()
    module.set_custom_reduce_scatter(reduction)
    module.__dict__["reduction"] = reduction  # for who wants to look at what goes in


class Bf16Reduction:
    """Sums gradients over replicas in bf16. FSDP2's own setting would add up micro-batches in bf16 too."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for inputs and outputs."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        """Sum over ranks, a piece for each; fp32 in and out."""
        narrow = torch.empty_like(output_tensor, dtype=torch.bfloat16)
        dist.reduce_scatter_single(output=narrow, input=input_tensor.bfloat16(), group=group, op=op)
        output_tensor.copy_(narrow)
        return None


def sync_gradients(part: Part, layout: Layout, last: bool) -> None:
    """Before a micro-batch: whether its backward pass ends with a reduction over replicas.

    zero = 1 keeps weights whole until the last one, and reduces once a step; zero = 3 reduces each time. For layouts
    without a pipeline: there torch decides, and for either does what zero = 1 asks for.
    """
    if isinstance(part, FSDPModule):
        part.set_is_last_backward(last)
        part.set_requires_gradient_sync(last or layout.zero == 3)
        part.set_reshard_after_backward(last or layout.zero == 3)
