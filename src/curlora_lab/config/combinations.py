"""Words and combinations that signatures can't judge: each part is right, but they do not go together."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from curlora_lab.config.order import scenario_faults
from curlora_lab.config.signatures import UNSET, locate, meant

#: Words that an argument of a target may hold where its annotation can't say so: themselves, or where they are listed.
VOCABULARIES: dict[tuple[str, str], str | tuple[str, ...]] = {
    ("curlora_lab.tasks.SequenceClassification", "metrics"): "curlora_lab.metrics:METRICS",
    ("curlora_lab.tasks.Regression", "metrics"): "curlora_lab.metrics:REGRESSION_METRICS",
    ("curlora_lab.tasks.TokenClassification", "metrics"): "curlora_lab.metrics:TOKEN_METRICS",
    ("curlora_lab.tasks.QuestionAnswering", "metrics"): "curlora_lab.metrics:ANSWER_METRICS",
    ("curlora_lab.tasks.LabelWords", "metrics"): "curlora_lab.tasks.label_words:METRICS",
    ("curlora_lab.tasks.Instruction", "metrics"): "curlora_lab.tasks.instruction:METRICS",
    ("curlora_lab.tasks.LanguageModeling", "metrics"): "curlora_lab.tasks.next_token:LIKELIHOOD",
    ("curlora_lab.tasks.LanguageModeling", "metric"): ("negative_nll", "token_accuracy"),  # the higher, the better
}

#: Callbacks that read scores on choosing rows.
CHOOSING = ("curlora_lab.continual.callbacks.BestOfStage", "curlora_lab.continual.stopping.StopAtScore")


def combination_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Faults that only show when several keys are seen together.

    Args:
        plain: the resolved configuration.
    """
    tasks = dict(task_nodes(plain))
    yield from scenario_faults(plain, tasks)
    for path, node in tasks.items():
        yield from _metric_faults(path, node)
        yield from _head_faults(path, node, plain)
    yield from _choosing_faults(plain, tasks)
    yield from _evaluation_faults(plain, tasks)
    yield from _adapter_faults(plain)
    yield from _trainer_faults(plain)


