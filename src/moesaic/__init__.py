"""Plan, train and serve a sparse mixture-of-experts language model.

    moesaic.load("runs/pocket/model").chat([{"role": "user", "content": "Hello!"}]).text
    moesaic.train(moesaic.read_recipe("pocket"), Path("runs/pocket"))
    moesaic.plan.train_plan("gpt4", "a100-80", 24_960)["days"]

Everything is imported when it is first used, so that `import moesaic` needs neither torch nor time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.errors import MoesaicError as MoesaicError
    from moesaic.recipe import Recipe as Recipe
    from moesaic.recipe import read_recipe as read_recipe
    from moesaic.serve.local import LocalModel as LocalModel
    from moesaic.serve.local import Reply as Reply
    from moesaic.serve.local import load as load
    from moesaic.train.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "LocalModel": "moesaic.serve.local",
    "MoesaicError": "moesaic.errors",
    "Recipe": "moesaic.recipe",
    "Reply": "moesaic.serve.local",
    "load": "moesaic.serve.local",
    "read_recipe": "moesaic.recipe",
}
_ROOMS = ("plan", "train")  # train can be called, see its __init__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"moesaic.{name}")
    raise AttributeError(f"module 'moesaic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
