"""What is asked of a search before it begins, and an Optuna study that goes on: what Hydra's sweepers leave to their users."""

import logging
import sys
import warnings
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from curlora_lab.sweeps.objectives import lower_is_better

logger = logging.getLogger(__name__)


#: Choices of ``sweep`` that tune; their runs score choosing rows and nothing else.
TUNING = ("tune", "tune_optuna")

#: What a study of one method may vary.
RATES = ("lr", "head_lr")


def tuning_tolerance(config: DictConfig) -> float | None:
    """Of a sweep that tunes, ``tune_tolerance``; ``None`` for any other. Refuses what the chosen sweep can't be.

    Args:
        config: the sweep's configuration.

    Raises:
        SystemExit: with what to set; Hydra turns other exceptions of a callback into warnings.
    """
    chosen = config.hydra.runtime.choices.get("sweep")
    if chosen in TUNING and config.evaluate_on != "choose":
        sys.exit(f"sweep={chosen} never looks at what is reported; leave out evaluate_on={config.evaluate_on}.")
    if chosen == "compare" and config.tuned is None:
        sys.exit("sweep=compare needs what sweep=tune found; name its tuned.json or its folder with tuned=<path>.")
    if config.evaluate_on != "choose" or config.tuned is not None:
        return None
    return float(config.tune_tolerance)


def check_one_method(config: DictConfig) -> None:
    """Refuse a study of several methods: a sampler would soon leave out all but the best.

    Args:
        config: the sweep's configuration.

    Raises:
        SystemExit: names what to give one by one.
    """
    if config.hydra.runtime.choices.get("sweep") != "tune_optuna":
        return
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    several = [one.key_or_group for one in given if one.is_sweep_override() and one.key_or_group not in RATES]
    if several:
        sys.exit(
            f"sweep=tune_optuna is a search for one method; give {several[0]} one value, and start it once for each. "
            "tuned=<folder with all of them> takes the results together."
        )


def check(config: DictConfig) -> None:
    """Refuse directions that do not fit the objectives.

    Args:
        config: the sweep's configuration.

    Raises:
        SystemExit: with what to set; Hydra turns other exceptions of a callback into warnings.
    """
    names = list(config.objectives)
    wanted = ["minimize" if lower_is_better(name) else "maximize" for name in names]
    given = OmegaConf.to_container(OmegaConf.create({"direction": config.hydra.sweeper.direction}))
    directions: Any = given["direction"] if isinstance(given, dict) else None
    found = [str(getattr(d, "name", d)) for d in (directions if isinstance(directions, list) else [directions])]
    if found != wanted:
        sys.exit(
            f"hydra.sweeper.direction=[{','.join(found)}] does not fit objectives=[{','.join(names)}]; "
            f"set hydra.sweeper.direction=[{','.join(wanted)}]."
        )


def go_on(config: DictConfig) -> None:
    """Prepare an existing study: trials that were cut off come first, and only those that are missing are made.

    Args:
        config: the sweep's configuration, changed: ``n_trials`` becomes the number of trials that are missing, and the
            sampler's seed another, since the same seed would draw the first trials once more.
    """
    sweeper = config.hydra.sweeper
    if sweeper.storage is None:
        return
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if sweeper.study_name not in {s.study_name for s in optuna.get_all_study_summaries(str(sweeper.storage))}:
        return
    study = optuna.load_study(study_name=sweeper.study_name, storage=str(sweeper.storage))
    states = optuna.trial.TrialState
    cut_off = [trial for trial in study.trials if trial.state == states.RUNNING]
    for trial in cut_off:  # of a process that is gone: the sweep's lock is ours
        study.tell(trial.number, state=states.FAIL)
        if trial.params:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # optuna 2 calls it experimental; optuna 4 has it unchanged
                study.enqueue_trial(trial.params)
    complete = sum(trial.state == states.COMPLETE for trial in study.trials)
    logger.info(
        "The study has %d of %d trials; %d that were cut off are done again.", complete, sweeper.n_trials, len(cut_off)
    )
    with open_dict(config):
        sweeper.n_trials = max(0, sweeper.n_trials - complete)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += len(study.trials)
