from rich.console import Console

from curlora_lab.report import wording
from curlora_lab.report.table import render_table, stage_line


def rendered(record, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=False, stderr=True)
    with console.capture() as capture:
        console.print(render_table(record, "runs/paper/example"))
    return capture.get()


def test_table_has_warnings_matrix_metrics_and_folder(record) -> None:
    text = rendered(record)
    for expected in ("3 warnings", "constant", "untrained", "after 2 · sst2", "0.689", "4.704", "9.041", "+0.653"):
        assert expected in text
    line = next(line for line in text.splitlines() if "tinystories" in line)
    assert line.split() == ["tinystories", "4.704", "9.041", "+0.653", "0.611", "0.575", "→", "0.817"]
    assert "no best achievable score is known" in text
    assert "adapter 4,608 + heads 1,158 parameters, of 3,153,990 (0.183 %)" in text
    assert text.index("3 warnings") < text.index("score after each stage") < text.index("runs/paper/example")
    assert "best" not in text.split("untouched language model")[0].split("score after each stage")[1]


def test_best_row_when_known(record) -> None:
    record["baselines"]["sst2"]["best"] = 0.95
    assert "0.950" in rendered(record)


def test_running_failed_and_clean_records(running, changed) -> None:
    text = rendered(running)
    assert "–" in text
    assert "5.218" in text  # the last measured perplexity
    assert "loss is not finite" in rendered(changed(status="failed", message="loss is not finite [batch 3]"))
    assert "no warnings" in rendered(changed(warnings=[]))


def test_square_brackets_are_text_not_markup(record) -> None:
    record["warnings"][0]["message"] = "[red]not markup[/red] [/]"
    record["probes"]["perplexity"]["[bold]x"] = record["probes"]["perplexity"]["tinystories"]
    text = rendered(record)
    assert "[red]not markup[/red] [/]" in text
    assert "[bold]x" in text


def test_stage_lines(record) -> None:
    assert stage_line(record, 0) == "untrained: mrpc 0.316 | sst2 0.491 | sentiment140 0.512 | tinystories 4.704"
    assert stage_line(record, 2) == (
        "stage 2/3 sst2: accuracy 0.689 (constant 0.509) | mrpc 0.684 (−0.017) | tinystories 7.914 (+0.520 nats) | 38.9 s"
    )


def test_stage_line_with_missing_values(record) -> None:
    record["scores"][1][0] = None
    record["probes"]["perplexity"]["tinystories"][2] = None
    assert "mrpc 0.684 |" in stage_line(record, 2)
    assert "tinystories –" in stage_line(record, 2)


def test_numbers_in_words() -> None:
    assert wording.score(-0.0001, signed=True) == "0.000"
    assert wording.score(-0.25) == "−0.250"
    assert wording.perplexity(65055.02) == "65,055"
    assert [wording.duration(s) for s in (8.12, 212.4, 7505)] == ["8.1 s", "3 min 32 s", "2 h 05 min"]
    assert [wording.memory(size) for size in (812_000_000, 1_070_000_000, 5 * 2**30)] == [
        "774 MiB",
        "1,020 MiB",
        "5 GiB",
    ]
    assert wording.share(1, 0) == wording.score(None) == wording.MISSING
