"""The conversation: what a key's records add up to, what is due next, and which records stand.

Everything here is pure: no clock, no I/O, no randomness. Times are those of the records. The worker and
the guardrail fold the same view, so they agree on every number (judgement, execution) without talking.

    intent ─▶ queued ─▶ turn: step 1 ─▶ calls ─▶ step 2 ─▶ … ─▶ end
    a call:  judging ─▶ granted ─▶ closed      held: waits for a person, then judging again
                                               unknown: waits for a person or a late outcome

Invariant: the first record of each id is the only one that may count.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
from crewline_agents.base import ChatMessage
from crewline_tools.base import BUILTIN_POOL
from msgspec.structs import replace

from crewline import events as ev
from crewline.bus.base import Record
from crewline.engine import Effect
from crewline.errors import UnknownEvent
from crewline.records import GUARD, Entry
from crewline.seal import DEPLOYMENT

FOLD_VERSION = 1
SNAPSHOT_VERSION = 1
FINISHED_MAX = 512  # ids of finished intents that are remembered, so that a repeat is the same intent
QUEUE_MAX = 100
QUEUE_BYTES_MAX = 2_000_000
REJECTED_MAX = 100  # rejections that wait to be said; a flood beyond that is not said one by one
SAY_MAX = 500  # characters
NAME_BYTES_MAX = 1_024  # of what an intent names: where its answer goes
UNSEALED = "unsealed:"  # in front of the ids of intents that nobody vouches for
KEPT_TEXT_MAX = 4_000  # characters of a tool's output kept in the history of finished turns
EXPIRIES_MAX = 3
SHARED_MAX = 1_024  # folds that roles of one process share
GIVEN_UP = "call.unknown"  # the code of a call of which nobody will say whether it ran

CallStatus = Literal["judging", "held", "granted", "unknown", "closed"]


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the parts of a conversation's state."""


class Queued(State, frozen=True):
    """An intent waiting for its turn."""

    id: str
    run: str
    intent: ev.IntentPublished
    at_ms: int
    size: int = 0
    cancelled_by: str | None = None


class Finished(State, frozen=True, array_like=True):
    """A finished intent: enough to know a repeat, and to find its `turn.finished` again."""

    intent: str
    turn: int
    offset: int


class Owed(State, frozen=True):
    """An answer owed to another conversation. It is acknowledged before the next turn starts."""

    to: ev.ReplyTo
    run: str
    answered: ev.IntentAnswered


class Call(State, frozen=True):
    """One call of the current step, as far as it has come.

    `arguments` are the bytes that count now: the model's, an amendment or an edit. `since_ms` is when
    the present status began. `verdict` is the standing one of the latest judgement.
    """

    id: str
    wire_id: str
    name: str
    arguments: str
    valid: bool
    problem: str | None
    status: CallStatus
    since_ms: int
    judgement: int = 1
    execution: int = 1
    verdict: ev.CallJudged | None = None
    sealed: ev.SealedVerdict | None = None
    edited: str | None = None
    approved_by: str | None = None
    approved_sha256: str | None = None
    chosen: ev.DelegationChosen | None = None
    expiries: int = 0
    outcome: ev.CallCompleted | None = None

    @property
    def may_change(self) -> bool:
        """Whether its pool may change something with it: it is requested there, and no mere read."""
        verdict = self.verdict
        return verdict is not None and verdict.pool != BUILTIN_POOL and verdict.effect != "read"

    @property
    def execution_id(self) -> str:
        return f"{self.id}:x{self.execution}"

    @property
    def judgement_id(self) -> str:
        return f"{self.id}:j{self.judgement}"


class DoneCall(State, frozen=True, array_like=True):
    """A call of this turn that was run (or may have been): for repeats and for counting."""

    tool: str
    args_sha256: str
    outcome: str
    safe: bool


