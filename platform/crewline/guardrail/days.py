"""Budgets for the day: what the crew may spend between midnight and midnight, UTC.

What a turn will spend, nobody knows before it ends. So a turn asks when it starts whether anything is
left, and says when it ends what it spent; while it runs, the budget of its run bounds it. A crew may
therefore pass its budget for the day by what is under way when it is used up, and by no more.

A turn that has no answer yet may think, and none of its calls is judged; one that is refused is stopped.
What it spent is said in any case, also if it ends before it was answered.
Delegated turns of the same crew are in their parents' sums and do not ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crewline.conversation import DAY, Conversation, Turn, turn_id
from crewline.engine import Effect
from crewline.guardrail.windows import Ask

ASK = "day_asked"
STOP = "day_over"
_WINDOW_S = 86_400.0


def pending(state: Conversation, effects: list[Effect], day: Mapping[str, float], crew: str) -> Sequence[Effect]:
    """Return what the guardrail owes a conversation of a crew with a budget for the day: `effects`, and what comes before."""
    turn = state.turn
    if turn is None or state.parked is not None or _is_counted_elsewhere(turn, crew):
        return effects
    answers = {
        each.answer.limit.removeprefix(DAY): each.answer.granted
        for each in state.reserved
        if not each.answer.call and each.answer.turn == turn.number
    }
    asks = [
        Effect(f"{turn_id(state.id, turn.number)}:{DAY}{what}", ASK, what) for what in day if what not in answers
    ]
    over = [what for what in day if answers.get(what) is False]
    if over and not turn.ending:
        asks.append(Effect(f"{turn_id(state.id, turn.number)}:{DAY}over", STOP))
    if asks or over:
        effects = [effect for effect in effects if effect.kind != "judge"]
    return [*asks, *effects]


def _is_counted_elsewhere(turn: Turn, crew: str) -> bool:
    origin = turn.asked.origin
    return origin.kind == "agent" and origin.crew == crew


def ask(reservation: str, what: str, most: float) -> Ask:
    """Return the ask of a turn for `what` (`cost_usd`, `tokens`, `tool_calls`, `wall_time`), of `most` a day."""
    return Ask(reservation, DAY + what, DAY + what, 0.0, float(most), _WINDOW_S, "reserve")


def told(state: Conversation, turn: Turn) -> str:
    """Return who stops a turn, in words: the budgets that are used up."""
    over = [
        f"{each.answer.limit.removeprefix(DAY)}: {each.answer.used:.10g} of {each.answer.max:.10g}"
        for each in state.reserved
        if not each.answer.call and each.answer.turn == turn.number and not each.answer.granted
    ]
    return f"The crew's budget for the day ({', '.join(over)} used)"
