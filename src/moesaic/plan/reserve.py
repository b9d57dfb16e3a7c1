"""Memory that a process takes on its device before it holds a tensor."""

DRIVER_BYTES = 1.0e9
"""CUDA context, libraries, graphs: the low end of the 1 to 2 GB that users of Megatron-LM and vLLM observe."""

COLLECTIVE_BYTES = 0.4e9
"""NCCL buffers: 342 to 392 MiB in aiconfigurator's system files."""

WORKSPACE_BYTES = 0.1e9
"""cuBLAS workspaces of a training run's streams (32 MiB each on an H100), rounded up; serving's, of its one stream, are
among `DRIVER_BYTES`."""
