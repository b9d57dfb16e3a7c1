"""The one fastest layout of a number of devices: what `plan search` puts first, for the verbs that need no more."""

from moesaic.plan.choice import Choice, choices
from moesaic.plan.device import Device
from moesaic.plan.estimate import estimate
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.job import Job
from moesaic.plan.search import search
from moesaic.plan.shape import Shape
from moesaic.plan.space import Space
from moesaic.plan.stack import Stack


def fastest(
    shape: Shape, job: Job, device: Device, stack: Stack, gpus: int, space: Space | None = None
) -> Choice | None:
    """The layout of fewest days among all that fit; where none fits the smallest, None where none runs."""
    found = search(shape, job, device, stack, gpus, space)
    if len(found.found):
        best = found.found.best("days", 1)
        return choices(shape, job, device, stack, best.layouts, best.gpus, best.goodput)[0]
    if found.smallest is None:
        return None
    small = estimate(shape, job, device, stack, found.smallest[1])
    return Choice(small, gpus, outcome(shape.total_parameters, small.devices, Faults()).goodput)
