from dataclasses import replace

import pytest

from curlora_lab.report.axes import dodges, log_ticks, nice_ticks, place_of_name, range_of, reference_on_right
from curlora_lab.report.figures import Lines, Reference, Series


def lines(*series: Series, **more) -> Lines:
    return Lines(name="n", title="t", description="d", x_label="x", y_label="y", series=series, **more)


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (-3.2, -1.1), (0.999, 1.0), (1e-6, 5e5), (0.5, 0.5000001)])
def test_linear_ticks_lie_inside_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    slack = 1e-9 * max(abs(low), abs(high))
    assert low - slack <= ticks[0]
    assert ticks[-1] <= high + slack


def test_one_value_is_its_own_tick() -> None:
    assert nice_ticks(4.7, 4.7) == log_ticks([4.7]) == [4.7]
    assert log_ticks([None, -1.0, 0.0]) == []


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([5.4, 65055.0], [10, 100, 1000, 10000]),
        ([0.001, 0.01], [0.001, 0.002, 0.005, 0.01]),
        ([2.56, 3.09], [2.6, 2.8, 3.0]),  # narrow: powers of ten would leave the axis without a label
    ],
)
def test_logarithmic_ticks(values: list[float], ticks: list[float]) -> None:
    assert log_ticks(values) == pytest.approx(ticks)


def test_range_holds_intervals_and_references() -> None:
    one = Series(name="a", x=[0, 1], y=[0.5, 0.6], low=[0.2, None], high=[0.9, None])
    low, high = range_of(lines(one, references=[Reference(name="best", value=1.0)]))
    assert low < 0.2 < 1.0 < high


def test_a_reference_is_named_where_there_is_room() -> None:
    figure = lines(Series(name="a", x=[0, 1], y=[0.5, 0.9]))
    assert reference_on_right(Reference(name="constant", value=0.5), figure)
    assert not reference_on_right(Reference(name="best", value=1.0), figure)


def test_a_reference_is_named_where_no_line_strikes_it_through() -> None:
    """Flat on the reference, then steeply up: at the right end the line would go through the name."""
    figure = lines(Series(name="a", x=[0, 1, 2, 3], y=[0.333, 0.333, 0.318, 0.805]))
    constant, best = Reference(name="constant answer", value=0.333), Reference(name="best achievable", value=0.9)
    figure = replace(figure, references=[constant, best])
    place = place_of_name(constant, figure)
    assert not place.right
    assert place.above
    assert place.lift, "off the points that lie on the line"
    assert not place_of_name(best, figure).right
    alone = replace(figure, series=[Series(name="a", x=["b", "c"], y=[0.5, None])], log_y=True)
    assert place_of_name(best, alone) == place_of_name(best, replace(alone, dense=True))


def test_crowded_series_step_aside() -> None:
    one = Series(name="a", x=[0, 1, 2], y=[1, 1, 1], low=[0, 0, 0], high=[2, 2, 2])
    assert dodges(lines(one)) == [0]
    left, right = dodges(lines(one, one))
    assert left == -right < 0
    assert dodges(lines(one, one, log_x=True)) == [0, 0]
