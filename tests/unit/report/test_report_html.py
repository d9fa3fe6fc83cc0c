import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from curlora_lab.report.html import render_report, write_report
from curlora_lab.report.record import RecordError

VOID = {"meta", "br", "img", "hr", "input", "link", "line", "path"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def test_page_is_one_file_without_network(record) -> None:
    text = render_report(record)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "img", "iframe", "object"}
    assert not re.findall(r"(?:src|href)=\"(?!#)", text)
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text) < 2_500_000


def test_nothing_runs_but_the_two_scripts_that_the_policy_names(record) -> None:
    page = Page(render_report(record))
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/json", "text/plain", None]
    figures, packed, own = page.scripts
    assert all("data" in figure and "layout" in figure for figure in json.loads(figures).values())
    policy = next(
        str(attrs["content"]) for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    library = gzip.decompress(base64.b64decode(packed))
    hashes = [base64.b64encode(hashlib.sha256(code).digest()).decode() for code in (own.encode(), library)]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert library.startswith(b"/**\n* plotly.js")


def test_every_chart_has_a_place_a_name_and_its_numbers(record) -> None:
    page = Page(render_report(record))
    plots = {attrs["id"]: attrs["aria-label"] for tag, attrs in page.tags if attrs.get("class") == "plot"}
    assert set(plots) == set(json.loads(page.scripts[0]))
    assert all(plots.values())
    assert sum(attrs.get("class") == "numbers" for _, attrs in page.tags) == len(plots)
    assert len(plots) == 3 + 2 + 2  # tasks; perplexity and KL; weights by layer and over the stages


def test_the_same_record_gives_the_same_page(record) -> None:
    assert render_report(record) == render_report(record)


def test_page_shows_every_part(record) -> None:
    page = Page(render_report(record))
    for expected in (
        "3 warnings", "constant prediction", "0.689", "equivalent", "4.704 → 9.041", "Protocol: first 200 rows",
        "v_proj", "4,608", "3 min 32 s", "774 MiB", "python train.py sequence=paper",
        "basis: inverse_norm", "6d7eda0", "reused from", "lost their end", "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert expected in page.text
    assert page.text.index("3 warnings") < page.text.index("Scores after each stage")


def test_page_is_accessible(record) -> None:
    page = Page(render_report(record))
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if attrs.get("role") == "img")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)


EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7*7 }}"


def poison(value: Any) -> Any:
    """Put markup into every text and every name of a record."""
    if isinstance(value, dict):
        return {key: poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


def test_everything_from_the_record_is_escaped(record) -> None:
    renamed = json.loads(
        json.dumps(record).replace("tinystories", "<blink>tiny</blink>").replace('"mrpc', '"<marquee>mrpc</marquee>')
    )
    for key in ("message", "name", "config", "overrides", "warnings", "provenance"):
        renamed[key] = poison(renamed[key])
    renamed["status"] = "failed"
    renamed["message"] = EVIL
    for baseline in renamed["baselines"].values():
        baseline["constant_label"] = EVIL
    renamed["reasons"] = poison(renamed["reasons"])
    renamed["probes"]["details"]["<blink>tiny</blink>"]["protocol"] = EVIL
    text = render_report(renamed)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"img", "blink", "marquee"}
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert "<" not in page.scripts[0]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not re.findall(r">\s*(49)\s*<", text)
    assert "{{ 7*7 }}" in page.text
    assert EVIL in page.text


def test_missing_values_are_dashes_with_reasons(record) -> None:
    record["probes"]["perplexity"]["tinystories"] = [4.7, 5.0, None, None]
    record["reasons"]["probes.perplexity.tinystories[3]"] = "perplexity is inf: the model is destroyed"
    page = Page(render_report(record))
    assert "perplexity is inf: the model is destroyed" in page.text
    assert "4.7 → –" in page.text
    assert "the head of 'sst2', 'sentiment140' is random" in page.text


def test_running_failed_and_empty_records_render(running, changed) -> None:
    text = Page(render_report(running)).text
    assert "not finished when this page was written" in text
    assert "1 of 3 stages are measured" in text
    assert "No warnings" not in text
    interrupted = {**running, "status": "interrupted", "message": "the run was stopped by SIGTERM"}
    assert "goes on where it stopped" in Page(render_report(interrupted)).text
    failed = changed(status="failed", message="loss is not finite in batch 12")
    assert "loss is not finite in batch 12" in Page(render_report(failed)).text
    nothing = changed(
        warnings=[],
        scores=[[None] * 3] * 4,
        metrics={task: [{}] * 4 for task in failed["tasks"]},
        probes={"perplexity": {}, "bits_per_character": {}, "details": {}},
        shift={"weight": [None] * 4, "output": {}},
        cost={"seconds": 0, "stages": [], "evaluation_seconds": 0, "tokens": 0, "peak_memory_bytes": 0},
    )
    text = Page(render_report(nothing)).text
    assert "no scores yet" in text
    assert "No warnings" in text


def test_warnings_of_the_whole_run_have_no_place(record) -> None:
    record["warnings"] = [{"code": "untuned_rate", "task": None, "stage": None, "message": "no rate was tuned"}]
    text = Page(render_report(record)).text
    assert "1 warning" in text
    assert "None" not in text


def test_write_report_replaces_the_page(record, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record))
    (tmp_path / "report.html").write_text("old")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_report(record)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]


def test_a_broken_record_leaves_the_old_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(RecordError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_what_the_strategy_cost_is_named_number_by_number(record, changed) -> None:
    assert "What the strategy cost" not in Page(render_report(record)).text
    held = {
        "seconds": 3.12,
        "outside_seconds": 1.0,
        "projected_steps": 7.0,
        "stored_bytes": 12288.0,
        "stored_rows": 64.0,
    }
    cost = {**record["cost"], "strategy": {**held, "stages": [held]}}
    text = Page(render_report(changed(cost=cost))).text
    shown = " ".join(text[text.index("What the strategy cost") :].split())
    for words in (
        "time in its hooks and backward through its penalty3.1 s",
        "in no stage above1.0 s",
        "projected steps7",
        "memory kept, at most12 KiB",
        "rows kept, at most64",
    ):
        assert words in shown
    nothing = {"seconds": 0.001, "outside_seconds": 0.0, "stored_bytes": 0.0, "stored_rows": 0.0, "stages": []}
    text = render_report(changed(cost={**record["cost"], "strategy": nothing}))
    assert "What the strategy cost" not in text
