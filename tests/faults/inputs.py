"""Inputs that change while a run is interrupted: base weights, tokenizer, rows. The run is not continued with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import cases
from tests.faults.points import NAMES, Counting
from tests.faults.tally import Tally
from tests.faults.warm import KILLED, Child, Shared, fork

LAW = "refused with the name of what has changed; nothing of the interrupted run is touched"


def _edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _tokenizer(path: Path) -> None:
    path.write_text(path.read_text().rstrip() + "\n ")


#: What is changed -> how, and what the message must name.
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a word of a training row": (
        lambda place: _edit(place / "data/toy/train.jsonl", lambda rows: rows[3].update(text="another text")),
        "the rows of task 'toy'",
    ),
    "a label of a training row": (
        lambda place: _edit(place / "data/toy/train.jsonl", lambda rows: rows[3].update(label=1 - rows[3]["label"])),
        "the rows of task 'toy'",
    ),
    "a test row less": (
        lambda place: _edit(place / "data/toy/test.jsonl", lambda rows: rows.pop()),
        "the rows of task 'toy'",
    ),
    "a bit of the base weights": (lambda place: _flip(place / "model/model.safetensors"), "the content of the model"),
    "a byte of the tokenizer": (lambda place: _tokenizer(place / "model/tokenizer.json"), "the content of the model"),
}


def changed(tally: Tally, workplace: Path, *, names: tuple[str, ...] = tuple(CHANGES)) -> Tally:
    """Kill a run inside its stage, change an input, and give the same command again."""
    with tally.timed():
        started = _interrupted(workplace)
        for name in names:
            place = Path(shutil.copytree(started, workplace / "changed"))
            change, says = CHANGES[name]
            change(place)
            before = _content(place)
            child = _command(place)
            code, text = child.wait(), child.text()
            if code != 2 or says not in text or "Traceback" in text:
                tally.failed(f"{name}: exit code {code}, {text[-300:]}")
            elif _content(place) != before:
                tally.failed(f"{name}: the interrupted run was touched")
            else:
                tally.ended("refused with the name of what has changed")
            shutil.rmtree(place)
    return tally


def _interrupted(workplace: Path) -> Path:
    """A run of one task from local files, killed in its second epoch."""
    place = workplace / "started"
    shutil.copytree(cases.small_model(workplace / "models" / "small"), place / "model")
    (place / "data" / "toy").mkdir(parents=True)
    for split, count in (("train", 40), ("test", 12)):
        rows = [{"text": f"the {split} sentence number {n} is long", "label": n % 2} for n in range(count)]
        (place / "data" / "toy" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    child = _command(place, ("step", 6))
    if (code := child.wait()) != KILLED:
        raise AssertionError(f"the run was to be killed and ended with {code}: {child.text()[-2000:]}")
    return place


def _command(place: Path, at: tuple[str, int] | None = None) -> Child:
    task = [
        "task=builtin_sentiment2",
        "task.name=toy",
        "task.data.columns=[text]",
        "task.data.source.generator=null",
        "task.data.source.splits={train: train, test: test, choose: null}",
        "task.data.source.data_dir=data",
    ]
    own = [override for override in cases.SMALL if "sequence" not in override]
    own += ["train_rows=null", "eval_rows=null"]  # every row is used

    def work() -> int:
        from curlora_lab import config

        given = [*own, *task, "adapter=lora", "name=mine", "model=local", "model.path=model"]
        configuration = config.validate(cases.composed(given))
        Counting(Shared(len(NAMES)), at).install()
        return cases.do_run(configuration)

    return fork(work, cwd=place, log=place.parent / "output.txt")


def _content(place: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in place.rglob("runs/toy/**/*")
        if path.is_file() and path.suffix != ".log"
    }
