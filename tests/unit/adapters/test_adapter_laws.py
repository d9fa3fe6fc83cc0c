"""What every adapter YAML promises, checked on a Llama and a GPT-2 (fused and square Conv1D) and on encoders.

Each YAML states four laws, and the suite checks the yes and the no:

- ``exact_init``: attaching changes no output, not by a bit.
- ``disable_is_base``: with the adapter switched off, the model is the one it was, whatever was trained.
- ``mergeable``: the adapter can be merged into the weights, and the outputs stay.
- ``lora_exportable``: a plain LoRA on the untouched base, of the same rank, gives the same outputs.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curlora_lab import config, to_lora
from curlora_lab.adapters import CurLoraLinear
from curlora_lab.adapters.attach import attach, load_adapter, save_adapter, trainable_state
from curlora_lab.backbone import Backbone

ADAPTERS = sorted(path.stem for path in (config.conf_dir() / "adapter").glob("*.yaml"))
LAWS = {"exact_init", "disable_is_base", "mergeable", "lora_exportable"}
RANK = 4

#: Trainable numbers of one matrix with so many outputs and inputs at rank r; ``None``: not counted by matrices.
FORMULAS: dict[str, Callable[[int, int, int], int] | None] = {
    "curlora": lambda out, inputs, r: r * r,
    "curlora_published": lambda out, inputs, r: r * r,
    "curlora_frozen_u": lambda out, inputs, r: 0,
    "lora_xs": lambda out, inputs, r: r * r,
    "lora": lambda out, inputs, r: r * (out + inputs),
    "rslora": lambda out, inputs, r: r * (out + inputs),
    "pissa": lambda out, inputs, r: r * (out + inputs),
    "dora": lambda out, inputs, r: r * (out + inputs) + out,
    "lora_published": lambda out, inputs, r: r * (out + inputs),
    "lora_frozen_a": lambda out, inputs, r: r * out,
    "milora": lambda out, inputs, r: r * (out + inputs),
    "vera": lambda out, inputs, r: r + out,
    "ia3": lambda out, inputs, r: out,
    "osf": lambda out, inputs, r: (out + inputs + 1) * (min(out, inputs) - min(out, inputs) // 2),
    "full": None,
    "none": None,
}
#: What marks a trainable parameter as the adapter's own.
OWN = ("curlora_U", "lora_A", "lora_B", "lora_magnitude_vector", "vera_lambda", "ia3_l", "osf_svd_params")
#: Adapters in which nothing is drawn at random.
NOTHING_DRAWN = ("pissa", "milora", "ia3", "osf", "full", "none")

Make = Callable[..., Backbone]
Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def node(compose: Compose) -> Callable[..., dict[str, Any]]:
    """The adapter's node with root keys changed, as a run would get it."""

    def make(name: str, **root: Any) -> dict[str, Any]:
        cfg = copy.deepcopy(compose(f"adapter={name}"))
        OmegaConf.set_readonly(cfg, False)
        for key, value in {"rank": RANK, **root}.items():
            cfg[key] = value
        return OmegaConf.to_container(cfg.adapter, resolve=True)  # type: ignore[return-value]

    return make


def build(node: dict[str, Any], **changes: Any) -> Any:
    """The adapter itself, which remembers how it is to be started."""
    node = {**node, **changes}
    made = instantiate({k: v for k, v in node.items() if k not in config.ADAPTER_KEYS}, _convert_="all")
    object.__setattr__(made, "_start", node.get("start"))
    return made


#: Methods of PEFT that adapt nn.Linear only.
LINEAR_ONLY = ("osf",)
ON_BOTH = [
    (name, kind) for name in ADAPTERS for kind in ("llama", "gpt2") if kind == "llama" or name not in LINEAR_ONLY
]
ON_THREE = ON_BOTH + [(name, "bert") for name in ADAPTERS]
ON_ALL = ON_THREE + [(name, kind) for name in ADAPTERS for kind in ("roberta", "distilbert")]


def put(backbone: Backbone, adapter: Any, *, seed: int = 0) -> None:
    """Attach as a run does."""
    attach(backbone, adapter, seed=seed, start=adapter._start)


