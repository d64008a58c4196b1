"""What is due: the effects that the worker and the guardrail owe a conversation. Pure, like the fold."""

from __future__ import annotations

from crewline_tools.base import BUILTIN_POOL

from crewline.conversation.reserved import answers_of
from crewline.conversation.state import Call, Conversation, Turn, step_id, turn_id
from crewline.engine import Effect


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
    effects = [
        Effect(f"{each.answer.reservation}:settled", "settle", each.answer.reservation, owed=True)
        for each in state.reserved if each.ended
    ] if state.reserved else []
    if state.parked is not None or state.turn is None:
        return effects
    for call in state.turn.calls:
        if call.status == "judging":
            # With each answer of a counter it goes on, as an effect of its own.
            known = len(answers_of(state, call)) if state.reserved else 0
            id = f"{call.judgement_id}:r{known}" if known else call.judgement_id
            effects.append(Effect(id, "judge", call.id, slot=True))
        elif call.status == "held" and call.verdict is not None and call.verdict.approval is not None:
            due = call.verdict.approval.deadline_ms
            effects.append(Effect(f"{call.judgement_id}:deadline", "approval_deadline", call.id, due_ms=due))
    return effects
