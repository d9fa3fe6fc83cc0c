"""A trained adapter in a form that needs nothing of this package: a LoRA folder, or a model with the update merged in.

What is written is read back by plain PEFT or transformers and compared with the original on a batch before a function
here returns.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from curlora_lab.adapters.attach import save_adapter
from curlora_lab.adapters.config import CurLoraConfig
from curlora_lab.adapters.export import to_lora
from curlora_lab.adapters.several import curlora_sum, write_lora_sum
from curlora_lab.adapters.start import CHANGES_BASE, STARTED
from curlora_lab.backbone import Backbone

#: Largest difference of outputs to the original, relative to the largest output: sums run in another order.
TOLERANCE = 1e-5

#: Ways to start LoRA that take what the factors start from out of the base weight.
STARTS_IN_BASE = ("pissa", "olora", "corda", "lora_ga")

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and how it compares.

    Args:
        error: ``max|y' - y| / max|y|`` of the outputs on a batch, y from the original.
        how: The way it was made, in a few words.
    """

    error: float
    how: str


def probe_batch(backbone: Backbone, *, rows: int = 4, length: int = 48, seed: int = 0) -> Inputs:
    """Random texts of ordinary tokens and of several lengths, to compare models on.

    Args:
        backbone: Whose tokens.
        rows: Number of texts.
        length: Tokens of the longest one.
        seed: Seed of the draw.

    Returns:
        ``input_ids`` and ``attention_mask``, each (rows, length).
    """
    length = min(length, backbone.context)
    special = set(backbone.tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(backbone.tokenizer)) if token not in special])
    drawn = torch.randint(len(ordinary), (rows, length), generator=torch.Generator().manual_seed(seed))
    lengths = length - torch.arange(rows) * (length // (2 * rows))
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ordinary[drawn].masked_fill(mask == 0, int(backbone.tokenizer.pad_token_id))
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(model: nn.Module, batch: Inputs) -> Tensor:
    """Logits of a causal model, last hidden states of an encoder, at the real tokens: (tokens, width), float32, on the CPU."""
    device = next(model.parameters()).device
    found = model.eval()(**{name: tensor.to(device) for name, tensor in batch.items()})
    values = found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state
    return values.float().cpu()[batch["attention_mask"].bool()]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``max|found - expected| / max|expected|``."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def write_lora(
    backbone: Backbone, folder: Path, *, base: Callable[[], nn.Module], dtype: torch.dtype, allow_lossy: bool = False
) -> Written:
    """Write the adapter as a LoRA adapter for the untouched base model.

    CURLoRA: in closed form, see :func:`to_lora`. LoRA and rsLoRA: as they are; several that are active at once as one, of the
    sum of their ranks. LoRA that started by changing the base
    weight (PiSSA and kin): PEFT's conversion ``B A - B0 A0`` at twice the rank.

    Args:
        backbone: A backbone with the adapter.
        folder: An empty folder to write into.
        base: Loads the untouched base model anew.
        dtype: Dtype of the factors.
        allow_lossy: Accept a dtype that rounds them.

    Returns:
        How it was made and how it compares.

    Raises:
        ValueError: The adapter has no lossless LoRA form, what was written does not give the original's outputs, or the dtype
            rounds.
    """
    _refuse_no_lora(backbone.model)
    model: Any = backbone.model
    batch = probe_batch(backbone)
    expected = outputs(model, batch)
    config: PeftConfig = model.peft_config[model.active_adapter]
    if isinstance(config, CurLoraConfig):
        to_lora(model, folder, curlora_sum(backbone), dtype=dtype, allow_lossy=allow_lossy)
        how = "closed form: A = R, B = alpha · C U"
    elif starts_in_base(config):
        _convert(model, folder, base())
        how = f"PEFT's conversion B A − B0 A0 of {config.init_lora_weights}, at twice the rank"
    elif len(model.peft_config) > 1:
        rank = write_lora_sum(backbone, folder)
        how = f"the factors of {', '.join(model.active_adapters)} side by side, of rank {rank}"
    else:
        save_adapter(backbone, folder)
        how = "the trained factors as they are"
    if not isinstance(config, CurLoraConfig):
        _cast(folder / SAFETENSORS_WEIGHTS_NAME, dtype, allow_lossy=allow_lossy)
    reloaded = PeftModel.from_pretrained(base(), str(folder), torch_device="cpu")
    error = _checked(outputs(reloaded, batch), expected, "the LoRA adapter", allow_lossy)
    return Written(error=error, how=how)


