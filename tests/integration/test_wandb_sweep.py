"""A W&B sweep from its definition to a trial's result, against a stub of the server's side of the protocol."""

import gzip
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import yaml

from curlora_lab import config

ROOT = Path(__file__).parents[2]
DEFINITION = yaml.safe_load((config.conf_dir() / "wandb_sweep.yaml").read_text())
SMALL = (
    "task=builtin_sentiment2",
    "train_rows=48",
    "eval_rows=40",
    "epochs=1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "probe.probes.builtin.source.sizes.test=10",
    "probe.probes.builtin.shift_positions=32",
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sweep_script", ROOT / "scripts" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_the_definition_serves_every_method(script, method, monkeypatch):
    monkeypatch.setattr(script, "check", lambda definition: None)  # composed below
    found = script.build(DEFINITION, method=method, metric=None, overrides=[])
    assert found["method"] == method
    assert set(found["parameters"]) == {"adapter", "rank", "alpha", "lr", "seed"}
    assert found["command"][-1] == "${args_no_hyphens}"
    assert "logger=wandb" in found["command"]
    assert found["metric"] == {"name": "continual/average", "goal": "maximize"}


def test_every_trial_of_the_definition_could_run(script):
    script.check(
        {**DEFINITION, "parameters": {**DEFINITION["parameters"], "rank": {"values": [8]}, "seed": {"value": 0}}}
    )


def test_parameters_are_given_as_on_the_command_line(script, monkeypatch):
    monkeypatch.setattr(script, "check", lambda definition: None)
    overrides = ["rank=4,8", "adapter=lora", "lr=tag(log,interval(1e-4,1e-2))", "alpha=interval(0.5,2)", "~seed"]
    found = script.build(DEFINITION, method=None, metric="probe/builtin/perplexity_ratio", overrides=overrides)
    assert found["parameters"] == {
        "adapter": {"value": "lora"},
        "rank": {"values": [4, 8]},
        "alpha": {"distribution": "uniform", "min": 0.5, "max": 2.0},
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
    }
    assert found["metric"]["goal"] == "minimize"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grid", "parameters": {"lr": {"min": 1e-4, "max": 1e-2}}}, "give lr=a,b,c"),
        ({"parameters": {"rnk": {"value": 8}}}, "Did you mean 'rank'"),
        ({"parameters": {"rank": {"values": [8, 0]}}}, "rank=0 must be at least 1"),
        ({"parameters": {"adapter": {"values": ["lora", "lorra"]}}}, "adapter=lorra"),
        ({"metric": {"name": "continual/averge", "goal": "maximize"}}, "Did you mean 'continual/average'"),
        ({"method": "hillclimb"}, "choose from grid, random, bayes"),
        ({"parameters": {"rank": {"distribution": "normal"}}}, "neither value, values nor min and max"),
    ],
)
def test_a_sweep_that_could_not_run_is_not_created(script, change, message):
    definition = {**DEFINITION, "method": "random", "parameters": {"rank": {"value": 8}}, **change}
    with pytest.raises(script.SweepError, match=re.escape(message)):
        script.check(definition)


