"""A copy of the package for work that takes hours: what is edited meanwhile does not get into half of its runs."""

import shutil
from pathlib import Path

import curlora_lab
from curlora_lab import config
from curlora_lab.continual.files import replacing, size_below, write_json
from curlora_lab.continual.identity import source_hash
from curlora_lab.continual.record import git_commit

ABOUT = "snapshot.json"


def take(folder: Path) -> Path:
    """Copy package and configuration, unless that was done before.

    Args:
        folder: where the copy goes; one that is there is kept as it is.

    Returns:
        The folder: ``src/curlora_lab`` and ``conf`` below it, ``snapshot.json`` with their commit and hash.
    """
    if (folder / ABOUT).is_file():
        return folder
    package = Path(curlora_lab.__file__).parent
    with replacing(folder, size=size_below(package)) as new:
        skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(package, new / "src" / package.name, ignore=skipped)
        if package not in config.conf_dir().parents:
            shutil.copytree(config.conf_dir(), new / "conf")
        about = {"commit": git_commit(), "source_hash": source_hash(), "version": curlora_lab.__version__}
        write_json(new / ABOUT, about)
    return folder
