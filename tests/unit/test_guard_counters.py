"""Counters of limits over windows: whatever is asked, settled and repeated, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from crewline import events as ev
from crewline.bus.base import Record
from crewline.guardrail import counters
from crewline.guardrail.counters import DAY_MS, Counter, CounterView, count
from crewline.records import Entry
from hypothesis import given, settings
from hypothesis import strategies as st

MAX, WINDOW_S = 10.0, 60.0
MIDNIGHT = 20_000 * DAY_MS


def entry(event: ev.Event, at_ms: int, offset: int = 0) -> Entry:
    record = Record("demo.limits", 0, offset, at_ms, b"key", b"", ())
    return Entry(record, "key", "id", event.TYPE, "run", "", event, "guard", "")


def asked(id: str, amount: float = 1.0, *, take: ev.Take = "reserve", call: str = "call", day: bool = False,
          replaces: tuple[str, ...] = (), most: float = MAX) -> ev.LimitAsked:
    return ev.LimitAsked(id, "c1", 1, "limit", amount, most, WINDOW_S, day, call, 1, take, replaces)


@dataclass
class Bench:
    """A counter, each step of it also taken from its snapshot, and a plain model of what was granted."""

    counter: Counter = field(default_factory=lambda: Counter("key"))
    view: CounterView = field(default_factory=CounterView)
    now_ms: int = MIDNIGHT
    granted: dict[str, tuple[int, float]] = field(default_factory=dict)  # what counts in the model
    seen: set[str] = field(default_factory=set)

    def fold(self, event: ev.Event) -> None:
        before = self.counter
        self.counter = count(before, entry(event, self.now_ms))
        again = count(self.view.decode(self.view.encode(before)), entry(event, self.now_ms))
        assert again == self.counter, "a snapshot and the log give the same"
        assert self.view.encode(again) == self.view.encode(self.counter)

    def ask(self, event: ev.LimitAsked) -> ev.LimitAnswered | None:
        self.fold(event)
        return next((each.answer for each in self.counter.open if each.answer.reservation == event.reservation), None)

    def used(self) -> float:
        return sum(amount for at_ms, amount in self.granted.values() if at_ms > self.now_ms - WINDOW_S * 1000)


Step = tuple[str, int, float, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "look", "over", "repeat", "ran", "back", "replace"]),
        st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.5, 4.0, 11.0]), st.integers(0, 20_000),
    ),
    max_size=60,
)


def play(steps: list[Step], *, exact: bool) -> None:
    """Play the steps on a counter; hold it to the model: exactly, or (entries put together) never above it."""
    bench = Bench()
    for n, (what, which, amount, later_ms) in enumerate(steps):
        bench.now_ms += later_ms
        known = sorted(bench.seen)
        other = known[which % len(known)] if known else ""
        match what:
            case "ask" | "look" | "over" | "replace":
                id = f"r{n:03}"
                replaces = (other,) if what == "replace" and other in bench.granted else ()
                still_open = any(each.answer.reservation == other for each in bench.counter.open)
                answer = bench.ask(asked(id, amount, take="reserve" if what in ("ask", "replace") else what, replaces=replaces))
                assert answer is not None
                if replaces and still_open:
                    del bench.granted[other]
                used = bench.used()
                fits = used + amount <= MAX + 1e-6
                if exact:
                    assert answer.used == pytest.approx(used)
                    assert answer.granted is (fits or what == "over")
                else:
                    assert answer.used >= used - 1e-6, "what was granted is never forgotten within its window"
                    assert fits or what == "over" or not answer.granted
                bench.seen.add(id)
                if answer.granted and what != "look":
                    bench.granted[id] = (bench.now_ms, amount)
                if what in ("ask", "replace") and answer.granted:
                    assert bench.used() <= MAX + 1e-6, "no window holds more than the limit"
            case "repeat" if other:
                before = bench.counter
                bench.fold(asked(other, amount))
                was_there = other in before.done or any(each.answer.reservation == other for each in before.open)
                if was_there:
                    assert bench.counter is before, "a repeat takes nothing"
                else:  # it left its window long ago, and is taken anew
                    answer = next(each.answer for each in bench.counter.open if each.answer.reservation == other)
                    bench.granted.pop(other, None)
                    if answer.granted:
                        bench.granted[other] = (bench.now_ms, amount)
            case "ran" | "back" if other:
                still_open = any(each.answer.reservation == other for each in bench.counter.open)
                took = next((each.amount for each in bench.counter.open if each.answer.reservation == other), 0.0)
                bench.fold(ev.LimitSettled(other, what == "ran", took))
                if what == "back" and still_open:
                    bench.granted.pop(other, None)
            case _:
                pass


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_what_is_granted_never_passes_the_limit_in_any_window(steps: list[Step]) -> None:
    play(steps, exact=True)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_entries_put_together_count_longer_and_never_shorter(steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counters, "PAST_MAX", 2)
        play(steps, exact=False)


def test_of_two_that_fit_alone_the_second_in_the_log_is_refused() -> None:
    bench = Bench()
    first, second = bench.ask(asked("a", 6.0)), bench.ask(asked("b", 6.0))
    assert first is not None
    assert second is not None
    assert (first.granted, second.granted, second.used) == (True, False, 6.0)
    assert second.again_ms == MIDNIGHT + 60_000
    bench.now_ms += 59_999
    assert not bench.ask(asked("c", 6.0)).granted  # type: ignore[union-attr]
    bench.now_ms += 1
    assert bench.ask(asked("d", 6.0)).granted  # type: ignore[union-attr]


def test_what_can_never_fit_says_so() -> None:
    answer = Bench().ask(asked("a", 11.0))
    assert answer is not None
    assert (answer.granted, answer.again_ms) == (False, None)


def test_there_is_room_again_when_enough_has_left() -> None:
    bench = Bench()
    for n in range(5):
        bench.ask(asked(f"r{n}", 2.0))
        bench.now_ms += 1_000
    answer = bench.ask(asked("x", 5.0))
    assert answer is not None
    assert answer.again_ms == MIDNIGHT + 62_000  # when the third of them leaves: 4 are left


@pytest.mark.parametrize("day", [False, True])
def test_a_clock_that_jumps_ahead_and_back_gives_nothing_back(day: bool) -> None:
    bench = Bench(now_ms=MIDNIGHT - 120_000)
    if day:
        bench.fold(ev.LimitSettled("t1", True, MAX, True, bench.now_ms))
    else:
        bench.ask(asked("r1", MAX))
        bench.fold(ev.LimitSettled("r1", True, MAX))
    call = "" if day else "call"
    for later_ms, granted in ((121_000 if day else 90_000, True), (1_000, False)):  # after the window, and in it again
        bench.now_ms = MIDNIGHT - 120_000 + later_ms
        answer = bench.ask(asked(f"at {later_ms}", 0.0 if day else 1.0, call=call, day=day))
        assert answer is not None
        assert answer.granted is granted


def test_tenths_add_up() -> None:
    bench = Bench()
    granted = [bench.ask(asked(f"r{n}", 0.1, most=0.3)).granted for n in range(4)]  # type: ignore[union-attr]
    assert granted == [True, True, True, False]


def test_a_settled_reservation_is_not_settled_twice() -> None:
    bench = Bench()
    bench.ask(asked("a", 6.0))
    bench.fold(ev.LimitSettled("a", True, 6.0))
    bench.fold(ev.LimitSettled("a", False, 0.0))
    bench.fold(ev.LimitSettled("never asked", False, 0.0))
    assert bench.ask(asked("b", 5.0)).granted is False  # type: ignore[union-attr]


def test_what_ran_counts_from_when_it_was_granted() -> None:
    bench = Bench()
    bench.ask(asked("a", 10.0))
    bench.now_ms += 30_000
    bench.fold(ev.LimitSettled("a", True, 10.0))
    bench.now_ms += 30_000
    assert bench.ask(asked("b", 10.0)).granted  # type: ignore[union-attr]


def test_a_day_begins_at_midnight() -> None:
    bench = Bench(now_ms=MIDNIGHT - 1)
    assert bench.ask(asked("t1", 0.0, call="", day=True)).granted  # type: ignore[union-attr]
    bench.fold(ev.LimitSettled("t1", True, 12.0, True))
    refused = bench.ask(asked("t2", 0.0, call="", day=True))
    assert refused is not None
    assert (refused.granted, refused.used, refused.again_ms) == (False, 12.0, MIDNIGHT)
    bench.now_ms = MIDNIGHT
    assert bench.ask(asked("t3", 0.0, call="", day=True)).granted  # type: ignore[union-attr]


def test_what_a_turn_spent_counts_for_the_day_it_ended_however_long_it_took() -> None:
    bench = Bench()
    bench.ask(asked("t1", 0.0, call="", day=True))
    bench.now_ms += 3 * DAY_MS
    bench.ask(asked("t2", 0.0, call="", day=True))
    bench.fold(ev.LimitSettled("t1", True, 10.0, True))
    assert bench.ask(asked("t3", 0.0, call="", day=True)).granted is False  # type: ignore[union-attr]


def test_what_a_turn_spent_counts_once_whether_it_was_asked_before_or_not() -> None:
    bench = Bench()
    bench.fold(ev.LimitSettled("t1", True, 6.0, True))
    bench.fold(ev.LimitSettled("t1", True, 6.0, True))
    assert bench.ask(asked("t1", 0.0, call="", day=True)) is None, "its turn is over: nobody waits for an answer"
    answer = bench.ask(asked("t2", 0.0, call="", day=True))
    assert answer is not None
    assert (answer.granted, answer.used) == (True, 6.0)


def test_what_turns_spent_is_said_again_when_the_store_is_lost_and_counts_once() -> None:
    """Then every conversation says once more what it has said, also of days long ago."""
    bench = Bench()
    said = [ev.LimitSettled(f"t{n}", True, 0.01, True, MIDNIGHT + n) for n in range(500)]
    for settled in (*said, *said):
        bench.fold(settled)
    bench.fold(ev.LimitSettled("of yesterday", True, 8.0, True, MIDNIGHT - 1))
    answer = bench.ask(asked("next", 0.0, call="", day=True))
    assert answer is not None
    assert answer.used == pytest.approx(5.0)
    assert bench.ask(asked("t7", 0.0, call="", day=True)) is None, "its turn is over: nobody waits for an answer"
    bench.now_ms += DAY_MS
    bench.fold(said[0])
    assert bench.ask(asked("a day later", 0.0, call="", day=True)).used == 0.0  # type: ignore[union-attr]


def test_turns_that_are_remembered_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "TURNS_MAX", 100)
    bench = Bench()
    for n in range(1_000):
        bench.fold(ev.LimitSettled(f"t{n}", True, 0.001, True, MIDNIGHT + n))
    assert len(bench.counter.turns) <= 100 * 8
    bench.fold(ev.LimitSettled("t999", True, 0.001, True, MIDNIGHT + 999))
    assert bench.ask(asked("next", 0.0, call="", day=True)).used == pytest.approx(1.0)  # type: ignore[union-attr]


def test_a_counter_stays_small_however_much_is_taken() -> None:
    bench = Bench()
    for n in range(2_000):
        bench.now_ms += 25
        bench.ask(asked(f"r{n}", 1.0, most=1e6))
        bench.fold(ev.LimitSettled(f"r{n}", True, 1.0))
    state = bench.counter
    assert len(state.past) <= counters.PAST_MAX
    assert len(state.done) == counters.DONE_MAX
    assert not state.open
    assert len(bench.view.encode(state)) < 10_000
    assert sum(each.amount for each in state.past) >= 2_000
    ordered = [each.at_ms for each in state.past]
    assert ordered == sorted(ordered)


def test_entries_of_two_days_are_not_put_together() -> None:
    # One every 25 minutes for five days: slices of hours, none across midnight.
    past = tuple(counters.Counted(MIDNIGHT + n * 1_500_000, 1.0) for n in range(288))
    merged = counters._merged(past)
    assert len(merged) < 100
    for day in range(5):
        begin, end = MIDNIGHT + day * DAY_MS, MIDNIGHT + (day + 1) * DAY_MS
        inside = [sum(each.amount for each in entries if begin <= each.at_ms < end) for entries in (past, merged)]
        assert inside[0] == inside[1]


def test_records_that_are_none_of_a_counters_change_nothing() -> None:
    bench = Bench()
    bench.fold(ev.CancelRequested(turn=1))
    assert bench.counter == Counter("key")


def test_after_a_gap_nothing_is_granted_and_a_bad_record_changes_nothing() -> None:
    view = CounterView()
    record: Any = Record("demo.limits", 0, 0, 0, b"key", None, ())
    assert view.reject(Counter("key"), record, "record.invalid", "no event", parks=False) == Counter("key")
    parked = Bench(counter=view.reject(Counter("key"), record, "log.gap", "gone", parks=True))
    answer = parked.ask(asked("a", 1.0, take="over"))
    assert answer is not None
    assert (answer.granted, answer.problem) == (False, "log.gap: gone")
