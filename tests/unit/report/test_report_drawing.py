"""The same figures for the page and on paper."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from curlora_lab.report import palette
from curlora_lab.report.extras import Extras
from curlora_lab.report.interactive import escaped, plotly_spec
from curlora_lab.report.publication import write_figures
from curlora_lab.report.run_figures import probe, run_figures, trajectory
from curlora_lab.report.study import configurations
from curlora_lab.report.study_figures import study_figures
from curlora_lab.report.tables import latex, latex_table, markdown_table


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("hues", "ground"), [(palette.LIGHT, "#ffffff"), (palette.DARK, "#181d23")])
def test_hues_stand_out_from_the_ground(hues: tuple[str, ...], ground: str) -> None:
    assert len(set(hues)) == 8
    assert min(contrast(colour, ground) for colour in hues) >= 3


def test_all_figures_are_json_that_plotly_reads(record, seeds) -> None:
    extras = Extras(losses={1: ("mrpc", [(0, 1.0), (1, 0.5)])}, energy={3: {"h.0.q": {"captured": 0.1}}})
    runs = [*seeds(2), *seeds(2, adapter="lora", lr=0.1), *seeds(1, adapter="lora", lr=0.001)]
    sections = [run_figures(record, extras), study_figures(configurations(runs))]
    kinds = set()
    for figure in (figure for section in sections for figures in section.values() for figure in figures):
        spec = json.loads(json.dumps(plotly_spec(figure), allow_nan=False))
        assert set(spec) == {"data", "layout"}
        assert spec["data"]
        kinds.add(figure.kind)
    assert kinds == {"lines", "scatter", "heatmap"}


def test_texts_are_escaped_for_plotly_too(record) -> None:
    assert escaped("<a href='javascript:x'>&amp;\n") == "&lt;a href='javascript:x'&gt;&amp;amp;<br>"
    renamed = json.loads(json.dumps(record).replace('"mrpc"', '"<b>m</b>"'))
    assert "<b>" not in json.dumps(plotly_spec(trajectory(renamed, 0)))


def test_a_logarithmic_axis_has_its_reference_where_plotly_wants_it(record) -> None:
    spec = plotly_spec(probe(record, "tinystories")[0])
    assert spec["layout"]["yaxis"]["type"] == "log"
    assert spec["layout"]["shapes"][0]["y0"] == 4.7035  # shapes take values,
    assert spec["layout"]["annotations"][0]["y"] == pytest.approx(0.67242, abs=1e-5)  # annotations log10
    assert spec["layout"]["yaxis"]["ticktext"]


def test_files_for_papers_are_the_same_each_time(record, tmp_path: Path) -> None:
    figures = [one for section in run_figures(record, Extras()).values() for one in section][:2]
    first = write_figures(figures, tmp_path / "a", formats=["pdf", "svg", "png"], titles=True)
    again = write_figures(figures, tmp_path / "b", formats=["pdf", "svg", "png"], titles=True)
    assert [path.name for path in first] == [
        f"{name}.{kind}" for name in ("score-matrix", "task-mrpc") for kind in ("pdf", "svg", "png")
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="format 'gif' is not known; choose among pdf, svg, png"):
        write_figures(figures, tmp_path, formats=["gif"])
    with pytest.raises(ValueError, match="width 0 is not possible"):
        write_figures(figures, tmp_path, formats=["png"], width=0)


def test_several_runs_on_paper(seeds, tmp_path: Path) -> None:
    runs = [run for lr in (0.001, 0.01) for name in ("curlora", "a$b$_c") for run in seeds(2, adapter=name, lr=lr)]
    sections = study_figures(configurations(runs))
    figures = [sections[name][0] for name in ("trade", "response", "tasks", "weights")]
    assert len(write_figures(figures, tmp_path, formats=["svg"])) == 4


def test_latex_is_escaped_and_complete() -> None:
    assert (
        latex("a_b & 5 % −0.1 ± #{x}\\~^")
        == r"a\_b \& 5 \% $-$0.1 $\pm$ \#\{x\}\textbackslash{}\textasciitilde{}\textasciicircum{}"
    )
    table = latex_table(["run", "average"], [["a_b", "0.5 ± 0.1"]], caption="c", label="tab:x")
    assert r"\begin{tabular}{lr}" in table
    assert [word for word in ("toprule", "midrule", "bottomrule") if table.count(word) == 1] == [
        "toprule",
        "midrule",
        "bottomrule",
    ]
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


def test_script_draws_one_run_and_many(record, seeds, tmp_path: Path, capsys) -> None:
    path = Path(__file__).parents[3] / "scripts" / "figures.py"
    spec = importlib.util.spec_from_file_location("scripts_figures", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for k, one in enumerate([record, *seeds(1, adapter="lora")]):
        (tmp_path / "runs" / str(k)).mkdir(parents=True)
        (tmp_path / "runs" / str(k) / "results.json").write_text(json.dumps(one))
    out = tmp_path / "out"
    assert script.main([str(tmp_path / "runs" / "0"), "--out", str(out), "--format", "svg", "--only", "score"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["score-matrix.md", "score-matrix.svg", "score-matrix.tex"]
    assert script.main([str(tmp_path / "runs"), "--out", str(out), "--format", "svg", "--only", "learning"]) == 0
    assert (out / "learning-forgetting.svg").is_file()
    assert "lora" in (out / "comparison.tex").read_text()
    assert script.main([str(tmp_path / "runs"), "--out", str(out), "--format", "gif"]) == 1
    assert script.main([str(tmp_path / "runs"), "--out", str(out), "--only", "nothing"]) == 1
    assert script.main([str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"no figure's name begins with 'nothing'; there are: .*learning-forgetting", error)
