"""The small study as anyone starts it: killed, started again, published."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curlora_lab.report.archive import read_archive
from curlora_lab.sweeps.workload import workload

ROOT = Path(__file__).parents[2]


def call(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "study_small.py"), "--out", str(out), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )


def done(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("scenario", ["sequential", pytest.param("joint", marks=pytest.mark.slow)])
def test_tokens_are_counted_before_they_are_trained_on(
    scenario: str, configured: Callable[..., dict[str, Any]], small_run: Callable[..., dict[str, Any]]
) -> None:
    words = ("~sequence.tasks.paraphrase", f"scenario={scenario}", "epochs=2", "batch_size=24", "adapter=none")
    expected = workload(configured(*words))
    record = small_run(*words)
    assert record["cost"]["tokens"] == expected.trained
    (probe,) = record["probes"]["details"].values()
    assert expected.probed == probe["tokens"] * len(record["scores"])
    assert expected.scored % len(record["scores"]) == 0
    assert 0 < expected.watched < expected.trained


@pytest.mark.slow
def test_a_quick_study_from_its_first_run_to_the_repository(tmp_path: Path) -> None:
    out = tmp_path / "a study"
    first = call(out, "--size", "quick")
    until = time.monotonic() + 300
    while time.monotonic() < until and not list(out.glob("choosing/*/*/RUN_MANIFEST.json")):
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches all of them
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 130, output
    finished = list(out.glob("choosing/*/*/RUN_MANIFEST.json"))
    assert finished
    stamps = [path.stat().st_mtime_ns for path in finished]

    output = done(call(out))
    assert [path.stat().st_mtime_ns for path in finished] == stamps, "what was finished is not done again"
    assert (out / "pages" / "compare" / "aggregate.md").is_file()
    assert "12 runs in 6 multiruns, 12 done" in done(call(out, "--list"))
    assert "compare-of-lora_16: done before" in done(call(out)), output

    done(call(out, "--publish", str(tmp_path / "docs")))
    entries = list(read_archive(tmp_path / "docs" / "runs.jsonl.gz"))
    assert sorted(entry["record"]["config"]["seed"] for entry in entries) == [0, 0, 0, 1, 1, 1]
    tuned = json.loads((tmp_path / "docs" / "tuned.json").read_text())
    (rates,) = tuned["tune-lora_16"]["methods"]
    lora = [e["record"] for e in entries if e["record"]["config"]["adapter"]["name"] == "lora"]
    assert {record["config"]["lr"] for record in lora} == {rates["lr"]}
    assert {record["config"]["head_lr"] for record in lora} == {tuned["head-head_only"]["methods"][0]["head_lr"]}
