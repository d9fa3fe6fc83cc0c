"""The command line: ``python train.py adapter=curlora rank=16`` (or ``curlora-train`` where the package is installed)."""

import logging
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from curlora_lab import config

config.register()


def main() -> None:
    """Check the spelling of the root keys, then let Hydra compose the configuration and run it."""
    arguments = sys.argv[1:]
    try:
        if not {"-sc", "--shell-completion"} & set(arguments):  # there query=... and install=... are Hydra's own
            config.check_overrides(arguments)
    except config.ConfigError as error:
        sys.exit(f"{error}")
    _compose_and_run()


@hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="train")
def _compose_and_run(cfg: DictConfig) -> float | None:
    """Run one configuration; the value is the objective of a sweep."""
    plain = config.validate(cfg)
    from curlora_lab.run import RunLockedError, run  # after validation: model libraries take seconds to import

    try:
        return run(plain, overrides=list(HydraConfig.get().overrides.task))
    except RunLockedError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise config.RunError(str(error)) from error
        logging.getLogger(__name__).error(error)
        sys.exit(3)


if __name__ == "__main__":
    main()
