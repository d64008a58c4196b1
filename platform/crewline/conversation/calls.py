"""How a call moves on, and its turn with it: closed, dropped, waited for, answered to the model."""

from __future__ import annotations

from typing import Any

import msgspec
from crewline_agents.base import ChatMessage
from msgspec.structs import replace

from crewline import events as ev
from crewline.conversation.state import Call, Conversation, DoneCall, Turn
from crewline.records import Entry

GIVEN_UP = "call.unknown"  # the code of a call of which nobody will say whether it ran


def call_of(state: Conversation, id: str) -> Call | None:
    if state.turn is not None:
        for call in state.turn.calls:
            if call.id == id:
                return call
    return None


def put(state: Conversation, changed: Call) -> Conversation:
    assert state.turn is not None
    calls = tuple([changed if call.id == changed.id else call for call in state.turn.calls])
    return replace(state, turn=replace(state.turn, calls=calls))


def close(state: Conversation, call: Call, outcome: ev.CallCompleted, *, denied: str | None = None) -> Conversation:
    after = put(state, replace(call, status="closed", outcome=outcome, sealed=None, chosen=call.chosen))
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


def settle(state: Conversation, entry: Entry) -> Conversation:
    """Go on where nothing more is waited for: drop what an ending turn need not wait for, open the next step."""
    turn = state.turn
    assert turn is not None
    if turn.ending:
        turn = replace(turn, calls=tuple(_dropped(call, turn) for call in turn.calls))
    turn = _paused(turn, entry.at_ms)
    if turn.calls and all_closed(turn.calls) and not turn.ending:
        turn = _next_step(turn)
    return replace(state, turn=turn)


def all_closed(calls: tuple[Call, ...]) -> bool:
    for call in calls:  # noqa: SIM110  a generator costs ten times the loop, and this is asked of each record
        if call.status != "closed":
            return False
    return True


def _dropped(call: Call, turn: Turn) -> Call:
    """An ending turn waits for calls that may be changing something by now, and for delegated work."""
    waits = call.status == "unknown" or (call.status == "granted" and (call.may_change or call.chosen is not None))
    if call.status == "closed" or waits:
        return call
    say = "The turn was ended before the call ran."
    return replace(call, status="closed", outcome=ev.CallCompleted(call.id, call.execution, "revoked", say), sealed=None)


def _paused(turn: Turn, at_ms: int) -> Turn:
    """The clock of a turn stands still while a person is waited for."""
    waits = bool([call for call in turn.calls if call.status in ("held", "unknown")])
    if waits and turn.paused_since_ms is None:
        return replace(turn, paused_since_ms=at_ms)
    if not waits and turn.paused_since_ms is not None:
        return replace(turn, paused_ms=turn.paused_ms + max(0, at_ms - turn.paused_since_ms), paused_since_ms=None)
    return turn


def _next_step(turn: Turn) -> Turn:
    results = results_of(turn.calls)
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


def results_of(calls: tuple[Call, ...]) -> tuple[ChatMessage, ...]:
    return tuple([ChatMessage("tool", _result(call), call_id=call.wire_id, name=call.name) for call in calls])


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


def within_budget(turn: Turn) -> Turn:
    limits, spent = turn.limits, turn.spent
    tokens = spent.input_tokens + spent.output_tokens
    if turn.failing is None and limits.tokens is not None and tokens > limits.tokens:
        return replace(turn, failing=ev.Reason("budget.tokens", f"{tokens:,} tokens are used, {limits.tokens:,} allowed"))
    if turn.failing is None and limits.cost_usd is not None and spent.cost_usd > limits.cost_usd:
        say = f"{spent.cost_usd:.4f} USD are spent, {limits.cost_usd:.4f} allowed"
        return replace(turn, failing=ev.Reason("budget.cost", say))
    return turn
