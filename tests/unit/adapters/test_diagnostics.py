import math

import pytest
import torch
from peft import get_peft_model

from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.basis import BASES, BasisOptions, choose_basis
from curlora_lab.adapters.diagnostics import (
    captured_energy,
    diagnose_basis,
    diagnose_model,
    gradient_energy,
    kl_to_uniform,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def diagnose(W, basis, **options):
    options = BasisOptions(**({"r": 3} | options))
    chosen = choose_basis(W, basis=basis, options=options, generator=generator())
    return diagnose_basis(W, chosen.C, chosen.R, basis=basis, options=options, generator=generator())


def test_reconstruction_error_against_pseudo_inverses():
    W = torch.randn(9, 7, generator=generator()).double()
    for basis in BASES:
        chosen = choose_basis(W, basis=basis, options=BasisOptions(r=3), generator=generator())
        C, R = chosen.C, chosen.R
        expected = (W - C @ torch.linalg.pinv(C) @ W @ torch.linalg.pinv(R) @ R).norm() / W.norm()
        assert diagnose(W, basis).reconstruction_error == pytest.approx(float(expected), abs=1e-6)


def test_svd_top_reconstructs_best_and_low_norms_worst():
    W = torch.randn(40, 30, generator=generator()) * torch.logspace(0, -2, 30)
    errors = {basis: diagnose(W, basis).reconstruction_error for basis in ("svd_top", "pivoted_qr", "lowest_norm")}
    assert errors["svd_top"] < errors["pivoted_qr"] < errors["lowest_norm"]
    assert errors["lowest_norm"] > 0.98


def test_a_matrix_of_low_rank_is_reconstructed_by_its_own_columns_and_rows():
    W = (torch.randn(9, 3, generator=generator()) @ torch.randn(3, 7, generator=generator(1))).double()
    assert diagnose(W, "uniform").reconstruction_error < 1e-6


def test_kl_to_uniform_by_hand():
    assert kl_to_uniform(torch.tensor([0.25] * 4)) == 0
    assert kl_to_uniform(torch.tensor([1.0, 0.0])) == pytest.approx(math.log(2))


def test_the_absolute_floor_hides_the_claimed_mechanism():
    """The published distribution is nearly uniform on a wide layer whose norms spread; the paper's formula is not."""
    W = torch.randn(32, 4096, generator=generator()) * torch.randn(4096, generator=generator(1)).mul(0.5).exp()
    published = diagnose(W, "inverse_norm", floor_absolute=0.001, replacement=True)
    paper = diagnose(W, "inverse_norm")
    assert published.column_norm_spread == paper.column_norm_spread > 0.5
    assert published.column_kl < 0.1 * paper.column_kl
    assert diagnose(W, "uniform").column_kl == 0
    assert diagnose(W, "deim").column_kl is None


def test_conditioning():
    W = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    found = diagnose(W, "highest_norm")
    assert found.column_condition == found.row_condition == pytest.approx(4)
    assert diagnose(torch.zeros(4, 4), "uniform").column_condition == math.inf


def test_captured_energy_of_known_subspaces():
    G = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    C, R = torch.eye(3)[:, :1], torch.eye(3)[:1]
    energy = captured_energy(G, C, R)
    assert energy.captured == energy.ceiling == pytest.approx(9 / 14)
    assert energy.gradient_norm == pytest.approx(14**0.5)
    assert captured_energy(G, torch.eye(3)[:, 1:2], R).captured == 0
    assert captured_energy(torch.zeros(3, 3), C, R).captured == 0


def test_captured_energy_of_random_selection_is_the_share_of_dimensions():
    G = torch.randn(60, 40, generator=generator())
    values = []
    for seed in range(20):
        W = torch.randn(60, 40, generator=generator(seed + 1))
        chosen = choose_basis(W, basis="uniform", options=BasisOptions(r=6), generator=generator(seed))
        values.append(captured_energy(G, chosen.C, chosen.R).captured)
    assert sum(values) / 20 == pytest.approx((6 / 60) * (6 / 40), rel=0.25)


def test_every_module_of_a_model_is_diagnosed(case):
    model = get_peft_model(case.build(), case.config())
    found = diagnose_model(model)
    assert len(found) == case.layers
    assert all(0 <= one.reconstruction_error <= 1 for one in found.values())


def test_gradient_energy_sees_the_gradient_of_the_effective_weight(case):
    model = get_peft_model(case.build(), case.config(init_weights=False)).eval()
    batches = [case.batch()]

    def loss(model, batch):
        result = model(**batch)
        return (result if isinstance(result, torch.Tensor) else result.logits).square().sum()

    found = gradient_energy(model, batches, loss, at_once=2)
    plain = model.merge_and_unload()  # the same function with the effective weights as parameters
    plain.requires_grad_(True)
    loss(plain, batches[0]).backward()
    assert len(found) == case.layers
    for name, energy in found.items():
        norm = plain.get_submodule(name).weight.grad.norm()
        assert energy.gradient_norm == pytest.approx(float(norm), rel=1e-3)


def test_gradient_energy_leaves_no_hooks_and_no_gradients(gpt2_case):
    model = get_peft_model(gpt2_case.build(), gpt2_case.config()).eval()
    gradient_energy(model, [gpt2_case.batch()], lambda model, batch: model(**batch).logits.sum())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, CurLoraLinear))
