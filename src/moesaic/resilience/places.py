"""Reading a Python stack: does a rank work at this place, or wait for other ranks?"""

# Innermost Python frames of a rank that waits: whole files, or functions of files that also compute.
WAITING = frozenset(
    {
        ("distributed_c10d.py", ""),
        ("_functional_collectives.py", ""),
        ("collectives.py", ""),
        ("schedules.py", "_wait_batch_p2p"),
        ("_fsdp_collectives.py", ""),
        ("_fsdp_param_group.py", "wait_for_unshard"),
        ("_fsdp_param_group.py", "_wait_for_post_backward"),
    }
)

BRIDGES = frozenset({"_ops.py", "_tensor.py", "autograd.py", "function.py"})
"""Files through which torch calls an operator: the frame that asked for it says more."""


def waits(place: str) -> bool:
    """Whether a rank at this innermost frame ("file.py:12 function") waits for other ranks."""
    file, _, rest = place.partition(":")
    return (file, rest.partition(" ")[2]) in WAITING or (file, "") in WAITING
