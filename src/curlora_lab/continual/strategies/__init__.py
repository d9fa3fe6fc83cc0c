"""What is done against forgetting. A strategy is one class with the hooks it needs."""

from curlora_lab.continual.strategies.agem import Agem
from curlora_lab.continual.strategies.anchor import Anchor
from curlora_lab.continual.strategies.base import Strategy
from curlora_lab.continual.strategies.derpp import DarkReplay
from curlora_lab.continual.strategies.ewc import Ewc
from curlora_lab.continual.strategies.generic_text import GenericText
from curlora_lab.continual.strategies.lwf import Lwf
from curlora_lab.continual.strategies.mas import Mas
from curlora_lab.continual.strategies.nlora import NLora
from curlora_lab.continual.strategies.olora import OLora
from curlora_lab.continual.strategies.per_task import PerTaskAdapters
from curlora_lab.continual.strategies.replay import Replay

__all__ = [
    "Agem",
    "Anchor",
    "DarkReplay",
    "Ewc",
    "GenericText",
    "Lwf",
    "Mas",
    "NLora",
    "OLora",
    "PerTaskAdapters",
    "Replay",
    "Strategy",
]