def write_merged(backbone: Backbone, folder: Path, *, dtype: torch.dtype, allow_lossy: bool = False) -> Written:
    """Write the whole model with the update merged into its weights; the backbone is merged and can't be used on.

    Base weights and update are added in float32 (at least) whatever the base's dtype is, then stored in ``dtype``.

    Args:
        backbone: A backbone with an adapter, or one whose weights were trained.
        folder: An empty folder to write into.
        dtype: Dtype of the stored weights.
        allow_lossy: Accept a dtype that rounds them.

    Returns:
        How it was made and how it compares.

    Raises:
        ValueError: The adapter can't be merged, the model is quantised, the dtype rounds, or what was written does not give
            the original's outputs.
    """
    if getattr(backbone.transformers_model, "is_quantized", False):
        raise ValueError(
            "the base model is quantised, and merging into it would round the update; open the run on the unquantised "
            "weights, or export with --to lora."
        )
    batch = probe_batch(backbone)
    exact = torch.promote_types(backbone.transformers_model.dtype, torch.float32)
    model: Any = backbone.model.to(exact)
    expected = outputs(model, batch)
    if isinstance(model, PeftModel):
        name = _kind(model.peft_config[model.active_adapter])
        if not hasattr(model.base_model, "merge_and_unload"):
            raise ValueError(
                f"a {name} adapter adds no matrix to the weights, so it cannot be merged into them; load the adapter folder "
                "of the stage with PEFT instead."
            )
        model = model.merge_and_unload(safe_merge=True)
        how = f"the {name} update added to the weights in {str(exact).removeprefix('torch.')}"
    else:
        how = "the weights as they were trained"
    _refuse_rounding(dict(model.named_parameters()), dtype, allow_lossy=allow_lossy)
    model.to(dtype).save_pretrained(str(folder))
    backbone.tokenizer.save_pretrained(str(folder))
    loader = AutoModelForCausalLM if backbone.is_causal else AutoModel
    reloaded = loader.from_pretrained(str(folder), dtype="auto")
    error = _checked(outputs(reloaded.to(exact), batch), expected, "the merged model", allow_lossy)
    return Written(error=error, how=how)


def starts_in_base(config: PeftConfig) -> bool:
    """Whether the adapter takes its initial factors out of the base weight, so that it does not fit the untouched base."""
    return str(getattr(config, "init_lora_weights", "")).lower().startswith(STARTS_IN_BASE)


def _refuse_no_lora(model: nn.Module) -> None:
    """Say why an adapter has no lossless LoRA form, and what there is instead."""
    instead = "export it with --to merged."
    started = getattr(model, STARTED, None)
    if started in CHANGES_BASE:
        raise ValueError(
            f"{started} changed the base weights before training, so its factors do not fit the untouched base; {instead}"
        )
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"the run has no adapter that could be a LoRA adapter (all weights or none were trained); {instead}"
        )
    config: Any = model.peft_config[model.active_adapter]
    if isinstance(config, CurLoraConfig):
        return
    if type(config) is not LoraConfig:
        raise ValueError(
            f"the update of {_kind(config)} is no product B A of the adapter's rank, so it has no lossless LoRA form; {instead}"
        )
    if config.use_dora:
        raise ValueError(
            f"DoRA rescales each output by a trained magnitude, which no product B A does without loss; {instead} "
            "(PEFT itself loads the run's adapter folder as it is.)"
        )


def _kind(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _convert(model: PeftModel, folder: Path, base: Any) -> None:
    """PEFT's conversion of an adapter that changed the base, from the factors that it started with."""
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    config.inference_mode = False
    with tempfile.TemporaryDirectory() as scratch:
        initial = Path(scratch) / "initial"
        get_peft_model(base, config).save_pretrained(str(initial), save_embedding_layers=False)
        model.save_pretrained(
            str(folder), path_initial_model_for_weight_conversion=str(initial), save_embedding_layers=False
        )


def _cast(path: Path, dtype: torch.dtype, *, allow_lossy: bool) -> None:
    tensors = load_file(path)
    if all(tensor.dtype == dtype for tensor in tensors.values()):
        return
    _refuse_rounding(tensors, dtype, allow_lossy=allow_lossy)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _refuse_rounding(tensors: Mapping[str, Tensor], dtype: torch.dtype, *, allow_lossy: bool) -> None:
    if allow_lossy:
        return
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            raise ValueError(
                f"dtype {str(dtype).removeprefix('torch.')} rounds {name!r}, so the export would lose digits; use float32, "
                "or --allow-lossy if that is meant."
            )


def _checked(found: Tensor, expected: Tensor, what: str, allow_lossy: bool) -> float:
    error = relative_error(found, expected)
    if not allow_lossy and not error <= TOLERANCE:
        raise ValueError(
            f"{what} gives other outputs than the run's model: they differ by {error:.2g} (relative; at most {TOLERANCE:g} "
            "is allowed), so it is not written."
        )
    return error
