"""Windows of one key: which hold an event, when they close. Pure.

A key's clock is the latest event time seen; while nothing comes, it goes on as the time of arrival does.
A window is closed when the clock has reached its end and its grace is over. An event whose windows are all
closed is late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from crewline.triggers import aggregates
from crewline.triggers.rules import TriggerRule, WindowRule
from crewline.triggers.state import KeyState, Window

SESSIONS_MAX = 1_000  # open at once for one key: events far out of order make new ones


class Sample(NamedTuple):
    """An event as windows take it: its time, the operands of the aggregates, itself if it is needed."""

    at_ms: int
    values: Sequence[Any]
    event: Any


def clock_at(state: KeyState, arrived_ms: int, at_ms: int | None = None) -> int:
    """Return up to where windows are closed when a record with time `at_ms` (None: no event) arrives."""
    if state.event_ms is None:
        return max(state.closed_ms, at_ms or 0)
    silent = state.event_ms + max(0, arrived_ms - state.arrived_ms)
    return max(state.closed_ms, silent, at_ms or 0)


def closes_ms(rule: WindowRule, window: Window) -> int:
    """Return the time on the key's clock at which `window` closes."""
    return window.end_ms + rule.gap_ms + rule.grace_ms


def due_ms(rule: TriggerRule, state: KeyState) -> int | None:
    """Return when the next window closes if nothing more arrives (Unix ms); None if nobody waits for that."""
    if rule.window is None or not rule.fires_at_close or not state.windows or state.event_ms is None:
        return None
    return state.arrived_ms + min(closes_ms(rule.window, window) for window in state.windows) - state.event_ms


def close(rule: WindowRule, windows: Sequence[Window], clock_ms: int) -> tuple[list[Window], list[Window]]:
    """Return the windows that close by `clock_ms`, earliest first, and those that stay open."""
    closed = [window for window in windows if closes_ms(rule, window) <= clock_ms]
    still = [window for window in windows if closes_ms(rule, window) > clock_ms]
    return sorted(closed, key=lambda window: (window.end_ms, window.start_ms)), still


def place(rule: TriggerRule, windows: Sequence[Window], sample: Sample, clock_ms: int) -> tuple[list[Window], list[int]]:
    """Return the open windows with an event in them, in order of start, and the starts of those that hold it.

    None hold it if it is late. Raises: AggregateError if an aggregate cannot take it.
    """
    assert rule.window is not None
    if rule.window.kind == "session":
        return _into_session(rule, windows, sample, clock_ms)
    by_start = {window.start_ms: window for window in windows}
    holding = []
    for start in rule.window.starts(sample.at_ms):
        end = start + rule.window.size_ms
        if end + rule.window.grace_ms > clock_ms:
            by_start[start] = _with(rule, by_start.get(start) or _new(rule, start, end), sample)
            holding.append(start)
    return [by_start[start] for start in sorted(by_start)], holding


def results(rule: TriggerRule, window: Window) -> dict[str, Any]:
    """Return the aggregates of a window by name."""
    kinds = rule.compiled.aggregates
    return {name: aggregates.result(kinds[name].function, value) for name, value in zip(kinds, window.values, strict=True)}


def _into_session(
    rule: TriggerRule, windows: Sequence[Window], sample: Sample, clock_ms: int
) -> tuple[list[Window], list[int]]:
    window = rule.window
    assert window is not None
    if sample.at_ms + window.gap_ms + window.grace_ms <= clock_ms:
        return list(windows), []
    near = [each for each in windows if each.start_ms - window.gap_ms <= sample.at_ms <= each.end_ms + window.gap_ms]
    if not near and len(windows) >= SESSIONS_MAX:
        raise aggregates.AggregateError(f"a key has {SESSIONS_MAX:,} open sessions at most; the grace is too long for such events")
    joined = near[0] if near else _new(rule, sample.at_ms, sample.at_ms)
    for other in near[1:]:
        joined = _joined(rule, joined, other)
    start, end = min(joined.start_ms, sample.at_ms), max(joined.end_ms, sample.at_ms)
    filled = _with(rule, joined, sample)
    session = Window(start, end, filled.values, filled.last, filled.latest_ms)
    rest = [each for each in windows if each not in near]
    return sorted([*rest, session], key=lambda each: each.start_ms), [start]


def _new(rule: TriggerRule, start_ms: int, end_ms: int) -> Window:
    return Window(start_ms, end_ms, tuple(aggregates.begin(each.function) for each in rule.compiled.aggregates.values()))


def _with(rule: TriggerRule, window: Window, sample: Sample) -> Window:
    values = tuple(
        aggregates.add(kind.function, value, operand, sample.at_ms)
        for kind, value, operand in zip(rule.compiled.aggregates.values(), window.values, sample.values, strict=True)
    )
    newest = sample.at_ms >= window.latest_ms
    last, latest_ms = (sample.event, sample.at_ms) if newest else (window.last, window.latest_ms)
    return Window(window.start_ms, window.end_ms, values, last, latest_ms, window.fired)


def _joined(rule: TriggerRule, one: Window, other: Window) -> Window:
    kinds = rule.compiled.aggregates.values()
    values = tuple(
        aggregates.merge(kind.function, mine, others)
        for kind, mine, others in zip(kinds, one.values, other.values, strict=True)
    )
    newest = one if one.latest_ms > other.latest_ms else other
    return Window(
        min(one.start_ms, other.start_ms), max(one.end_ms, other.end_ms), values, newest.last, newest.latest_ms
    )