class Turn(State, frozen=True):
    """The turn under way. `failing` or `cancelled_by` set: it ends as soon as its calls are closed."""

    number: int
    intent: str
    run: str
    asked: ev.IntentPublished
    agent: str
    crew_version: str
    limits: ev.Limits
    started_ms: int
    step: int = 1
    attempt: int = 1
    due_ms: int | None = None
    calls: tuple[Call, ...] = ()
    catalogue: str = ""
    messages: tuple[ChatMessage, ...] = ()
    spent: ev.Spent = ev.Spent()
    done_calls: tuple[DoneCall, ...] = ()
    denials: tuple[str, ...] = ()
    answer: str | None = None
    failing: ev.Reason | None = None
    cancelled_by: str | None = None
    paused_ms: int = 0
    paused_since_ms: int | None = None
    entry: str = ""

    @property
    def deadline_ms(self) -> int:
        """When the turn must end (broker time): the time a person was waited for does not count."""
        return self.limits.deadline_ms + self.paused_ms

    @property
    def ending(self) -> bool:
        return self.failing is not None or self.cancelled_by is not None


class Past(State, frozen=True):
    """A finished turn as later turns see it."""

    number: int
    messages: tuple[ChatMessage, ...]
    origin: str = "user"


class Rejected(State, frozen=True):
    """A record that counts as absent, which the worker has yet to say."""

    partition: int
    offset: int
    code: str
    say: str
    parks: bool

    @property
    def id(self) -> str:
        return f"rejected:{self.partition}:{self.offset}"


class Conversation(State, frozen=True):
    """All that is known of one conversation."""

    id: str
    turns: int = 0
    # (agent that intents name, agent the conversation was handed over to)
    handed: tuple[str, str] | None = None
    # A sealed intent was published here: unsealed ones are refused from then on.
    owned: bool = False
    # The most turns that any agent here wants to see; one who wants fewer takes nothing from the others.
    kept: int = 0
    turn: Turn | None = None
    queue: tuple[Queued, ...] = ()
    history: tuple[Past, ...] = ()
    finished: tuple[Finished, ...] = ()
    again: tuple[Finished, ...] = ()
    owed: Owed | None = None
    rejected: tuple[Rejected, ...] = ()
    parked: str | None = None
    last_ms: int = 0


class Step(NamedTuple):
    """What a record does: the state after it, and whether it stands."""

    state: Conversation
    stands: bool


def turn_id(conversation: str, turn: int) -> str:
    return f"{conversation}:t{turn}"


def step_id(conversation: str, turn: Turn) -> str:
    return f"{conversation}:t{turn.number}:s{turn.step}"


def sha256_of(arguments: str) -> str:
    """Return the hex SHA-256 of a call's argument bytes: what verdicts and decisions are bound to."""
    return hashlib.sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest()


# --- fold --------------------------------------------------------------------------------------


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
    settled = _settle(after, entry) if after.turn is not None and after.turn is not state.turn else after
    return Step(replace(settled, last_ms=entry.at_ms), True)


def _forged(state: Conversation, entry: Entry, say: str) -> Conversation:
    return reject(state, entry.record, "record.seal", say, parks=False)


def _intent(state: Conversation, entry: Entry, event: ev.IntentPublished) -> Conversation | None:
    sealed = entry.sealed_by == DEPLOYMENT
    id, run = entry.id, entry.run
    if not sealed:
        # Nobody vouches for it: no user, ids of their own, so that it takes no sealed intent's place.
        event = replace(event, user=None, origin=ev.Origin("untrusted"))
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
    queue = (*state.queue, Queued(id, run, event, entry.at_ms, size))
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
    if not to.topic.endswith(".conversations"):
        return "an answer goes to a `.conversations` topic"
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
    else:
        turn = replace(turn, answer=event.refusal if event.refusal is not None else event.text)
    return replace(state, turn=_within_budget(turn))


