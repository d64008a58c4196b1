"""Reservations against limits over windows: which answers a judgement rests on, and what became of each.

A counter grants before the call runs, so whatever did not run is given back. What may have run counts:

    answered ─▶ the verdict rests on it ─▶ the call ran, or nobody knows yet        counts
                                        └▶ refused, revoked, came too late, `tool.not_run`   given back
             └▶ denied, held, judged again, ended before it was granted             given back

Both are said to the counter, by the guardrail; until then, and a while longer, they are kept here.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from crewline import events as ev
from crewline.conversation.state import Call, Conversation, Reserved, Turn, turn_id
from crewline.records import Entry

# Settled ones that are kept. The counter has long been told of the oldest; a repeat of its answer must
# still be known as one.
SETTLED_MAX = 100
DAY = "budgets.day."  # in front of what is counted by the day: names, keys and ids of its counters
_NOT_RUN = frozenset({"tool.not_run", "market.nobody", "delegation.depth"})

_End = tuple[Literal["ran", "not_run"], float]


def answered(state: Conversation, entry: Entry, event: ev.LimitAnswered) -> Conversation | None:
    """Take a counter's answer; one that is known already does not stand."""
    if entry.id != event.reservation or any(each.answer.reservation == event.reservation for each in state.reserved):
        return None
    return replace(state, reserved=(*state.reserved, Reserved(event)))


def answers_of(state: Conversation, call: Call) -> dict[str, ev.LimitAnswered]:
    """Return the answers of the call's present judgement, by reservation."""
    return {
        each.answer.reservation: each.answer
        for each in state.reserved
        if not each.ended and each.answer.call == call.id and each.answer.judgement == call.judgement
    }


def settle_reserved(before: Conversation, after: Conversation, entry: Entry) -> Conversation:
    """Return `after` with every reservation ended that nothing rests on any more, and what a turn spent that has ended."""
    if before.turn is not None and after.turn is None and before.turn.limits.day:
        after = _with_spent(before.id, before.turn, after, entry.at_ms)
    reserved = after.reserved
    ends = [None if each.ended else _end_of(each.answer, before, after, entry) for each in reserved]
    if any(ends):
        reserved = tuple(
            each if end is None else replace(
                each, ended=end[0], amount=end[1], ended_ms=0 if each.answer.call else entry.at_ms
            )
            for each, end in zip(reserved, ends, strict=True)
        )
        after = replace(after, reserved=reserved)
    settled = [each for each in reserved if each.ended]
    if len(settled) <= SETTLED_MAX:
        return after
    gone = settled[: len(settled) - SETTLED_MAX]
    forgotten = max(after.forgotten, *(each.answer.turn for each in gone))
    return replace(after, reserved=tuple(each for each in reserved if each not in gone), forgotten=forgotten)


def _end_of(answer: ev.LimitAnswered, before: Conversation, after: Conversation, entry: Entry) -> _End | None:
    if not answer.call:
        return _end_of_turn(answer, before, after, entry)
    call = _call(after.turn, answer.call)
    if call is not None and call.judgement == answer.judgement and call.status == "judging":
        return None
    if not answer.granted or answer.take == "look":
        return "not_run", 0.0  # nothing was taken; its counter need not keep the answer any longer
    if call is not None and call.judgement != answer.judgement:
        return "not_run", 0.0  # judged anew, with a reservation of its own
    if call is not None and call.status in ("granted", "unknown"):
        rests = call.verdict is not None and any(use.reservation == answer.reservation for use in call.verdict.limits)
        return None if rests else ("not_run", 0.0)
    if call is not None and call.status == "held":
        return "not_run", 0.0
    return ("ran", answer.amount) if _may_have_run(answer, before, entry) else ("not_run", 0.0)


def _may_have_run(answer: ev.LimitAnswered, before: Conversation, entry: Entry) -> bool:
    """Return whether a call that is closed now may have done something. Who cannot know says yes."""
    call = _call(before.turn, answer.call)
    if call is None or call.status == "closed":
        # The answer came after the call had ended without it; of a turn long ago nobody can tell.
        return answer.turn <= before.forgotten
    if call.status in ("judging", "held"):
        return False
    event = entry.event
    if isinstance(event, ev.CallResolved) and event.call == call.id:
        return event.resolution != "not_run"
    if isinstance(event, ev.CallCompleted) and event.call == call.id:
        return event.outcome not in ("refused", "revoked", "abandoned") and event.code not in _NOT_RUN
    return True


def _end_of_turn(answer: ev.LimitAnswered, before: Conversation, after: Conversation, entry: Entry) -> _End | None:
    """A turn's own reservation comes to what the turn spent, once it has ended."""
    if after.turn is not None and after.turn.number == answer.turn:
        return None
    turn = before.turn
    if turn is None or turn.number != answer.turn:
        return "not_run", 0.0  # the answer came after the turn's end
    return "ran", spent_of(turn, answer.limit.removeprefix(DAY), entry.at_ms)


def _with_spent(conversation: str, turn: Turn, after: Conversation, at_ms: int) -> Conversation:
    """Say what a turn spent of the day's budgets that did not answer it in time (or are yet to be asked)."""
    known = {each.answer.reservation for each in after.reserved}
    reserved = after.reserved
    for what in turn.limits.day:
        limit = f"{DAY}{what}"
        id = f"{turn_id(conversation, turn.number)}:{limit}"
        if id not in known:
            answer = ev.LimitAnswered(id, limit, limit, turn.number, True, "reserve", 0.0, 0.0, 0.0)
            reserved = (*reserved, Reserved(answer, "ran", spent_of(turn, what, at_ms), at_ms))
    return replace(after, reserved=reserved)


def spent_of(turn: Turn, what: str, at_ms: int) -> float:
    """Return what a turn that ends at `at_ms` spent: `cost_usd`, `tokens`, `tool_calls` or `wall_time` (seconds)."""
    spent = turn.spent
    match what:
        case "cost_usd":
            return spent.cost_usd
        case "tokens":
            return float(spent.input_tokens + spent.output_tokens)
        case "tool_calls":
            return float(spent.tool_calls)
        case _:
            return max(0, at_ms - turn.started_ms - turn.paused_ms) / 1000


def _call(turn: Turn | None, id: str) -> Call | None:
    return next((call for call in turn.calls if call.id == id), None) if turn is not None else None
