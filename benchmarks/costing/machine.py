"""What the figures were measured on."""

import os
import platform
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import curlora_lab


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads, versions, and the load at the start."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "load": load(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "curlora_lab": curlora_lab.__version__,
    }


def load() -> float | None:
    """Processes that wanted to run over the last minute; above the number of cores, times are not to be trusted."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
