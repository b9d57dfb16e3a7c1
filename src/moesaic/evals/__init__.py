"""How good a model is: bits per byte and loss by position."""

from moesaic.evals.bits import BitsPerByte, bits_per_byte, loss_by_position

__all__ = ["BitsPerByte", "bits_per_byte", "loss_by_position"]
