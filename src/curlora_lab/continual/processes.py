"""Which of the processes that train together this one is."""

from lightning.pytorch.utilities import rank_zero_only


def is_main() -> bool:
    """Whether this process writes files and speaks: the first of those that train together, or the only one."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0
