"""The W&B server is not there, is silent, or goes away midway: training loses seconds, not data."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.slow  # each waits for real timeouts, in a process of its own

#: Seconds that W&B may cost a run in all.
MOST = 20.0

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


class Service(http.server.BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs to start."""

    def do_GET(self):
        self.answer({})

    def do_POST(self):
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
        self.answer({"data": answers.get(query.get("operationName"), {})})

    def answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    """Start a server that answers with a status; gives it with its address as ``url``."""
    running = []

    def start(status=200):
        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
        made.status, made.url = status, f"http://127.0.0.1:{made.server_address[1]}"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        running.append(made)
        return made

    yield start
    for made in running:
        made.shutdown()
        made.server_close()


def life(url, folder, *, key="a" * 40, midway=lambda: None):
    """A run's life in its own process: its mode, its output, and the seconds it took, its exit included."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = {f"WANDB_{name}_DIR": str(folder.parent / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    environment |= {
        "WANDB_BASE_URL": url,
        "HOME": str(folder.parent),
        **places,
        **({"WANDB_API_KEY": key} if key else {}),
    }
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("mode"):
                midway()
                process.stdin.write("\n")
                process.stdin.flush()
    ended = time.time()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert "done" in output
    found = dict(line.split(maxsplit=1) for line in lines if line.split(maxsplit=1)[0] in ("began", "mode"))
    return found["mode"].strip(), output, ended - float(found["began"])


def test_nobody_listens(tmp_path):
    mode, output, seconds = life("http://127.0.0.1:9", tmp_path / "demo" / "run")
    assert mode == "offline"
    assert output.count("WARNING") == 1
    assert "wandb sync" in output
    assert seconds < MOST


def test_a_silent_server(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        mode, output, seconds = life(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "demo" / "run")
    assert mode == "offline"
    assert "wandb sync" in output
    assert seconds < MOST


def test_a_server_in_trouble(tmp_path, service):
    mode, output, seconds = life(service(503).url, tmp_path / "demo" / "run")
    assert mode == "offline"
    assert "HTTP 503" in output
    assert seconds < MOST


def test_a_refused_key(tmp_path, service):
    mode, output, seconds = life(service(401).url, tmp_path / "demo" / "run")
    assert mode == "offline"
    assert "401" in output
    assert seconds < MOST


def test_nobody_is_logged_in(tmp_path, service):
    mode, output, seconds = life(service().url, tmp_path / "demo" / "run", key=None)
    assert mode == "offline"
    assert "wandb login" in output
    assert seconds < MOST


def test_a_server_that_stays(tmp_path, service):
    mode, output, seconds = life(service().url, tmp_path / "demo" / "run")
    assert mode == "online"
    assert "WARNING" not in output
    assert seconds < MOST


def test_a_server_that_goes_away_midway(tmp_path, service):
    server = service()

    def stop():
        server.shutdown()
        server.server_close()

    mode, output, seconds = life(server.url, tmp_path / "demo" / "run", midway=stop)
    assert mode == "online"
    assert "wandb sync" in output
    assert list((tmp_path / "demo" / "run" / "wandb").glob("run-*/run-*.wandb")), "everything must be on disk"
    assert seconds < MOST