def outputs(backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
    """Logits of a decoder, features of an encoder, at real positions."""
    with torch.no_grad():
        if not backbone.is_causal:
            return backbone.features(**batch)
        return backbone.lm_logits(**batch)[batch["attention_mask"].bool()]


def disturb(backbone: Backbone, seed: int = 0) -> None:
    """Give every trainable parameter another value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in trainable_state(backbone).values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).to(tensor))


def adapted(make_backbone: Make, kind: str, adapter: Any, *, seed: int = 0, **more: Any) -> Backbone:
    backbone = make_backbone(kind, **more)
    put(backbone, adapter, seed=seed)
    return backbone


@pytest.mark.parametrize("name", LINEAR_ONLY)
def test_a_method_that_would_adapt_nothing_is_refused(name: str, node: Any, make_backbone: Make) -> None:
    """PEFT passes over modules of a type it does not know, without a word."""
    with pytest.raises(ValueError, match=r"adapts none of the 2 modules .*Conv1D.*choose another adapter"):
        put(make_backbone("gpt2"), build(node(name)))


def test_ia3_rescales_the_outputs_of_a_square_conv1d(node: Any, make_backbone: Make) -> None:
    backbone = make_backbone("gpt2", target_modules=r".*\.attn\.c_proj")
    put(backbone, build(node("ia3")))
    disturb(backbone)
    layer = backbone.model.base_model.model.transformer.h[0].attn.c_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base_layer(x) * layer.ia3_l["default"].flatten())


def matrices(backbone: Backbone) -> list[tuple[int, int]]:
    """(out, in) of every module that the adapter is to adapt."""
    found = []
    for name, module in backbone.model.named_modules():
        if name.rpartition(".")[2] in backbone.target_modules and isinstance(module, nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            found.append((shape[1], shape[0]) if isinstance(module, Conv1D) else shape)
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_states_its_laws(name: str, node: Any) -> None:
    assert set(node(name)["laws"]) == LAWS
    assert all(isinstance(value, bool) for value in node(name)["laws"].values())
    assert name in FORMULAS, "a new adapter states here how many parameters it trains"
    assert node(name)["name"] == name


@pytest.mark.parametrize(("name", "kind"), ON_THREE)
def test_exact_init(name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    before = outputs(make_backbone(kind), batch)
    after = outputs(adapted(make_backbone, kind, build(node(name))), batch)
    if name != "curlora_frozen_u":  # which is a shift of the base
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)  # no method may be far away
    assert torch.equal(after, before) is node(name)["laws"]["exact_init"]


@pytest.mark.parametrize(("name", "kind"), ON_THREE)
def test_disable_is_base(name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = make_backbone(kind)
    before = outputs(backbone, batch)
    put(backbone, build(node(name)))
    disturb(backbone)
    moved = (outputs(backbone, batch) - before).abs().max()
    assert moved == 0 if name == "none" else moved > 1e-3
    with backbone.adapter_disabled():
        off = outputs(backbone, batch)
    assert torch.equal(off, before) is node(name)["laws"]["disable_is_base"]


@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_mergeable(name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = adapted(make_backbone, kind, build(node(name)))
    disturb(backbone)
    expected = outputs(backbone, batch)
    assert hasattr(backbone.model, "merge_and_unload") is node(name)["laws"]["mergeable"]
    if node(name)["laws"]["mergeable"]:
        merged = make_backbone(kind, model=backbone.model.merge_and_unload())
        assert not any(own in key for own in ("lora", "vera", "ia3", "osf") for key in merged.state_dict())
        torch.testing.assert_close(outputs(merged, batch), expected, rtol=1e-4, atol=1e-4)


def as_plain_lora(backbone: Backbone, folder: Path) -> None:
    """Write the adapter as a LoRA without anything that plain LoRA does not have.

    Raises:
        ValueError: there is no such form.
    """
    model = backbone.model
    if not isinstance(model, PeftModel):
        raise ValueError("not an adapter")
    active = model.peft_config["default"]
    if not isinstance(active, LoraConfig):
        to_lora(model, folder)
        return
    factors = {
        key: value for key, value in get_peft_model_state_dict(model).items() if ".lora_A." in key or ".lora_B." in key
    }
    plain = {key: getattr(active, key) for key in ("r", "lora_alpha", "use_rslora", "target_modules", "fan_in_fan_out")}
    folder.mkdir()
    LoraConfig(**plain).save_pretrained(str(folder))
    save_file({key: value.contiguous() for key, value in factors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_lora_exportable(
    name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    backbone = adapted(make_backbone, kind, build(node(name)))
    disturb(backbone)
    expected = outputs(backbone, batch)
    try:
        as_plain_lora(backbone, tmp_path / "lora")
    except ValueError:
        same = False
    else:
        base = make_backbone(kind)
        base.model = get_peft_model(base.model, LoraConfig.from_pretrained(str(tmp_path / "lora")))
        set_peft_model_state_dict(base.model, load_peft_weights(str(tmp_path / "lora")))
        same = torch.allclose(outputs(base, batch), expected, rtol=1e-4, atol=1e-4)
    assert same is node(name)["laws"]["lora_exportable"]


@pytest.mark.parametrize(("name", "kind"), ON_ALL)
def test_trains_its_own_parameters_and_no_others(name: str, kind: str, node: Any, make_backbone: Make) -> None:
    plain = make_backbone(kind)
    backbone = adapted(make_backbone, kind, build(node(name)))
    trained = trainable_state(backbone)
    number = sum(tensor.numel() for tensor in trained.values())
    formula = FORMULAS[name]
    if formula is None:
        assert number == (plain.model.num_parameters() if name == "full" else 0)
        return
    assert number == sum(formula(out, inputs, RANK) for out, inputs in matrices(plain))
    assert all(any(own in key for own in OWN) for key in trained)


@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_saved_and_loaded_is_the_same(
    name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    backbone = adapted(make_backbone, kind, build(node(name)))
    disturb(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    again = adapted(make_backbone, kind, build(node(name, seed=7)), seed=7)  # its own draws must not matter
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(outputs(again, batch), outputs(backbone, batch))
    assert not list(tmp_path.rglob("*.bin"))
    assert set(trainable_state(again)) == set(trainable_state(backbone))


def state(backbone: Backbone) -> dict[str, Tensor]:
    """What the adapter is at the start, frozen factors included."""
    if isinstance(backbone.model, PeftModel):
        return get_peft_model_state_dict(backbone.model, save_embedding_layers=False)
    return trainable_state(backbone)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_the_seed_decides(name: str, kind: str, node: Any, make_backbone: Make) -> None:
    first = state(adapted(make_backbone, kind, build(node(name))))
    torch.rand(1)  # nothing depends on the global generator
    assert equal(first, state(adapted(make_backbone, kind, build(node(name)))))
    other = state(adapted(make_backbone, kind, build(node(name, seed=1)), seed=1))
    assert equal(first, other) is (name in NOTHING_DRAWN)


@pytest.mark.parametrize("name", ADAPTERS)
def test_attaching_leaves_the_global_generator_alone(name: str, node: Any, make_backbone: Make) -> None:
    backbone = make_backbone("llama")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    put(backbone, build(node(name)), seed=3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_dtype_follows_the_base(name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor]) -> None:
    backbone = adapted(make_backbone, kind, build(node(name)), dtype=torch.bfloat16)
    disturb(backbone)
    assert outputs(backbone, batch).dtype == torch.bfloat16
    assert torch.isfinite(outputs(backbone, batch)).all()
    for module in backbone.modules():
        if isinstance(module, CurLoraLinear):  # frozen factors as the base; what is trained stays exact
            assert module.curlora_C["default"].dtype == module.curlora_R["default"].dtype == torch.bfloat16
            assert module.curlora_U["default"].dtype == torch.float32
    if name not in ("full", "none"):
        assert all(tensor.dtype == torch.float32 for tensor in trainable_state(backbone).values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "kind"), ON_BOTH)
def test_device_follows_the_base(
    name: str, kind: str, node: Any, make_backbone: Make, batch: dict[str, Tensor]
) -> None:
    on_cpu = adapted(make_backbone, kind, build(node(name)))
    backbone = make_backbone(kind)
    backbone.to("cuda")
    put(backbone, build(node(name)))
    assert {tensor.device.type for tensor in (*backbone.parameters(), *backbone.buffers())} == {"cuda"}
    there = {key: value.cuda() for key, value in batch.items()}
    torch.testing.assert_close(outputs(backbone, there).cpu(), outputs(on_cpu, batch), rtol=1e-3, atol=1e-3)
    moved = on_cpu.to("cuda")
    assert {tensor.device.type for tensor in (*moved.parameters(), *moved.buffers())} == {"cuda"}


def layer_of(backbone: Backbone) -> Any:
    """The first adapted layer."""
    kinds = (LoraLayer, CurLoraLinear, peft.tuners.vera.layer.VeraLayer)
    return next(module for module in backbone.modules() if isinstance(module, kinds))


def delta(layer: Any, W: Tensor) -> Tensor:
    """``ΔW`` as (out, in), written down anew from the method's paper; ``W`` is the weight before, (out, in)."""
    if isinstance(layer, CurLoraLinear):
        U = layer.curlora_U["default"]
        if "default" in layer.curlora_columns:
            C, R = W[:, layer.curlora_columns["default"]], W[layer.curlora_rows["default"]]
        else:
            left, values, right = torch.linalg.svd(W)
            C, R = left[:, :RANK], values[:RANK, None] * right[:RANK]
            signs = (C * layer.curlora_C["default"]).sum(0).sign()  # singular vectors are unique up to these
            C, R = C * signs, R * signs[:, None]
        return layer.alpha["default"] * C @ U @ R
    if isinstance(layer, LoraLayer):
        return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    b, d = layer.vera_lambda_b["default"], layer.vera_lambda_d["default"]
    A, B = layer.vera_A["default"][:, : W.shape[1]], layer.vera_B["default"][: W.shape[0]]
    return torch.diag(b) @ B @ torch.diag(d) @ A


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in ("full", "none", "dora", "ia3", "osf")])
def test_square_conv1d_the_right_way_round(name: str, node: Any, make_backbone: Make) -> None:
    """GPT-2's ``attn.c_proj`` is 32 x 32 and stored transposed: the wrong orientation raises nothing, it is only wrong."""
    backbone = make_backbone("gpt2", target_modules=r".*\.attn\.c_proj")
    stored = copy.deepcopy(backbone.model.transformer.h[0].attn.c_proj)
    assert stored.weight.shape == (32, 32)
    put(backbone, build(node(name)))
    disturb(backbone)
    layer = layer_of(backbone)
    base = layer.get_base_layer()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(x) - base(x)
        expected = x @ delta(layer, stored.weight.T).T
        assert (
            expected - x @ delta(layer, stored.weight.T)
        ).abs().max() > 1e-2  # the other way round is something else
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        merged_by = layer.get_delta_weight("default")
        torch.testing.assert_close(merged_by, delta(layer, stored.weight.T).T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 1.0), (8, 1.0), (8, 0.5), (3, 4.0)])