def _within_budget(turn: Turn) -> Turn:
    limits, spent = turn.limits, turn.spent
    tokens = spent.input_tokens + spent.output_tokens
    if turn.failing is None and limits.tokens is not None and tokens > limits.tokens:
        return replace(turn, failing=ev.Reason("budget.tokens", f"{tokens:,} tokens are used, {limits.tokens:,} allowed"))
    if turn.failing is None and limits.cost_usd is not None and spent.cost_usd > limits.cost_usd:
        say = f"{spent.cost_usd:.4f} USD are spent, {limits.cost_usd:.4f} allowed"
        return replace(turn, failing=ev.Reason("budget.cost", say))
    return turn


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
    call = _call(state, event.call)
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
        return _close(state, replace(call, verdict=event), outcome, denied=_code(event.reasons))
    if event.decision == "require_approval":
        return _put(state, replace(call, status="held", verdict=event, since_ms=entry.at_ms))
    sealed = ev.SealedVerdict(
        entry.record.topic, entry.key, entry.id, (entry.record.value or b"").decode(), entry.seal
    )
    granted = replace(call, status="granted", verdict=event, sealed=sealed, arguments=final, since_ms=entry.at_ms)
    return _put(state, granted)


def _spoken(reasons: tuple[ev.Reason, ...]) -> str:
    return " ".join(reason.say for reason in reasons) or "The call was denied."


def _code(reasons: tuple[ev.Reason, ...]) -> str:
    return reasons[0].code if reasons else "denied"


def _approval_decided(state: Conversation, entry: Entry, event: ev.ApprovalDecided) -> Conversation | None:
    call = _call(state, event.call)
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
        return _close(state, call, ev.CallCompleted(event.call, call.execution, "refused", say, code))
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
    return _put(state, again)


def _call_completed(state: Conversation, entry: Entry, event: ev.CallCompleted) -> Conversation | None:
    call = _call(state, event.call)
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
        closed = _close(state, call, event)
        return _charged(closed, call.chosen.grant) if event.code == "delegation.deadline" and call.chosen else closed
    if call.status != "granted":
        return None
    if event.outcome == "unknown":
        return _put(state, replace(call, status="unknown", since_ms=entry.at_ms, outcome=event))
    expiries = call.expiries + 1 if event.outcome == "refused" else call.expiries
    if expiries >= EXPIRIES_MAX:
        say = f"{expiries} verdicts in a row had expired when the pool saw them: compare the clocks of guardrail and pool"
        return _close(state, call, ev.CallCompleted(event.call, call.execution, "error", say, "clock.skew"))
    return _put(state, _next_execution(call, entry.at_ms, expiries))


def _charged(state: Conversation, grant: ev.Grant) -> Conversation:
    """Charge all of a grant: what a late child has used of it, nobody will say."""
    assert state.turn is not None
    spent = ev.Spent(0, grant.tool_calls or 0, grant.tokens or 0, 0, grant.cost_usd or 0.0)
    return replace(state, turn=_within_budget(replace(state.turn, spent=state.turn.spent.plus(spent))))


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
    call = _call(state, event.call)
    if call is None or call.status != "unknown" or event.execution != call.execution:
        return None
    if event.resolution == "not_run":
        if state.turn is not None and state.turn.ending:
            return _close(state, call, ev.CallCompleted(event.call, call.execution, "revoked", "It did not run."))
        return _put(state, _next_execution(call, entry.at_ms, 0))
    if event.resolution == "ran":
        return _close(state, call, ev.CallCompleted(event.call, call.execution, "ok", event.output))
    say = f"Nobody can say whether it ran; {event.by} gave up on it."
    return _close(state, call, ev.CallCompleted(event.call, call.execution, "error", say, GIVEN_UP))


