"""The logger's decisions, against a stand-in for the service's client."""

import logging
from types import SimpleNamespace

import pytest
import wandb

from curlora_lab.loggers import WandbRunLogger, wandb_run

KEY = "0123456789abcdef" * 4
HYPERPARAMETERS = {"key": KEY, "adapter": {"name": "curlora"}, "model": {"name": "tiny"}, "seed": 0}


class FakeRun:
    """What the logger uses of a ``wandb.Run``."""

    def __init__(self, arguments):
        self.arguments = arguments
        mode = arguments["mode"] or "online"
        self.settings = SimpleNamespace(mode=mode, sync_dir=f"{arguments['dir']}/wandb/{mode}-run")
        self.history, self.axes, self.artifacts, self.summary = [], {}, [], {}
        self.finished = None

    def log(self, values):
        self.history.append(values)

    def define_metric(self, name, step_metric=None, summary=None, hidden=None):
        self.axes[name] = (step_metric, summary)

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)
        return artifact

    def finish(self, exit_code):
        self.finished = exit_code


@pytest.fixture
def started(monkeypatch):
    """All runs that were started, instead of starting them."""
    runs = []

    def init(**arguments):
        runs.append(FakeRun(arguments))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "why_offline", lambda: None)
    for name in ("WANDB_RUN_ID", "WANDB_RUN_GROUP", "WANDB_SWEEP_ID", "WANDB_TAGS", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return runs


@pytest.fixture
def made(started, tmp_path):
    """A logger for the run folder ``demo/run``."""

    def make(hyperparameters=HYPERPARAMETERS, **arguments):
        logger = WandbRunLogger(save_dir=str(tmp_path / "demo" / "run"), **arguments)
        logger.log_hyperparams(hyperparameters)
        return logger

    return make


def test_a_run_is_named_tagged_and_grouped_by_what_it_is(made, started):
    made(tags=["mine", "tiny"])
    given = started[0].arguments
    assert given["id"] == KEY[:16]
    assert given["name"] == "run"
    assert given["group"] == "demo"
    assert given["tags"] == ["curlora", "tiny", "demo", "mine"]
    assert (given["job_type"], given["resume"], given["project"]) == ("train", "allow", "curlora_lab")
    assert given["config"] == HYPERPARAMETERS
    assert given["settings"].init_timeout <= 15


def test_the_same_run_has_the_same_id_and_a_fresh_one_another(made, started, tmp_path):
    made()
    made()
    (tmp_path / "demo" / "run.old1").mkdir()
    made()
    assert [run.arguments["id"] for run in started] == [KEY[:16], KEY[:16], f"{KEY[:16]}-1"]


def test_sweeps_group_by_sequence_and_model(made, started, monkeypatch):
    made({**HYPERPARAMETERS, "sweep": True})
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    made()
    assert [run.arguments["group"] for run in started] == ["demo-tiny", "demo-tiny"]
    assert started[1].arguments["id"] is None, "the agent's id stands in the environment"
    assert started[1].arguments["project"] is None


def test_what_the_user_says_goes_first(made, started, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "environment")
    monkeypatch.setenv("WANDB_TAGS", "more")
    made()
    made(group="argument")
    assert [run.arguments["group"] for run in started] == ["environment", "argument"]
    assert "more" in started[0].arguments["tags"]


def test_each_kind_of_metric_has_its_axis(made, started):
    logger = made()
    logger.log_metrics({"train/a/loss": 1.0}, step=7)
    logger.log_metrics({"stage": 1.0, "eval/a/accuracy": 0.5}, step=1)
    assert started[0].history == [
        {"train/a/loss": 1.0, "trainer/global_step": 7},
        {"stage": 1, "eval/a/accuracy": 0.5},
    ]
    assert started[0].axes["train/*"] == ("trainer/global_step", "min")
    assert {started[0].axes[f"{kind}/*"][0] for kind in ("eval", "probe", "continual", "shift")} == {"stage"}


def test_an_unreachable_service_leads_offline_with_one_warning(made, started, monkeypatch, caplog):
    monkeypatch.setattr(wandb_run, "why_offline", lambda: "nobody there")
    with caplog.at_level(logging.WARNING):
        logger = made()
        logger.log_metrics({"train/a/loss": 1.0}, step=1)
    assert [run.arguments["mode"] for run in started] == ["offline"]
    assert len(caplog.messages) == 1
    assert "nobody there" in caplog.messages[0]
    assert f"wandb sync {started[0].settings.sync_dir}" in caplog.messages[0]


def test_a_failing_start_leads_offline(made, monkeypatch, started, caplog):
    offline = wandb.init

    def failing(**arguments):
        if arguments["mode"] is None:
            raise wandb.errors.CommError("timeout")
        return offline(**arguments)

    monkeypatch.setattr(wandb, "init", failing)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    made()
    assert started[0].arguments["mode"] == "offline"
    assert "CommError: timeout" in caplog.text


def test_not_even_offline_still_trains(made, monkeypatch, record, run_folder, caplog, started):
    def failing(**arguments):
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", failing)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    logger = made()
    logger.log_metrics({"train/a/loss": 1.0}, step=1)
    logger.publish(record, run_folder)
    logger.finalize("success")
    assert caplog.text.count("disk full") == 1


def test_faults_of_the_service_never_reach_training(made, started, monkeypatch, record, run_folder, caplog):
    logger = made()

    def failing(*args, **kwargs):
        raise ConnectionResetError("gone")

    for name in ("log", "log_artifact", "finish"):
        monkeypatch.setattr(started[0], name, failing)
    for step in range(3):
        logger.log_metrics({"train/a/loss": 1.0}, step=step)
    logger.publish(record, run_folder)
    logger.finalize("success")
    assert caplog.text.count("log_metrics failed") == 1


def test_the_end_of_a_stage_is_not_the_end_of_the_run(made, started, record, run_folder):
    logger = made()
    logger.finalize("success")
    assert started[0].finished is None
    started[0].settings.mode = "offline"
    logger.publish(record, run_folder)
    logger.finalize("success")
    assert started[0].finished == 0
    logger.finalize("success")
    assert len(started) == 1, "the end must not open a new run"


def test_a_failure_ends_the_run_as_failed(made, started):
    logger = made(offline=True)
    logger.finalize("failed")
    assert started[0].finished == 1


def test_what_did_not_get_through_in_time_is_said(made, started, monkeypatch, caplog):
    logger = made(offline=True)

    def slow(exit_code):
        raise TimeoutError

    monkeypatch.setattr(started[0], "finish", slow)
    logger.finalize("failed")
    assert f"wandb sync {started[0].settings.sync_dir}" in caplog.text


def test_rows_reused_from_another_run_are_sent_too(made, started, record, run_folder):
    logger = made(offline=True)
    logger.log_metrics({"stage": 2, "eval/first/accuracy": 0.5}, step=2)
    logger.publish(record, run_folder)
    stages = [row["stage"] for row in started[0].history if "eval/first/accuracy" in row]
    assert sorted(stages) == [0, 1, 2]
    assert started[0].summary["eval/first/accuracy"] == 0.5, "the summary keeps the final row, whatever was sent last"


def test_artifacts_hold_the_run_folders_files(made, started, record, run_folder):
    logger = made(offline=True)
    logger.publish(record, run_folder)
    found = {artifact.type: sorted(artifact.manifest.entries) for artifact in started[0].artifacts}
    assert found == {
        "result": ["config.yaml", "results.json"],
        "report": ["report.html"],
        "adapter": ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "head.safetensors"],
    }


def test_the_adapter_can_stay_at_home(made, started, record, run_folder):
    made(offline=True, log_adapter=False).publish(record, run_folder)
    assert {artifact.type for artifact in started[0].artifacts} == {"result", "report"}


def test_any_run_name_makes_an_artifact_name(made, started, record, run_folder):
    record["name"] = "größer / als: " + "x" * 200
    made(offline=True).publish(record, run_folder)
    assert len(started[0].artifacts) == 3


def test_a_wait_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ValueError, match="init_timeout=60"):
        WandbRunLogger(save_dir=str(tmp_path), init_timeout=60)
