"""The built-in world: seeded generators of a small language, its tasks and its plain text; no files, no network."""

from .corpus import documents
from .prompts import instructions
from .reading import questions, similarity, words
from .tasks import paraphrase, sentiment2, sentiment3, topic

__all__ = [
    "documents",
    "instructions",
    "paraphrase",
    "questions",
    "sentiment2",
    "sentiment3",
    "similarity",
    "topic",
    "words",
]
