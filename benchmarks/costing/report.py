"""The results as a Markdown page, and how they stand against the goals."""

from collections.abc import Mapping, Sequence
from typing import Any

from costing.variants import HALF_VARIANTS

TITLES = {variant.name: variant.title for variant in HALF_VARIANTS} | {
    "merged": "CURLoRA, merged in place",
    "unloaded": "CURLoRA, merged and unloaded",
}

MAX_TIMES_FROZEN = 1.04
MAX_SHARE_OF_LORA = 0.5
MAX_TIMES_PUBLISHED = 0.6
MAX_SHARE_OF_SAVED = 0.05
MAX_SHARE_OF_FILE = 0.01
MAX_ATTACH_SECONDS = 10.0


def markdown(record: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# What an adapter costs",
        f"Made by {', '.join(f'`{command}`' for command in record['commands'])}; last on {record['date']}.",
        _machine(record["machine"]),
        "Every table compares what ran in turn in one process; a ratio is the median of the ratios within a round, with "
        "a 95 % bootstrap interval. `frozen` is the backbone alone with the same backward graph: no adapter can be "
        "faster.",
        "## Goals",
        _goals(record),
        "## Training step (forward, backward, AdamW)",
        *[_training(entry) for entry in record["training"]],
        "## Inference, adapters on all linear layers",
        *[_inference(entry) for entry in record["inference"]],
        "## Attaching to the matrices of a 7B model (one layer measured, 32 extrapolated)",
        _attaching(record["attaching"]),
        "## Files (`adapter_model.safetensors`)",
        _files(record["files"]),
    ]
    return "\n\n".join(parts) + "\n"