def _delegation_chosen(state: Conversation, entry: Entry, event: ev.DelegationChosen) -> Conversation | None:
    call = _call(state, event.call)
    if call is None or call.status != "granted" or call.chosen is not None or event.execution != call.execution:
        return None
    if call.name != "delegate" or entry.id != f"{call.execution_id}:chosen":
        return None
    return _put(state, replace(call, chosen=event, since_ms=entry.at_ms))


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
            closed = _close(state, call, outcome)
            assert closed.turn is not None
            spent = closed.turn.spent.plus(event.spent.within(call.chosen.grant))
            return replace(closed, turn=_within_budget(replace(closed.turn, spent=spent)))
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
    if any(call.status != "closed" for call in turn.calls):
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
    messages = tuple(
        replace(message, text=message.text[:KEPT_TEXT_MAX] + " …[cut]")
        if message.role == "tool" and len(message.text) > KEPT_TEXT_MAX
        else message
        for message in (*turn.messages, *_results(turn.calls))
    )
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
}


def reject(state: Conversation, record: Record, code: str, say: str, *, parks: bool) -> Conversation:
    """Return the state after a record that counts as absent. Until the worker has said so, it is owed."""
    parked = f"{code}: {say[:SAY_MAX]}" if parks else state.parked
    if len(state.rejected) >= REJECTED_MAX and not parks:
        return state
    rejected = Rejected(record.partition, record.offset, code, say[:SAY_MAX], parks)
    return replace(state, rejected=(*state.rejected, rejected), parked=parked)


# --- calls -------------------------------------------------------------------------------------


def _call(state: Conversation, id: str) -> Call | None:
    if state.turn is None:
        return None
    return next((call for call in state.turn.calls if call.id == id), None)


def _put(state: Conversation, changed: Call) -> Conversation:
    assert state.turn is not None
    calls = tuple(changed if call.id == changed.id else call for call in state.turn.calls)
    return replace(state, turn=replace(state.turn, calls=calls))


def _close(state: Conversation, call: Call, outcome: ev.CallCompleted, *, denied: str | None = None) -> Conversation:
    after = _put(state, replace(call, status="closed", outcome=outcome, sealed=None, chosen=call.chosen))
    assert after.turn is not None
    turn = after.turn
    if denied is not None:
        turn = replace(turn, denials=(*turn.denials, denied)[-2:])
    elif outcome.outcome == "ok":
        turn = replace(turn, denials=())
    if outcome.outcome in ("ok", "error") and call.verdict is not None:
        ended = "unknown" if outcome.code == GIVEN_UP else outcome.outcome
        done = DoneCall(call.name, call.verdict.args_sha256, ended, call.verdict.safe)
        turn = replace(turn, done_calls=(*turn.done_calls, done))
    return replace(after, turn=turn)


def _settle(state: Conversation, entry: Entry) -> Conversation:
    """Go on where nothing more is waited for: drop what an ending turn need not wait for, open the next step."""
    turn = state.turn
    assert turn is not None
    if turn.ending:
        turn = replace(turn, calls=tuple(_dropped(call, turn) for call in turn.calls))
    turn = _paused(turn, entry.at_ms)
    if turn.calls and all(call.status == "closed" for call in turn.calls) and not turn.ending:
        turn = _next_step(turn)
    return replace(state, turn=turn)


def _dropped(call: Call, turn: Turn) -> Call:
    """An ending turn waits for calls that may be changing something by now, and for delegated work."""
    waits = call.status == "unknown" or (call.status == "granted" and (call.may_change or call.chosen is not None))
    if call.status == "closed" or waits:
        return call
    say = "The turn was ended before the call ran."
    return replace(call, status="closed", outcome=ev.CallCompleted(call.id, call.execution, "revoked", say), sealed=None)


def _paused(turn: Turn, at_ms: int) -> Turn:
    """The clock of a turn stands still while a person is waited for."""
    waits = any(call.status in ("held", "unknown") for call in turn.calls)
    if waits and turn.paused_since_ms is None:
        return replace(turn, paused_since_ms=at_ms)
    if not waits and turn.paused_since_ms is not None:
        return replace(turn, paused_ms=turn.paused_ms + max(0, at_ms - turn.paused_since_ms), paused_since_ms=None)
    return turn


