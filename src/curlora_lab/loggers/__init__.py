"""Loggers that outlive the run folder: Weights & Biases."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curlora_lab.loggers.wandb_run import WandbRunLogger

__all__ = ["WandbRunLogger"]


def __getattr__(name: str) -> Any:
    """Import Weights & Biases only for those who log to it: that takes most of a second."""
    if name == "WandbRunLogger":
        from curlora_lab.loggers.wandb_run import WandbRunLogger

        return WandbRunLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
