"""Sweeps: every job of a Hydra multirun leaves a file that says how it went, and the end shows all of them."""

from curlora_lab.sweeps.isolation import perform
from curlora_lab.sweeps.jobs import Entered, Value
from curlora_lab.sweeps.session import SweepCallback, check_plugins, sweeping

__all__ = ["Entered", "SweepCallback", "Value", "check_plugins", "perform", "sweeping"]
