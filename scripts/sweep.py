"""Create, join and show a Weights & Biases sweep whose trials are runs of train.py.

python scripts/sweep.py create --method bayes --project forgetting           # prints the sweep's name
python scripts/sweep.py create --method grid adapter=lora rank=8,16 seed=0   # other values than conf/wandb_sweep.yaml has
python scripts/sweep.py create --dry-run                                     # only print what would be sent
python scripts/sweep.py join you/forgetting/abc123 --count 10                # do trials here; on as many machines as you like
python scripts/sweep.py show you/forgetting/abc123                           # its runs, the best first
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException

from curlora_lab import config
from curlora_lab.loggers.connection import why_offline
from curlora_lab.loggers.wandb_run import PROJECT
from curlora_lab.sweeps import objectives

METHODS = ("grid", "random", "bayes")


class SweepError(ValueError):
    """A sweep that can't be created, joined or shown; the message says why."""


def build(
    definition: dict[str, Any], *, method: str | None, metric: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The sweep's definition with what was asked for on the command line.

    Args:
        definition: content of ``conf/wandb_sweep.yaml`` or another file of that form.
        method: instead of the definition's.
        metric: instead of the definition's; its goal follows from the name.
        overrides: parameters as on the command line of train.py, ``rank=8,16`` or ``lr=tag(log,interval(1e-4,1e-2))``;
            ``~rank`` takes one out.

    Raises:
        SweepError: the definition is not one, or names what train.py does not know.
    """
    if not isinstance(definition, dict) or not {"parameters", "command", "metric", "method"} <= set(definition):
        raise SweepError("a definition needs method, metric, parameters and command; see conf/wandb_sweep.yaml.")
    parameters = dict(definition["parameters"])
    for override in _parsed(overrides):
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            parameters.pop(key, None)
        else:
            parameters[key] = _parameter(override)
    found = {**definition, "parameters": parameters, "method": method or definition["method"]}
    if metric is not None:
        goal = "minimize" if objectives.lower_is_better(metric) else "maximize"
        found["metric"] = {"name": metric, "goal": goal}
    check(found)
    return found


def check(definition: dict[str, Any]) -> None:
    """Refuse a sweep of which no trial, or not every trial, could run.

    Raises:
        SweepError: with what to change.
    """
    if definition["method"] not in METHODS:
        raise SweepError(f"method={definition['method']!r}: choose from {', '.join(METHODS)}.")
    parameters: dict[str, dict[str, Any]] = definition["parameters"]
    ranges = [key for key, node in parameters.items() if not {"value", "values"} & set(node)]
    if definition["method"] == "grid" and ranges:
        raise SweepError(f"method grid needs values, but {', '.join(ranges)} has a range; give {ranges[0]}=a,b,c.")
    choices = {key: _values(node) for key, node in parameters.items()}
    first = {key: values[0] for key, values in choices.items()}
    trials = [first] + [{**first, key: value} for key, values in choices.items() for value in values[1:]]
    config.register()
    try:
        for trial in trials:
            given = [
                f"{key}={value}" for key, value in {**trial, "objectives": f"[{definition['metric']['name']}]"}.items()
            ]
            config.check_overrides(given)
            with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
                objectives.check(config.validate(compose("train", overrides=given)))
    except HydraException as error:
        raise SweepError(f"a trial with {' '.join(given)} could not run: {error}") from error


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise SweepError(str(error)) from error


def _parameter(override: Override) -> dict[str, Any]:
    """A parameter in W&B's words."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        kind = "log_uniform_values" if "log" in value.tags else "uniform"
        return {"distribution": kind, "min": value.start, "max": value.end}
    if isinstance(value, ChoiceSweep | RangeSweep):
        return {"values": list(override.sweep_iterator(transformer=Transformer.identity))}
    return {"value": value}


def _values(node: dict[str, Any]) -> list[Any]:
    """Values to try out: those listed, or the ends of a range."""
    if "value" in node:
        return [node["value"]]
    found = node.get("values") or [node[end] for end in ("min", "max") if end in node]
    if not found:
        raise SweepError(f"a parameter has neither value, values nor min and max: {node}")
    return list(found)


def create(arguments: argparse.Namespace) -> None:
    """Create a sweep and say how to join it."""
    try:
        content = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SweepError(f"{arguments.config} can't be read: {error}") from error
    definition = build(content, method=arguments.method, metric=arguments.metric, overrides=arguments.overrides)
    if arguments.name:
        definition["name"] = arguments.name
    if arguments.dry_run:
        print(yaml.safe_dump(definition, sort_keys=False, allow_unicode=True), end="")
        return
    _require_server()
    project = arguments.project or os.environ.get("WANDB_PROJECT") or PROJECT
    sweep = wandb.sweep(definition, entity=arguments.entity, project=project)
    path = "/".join(filter(None, [arguments.entity, project, sweep]))
    print(f"Join it with: python scripts/sweep.py join {path}")


def join(arguments: argparse.Namespace) -> None:
    """Do trials here until the sweep ends or ``--count`` is reached."""
    if not Path("train.py").is_file():
        raise SweepError(f"there is no train.py in {Path.cwd()}; start this where it lies.")
    _require_server()
    # The command says `python`: the one with which this was started.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    wandb.agent(
        arguments.sweep, count=arguments.count, entity=arguments.entity, project=arguments.project, forward_signals=True
    )


