"""Loggers that outlive the run folder: Weights & Biases."""

from curlora_lab.loggers.wandb_run import WandbRunLogger

__all__ = ["WandbRunLogger"]
