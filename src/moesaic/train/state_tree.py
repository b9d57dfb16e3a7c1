"""The state of a run as a tree: tensors apart from all else, each leaf under its dotted path."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def flatten_state(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split a tree into tensors and other leaves by dotted path. Raises TypeError for any other leaf."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for name, leaf in _leaves(state, ""):
        if name in tensors or name in values:
            raise TypeError(f"two leaves of the state share the path {name!r}")
        if isinstance(leaf, torch.Tensor):
            tensors[name] = leaf
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            values[name] = leaf
        else:
            raise TypeError(f"state {name!r} is a {type(leaf).__name__}; store tensors, numbers, strings or None")
    return tensors, values


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
    if items is None:
        yield prefix, node
        return
    for key, child in items:
        yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))


def fill_values(node: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """`node` with its leaves that are not tensors replaced from `values`: in place, but for tuples."""
    if isinstance(node, tuple):
        return tuple(fill_values(child, values, f"{prefix}.{i}") for i, child in enumerate(node))
    if isinstance(node, dict | list):
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            node[key] = fill_values(child, values, f"{prefix}.{key}" if prefix else str(key))
        return node
    return values.get(prefix, node)