def task_nodes(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tasks that can be built, with their paths: the one of ``task=...`` if given, else those of the sequence."""
    if plain.get("task"):
        nodes = {"task": plain["task"]}
    else:
        sequence = plain.get("sequence")
        tasks = sequence.get("tasks") if isinstance(sequence, dict) else None
        nodes = {f"sequence.tasks.{key}": node for key, node in tasks.items()} if isinstance(tasks, dict) else {}
    yield from ((path, node) for path, node in nodes.items() if isinstance(node, dict) and "_target_" in node)


def _metric_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Metric names exist, and the metric of the score matrix is computed."""
    metric, metrics = node.get("metric"), node.get("metrics")
    if isinstance(metrics, dict):
        yield f"{path}.metrics={metrics!r:.80}: must be a list of names."
    for key, words in (("metrics", metrics), ("metric", [metric])):
        known = VOCABULARIES.get((str(node["_target_"]), key))
        if known is None or not isinstance(words, list):
            continue
        allowed = _words(known)
        for word in words:
            if word is not UNSET and word not in allowed:
                yield (
                    f"{path}.{key}: there is no metric {word!r} to use there.{meant(word, allowed)} "
                    f"Choose from {', '.join(allowed)}."
                )
    if isinstance(metrics, list) and isinstance(metric, str) and metric not in metrics:
        yield f"{path}.metric={metric!r} is not among {path}.metrics={metrics}; add it there or choose one of them."


def _words(known: str | tuple[str, ...]) -> list[str]:
    """A vocabulary: its words, or those of ``module:name``."""
    if not isinstance(known, str):
        return list(known)
    module, _, name = known.partition(":")
    return list(getattr(importlib.import_module(module), name))


def _head_faults(path: str, node: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[str]:
    """A task that the LM head serves needs one."""
    model, adapter = (part if isinstance(part := plain.get(key), dict) else {} for key in ("model", "adapter"))
    try:
        by_lm_head = getattr(locate(node["_target_"]), "zero_shot", False)
    except (ImportError, ValueError):
        return
    if by_lm_head and (adapter.get("name") == "none" or adapter.get("start") == "frozen_u"):
        yield (
            f"{path} is answered by the LM head and has none of its own, and adapter={adapter.get('name')} trains nothing: there "
            "is nothing to train. Choose another adapter, or for a classification task heads=own."
        )
    if by_lm_head and model.get("kind") == "encoder":
        yield (
            f"{path} needs the LM head, but model.kind=encoder has none (model {model.get('name')}); "
            "choose a causal model, for example model=gpt2, or another task."
        )


def _choosing_faults(plain: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Callbacks watch something that is logged in every stage, on rows that exist."""
    callbacks = plain.get("callbacks")
    callbacks = {k: v for k, v in callbacks.items() if isinstance(v, dict)} if isinstance(callbacks, dict) else {}
    allowed = ["choose/score"]
    if len(tasks) == 1:  # with more, a stage logs only its own task's
        node = next(iter(tasks.values()))
        names = node.get("metrics") if isinstance(node.get("metrics"), list) else []
        allowed += [f"choose/{node.get('name')}/{name}" for name in names or []] + [f"train/{node.get('name')}/loss"]
    choosing = [key for key, node in callbacks.items() if node.get("_target_") in CHOOSING]
    for key, node in callbacks.items():
        monitor = node.get("monitor")
        if isinstance(monitor, str) and monitor not in allowed:
            yield (
                f"callbacks.{key}.monitor={monitor!r} is not logged in every stage.{meant(monitor, allowed)} "
                f"Choose from {', '.join(allowed)}."
            )
        elif isinstance(monitor, str) and monitor.startswith("choose/"):
            choosing.append(key)
    trainer = plain.get("trainer")
    if choosing and isinstance(trainer, dict) and trainer.get("limit_val_batches") == 0:
        yield f"callbacks.{choosing[0]} needs scores on the choosing rows, but trainer.limit_val_batches=0 leaves them out."
    for path, node in tasks.items() if choosing else ():
        if _sets_nothing_aside(node):
            yield (
                f"callbacks.{choosing[0]} needs rows set aside for choosing, but {path}.data.choose_fraction=0; "
                "set it above 0 or use callbacks=none."
            )


def _evaluation_faults(plain: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """With ``evaluate_on=choose`` every task scores its choosing rows, and has some."""
    wanted = plain.get("evaluate_on")
    for path, node in tasks.items() if wanted in ("test", "choose") else ():
        data = node.get("data")
        found = data.get("evaluate_on", "test") if isinstance(data, dict) else wanted
        if found != wanted and found is not UNSET:
            yield (
                f"evaluate_on={wanted}, but {path}.data would be scored on {found!r}; "
                f"leave {path}.data.evaluate_on at ${{evaluate_on}}, which is the same for all tasks."
            )
        elif wanted == "choose" and _sets_nothing_aside(node):
            yield (
                f"evaluate_on=choose scores the rows set aside for choosing, but {path}.data.choose_fraction=0; "
                "set it above 0, or name a split for them: source.splits.choose."
            )


def _sets_nothing_aside(node: Mapping[str, Any]) -> bool:
    """Whether a task keeps no rows for choosing: neither a part of train nor a split of their own."""
    data = node.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    splits = source.get("splits") if isinstance(source, dict) else None
    own = splits.get("choose") if isinstance(splits, dict) else None
    return isinstance(data, dict) and data.get("choose_fraction") == 0 and not own


def _adapter_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """What the adapter asks of the rest."""
    adapter, model = plain.get("adapter"), plain.get("model")
    adapter, model = (node if isinstance(node, dict) else {} for node in (adapter, model))
    if model.get("kind") == "causal" and model.get("pooling") == "cls":
        yield "model.pooling=cls reads the first token, which in a causal model has seen no other; use last_token or mean."
    if adapter.get("init_from") and adapter.get("name") == "none":
        yield "adapter.init_from is set, but adapter=none has nothing to continue; leave it out or choose an adapter."
    if model.get("quantization"):
        if adapter.get("name") == "full":
            yield (
                "adapter=full trains the weights that model.quantization rounds; "
                "use another adapter or model.quantization=null."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            yield "model.quantization needs bitsandbytes, which is not installed: pip install 'curlora-lab[quant]'."


def _trainer_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that Lightning takes without a word."""
    trainer = plain.get("trainer")
    if not isinstance(trainer, dict):
        return
    for key, low in (("accumulate_grad_batches", 1), ("log_every_n_steps", 1), ("gradient_clip_val", 0)):
        value = trainer.get(key)
        if isinstance(value, int | float) and value < low:
            yield f"trainer.{key}={value} must be at least {low}."
