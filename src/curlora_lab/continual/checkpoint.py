"""Checkpoints inside a stage on disk: ``checkpoints/step_N/`` of a run folder, whole or absent, two kept, no pickle.

What a checkpoint holds is :mod:`curlora_lab.continual.resume`'s affair; here it is tensors and JSON.
"""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from curlora_lab.continual.files import read_manifest, replacing, write_manifest
from curlora_lab.continual.tensors import load_tensors, save_tensors, size_of
from curlora_lab.tasks.finite import first_nonfinite, first_overflow

logger = logging.getLogger(__name__)

FORMAT = 1
STATE, TENSORS = "state.json", "tensors.safetensors"

#: Tensors below these names must be finite; what a callback keeps (a best score that starts at infinity) need not be.
MUST_BE_FINITE = ("parameters/", "heads/", "optimizer/")

#: Below this one minus infinity may stand: the logit of a class that is ruled out.
MAY_RULE_OUT = "strategy/"


@dataclass(frozen=True)
class CheckpointPlan:
    """When a running stage writes checkpoints; ``checkpoint`` of the configuration. It does not change any number.

    Args:
        every_seconds: at the first optimiser step after so many seconds; ``None``: not by time.
        every_steps: after so many optimiser steps; ``None``: not by steps.
        every_epochs: after so many epochs, once the rows for choosing are scored; ``None``: not by epochs.

    Raises:
        ValueError: a number is not positive.
    """

    every_seconds: float | None = 60.0
    every_steps: int | None = None
    every_epochs: int | None = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"checkpoint.{name}={value} must be positive, or null for never.")


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a stage.

    Args:
        key: identity of the stage.
        stage: its position.
        step: optimiser steps done.
        trained: whether training has ended, so that only scoring is left.
        state: what is no tensor.
        tensors: all tensors, by name.
    """

    key: str
    stage: int
    step: int
    trained: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)


class CheckpointFolder:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder's ``checkpoints``.
        kept: how many are kept: the newest, and those to fall back on when it is damaged.
    """

    def __init__(self, folder: Path, *, kept: int = 2) -> None:
        self.folder = folder
        self.kept = kept

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self.folder / f"step_{step}"

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove those that are no longer kept.

        Returns:
            Its folder.

        Raises:
            ValueError: a parameter, the optimiser's or the strategy's state is not finite; nothing is written.
            StorageError: there is no room; earlier checkpoints are unchanged.
        """
        bad = first_nonfinite({k: v for k, v in checkpoint.tensors.items() if k.startswith(MUST_BE_FINITE)})
        bad = bad or first_overflow({k: v for k, v in checkpoint.tensors.items() if k.startswith(MAY_RULE_OUT)})
        if bad is not None:
            raise ValueError(f"{bad!r} is not finite; no checkpoint is made of it.")
        about = {"key": checkpoint.key, "stage": checkpoint.stage, "step": checkpoint.step}
        state = {"format": FORMAT, **about, "trained": checkpoint.trained, "state": checkpoint.state}
        final = self.path(checkpoint.step)
        with replacing(final, size=size_of(checkpoint.tensors)) as folder:
            save_tensors(checkpoint.tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n")  # synced with the manifest
            write_manifest(folder, about)
        steps = self._steps()
        before = [step for step in steps if step < checkpoint.step]
        overtaken = [
            step for step in steps if step > checkpoint.step
        ]  # this process began before them: they were damaged
        for step in [*before[: len(before) - (self.kept - 1)], *overtaken]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        return final

    def latest(self, *, key: str, stage: int) -> Checkpoint | None:
        """The newest checkpoint of a stage that is whole; damaged ones are named and passed over.

        Args:
            key: identity of the stage; checkpoints of any other are not used.
            stage: its position.
        """
        for step in reversed(self._steps()):
            found = self._read(self.path(step), key)
            if found is not None and found.stage == stage:
                return found
        return None

    def clear(self) -> None:
        """Remove all checkpoints: the stage is saved, or begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path, key: str) -> Checkpoint | None:
        """Hashes first; only then is anything of it used."""
        manifest = read_manifest(path)
        if manifest is None:
            return None
        if manifest.get("key") != key:
            logger.warning("%s belongs to another run or stage; it is not used.", path)
            return None
        try:
            if not {STATE, TENSORS} <= set(manifest["files"]):
                raise ValueError(f"its manifest lacks {STATE} or {TENSORS}")
            state = json.loads((path / STATE).read_text())
            if (state["format"], state["key"]) != (FORMAT, key):
                raise ValueError(f"format {state['format']} of {state['key']}, expected format {FORMAT} of {key}")
            tensors = load_tensors(path / TENSORS)
            return Checkpoint(
                key, int(state["stage"]), int(state["step"]), bool(state["trained"]), dict(state["state"]), tensors
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("%s can't be read (%s); it is not used.", path, error)
            return None

    def _steps(self) -> list[int]:
        """Steps that have a folder, in order."""
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdecimal())
