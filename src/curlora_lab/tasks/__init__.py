"""One LightningModule for each task head."""

from curlora_lab.tasks.base import NonFiniteError, Outcome, TaskModule
from curlora_lab.tasks.instruction import Instruction
from curlora_lab.tasks.label_words import LabelWords
from curlora_lab.tasks.language_modeling import LanguageModeling
from curlora_lab.tasks.question_answering import QuestionAnswering
from curlora_lab.tasks.regression import Regression
from curlora_lab.tasks.sequence_classification import SequenceClassification
from curlora_lab.tasks.token_classification import TokenClassification

__all__ = [
    "Instruction",
    "LabelWords",
    "LanguageModeling",
    "NonFiniteError",
    "Outcome",
    "QuestionAnswering",
    "Regression",
    "SequenceClassification",
    "TaskModule",
    "TokenClassification",
]
