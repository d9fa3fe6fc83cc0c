"""The card of an exported adapter or model: what it is, how to load it, what it was scored, what is not known.

Reads named fields of a run's record. Whatever comes from there is quoted: a record may be anyone's.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["lora", "merged"]

_PLACEHOLDER = "[fill in before publishing]"

_LOAD = {
    "lora": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```""",
    "merged": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```""",
}

_HEADS = """`heads/<task>.safetensors` holds the linear head of each task, `heads.json` says for each how a text is put together
(to the byte: a blank more or less makes other tokens), what the head reads ("output") and the label names in order. For {task}:

```python
from safetensors.torch import load_file

head = load_file("<this folder>/heads/{task}.safetensors")
inputs = tokenizer(text, return_tensors="pt")          # text: see "text" in heads.json
hidden = model.base_model(**inputs).last_hidden_state  # before the LM head; a PeftModel: model.get_base_model().base_model
pooled = {pooled}  # one text without padding
{output}
```"""

_PROMPTS = """`prompts.json` says how the language model itself is asked. Its texts are kept to the byte, blanks and newlines at
their ends too. Where a prompt ends decides which tokens the model is given:

{boundaries}"""

_POOLED = {"cls": "hidden[:, 0]", "mean": "hidden.mean(dim=1)"}


def model_card(
    record: Mapping[str, Any],
    *,
    kind: Kind,
    stage: int,
    is_causal: bool,
    pooling: str,
    heads: Mapping[str, str],
    prompts: Mapping[str, str],
    how: str,
    error: float,
) -> str:
    """Write the card as Markdown with the front matter of the Hugging Face hub.

    Args:
        record: A valid record of the run.
        kind: What was exported.
        stage: The stage whose weights these are.
        is_causal: Whether the base is a causal language model.
        pooling: How hidden states become one vector, see ``Backbone.features``.
        heads: Tasks whose heads lie beside it, each with the Python that computes its output.
        prompts: Tasks that the language model itself answers, each with where its prompt ends, in words.
        how: How the export was made.
        error: Largest relative difference of outputs to the original.

    Returns:
        The text of ``README.md``.
    """
    title = "LoRA adapter" if kind == "lora" else "Merged model"
    learnt = [_quoted(task) for task in record["tasks"] if record["learnt_in"][task] <= stage]
    parts = [
        _front_matter(record, kind),
        f"# {title} of the run {_quoted(record['name'])}, stage {stage}",
        f"Made with curlora_lab: {_quoted(_adapter(record))} on {_base(record)}, trained on {', '.join(learnt)}"
        + (", one task after the other." if len(learnt) > 1 else "."),
        "## Use",
        _LOAD[kind]
        .replace("AutoModelForCausalLM", "AutoModelForCausalLM" if is_causal else "AutoModel")
        .format(base=_address(record)),
        *_heads(heads, pooling),
        *_prompts(prompts),
        "## Scores",
        _scores(record, stage),
        *_language_model(record, stage),
        "## Parameters",
        _parameters(record),
        "## Data",
        _data(record),
        "## How it was made",
        _made(record, stage, how, error),
        "## Licence and limits",
        f"- Licence of this export: {_PLACEHOLDER}\n- Licence of the base model: {_PLACEHOLDER}\n"
        f"- Licences of the data: {_PLACEHOLDER}\n- Intended use, and uses it is not fit for: {_PLACEHOLDER}",
    ]
    return "\n\n".join(parts) + "\n"


def _heads(heads: Mapping[str, str], pooling: str) -> list[str]:
    """How a head is used, by the example of the first."""
    pooled = _POOLED.get(pooling, "hidden[:, -1]")
    return [_HEADS.format(task=task, pooled=pooled, output=output) for task, output in list(heads.items())[:1]]


def _prompts(prompts: Mapping[str, str]) -> list[str]:
    """Where the prompts end, task by task."""
    lines = [f"- {_quoted(task)}: {_quoted(boundary)}" for task, boundary in prompts.items()]
    return [_PROMPTS.format(boundaries="\n".join(lines))] if lines else []


def _base(record: Mapping[str, Any]) -> str:
    """The base model in words; never a path of some machine."""
    model = record["provenance"]["model"]
    if model.get("path") == "builtin":
        return f"{_quoted(model.get('name'))} (ships with the package, in curlora_lab/assets/tiny)"
    if model.get("revision"):
        return f"{_quoted(model.get('path'))} at revision {_quoted(model['revision'])}"
    return f"{_quoted(model.get('name'))} (a model in a local folder)"


def _address(record: Mapping[str, Any]) -> str:
    """What loads the base model: its hub id, or a place to be filled in."""
    model = record["provenance"]["model"]
    is_hub_id = model.get("revision") and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model["path"]))
    return str(model["path"]) if is_hub_id else f"<folder of {_quoted(model.get('name'))}>"


def _front_matter(record: Mapping[str, Any], kind: Kind) -> str:
    model = record["provenance"]["model"]
    lines = [f"library_name: {'peft' if kind == 'lora' else 'transformers'}"]
    if model.get("revision"):
        lines.append(f"base_model: {json.dumps(str(model['path']))}")
    lines += ["license: other", "license_name: fill-in-before-publishing", "tags: [curlora-lab, continual-learning]"]
    return "\n".join(["---", *lines, "---"])


def _scores(record: Mapping[str, Any], stage: int) -> str:
    rows = []
    for column, task in enumerate(record["tasks"]):
        baseline = record["baselines"][task]
        learnt = record["learnt_in"][task]
        rows.append(
            [
                task,
                record["metric"][task],
                _number(record["scores"][stage][column]),
                _number(record["scores"][0][column]),
                _number(baseline["constant"]),
                str(baseline["rows"]),
                f"stage {learnt}" if learnt <= stage else "not yet",
            ]
        )
    return _table(["task", "metric", "score", "untrained", "constant predictor", "test rows", "learnt in"], rows)


def _language_model(record: Mapping[str, Any], stage: int) -> list[str]:
    """Perplexity of the language model before any training and now, where it was probed."""
    rows = [
        [probe, _number(values[0]), _number(values[stage])] for probe, values in record["probes"]["perplexity"].items()
    ]
    return ["The language model itself, perplexity:", _table(["text", "before", "now"], rows)] if rows else []


def _parameters(record: Mapping[str, Any]) -> str:
    found = record["parameters"]
    return f"Trained: {found['adapter']:,} in the adapter, {found['head']:,} in heads, of {found['total']:,} in all."


def _data(record: Mapping[str, Any]) -> str:
    sources = _sources(record["config"])
    rows = []
    for task, found in record["provenance"]["data"].items():
        counts = ", ".join(f"{role} {count}" for role, count in found["rows"].items())
        rows.append([task, sources.get(task, ""), counts, str(found["fingerprint"])[:16], "; ".join(found["notes"])])
    return _table(["task", "from", "rows", "fingerprint", "notes"], rows)


def _sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Where the rows of each task came from; a folder of some machine is only called local."""
    sequence = config.get("sequence") or {}
    nodes = [config["task"]] if config.get("task") else list((sequence.get("tasks") or {}).values())
    found = {}
    for node in nodes:
        source = node["data"]["source"]
        hub = source.get("hub") or {}
        if source.get("generator"):
            found[node["name"]] = "built in (generated)"
        elif source.get("data_dir"):
            found[node["name"]] = f"local files of {source.get('name')}" + (
                f" ({hub['path']})" if hub.get("path") else ""
            )
        else:
            found[node["name"]] = f"{hub.get('path')} {hub.get('config') or ''}".strip()
    return found


def _made(record: Mapping[str, Any], stage: int, how: str, error: float) -> str:
    provenance, config = record["provenance"], record["config"]
    training = ", ".join(
        f"{key}={config[key]}"
        for key in ("rank", "alpha", "lr", "head_lr", "epochs", "batch_size", "seed")
        if key in config
    )
    versions = ", ".join(f"{name} {provenance['versions'][name]}" for name in ("torch", "transformers", "peft"))
    lines = [
        f"Export: {how}. Read back and compared with the original on a batch: outputs differ by {error:.1e} (relative).",
        f"Training: {_quoted(training)}; stage {stage} of {len(record['scores']) - 1}.",
        f"Code: curlora_lab {_quoted(provenance['package_version'])}, commit {_quoted(provenance['git_commit'])}; {versions}.",
        f"Run: {_quoted(provenance['identity'])}; base model's fingerprint {_quoted(provenance['model']['fingerprint'])}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _adapter(record: Mapping[str, Any]) -> str:
    adapter = record["config"].get("adapter")
    return str(adapter.get("name", "an adapter")) if isinstance(adapter, Mapping) else "an adapter"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(heading), ["---"] * len(heading), *([_quoted(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quoted(value: Any) -> str:
    """A value as text that is neither markup, nor the end of a table cell, nor a new line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return "".join(f"\\{char}" if char in "|`[]*" else char for char in text if char.isprintable())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
