"""Continual fine-tuning of language models with small adapters, measured honestly."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("curlora-lab")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
