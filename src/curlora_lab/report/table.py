"""A record in the terminal: one line a stage, and the table at the end of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from curlora_lab.report import wording


def stage_line(record: Mapping[str, Any], stage: int) -> str:
    """What a stage brought, in one line of plain text.

    Args:
        record: A record whose row ``stage`` is filled.
        stage: Row of the score matrix.

    Returns:
        Such as ``stage 2/3 sst2: accuracy 0.689 (constant 0.509) | mrpc 0.684 (−0.017) | tinystories 7.914 (+0.520
        nats) | 38.9 s``.

    Raises:
        IndexError: When the record has no such row.
    """
    scores, stages = record["scores"], wording.learnt_in(record)
    row = scores[stage]
    parts = []
    for j, task in enumerate(record["tasks"]):
        if stage == 0:
            parts.append(f"{task} {wording.score(row[j])}")
        elif stages[task] == stage:
            constant = wording.score(record["baselines"][task]["constant"])
            parts.insert(0, f"{record['metric'][task]} {wording.score(row[j])} (constant {constant})")
        elif stages[task] < stage and row[j] is not None:
            then = scores[stages[task]][j]
            change = "" if then is None else f" ({wording.score(row[j] - then, signed=True)})"
            parts.append(f"{task} {wording.score(row[j])}{change}")
    for probe, values in record["probes"]["perplexity"].items():
        drift = wording.finite_log_ratio(values[: stage + 1]) if values[stage] is not None else None
        change = "" if stage == 0 or drift is None else f" ({wording.score(drift, signed=True)} nats)"
        parts.append(f"{probe} {wording.perplexity(values[stage])}{change}")
    if 0 < stage <= len(record["cost"]["stages"]):
        parts.append(wording.duration(record["cost"]["stages"][stage - 1]["seconds"]))
    learnt = ", ".join(task for task in record["tasks"] if stages[task] == stage)
    title = "untrained" if stage == 0 else f"stage {stage}/{len(scores) - 1} {learnt}".rstrip()
    return f"{title}: {' | '.join(parts)}"


def render_table(record: Mapping[str, Any], folder: Path | str) -> RenderableType:
    """The end of a run: warnings, score matrix, continual metrics, language model, parameters, time and folder.

    Args:
        record: A valid record.
        folder: The run folder.

    Returns:
        Something for ``rich.console.Console.print``.
    """
    title = "score after each stage"
    if wording.on_choosing_rows(record):
        title = f"{title} ({wording.CHOOSING_ROWS})"
    parts: list[RenderableType] = [_warnings(record), score_table(record, title=title)]
    if record["probes"]["perplexity"]:
        parts.append(_language_model(record))
    parts.append(_numbers(record))
    parts.append(Text.assemble(("folder  ", "dim"), (str(folder), "bold")))
    return Group(*parts)


def _warnings(record: Mapping[str, Any]) -> RenderableType:
    state = wording.status(record)
    if state is not None:
        colour = "red" if record["status"] == "failed" else "yellow"
        return Panel(Text(state[1]), title=state[0].lower(), border_style=colour, box=box.ROUNDED)
    if not record["warnings"]:
        return Text("no warnings: every task beat its constant predictor", style="green")
    lines = Text()
    for k, warning in enumerate(record["warnings"]):
        lines.append("\n" if k else "")
        lines.append(_warning_place(warning), style="bold yellow")
        lines.append(f"{warning['code']}: ", style="yellow")
        lines.append(warning["message"])
    title = f"{len(record['warnings'])} warning{'s' if len(record['warnings']) > 1 else ''}"
    return Panel(lines, title=title, title_align="left", border_style="yellow", box=box.ROUNDED)


def _warning_place(warning: Mapping[str, Any]) -> str:
    stage = None if warning["stage"] is None else f"stage {warning['stage']}"
    words = " ".join(word for word in (warning["task"], stage) if word)
    return f"{words}  " if words else ""


def score_table(
    record: Mapping[str, Any], *, title: str = "score after each stage", stages: Sequence[int] | None = None
) -> Table:
    """The score matrix: a row for a constant predictor, the untrained model, each stage, and the best where known.

    Args:
        record: A valid record.
        title: What stands above it.
        stages: Rows to show (default: all).

    Returns:
        A table with a column a task.
    """
    tasks, learnt, baselines = record["tasks"], wording.learnt_in(record), record["baselines"]
    shown = range(len(record["scores"])) if stages is None else stages
    table = _table(title)
    table.add_column("", style="dim")
    for task in tasks:
        table.add_column(Text.assemble(task, (f"\n{record['metric'][task]}", "dim")), justify="right")
    table.add_row("constant", *(Text(wording.score(baselines[task]["constant"]), style="dim") for task in tasks))
    for i in shown:
        row = record["scores"][i]
        cells = [_cell(row[j], baselines[task]["constant"], i - learnt[task]) for j, task in enumerate(tasks)]
        table.add_row(Text(wording.stage_name(record, i)), *cells, end_section=i == shown[-1])
    if any(baselines[task]["best"] is not None for task in tasks):
        table.add_row("best", *(Text(wording.score(baselines[task]["best"]), style="dim") for task in tasks))
    return table


def _cell(value: float | None, constant: float | None, since: int) -> Text:
    """Dim before the task's stage, bold in it, yellow where a constant predictor does as well afterwards."""
    style = "dim" if since < 0 else "bold" if since == 0 else ""
    if value is not None and constant is not None and since >= 0 and value <= constant:
        style += " yellow"
    return Text(wording.score(value), style=style.strip())