def test_a_dry_run_needs_no_server(script, capsys, monkeypatch):
    monkeypatch.setattr(wandb, "sweep", lambda *args, **kwargs: pytest.fail("something was sent"))
    assert script.main(["create", "--dry-run", "--method", "grid", "adapter=lora", "rank=8", "alpha=1", "lr=1e-3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"] == "grid"


def test_without_a_server_it_is_said(script, capsys, monkeypatch):
    monkeypatch.setattr(script, "why_offline", lambda: "nobody is logged in; run `wandb login` once")
    monkeypatch.setattr(script, "check", lambda definition: None)
    for arguments in (["create"], ["show", "abc"]):
        assert script.main(arguments) == 2
        assert "wandb login" in capsys.readouterr().err


def test_the_best_runs_are_shown_first(script, capsys, monkeypatch):
    def run(name, value):
        summary = {} if value is None else {"continual/average": value}
        return SimpleNamespace(name=name, state="finished", summary=summary, config={"rank": 8})

    runs = [run("none", None), run("low", 0.25), run("high", 0.75)]
    definition = {
        "method": "bayes",
        "metric": {"name": "continual/average", "goal": "maximize"},
        "parameters": {"rank": {}},
    }
    found = SimpleNamespace(name="abc123", state="RUNNING", config=definition, runs=runs)
    asked = []
    monkeypatch.setattr(script, "why_offline", lambda: None)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(sweep=lambda path: asked.append(path) or found))
    assert script.main(["show", "abc123", "--entity", "someone", "--project", "forgetting"]) == 0
    assert asked == ["someone/forgetting/abc123"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["high", "low", "none"]


def test_trials_are_done_where_train_py_lies(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(["join", "abc"]) == 2
    assert "no train.py" in capsys.readouterr().err


# -- the protocol ------------------------------------------------------------------------------------------------------


VIEWER = {
    "id": "V",
    "name": "someone",
    "username": "someone",
    "email": None,
    "admin": False,
    "flags": "{}",
    "entity": "someone",
    "deletedAt": None,
}


class Service(http.server.BaseHTTPRequestHandler):
    """The server's side: it keeps the sweep, hands out one trial, and takes what the trial's run sends."""

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.body()
        self.answer({})

    def do_POST(self):
        body = self.body()
        if "file_stream" in self.path:
            self.server.streamed.append(body)
            self.answer({"exitcode": None, "limits": {}})
        elif self.path == "/graphql":
            self.answer({"data": self.graphql(body)})
        else:
            self.answer({})

    def body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        try:
            return json.loads(content)
        except ValueError:
            return {}

    def graphql(self, body):
        name, given = body.get("operationName") or "", body.get("variables") or {}
        query = re.search(r"(?:mutation|query)\s+(\w+)", body.get("query", ""))
        name = name or (query[1] if query else "")
        self.server.asked.append(name)
        project = {"id": "p", "name": "forgetting", "entity": {"id": "e", "name": "someone"}}
        sweep = {
            "id": "S",
            "name": "abc123",
            "state": "RUNNING",
            "config": self.server.config,
            "runs": {"edges": []},
            "bestLoss": None,
        }
        if "viewer" in body.get("query", ""):
            return {"viewer": {**VIEWER, "apiKeys": {"edges": []}, "teams": {"edges": []}}}
        if name == "UpsertSweep":
            self.server.config = given["config"]
            self.server.project = given["projectName"]
            return {"upsertSweep": {"sweep": {**sweep, "project": project}, "configValidationWarnings": []}}
        if name == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(self.commands(given))}}
        if name == "UpsertBucket":
            self.server.runs.append(given)
        bucket = {
            "id": "b",
            "name": given.get("name"),
            "displayName": "d",
            "config": "{}",
            "project": project,
            "historyLineCount": 0,
            "sweepName": "abc123",
        }
        answers = {
            "SweepWithRuns": {"project": {**project, "sweep": sweep}},
            "CreateAgent": {"createAgent": {"agent": {"id": "A"}}},
            "RunResumeStatus": {"model": {**project, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }
        return answers.get(name, {})

    def commands(self, given):
        """One trial; once it has ended, the end."""
        states = json.loads(given.get("runState") or "{}")
        if not self.server.handed:
            self.server.handed = True
            parameters = yaml.safe_load(self.server.config)["parameters"]
            args = {
                key: {"value": node.get("value", (node.get("values") or [None])[0])} for key, node in parameters.items()
            }
            return [{"type": "run", "run_id": "trial001", "program": "train.py", "args": args}]
        return [] if states.get("trial001") else [{"type": "exit"}]

    def answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    made.asked, made.runs, made.streamed, made.config, made.handed = [], [], [], None, False
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.slow
def test_a_sweep_is_created_and_a_trial_reports_the_metric(service, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {f"WANDB_{name}_DIR": str(tmp_path / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    environment |= {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": "a" * 40, "WANDB_DIR": str(tmp_path)}
    environment |= {"WANDB_AGENT_REPORT_INTERVAL": "1"}

    def sweep(*arguments):
        command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    small = [*SMALL, f"output_dir={tmp_path / 'runs'}", "adapter=curlora", "rank=4", "alpha=1", "lr=1e-3", "seed=0"]
    output = sweep("create", "--method", "grid", "--project", "forgetting", "--entity", "someone", *small)
    assert "sweep.py join someone/forgetting/abc123" in output
    assert service.project == "forgetting"
    sent = yaml.safe_load(service.config)
    assert sent["metric"] == {"name": "continual/average", "goal": "maximize"}
    assert sent["parameters"]["rank"] == {"value": 4} or sent["parameters"]["rank"]["value"] == 4

    sweep("join", "someone/forgetting/abc123")
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/results.json")]
    assert record["status"] == "finished"
    assert record["config"]["rank"] == 4
    assert "CreateAgent" in service.asked
    assert {run["name"] for run in service.runs} == {"trial001"}, "the agent's id, so that the trial is the sweep's"
    assert any(run.get("sweep") == "abc123" for run in service.runs)
    summaries = [
        json.loads(line)
        for body in service.streamed
        for line in (body.get("files") or {}).get("wandb-summary.json", {}).get("content", [])
    ]
    reported = {}
    for summary in summaries:
        reported |= summary
    assert reported["continual/average"] == record["continual"]["average"]
