"""The fold of a conversation: every life of a call, every end of a turn, and what holds for any records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from crewline import events as ev
from crewline.conversation import (
    FOLD_VERSION,
    Conversation,
    ConversationView,
    guard_pending,
    stands,
    status_of,
    take,
    worker_pending,
)
from crewline.errors import UnknownEvent
from crewline.records import Entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from entries import DEADLINE_MS, Talk, call, folded

VIEW = ConversationView()


def kinds(talk: Talk) -> list[str]:
    return [effect.kind for effect in worker_pending(talk.state)]


def guard_kinds(talk: Talk) -> list[str]:
    return [effect.kind for effect in guard_pending(talk.state)]


# --- a turn ------------------------------------------------------------------------------------


def test_an_intent_is_taken_up_thought_about_and_answered() -> None:
    talk = Talk()
    assert talk.intent("i1")
    assert kinds(talk) == ["start"]
    assert talk.started()
    assert kinds(talk) == ["think", "deadline"]
    assert talk.replied(text="hi")
    assert kinds(talk) == ["finish"]
    assert talk.finished(answer="hi")
    assert talk.state.turn is None
    assert kinds(talk) == []
    assert [done.intent for done in talk.state.finished] == ["i1"]


def test_later_intents_wait_in_order() -> None:
    talk = Talk().opened()
    talk.intent("i2")
    talk.intent("i3")
    talk.replied(text="one")
    talk.finished()
    assert [queued.id for queued in talk.state.queue] == ["i2", "i3"]
    assert talk.started()
    assert talk.turn.intent == "i2"
    assert talk.turn.number == 2


def test_a_turn_started_for_another_intent_or_number_does_not_count() -> None:
    talk = Talk()
    assert not talk.started(intent="i1"), "nothing is asked"
    talk.intent("i1")
    talk.intent("i2")
    assert not talk.started(intent="i2")
    assert not talk.started(turn=2)
    assert talk.started()
    assert not talk.started(turn=2)


def test_a_newer_fold_version_freezes() -> None:
    talk = Talk()
    talk.intent()
    with pytest.raises(UnknownEvent):
        talk.started(fold=FOLD_VERSION + 1)


def test_failed_attempts_are_repeated_until_one_is_final() -> None:
    talk = Talk().opened()
    assert talk.failed(retry_at_ms=5_000)
    assert talk.turn.attempt == 2
    assert next(e for e in worker_pending(talk.state) if e.kind == "think").due_ms == 5_000
    assert status_of(talk.state) == "retrying"
    assert not talk.failed(retry_at_ms=6_000, attempt=1), "an attempt counts once"
    assert talk.failed()
    assert talk.turn.failing is not None
    assert kinds(talk) == ["finish"]
    assert not talk.replied(text="late"), "the step is over"


def test_a_late_success_of_an_earlier_attempt_counts() -> None:
    talk = Talk().opened()
    talk.failed(retry_at_ms=5_000)
    assert talk.replied(text="hi")
    assert talk.turn.answer == "hi"


def test_tokens_and_cost_are_bounded() -> None:
    talk = Talk().opened(tokens=10)
    talk.replied(call("pay"), usage=ev.Usage(8, 8))
    assert talk.turn.failing is not None
    assert talk.turn.failing.code == "budget.tokens"
    assert [c.status for c in talk.turn.calls] == ["closed"]
    talk = Talk().opened(cost_usd=1.0)
    talk.replied(text="x", cost_usd=1.5)
    assert talk.turn.failing is not None
    assert talk.turn.failing.code == "budget.cost"


def test_too_many_steps_fail_the_turn() -> None:
    talk = Talk().opened(max_steps=1)
    talk.replied(call("look"))
    talk.judged("allow", safe=True)
    talk.completed("ok", "seen")
    assert talk.turn.failing is not None
    assert talk.turn.failing.code == "steps.exceeded"
    assert kinds(talk) == ["finish"]


# --- a call ------------------------------------------------------------------------------------


def test_allow_runs_and_the_result_opens_the_next_step() -> None:
    talk = Talk().opened(call("pay", amount=5))
    assert kinds(talk) == ["guard_timeout", "deadline"]
    assert guard_kinds(talk) == ["judge"]
    assert talk.judged("allow")
    assert kinds(talk) == ["request", "deadline"]
    assert guard_kinds(talk) == []
    assert talk.completed("ok", "paid")
    assert talk.turn.step == 2
    assert talk.turn.messages[-1].text == "paid"


def test_an_amendment_replaces_the_arguments() -> None:
    talk = Talk().opened(call("pay", amount="5"))
    assert talk.judged("amend", arguments='{"amount":5}')
    assert talk.call().arguments == '{"amount":5}'


def test_a_denial_is_told_to_the_model() -> None:
    talk = Talk().opened(call("pay"))
    assert talk.judged("deny")
    assert talk.turn.step == 2
    assert "policy.no" in talk.turn.messages[-1].text
    assert talk.turn.denials == ("policy.no",)


@pytest.mark.parametrize("changed", [
    {"judgement": 2}, {"execution": 2}, {"conversation": "c2"}, {"tool": "other"}, {"args_sha256": "00"},
])
def test_a_verdict_over_something_else_is_rejected(changed: dict[str, Any]) -> None:
    talk = Talk().opened(call("pay"))
    assert not talk.judged("allow", **changed)
    assert talk.call().status == "judging"
    assert kinds(talk)[0] == "reject"


def test_a_held_call_is_approved_and_judged_again() -> None:
    talk = Talk().opened(call("pay", amount=500))
    assert talk.judged("require_approval")
    assert status_of(talk.state) == "needs you"
    assert guard_kinds(talk) == ["approval_deadline"]
    assert kinds(talk) == [], "the turn's clock stands still"
    assert talk.decided("approve")
    assert talk.call().judgement == 2
    assert talk.call().execution == 1
    assert talk.call().approved_sha256 == talk.call().verdict.args_sha256  # type: ignore[union-attr]
    assert talk.judged("allow")
    assert talk.completed("ok", "paid")


def test_an_approval_over_other_bytes_says_nothing() -> None:
    talk = Talk().opened(call("pay", amount=500))
    talk.judged("require_approval")
    assert not talk.decided("approve", sha256="00")
    assert not talk.decided("approve", judgement=2)
    assert talk.call().status == "held"


def test_an_edit_is_what_runs_and_the_model_is_told() -> None:
    talk = Talk().opened(call("pay", amount=500))
    talk.judged("require_approval")
    assert talk.decided("edit", arguments='{"amount":50}')
    assert talk.judged("allow")
    assert talk.call().arguments == '{"amount":50}'
    talk.completed("ok", "paid")
    assert talk.turn.messages[-1].text.startswith("A reviewer (boss) changed your call")


def test_an_edit_without_arguments_does_not_count() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    assert not talk.decided("edit")


def test_an_amended_and_held_call_keeps_its_amendment() -> None:
    talk = Talk().opened(call("pay", amount="500"))
    talk.judged("require_approval", arguments='{"amount":500}')
    talk.decided("approve")
    assert talk.call().arguments == '{"amount":500}'
    assert talk.judged("allow")


@pytest.mark.parametrize(("who", "code"), [("boss", "approval.denied"), ("deadline", "approval.expired")])
def test_a_held_call_is_denied_by_a_person_or_the_deadline(who: str, code: str) -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    assert talk.decided("deny", who=who, by="guard" if who == "deadline" else "people")
    assert code in talk.turn.messages[-1].text
    assert talk.turn.paused_since_ms is None


def test_the_guardrail_cannot_approve() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    assert not talk.decided("approve", by="guard")
    assert not talk.decided("deny", by="guard", who="boss")
    assert [item.code for item in talk.state.rejected] == ["record.seal"] * 2


def test_waiting_for_a_person_moves_the_deadline() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    talk.now_ms += 3_600_000
    talk.decided("approve")
    due = next(effect for effect in worker_pending(talk.state) if effect.kind == "deadline").due_ms
    assert due is not None
    assert due >= DEADLINE_MS + 3_600_000


def test_time_waited_for_a_person_is_added_to_the_deadline() -> None:
    talk = Talk().opened(call("pay"))
    talk.judged("require_approval")
    talk.now_ms += 3_600_000
    talk.decided("approve")
    assert talk.turn.deadline_ms == DEADLINE_MS + talk.turn.paused_ms
    assert talk.turn.paused_ms >= 3_600_000


def test_three_expired_verdicts_in_a_row_fail_the_call() -> None:
    talk = Talk().opened(call("pay"))
    for execution in (1, 2, 3):
        assert talk.call().execution == execution
        assert talk.judged("allow")
        assert talk.completed("refused", code="verdict.expired")
    assert "clock.skew" in talk.turn.messages[-1].text


def test_an_abandoned_execution_opens_the_next_without_counting_as_expired() -> None:
    talk = Talk().opened(call("pay"))
    for _ in range(4):
        talk.judged("allow")
        assert talk.completed("abandoned")
    assert talk.call().status == "judging"
    assert talk.call().execution == 5
    assert talk.call().judgement == 5


def test_a_revoked_execution_closes_the_call() -> None:
    talk = Talk().granted()
    talk.cancel()
    assert talk.completed("revoked", "It did not run.")
    assert kinds(talk) == ["finish"]


@pytest.mark.parametrize(("resolution", "seen"), [("ran", "paid"), ("give_up", "call.unknown")])
def test_a_person_closes_an_unknown_call(resolution: str, seen: str) -> None:
    talk = Talk().granted()
    assert talk.completed("unknown")
    assert status_of(talk.state) == "needs you"
    assert not talk.resolved(resolution, execution=2)
    assert talk.resolved(resolution, "paid")
    assert seen in talk.turn.messages[-1].text


def test_not_run_opens_the_next_execution() -> None:
    talk = Talk().granted()
    talk.completed("unknown")
    assert talk.resolved("not_run")
    assert (talk.call().status, talk.call().execution, talk.call().judgement) == ("judging", 2, 2)
    assert not talk.completed("ok", execution=1), "the first execution is over"


def test_a_late_outcome_closes_an_unknown_call() -> None:
    talk = Talk().granted()
    talk.completed("unknown")
    assert talk.completed("ok", "paid")
    assert not talk.state.turn or talk.turn.step == 2


def test_the_first_outcome_counts() -> None:
    talk = Talk().opened(call("pay", "w1"), call("pay", "w2"))
    talk.judged("allow", 0)
    talk.judged("allow", 1)
    assert talk.completed("ok", "one")
    assert not talk.completed("error", "two")
    assert talk.call().outcome == ev.CallCompleted(talk.call().id, 1, "ok", "one")


def test_an_outcome_by_a_pool_that_was_not_asked_is_rejected() -> None:
    talk = Talk().granted()
    assert not talk.completed("ok", by="pool/other")
    assert kinds(talk)[0] == "reject"
    talk = Talk().opened(call("pay"))
    assert not talk.completed("ok", by="pool/main"), "no verdict yet"
    assert talk.call().status == "judging"


def test_an_outcome_with_another_id_does_not_count() -> None:
    talk = Talk().granted()
    assert not talk.completed("ok", id="mine")
    assert not talk.completed("unknown", id=talk.call().execution_id)


def test_without_a_guardrail_the_worker_refuses() -> None:
    talk = Talk().opened(call("pay"))
    assert talk.completed("refused", code="guard.unavailable", by="deployment")
    assert "guard.unavailable" in talk.turn.messages[-1].text


@pytest.mark.parametrize("decision", ["allow", "require_approval"])
def test_a_refusal_for_want_of_a_verdict_is_void_once_the_verdict_stands(decision: str) -> None:
    """Both were under way; the verdict came first, so the call may be running already."""
    talk = Talk().opened(call("pay"))
    talk.judged(decision)
    assert not talk.completed("refused", code="guard.unavailable", by="deployment")
    assert talk.call().status in ("granted", "held")


def test_every_result_of_a_step_is_there_before_the_next_begins() -> None:
    talk = Talk().opened(call("pay", "w1"), call("look", "w2"))
    talk.judged("allow", 0)
    talk.judged("allow", 1, safe=True)
    talk.completed("ok", "seen", 1)
    assert talk.turn.step == 1
    talk.completed("ok", "paid", 0)
    assert talk.turn.step == 2
    assert [message.call_id for message in talk.turn.messages if message.role == "tool"] == ["w1", "w2"]


# --- the end of a turn -------------------------------------------------------------------------


def test_cancel_before_anything_was_thought() -> None:
    talk = Talk().opened()
    assert talk.cancel()
    assert kinds(talk) == ["finish"]
    assert not talk.cancel(), "once"
    assert talk.finished("cancelled")


def test_cancel_of_another_turn_or_intent_does_not_count() -> None:
    talk = Talk().opened()
    assert not talk.cancel(turn=2)
    assert not talk.cancel(intent="i9")
    assert talk.cancel(turn=1, intent="i1")


def test_cancel_drops_calls_that_did_not_run() -> None:
    talk = Talk().opened(call("pay", "w1"), call("pay", "w2"), call("look", "w3"))
    talk.judged("require_approval", 1)
    talk.judged("allow", 2, safe=True)
    assert talk.cancel()
    assert [c.status for c in talk.turn.calls] == ["closed"] * 3
    assert kinds(talk) == ["finish"]


def test_cancel_waits_for_an_unsafe_call_that_may_run() -> None:
    talk = Talk().granted()
    talk.cancel()
    assert kinds(talk) == ["revoke"]
    assert not talk.finished("cancelled"), "not before its outcome is known"
    assert talk.completed("ok", "paid")
    assert kinds(talk) == ["finish"]


def test_the_deadline_waits_for_an_unknown_call() -> None:
    talk = Talk().granted()
    talk.deadline()
    talk.completed("unknown")
    assert kinds(talk) == []
    assert status_of(talk.state) == "needs you"
    talk.resolved("not_run")
    assert kinds(talk) == ["finish"], "an ending turn opens no new execution"


@pytest.mark.parametrize("outcome", ["abandoned", "refused"])
def test_an_ending_turn_opens_no_new_execution(outcome: str) -> None:
    talk = Talk().granted()
    talk.deadline()
    talk.completed(outcome, code="verdict.expired" if outcome == "refused" else None)
    assert kinds(talk) == ["finish"]


def test_a_queued_intent_is_cancelled_before_its_turn() -> None:
    talk = Talk().opened()
    talk.intent("i2")
    assert talk.cancel(intent="i2")
    talk.replied(text="one")
    talk.finished()
    talk.started()
    assert talk.turn.cancelled_by == "ann"
    assert kinds(talk) == ["finish"]


def test_a_second_cancel_of_a_queued_intent_changes_nothing() -> None:
    talk = Talk().opened()
    talk.intent("i2")
    talk.cancel(intent="i2")
    before = talk.state
    assert not talk.cancel(intent="i2", who="bob")
    assert talk.state == before


def test_the_deadline_fails_a_turn() -> None:
    talk = Talk().opened()
    assert talk.deadline()
    assert talk.turn.failing is not None
    assert talk.turn.failing.code == "deadline"
    assert not talk.cancel()


# --- intents again -----------------------------------------------------------------------------


def test_a_repeated_intent_is_one_turn_and_each_asker_gets_the_answer() -> None:
    talk = Talk()
    assert talk.intent("i1")
    assert not talk.intent("i1"), "before"
    talk.started()
    assert not talk.intent("i1"), "during"
    talk.replied(text="hi")
    talk.finished(answer="hi")
    assert not talk.intent("i1"), "after"
    assert kinds(talk) == ["again"]
    assert not talk.intent("i1")
    assert kinds(talk) == ["again"]
    assert not talk.finished(answer="hi"), "the copy"
    assert kinds(talk) == []
    assert len(talk.state.finished) == 1


def test_an_intent_names_one_receiver() -> None:
    talk = Talk()
    assert not talk.intent("i1", agent=None)
    assert not talk.intent("i2", capability="refund.decide")
    assert [item.code for item in talk.state.rejected] == ["intent.invalid"] * 2


def test_an_unsealed_intent_has_no_user_and_an_id_of_its_own() -> None:
    talk = Talk()
    talk.intent("i1", by="", origin=ev.Origin("user"), grant=ev.Grant(tool_calls=5))
    asked = talk.state.queue[0].intent
    assert talk.state.queue[0].id == "unsealed:i1"
    assert asked.user is None
    assert asked.grant == ev.Grant(tool_calls=5), "a grant only restricts"
    assert asked.origin.kind == "untrusted"


# --- handoff and delegation --------------------------------------------------------------------


def handed_over() -> Talk:
    talk = Talk().granted("handoff", safe=True, pool="builtin", agent="expert")
    talk.completed("ok", "expert goes on.", by="deployment", fix={"agent": "expert"})
    return talk


def test_after_a_handoff_another_agent_goes_on() -> None:
    talk = handed_over()
    assert talk.turn.agent == "expert"
    talk.replied(text="I am the expert")
    talk.finished()
    assert talk.state.handed == ("desk", "expert")


def test_a_later_turn_keeps_the_agent_handed_over_to() -> None:
    talk = handed_over()
    talk.replied(text="x")
    talk.finished()
    talk.intent("i2")
    talk.started(agent="expert")
    assert talk.turn.entry == "desk"
    talk.replied(text="y")
    talk.finished()
    assert talk.state.handed == ("desk", "expert")


def delegated() -> Talk:
    talk = Talk().granted("delegate", safe=True, pool="builtin", capability="refund.decide", input="please")
    assert kinds(talk) == ["choose", "nobody", "deadline"]
    assert talk.chosen()
    return talk


def test_a_delegation_is_published_once_chosen_and_closed_by_its_answer() -> None:
    talk = delegated()
    assert kinds(talk) == ["publish", "child_late", "deadline"]
    assert not talk.chosen(token="other"), "the first choice stands"
    assert talk.answered(spent=ev.Spent(2, 1, 10, 20, 0.5))
    assert talk.turn.step == 2
    assert talk.turn.messages[-1].text == "yes"
    assert talk.turn.spent.cost_usd == 0.5


def test_an_answer_with_another_token_is_rejected() -> None:
    talk = delegated()
    assert not talk.answered(token="guess")
    assert talk.call().status == "granted"
    assert talk.answered()


def test_a_failed_child_is_an_error_for_the_model() -> None:
    talk = delegated()
    talk.answered("failed")
    assert "delegation.failed" in talk.turn.messages[-1].text


def test_a_child_that_is_late_is_given_up() -> None:
    talk = delegated()
    execution = talk.call().execution_id
    assert talk.completed("error", "late", code="delegation.deadline", by="deployment")
    assert not talk.put(ev.IntentAnswered("t0k", "done", "yes"), execution, by="")


def test_nobody_is_void_once_somebody_is_chosen() -> None:
    talk = delegated()
    assert not talk.completed("error", "Nobody offers it.", code="market.nobody", by="deployment")
    assert talk.call().status == "granted"


def test_a_cancelled_turn_cancels_its_child_and_waits_for_it() -> None:
    talk = delegated()
    talk.cancel()
    assert kinds(talk) == ["publish", "child_late", "cancel_child"]
    assert talk.answered("cancelled")
    assert kinds(talk) == ["finish"]


def test_a_cancelled_turn_publishes_no_choice_that_comes_after() -> None:
    talk = Talk().granted("delegate", safe=True, pool="builtin", capability="refund.decide", input="please")
    talk.cancel()
    assert not talk.chosen()
    assert kinds(talk) == ["finish"]


def test_a_delegated_turn_owes_its_answer_until_the_next_turn() -> None:
    to = ev.ReplyTo("crew.conversations", "parent", "parent:t1:s1:c0:x1", "t0k")
    talk = Talk()
    talk.intent("i1", reply_to=to)
    talk.started()
    talk.replied(text="yes")
    talk.finished(answer="yes")
    assert [(effect.kind, effect.owed) for effect in worker_pending(talk.state)] == [("answer", True)]
    assert talk.state.owed is not None
    assert talk.state.owed.answered.answer == "yes"
    talk.intent("i2")
    talk.started()
    assert talk.state.owed is None


# --- history, parking, snapshots ---------------------------------------------------------------


def test_a_brain_sees_as_many_turns_as_its_history_allows() -> None:
    talk = Talk()
    for number in range(4):
        talk.intent(f"i{number}")
        talk.started(history=2)
        talk.replied(text=f"answer {number}")
        talk.finished(answer=f"answer {number}")
    assert [past.number for past in talk.state.history] == [3, 4]


def test_a_failed_turn_is_remembered_as_failed() -> None:
    talk = Talk().opened()
    talk.cancel()
    talk.finished("cancelled")
    assert talk.state.history[-1].messages[-1].text.startswith("[cancelled")


def test_a_parked_conversation_takes_nothing_but_the_news_of_it() -> None:
    talk = Talk().opened()
    talk.state = VIEW.reject(talk.state, talk.entries[-1].record, "fold.failed", "why", parks=True)
    assert status_of(talk.state) == "failed"
    assert kinds(talk) == ["reject"]
    assert not talk.replied(text="x")
    assert talk.put(ev.RecordRejected(0, 1, "fold.failed", "why", True), "rejected:0:1")
    assert kinds(talk) == []
    assert guard_kinds(talk) == []


def test_snapshots_come_back_as_they_were() -> None:
    for talk in (delegated(), handed_over(), Talk().granted(), Talk().opened(call("pay"))):
        data = VIEW.encode(talk.state)
        assert VIEW.decode(data) == talk.state
        assert VIEW.encode(VIEW.decode(data)) == data


# --- for any records ---------------------------------------------------------------------------

DECISIONS = ["allow", "amend", "require_approval", "deny"]
OUTCOMES = ["ok", "error", "refused", "expired", "revoked", "abandoned", "unknown"]
TOOLS = ["pay", "look", "delegate", "handoff"]


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """A conversation of records that fit the state they were written for, and of others that do not."""
    talk = Talk()
    for _ in range(draw(st.integers(1, 30))):
        if talk.entries and draw(st.integers(0, 5)) == 0:
            talk.again(draw(st.sampled_from(talk.entries)))
        else:
            _write(talk, draw)
    return talk


def _write(talk: Talk, draw: st.DrawFn) -> None:
    state, pick = talk.state, draw(st.integers(0, 99))
    if state.turn is None:
        if not state.queue or pick < 10:
            talk.intent(f"i{draw(st.integers(1, 4))}", by=draw(st.sampled_from(["deployment", ""])))
        else:
            talk.started(max_steps=draw(st.integers(1, 4)), tokens=draw(st.sampled_from([None, 20])))
        return
    turn = state.turn
    if pick < 8:
        talk.intent(f"i{draw(st.integers(1, 4))}")
    elif pick < 14:
        talk.cancel(intent=draw(st.sampled_from([None, "i1", "i2", "i3"])))
    elif pick < 17:
        talk.deadline()
    elif turn.ending and all(c.status == "closed" for c in turn.calls):
        talk.finished("failed")
    elif turn.answer is not None:
        talk.finished("done", turn.answer)
    elif not turn.calls:
        if pick < 30:
            talk.failed(retry_at_ms=draw(st.sampled_from([None, talk.now_ms + 10, talk.now_ms + 10])))
        else:
            names = draw(st.lists(st.sampled_from(TOOLS), max_size=3))
            wanted = [call(name, f"w{k}", capability="refund.decide", agent="expert") for k, name in enumerate(names)]
            talk.replied(*wanted, text="said", usage=ev.Usage(3, 3))
    else:
        _write_call(talk, draw, draw(st.integers(0, len(turn.calls) - 1)))


def _write_call(talk: Talk, draw: st.DrawFn, k: int) -> None:
    one = talk.call(k)
    if one.status == "closed":
        talk.completed(draw(st.sampled_from(["ok", "error"])), "late", k)
    elif one.status == "judging":
        builtin = one.name in ("delegate", "handoff")
        decision = draw(st.sampled_from(DECISIONS))
        if draw(st.integers(0, 9)) == 0:
            talk.completed("refused", "no verdict", k, code="guard.unavailable", by="deployment")
        else:
            talk.judged(decision, k, safe=builtin or one.name == "look", pool="builtin" if builtin else "main",
                        arguments='{"amount":1}' if decision == "amend" else None)
    elif one.status == "held":
        decision = draw(st.sampled_from(["approve", "edit", "deny"]))
        talk.decided(decision, k, arguments='{"amount":2}' if decision == "edit" else None)
    elif one.status == "unknown" and draw(st.booleans()):
        talk.resolved(draw(st.sampled_from(["ran", "not_run", "give_up"])), "said", k)
    elif one.name == "delegate" and one.status == "granted":
        if one.chosen is None:
            talk.chosen(k)
        else:
            talk.answered(draw(st.sampled_from(["done", "failed"])), k=k, token=draw(st.sampled_from(["t0k", "no"])))
    elif one.name == "handoff":
        talk.completed("ok", "", k, by="deployment", fix={"agent": "expert"})
    else:
        outcome = draw(st.sampled_from(OUTCOMES))
        code = "verdict.expired" if outcome == "expired" else None
        talk.completed("refused" if outcome == "expired" else outcome, "said", k, code=code)


PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@PROPERTY
@given(talks())
def test_the_same_records_give_the_same_bytes(talk: Talk) -> None:
    assert VIEW.encode(folded(talk.entries)) == VIEW.encode(talk.state)


@PROPERTY
@given(talks(), st.randoms(use_true_random=False))
def test_records_in_any_order_raise_nothing_and_keep_the_invariants(talk: Talk, random: Any) -> None:
    entries = list(talk.entries)
    random.shuffle(entries)
    state = Conversation("c1")
    for entry in entries:
        state = _taken(state, entry)


@PROPERTY
@given(talks())
def test_every_state_on_the_way_keeps_the_invariants(talk: Talk) -> None:
    state = Conversation("c1")
    for entry in talk.entries:
        state = _taken(state, entry)


def _taken(state: Conversation, entry: Entry) -> Conversation:
    took = take(state, entry)
    assert took.stands == stands(state, entry)
    after = took.state
    if not took.stands and after is not state:
        assert len(after.rejected) > len(state.rejected) or after.again != state.again, "what does not stand changes nothing"
    for pending in (worker_pending(after), guard_pending(after)):
        ids = [effect.id for effect in pending]
        assert len(set(ids)) == len(ids)
    _assert_not_stuck(after)
    return after


def _assert_not_stuck(state: Conversation) -> None:
    """An open turn waits for an effect, for a call that its pool has, or visibly for a person."""
    if state.turn is None:
        assert not state.queue or worker_pending(state) or state.parked
        return
    effects = worker_pending(state) + guard_pending(state)
    needs_a_person = any(one.status in ("unknown", "held") for one in state.turn.calls)
    assert effects or needs_a_person
    if needs_a_person:
        assert status_of(state) == "needs you"
    for one in state.turn.calls:
        own = [effect for effect in effects if effect.ref == one.id]
        assert own or one.status in ("closed", "unknown"), f"nobody does anything about {one}"


@PROPERTY
@given(talks(), st.data())
def test_a_repeat_of_what_stood_changes_nothing(talk: Talk, data: st.DataObject) -> None:
    """A zombie repeats records it wrote before, anywhere later. (A repeated intent is answered again.)"""
    state = Conversation("c1")
    seen: list[Entry] = []
    for entry in talk.entries:
        after = take(state, entry)
        if after.stands:
            seen.append(entry)
        state = after.state
        for old in data.draw(st.lists(st.sampled_from(seen), max_size=3)) if seen else ():
            if isinstance(old.event, ev.IntentPublished | ev.RecordRejected):
                continue
            if isinstance(old.event, ev.CancelRequested) and old.event.turn is None and old.event.intent is None:
                continue  # names no turn, so it means the one under way
            again = take(state, old)
            assert not again.stands, old
        
            assert VIEW.encode(_shown(again.state)) == VIEW.encode(_shown(state)), old


def _shown(state: Conversation) -> Conversation:
    """Return `state` without what is said to those who ask again, and about forgeries."""
    from msgspec.structs import replace

    return replace(state, again=(), rejected=())


@PROPERTY
@given(talks(), st.data())
def test_a_stale_owner_cannot_change_what_stands(talk: Talk, data: st.DataObject) -> None:
    """A zombie that stopped at any prefix appends what its own state leads to: the newest state is unmoved,
    or moves as if its owner had written it (the same id, never written before)."""
    if not talk.entries:
        return
    cut = data.draw(st.integers(0, len(talk.entries)))
    state = folded(talk.entries)
    stale = Talk()
    stale.entries = list(talk.entries[:cut])
    stale.state = folded(stale.entries)
    stale.now_ms = talk.now_ms
    standing = _standing_ids(talk.entries)
    stale_entries = len(stale.entries)
    _write(stale, data.draw)
    for entry in stale.entries[stale_entries:]:
        took = take(state, entry)
        if took.stands and not isinstance(entry.event, ev.IntentPublished | ev.CancelRequested):
            assert entry.id not in standing


def _standing_ids(entries: list[Entry]) -> set[str]:
    state, ids = Conversation("c1"), set()
    for entry in entries:
        took = take(state, entry)
        if took.stands:
            ids.add(entry.id)
        state = took.state
    return ids
