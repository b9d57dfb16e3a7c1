"""Pipeline schedules: bubbles in closed form, orders, simulation, and which micro-batch counts run."""

from moesaic.plan.schedule.closed import held_micro_batches, interleaved_bubble, plain_bubble, step_bubble, zero_bubble
from moesaic.plan.schedule.feasible import (
    Engine,
    Offer,
    advice,
    nearest_schedulable,
    offer,
    schedulable,
    whole_batches,
)
from moesaic.plan.schedule.orders import KINDS, Kind, Op, Orders, in_flight, orders
from moesaic.plan.schedule.simulate import Simulation, UnevenStep, lower_bound, simulate, uneven_step

__all__ = [
    "KINDS",
    "Engine",
    "Kind",
    "Offer",
    "Op",
    "Orders",
    "Simulation",
    "UnevenStep",
    "advice",
    "held_micro_batches",
    "in_flight",
    "interleaved_bubble",
    "lower_bound",
    "nearest_schedulable",
    "offer",
    "orders",
    "plain_bubble",
    "schedulable",
    "simulate",
    "step_bubble",
    "uneven_step",
    "whole_batches",
    "zero_bubble",
]
