"""What a run is called by: everything that determines its numbers, nothing else."""

import pytest

from curlora_lab.continual import identity

CONFIG = {
    "seed": 0,
    "lr": 0.01,
    "output_dir": "runs",
    "data_dir": None,
    "name": None,
    "fresh": False,
    "num_workers": 0,
    "logger": {},
    "model": {"path": "builtin", "name": "tiny", "revision": None, "dtype": "float32"},
    "adapter": {"name": "curlora", "r": 16, "init_from": None, "laws": {}},
    "trainer": {"precision": "32-true", "enable_progress_bar": True},
    "sequence": {"name": "demo", "tasks": {}},
    "task": None,
    "probe": {"probes": {"text": {"source": {"data_dir": "/a"}}}},
}
TASKS = [
    {"name": "a", "metric": "accuracy", "data": {"source": {"data_dir": "/a", "splits": {"train": "train"}}}},
    {"name": "b", "metric": "accuracy", "data": {}},
]


def keys(config=CONFIG, *, model="m", rows=("r1", "r2"), tasks=TASKS, probes=None):
    common = identity.common_identity(config, model=model, init_from=None, probes=probes or {"text": "p"})
    return identity.stage_keys(common, [identity.task_identity(t, rows=r) for t, r in zip(tasks, rows, strict=True)])


def changed(path, value):
    """A copy of the configuration with one key changed."""

    def put(node, parts):
        head, *rest = parts
        return {**node, head: put(node[head], rest) if rest else value}

    return put(CONFIG, path.split("."))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("output_dir", "elsewhere"),
        ("data_dir", "/b"),
        ("name", "mine"),
        ("fresh", True),
        ("num_workers", 2),
        ("logger", {"wandb": {}}),
        ("model.path", "/copy/of/builtin"),
        ("trainer.enable_progress_bar", False),
        ("sequence.name", "renamed"),
        ("probe.probes.text.source.data_dir", "/b"),
    ],
)
def test_where_things_lie_and_how_they_are_shown_does_not_matter(path, value):
    assert keys(changed(path, value)) == keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("lr", 0.02),
        ("model.dtype", "bfloat16"),
        ("adapter.r", 8),
        ("trainer.precision", "bf16-mixed"),
    ],
)
def test_what_determines_numbers_matters_in_every_row(path, value):
    assert not set(keys(changed(path, value))) & set(keys())


def test_content_of_model_rows_and_probes_matters():
    assert not set(keys(model="other")) & set(keys())
    assert not set(keys(probes={"text": "other"})) & set(keys())
    assert keys(rows=("r1", "other"))[:2] == keys()[:2]
    assert keys(rows=("r1", "other"))[2] != keys()[2]


def test_a_shorter_sequence_shares_its_rows():
    assert keys(tasks=TASKS[:1], rows=("r1",)) == keys()[:2]


def test_other_code_matters_but_is_recognised(monkeypatch):
    def common():
        return identity.common_identity(CONFIG, model="m", init_from=None, probes={})

    before = common()
    monkeypatch.setattr(identity, "source_hash", lambda: "other")
    after = common()
    assert identity.stage_keys(before, []) != identity.stage_keys(after, [])
    assert identity.without_source(before, []) == identity.without_source(after, [])


def test_differences_are_named_by_key():
    lines = identity.differences(CONFIG, changed("adapter.r", 8))
    assert lines == ["adapter.r: 16 there, 8 here"]
    assert identity.differences(CONFIG, changed("output_dir", "x")) == []
