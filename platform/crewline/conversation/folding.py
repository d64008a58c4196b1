"""The fold: what each record does to a conversation, and whether it stands.

One rule an event. A rule returns the state after it, or None if the record does not stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from crewline_agents.base import OURS, ChatMessage
from crewline_tools.base import BUILTIN_POOL
from msgspec.structs import replace

from crewline import events as ev
from crewline.bus.base import Record
from crewline.conversation.calls import (
    GIVEN_UP,
    all_closed,
    call_of,
    close,
    put,
    results_of,
    settle,
    within_budget,
)
from crewline.conversation.reserved import answered, settle_reserved
from crewline.conversation.state import (
    Call,
    Conversation,
    Finished,
    Owed,
    Past,
    Queued,
    Rejected,
    Step,
    Turn,
    sha256_of,
    step_id,
    turn_id,
)
from crewline.conversation.status import describe
from crewline.errors import UnknownEvent
from crewline.records import GUARD, Entry
from crewline.seal import DEPLOYMENT
from crewline.traceparent import HEADER, from_outside

FOLD_VERSION = 1
FINISHED_MAX = 512  # ids of finished intents that are remembered, so that a repeat is the same intent
QUEUE_MAX = 100
QUEUE_BYTES_MAX = 2_000_000
REJECTED_MAX = 100  # rejections that wait to be said; a flood beyond that is not said one by one
SAY_MAX = 500  # characters
NAME_BYTES_MAX = 1_024  # of what an intent names: where its answer goes
UNSEALED = "unsealed:"  # in front of the ids of intents that nobody vouches for
KEPT_TEXT_MAX = 4_000  # characters of a tool's output kept in the history of finished turns
EXPIRIES_MAX = 3


def fold(state: Conversation, entry: Entry) -> Conversation:
    """Return the state after `entry`. Pure and total over known versions; what does not stand changes nothing.

    Raises: UnknownEvent if the record needs a newer fold.
    """
    return take(state, entry).state


def stands(state: Conversation, entry: Entry) -> bool:
    """Return whether `entry`, coming right after `state`, counts. The one answer for every view."""
    return take(state, entry).stands


def take(state: Conversation, entry: Entry) -> Step:
    """Return what `entry` does to `state`. Raises: UnknownEvent if it needs a newer fold."""
    if state.parked is not None and not isinstance(entry.event, ev.RecordRejected):
        if isinstance(entry.event, ev.IntentPublished):
            return Step(reject(state, entry.record, "conversation.parked", state.parked, parks=False), False)
        return Step(state, False)
    rule = _FOLDS.get(type(entry.event))
    after = rule(state, entry, entry.event) if rule is not None else None
    if after is None or after is state:
        return Step(state, False)
    if len(after.rejected) > len(state.rejected) or after.again is not state.again:
        return Step(after, False)  # forged, or a repeat: it is answered, but it does not count
    if after.turn is not None and after.turn is not state.turn:
        after = settle(after, entry)
    if after.reserved or (state.turn is not None and after.turn is None):
        after = settle_reserved(state, after, entry)
    return Step(replace(after, last_ms=entry.at_ms), True)


def _forged(state: Conversation, entry: Entry, say: str) -> Conversation:
    return reject(state, entry.record, "record.seal", say, parks=False)


def _intent(state: Conversation, entry: Entry, event: ev.IntentPublished) -> Conversation | None:
    sealed = entry.sealed_by == DEPLOYMENT
    id, run = entry.id, entry.run
    if not sealed:
        # Nobody vouches for it: no user, ids of their own, so that it takes no sealed intent's place.
        event = replace(event, user=None, gathered=(), origin=ev.Origin("untrusted"))
        id = run = UNSEALED + entry.id
    if any(queued.id == id for queued in state.queue) or (state.turn and state.turn.intent == id):
        return None  # its answer is still to come, for every asker
    for done in state.finished:
        if done.intent == id:
            return None if done in state.again else replace(state, again=(*state.again, done))
    problem = _problem_of(event) or ("the conversation belongs to somebody" if state.owned and not sealed else None)
    if problem is not None:
        return reject(state, entry.record, "intent.invalid", problem, parks=False)
    size = len(entry.record.value or b"")
    if len(state.queue) >= QUEUE_MAX or size + sum(queued.size for queued in state.queue) > QUEUE_BYTES_MAX:
        say = f"{len(state.queue)} intents are waiting in this conversation already; ask again later"
        return reject(state, entry.record, "queue.full", say, parks=False)
    trace = from_outside(ev.header(entry.record.headers, HEADER), run, id)
    queue = (*state.queue, Queued(id, run, event, entry.at_ms, size, trace=trace))
    return replace(state, queue=queue, owned=state.owned or sealed)


def _problem_of(event: ev.IntentPublished) -> str | None:
    """Return what is wrong with an intent, or None."""
    if (event.agent is None) == (event.capability is None):
        return "an intent names exactly one of `agent` and `capability`"
    if event.deadline_ms is not None and event.deadline_ms <= 0:
        return "a deadline is in Unix milliseconds, above 0"
    to = event.reply_to
    if to is None:
        return None
    if not to.topic.endswith((".conversations", ".triggers")):
        return "an answer goes to a `.conversations` or `.triggers` topic"
    if any(len(name.encode()) > NAME_BYTES_MAX for name in (to.topic, to.key, to.effect, to.token)):
        return f"a part of `reply_to` is longer than {NAME_BYTES_MAX:,} bytes"
    return None


def _turn_started(state: Conversation, entry: Entry, event: ev.TurnStarted) -> Conversation | None:
    if event.fold > FOLD_VERSION:
        raise UnknownEvent(f"turn {entry.id} needs fold version {event.fold}, this process has {FOLD_VERSION}")
    if state.turn is not None or not state.queue or event.turn != state.turns + 1:
        return None
    queued = state.queue[0]
    if queued.id != event.intent:
        return None
    asked = queued.intent
    text = asked.input if isinstance(asked.input, str) else msgspec.json.encode(asked.input).decode()
    turn = Turn(
        number=event.turn,
        intent=queued.id,
        run=queued.run,
        asked=replace(asked, input=None),
        agent=event.agent,
        crew_version=event.crew_version,
        limits=event.limits,
        started_ms=entry.at_ms,
        messages=(ChatMessage("user", text),),
        cancelled_by=queued.cancelled_by,
        entry=handed[0] if (handed := state.handed) and handed[1] == event.agent else event.agent,
        trace=queued.trace,
    )
    # An owed answer was acknowledged before this record was written: the worker sees to that.
    return replace(state, turns=event.turn, turn=turn, queue=state.queue[1:], owed=None)


def _model_replied(state: Conversation, entry: Entry, event: ev.ModelReplied) -> Conversation | None:
    turn = state.turn
    if turn is None or turn.calls or turn.ending or turn.answer is not None or entry.id != step_id(state.id, turn):
        return None
    usage = event.usage or ev.Usage()
    spent = turn.spent.plus(
        ev.Spent(1, len(event.calls), usage.input_tokens or 0, usage.output_tokens or 0, event.cost_usd or 0.0)
    )
    said = ChatMessage("assistant", event.text, event.calls, name=event.agent, echo=event.echo)
    turn = replace(turn, spent=spent, messages=(*turn.messages, said), catalogue=event.catalogue, due_ms=None)
    if event.calls:
        calls = tuple(
            Call(f"{entry.id}:c{k}", call.id, call.name, call.arguments, call.valid, call.problem, "judging", entry.at_ms)
            for k, call in enumerate(event.calls)
        )
        turn = replace(turn, calls=calls)
    elif event.unfit is not None:
        turn = _asked_again(turn, event.unfit)
    else:
        turn = replace(turn, answer=event.refusal if event.refusal is not None else event.text)
    return replace(state, turn=within_budget(turn))


def _asked_again(turn: Turn, unfit: ev.Reason) -> Turn:
    """The brain gets its answer back, as a step of its own; when it has no more, the turn fails for that reason."""
    if turn.step >= turn.limits.max_steps:
        return replace(turn, failing=unfit)
    told = ChatMessage("user", unfit.say, name=OURS)
    return replace(turn, messages=(*turn.messages, told), step=turn.step + 1, attempt=1)


def _model_failed(state: Conversation, entry: Entry, event: ev.ModelFailed) -> Conversation | None:
    turn = state.turn
    if turn is None or turn.calls or turn.ending or turn.answer is not None:
        return None
    if event.attempt != turn.attempt or entry.id != f"{step_id(state.id, turn)}:a{event.attempt}":
        return None
    if event.retry_at_ms is not None:
        return replace(state, turn=replace(turn, attempt=turn.attempt + 1, due_ms=event.retry_at_ms))
    fix = {"hint": event.hint} if event.hint else None
    return replace(state, turn=replace(turn, failing=ev.Reason(event.code, event.say, fix=fix)))


def _call_judged(state: Conversation, entry: Entry, event: ev.CallJudged) -> Conversation | None:
    call = call_of(state, event.call)
    if call is None or call.status != "judging" or entry.id != call.judgement_id:
        return None
    arguments = call.edited if call.edited is not None else call.arguments
    final = event.arguments if event.arguments is not None else arguments
    if (
        event.judgement != call.judgement
        or event.execution != call.execution
        or event.conversation != state.id
        or event.tool != call.name
        or event.args_sha256 != sha256_of(final)
    ):
        return _forged(state, entry, f"verdict {entry.id} names another call, execution or other arguments")
    if event.decision == "deny":
        outcome = ev.CallCompleted(event.call, call.execution, "refused", _spoken(event.reasons), _code(event.reasons))
        return close(state, replace(call, verdict=event), outcome, denied=_code(event.reasons))
    if event.decision == "require_approval":
        return put(state, replace(call, status="held", verdict=event, since_ms=entry.at_ms))
    sealed = ev.SealedVerdict(
        entry.record.topic, entry.key, entry.id, (entry.record.value or b"").decode(), entry.seal
    )
    granted = replace(call, status="granted", verdict=event, sealed=sealed, arguments=final, since_ms=entry.at_ms)
    return put(state, granted)


def _spoken(reasons: tuple[ev.Reason, ...]) -> str:
    return " ".join(reason.say for reason in reasons) or "The call was denied."


def _code(reasons: tuple[ev.Reason, ...]) -> str:
    return reasons[0].code if reasons else "denied"


def _approval_decided(state: Conversation, entry: Entry, event: ev.ApprovalDecided) -> Conversation | None:
    call = call_of(state, event.call)
    if call is None or call.status != "held" or call.verdict is None or event.judgement != call.judgement:
        return None
    if entry.sealed_by == GUARD and (event.decision != "deny" or event.by != "deadline"):
        return _forged(state, entry, "the guardrail may only deny, at the deadline")
    if event.args_sha256 != call.verdict.args_sha256:
        return None  # decided over other bytes than those held: it says nothing about this call
    if event.decision == "deny":
        say = "Nobody approved the call in time." if event.by == "deadline" else f"{event.by} denied the call"
        code = "approval.expired" if event.by == "deadline" else "approval.denied"
        say = f"{say}: {event.note}" if event.note else say.rstrip(".") + "."
        return close(state, call, ev.CallCompleted(event.call, call.execution, "refused", say, code))
    arguments = call.verdict.arguments if call.verdict.arguments is not None else call.arguments
    edited = event.arguments if event.decision == "edit" else call.edited
    if event.decision == "edit" and event.arguments is None:
        return None
    again = replace(
        call,
        status="judging",
        judgement=call.judgement + 1,
        edited=edited,
        arguments=arguments if edited is None else call.arguments,
        approved_by=event.by,
        approved_sha256=sha256_of(edited if edited is not None else arguments),
        since_ms=entry.at_ms,
    )
    return put(state, again)


def _call_completed(state: Conversation, entry: Entry, event: ev.CallCompleted) -> Conversation | None:
    call = call_of(state, event.call)
    if call is None or call.status == "closed" or event.execution != call.execution:
        return None
    pool = call.verdict.pool if call.verdict else None
    if entry.sealed_by != DEPLOYMENT and (entry.sealed_by != f"pool/{pool}" or call.status not in ("granted", "unknown")):
        return _forged(state, entry, f"{entry.sealed_by} was not asked to run call {event.call}")
    if entry.sealed_by == DEPLOYMENT and _overtaken(state, call, entry, event):
        return None
    final = event.outcome in ("ok", "error", "revoked") or (event.outcome == "refused" and event.code != "verdict.expired")
    if entry.id != (call.execution_id if final else f"{call.execution_id}:{event.outcome}"):
        return None
    if final:
        closed = close(state, call, event)
        return _charged(closed, call.chosen.grant) if event.code == "delegation.deadline" and call.chosen else closed
    if call.status != "granted":
        return None
    if event.outcome == "unknown":
        return put(state, replace(call, status="unknown", since_ms=entry.at_ms, outcome=event))
    expiries = call.expiries + 1 if event.outcome == "refused" else call.expiries
    if expiries >= EXPIRIES_MAX:
        say = f"{expiries} verdicts in a row had expired when the pool saw them: compare the clocks of guardrail and pool"
        return close(state, call, ev.CallCompleted(event.call, call.execution, "error", say, "clock.skew"))
    return put(state, _next_execution(call, entry.at_ms, expiries))


def _charged(state: Conversation, grant: ev.Grant) -> Conversation:
    """Charge all of a grant: what a late child has used of it, nobody will say."""
    assert state.turn is not None
    spent = ev.Spent(0, grant.tool_calls or 0, grant.tokens or 0, 0, grant.cost_usd or 0.0)
    return replace(state, turn=within_budget(replace(state.turn, spent=state.turn.spent.plus(spent))))


def _overtaken(state: Conversation, call: Call, entry: Entry, event: ev.CallCompleted) -> bool:
    """The worker gave up waiting, but what it waited for stands before that: the call may be running by now."""
    if event.code == "guard.unavailable":
        assert state.turn is not None
        due_ms = call.since_ms + int(state.turn.limits.guard_s * 1000)
        other = (event.fix or {}).get("judgement") != call.judgement
        return call.status != "judging" or other or entry.at_ms < due_ms
    if call.verdict is not None and call.verdict.pool != BUILTIN_POOL:
        return True  # at a pool: its claims decide, the worker alone closes nothing
    return call.chosen is not None and event.code != "delegation.deadline"


def _next_execution(call: Call, at_ms: int, expiries: int) -> Call:
    return replace(
        call,
        status="judging",
        judgement=call.judgement + 1,
        execution=call.execution + 1,
        expiries=expiries,
        since_ms=at_ms,
        outcome=None,
        sealed=None,
    )


def _call_resolved(state: Conversation, entry: Entry, event: ev.CallResolved) -> Conversation | None:
    call = call_of(state, event.call)
    if call is None or call.status != "unknown" or event.execution != call.execution:
        return None
    if event.resolution == "not_run":
        if state.turn is not None and state.turn.ending:
            return close(state, call, ev.CallCompleted(event.call, call.execution, "revoked", "It did not run."))
        return put(state, _next_execution(call, entry.at_ms, 0))
    if event.resolution == "ran":
        return close(state, call, ev.CallCompleted(event.call, call.execution, "ok", event.output))
    say = f"Nobody can say whether it ran; {event.by} gave up on it."
    return close(state, call, ev.CallCompleted(event.call, call.execution, "error", say, GIVEN_UP))


def _delegation_chosen(state: Conversation, entry: Entry, event: ev.DelegationChosen) -> Conversation | None:
    call = call_of(state, event.call)
    if call is None or call.status != "granted" or call.chosen is not None or event.execution != call.execution:
        return None
    if call.name != "delegate" or entry.id != f"{call.execution_id}:chosen":
        return None
    return put(state, replace(call, chosen=event, since_ms=entry.at_ms))


def _intent_answered(state: Conversation, entry: Entry, event: ev.IntentAnswered) -> Conversation | None:
    turn = state.turn
    if turn is None:
        return None
    for call in turn.calls:
        if call.chosen is not None and call.status == "granted" and entry.id == call.execution_id:
            if event.token != call.chosen.token:
                return _forged(state, entry, "the answer does not return the token of its intent")
            answer = event.answer if isinstance(event.answer, str) else msgspec.json.encode(event.answer).decode()
            reason = event.reason or ev.Reason(f"delegation.{event.status}", f"The work was {event.status}.")
            outcome = (
                ev.CallCompleted(call.id, call.execution, "ok", answer)
                if event.status == "done"
                else ev.CallCompleted(call.id, call.execution, "error", reason.say, reason.code)
            )
            closed = close(state, call, outcome)
            assert closed.turn is not None
            spent = closed.turn.spent.plus(event.spent.within(call.chosen.grant))
            return replace(closed, turn=within_budget(replace(closed.turn, spent=spent)))
    return None


def _cancel_requested(state: Conversation, entry: Entry, event: ev.CancelRequested) -> Conversation | None:
    turn = state.turn
    if event.intent is None and event.turn is None:
        return None  # it would stop whatever turn it meets: a repeat of it the next one
    if event.intent is not None and (known := [queued for queued in state.queue if queued.id == event.intent]):
        if known[0].cancelled_by is not None:
            return None
        # Not taken up yet: it is answered as cancelled when its turn comes, before any step.
        by = event.by or "somebody"
        queue = tuple(replace(each, cancelled_by=by) if each.id == event.intent else each for each in state.queue)
        return replace(state, queue=queue)
    if turn is None or turn.ending:
        return None
    if event.intent not in (None, turn.intent) or event.turn not in (None, turn.number):
        return None
    if event.by == "deadline":
        if turn.paused_since_ms is not None or entry.at_ms < turn.deadline_ms:
            return None  # a stale owner's, or one whose clock is ahead
        say = f"The turn did not end within its time ({describe(state)})."
        return replace(state, turn=replace(turn, failing=ev.Reason("deadline", say)))
    return replace(state, turn=replace(turn, cancelled_by=event.by or "somebody"))


def _turn_finished(state: Conversation, entry: Entry, event: ev.TurnFinished) -> Conversation | None:
    turn = state.turn
    if turn is None or event.turn != turn.number or entry.id != f"{turn_id(state.id, turn.number)}:end":
        for done in state.again:
            if done.turn == event.turn and entry.id == f"{turn_id(state.id, done.turn)}:end":
                return replace(state, again=tuple(other for other in state.again if other is not done))
        return None
    if not all_closed(turn.calls):
        return None
    done = Finished(turn.intent, turn.number, entry.offset)
    owed = None
    if turn.asked.reply_to is not None:
        to = turn.asked.reply_to
        owed = Owed(to, turn.run, ev.IntentAnswered(to.token, event.status, event.answer, event.reason, event.spent))
    kept = max(state.kept, turn.limits.history)
    past = Past(turn.number, _kept(turn, event), turn.asked.origin.kind)
    history = (*state.history, past)[-kept:] if kept else ()
    return replace(
        state,
        turn=None,
        history=history,
        kept=kept,
        finished=(*state.finished, done)[-FINISHED_MAX:],
        owed=owed,
        handed=(turn.entry, turn.agent) if turn.agent != turn.entry else None,
    )


def _kept(turn: Turn, event: ev.TurnFinished) -> tuple[ChatMessage, ...]:
    """What later turns see of a finished one: whole pairs of call and result, long outputs cut."""
    messages = tuple([
        replace(message, text=message.text[:KEPT_TEXT_MAX] + " …[cut]")
        if message.role == "tool" and len(message.text) > KEPT_TEXT_MAX
        else message
        for message in (*turn.messages, *results_of(turn.calls))
    ])
    if event.status == "done":
        return messages
    say = event.reason.say if event.reason else f"This turn was {event.status}."
    return (*messages, ChatMessage("assistant", f"[{event.status}: {say}]", name=turn.agent))


def _record_rejected(state: Conversation, entry: Entry, event: ev.RecordRejected) -> Conversation | None:
    open_ones = tuple(item for item in state.rejected if item.id != entry.id)
    if len(open_ones) == len(state.rejected):
        return None
    return replace(state, rejected=open_ones)


_Fold = Callable[[Conversation, Entry, Any], Conversation | None]
_FOLDS: dict[type[ev.Event], _Fold] = {
    ev.IntentPublished: _intent,
    ev.TurnStarted: _turn_started,
    ev.ModelReplied: _model_replied,
    ev.ModelFailed: _model_failed,
    ev.CallJudged: _call_judged,
    ev.ApprovalDecided: _approval_decided,
    ev.CallCompleted: _call_completed,
    ev.CallResolved: _call_resolved,
    ev.DelegationChosen: _delegation_chosen,
    ev.IntentAnswered: _intent_answered,
    ev.CancelRequested: _cancel_requested,
    ev.TurnFinished: _turn_finished,
    ev.RecordRejected: _record_rejected,
    ev.LimitAnswered: answered,
}


def reject(state: Conversation, record: Record, code: str, say: str, *, parks: bool) -> Conversation:
    """Return the state after a record that counts as absent. Until the worker has said so, it is owed."""
    parked = f"{code}: {say[:SAY_MAX]}" if parks else state.parked
    if len(state.rejected) >= REJECTED_MAX and not parks:
        return state
    rejected = Rejected(record.partition, record.offset, code, say[:SAY_MAX], parks)
    return replace(state, rejected=(*state.rejected, rejected), parked=parked)
