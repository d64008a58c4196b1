"""The observer of an engine: what it passes on, to whom, and that nothing it does can stop a role."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from crewline import events as ev
from crewline.conversation import Conversation, take
from crewline.engine import Effect
from crewline.records import Entry
from crewline.telemetry.fields import Fields, fields
from crewline.telemetry.spells import Spell
from crewline.telemetry.watching import REDRAWN_MS, Watch
from crewline.traceparent import outside
from crewline_tools.pool_view import Execution, PoolState

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from entries import Talk

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Told:
    """Counts and draws: notes what it is told."""

    def __init__(self) -> None:
        self.counted: list[str] = []
        self.drawn: list[str] = []
        self.noticed: list[str] = []

    def noted(self, what: Any) -> None:
        self.noticed.append(what)

    def count(self, spells: Sequence[Spell], entry: Entry) -> None:
        self.counted += [spell.kind for spell in spells]

    def draw(self, spells: Sequence[Spell], conversation: str, origin: str, event: ev.Event, *, reply_to: str = "") -> None:
        self.drawn += [spell.kind for spell in spells]


def folded(watch: Watch, talk: Talk, *, live: bool) -> None:
    state = Conversation("c1")
    for entry in talk.entries:
        after = take(state, entry).state
        watch.folded(state, after, entry, live=live)
        state = after


def answered() -> Talk:
    talk = Talk().opened()
    talk.replied(text="hi")
    talk.finished(answer="hi")
    return talk


def watcher(role: str, told: Told, *, age_ms: int = 0, talk: Talk) -> Watch:
    return Watch(role, counts=told, draws=told, clock_ms=lambda: talk.now_ms + age_ms)


def test_what_an_owner_before_may_have_counted_is_not_counted_but_drawn_again() -> None:
    told, talk = Told(), answered()
    folded(watcher("worker", told, talk=talk), talk, live=False)
    assert told.counted == []
    assert told.drawn == ["queue", "attempt", "step", "turn"]


def test_what_is_old_is_not_drawn_again() -> None:
    told, talk = Told(), answered()
    folded(watcher("worker", told, age_ms=REDRAWN_MS, talk=talk), talk, live=False)
    assert told.drawn == []


def test_only_the_worker_counts_conversations() -> None:
    told, talk = Told(), answered()
    folded(watcher("guardrail", told, talk=talk), talk, live=True)
    assert told.counted == []
    assert told.drawn
    watcher("guardrail", told, talk=talk).noted("store_failed")
    assert told.noticed == ["store_failed"]


def test_a_bug_in_telling_stops_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    talk = answered()

    class Broken(Told):
        def count(self, spells: Sequence[Spell], entry: Entry) -> None:
            raise ZeroDivisionError

    with caplog.at_level(logging.INFO):
        folded(watcher("worker", Broken(), talk=talk), talk, live=True)
    assert [record.getMessage() for record in caplog.records] == [
        "worker: what happened at crew.conversations partition 0 offset 0 is not told (said once)"
    ]


def within(watch: Watch, effect: Effect, state: Any) -> tuple[Fields, Any]:
    return watch.context(effect, state).run(lambda: (fields.get(), outside.get()))


def test_an_effect_runs_in_the_trace_and_under_the_names_of_its_turn() -> None:
    talk = Talk()
    entry = talk.entry(ev.IntentPublished("hi", "desk"), "i1", run="i1")
    headers = (("traceparent", THEIRS.encode()),)
    talk.state = take(Conversation("c1"), entry._replace(record=entry.record._replace(headers=headers))).state
    watch = Watch("worker")

    waiting = within(watch, Effect("c1:t1", "start"), talk.state)
    talk.started()
    working = within(watch, Effect("c1:t1:s1:a1", "think"), talk.state)

    assert waiting == working
    assert working[0] == Fields("worker", "c1", "i1")
    assert str(working[1]) == THEIRS
    assert fields.get() == Fields(), "and nothing of it outside"


def test_an_execution_runs_in_the_trace_of_its_request() -> None:
    execution = Execution("c1:t1:s1:c0:x1", "c1:t1:s1:c0", 1, "i1", trace=THEIRS)
    names, began = within(Watch("tools.main"), Effect("e", "run", execution.id), PoolState("c1", executions=(execution,)))
    assert names == Fields("tools.main", "c1", "i1")
    assert str(began) == THEIRS


def test_an_effect_of_a_role_without_conversations_names_what_it_can() -> None:
    names, began = within(Watch("limits"), Effect("e", "settle"), object())
    assert names == Fields("limits")
    assert began is None
