"""Aggregates over the events of a window: each is a small value that takes one event at a time, and merges.

    value = begin(function)             nothing yet
    value = add(function, value, operand, at_ms)
    value = merge(function, one, other) two sessions that became one
    result(function, value)             what expressions see

Values are lists of JSON numbers and values, so that a snapshot holds them; all of them are of bounded size.
Sums are in doubles, in the order of the records: the same records give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

DISTINCT_MAX = 1_000  # different values that `distinct` keeps; a window with more is a mistake in the crew file

Value = list[Any]


class AggregateError(ValueError):
    """An operand that an aggregate cannot take; the message says which."""


class _Kind(NamedTuple):
    """How one function works. `numeric`: it takes numbers only."""

    begin: Callable[[], Value]
    add: Callable[[Value, Any, int], Value]
    merge: Callable[[Value, Value], Value]
    result: Callable[[Value], Any]
    numeric: bool = True


def begin(function: str) -> Value:
    """Return the value over no events."""
    return _KINDS[function].begin()


def add(function: str, value: Value, operand: Any, at_ms: int) -> Value:
    """Return the value with one more event. Raises: AggregateError beyond `DISTINCT_MAX` different values."""
    return _KINDS[function].add(value, operand, at_ms)


def merge(function: str, one: Value, other: Value) -> Value:
    """Return the value over the events of both; `one` is the earlier. Raises: AggregateError, as `add`."""
    return _KINDS[function].merge(one, other)


def result(function: str, value: Value) -> Any:
    """Return the JSON value that expressions see."""
    return _KINDS[function].result(value)


def check_operand(function: str, operand: Any) -> Any:
    """Return the operand as it is kept: a double where only numbers will do. Raises: AggregateError."""
    if not _KINDS[function].numeric:
        return operand
    if isinstance(operand, bool) or not isinstance(operand, int | float):
        raise AggregateError(f"{function}() takes numbers, not {type(operand).__name__} {operand!r:.60}")
    number = float(operand)
    if not math.isfinite(number):
        raise AggregateError(f"{function}() takes finite numbers, not {operand!r}")
    return number


# --- count, sum, avg ----------------------------------------------------------------------------


def _plus(one: Value, other: Value) -> Value:
    return [mine + others for mine, others in zip(one, other, strict=True)]


# --- min, max, first, last: [] or [value], [time, value] ------------------------------------------


def _least(value: Value, operand: Any, at_ms: int) -> Value:
    return [operand] if not value or operand < value[0] else value


def _most(value: Value, operand: Any, at_ms: int) -> Value:
    return [operand] if not value or operand > value[0] else value


def _earliest(value: Value, operand: Any, at_ms: int) -> Value:
    return [at_ms, operand] if not value or at_ms < value[0] else value


def _latest(value: Value, operand: Any, at_ms: int) -> Value:
    return [at_ms, operand] if not value or at_ms >= value[0] else value


def _end(value: Value) -> Any:
    return value[-1] if value else None


# --- distinct -------------------------------------------------------------------------------------


def _distinct(value: Value, operand: Any, at_ms: int) -> Value:
    # Not `in`: True is no 1 here.
    if any(type(operand) is type(known) and operand == known for known in value):
        return value
    if len(value) >= DISTINCT_MAX:
        raise AggregateError(f"distinct() keeps {DISTINCT_MAX:,} different values at most; use a shorter window or count()")
    return [*value, operand]


def _distinct_both(one: Value, other: Value) -> Value:
    for each in other:
        one = _distinct(one, each, 0)
    return one


# --- stddev: [n, mean, sum of squared distances] (Welford; merged as by Chan) ------------------------


def _spread(value: Value, operand: float, at_ms: int) -> Value:
    n, mean, squares = value
    n += 1
    distance = operand - mean
    mean += distance / n
    return [n, mean, squares + distance * (operand - mean)]


def _spread_both(one: Value, other: Value) -> Value:
    if not one[0] or not other[0]:
        return one if one[0] else other
    n = one[0] + other[0]
    distance = other[1] - one[1]
    return [n, one[1] + distance * other[0] / n, one[2] + other[2] + distance * distance * one[0] * other[0] / n]


def _deviation(value: Value) -> float:
    n, _, squares = value
    return math.sqrt(max(0.0, squares) / (n - 1)) if n > 1 else 0.0


# --- slope: least squares over time, as [n, t0, Σt, Σy, Σtt, Σty], t in seconds after t0 -------------


def _line(value: Value, operand: float, at_ms: int) -> Value:
    if not value:
        return [1, at_ms, 0.0, operand, 0.0, 0.0]
    n, t0, st, sy, stt, sty = value
    t = (at_ms - t0) / 1000
    return [n + 1, t0, st + t, sy + operand, stt + t * t, sty + t * operand]


def _line_both(one: Value, other: Value) -> Value:
    if not one or not other:
        return one or other
    n, t0, st, sy, stt, sty = other
    shift = (t0 - one[1]) / 1000  # the other's times, counted from this one's first
    moved = [n, 0, st + n * shift, sy, stt + 2 * shift * st + n * shift**2, sty + shift * sy]
    return [mine + others for mine, others in zip(one, moved, strict=True)]


def _slope(value: Value) -> float:
    if not value:
        return 0.0
    n, _, st, sy, stt, sty = value
    below = n * stt - st * st
    return (n * sty - st * sy) / below if below > 0 else 0.0


_KINDS: Mapping[str, _Kind] = {
    "count": _Kind(lambda: [0], lambda v, _, __: [v[0] + 1], _plus, lambda v: v[0], numeric=False),
    "sum": _Kind(lambda: [0.0], lambda v, x, _: [v[0] + x], _plus, lambda v: v[0]),
    "avg": _Kind(lambda: [0, 0.0], lambda v, x, _: [v[0] + 1, v[1] + x], _plus, lambda v: v[1] / v[0] if v[0] else None),
    "min": _Kind(list, _least, lambda a, b: _least(a, b[0], 0) if b else a, _end),
    "max": _Kind(list, _most, lambda a, b: _most(a, b[0], 0) if b else a, _end),
    "first": _Kind(list, _earliest, lambda a, b: _earliest(a, b[1], b[0]) if b else a, _end, numeric=False),
    "last": _Kind(list, _latest, lambda a, b: _latest(a, b[1], b[0]) if b else a, _end, numeric=False),
    "distinct": _Kind(list, _distinct, _distinct_both, list, numeric=False),
    "stddev": _Kind(lambda: [0, 0.0, 0.0], _spread, _spread_both, _deviation),
    "slope": _Kind(list, _line, _line_both, _slope),
}
