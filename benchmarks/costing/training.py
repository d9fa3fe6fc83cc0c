"""One training step: its time, what it keeps for the backward pass, and its peak memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from costing.machine import load
from costing.shapes import Shape, build
from costing.timing import Setting, compare, in_turn, paired
from costing.variants import CURLORA, FROZEN, LORA, PUBLISHED, Variant, attach, trained

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One training comparison.

    Args:
        shape: The model.
        which: Targets, "attention" or "all".
        batch: Rows in a batch.
        length: Tokens in a row.
    """

    shape: Shape
    which: str
    batch: int
    length: int


def measure_training(case: Case, variants: Sequence[Variant], setting: Setting) -> dict[str, Any]:
    """Compare the training steps of variants on one model, one choice of targets and one batch.

    Args:
        case: What to train.
        variants: What to compare; the frozen backbone, LoRA and CURLoRA at least.
        setting: How to measure.

    Returns:
        Times and ratios, bytes kept by adapted layers, peak memory and trained parameters, for each variant.
    """
    shape, device, load_before = case.shape, setting.device, load()
    targets = shape.targets(case.which)
    base = build(shape, device=device, dtype=setting.dtype)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, shape.config.vocab_size, (case.batch, case.length), generator=generator).to(device)
    models = {variant.name: attach(variant, base, targets, setting.r) for variant in variants}
    steps = {name: make_step(model, tokens) for name, model in models.items()}
    seconds = in_turn(steps, setting)
    result = compare(seconds, base=FROZEN.name, rival=LORA.name)
    for name, model in models.items():
        result[name]["trained"] = sum(parameter.numel() for parameter in trained(model))
        result[name]["saved_bytes"] = saved_bytes(model, targets, steps[name])
        result[name]["peak_bytes"] = peak_bytes(steps[name], device)
    entry = {
        "shape": shape.name,
        "title": shape.title,
        "targets": shape.title_of(case.which),
        "batch": case.batch,
        "length": case.length,
        "r": setting.r,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "rounds": setting.rounds,
        "load": load_before,
        "variants": result,
    }
    if PUBLISHED.name in seconds:
        entry["over_published"] = paired(seconds[CURLORA.name], seconds[PUBLISHED.name])
    return entry


def make_step(model: nn.Module, tokens: Tensor) -> Step:
    """Forward, backward and, where anything is trained, a step of AdamW."""
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4) if parameters else None

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def saved_bytes(model: nn.Module, targets: Sequence[str], step: Step) -> int:
    """Bytes that the adapted layers keep for the backward pass, beyond parameters and buffers; shared ones once.

    Args:
        model: The model.
        targets: Names of the adapted modules.
        step: One training step.
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    layers = [module for name, module in model.named_modules() if _is_target(name, targets)]
    with _hooked(layers, pack):
        step()
    return sum(kept.values())


def _is_target(name: str, targets: Sequence[str]) -> bool:
    return name.rsplit(".", 1)[-1] in targets


@contextmanager
def _hooked(layers: Sequence[nn.Module], pack: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run the forward of some modules under saved-tensor hooks."""
    plain = {layer: layer.forward for layer in layers}

    def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return forward(*args, **kwargs)

        return run

    try:
        for layer, forward in plain.items():
            layer.forward = watched(forward)
        yield
    finally:
        for layer in layers:
            del layer.forward


def peak_bytes(step: Step, device: torch.device) -> int:
    """Most bytes that one step holds at a time beyond what was there before it.

    On a GPU the allocator counts; on the CPU the profiler's record of every allocation does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    held = peak = 0
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
