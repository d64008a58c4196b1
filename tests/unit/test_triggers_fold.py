"""The fold of a trigger's key: the same records give the same state, however they come, and every event counts once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from crewline import events as ev
from crewline.bus import Record
from crewline.records import Entry
from crewline.seal import DEPLOYMENT
from crewline.triggers import Gathering, TriggerRule, WindowRule
from crewline.triggers.folding import FIRINGS_MAX, ask_id, firing_id, fold
from crewline.triggers.state import KeyState
from crewline.triggers.view import TriggersView, pending

TOPIC, SECOND, MINUTE = "demo.triggers", 1_000, 60_000
START = 1_795_600_800_000  # a whole hour
TUMBLING = WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE)
HOPPING = WindowRule("hopping", 10 * MINUTE, 2 * MINUTE, grace_ms=MINUTE)
SESSION = WindowRule("session", gap_ms=3 * MINUTE, grace_ms=30 * SECOND)
KEY = "burst/c-1"


def rule(**said: Any) -> TriggerRule:
    """A trigger that sums amounts, unless it says otherwise."""
    usual: dict[str, Any] = {
        "topic": "outside", "key": "event.card", "asks": ["desk.do"], "window": TUMBLING,
        "aggregates": {"n": "count()", "total": "sum(event.amount)"}, "input": {"n": "n", "from": "window.start"},
    }  # fmt: skip
    return TriggerRule("burst", **(usual | said))


class Log:
    """Records of one key, one after the other."""

    def __init__(self, of: TriggerRule) -> None:
        self.rule = of
        self.entries: list[Entry] = []
        self.offsets: dict[int, int] = {}

    def add(self, event: ev.Event, *, id: str = "", at_ms: int = START, sealed_by: str = DEPLOYMENT) -> Log:
        record = Record(TOPIC, 0, len(self.entries), at_ms, KEY.encode(), b"", ())
        self.entries.append(Entry(record, KEY, id or f"e-{len(self.entries)}", event.TYPE, "r", "", event, sealed_by, ""))
        return self

    def event(self, minute: float, amount: float = 10.0, *, arrived: float | None = None, partition: int = 0) -> Log:
        """An event at that minute, which arrived then or later."""
        offset = self.offsets[partition] = self.offsets.get(partition, -1) + 1
        at_ms = START + round(minute * MINUTE)
        arrived_ms = at_ms if arrived is None else START + round(arrived * MINUTE)
        values = (None, amount)[: len(self.rule.aggregates)]
        return self.add(ev.EventTaken(self.rule.digest, "outside", partition, offset, at_ms, arrived_ms, 0, values,
                                      {"card": "c-1", "amount": amount}))

    def state(self) -> KeyState:
        return folded(self.entries, self.rule)


def folded(entries: Iterable[Entry], of: TriggerRule, state: KeyState | None = None) -> KeyState:
    state = state or KeyState(KEY)
    for entry in entries:
        state = fold(state, entry, {of.name: of})
    return state


def inputs(state: KeyState) -> list[tuple[int, str]]:
    """What each firing says: how many events, and from when."""
    return [(firing.input["n"], firing.input["from"][11:16]) for firing in state.firings]


# --- firing ----------------------------------------------------------------------------------------


def test_a_window_with_a_condition_fires_when_it_comes_true_and_once() -> None:
    log = Log(rule(when="total >= 30.0"))
    for minute in (1, 2, 3, 4, 5):
        log.event(minute)
    assert inputs(log.state()) == [(3, "10:00")]
    assert inputs(log.event(11).event(12).event(13).state()) == [(3, "10:00"), (3, "10:10")]


def test_a_window_without_a_condition_fires_when_it_closes() -> None:
    log = Log(rule())
    assert inputs(log.event(1).event(9).state()) == []
    assert inputs(log.event(10).state()) == [(2, "10:00")]


def test_each_hopping_window_that_holds_the_event_is_asked() -> None:
    of = rule(window=HOPPING, when="n >= 2")
    state = Log(of).event(1).event(9).state()
    # Windows from 9:52, …, 10:00 hold 10:01; those from 10:00 to 10:08 hold 10:09: only the one from 10:00 holds both.
    assert inputs(state) == [(2, "10:00")]
    assert [ev_time(window.start_ms) for window in state.windows] == ["10:00", "10:02", "10:04", "10:06", "10:08"]


def test_within_a_cooldown_nothing_fires_and_after_it_does_again() -> None:
    of = rule(window=HOPPING, when="n >= 1", cooldown_ms=5 * MINUTE)
    state = Log(of).event(0).event(1).event(4.9).event(5).state()
    assert [firing.input["n"] for firing in state.firings] == [1, 4]


def test_the_same_window_has_the_same_id_and_every_other_has_another() -> None:
    ids = {firing_id(topic, key, window) for topic in ("a.triggers", "b.triggers") for key in ("t/1", "t/2", "u/1") for window in "12"}
    assert len(ids) == 12
    of = rule(when="n >= 1")
    assert [firing.id for firing in Log(of).event(1).state().firings] == [firing_id(TOPIC, KEY, f"{of.digest}:{START}")]


def test_a_session_closes_by_an_event_after_its_gap_or_by_time() -> None:
    of = rule(window=SESSION)
    log = Log(of).event(0).event(2).event(4)
    assert inputs(log.state()) == []
    by_event = Log(of).event(0).event(2).event(4).event(8)
    assert inputs(by_event.state()) == [(3, "10:00")]
    due = 4 * MINUTE + SESSION.gap_ms + SESSION.grace_ms
    early = ev.TimePassed(START + due - 1, silent=True)
    assert inputs(Log(of).event(0).event(2).event(4).add(early, at_ms=START + due - 1).state()) == []
    assert inputs(log.add(ev.TimePassed(START + due, silent=True), at_ms=START + due).state()) == [(3, "10:00")]


def test_time_counts_no_further_than_the_log_says_and_not_while_events_wait() -> None:
    """An owner's clock may be ahead; and silence that nobody vouches for is none."""
    log = Log(rule(window=SESSION)).event(0)
    late = START + 60 * MINUTE
    assert inputs(log.add(ev.TimePassed(late, silent=True), at_ms=START + MINUTE).state()) == []
    assert inputs(log.add(ev.TimePassed(late, silent=False), at_ms=late).state()) == []
    assert inputs(log.add(ev.TimePassed(late, silent=True), at_ms=late).state()) == [(1, "10:00")]