def goals(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each goal with the figure measured for it, and whether it is met: yes, no, or open (the interval spans it)."""
    found: list[dict[str, str]] = []
    for entry in record["training"]:
        found += _training_goals(entry)
    for entry in record["inference"]:
        for kind in ("forward", "generate"):
            for name in ("merged", "unloaded"):
                ratio = entry[kind][name]["times_base"]
                low, high = ratio["interval"]
                _note(
                    found,
                    f"{entry['title']}: {kind}, {TITLES[name]} = base within noise",
                    _span(ratio),
                    low <= 1 <= high,
                )
    for entry in record["attaching"]:
        beyond = entry["curlora_32_layers_s"]
        limit = f"7B shapes in {entry['dtype']}: attach ≤ {MAX_ATTACH_SECONDS:.0f} s"
        _note(found, limit, f"{beyond:.1f} s", beyond <= MAX_ATTACH_SECONDS)
    for entry in record["files"]:
        share = entry["curlora_compact"] / entry["lora"]
        limit = f"{entry['title']}, {entry['targets']}: compact file ≤ {MAX_SHARE_OF_FILE} × LoRA's"
        _note(found, limit, f"{share:.4f}", share <= MAX_SHARE_OF_FILE)
    return found


def _goals(record: Mapping[str, Any]) -> str:
    if record["quick"]:
        return "None: this was a quick run on tiny models, which shows that the benchmark works and nothing else."
    return _table(("goal", "measured", "met"), [(g["goal"], g["measured"], g["met"]) for g in record["goals"]])


def _training_goals(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    variants, place = entry["variants"], _place(entry)
    mine = variants["curlora"]
    if entry["targets"] == "all linear":
        for limit, key, of in (
            (MAX_TIMES_FROZEN, "times_base", "frozen"),
            (MAX_SHARE_OF_LORA, "share_of_rival", "LoRA's overhead"),
        ):
            estimate = mine.get(key)
            if estimate is None:
                found.append({"goal": f"{place}: ≤ {limit} × {of}", "measured": "not resolved", "met": "open"})
            else:
                met = _met(estimate, limit)
                found.append({"goal": f"{place}: ≤ {limit} × {of}", "measured": _span(estimate), "met": met})
    if entry["targets"] == "all linear" and "over_published" in entry:
        over = entry["over_published"]
        goal = f"{place}: ≤ {MAX_TIMES_PUBLISHED} × the published form"
        found.append({"goal": goal, "measured": _span(over), "met": _met(over, MAX_TIMES_PUBLISHED)})
    share = mine["saved_bytes"] / variants["lora"]["saved_bytes"]
    _note(found, f"{place}: bytes kept ≤ {MAX_SHARE_OF_SAVED} × LoRA's", f"{share:.4f}", share <= MAX_SHARE_OF_SAVED)
    memory = mine["peak_bytes"] / variants["lora"]["peak_bytes"]
    _note(found, f"{place}: peak memory below LoRA's", f"{memory:.3f}", memory < 1)
    return found


def _met(estimate: Mapping[str, Any], limit: float) -> str:
    low, high = estimate["interval"]
    return "yes" if high <= limit else "no" if low > limit else "open"


def _note(found: list[dict[str, str]], goal: str, measured: str, met: bool) -> None:
    found.append({"goal": goal, "measured": measured, "met": "yes" if met else "no"})


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['memory_gib']} GiB; device {machine['device']}; load when it started {machine['load']}; "
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"peft {machine['peft']}, curlora_lab {machine['curlora_lab']}."
    )


def _place(entry: Mapping[str, Any]) -> str:
    return f"{entry['shape']} {entry['targets']} {entry['batch']} × {entry['length']}, {entry['rounds']} rounds"


def _training(entry: Mapping[str, Any]) -> str:
    head = (
        f"**{entry['title']}; {entry['targets']}; batch {entry['batch']} × {entry['length']}; r = {entry['r']}; "
        f"{entry['dtype']}; {entry['rounds']} rounds; load when it started {entry['load']}**"
    )
    rows = [
        (
            TITLES[name],
            f"{1e3 * values['median_s']:.1f}",
            _quartiles(values),
            _span(values["times_base"]),
            _span(values["share_of_rival"]) if "share_of_rival" in values else "",
            f"{values['saved_bytes'] / 2**20:.2f}",
            f"{values['peak_bytes'] / 2**20:.1f}",
            f"{values['trained']:,}",
        )
        for name, values in entry["variants"].items()
    ]
    names = ("", "median ms", "quartiles", "× frozen", "overhead / LoRA's", "kept MiB", "peak MiB", "trained")
    parts = [head, _table(names, rows)]
    if "over_published" in entry:
        parts.append(f"CURLoRA by output takes {_span(entry['over_published'])} × the time of the published form.")
    return "\n\n".join(parts)


def _inference(entry: Mapping[str, Any]) -> str:
    parts = []
    for kind, what in (
        ("forward", "forward pass"),
        ("generate", f"greedy generation of {entry['new_tokens']} tokens"),
    ):
        rows = [
            (TITLES[name], f"{1e3 * values['median_s']:.1f}", _quartiles(values), _span(values["times_base"]))
            for name, values in entry[kind].items()
        ]
        head = f"**{entry['title']}; {what}; batch {entry['batch']} × {entry['length']}; r = {entry['r']}**"
        parts += [head, _table(("", "median ms", "quartiles", "× frozen"), rows)]
    return "\n\n".join(parts)


def _attaching(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            entry["dtype"],
            f"{entry['parameters_a_layer']:,}",
            f"{entry['read_s']:.3f}",
            f"{entry['curlora_s']:.3f}",
            f"{entry['lora_s']:.3f}",
            f"{entry['curlora_32_layers_s']:.1f}",
        )
        for entry in entries
    ]
    names = ("dtype", "parameters a layer", "one pass, s", "CURLoRA, s", "LoRA, s", "CURLoRA 32 layers, s")
    return _table(names, rows)


def _files(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            entry["title"],
            entry["targets"],
            f"{entry['curlora_compact']:,}",
            f"{entry['curlora']:,}",
            f"{entry['lora']:,}",
            f"{entry['curlora_compact'] / entry['lora']:.4f}",
        )
        for entry in entries
    ]
    return _table(
        ("model", "targets", "CURLoRA compact, bytes", "CURLoRA, bytes", "LoRA, bytes", "compact / LoRA"), rows
    )


def _quartiles(values: Mapping[str, Any]) -> str:
    low, high = values["quartiles_s"]
    return f"{1e3 * low:.1f}–{1e3 * high:.1f}"


def _span(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} ({low:.3f}–{high:.3f})"


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
