"""An outside record becomes an event, or is refused with a reason; places are given in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from crewline.bus import Record
from crewline.errors import UsageError
from crewline.triggers import TriggerRule, WindowRule
from crewline.triggers.gate import Gate
from crewline.triggers.letters import letter_of_record
from crewline.triggers.taking import NotTaken, take, time_of

NOW = 1_795_600_800_000
HOUR = 3_600_000


def record(value: Any, *, at_ms: int = NOW, key: bytes = b"k", raw: bytes | None = None) -> Record:
    return Record("outside", 1, 7, at_ms, key, raw if raw is not None else json.dumps(value).encode(), (("h", b"v"),))


def rule(**said: Any) -> TriggerRule:
    usual: dict[str, Any] = {"topic": "outside", "key": "event.id", "asks": ["desk.do"]}
    return TriggerRule("t", **(usual | said))


def taken(value: Any, **said: Any) -> Any:
    return take(record(value), rule(**said), epoch=3, now_ms=NOW)


@pytest.mark.parametrize(("given", "at_ms"), [
    ("2026-11-25T10:00:00Z", NOW), ("2026-11-25T12:00:00.000+02:00", NOW), ("2026-11-25 10:00:00", NOW),
    (NOW, NOW), (NOW / 1000, NOW), (NOW // 1000, NOW),
])  # fmt: skip
def test_a_time_is_rfc_3339_or_unix_seconds_or_milliseconds(given: Any, at_ms: int) -> None:
    assert time_of(given) == at_ms


@pytest.mark.parametrize("given", ["tomorrow", None, True, [1], -1, "0001-01-01T00:00:00Z", 10**20, float("inf"), float("nan")])
def test_anything_else_is_no_time(given: Any) -> None:
    with pytest.raises(NotTaken, match="'time' gives"):
        time_of(given)


@pytest.mark.parametrize("value", [b"1" + b"0" * 400, b"-1" + b"0" * 4_000, *(b"[" * n + b"]" * n for n in range(940, 1_000, 3))])
@pytest.mark.parametrize("said", [
    {}, {"key": "'k'", "time": "event.id"}, {"key": "'k'", "when": "event.id == 1.0"},
    *({"key": "'k'", "window": WindowRule("tumbling", HOUR, HOUR), "aggregates": {"n": f"{function}(event.id)"}}
      for function in ("sum", "distinct", "slope", "last")),
])  # fmt: skip
def test_no_value_stops_the_one_who_takes_it(value: bytes, said: dict[str, Any]) -> None:
    """Nobody outside may end a crew's process, and the next one's that begins with the same record."""
    with contextlib.suppress(NotTaken):
        take(record(None, raw=b'{"id": ' + value + b"}"), rule(**said), epoch=0, now_ms=NOW)


def test_an_event_carries_what_the_windows_need_and_nothing_more() -> None:
    said = {"window": WindowRule("tumbling", HOUR, HOUR), "aggregates": {"n": "count()", "top": "max(event.x)"}}
    fresh = taken({"id": 7, "x": 2, "long": "y" * 1_000}, **said)
    assert fresh.key == "t/7"
    event = fresh.event
    assert (event.partition, event.offset, event.epoch, event.at_ms, event.values, event.event) == (1, 7, 3, NOW, (None, 2.0), None)
    assert taken({"id": 7, "x": 2}, **said, user="event.id").event.event == {"id": 7, "x": 2}


def test_without_a_window_the_condition_is_looked_at_at_once() -> None:
    assert taken({"id": 1, "x": 1}, when="event.x > 1") is None
    assert taken({"id": 1, "x": 2}, when="event.x > 1") is not None


@pytest.mark.parametrize(("value", "say"), [
    ({"x": 1}, "there is no 'id'"), ({"id": None}, "'key' gives null"), ({"id": ""}, "'key' gives"), ({"id": [1]}, "'key' gives"),
    ({"id": "x" * 401}, "more than 400 bytes"), ([], "there is no 'id'"), ("text", "there is no 'id'"),
    ({"id": 1, "at": NOW + HOUR + 1}, "its time lies 1.0 hours after"),
])  # fmt: skip
def test_a_record_without_a_usable_key_or_time_is_refused(value: Any, say: str) -> None:
    with pytest.raises(NotTaken, match=say):
        taken(value, **({"time": "event.at"} if isinstance(value, dict) and "at" in value else {}))


@pytest.mark.parametrize("raw", [b"", b"\xff", b"{", b"1 2", b"NaN", b'"\\ud800"', b"[" * 100_000, b"1e999"])
def test_a_value_that_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(NotTaken, match="the value is"):
        take(record(None, raw=raw), rule(), epoch=0, now_ms=NOW)


def test_a_producers_clock_counts_no_further_than_now() -> None:
    fresh = take(record({"id": 1}, at_ms=NOW + 99 * HOUR), rule(), epoch=0, now_ms=NOW)
    assert fresh is not None
    assert (fresh.event.arrived_ms, fresh.event.at_ms) == (NOW, NOW)


def test_distinct_takes_small_values_only() -> None:
    said: dict[str, Any] = {"window": WindowRule("tumbling", HOUR, HOUR), "aggregates": {"all": "distinct(event.x)"}}
    with pytest.raises(NotTaken, match="1,000 bytes"):
        taken({"id": 1, "x": "y" * 1_000}, **said)


@pytest.mark.parametrize(("said", "problem"), [
    ({"window": WindowRule("hopping", 24 * HOUR, 1_000)}, "would be in 86,400 windows; 1,440 at most"),
    ({"window": WindowRule("session", gap_ms=20 * 24 * HOUR)}, "may last 15 days at most"),
    ({"when": "evnt.x > 1.0"}, "unknown name 'evnt'"),
])  # fmt: skip
def test_a_trigger_beyond_the_bounds_is_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        rule(**said)


def test_a_dead_letter_is_the_record_and_why() -> None:
    letter = letter_of_record("d", record(None, raw=b"\xff", key=b"\x00"), "t", "ü is wrong")
    assert (letter.key, letter.value, letter.headers[0]) == (b"\x00", b"\xff", ("h", b"v"))
    assert dict(letter.headers[1:]) == {
        "crewline-trigger": b"t", "crewline-reason": "ü is wrong".encode(), "crewline-topic": b"outside",
        "crewline-partition": b"1", "crewline-offset": b"7",
    }  # fmt: skip
    large = letter_of_record("d", record(None, raw=b"x" * 2_000_000), "t", "large")
    assert len(large.value or b"") == 100_000
    assert dict(large.headers)["crewline-cut"].endswith(b" bytes")


# --- places --------------------------------------------------------------------------------------


async def test_places_are_given_in_order_and_never_more_than_there_are() -> None:
    gate, order = Gate(2), []

    async def run(name: str) -> None:
        await gate.enter(name)
        order.append(name)

    tasks = [asyncio.create_task(run(name)) for name in "abcde"]
    await asyncio.sleep(0)
    assert (order, gate.inside, gate.waiting) == (["a", "b"], 2, 3)
    gate.leave("a")
    gate.leave("b")
    late = asyncio.create_task(run("late"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (order, gate.inside) == (["a", "b", "c", "d"], 2)
    for name in "cde":
        gate.leave(name)
        await asyncio.sleep(0)
    gate.leave("e")
    await asyncio.gather(*tasks, late)
    assert order == ["a", "b", "c", "d", "e", "late"]


async def test_one_that_is_cancelled_while_it_waits_or_is_given_a_place_takes_none() -> None:
    gate = Gate(1)
    await gate.enter("a")
    waiting, next_one = (asyncio.create_task(gate.enter(name)) for name in "bc")
    await asyncio.sleep(0)
    gate.leave("a")  # b has the place, and does not know it yet
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await next_one
    assert (gate.inside, gate.waiting) == (1, 0)
    gate.leave("c")
    gate.leave("b")
    assert gate.inside == 0


async def test_what_was_open_before_has_its_place_even_beyond_the_limit() -> None:
    gate = Gate(1)
    for name in "abc":
        gate.enter_anyway(name)
    waiting = asyncio.create_task(gate.enter("d"))
    await asyncio.sleep(0)
    for name in "ab":
        gate.leave(name)
        await asyncio.sleep(0)
    assert (gate.inside, waiting.done()) == (1, False)
    gate.leave("c")
    await waiting
