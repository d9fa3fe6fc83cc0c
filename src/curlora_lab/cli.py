"""The command line: ``python train.py adapter=curlora rank=16`` (or ``curlora-train`` where the package is installed)."""

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from curlora_lab import config, sweeps
from curlora_lab.sweeps import objectives

config.register()


def main() -> None:
    """Check the spelling of the root keys, then let Hydra compose the configuration and run it."""
    arguments = sys.argv[1:]
    try:
        if not {"-sc", "--shell-completion"} & set(arguments):  # there query=... and install=... are Hydra's own
            config.check_overrides(arguments)
            sweeps.check_plugins(arguments)
    except config.ConfigError as error:
        sys.exit(f"{error}")
    try:
        with sweeps.sweeping(sys.argv):
            _compose_and_run()
    except KeyboardInterrupt:  # while libraries are imported or the configuration is checked; a run takes it itself
        sys.stderr.write("Stopped before training; the same command starts again.\n")
        sys.exit(128 + signal.SIGINT)


@hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="train")
def _compose_and_run(cfg: DictConfig) -> sweeps.Value:
    """Run one configuration, alone or as a job of a sweep; the value is what the sweep looks at."""
    config.register()  # worker processes get this function without the module around it
    return sweeps.perform(cfg, lambda entered: _run(cfg, entered))


def _run(cfg: DictConfig, entered: sweeps.Entered | None) -> dict[str, float | None]:
    """Check a configuration and do what it says.

    Args:
        cfg: as Hydra composed it.
        entered: in a sweep, who wants to know the run folder.

    Returns:
        The objectives by name.
    """
    overrides = list(HydraConfig.get().overrides.task)
    plain = settle(cfg, overrides=overrides)
    from curlora_lab.run import RunLockedError, carry_out  # after validation: model libraries take seconds to import

    try:
        found = carry_out(plain, overrides=overrides, entered=entered)
    except RunLockedError as error:
        if entered is not None:
            raise  # the other jobs of the sweep go on
        logging.getLogger(__name__).error(error)
        sys.exit(3)
    return objectives.values(found, plain["objectives"])


def settle(cfg: DictConfig, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Check a configuration; where it names a budget of parameters, choose the rank that meets it, then the tuned rate.

    Args:
        cfg: as Hydra composed it.
        overrides: what was given on the command line; a learning rate there and a tuned one exclude each other.

    Raises:
        ConfigError: lists every fault found.
    """
    plain = config.validate(cfg)
    if plain["budget"] is not None:
        from curlora_lab.budget import meet_budget

        cfg = meet_budget(cfg)
        plain = config.validate(cfg)
    if plain["tuned"] is not None:
        from curlora_lab.sweeps import tuned

        plain = config.validate(tuned.apply(cfg, plain, overrides))
    return plain


if __name__ == "__main__":
    main()