def _next_step(turn: Turn) -> Turn:
    results = _results(turn.calls)
    agent = turn.agent
    for call in turn.calls:
        if call.name == "handoff" and call.outcome is not None and call.outcome.outcome == "ok":
            agent = (call.outcome.fix or {}).get("agent", agent)
    step = turn.step + 1
    turn = replace(turn, messages=turn.messages + results, calls=(), step=step, attempt=1, due_ms=None, agent=agent)
    if step > turn.limits.max_steps:
        say = f"The agent took {turn.limits.max_steps} steps without an answer; raise `max_steps` or make the task smaller."
        return replace(turn, failing=ev.Reason("steps.exceeded", say))
    return turn


def _results(calls: tuple[Call, ...]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage("tool", _result(call), call_id=call.wire_id, name=call.name) for call in calls)


def _result(call: Call) -> str:
    """What the model reads as the call's result."""
    outcome = call.outcome
    assert outcome is not None
    edited = f"A reviewer ({call.approved_by}) changed your call: {call.edited}\n" if call.edited is not None else ""
    if outcome.outcome == "ok":
        return edited + outcome.output
    problem: dict[str, Any] = {"code": outcome.code or outcome.outcome, "say": outcome.output}
    if outcome.fix:
        problem["fix"] = outcome.fix
    elif call.verdict is not None and outcome.outcome == "refused" and call.verdict.reasons:
        reasons = [reason for reason in call.verdict.reasons if reason.fix or reason.path]
        if reasons:
            problem["reasons"] = reasons
    return edited + msgspec.json.encode({"error": problem}).decode()


# --- what is due -------------------------------------------------------------------------------


def worker_pending(state: Conversation) -> list[Effect]:
    """Return what the worker owes this conversation. Pure."""
    effects = [Effect(item.id, "reject", item.id) for item in state.rejected]
    if state.parked is not None:
        return effects
    effects += [
        Effect(f"{turn_id(state.id, done.turn)}:end:again", "again", str(done.turn)) for done in state.again
    ]
    if state.owed is not None:
        effects.append(Effect(f"{state.owed.to.effect}:answer", "answer", owed=True))
    turn = state.turn
    if turn is None:
        if state.queue:
            effects.append(Effect(turn_id(state.id, state.turns + 1), "start"))
        return effects
    for call in turn.calls:
        effects += _call_effects(call, turn)
    if turn.ending:
        if all(call.status == "closed" for call in turn.calls):
            effects.append(Effect(f"{turn_id(state.id, turn.number)}:end", "finish"))
        return effects
    if turn.answer is not None:
        effects.append(Effect(f"{turn_id(state.id, turn.number)}:end", "finish"))
        return effects
    if not turn.calls:
        effects.append(Effect(f"{step_id(state.id, turn)}:a{turn.attempt}", "think", due_ms=turn.due_ms, slot=True))
    if turn.paused_since_ms is None and turn.limits.deadline_ms:
        id = f"{turn_id(state.id, turn.number)}:deadline:{turn.paused_ms}"
        effects.append(Effect(id, "deadline", due_ms=turn.deadline_ms))
    return effects


def _call_effects(call: Call, turn: Turn) -> list[Effect]:
    if call.status == "judging":
        due = call.since_ms + int(turn.limits.guard_s * 1000)
        return [Effect(f"{call.judgement_id}:timeout", "guard_timeout", call.id, due_ms=due)]
    if call.status != "granted" or call.verdict is None:
        return []
    if call.verdict.pool != BUILTIN_POOL:
        if turn.ending:
            return [Effect(f"{call.execution_id}:revoked", "revoke", call.id, owed=True)]
        return [Effect(f"{call.execution_id}:requested", "request", call.id, owed=True)]
    if call.name != "delegate":
        return [Effect(call.execution_id, "builtin", call.id)]
    if call.chosen is None:
        return [
            Effect(f"{call.execution_id}:chosen", "choose", call.id),
            Effect(f"{call.execution_id}:nobody", "nobody", call.id, due_ms=_nobody_ms(call, turn)),
        ]
    effects = [
        Effect(f"{call.execution_id}:intent", "publish", call.id, owed=True),
        Effect(f"{call.execution_id}:late", "child_late", call.id, due_ms=call.chosen.deadline_ms),
    ]
    if turn.ending:
        effects.append(Effect(f"{call.execution_id}:cancel", "cancel_child", call.id, owed=True))
    return effects


