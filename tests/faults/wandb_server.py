"""A W&B server that is not there, is silent, in trouble, or goes away midway; a run's logger meets it in its own process."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.tally import Tally

#: Seconds that W&B may cost a run in all.
MOST = 20.0

LAW = "training loses at most 20 s and no number; what was not sent lies in the run folder, and the run says how to send it"

SCRIPT = """
import logging, sys, time
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
from curlora_lab.loggers import WandbRunLogger
print("began", time.time(), flush=True)
logger = WandbRunLogger(save_dir=sys.argv[1])
logger.log_hyperparams({"key": "0123456789abcdef" * 4, "adapter": {"name": "curlora"}, "model": {"name": "tiny"}})
logger.log_metrics({"stage": 0, "eval/a/accuracy": 0.5}, step=0)
print("mode", logger.experiment.settings.mode, flush=True)
sys.stdin.readline()
for step in range(50):
    logger.log_metrics({"train/a/loss": 1.0}, step=step)
logger.finalize("failed")
print("done", flush=True)
"""


class Server(http.server.ThreadingHTTPServer):
    """A server that answers everything with one status.

    Args:
        status: The status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Service)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Go away."""
        self.shutdown()
        self.server_close()


class Service(http.server.BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs to start."""

    server: Server

    def do_GET(self) -> None:
        """Anything."""
        self._answer({})

    def do_POST(self) -> None:
        """The queries with which a run starts."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = json.loads(body) if self.path == "/graphql" else {}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        name = (query.get("variables") or {}).get("name")
        bucket = {
            "id": "b",
            "name": name,
            "displayName": name,
            "config": "{}",
            "project": project,
            "historyLineCount": 0,
        }
        answers = {
            "RunResumeStatus": {"model": {**project, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }
        self._answer({"data": answers.get(query.get("operationName"), {})})

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(status: int = 200) -> Iterator[Server]:
    """A server that answers with a status."""
    made = Server(status)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        made.stop()


@dataclass(frozen=True)
class Life:
    """How a run's logger fared.

    Args:
        mode: ``online`` or ``offline``.
        output: What was said.
        seconds: How long it took, its process's end included.
        code: Its exit code.
    """

    mode: str
    output: str
    seconds: float
    code: int


def life(url: str, folder: Path, *, key: str | None = "a" * 40, midway: Callable[[], object] = lambda: None) -> Life:
    """A run's life as far as its logger sees it, in a process of its own.

    Args:
        url: Where the server should be.
        folder: The run folder.
        key: The key for it, if there is one.
        midway: Done after the first numbers.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {f"WANDB_{name}_DIR": str(folder.parent / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    environment |= {"WANDB_BASE_URL": url, "HOME": str(folder.parent), **({"WANDB_API_KEY": key} if key else {})}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    lines = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        for line in process.stdout:
            lines.append(line)
            if line.startswith("mode"):
                midway()
                process.stdin.write("\n")
                process.stdin.flush()
    ended = time.time()
    words = [line.split(maxsplit=1) for line in lines if line.strip()]
    found = dict(pair for pair in words if pair[0] in ("began", "mode") and len(pair) == 2)
    seconds = ended - float(found.get("began", "nan"))
    return Life(found.get("mode", "").strip(), "".join(lines), seconds, process.returncode)


def wandb_down(tally: Tally, workplace: Path, *, silent: str, say: Callable[[str], None] = print) -> Tally:
    """Meet a server in each of its troubles.

    Args:
        tally: Counts.
        workplace: For the run folders.
        silent: An address that takes connections and never answers.
        say: Told how it went.
    """

    def against(status: int, *, stops: bool = False) -> Life:
        with serving(status) as server:
            return life(
                server.url, workplace / f"{status}-{stops}" / "run", midway=server.stop if stops else lambda: None
            )

    troubles: dict[str, tuple[Callable[[], Life], str]] = {
        "nobody listens": (lambda: life("http://127.0.0.1:9", workplace / "nobody" / "run"), "offline"),
        "nobody answers": (lambda: life(silent, workplace / "silent" / "run"), "offline"),
        "the server is in trouble (503)": (lambda: against(503), "offline"),
        "the key is refused (401)": (lambda: against(401), "offline"),
        "the server goes away midway": (lambda: against(200, stops=True), "online"),
    }
    with tally.timed():
        for name, (meet, mode) in troubles.items():
            found = meet()
            told = "wandb sync" in found.output and "Traceback" not in found.output
            if found.code == 0 and found.mode == mode and told and found.seconds < MOST and "done" in found.output:
                tally.ended(f"W&B, {name}: told, everything is kept")
            else:
                tally.failed(f"W&B, {name}: {found.seconds:.1f} s, mode {found.mode!r}: {found.output[-300:]}")
        say(f"services: W&B: {tally.tried} tried, {len(tally.failures)} failures")
    return tally
