"""Ways to start an adapter that PEFT does not have."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from curlora_lab.adapters.start import start_adapter

R, SCALE = 3, 0.5
LAYERS = {
    "wide": lambda: nn.Linear(14, 9),
    "tall": lambda: nn.Linear(8, 13),
    "square conv1d": lambda: Conv1D(10, 10),
    "conv1d": lambda: Conv1D(12, 7),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_milora_starts_from_the_smallest_singular_triplets_split_evenly(kind: str) -> None:
    """s B A is the sum of the r smallest σ u vᵀ and the base weight the rest; BᵀB = A Aᵀ = Σ_r / s (arXiv 2406.09044)."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    nn.init.normal_(layer.weight)
    transposed = isinstance(layer, Conv1D)
    W = (layer.weight.T if transposed else layer.weight).detach().double()  # (out, in)
    config = LoraConfig(r=R, lora_alpha=SCALE * R, target_modules=["0"], fan_in_fan_out=transposed)
    model = get_peft_model(nn.Sequential(layer), config)
    start_adapter(model, "milora", seed=0)
    adapted = model.base_model.model[0]
    A, B = (getattr(adapted, f"lora_{factor}")["default"].weight.detach().double() for factor in "AB")
    weight = adapted.get_base_layer().weight
    rest = (weight.T if transposed else weight).detach().double()
    sigma = torch.linalg.svdvals(W)  # largest first
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(torch.linalg.svdvals(SCALE * B @ A)[:R], sigma[-R:], **close)
    torch.testing.assert_close(torch.linalg.svdvals(rest)[:-R], sigma[:-R], **close)
    torch.testing.assert_close(rest + SCALE * B @ A, W, **close)
    torch.testing.assert_close(B.T @ B, torch.diag(sigma[-R:] / SCALE), **close)
    torch.testing.assert_close(A @ A.T, torch.diag(sigma[-R:] / SCALE), **close)
