"""The hub can't be reached: a message in seconds, and the cache is used where there is one."""

import importlib.util
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from tests.faults import cases, wandb_server
from tests.faults.cases import Case
from tests.faults.tally import Tally
from tests.faults.warm import Child, fork

from curlora_lab import build
from curlora_lab.backbone import BUILTIN_FOLDER

LAW = (
    "hub: an answer within 20 s that names what is missing and the offline command, what is in the cache is used; "
    f"W&B: {wandb_server.LAW}"
)
MOST = 20.0
MODEL, DATA = "nobody/model", "nobody/rows"


@contextmanager
def silent_server() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def unreachable() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def cached_model(cache: Path) -> None:
    """The built-in model as the hub's client keeps one that it has fetched."""
    folder = cache / f"models--{MODEL.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(BUILTIN_FOLDER, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)


SERVERS = {"nobody listens": unreachable, "nobody answers": silent_server}
KINDS = ("model", "data", "cached model")


def hub_down(
    tally: Tally,
    workplace: Path,
    *,
    servers: Sequence[str] = tuple(SERVERS),
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None] = print,
) -> Tally:
    """Build a run whose model or data are on a hub that does not answer, with and without a cache."""
    own = cases.configured(Case("curlora", ("adapter=curlora",), "tiny"), workplace / "models")
    with tally.timed():
        for name in servers:
            for what in kinds:
                place = workplace / f"{name}-{what}".replace(" ", "_")
                (place / "cache").mkdir(parents=True)
                if what == "cached model":
                    cached_model(place / "cache")
                with SERVERS[name]() as address:
                    child, seconds = _built(_configuration(own, what), place, address)
                _judge(tally, f"{name}, {what}", child, seconds, refused=what != "cached model")
        say(f"services: {tally.tried} tried, {len(tally.failures)} failures")
    return tally


def all_down(tally: Tally, workplace: Path, *, say: Callable[[str], None] = print) -> Tally:
    """The hub, and W&B where it is installed."""
    hub_down(tally, workplace, say=say)
    if importlib.util.find_spec("wandb") is None:
        tally.notes.append("W&B is not installed here and was left out")
        return tally
    with silent_server() as silent:
        return wandb_server.wandb_down(tally, workplace / "wandb", silent=silent, say=say)


def _configuration(own: dict[str, Any], what: str) -> dict[str, Any]:
    """A run of the built-in model and rows, with one of them taken from the hub."""
    changed: dict[str, Any] = json.loads(json.dumps(own))
    if what == "data":
        source = changed["sequence"]["tasks"]["paraphrase"]["data"]["source"]
        source |= {"generator": None, "hub": {"path": DATA}}
    else:
        changed["model"]["path"] = MODEL
    return changed


def _built(configuration: dict[str, Any], place: Path, address: str) -> tuple[Child, float]:
    def work() -> int:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            os.environ.pop(name, None)
        import datasets.config

        logging.basicConfig(force=True)  # as the command line has it: warnings on stderr

        constants.ENDPOINT = datasets.config.HF_ENDPOINT = address
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
        constants.HF_HUB_CACHE = str(place / "cache")
        import transformers.utils.hub

        transformers.utils.hub.HF_HUB_CACHE = constants.HF_HUB_CACHE
        for key in ("TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
            if hasattr(transformers.utils.hub, key):
                setattr(transformers.utils.hub, key, constants.HF_HUB_CACHE)
        try:
            build.build(configuration)
        except (ValueError, OSError) as error:
            print(error)
            return 2
        return 0

    began = time.monotonic()
    child = fork(work, cwd=place, log=place / "output.txt")
    child.wait(180)
    return child, time.monotonic() - began


def _judge(tally: Tally, name: str, child: Child, seconds: float, *, refused: bool) -> None:
    text = child.text()
    words = ("HF_HUB_OFFLINE", "data_dir=" if "data" in name else "model.path=") if refused else ()
    missing = [word for word in words if word not in text]
    if (
        seconds > MOST
        or missing
        or "Traceback" in text
        or (refused and "can't be loaded" not in text and "cannot be had" not in text)
    ):
        tally.failed(f"{name}: {seconds:.1f} s, without {missing}: {text[-400:]}")
    else:
        tally.ended(f"{'told' if refused else 'taken from the cache'}, within {seconds:.0f} s")
