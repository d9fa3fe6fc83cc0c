"""What is done against forgetting. A strategy is one class with the hooks it needs."""

from curlora_lab.continual.strategies.base import Strategy

__all__ = ["Strategy"]