def show(arguments: argparse.Namespace) -> None:
    """Print the state of a sweep and its runs, the best first."""
    _require_server()
    found = wandb.Api().sweep("/".join(filter(None, [arguments.entity, arguments.project, arguments.sweep])))
    metric, lower = found.config["metric"]["name"], found.config["metric"]["goal"] == "minimize"
    keys = list(found.config["parameters"])
    rows = [(run.summary.get(metric), run) for run in found.runs]
    rows.sort(key=lambda row: (row[0] is None, (row[0] if lower else -row[0]) if row[0] is not None else 0))
    print(f"{found.name}: {found.config['method']}, {str(found.state).lower()}, {len(rows)} runs\n")
    print("| " + " | ".join(["run", "state", metric, *keys]) + " |")
    print("|" + " --- |" * (len(keys) + 3))
    for value, run in rows:
        cells = [
            run.name,
            run.state,
            "" if value is None else f"{value:.4g}",
            *(str(run.config.get(key)) for key in keys),
        ]
        print("| " + " | ".join(cells) + " |")


def _require_server() -> None:
    if reason := why_offline():
        raise SweepError(f"a sweep lives on a W&B server, and there is none to use now: {reason}.")
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        raise SweepError("a sweep lives on a W&B server, but WANDB_MODE says to stay offline.")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; exit code 2 with a message where that can't be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    creating = actions.add_parser("create", help="create a sweep")
    creating.add_argument("overrides", nargs="*", help="parameters, e.g. rank=8,16 adapter=lora ~seed")
    creating.add_argument("--config", type=Path, default=config.conf_dir() / "wandb_sweep.yaml")
    creating.add_argument("--method", choices=METHODS)
    creating.add_argument("--metric", help="what to optimise, e.g. choose/learning")
    creating.add_argument("--name")
    creating.add_argument("--dry-run", action="store_true", help="print the definition and create nothing")
    creating.set_defaults(act=create)
    joining = actions.add_parser("join", help="do trials of a sweep")
    joining.add_argument("--count", type=int, help="at most so many trials")
    joining.set_defaults(act=join)
    showing = actions.add_parser("show", help="runs of a sweep")
    showing.set_defaults(act=show)
    for action in (joining, showing):
        action.add_argument("sweep", help="[[entity/]project/]id, as create printed it")
    for action in (creating, joining, showing):
        action.add_argument("--project", help="W&B project")
        action.add_argument("--entity", help="user or team")
    arguments = parser.parse_args(argv)
    try:
        arguments.act(arguments)
    except (SweepError, config.ConfigError, wandb.Error) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
