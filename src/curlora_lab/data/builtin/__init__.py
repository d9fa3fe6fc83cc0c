"""The built-in world: seeded generators of a small language, its tasks and its plain text; no files, no network."""

from .corpus import documents
from .tasks import paraphrase, sentiment2, sentiment3, topic

__all__ = ["documents", "paraphrase", "sentiment2", "sentiment3", "topic"]