def _language_model(record: Mapping[str, Any]) -> Table:
    table = _table("untouched language model (log ratio and KL in nats a token)")
    for column in ("probe", "perplexity before", "after", "log ratio", "KL", "bits/character"):
        table.add_column(column, justify="left" if column == "probe" else "right")
    last = wording.last_row(record)
    for probe, values in record["probes"]["perplexity"].items():
        bits = record["probes"]["bits_per_character"].get(probe, values)
        shift = record["shift"]["output"].get(probe)
        before_after = f"{_number(bits[0], 3)} → {_number(bits[last], 3)}"
        kl = wording.small(shift[last]) if shift else wording.MISSING
        ratio = wording.score(wording.finite_log_ratio(values[: last + 1]), signed=True)
        table.add_row(
            Text(probe), wording.perplexity(values[0]), wording.perplexity(values[last]), ratio, kl, before_after
        )
    return table


def _numbers(record: Mapping[str, Any]) -> Table:
    """Continual metrics with reasons, parameters, weight shift and cost."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for key, (name, meaning) in wording.CONTINUAL.items():
        value = record["continual"][key]
        note = meaning if value is not None else record["reasons"].get(f"continual.{key}", "")
        table.add_row(name, wording.score(value, signed=key in ("bwt", "fwt")), Text(note))
    parameters, cost, last = record["parameters"], record["cost"], wording.last_row(record)
    shift = record["shift"]["weight"][last] or {}
    table.add_row("weight shift", wording.small(shift.get("overall")), "‖ΔW‖ / ‖W‖ over adapted modules")
    trained = f"adapter {wording.count(parameters['adapter'])} + heads {wording.count(parameters['head'])}"
    of_all = f"of {wording.count(parameters['total'])} ({wording.share(parameters['trainable'], parameters['total'])})"
    table.add_row("trained", wording.count(parameters["trainable"]), f"{trained} parameters, {of_all}")
    speed = f"{wording.count(cost['tokens'])} training tokens, peak memory {wording.memory(cost['peak_memory_bytes'])}"
    table.add_row("time", wording.duration(cost["seconds"]), speed)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _number(value: float | None, decimals: int) -> str:
    return wording.MISSING if value is None else f"{value:.{decimals}f}"
