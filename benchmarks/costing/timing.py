"""Time what is to be compared in turn, and say how sure the ratios are."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """What all comparisons of one run share.

    Args:
        r: Rank.
        rounds: Rounds that count.
        warmup: Rounds before them.
        device: Where to run.
        dtype: Dtype of the backbone.
    """

    r: int
    rounds: int
    warmup: int
    device: torch.device
    dtype: torch.dtype


def in_turn(work: Mapping[str, Callable[[], object]], setting: Setting) -> dict[str, NDArray[np.float64]]:
    """Run every piece of work once a round, in an order drawn anew for each round.

    Whatever else the machine does slows neighbours alike, so that ratios within a round are steadier than times.

    Args:
        work: What to run, by name.
        setting: Number of rounds, and the device, which is waited for before and after each piece.

    Returns:
        Seconds by name, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order, draw = list(work), random.Random(0)
    for round_ in range(setting.warmup + setting.rounds):
        draw.shuffle(order)
        gc.collect()
        gc.disable()
        try:
            for name in order:
                taken = _timed(work[name], setting.device)
                if round_ >= setting.warmup:
                    seconds[name].append(taken)
        finally:
            gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(seconds: Mapping[str, NDArray[np.float64]], *, base: str, rival: str | None = None) -> dict[str, Any]:
    """Medians, spreads, and ratios to the base of the same round.

    Args:
        seconds: From `in_turn`.
        base: Name of the piece that the others are divided by.
        rival: Name of the piece whose overhead the others' are divided by; None leaves that out.

    Returns:
        For each name `median_s`, `quartiles_s`, `times_base` (median of the paired ratios, with its interval) and
        `share_of_rival` (overhead over the base divided by that of the rival, with its interval).
    """
    ratios = {name: values / seconds[base] for name, values in seconds.items()}
    picks = np.random.default_rng(0).integers(len(seconds[base]), size=(RESAMPLES, len(seconds[base])))
    drawn = {name: np.median(values[picks], axis=1) for name, values in ratios.items()}
    result: dict[str, Any] = {}
    for name, values in seconds.items():
        entry: dict[str, Any] = {
            "median_s": float(np.median(values)),
            "quartiles_s": [float(value) for value in np.quantile(values, (0.25, 0.75))],
            "times_base": _estimate(float(np.median(ratios[name])), drawn[name]),
        }
        if rival is not None and name not in (base, rival):
            overhead = float(np.median(ratios[rival])) - 1
            share = (float(np.median(ratios[name])) - 1) / overhead if overhead > 0 else float("nan")
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = np.where(drawn[rival] > 1, (drawn[name] - 1) / (drawn[rival] - 1), np.nan)
            if np.isfinite(shares).mean() > CONFIDENCE:
                entry["share_of_rival"] = _estimate(share, shares[np.isfinite(shares)])
        result[name] = entry
    return result


def paired(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> dict[str, Any]:
    """Median of the ratios within a round, with its interval."""
    ratios = numerator / denominator
    picks = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    return _estimate(float(np.median(ratios)), np.median(ratios[picks], axis=1))


def _estimate(value: float, drawn: NDArray[np.float64]) -> dict[str, Any]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return {"value": value, "interval": [float(low), float(high)]}
