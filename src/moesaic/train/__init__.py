"""How it learns: loop, optimizer, schedules in tokens, checkpoints, metrics, report."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """This package, which can be called: `moesaic.train(recipe, run)`.

    Importing a subpackage sets an attribute of its name on the parent, so a function `moesaic.train` would
    disappear behind this package at the first import of anything in it.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        """`moesaic.train.run.train`."""
        from moesaic.train.run import train

        return train(*args, **options)


sys.modules[__name__].__class__ = _Room
