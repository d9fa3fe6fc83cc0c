"""Optimisers and learning-rate schedules of a stage."""

from curlora_lab.optim.build import parameter_groups, stage_optimizer
from curlora_lab.optim.schedule import schedule

__all__ = ["parameter_groups", "schedule", "stage_optimizer"]
