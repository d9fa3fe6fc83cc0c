"""The hostile folders: what each changes in a run folder that was whole."""

# ruff: noqa: E501  (one folder a line)

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from curlora_lab.backbone import BUILTIN_FOLDER

ALL = ("evaluate", "report", "export", "init_from")
RECORD = ("evaluate", "report")
RUN = ("evaluate",)
ADAPTER = ("evaluate", "init_from")
MARKUP = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[31m\u202e"


@dataclass(frozen=True)
class Hostile:
    """One hostile folder.

    Args:
        kind: What sort of attack it is.
        name: What it does.
        arrange: Changes a whole run folder; gets the place.
        readers: Who is to read it.
        signed: Whether manifests are forged afterwards.
    """

    kind: str
    name: str
    arrange: Callable[[Any], Any]
    readers: tuple[str, ...] = RUN
    signed: bool = True


def _set(dotted: str, value: Any) -> Callable[[Any], None]:
    """Set a key of the record."""

    def change(place: Any) -> None:
        def inside(record: dict[str, Any]) -> None:
            *outer, last = dotted.split("/")
            for key in outer:
                record = record[key] if isinstance(record, dict) else record[int(key)]
            made = value(place) if callable(value) else value
            if isinstance(record, list):
                record[int(last)] = made
            else:
                record[last] = made

        place.edit("results.json", inside)

    return change


def _target(place: Any) -> dict[str, Any]:
    return {"_target_": "os.system", "command": f"touch '{place.mark}'"}


def _config(**fields: Any) -> Callable[[Any], None]:
    """Set fields of adapter_config.json."""

    def change(place: Any) -> None:
        place.edit("stage_02/adapter/adapter_config.json", lambda config: config.update(fields))

    return change


def _raw(name: str, content: bytes | Callable[[Any], bytes]) -> Callable[[Any], None]:
    return lambda place: (place.run / name).write_bytes(content(place) if callable(content) else content)


def _header(header: bytes, *, length: int | None = None, body: bytes = bytes(64)) -> Callable[[Any], None]:
    """A safetensors file with any header."""
    content = struct.pack("<Q", len(header) if length is None else length) + header + body
    return _raw("stage_02/adapter/adapter_model.safetensors", content)


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Any], None]:
    def arrange(place: Any) -> None:
        path = place.adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return arrange


