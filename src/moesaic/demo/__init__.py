"""A tour of the house: `moesaic demo`."""

from moesaic.demo.tour import run_demo

__all__ = ["run_demo"]
