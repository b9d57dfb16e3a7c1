"""How accurate is the planner? Scores of `moesaic plan validate`, kept so that a test sees them worsen.

python benchmarks/plan_validation.py            # two seconds; writes results/plan_validation.json
"""

import platform
import time

from machine import keep

from moesaic.plan.validate import validate, validation_sheet
from moesaic.train.machine import cpu_model


def main() -> None:
    """Score the shipped measurements and keep the result."""
    begin = time.perf_counter()
    scores = validation_sheet(validate()).to_json()
    seconds = time.perf_counter() - begin
    machine = {"cpu": cpu_model(), "python": platform.python_version()}
    print(keep("plan_validation", {"machine": machine, "seconds": round(seconds, 2), **scores}))


if __name__ == "__main__":
    main()