def _every(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: [tensor.fill_(value) for tensor in tensors.values()] and None


def _instead(name: str, new: str) -> Callable[[Any], None]:
    """A pickle instead of a file that is expected."""

    def arrange(place: Any) -> None:
        path = place.run / name
        path.unlink()
        path.with_name(new).write_bytes(place.pickle())

    return arrange


def _link(name: str, to: Callable[[Any], Any]) -> Callable[[Any], None]:
    def arrange(place: Any) -> None:
        path = place.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(to(place))

    return arrange


def _fifo(name: str) -> Callable[[Any], None]:
    def arrange(place: Any) -> None:
        (place.run / name).unlink(missing_ok=True)
        os.mkfifo(place.run / name)

    return arrange


def _manifest(name: str) -> Callable[[Any], None]:
    def arrange(place: Any) -> None:
        place.edit("stage_02/MANIFEST.json", lambda value: value["files"].update({name: "0" * 64}))

    return arrange


def _code(place: Any) -> None:
    (place.adapter / "evil.py").write_text(f"import os\nos.system(\"touch '{place.mark}'\")\nclass Config: ...\n")


def _node(path: str) -> str:
    return f"config/sequence/tasks/paraphrase/{path}" if path else "config/sequence/tasks/paraphrase"


def _deep(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def _bomb(place: Any) -> None:
    """Zeros that unpack to 8 GB."""
    path = place.run / "stage_02" / "predictions" / "paraphrase.jsonl.gz"
    block = gzip.compress(bytes(1 << 28), 9)
    path.write_bytes(block * 32)


def _custom_adapter(place: Any) -> None:
    _code(place)
    mapping = {"base_model_class": "Config", "parent_library": "evil"}
    _config(auto_mapping=mapping, peft_type=None)(place)


HUGE = 10**400

CORPUS: list[Hostile] = [
    *(
        Hostile("_target_ in a record", path, _set(path, _target), RECORD)
        for path in (
            "config/model", "config/adapter", "config/strategy", "config/optimizer", "config/scheduler", "config/trainer",
            "config/callbacks/x", "config/logger/x", "config/probe/probes", "config/task", "config/model/quantization",
            _node(""), _node("data"), _node("data/source"), _node("data/source/generator"), _node("data/labels"),
            _node("data/template"), _node("metrics"), "config/adapter/init_from", "config/output_dir", "provenance/model/path",
        )
    ),
    *(
        Hostile("odd value in a record", f"{path} = {value!r:.40}", _set(path, value), RECORD)
        for path, value in (
            ("config", []), ("config/model", None), ("config/model", "builtin"), ("config/model/path", 5),
            ("config/model/path", "../../../../etc"), ("config/model/path", "/dev/zero"), ("config/model/dtype", ["float32"]),
            ("config/model/kind", {}), ("config/model/name", {"a": 1}), ("config/model/pooling", 3), ("config/model/target_modules", 5),
            ("config/model/revision", ["x"]), ("config/sequence", None), ("config/sequence/tasks", []),
            ("config/adapter", None), ("config/adapter/_target_", ["x"]), ("config/trainer", []), ("config/trainer/precision", {"a": 1}),
            ("config/trainer/precision", "64"), ("config/strategy", 3), ("config/strategy/_target_", "curlora_lab.continual.strategies."),
            ("config/batch_size", HUGE), ("config/eval_batch_size", -1), ("config/eval_batch_size", HUGE), ("config/seed", "0"),
            ("config/seed", HUGE), (_node("name"), "../../outside/x"), (_node("name"), {}), (_node("metric"), []),
            (_node("metrics"), {"a": 1}), (_node("metrics"), "accuracy"), (_node("data/max_length"), HUGE),
            (_node("data/max_length"), "x"), (_node("data/max_length"), None), (_node("data/columns"), [["a"]]),
            (_node("data/columns"), 3), (_node("data/labels"), {"a": "b"}), (_node("data/labels"), [1, 2]), (_node("data/labels"), ["a"] * 3),
            (_node("data/label"), []), (_node("data/label_map"), ["a"]), (_node("data/choose_fraction"), "x"),
            (_node("data/train_rows"), HUGE), (_node("data/train_rows"), []), (_node("data/eval_rows"), 0.5), (_node("data/sort_by"), "x"),
            (_node("data/sort_by"), {"train": ["x"]}), (_node("data/bad_rows"), None), (_node("data/template"), 5),
            (_node("data/template"), "{0.__class__.__mro__}"), (_node("data/subset"), {}), (_node("data/best"), "x"),
            (_node("data/source/sizes"), {"train": 10**12, "test": 10**12, "choose": 10**12}), (_node("data/source/sizes"), [1]),
            (_node("data/source/sizes"), {"train": "x", "test": 1.5}), (_node("data/source/splits"), "x"),
            (_node("data/source/splits"), {"train": ["x"], "test": None}), (_node("data/source/splits"), {"train": "../../x"}),
            (_node("data/source/seed"), "x"), (_node("data/source/name"), "../.."), (_node("data/source/name"), 7),
            (_node("data/source/generator/_target_"), "curlora_lab.data.builtin.tasks.__builtins__"),
            (_node("data/source/generator/split"), "x"), (_node("data/source/hub"), {"path": {"a": 1}}),
            ("tasks", ["paraphrase", "x"]), ("tasks", [MARKUP]), ("learnt_in/paraphrase", 99), ("learnt_in", {}),
            ("scores", [[1e308], [None]]), ("scores", []), ("metrics/paraphrase", [{}, {}]), ("baselines/paraphrase", {}),
            ("provenance", {}), ("provenance/model", []), ("provenance/data", []), ("provenance/data/paraphrase", {"fingerprint": 1}),
            ("name", "../../outside/name"), ("message", MARKUP), ("overrides", [MARKUP]), ("cost", {}), ("warnings", [{"message": MARKUP}]),
        )
    ),
    *(
        Hostile("markup and terminal codes", path, _set(path, MARKUP), ("evaluate", "report", "export"))
        for path in (
            "name", "message", "config/name", "config/model/name", "config/adapter/name", "config/sequence/name", _node("name"),
            _node("data/labels/0"), "provenance/git_commit", "provenance/host", "provenance/model/name", "provenance/platform",
        )
    ),
    *(
        Hostile("record that is no record", name, _raw("results.json", content), RECORD)
        for name, content in (
            ("deep JSON", _deep(100_000)), ("a number of 5000 digits", b'{"schema_version": ' + b"9" * 5000 + b"}"),
            ("NaN", b'{"schema_version": NaN}'), ("a list", b"[1, 2]"), ("UTF-16", '{"a": 1}'.encode("utf-16")), ("binary", bytes(range(256))),
            ("nothing", b""), ("a key twice", b'{"schema_version": "1", "schema_version": "2"}'), ("a pickle", b"cos\nsystem\n(S'true'\ntR."),
        )
    ),
    *(
        Hostile("path that leads outside", name, arrange, RUN, signed=False)
        for name, arrange in (
            ("manifest names ..", _manifest("../../../outside/secret.txt")), ("manifest names an absolute path", _manifest("/etc/hostname")),
            ("manifest names a device", _manifest("/dev/zero")), ("manifest names an empty path", _manifest("")),
            ("manifest names a folder", _manifest("adapter")), ("manifest names NUL", _manifest("a\0b")),
            ("manifest's files are a list", lambda place: place.edit("stage_02/MANIFEST.json", lambda value: value.update(files=["x"]))),
            ("manifest's files are numbers", lambda place: place.edit("stage_02/MANIFEST.json", lambda value: value.update(files={"head.safetensors": 5}))),
            ("manifest is a list", _raw("stage_02/MANIFEST.json", b"[]")), ("manifest is deep", _raw("stage_02/MANIFEST.json", _deep(100_000))),
            ("run manifest is a list", _raw("RUN_MANIFEST.json", b"[1]")), ("run manifest is deep", _raw("RUN_MANIFEST.json", _deep(100_000))),
            ("run manifest's files are a list", _raw("RUN_MANIFEST.json", b'{"files": [1]}')),
        )
    ),
    *(
        Hostile("links and devices", name, arrange, ALL)
        for name, arrange in (
            ("stage is a link", _link("stage_02", lambda place: place.outside)),
            ("head is a link", _link("stage_02/head.safetensors", lambda place: place.outside / "secret.txt")),
            ("adapter is a link", _link("stage_02/adapter", lambda place: place.outside)),
            ("weights are a link to a device", _link("stage_02/adapter/adapter_model.safetensors", lambda place: "/dev/zero")),
            ("record is a link to a device", _link("results.json", lambda place: "/dev/zero")),
            ("record is a link", _link("results.json", lambda place: place.outside / "secret.txt")),
            ("run manifest is a link to a device", _link("RUN_MANIFEST.json", lambda place: "/dev/zero")),
            ("report is a link outside", _link("report.html", lambda place: place.outside / "secret.txt")),
            ("head is a pipe", _fifo("stage_02/head.safetensors")), ("record is a pipe", _fifo("results.json")),
            ("adapter configuration is a pipe", _fifo("stage_02/adapter/adapter_config.json")),
            ("manifest is a pipe", _fifo("stage_02/MANIFEST.json")), ("metrics are a pipe", _fifo("metrics.jsonl")),
            ("scores are a pipe", _fifo("stage_02/scores.json")),
        )
    ),
    *(
        Hostile("pickles", name, arrange, ADAPTER)
        for name, arrange in (
            ("weights as adapter_model.bin", _instead("stage_02/adapter/adapter_model.safetensors", "adapter_model.bin")),
            ("a pickle beside the weights", _raw("stage_02/adapter/adapter_model.bin", lambda place: place.pickle())),
            ("a pickle called safetensors", _raw("stage_02/adapter/adapter_model.safetensors", lambda place: place.pickle())),
            ("head as a pickle", _instead("stage_02/head.safetensors", "head.bin")),
            ("head is a pickle called safetensors", _raw("stage_02/head.safetensors", lambda place: place.pickle())),
            ("strategy is a pickle called safetensors", _raw("stage_02/strategy.safetensors", lambda place: place.pickle())),
        )
    ),
    *(
        Hostile("safetensors", name, arrange, ADAPTER)
        for name, arrange in (
            ("header of 2^64 bytes", _header(b"{}", length=2**64 - 1)), ("header of 200 MB", _header(b"{}", length=200_000_000)),
            ("header longer than the file", _header(b"{}", length=5000)), ("header is a list", _header(b"[1]     ")),
            ("deep header", _header(_deep(50_000))), ("no UTF-8", _header(b"\xff" * 8)), ("empty file", _raw("stage_02/adapter/adapter_model.safetensors", b"")),
            ("offsets beyond the file", _header(b'{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}')),
            ("offsets that overlap", _header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}')),
            ("shape that overflows", _header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,64]}}')),
            ("negative shape", _header(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}')),
            ("unknown dtype", _header(b'{"a":{"dtype":"P99","shape":[4],"data_offsets":[0,16]}}')),
            ("NaN everywhere", _tensors(_every(float("nan")))), ("infinity everywhere", _tensors(_every(float("inf")))),
            ("a tensor too many", _tensors(lambda tensors: tensors.update({"../../outside/x": torch.zeros(1)}))),
            ("whole numbers", _tensors(lambda tensors: tensors.update({key: value.long() for key, value in tensors.items()}))),
            ("no tensor", _tensors(lambda tensors: tensors.clear())),
            ("other names", _tensors(lambda tensors: tensors.update({f"x.{key}": tensors.pop(key) for key in list(tensors)}))),
        )
    ),
    *(
        Hostile("adapter configuration", name, arrange, ADAPTER)
        for name, arrange in (
            ("a module to import", _custom_adapter), ("megatron", _config(megatron_config={"a": 1}, megatron_core="evil")),
            ("unknown type", _config(peft_type="EVIL")), ("type is a list", _config(peft_type=["LORA"])), ("no type", _config(peft_type=None)),
            ("another type", _config(peft_type="IA3")), ("X-LoRA with paths", _config(peft_type="XLORA", adapters={"0": "/etc"})),
            ("prompt tuning reads a tokenizer", _config(peft_type="PROMPT_TUNING", prompt_tuning_init="TEXT", tokenizer_name_or_path="/etc", num_virtual_tokens=4, prompt_tuning_init_text="x")),
            ("rank of a billion", _config(r=10**9)), ("huge rank", _config(r=HUGE)), ("negative rank", _config(r=-1)), ("rank is a text", _config(r="8")),
            ("rank is a list", _config(r=[8])), ("alpha is a text", _config(lora_alpha="x")), ("alpha is huge", _config(lora_alpha=HUGE)),
            ("targets are a number", _config(target_modules=5)), ("targets are nothing", _config(target_modules=[])),
            ("targets are a broken pattern", _config(target_modules="(")), ("targets are objects", _config(target_modules=[{"a": 1}])),
            ("modules to save", _config(modules_to_save=["lm_head"])), ("layers are texts", _config(layers_to_transform=["x"])),
            ("start reads activations", _config(init_lora_weights="corda")), ("start quantises", _config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4})),
            ("a base model elsewhere", _config(base_model_name_or_path="/dev/zero")), ("unknown fields", _config(evil=1, __class__="os.system")),
            ("a list", _raw("stage_02/adapter/adapter_config.json", b"[1]")), ("deep JSON", _raw("stage_02/adapter/adapter_config.json", _deep(100_000))),
            ("no JSON", _raw("stage_02/adapter/adapter_config.json", b"{")), ("NaN", _config(lora_dropout=float("nan"))),
            ("a rank for every module", _config(rank_pattern={".*": 10**9})), ("a pattern that is no pattern", _config(rank_pattern={"(": 2})),
        )
    ),
    *(
        Hostile("predictions and scores", name, arrange, RUN)
        for name, arrange in (
            ("predictions unpack to 8 GB", _bomb), ("predictions are no archive", _raw("stage_02/predictions/paraphrase.jsonl.gz", b"x" * 99)),
            ("predictions are no JSON", _raw("stage_02/predictions/paraphrase.jsonl.gz", gzip.compress(b"{\n[\n"))),
            ("predictions are lists", _raw("stage_02/predictions/paraphrase.jsonl.gz", gzip.compress(b"[1]\n[2]\n"))),
            ("predictions are deep", _raw("stage_02/predictions/paraphrase.jsonl.gz", gzip.compress(_deep(100_000) + b"\n"))),
            ("scores are a list", _raw("stage_02/scores.json", b"[1]")),
        )
    ),
]  # fmt: skip


