"""Rows from the hub, local folders or generators, checked, tokenised and loaded in a reproducible order."""

from curlora_lab.data.checks import Example
from curlora_lab.data.classification import ClassificationData
from curlora_lab.data.faults import DataError
from curlora_lab.data.instruction import InstructionData
from curlora_lab.data.language import LanguageModelData
from curlora_lab.data.loading import Batch, PositionSampler
from curlora_lab.data.questions import QuestionData
from curlora_lab.data.regression import RegressionData
from curlora_lab.data.source import DataSource, Row
from curlora_lab.data.text_file import TextFile
from curlora_lab.data.tokens import TokenData

__all__ = [
    "Batch",
    "ClassificationData",
    "DataError",
    "DataSource",
    "Example",
    "InstructionData",
    "LanguageModelData",
    "PositionSampler",
    "QuestionData",
    "RegressionData",
    "Row",
    "TextFile",
    "TokenData",
]
