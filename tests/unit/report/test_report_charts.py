import pytest

from curlora_lab.report.charts import Series, line_chart, log_ticks, nice_ticks, scatter_chart

RANGES = [(0.3, 0.7), (4.7, 4.7), (0, 0), (-3.2, -1.1), (0.999, 1.0), (1e-6, 5e5), (0.5, 0.5000001)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_linear_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9


@pytest.mark.parametrize(
    ("low", "high"), [(4.7, 9.0), (4.7, 4.7), (1, 1), (5.4, 65055), (0.02, 0.03), (10, 10), (1, 1e12)]
)
def test_log_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 16
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= high * (1 - 1e-9)


def test_line_chart_stays_inside_and_leaves_gaps() -> None:
    chart = line_chart(
        [Series("a", [0.1, None, 0.9, 0.4], frozenset({2}))], list("wxyz"), describe=str, references=[("constant", 1.2)]
    )
    line = chart.lines[0]
    assert line.path.count("M") == 2
    assert [point.label for point in line.points] == ["w: 0.1", "y: 0.9", "z: 0.4"]
    assert [point.marked for point in line.points] == [False, True, False]
    for point in line.points:
        assert chart.left <= point.x <= chart.right
        assert chart.top <= point.y <= chart.bottom
    assert chart.top <= chart.references[0].at <= chart.bottom
    assert line.points[1].y < line.points[2].y < line.points[0].y  # larger is higher


def test_equal_ratios_are_equal_distances_on_a_log_axis() -> None:
    points = line_chart([Series("p", [5.0, 50.0, 500.0])], list("abc"), describe=str, log=True).lines[0].points
    assert points[0].y - points[1].y == pytest.approx(points[1].y - points[2].y, abs=0.2)


def test_nothing_to_draw() -> None:
    assert line_chart([Series("a", [None])], ["x"], describe=str) is None
    assert scatter_chart([]) is None


def test_one_point_is_drawn_in_the_middle() -> None:
    chart = line_chart([Series("a", [0.5])], ["x"], describe=str)
    assert chart.left < chart.lines[0].points[0].x < chart.right
    assert scatter_chart([("1", 0.0, 0.5)]).lines[0].points[0].label == "1"
