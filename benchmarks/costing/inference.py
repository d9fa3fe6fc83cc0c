"""Inference: merged against the base, and unmerged generation against the base and LoRA."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from costing.shapes import Shape, build
from costing.timing import Setting, compare, in_turn
from costing.variants import CURLORA, FROZEN, LORA, Variant, share_weights


def measure_inference(shape: Shape, setting: Setting, *, batch: int, length: int, new_tokens: int) -> dict[str, Any]:
    """Time the forward pass and greedy generation, adapters on all linear layers.

    Args:
        shape: The model.
        setting: How to measure.
        batch: Rows in a batch.
        length: Tokens in a row, and in a prompt.
        new_tokens: Tokens to generate.

    Returns:
        `forward` and `generate`, each with times and ratios to the base for `frozen`, `merged` (in place, adapter
        still there), `unloaded` (merged, adapter gone), `curlora` and `lora`.
    """
    models = _models(shape, setting)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, shape.config.vocab_size, (batch, length), generator=generator)
    tokens = tokens.to(setting.device)
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)

    def generate(model: Any) -> None:
        model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)

    result: dict[str, Any] = {"title": shape.title, "batch": batch, "length": length, "new_tokens": new_tokens}
    result["r"] = setting.r
    for name, run in (("forward", forward), ("generate", generate)):
        work = {key: lambda run=run, model=model: run(model) for key, model in models.items()}
        result[name] = compare(in_turn(work, setting), base=FROZEN.name, rival=LORA.name)
    return result


def _models(shape: Shape, setting: Setting) -> dict[str, nn.Module]:
    base = build(shape, device=setting.device, dtype=setting.dtype)

    def adapted(variant: Variant, model: nn.Module) -> Any:
        return variant.attach(model, shape.targets("all"), setting.r).eval()

    merged, unloaded = (adapted(CURLORA, copy.deepcopy(base)) for _ in range(2))  # merging writes into the weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged.merge_adapter()
        unloaded = unloaded.merge_and_unload()
    return {
        FROZEN.name: base.eval(),
        "merged": merged,
        "unloaded": unloaded,
        CURLORA.name: adapted(CURLORA, share_weights(base)),
        LORA.name: adapted(LORA, share_weights(base)),
    }
