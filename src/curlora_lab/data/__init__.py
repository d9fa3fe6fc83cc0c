"""Rows from the hub, local folders or generators, checked, tokenised and loaded in a reproducible order."""

from curlora_lab.data.checks import Example
from curlora_lab.data.classification import ClassificationData
from curlora_lab.data.faults import DataError
from curlora_lab.data.language import LanguageModelData
from curlora_lab.data.loading import Batch, PositionSampler
from curlora_lab.data.source import DataSource, Row

__all__ = [
    "Batch",
    "ClassificationData",
    "DataError",
    "DataSource",
    "Example",
    "LanguageModelData",
    "PositionSampler",
    "Row",
]