def test_an_event_between_two_sessions_makes_one_of_them() -> None:
    of = rule(window=WindowRule("session", gap_ms=3 * MINUTE, grace_ms=10 * MINUTE))
    state = Log(of).event(0).event(5).state()
    assert len(state.windows) == 2
    (session,) = Log(of).event(0).event(5).event(2.5).state().windows
    assert (session.start_ms, session.end_ms, session.values) == (START, START + 5 * MINUTE, ([3], [30.0]))


def test_sessions_of_values_too_far_apart_for_a_double_become_one_all_the_same() -> None:
    of = rule(window=SESSION, aggregates={"n": "count()", "spread": "stddev(event.amount)"})
    (session,) = Log(of).event(0, 1e200).event(3.2, -1e200, arrived=0).event(1.6, arrived=0).state().windows
    assert session.values[0] == [3], "no record is left out for it"


def test_the_due_time_of_silence_counts_from_the_last_arrival() -> None:
    of = rule(window=SESSION)
    state = Log(of).event(0, arrived=2).state()
    (silence,) = [effect for effect in pending(state, {of.name: of}) if effect.kind == "silence"]
    assert silence.due_ms == START + 2 * MINUTE + SESSION.gap_ms + SESSION.grace_ms


# --- late, repeated, out of order ---------------------------------------------------------------------


def test_an_event_within_the_grace_counts_and_one_after_it_is_late() -> None:
    of = rule(window=WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE, grace_ms=MINUTE))
    state = Log(of).event(1).event(10.9).event(9, arrived=10.9).event(11).event(9.9, arrived=11).state()
    assert inputs(state) == [(2, "10:00")]
    assert state.late == 1
    assert [letter.say[:5] for letter in state.letters] == ["late:"]


def test_while_nothing_comes_the_clock_goes_on_with_the_arrivals() -> None:
    """A device that was silent for an hour and then sends what it saved: its windows are over."""
    state = Log(rule()).event(1).event(2, arrived=62).state()
    assert (inputs(state), state.late) == ([(1, "10:00")], 1)