def _nobody_ms(call: Call, turn: Turn) -> int:
    """Waiting for an offer ends a little before the turn does, so that the agent can say so."""
    return max(call.since_ms + 1_000, turn.deadline_ms - 5_000)


def guard_pending(state: Conversation) -> list[Effect]:
    """Return what the guardrail owes this conversation. Pure."""
    if state.parked is not None or state.turn is None:
        return []
    effects = []
    for call in state.turn.calls:
        if call.status == "judging":
            effects.append(Effect(call.judgement_id, "judge", call.id, slot=True))
        elif call.status == "held" and call.verdict is not None and call.verdict.approval is not None:
            due = call.verdict.approval.deadline_ms
            effects.append(Effect(f"{call.judgement_id}:deadline", "approval_deadline", call.id, due_ms=due))
    return effects


# --- for people --------------------------------------------------------------------------------

Status = Literal["queued", "working", "needs you", "retrying", "done", "failed", "cancelled"]


def status_of(state: Conversation) -> Status:
    """Return the conversation's status word (architecture.md, section 2)."""
    if state.parked is not None:
        return "failed"
    turn = state.turn
    if turn is None:
        return "queued" if state.queue else "done"
    if any(call.status in ("held", "unknown") for call in turn.calls):
        return "needs you"
    return "retrying" if turn.attempt > 1 and not turn.calls else "working"


def describe(state: Conversation) -> str:
    """Return in a few words what the conversation waits for."""
    if state.parked is not None:
        return state.parked
    turn = state.turn
    if turn is None:
        return "nothing" if not state.queue else "its turn"
    words = {
        "judging": "the guardrail's verdict on {}",
        "held": "a person's decision on {}",
        "granted": "the result of {}",
        "unknown": "a person to say whether {} ran",
    }
    waits = [words[call.status].format(call.name) for call in turn.calls if call.status != "closed"]
    return ", ".join(waits) or f"{turn.agent}'s model (attempt {turn.attempt})"


class ConversationView:
    """The view that the engine is given.

    Roles of one process share one: the fold is pure, so what one has folded is the other's answer as
    well, as long as both came from the very same state by the very same record.
    """

    version = SNAPSHOT_VERSION

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Conversation)
        self._initials: OrderedDict[str, Conversation] = OrderedDict()
        self._folded: OrderedDict[tuple[int, int], tuple[Conversation, Entry, Conversation]] = OrderedDict()

    def initial(self, key: str) -> Conversation:
        state = self._initials.get(key)
        if state is None:
            state = self._initials[key] = Conversation(key)
            if len(self._initials) > SHARED_MAX:
                self._initials.popitem(last=False)
        return state

    def fold(self, state: Conversation, entry: Entry) -> Conversation:
        position = (entry.record.partition, entry.record.offset)
        known = self._folded.get(position)
        if known is not None and known[0] is state and known[1] is entry:
            return known[2]
        after = fold(state, entry)
        self._folded[position] = (state, entry, after)
        if len(self._folded) > SHARED_MAX:
            self._folded.popitem(last=False)
        return after

    def reject(self, state: Conversation, record: Record, code: str, say: str, *, parks: bool) -> Conversation:
        return reject(state, record, code, say, parks=parks)

    def encode(self, state: Conversation) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> Conversation:
        return self._decoder.decode(data)
