"""What such a model costs, where it fits, how long it runs, and whether a claim can be true.

NumPy and the recipe only: no torch, no network. From Python:

    from moesaic.plan import train_plan
    train_plan("gpt4", "a100-80", 24_960, tp=8, pp=15)["days"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.plan.api import failures_plan as failures_plan
    from moesaic.plan.api import fit_plan as fit_plan
    from moesaic.plan.api import params_plan as params_plan
    from moesaic.plan.api import train_plan as train_plan
    from moesaic.plan.api import validate_plan as validate_plan
    from moesaic.plan.audit import audit_plan as audit_plan
    from moesaic.plan.compare import compare_plan as compare_plan
    from moesaic.plan.search_api import search_plan as search_plan
    from moesaic.plan.serving.ask import serve_plan as serve_plan

# No name here is that of a submodule: importing one would put the module in the function's place.
_HOMES = {
    "audit_plan": "moesaic.plan.audit",
    "compare_plan": "moesaic.plan.compare",
    "failures_plan": "moesaic.plan.api",
    "fit_plan": "moesaic.plan.api",
    "params_plan": "moesaic.plan.api",
    "search_plan": "moesaic.plan.search_api",
    "serve_plan": "moesaic.plan.serving.ask",
    "train_plan": "moesaic.plan.api",
    "validate_plan": "moesaic.plan.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moesaic.plan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
