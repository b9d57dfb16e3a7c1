"""Modules that compute with this rank's pieces of their weights, unchanged in all else.

A distributed weight stays in the module under its name (optimizer and checkpoint see it whole), and reading it as an
attribute gives the local piece. Its gradient comes back as the same kind of piece.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from moesaic.parallel.private import local

View = Callable[[Tensor], Tensor]


class LocalWeights(nn.Module):
    """Mixed into a module's class: attributes that are weights give their local piece, seen through a view."""

    views: Mapping[str, View]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if not isinstance(value, nn.Parameter | Tensor):
            return value
        piece = local(value)
        view = self.__dict__["views"].get(name)
        return piece if view is None else view(piece)


def use_local(module: nn.Module, views: Mapping[str, View] | None = None) -> None:
    """Let `module` compute with local pieces; `views` turn them into what its forward expects."""
    module.__class__ = _localised(type(module))
    module.__dict__["views"] = dict(views or {})


@cache
def _localised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Local{kind.__name__}", (LocalWeights, kind), {})
