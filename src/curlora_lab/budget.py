"""Equal parameters: which rank, or how many layers, gives an adapter the number of trainable parameters that is asked for.

The count is taken from the adapter itself, attached to the model's shapes without weights, and not from a formula.
"""

import copy
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from curlora_lab.adapters.attach import Adapter, FullFineTuning, HeadOnly, attach, trainable_state
from curlora_lab.adapters.start import CHANGES_BASE
from curlora_lab.backbone import Backbone, decide_kind, locate_model
from curlora_lab.build import make_adapter
from curlora_lab.config import ConfigError

logger = logging.getLogger(__name__)

#: How far from the budget still counts as equal.
TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The nearest that an adapter comes to a budget.

    Args:
        rank: Rank r.
        layers: How many of the model's layers are adapted, the last ones; ``None`` for all.
        parameters: Trainable parameters of the adapter then.
        reached: Whether they are within 10 % of the budget.
    """

    rank: int
    layers: int | None
    parameters: int
    reached: bool


def meet_budget(cfg: DictConfig) -> DictConfig:
    """Choose rank (and layers) so that the adapter has ``budget`` trainable parameters, as nearly as it can.

    Args:
        cfg: a valid composed configuration; not changed.

    Returns:
        The configuration with ``rank`` (and ``adapter.layers_to_transform``) chosen; the same one where no budget is set or
        the adapter has no rank.

    Raises:
        ConfigError: the model's shapes can't be had.
    """
    budget = cfg.budget
    if budget is None or "r" not in cfg.adapter:  # without a rank there is nothing to choose; the run says what it has
        return cfg
    given, cfg = cfg, copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    skeleton = load_skeleton(node)
    layers = int(getattr(skeleton.config, "num_hidden_layers", 0))

    def count(rank: int, chosen: Sequence[int] | None) -> int:
        with open_dict(cfg):
            cfg.rank, cfg.adapter.r = rank, rank
            if chosen is not None:
                cfg.adapter.layers_to_transform = list(chosen)
        chosen_node: Any = OmegaConf.to_container(cfg.adapter, resolve=True)
        return count_parameters(skeleton, make_adapter(chosen_node), start=chosen_node.get("start"))

    if not count(int(cfg.rank), None):  # nothing of it is trained, at whatever rank
        return given
    fit = fit_budget(count, budget=budget, layers=layers if "layers_to_transform" in cfg.adapter else 0)
    count(fit.rank, None if fit.layers is None else range(layers - fit.layers, layers))
    where = "all layers" if fit.layers is None else f"the last {fit.layers} of {layers} layers"
    logger.info(
        "budget=%d: %s has %d parameters at rank %d in %s.", budget, cfg.adapter.name, fit.parameters, fit.rank, where
    )
    return cfg


def fit_budget(count: Callable[[int, Sequence[int] | None], int], *, budget: int, layers: int) -> Fit:
    """The rank whose count is nearest to the budget; fewer layers at rank 1 where even that is too many.

    Args:
        count: Trainable parameters by rank and indices of the adapted layers (``None``: all); does not fall with rank, and
            raises ``ValueError`` for a rank that the model's matrices cannot hold.
        budget: Parameters that are asked for, at least 1.
        layers: Layers of the model, if some can be left out; else 0.
    """
    smallest = count(1, None)
    if smallest > budget and layers > 1:
        options = [(count(1, range(layers - kept, layers)), kept) for kept in range(1, layers)]
        parameters, kept = min([*options, (smallest, layers)], key=lambda option: abs(option[0] - budget))
        return _fit(1, None if kept == layers else kept, parameters, budget)
    low, high = 1, 2
    while (at_high := _count_or_none(count, high)) is not None and at_high < budget:
        low, high = high, 2 * high
    while high - low > 1:  # count(low) < budget <= count(high), or high cannot be held
        middle = (low + high) // 2
        found = _count_or_none(count, middle)
        low, high = (middle, high) if found is not None and found < budget else (low, middle)
    options = [(found, rank) for rank in (low, high) if (found := _count_or_none(count, rank)) is not None]
    parameters, rank = min(options, key=lambda option: abs(option[0] - budget))
    return _fit(rank, None, parameters, budget)


def count_parameters(skeleton: Backbone, adapter: Adapter, *, start: str | None = None) -> int:
    """Trainable parameters of an adapter on a model without weights.

    Args:
        skeleton: See :func:`load_skeleton`.
        adapter: The adapter.
        start: See :func:`curlora_lab.adapters.attach.attach`.

    Raises:
        ValueError: The adapter does not fit the model's shapes.
    """
    if isinstance(adapter, HeadOnly):
        return 0
    if isinstance(adapter, FullFineTuning):
        return sum(parameter.numel() for parameter in skeleton.parameters())
    backbone = copy.deepcopy(skeleton)
    if hasattr(adapter, "init_lora_weights"):
        adapter.init_lora_weights = True  # another start has the same shapes and needs weights
    attach(backbone, adapter, seed=0, start=None if start in CHANGES_BASE else start)
    return sum(parameter.numel() for parameter in trainable_state(backbone).values())


def load_skeleton(node: Mapping[str, Any]) -> Backbone:
    """A backbone's shapes without its weights or tokenizer, on the meta device.

    Args:
        node: The arguments of :func:`curlora_lab.backbone.load_backbone`.

    Raises:
        ConfigError: The model's configuration can't be had.
    """
    path, targets = node["path"], node.get("target_modules")
    try:
        config = AutoConfig.from_pretrained(locate_model(path or ""), revision=node.get("revision"))
        is_causal = decide_kind(node.get("kind", "auto"), config, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"budget: the shapes of model.path={path!r} can't be had ({error}).") from error
    with torch.device("meta"):
        model = (AutoModelForCausalLM if is_causal else AutoModel).from_config(config)
    return Backbone(
        model,
        None,
        name=str(node.get("name")),
        fingerprint="",
        is_causal=is_causal,
        pooling="mean",
        target_modules=targets,
    )


def is_met(budget: int, parameters: int) -> bool:
    """Whether a count is within 10 % of the budget."""
    return abs(parameters - budget) <= TOLERANCE * budget


def _fit(rank: int, layers: int | None, parameters: int, budget: int) -> Fit:
    return Fit(rank=rank, layers=layers, parameters=parameters, reached=is_met(budget, parameters))


def _count_or_none(count: Callable[[int, Sequence[int] | None], int], rank: int) -> int | None:
    try:
        return count(rank, None)
    except ValueError as error:
        if re.search(r"rank", str(error)):
            return None
        raise
