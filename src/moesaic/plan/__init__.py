"""What such a model costs, where it fits, how long it runs, and whether a claim can be true.

NumPy and the recipe only: no torch, no network. From Python:

    from moesaic.plan import train_plan
    train_plan("gpt4", "a100-80", 24_960, tp=8, pp=15)["days"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.plan.api import train_plan as train_plan
    from moesaic.plan.audit import audit as audit
    from moesaic.plan.compare import compare_plan as compare_plan

_HOMES = {
    "audit": "moesaic.plan.audit",
    "compare_plan": "moesaic.plan.compare",
    "train_plan": "moesaic.plan.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moesaic.plan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
