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
#: OSF's key, which counts the directions that are *not* trained.
PRESERVED = "effective_rank"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The nearest that an adapter comes to a budget.

    Args:
        rank: Rank r; of OSF, directions of the widest matrix that are trained.
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
        The configuration with ``rank`` (of OSF ``adapter.effective_rank``), and perhaps ``adapter.layers_to_transform``, chosen;
        the same one where no budget is set or the adapter has no rank.

    Raises:
        ConfigError: the model's shapes can't be had, or the adapter does not fit them.
    """
    if cfg.budget is None or not {"r", PRESERVED} & set(cfg.adapter):
        return cfg  # without a rank there is nothing to choose; the run says what it has
    try:
        return _met(cfg)
    except ValueError as error:
        raise ConfigError(f"budget: {error}") from error


def _met(given: DictConfig) -> DictConfig:
    """A copy with rank and layers chosen."""
    cfg = copy.deepcopy(given)
    OmegaConf.set_readonly(cfg, False)
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    skeleton = load_skeleton(node)
    layers = int(getattr(skeleton.config, "num_hidden_layers", 0))
    widest = max(min(weight.shape) for weight in skeleton.parameters() if weight.dim() == 2)

    def choose(rank: int, chosen: Sequence[int] | None) -> None:
        with open_dict(cfg):
            if "r" in cfg.adapter:
                cfg.rank = cfg.adapter.r = rank
            elif rank < widest:
                cfg.adapter[PRESERVED] = widest - rank
            else:
                raise ValueError(f"rank {rank} leaves nothing to preserve of matrices whose smaller side is {widest}")
            if "layers_to_transform" in cfg.adapter:
                cfg.adapter.layers_to_transform = given.adapter.layers_to_transform if chosen is None else list(chosen)

    def count(rank: int, chosen: Sequence[int] | None) -> int:
        choose(rank, chosen)
        chosen_node: Any = OmegaConf.to_container(cfg.adapter, resolve=True)
        return count_parameters(skeleton, make_adapter(chosen_node), start=chosen_node.get("start"))

    if "r" in cfg.adapter and not count(1, None):  # nothing of it is trained, at whatever rank
        return given
    fit = fit_budget(count, budget=cfg.budget, layers=layers if _layers_are_free(cfg, skeleton) else 0)
    choose(fit.rank, None if fit.layers is None else range(layers - fit.layers, layers))
    where = "all layers" if fit.layers is None else f"the last {fit.layers} of {layers} layers"
    rank = f"rank {fit.rank}" if "r" in cfg.adapter else f"{PRESERVED} {cfg.adapter[PRESERVED]}"
    logger.info(
        "budget=%d: %s has %d parameters at %s in %s.", cfg.budget, cfg.adapter.name, fit.parameters, rank, where
    )
    return cfg


def _layers_are_free(cfg: DictConfig, skeleton: Backbone) -> bool:
    """Whether layers can be left out: nobody has chosen some, and PEFT heeds them, which it does for lists of targets only."""
    targets = cfg.adapter.target_modules or skeleton.target_modules
    unchosen = "layers_to_transform" in cfg.adapter and cfg.adapter.layers_to_transform is None
    return unchosen and not isinstance(targets, str)


def fit_budget(count: Callable[[int, Sequence[int] | None], int], *, budget: int, layers: int) -> Fit:
    """The rank whose count is nearest to the budget; where that is not within 10 %, a higher one in fewer layers if it is nearer.

    Of those within 10 % the one with the most layers is taken.

    Args:
        count: Trainable parameters by rank and indices of the adapted layers (``None``: all); grows with both, and raises
            ``ValueError`` for a rank that the model's matrices cannot hold.
        budget: Parameters that are asked for, at least 1.
        layers: Layers of the model, if some can be left out; else 0.
    """
    best = _in_all_layers(count, budget)
    rank = best.rank + (best.parameters < budget)
    while not best.reached and layers > 1:
        found = _in_fewer_layers(count, rank, budget, layers)
        if found is None:
            break
        best = min(best, found, key=lambda fit: abs(fit.parameters - budget))
        if found.layers == 1 and found.parameters > budget:  # at a higher rank it is only more
            break
        rank += 1
    return best


def _in_all_layers(count: Callable[[int, Sequence[int] | None], int], budget: int) -> Fit:
    """The nearest rank."""
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


def _in_fewer_layers(
    count: Callable[[int, Sequence[int] | None], int], rank: int, budget: int, layers: int
) -> Fit | None:
    """The nearest number of layers, fewer than all, at a rank; ``None`` where it cannot be held."""
    below, above = 0, layers
    counts: dict[int, int] = {}
    while above - below > 1:  # count(below) <= budget < count(above), at both ends taken for granted
        middle = (below + above) // 2
        found = _count_or_none(count, rank, range(layers - middle, layers))
        if found is None:
            return None
        counts[middle] = found
        below, above = (below, middle) if found > budget else (middle, above)
    kept = min((kept for kept in (above, below) if kept in counts), key=lambda kept: abs(counts[kept] - budget))
    return _fit(rank, kept, counts[kept], budget)


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


def _count_or_none(
    count: Callable[[int, Sequence[int] | None], int], rank: int, layers: Sequence[int] | None = None
) -> int | None:
    try:
        return count(rank, layers)
    except ValueError as error:
        if re.search(r"rank", str(error)):
            return None
        raise
