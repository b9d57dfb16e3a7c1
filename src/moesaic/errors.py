"""Every error a user can cause: what was asked, what is wrong, what to change.

The command line prints `str(error)` in one or two lines and exits with 2; a traceback means a bug.
"""


class MoesaicError(Exception):
    """Base of all errors that a user can mend."""

    everywhere = True
    """Of several processes all raise it alike, and the first one tells the user."""


class RecipeError(MoesaicError):
    """A recipe, an override or a layout that cannot be run."""


class DataError(MoesaicError):
    """A source, shard or tokenizer that cannot be read or is not what it claims to be."""


class CheckpointError(MoesaicError):
    """A checkpoint or run folder that cannot be written, read or continued."""


class ModelError(MoesaicError):
    """A model folder or a call of a model (a prompt too long, a missing tensor)."""


class PlanError(MoesaicError):
    """A plan that cannot be: an impossible layout, an unknown device, a number without sense."""


class LayoutError(MoesaicError):
    """Processes that cannot train together: a wrong number, another recipe, a partner that is gone."""


class ServeError(MoesaicError):
    """A request that cannot be answered as it is."""


class OverloadedError(ServeError):
    """A request that could be answered later."""