def test_a_clock_that_was_ahead_recovers_when_time_has_caught_up() -> None:
    log = Log(rule()).event(60, arrived=0)
    for minute in range(1, 60):
        log.event(minute, arrived=minute)
    assert log.state().late == 59
    state = log.event(61, arrived=61).event(62, arrived=62).state()
    assert state.late == 59
    assert state.windows[-1].values[0] == [3]


@pytest.mark.parametrize("kind", [TUMBLING, HOPPING, SESSION], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("seed", range(20))
def test_a_record_that_is_taken_again_changes_nothing(kind: WindowRule, seed: int) -> None:
    """As after a kill: the intake begins anew at some place before, any number of times."""
    chance = random.Random(seed)
    log = Log(rule(window=kind, when="n >= 3" if kind is not SESSION else None))
    for _ in range(40):
        log.event(chance.uniform(0, 60), partition=chance.randrange(3))
    repeated = _with_repeats(log.entries, chance)
    assert len(repeated) > len(log.entries)
    assert folded(repeated, log.rule) == log.state(), f"again: {seed}"


def _with_repeats(entries: Sequence[Entry], chance: random.Random) -> list[Entry]:
    """Return the entries; after any of them, some of the last ones of a partition come again, in order."""
    found: list[Entry] = []
    for n, entry in enumerate(entries, 1):
        found.append(entry)
        if chance.random() < 0.3:
            partition = chance.randrange(3)
            taken = [each for each in entries[:n] if isinstance(each.event, ev.EventTaken) and each.event.partition == partition]
            found += taken[-chance.randint(1, 5) :]
    return found


@pytest.mark.parametrize("kind", [TUMBLING, HOPPING, SESSION], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("seed", range(20))
def test_the_borders_of_batches_and_snapshots_do_not_matter(kind: WindowRule, seed: int) -> None:
    chance = random.Random(seed)
    of = rule(window=kind, when="total > 40.0" if kind is not SESSION else None, cooldown_ms=chance.choice([0, 7 * MINUTE]))
    log, view = Log(of), TriggersView({of.name: of})
    for _ in range(60):
        log.event(chance.uniform(0, 60), chance.uniform(0, 20), partition=chance.randrange(2))
    state = KeyState(KEY)
    for entry in log.entries:
        state = view.fold(state, entry)
        if chance.random() < 0.4:
            state = view.decode(view.encode(state))
    assert view.encode(state) == view.encode(log.state()), f"again: {seed}"


@pytest.mark.parametrize("seed", range(30))
def test_windows_hold_exactly_the_events_of_their_time(seed: int) -> None:
    """Compared with a count of another kind: over all events at once. The grace is as long as the disorder."""
    chance = random.Random(seed)
    of = rule(window=WindowRule("hopping", 10 * MINUTE, 3 * MINUTE, grace_ms=20 * MINUTE))
    minutes = sorted(chance.uniform(0, 60) for _ in range(80))
    jumbled = sorted(minutes, key=lambda minute: minute + chance.uniform(0, 15))
    log = Log(of)
    for minute in jumbled:
        log.event(minute)
    log.event(200)
    assert log.state().late == 0
    expected = []
    for start in range(-12 * MINUTE, 63 * MINUTE, 3 * MINUTE):
        first = (START + start) // of.window.advance_ms * of.window.advance_ms  # type: ignore[union-attr]
        held = sum(first <= START + round(minute * MINUTE) < first + 10 * MINUTE for minute in minutes)
        expected += [(held, ev_time(first))] if held else []
    assert sorted(inputs(log.state()), key=lambda each: each[1]) == sorted(expected, key=lambda each: each[1]), f"again: {seed}"


def ev_time(at_ms: int) -> str:
    return ev.time_of(at_ms)[11:16]


@pytest.mark.parametrize("seed", range(30))
def test_sessions_are_the_gaps_between_events_whatever_their_order(seed: int) -> None:
    chance = random.Random(seed)
    of = rule(window=WindowRule("session", gap_ms=2 * MINUTE, grace_ms=90 * MINUTE))
    minutes = sorted(chance.uniform(0, 60) for _ in range(30))
    log = Log(of)
    for minute in chance.sample(minutes, len(minutes)):
        log.event(minute)
    groups = [[minutes[0]]]
    for before, minute in itertools.pairwise(minutes):
        if round(minute * MINUTE) - round(before * MINUTE) > 2 * MINUTE:
            groups.append([])
        groups[-1].append(minute)
    expected = [(START + round(group[0] * MINUTE), START + round(group[-1] * MINUTE), len(group)) for group in groups]
    windows = [(window.start_ms, window.end_ms, window.values[0][0]) for window in log.state().windows]
    assert windows == expected, f"again: {seed}"


# --- answers ------------------------------------------------------------------------------------------


def scatter(wait_for: Any = "all") -> TriggerRule:
    return rule(window=None, aggregates={}, input={}, asks=["a.do", "b.do", "c.do"], gather=Gathering("desk.do", wait_for, MINUTE))


def asked(of: TriggerRule) -> tuple[Log, str]:
    """A log with one firing that has started, and the firing's id."""
    log = Log(of).event(1)
    (firing,) = log.state().firings
    return log.add(ev.FiringStarted(firing.id)), firing.id


def answer(status: Any = "done", said: Any = "yes") -> ev.IntentAnswered:
    return ev.IntentAnswered("t", status, said if status == "done" else None, None if status == "done" else ev.Reason("x", "no"))


def test_nothing_is_published_before_the_firing_has_a_place() -> None:
    of = scatter()
    log = Log(of).event(1)
    assert [effect.kind for effect in pending(log.state(), {of.name: of})] == ["place"]
    log, _ = asked(of)
    assert [effect.kind for effect in pending(log.state(), {of.name: of})] == ["place", "publish", "publish", "publish", "give_up"]


@pytest.mark.parametrize(("wait_for", "statuses", "enough"), [
    ("all", ["done", "failed"], False), ("all", ["done", "failed", "done"], True),
    ("any", ["failed", "failed"], False), ("any", ["failed", "done"], True), ("any", ["failed"] * 3, True),
    ("majority", ["done"], False), ("majority", ["done", "done"], True), ("majority", ["done", "failed", "failed"], True),
])  # fmt: skip
def test_a_gather_waits_for_as_many_as_it_says(wait_for: str, statuses: list[str], enough: bool) -> None:
    log, id = asked(scatter(wait_for))
    for capability, status in zip(("a.do", "b.do", "c.do"), statuses, strict=False):
        log.add(answer(status), id=ask_id(id, capability))
    (firing,) = log.state().firings
    assert (firing.stage == "gather") is enough
    if enough:
        assert len(firing.gathered) == statuses.count("done")
        assert [each.id for each in firing.asked] == [id]


def test_an_answer_counts_once_only_sealed_and_only_for_what_was_asked() -> None:
    log, id = asked(scatter())
    log.add(answer(said="forged"), id=ask_id(id, "a.do"), sealed_by="")
    log.add(answer(said="first"), id=ask_id(id, "a.do")).add(answer(said="second"), id=ask_id(id, "a.do"))
    log.add(answer(), id="something else")
    (firing,) = log.state().firings
    assert [each.answered.answer if each.answered else None for each in firing.asked] == ["first", None, None]


def test_at_its_deadline_a_gather_takes_what_there_is_and_later_answers_are_nothing() -> None:
    log, id = asked(scatter())
    log.add(answer(), id=ask_id(id, "b.do")).add(ev.TimePassed(START + MINUTE), at_ms=START + MINUTE)
    log.add(answer(), id=ask_id(id, "c.do"))
    (firing,) = log.state().firings
    assert [each.capability for each in firing.gathered] == ["b.do"]
    assert {name: finding["status"] for name, finding in firing.input["findings"].items()} == {
        "a.do": "missing", "b.do": "done", "c.do": "missing"
    }  # fmt: skip


def test_a_firing_is_over_with_the_answer_of_its_last_intent() -> None:
    log, id = asked(rule(window=None, aggregates={}, input={}))
    assert log.add(answer("failed"), id=id).state().firings == ()


def test_a_firing_without_an_answer_for_a_day_gives_its_place_back() -> None:
    log, _ = asked(rule(window=None, aggregates={}, input={}))
    day = START + 24 * 60 * MINUTE
    assert len(log.add(ev.TimePassed(day - 1), at_ms=day - 1).state().firings) == 1
    assert log.add(ev.TimePassed(day), at_ms=day).state().firings == ()


def test_a_finding_too_large_for_the_gathering_is_a_failure_that_says_so() -> None:
    log, id = asked(scatter())
    log.add(answer(said="x" * 100_000), id=ask_id(id, "a.do"))
    (firing,) = log.state().firings
    assert firing.asked[0].answered is not None
    assert (firing.asked[0].answered.status, firing.asked[0].answered.reason) == (
        "failed", ev.Reason("answer.too_large", "The answer is longer than 100,000 bytes."))


# --- errors, bounds, changes -----------------------------------------------------------------------------


def test_an_error_after_the_aggregates_is_a_dead_letter_and_the_key_goes_on() -> None:
    log = Log(rule(when="n >= 2 && event.missing > 1.0")).event(1).event(2)
    state = log.state()
    assert [(letter.offset, letter.event) for letter in state.letters] == [(1, {"card": "c-1", "amount": 10.0})]
    assert "missing" in state.letters[0].say
    after = log.add(ev.FiringClosed(state.letters[0].id, "dead_letter")).state()
    assert (after.letters, after.windows[0].values[0]) == ((), [2])


@pytest.mark.parametrize(("on_error", "letters", "stopped"), [("dead_letter", 2, False), ("skip", 0, False), ("stop", 1, True)])
def test_an_error_does_what_on_error_says(on_error: Any, letters: int, stopped: bool) -> None:
    state = Log(rule(when="event.missing", on_error=on_error)).event(1).event(2).state()
    assert (len(state.letters), state.stopped is not None) == (letters, stopped)


def test_what_may_wait_is_bounded_and_what_is_beyond_is_said() -> None:
    log = Log(rule(window=None, aggregates={}, input={}))
    for n in range(FIRINGS_MAX + 2):
        log.event(n)
    state = log.state()
    assert (len(state.firings), state.full, len(state.letters)) == (FIRINGS_MAX, 2, 2)


def test_a_changed_trigger_begins_with_new_windows_and_keeps_its_open_firings() -> None:
    before, after = rule(when="n >= 2"), rule(when="n >= 3")
    old = Log(before).event(1).event(2)
    state = old.state()
    new = Log(after)
    new.offsets = dict(old.offsets)
    state = folded(new.event(3).entries, after, state)
    assert (len(state.firings), state.windows[0].values[0]) == (1, [1])
    assert folded(Log(before).event(9).entries, after, state) is state, "events of the other version count for nothing"


def test_a_firing_goes_on_as_it_began_when_its_trigger_is_changed() -> None:
    alone = rule(window=None, aggregates={}, input={})
    log, id = asked(scatter())
    answers = [Log(alone).add(answer(), id=ask_id(id, capability)).entries[0] for capability in ("a.do", "b.do", "c.do")]
    (firing,) = folded(answers, alone, log.state()).firings
    assert (firing.stage, [each.id for each in firing.asked]) == ("gather", [id])

    log, id = asked(alone)
    answered = Log(scatter()).add(answer(), id=id).entries
    assert folded(answered, scatter(), log.state()).firings == (), "its one answer is there: nothing is gathered"


def test_a_changed_trigger_asks_anew_and_not_for_what_is_answered_already() -> None:
    """A repeated intent is not answered again: with the same id the firing would hold its place for a day."""
    before, after = rule(when="n >= 1"), rule(when="n >= 2")
    old = Log(before).event(1)
    (first,) = old.state().firings
    old.add(ev.FiringStarted(first.id)).add(answer(), id=first.id)
    assert old.state().firings == ()
    new = Log(after)
    new.offsets = dict(old.offsets)
    (second,) = folded(new.event(2).event(3).entries, after, old.state()).firings
    assert second.id != first.id


def test_records_of_a_trigger_that_is_gone_change_nothing() -> None:
    log = Log(rule()).event(1)
    state = KeyState(KEY)
    assert fold(state, log.entries[0], {}) is state
    assert pending(log.state(), {}) == ()
