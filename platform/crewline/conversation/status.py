"""A conversation in words, for people."""

from __future__ import annotations

from typing import Literal

from crewline.conversation.state import Conversation

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
