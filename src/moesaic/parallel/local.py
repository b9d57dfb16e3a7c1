"""Modules that compute with this rank's pieces of their weights, unchanged in all else.

A distributed weight stays in the module under its name (optimizer, FSDP and checkpoint see it whole); within the
module's forward, reading it as an attribute gives the local piece. Its gradient comes back as the same kind of piece.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from moesaic.parallel.private import local

View = Callable[[Tensor], Tensor]


class LocalWeights(nn.Module):
    """Mixed into a module's class: in forward, attributes that are weights give their local piece through a view."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        self.__dict__["computing"] = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.__dict__["computing"] = False

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if not self.__dict__["computing"] or not isinstance(value, Tensor):
            return value
        piece = local(value)
        view = self.__dict__["views"].get(name)
        return piece if view is None else view(piece)


def use_local(module: nn.Module, views: Mapping[str, View] | None = None) -> None:
    """Let `module` compute with local pieces; `views` turn them into what its forward expects."""
    module.__class__ = _localised(type(module))  # type: ignore[arg-type]
    module.__dict__ |= {"views": dict(views or {}), "computing": False}


@cache
def _localised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Local{kind.__name__}", (LocalWeights, kind), {})
