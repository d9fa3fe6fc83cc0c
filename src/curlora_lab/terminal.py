"""What a run says on the screen while it goes on: how much, and whether in a display that stays in place."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from transformers.utils import logging as transformers_logging

from curlora_lab.continual.processes import is_main
from curlora_lab.continual.progress import expected
from curlora_lab.continual.scenarios import StagePlan
from curlora_lab.report.display import Display, Outline, display
from curlora_lab.sweeps.isolation import JOB


def quieten() -> None:
    """Leave the screen to what the lab has to say; libraries still speak up when something is wrong."""
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # it is, by position
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")  # Lightning 2.6
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")  # PEFT 0.21
    if not is_main():
        logging.getLogger("curlora_lab").setLevel(logging.ERROR)


def in_sweep() -> bool:
    """Whether this run is a job of a Hydra multirun, here or in a process of its own."""
    return JOB in os.environ or (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def shown(config: Mapping[str, Any], plans: Sequence[StagePlan]) -> AbstractContextManager[Display]:
    """What shows a run while it goes on.

    Args:
        config: the resolved configuration; ``display`` says how, and ``trainer.enable_progress_bar=false`` asks for plain
            lines too.
        plans: the stages of the run.

    Returns:
        A context in which the display is there.
    """
    mode = config["display"]
    if mode == "auto" and (_side_by_side() or config["trainer"].get("enable_progress_bar") is False):
        mode = "plain"
    return display(mode if is_main() else "quiet", Outline(**expected(plans)))


def _side_by_side() -> bool:
    """Whether other jobs may be writing to the same terminal at the same time."""
    if JOB in os.environ:
        return True
    return in_sweep() and not str(HydraConfig.get().launcher.get("_target_")).endswith("BasicLauncher")
