"""Aggregates, compared with the standard library's statistics; merged, they say what one over all events says."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from crewline.expressions import AGGREGATES
from crewline.triggers import aggregates
from crewline.triggers.aggregates import DISTINCT_MAX, AggregateError
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.floats(-1e6, 1e6).map(lambda number: round(number, 3))
EVENTS = st.lists(st.tuples(st.integers(0, 3_600_000), NUMBERS), min_size=2, max_size=40)


def over(function: str, events: list[tuple[int, Any]]) -> list[Any]:
    value = aggregates.begin(function)
    for at_ms, operand in events:
        value = aggregates.add(function, value, operand, at_ms)
    return value


def close(one: Any, other: Any) -> bool:
    return bool(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6))


@given(EVENTS)
def test_numbers_are_those_of_the_standard_library(events: list[tuple[int, float]]) -> None:
    values = [value for _, value in events]
    expected = {
        "count": len(values), "sum": math.fsum(values), "avg": statistics.fmean(values), "min": min(values),
        "max": max(values), "stddev": statistics.stdev(values),
    }  # fmt: skip
    for function, number in expected.items():
        assert close(aggregates.result(function, over(function, events)), number), function


@given(EVENTS.filter(lambda events: max(events)[0] - min(events)[0] >= 1_000))
def test_the_slope_is_that_of_the_line_through_the_events_per_second(events: list[tuple[int, float]]) -> None:
    line = statistics.linear_regression([at_ms / 1000 for at_ms, _ in events], [value for _, value in events])
    assert math.isclose(aggregates.result("slope", over("slope", events)), line.slope, rel_tol=1e-4, abs_tol=1e-4)


def test_the_slope_of_one_moment_is_level() -> None:
    assert aggregates.result("slope", over("slope", [(5, 1.0), (5, 9.0)])) == 0.0
    assert aggregates.result("slope", aggregates.begin("slope")) == 0.0


def test_first_and_last_go_by_the_events_time() -> None:
    events = [(20, "b"), (10, "a"), (30, "c"), (30, "d"), (10, "e")]
    assert (aggregates.result("first", over("first", events)), aggregates.result("last", over("last", events))) == ("a", "d")


def test_distinct_keeps_the_order_of_arrival_and_tells_true_from_one() -> None:
    events = [(0, 1), (1, True), (2, "x"), (3, 1), (4, {"a": [1]}), (5, {"a": [1]})]
    assert aggregates.result("distinct", over("distinct", events)) == [1, True, "x", {"a": [1]}]


def test_distinct_is_bounded() -> None:
    with pytest.raises(AggregateError, match="keeps 1,000 different values at most"):
        over("distinct", [(n, n) for n in range(DISTINCT_MAX + 1)])


@pytest.mark.parametrize("function", AGGREGATES)
@given(events=EVENTS, cut=st.integers(0, 40))
def test_two_merged_say_what_one_over_all_says(function: str, events: list[tuple[int, float]], cut: int) -> None:
    events = sorted(events)
    merged = aggregates.merge(function, over(function, events[:cut]), over(function, events[cut:]))
    one, both = (aggregates.result(function, value) for value in (over(function, events), merged))
    if isinstance(one, float):
        assert math.isclose(one, both, rel_tol=1e-4, abs_tol=1e-3)
    else:
        assert one == both


@pytest.mark.parametrize("function", ["sum", "avg", "min", "max", "stddev", "slope"])
@pytest.mark.parametrize("operand", ["7", True, None, [1], float("nan"), float("inf")])
def test_what_is_no_finite_number_is_refused(function: str, operand: Any) -> None:
    with pytest.raises(AggregateError, match=rf"{function}\(\) takes"):
        aggregates.check_operand(function, operand)


def test_every_aggregate_of_the_crew_file_is_there() -> None:
    for function in AGGREGATES:
        aggregates.result(function, aggregates.begin(function))
