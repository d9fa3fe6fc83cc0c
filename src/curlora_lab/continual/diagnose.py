"""What an adapter can express of a task, measured before it learns it: ``diagnostics.json`` of a stage."""

import logging
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from curlora_lab.adapters.diagnostics import diagnose_model, gradient_energy
from curlora_lab.backbone import Backbone
from curlora_lab.continual.joint import JointTask
from curlora_lab.data.loading import make_loader
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import position_seed

logger = logging.getLogger(__name__)


def diagnose(backbone: Backbone, task: TaskModule, *, stage: int, batches: int) -> dict[str, Any]:
    """Quality of each basis, and the share of the task's gradient that it lets through.

    Nothing that trains is changed: gradients are dropped, dropout is off, and chance is drawn apart.

    Args:
        backbone: The backbone as it is when the stage begins, on the device where it is evaluated.
        task: The task that the stage trains.
        stage: The stage, counted from 1; where it begins with an untrained adapter the bases are measured too.
        batches: Training batches, the first of the stage, over which the gradient is summed.

    Returns:
        ``gradient_energy`` and, in stage 1, ``basis``: by module, see :mod:`curlora_lab.adapters.diagnostics`; both empty for an
        adapter without frozen factors, with a ``reason``.
    """
    if batches < 1:
        return {"gradient_energy": {}, "reason": "gradient_batches=0"}
    if isinstance(task, JointTask):
        return {"gradient_energy": {}, "reason": "a stage of several tasks has no one gradient"}
    plan = task.training_plan
    loader = make_loader(
        task.data.rows("train"), batch_size=plan.batch_size, seed=plan.seed, stage=stage, shuffle=plan.shuffle
    )
    device = next(backbone.parameters()).device
    first = [{key: value.to(device) for key, value in batch.items()} for batch in islice(loader, batches)]
    try:
        with torch.random.fork_rng(), evaluating(backbone):
            torch.manual_seed(position_seed(plan.seed, "diagnose", stage))
            energy = gradient_energy(backbone.model, first, lambda _, batch: task.batch_loss(dict(batch)))
            basis = diagnose_model(backbone.model) if stage == 1 else {}
    except (
        RuntimeError
    ) as error:  # too little memory, numbers that are not finite: training says what is wrong, if it is
        reason = str(error).splitlines()[0]
        logger.warning("Stage %d is not diagnosed: %s. gradient_batches=0 leaves that out.", stage, reason)
        return {"gradient_energy": {}, "reason": reason}
    finally:
        task.zero_grad(set_to_none=True)
    found: dict[str, Any] = {"gradient_energy": {name: asdict(one) for name, one in energy.items()}}
    if basis:
        found["basis"] = {name: _finite(asdict(one)) for name, one in basis.items()}
    if not energy:
        found["reason"] = "the adapter has no frozen factors whose span could be measured"
    return found


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: a basis without full rank has no condition number."""
    return {
        key: None if isinstance(value, float) and abs(value) == float("inf") else value for key, value in values.items()
    }
