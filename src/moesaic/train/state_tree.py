"""The state of a run as a tree of dicts, and its leaves under dotted names."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def flatten_state(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Leaves by dotted name, detached: they share memory with those of `state`.

    Raises TypeError for a leaf that is no tensor, and for two leaves of one name.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, leaf in _leaves(state, ""):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"state {name!r} is a {type(leaf).__name__}; store tensors, and all else in `extra`")
        if name in tensors:
            raise TypeError(f"two leaves of the state share the name {name!r}")
        tensors[name] = leaf.detach()
    return tensors


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield name, node
        return
    for key, child in node.items():
        yield from _leaves(child, f"{name}.{key}" if name else str(key))
