"""When the next checkpoint is due: every so many steps, or earlier when failures are frequent and saves cheap."""

from moesaic.plan.goodput import daly
from moesaic.recipe import Checkpoints


class SaveClock:
    """Young/Daly's interval from the measured time of a save (J. T. Daly 2006, eq. 37), for a known rate of failures.

    Without `mtbf_hours` it never asks; `every_steps` holds in any case.
    """

    def __init__(self, settings: Checkpoints) -> None:
        self.mtbf_s = None if settings.mtbf_hours is None else settings.mtbf_hours * 3600
        self.at_step, self.since_s, self.blocked_s = 0, 0.0, 0.0

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self.since_s += seconds

    def saved(self, step: int) -> None:
        """A save of `step` began."""
        self.at_step, self.since_s = step, 0.0

    def measured(self, blocked_s: float) -> None:
        """For so long a save kept training waiting."""
        self.blocked_s = blocked_s

    def due(self, step: int) -> bool:
        """Whether the interval has passed."""
        if self.mtbf_s is None or self.blocked_s <= 0 or step == self.at_step:
            return False
        return self.since_s >= float(daly(self.blocked_s, self.mtbf_s))
