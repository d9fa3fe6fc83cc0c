"""One LightningModule for each task head."""

from curlora_lab.tasks.base import NonFiniteError, Outcome, TaskModule
from curlora_lab.tasks.language_modeling import LanguageModeling
from curlora_lab.tasks.sequence_classification import SequenceClassification

__all__ = ["LanguageModeling", "NonFiniteError", "Outcome", "SequenceClassification", "TaskModule"]
