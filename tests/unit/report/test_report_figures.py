import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curlora_lab.integrity import sealed
from curlora_lab.report.extras import Extras, read_extras
from curlora_lab.report.figures import Lines, Scatter, Series, as_table, pareto_front, slug, unique
from curlora_lab.report.run_figures import place, run_figures, score_matrix, shade, thinned, trajectory, weight_shift
from curlora_lab.report.study import configurations
from curlora_lab.report.study_figures import study_figures

numbers = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 1))


def test_front_by_hand() -> None:
    #        a: dominated by b   b        c: worse and dearer than b   d        e: equal to d
    points = [(2.0, 0.5), (1.0, 0.6), (3.0, 0.4), (4.0, 0.9), (4.0, 0.9)]
    assert pareto_front(points) == [1, 3, 4]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_a_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    for k, (x, y) in enumerate(points):
        dominated = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (k in front) is not dominated
    assert [points[k][1] for k in front] == sorted(points[k][1] for k in front)  # dearer must mean better


def test_shades_lie_between_a_constant_answer_and_the_best(record) -> None:
    record["baselines"]["sst2"] |= {"constant": 0.5, "best": 0.9}
    assert shade(record, 0.5, 1) == 0
    assert shade(record, 0.9, 1) == pytest.approx(1)
    assert shade(record, 0.7, 1) == pytest.approx(0.5)
    assert shade(record, 0.0, 1) == -1
    assert shade(record, None, 1) == 0


def test_sections_of_a_run(record) -> None:
    sections = run_figures(record, Extras())
    assert {name: len(figures) for name, figures in sections.items()} == {
        "scores": 1, "tasks": 3, "training": 0, "language": 2, "weights": 2, "energy": 0,
    }  # fmt: skip
    matrix = score_matrix(record)
    assert matrix.columns[0] == "mrpc\naccuracy"
    assert matrix.framed == {(1, 0), (2, 1), (3, 2)}
    line = trajectory(record, 1)
    assert line.series[0].marked == {2}
    assert [reference.name for reference in line.references] == ["constant answer"]
    assert as_table(line)[1][2] == ["2", "0.6892"]


def test_weights_stand_by_layer_and_module(record) -> None:
    grid = weight_shift(record)
    assert grid.rows == ["0", "1", "2", "3", "4", "5"]
    assert grid.columns == ["q_proj", "k_proj", "v_proj"]  # what all share is left out
    modules = record["shift"]["weight"][3]["modules"]
    assert grid.values[4][2] == modules["model.layers.4.self_attn.v_proj"]
    assert grid.hover[4][2].startswith("model.layers.4.self_attn.v_proj\n")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("transformer.h.11.attn.c_attn", ("11", "attn.c_attn")),
        ("model.layers.0.mlp.experts.3.w1", ("0", "mlp.experts.3.w1")),
        ("lm_head", ("–", "lm_head")),
    ],
)
def test_place_of_a_module(module: str, expected: tuple[str, str]) -> None:
    assert place(module) == expected


def test_names_are_files_that_differ(record) -> None:
    assert slug("a/b c") == slug("A b-c") == "a-b-c"
    assert slug("…") == "x"
    figures = [trajectory(record, 0), trajectory(record, 0)]
    assert unique(figures) == ["task-mrpc", "task-mrpc-2"]


def test_tables_of_lines_and_scatter_charts(seeds) -> None:
    both = study_figures(configurations([*seeds(3), *seeds(1, adapter="lora")]))
    trade = both["trade"][0]
    assert isinstance(trade, Scatter)
    assert as_table(trade)[1] == [["curlora", "0.1 ± 0", "0.72 ± 0.04968", "yes"], ["lora", "0.1", "0.7", "no"]]
    lines = Lines(
        name="n", title="t", description="d", x_label="x", y_label="y",
        series=[Series(name="a", x=[1, 2], y=[0.5, None], low=[0.4, None], high=[0.6, None]), Series(name="b", x=[2], y=[1])],
    )  # fmt: skip
    assert as_table(lines) == (["x", "a", "b"], [["1", "0.5 ± 0.1", ""], ["2", "–", "1"]])


def test_long_courses_are_thinned_by_means() -> None:
    pairs = [(step, float(step % 2)) for step in range(1000)]
    short = thinned(pairs)
    assert len(short) <= 400
    assert short[-1][0] == 999
    assert short[0] == (2, pytest.approx(1 / 3))  # the mean of 0, 1, 0
    assert thinned(pairs[:10]) == pairs[:10]


LINES: list[dict[str, Any]] = [
    {"stage": 1, "step": 9, "train/mrpc/loss": 0.7, "epoch": 0},
    {"stage": 1, "step": 19, "train/mrpc/loss": None},
    {"stage": 1.0, "step": 1, "eval/mrpc/accuracy": 0.5},
    {"stage": 2, "step": 9, "train/sst2/loss": 0.6},
]
CHANGED = json.dumps(sealed({"stage": 2, "step": 19, "train/sst2/loss": 0.5})).replace("0.5", "0.1")
LOSSES = "\n".join([*(json.dumps(sealed(line)) for line in LINES), CHANGED, '{"stage": 2, "st'])


def test_what_lies_beside_the_record_is_read_as_far_as_it_is_whole(tmp_path: Path, record, caplog: Any) -> None:
    assert read_extras(tmp_path) == Extras()
    (tmp_path / "metrics.jsonl").write_text(LOSSES)
    for stage, text in (
        ("stage_01", '{"gradient_energy": {"model.layers.0.q": {"captured": 0.2, "ceiling": 0.9}}}'),
        ("stage_02", "{"),
    ):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "diagnostics.json").write_text(text)
    extras = read_extras(tmp_path)
    assert extras.losses == {1: ("mrpc", [(9, 0.7)]), 2: ("sst2", [(9, 0.6)])}
    assert extras.energy == {1: {"model.layers.0.q": {"captured": 0.2, "ceiling": 0.9}}}
    assert "stage_02" in caplog.text
    sections = run_figures(record, extras)
    (loss,) = sections["training"]
    assert [list(one.x) for one in loss.series] == [[10], [20]]  # the second stage begins where the first ended
    (grid,) = sections["energy"]
    assert grid.hover[0][0] == "model.layers.0.q\ncaptured share of ‖G‖² 0.2\nbest of that rank 0.9"