def _model(place: Any, change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    """A model folder that is not what it seems; the record's fingerprint is forged for it."""
    from curlora_lab.backbone import _fingerprint

    folder = place.root / "model"
    shutil.copytree(BUILTIN_FOLDER, folder)
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    (folder / "evil.py").write_text(f"import os\nos.system(\"touch '{place.mark}'\")\nclass Evil: ...\n")
    place.edit(
        "results.json", lambda record: record["provenance"]["model"].update(fingerprint=_fingerprint(str(folder), None))
    )


def _pickled_model(place: Any) -> None:
    _model(place, lambda _: None)
    (place.root / "model" / "model.safetensors").unlink()
    (place.root / "model" / "pytorch_model.bin").write_bytes(place.pickle())


MODELS: list[Hostile] = [
    Hostile("model", name, arrange, ("model",))
    for name, arrange in (
        ("own code for the model", lambda place: _model(place, lambda value: value.update(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}))),
        ("own code of a new type", lambda place: _model(place, lambda value: value.update(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}))),
        ("own code for the tokenizer", lambda place: _model(place, lambda value: value.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}), "tokenizer_config.json")),
        ("attention from the hub", lambda place: _model(place, lambda value: value.update(_attn_implementation="kernels-community/evil", attn_implementation="kernels-community/evil"))),
        ("weights as a pickle", _pickled_model),
        ("layers of a billion", lambda place: _model(place, lambda value: value.update(num_hidden_layers=10**9))),
        ("a width of a billion", lambda place: _model(place, lambda value: value.update(hidden_size=10**9, vocab_size=10**9))),
        ("quantisation from the configuration", lambda place: _model(place, lambda value: value.update(quantization_config={"quant_method": "evil", "modules_to_not_convert": ["x"]}))),
        ("no type", lambda place: _model(place, lambda value: value.pop("model_type"))),
        ("odd numbers", lambda place: _model(place, lambda value: value.update(num_attention_heads="x", rope_parameters=[]))),
    )
]  # fmt: skip
