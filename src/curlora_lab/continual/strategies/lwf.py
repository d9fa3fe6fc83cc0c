"""Learning without forgetting: what the old heads say of the new task's rows is kept as it was before the stage."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from curlora_lab.backbone import Backbone
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.gradients import (
    device_of,
    frozen,
    set_to,
    shared_parameters,
    values_of,
    warn_if_nothing_is_shared,
)
from curlora_lab.probes import PerplexityProbe
from curlora_lab.probes.windows import evaluating
from curlora_lab.tasks import TaskModule
from curlora_lab.tasks.base import Batch
from curlora_lab.tasks.outputs import Outputs, of_tokens, outputs_of, without_labels

LEARNT = "learnt/"


class Lwf(Strategy):
    """Learning without forgetting, which is self-distillation: no row of an old task is needed.

    With the parameters as they were before the stage as teacher, and for each old head k::

        loss = L_t + weight · T² · Σ_k mean over rows of KL(softmax(z_k^teacher / T) ‖ softmax(z_k / T))

    z_k are the old head's logits on the new task's rows (a mean over tokens where it says something of each; for a head that
    predicts a number half the squared difference, without T). T² keeps the size of the gradient when T changes. The paper has
    the cross-entropy, which has the same gradient, and no T²: ``weight = 1 / T²`` here is the paper's λ_o = 1. Old heads are
    stored and get no gradient. The teacher is a copy of the shared parameters, evaluated on each batch anew; tasks on the LM
    head count as one old head together.

    Args:
        weight: λ_o.
        temperature: T.
        language_model: keep the next-token distribution on the new task's text too, from the first stage on.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        Li & Hoiem 2016 (arXiv 1606.09282), equations 1-3; T²: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """

    def __init__(self, *, weight: float = 1.0, temperature: float = 2.0, language_model: bool = False) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"strategy.weight={weight} must be a number from 0.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"strategy.temperature={temperature} must be a positive number.")
        self.weight = weight
        self.temperature = temperature
        self.language_model = language_model
        self._tasks: dict[str, TaskModule] = {}
        self._learnt: list[str] = []
        self._old: list[TaskModule] = []
        self._teacher: dict[str, Tensor] = {}

    def prepare(self, backbone: Backbone, probes: Mapping[str, PerplexityProbe]) -> str:
        """Refuse to keep the language model of an encoder."""
        if self.language_model and not backbone.is_causal:
            raise ValueError(
                f"strategy.language_model=true, but {backbone.name!r} is an encoder without a next-token head; set it to false."
            )
        return ""

    def begin(self, tasks: Sequence[TaskModule], backbone: Backbone) -> None:
        """There are no old heads yet."""
        warn_if_nothing_is_shared(self, backbone)
        self._tasks = {task.name: task for task in tasks}
        self._learnt, self._old, self._teacher = [], [], {}

    def before_stage(self, task: TaskModule, *, stage: int) -> None:
        """Take the model as it is for the teacher, and the tasks learnt so far for the old heads."""
        learnt = [self._tasks[name] for name in self._learnt if name != task.name]
        on_lm_head = [other for other in learnt if other.head is None]
        self._old = [other for other in learnt if other.head is not None] + on_lm_head[:1]
        self._teacher = values_of(shared_parameters(task.backbone)) if self._speakers else {}

    def penalty(self, task: TaskModule, batch: Batch) -> Tensor | None:
        """``weight · T² · Σ_k`` mean over the batch's rows of the KL from the teacher."""
        parameters = shared_parameters(task.backbone)
        if not self._speakers or not parameters:
            return None
        device, rows = device_of(task.backbone), len(batch["input_ids"])
        heads = [old.head for old in self._old if old.head is not None]
        for head in heads:
            head.to(device)  # Lightning moves only the task that is being trained
        text = without_labels(batch)
        with torch.no_grad(), evaluating(task.backbone), set_to(parameters, self._teacher):
            before = self._say(task.backbone, text)
        with frozen(heads):
            now = self._say(task.backbone, text)
        scale = self.temperature**2
        terms = []
        for student, teacher in zip(now, before, strict=True):
            each = student.divergence(teacher, temperature=self.temperature)
            mean = student.row_means(each, batch=rows).mean()
            terms.append(mean if student.is_number else scale * mean)
        # A device's share of the last batch may count less, as in the task's own loss.
        return self.weight * torch.stack(terms).sum() * batch["weight"]

    def after_stage(self, task: TaskModule, *, stage: int) -> None:
        """The task's head is an old one from now on."""
        self._learnt = [*(name for name in self._learnt if name != task.name), task.name]

    def cost(self) -> dict[str, float]:
        """Bytes of the teacher's copy of the shared parameters, in memory during a stage; no rows are kept."""
        return {"stored_rows": 0.0, "stored_bytes": float(sum(value.nbytes for value in self._teacher.values()))}

    def state(self) -> dict[str, Tensor]:
        """Which tasks were learnt, in order. The teacher is the model of the stage before, which is restored with it."""
        return {f"{LEARNT}{name}": torch.tensor([place]) for place, name in enumerate(self._learnt)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ValueError: it is of another strategy, or of tasks that this run does not have.
        """
        names = {key.removeprefix(LEARNT): int(place) for key, place in state.items()}
        unknown = sorted(key for key in state if key.removeprefix(LEARNT) not in self._tasks)
        if unknown:
            raise ValueError(f"the stage holds {', '.join(unknown[:3])}, which LwF does not know in this run.")
        self._learnt = sorted(names, key=names.__getitem__)

    @property
    def _speakers(self) -> int:
        """How many old heads there are to listen to."""
        return len(self._old) + int(self._with_language_model)

    @property
    def _with_language_model(self) -> bool:
        return self.language_model and not any(old.head is None for old in self._old)

    def _say(self, backbone: Backbone, text: Mapping[str, Tensor]) -> list[Outputs]:
        """What every old head says of a batch; the transformer runs once for all that read its hidden states."""
        with _hidden_states_once(backbone):
            said = [outputs_of(old, text) for old in self._old]
        if self._with_language_model:
            logits = backbone.lm_logits(text["input_ids"], text["attention_mask"])[:, :-1]
            said.append(of_tokens(logits, text["attention_mask"][:, 1:] == 1, None))
        return said


@contextmanager
def _hidden_states_once(backbone: Backbone) -> Iterator[None]:
    """Several heads read the same batch: its hidden states are computed for the first and remembered for the others."""
    real = backbone.hidden_states
    found: dict[int, Any] = {}

    def remembered(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if id(input_ids) not in found:
            found[id(input_ids)] = real(input_ids, attention_mask)
        return found[id(input_ids)]

    backbone.__dict__["hidden_states"] = remembered
    try:
        yield
    finally:
        del backbone.__dict__["hidden_states"]