def test_alpha_has_one_meaning(name: str, rank: int, alpha: float, node: Any, make_backbone: Make) -> None:
    """``ΔW = alpha · B A`` at any rank; rsLoRA's point is another scale, ``alpha √r``, and its YAML says so."""
    backbone = adapted(make_backbone, "llama", build(node(name, rank=rank, alpha=alpha)))
    expected = alpha * rank**0.5 if name == "rslora" else alpha
    assert layer_of(backbone).scaling["default"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["curlora", "lora_xs", "lora"])
def test_update_doubles_with_alpha_and_not_with_rank(name: str, node: Any, make_backbone: Make) -> None:
    def norm(alpha: float, rank: int) -> float:
        layer = layer_of(adapted(make_backbone, "llama", build(node(name, alpha=alpha, rank=rank))))
        with torch.no_grad():
            for key, parameter in layer.named_parameters():
                if "lora_B" in key or "curlora_U" in key:  # one entry, so that the number of entries does not matter
                    parameter.zero_()
                    parameter.view(-1)[0] = 1.0
            one = layer.lora_A["default"].weight if isinstance(layer, LoraLayer) else torch.ones(1)
            return float(layer.get_delta_weight("default").norm() / one[0].norm())

    assert norm(2.0, RANK) == pytest.approx(2 * norm(1.0, RANK), rel=1e-5)
    if name != "curlora":  # there another rank draws other columns
        assert norm(1.0, 2 * RANK) == pytest.approx(norm(1.0, RANK), rel=1e-4)


def test_a_frozen_u_is_the_random_shift_that_is_stated(node: Any, make_backbone: Make) -> None:
    backbone = adapted(make_backbone, "llama", build(node("curlora_frozen_u", rank=16)))
    assert not trainable_state(backbone)
    U = torch.cat([m.curlora_U["default"].flatten() for m in backbone.modules() if isinstance(m, CurLoraLinear)])
    assert U.std().item() == pytest.approx(node("curlora_frozen_u")["u_std"], rel=0.1)
    assert U.mean().item() == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lora", {"start": "frozen_u"}, "is a way to start CURLoRA; this adapter is LoraConfig"),
        ("curlora", {"start": "frozen_a"}, "is a way to start LoRA; this adapter is CurLoraConfig"),
        ("curlora", {"start": "frozen_u"}, "makes it zero; set u_init=gaussian"),
        ("curlora_frozen_u", {"u_std": 0.0}, "makes it zero; set u_init=gaussian"),
        ("dora", {"start": "frozen_a"}, "is a way to start LoRA"),
    ],
)
def test_a_start_is_for_its_kind_of_adapter(
    name: str, changes: dict[str, Any], message: str, node: Any, make_backbone: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        put(make_backbone("llama"), build(node(name), **changes))
