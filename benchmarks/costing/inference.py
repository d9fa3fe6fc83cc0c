"""Inference: merged against the base, and unmerged generation against the base and LoRA."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from costing.shapes import Shape, build
from costing.timing import compare, in_turn
from costing.variants import CURLORA, FROZEN, LORA, Variant


def measure_inference(
    shape: Shape,
    *,
    batch: int,
    length: int,
    new_tokens: int,
    r: int,
    rounds: int,
    warmup: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Time the forward pass and greedy generation, adapters on all linear layers.

    Args:
        shape: The model.
        batch: Rows in a batch.
        length: Tokens in a row, and in a prompt.
        new_tokens: Tokens to generate.
        r: Rank.
        rounds: Rounds that count.
        warmup: Rounds before them.
        device: Where to run.
        dtype: Dtype of the backbone.

    Returns:
        `forward` and `generate`, each with times and ratios to the base for `frozen`, `merged` (in place, adapter
        still there), `unloaded` (merged, adapter gone), `curlora` and `lora`.
    """
    models = _models(shape, r, device, dtype)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, shape.config.vocab_size, (batch, length), generator=generator).to(device)
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)

    def generate(model: Any) -> None:
        model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)

    result: dict[str, Any] = {"title": shape.title, "batch": batch, "length": length, "new_tokens": new_tokens, "r": r}
    for name, run in (("forward", forward), ("generate", generate)):
        work = {key: lambda run=run, model=model: run(model) for key, model in models.items()}  # type: ignore[misc]
        result[name] = compare(
            in_turn(work, rounds=rounds, warmup=warmup, device=device), base=FROZEN.name, rival=LORA.name
        )
    return result


def _models(shape: Shape, r: int, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    base = build(shape, device=device, dtype=dtype)

    def adapted(variant: Variant) -> Any:
        return variant.attach(copy.deepcopy(base), shape.targets("all"), r).eval()

    merged, unloaded = adapted(CURLORA), adapted(CURLORA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged.merge_adapter()
        unloaded = unloaded.merge_and_unload()
    return {
        FROZEN.name: base.eval(),
        "merged": merged,
        "unloaded": unloaded,
        CURLORA.name: adapted(CURLORA),
        LORA.name: adapted(LORA),
    }

