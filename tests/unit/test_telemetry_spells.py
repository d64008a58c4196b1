"""What took how long, read off the records of a conversation: every kind of wait, and each of them once."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from crewline import events as ev
from crewline.conversation import Conversation, take
from crewline.records import Entry
from crewline.telemetry.spells import Spell, Spells, stood

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from entries import Talk, call

STEP_MS = 100  # between two records of a Talk


def spells_of(entries: list[Entry], reader: Spells | None = None) -> list[Spell]:
    """The spells of a whole log."""
    reader, state, found = reader or Spells(), Conversation("c1"), []
    for entry in entries:
        took = take(state, entry)
        assert stood(state, took.state) == took.stands
        if took.stands:
            found += reader.read(state, took.state, entry)
        state = took.state
    return found


def seen(talk: Talk, *kinds: str) -> list[tuple[Any, ...]]:
    """(kind, name, outcome, milliseconds) of the spells of these kinds, or of all."""
    return [(spell.kind, spell.name, spell.outcome, spell.end_ms - spell.begin_ms) for spell in spells_of(talk.entries)
            if not kinds or spell.kind in kinds]


def test_a_turn_without_calls_waits_in_the_queue_and_for_its_model() -> None:
    talk = Talk().opened()
    talk.replied(text="hi")
    talk.finished(answer="hi")

    assert seen(talk) == [
        ("queue", "desk", "taken", STEP_MS),
        ("attempt", "desk", "replied", STEP_MS),
        ("step", "desk", "replied", STEP_MS),
        ("turn", "desk", "done", 2 * STEP_MS),
    ]


def test_a_call_is_judged_run_and_ended_and_the_next_step_begins_there() -> None:
    talk = Talk().granted()
    talk.completed("ok", "paid")
    talk.replied(text="paid")

    assert seen(talk, "judgement", "execution", "call", "step") == [
        ("step", "desk", "replied", STEP_MS),
        ("judgement", "pay", "allow", STEP_MS),
        ("execution", "pay", "ok", STEP_MS),
        ("call", "pay", "ok", 2 * STEP_MS),
        ("step", "desk", "replied", STEP_MS),
    ]


def test_a_step_holds_its_failed_attempts_and_the_pause_before_one_is_not_the_models() -> None:
    talk = Talk().opened()
    talk.failed(retry_at_ms=talk.now_ms + 150)
    talk.now_ms += 200
    talk.replied(text="hi")

    assert seen(talk, "attempt", "step") == [
        ("attempt", "desk", "retried", STEP_MS),
        ("attempt", "desk", "replied", 250),
        ("step", "desk", "replied", 400),
    ]


def test_a_step_that_failed_for_good_ends_with_its_code() -> None:
    talk = Talk().opened()
    talk.failed()

    assert [(spell.kind, spell.outcome, spell.code) for spell in spells_of(talk.entries)[1:]] == [
        ("attempt", "failed", "model"), ("step", "failed", "model"),
    ]


def test_a_person_is_waited_for_and_then_the_guardrail_again() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    talk.now_ms += 3_600_000
    talk.decided("approve")
    talk.judged("allow")

    assert seen(talk, "judgement", "person") == [
        ("judgement", "pay", "require_approval", STEP_MS),
        ("person", "pay", "approve", 3_600_000 + STEP_MS),
        ("judgement", "pay", "allow", STEP_MS),
    ]


def test_a_denied_call_ends_refused_whoever_denied_it() -> None:
    by_guard, by_person = Talk().opened(call("pay")), Talk().opened(call("pay"))
    by_guard.judged("deny")
    by_person.judged("require_approval")
    by_person.decided("deny")

    assert seen(by_guard, "call") == [("call", "pay", "refused", STEP_MS)]
    assert seen(by_person, "call") == [("call", "pay", "refused", 2 * STEP_MS)]


def test_nobody_decided_in_time() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    talk.decided("deny", who="deadline", by="guard")

    assert seen(talk, "person") == [("person", "pay", "expired", STEP_MS)]


def test_an_unknown_execution_waits_for_a_person_who_may_give_it_up() -> None:
    talk = Talk().granted()
    talk.completed("unknown")
    talk.resolved("give_up")

    assert seen(talk, "execution", "person", "call") == [
        ("execution", "pay", "unknown", STEP_MS),
        ("person", "pay", "give_up", STEP_MS),
        ("call", "pay", "unknown", 3 * STEP_MS),
    ]


def test_delegated_work_is_waited_for_until_it_is_answered() -> None:
    talk = Talk().opened(call("delegate", capability="refund.decide", input="please"))
    talk.judged("allow", pool="builtin")
    talk.chosen()
    talk.answered("failed")

    assert seen(talk, "delegation", "execution", "call") == [
        ("delegation", "refund.decide", "failed", STEP_MS), ("call", "delegate", "error", 3 * STEP_MS),
    ]


def test_a_cancelled_turn_ends_every_call_that_nobody_runs() -> None:
    talk = Talk().opened(call("look", "w1"), call("pay", "w2"))
    talk.cancel()

    assert [(spell.name, spell.outcome) for spell in spells_of(talk.entries) if spell.kind == "call"] == [
        ("look", "revoked"), ("pay", "revoked"),
    ]


def test_calls_that_a_turn_cannot_afford_end_as_they_are_asked_for() -> None:
    talk = Talk().opened(tokens=10)
    talk.replied(call("look", "w1"), call("pay", "w2"), usage=ev.Usage(8, 8))
    talk.finished("failed")

    assert seen(talk, "call") == [("call", "look", "revoked", 0), ("call", "pay", "revoked", 0)]


def test_each_call_of_a_step_ends_once_in_whatever_order() -> None:
    talk = Talk().opened(call("look", "w1"), call("pay", "w2"), call("send", "w3"))
    for k in (0, 1, 2):
        talk.judged("allow", k)
    talk.completed("error", "no", 2)
    talk.completed("ok", "seen", 0)
    talk.completed("ok", "paid", 1)
    talk.replied(text="done")

    ended = [spell for spell in spells_of(talk.entries) if spell.kind == "call"]
    assert [(spell.name, spell.outcome) for spell in ended] == [("send", "error"), ("look", "ok"), ("pay", "ok")]


def test_a_repeat_of_the_whole_log_tells_nothing_new() -> None:
    talk = Talk().granted()
    talk.completed("ok", "paid")
    talk.replied(text="paid")
    talk.finished(answer="paid")
    before = len(spells_of(talk.entries))
    for entry in list(talk.entries):
        talk.again(entry)

    assert len(spells_of(talk.entries)) == before


def test_an_owner_that_took_over_in_the_middle_tells_the_same_but_for_times_it_cannot_know() -> None:
    talk = Talk().granted()
    took_over = len(talk.entries)
    talk.completed("ok", "paid")
    talk.replied(text="paid")
    talk.finished(answer="paid")

    def told(entries: list[Entry], skip: int) -> list[tuple[str, str, str]]:
        reader, state, found = Spells(), Conversation("c1"), []
        for n, entry in enumerate(entries):
            after = take(state, entry).state
            if n >= skip:
                found += reader.read(state, after, entry)
            state = after
        return [(spell.kind, spell.id, spell.outcome) for spell in found]

    whole = told(talk.entries, 0)
    assert told(talk.entries, took_over) == whole[-len(told(talk.entries, took_over)):]


def test_spans_have_ids_of_their_own_and_parents_that_are_told() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    talk.decided("approve")
    talk.judged("allow")
    talk.completed("ok", "paid")
    talk.replied(text="paid")
    talk.finished(answer="paid")
    found = spells_of(talk.entries)

    ids = Counter(spell.id for spell in found)
    assert ids.most_common(1)[0][1] == 1
    assert {spell.parent for spell in found} - {""} <= set(ids)


def test_a_spell_is_told_in_seconds_and_never_below_zero() -> None:
    assert Spell("turn", "t", "", "r", "desk", "done", 1_000, 3_500).seconds == 2.5
    assert Spell("turn", "t", "", "r", "desk", "done", 3_500, 1_000).seconds == 0, "a broker's clock was set back"


def test_what_does_not_stand_is_not_told() -> None:
    talk = Talk().granted()
    told = len(spells_of(talk.entries))
    talk.completed("ok", "paid", by="pool/other")
    talk.put(ev.RecordRejected(0, 99, "record.seal", "no"), "rejected:0:99")

    assert len(spells_of(talk.entries)) == told
