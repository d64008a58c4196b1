"""A judgement without a log: `crewline guard test --call 'tool({...})'`, and a policy set's own tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crewline import events as ev
from crewline.conversation import Call, Conversation, Turn
from crewline.guardrail.counters import Counter, room
from crewline.guardrail.facts import unavailable
from crewline.guardrail.judge import Decision, Judge
from crewline.guardrail.policies import PolicySet
from crewline.roster import Roster


def judge_once(
    roster: Roster,
    policies: PolicySet,
    agent: str,
    tool: str,
    arguments: str,
    *,
    user: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Decision:
    """Return what the guardrail would decide on the first call of a new conversation, with nothing used of any
    limit yet. Runs no tool.

    Args:
        arguments: the raw JSON text of the call's arguments.
        facts: the values that would be looked up; one that is needed and missing denies.

    Raises: UsageError if crew and policies do not fit together.
    """
    return judge_with(Judge(roster, policies), roster, agent, tool, arguments, user=user, facts=facts)


def judge_with(
    judge: Judge, roster: Roster, agent: str, tool: str, arguments: str, *, user: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Decision:
    """Return the same as `judge_once`, with a judge that is compiled already (for many calls)."""
    id = "dry-run:t1:s1:c0"
    call = Call(id, "call_1", tool, arguments, True, None, "judging", 0)
    turn = Turn(
        number=1, intent="dry-run", run="dry-run",
        asked=ev.IntentPublished(agent=agent, user=user, origin=ev.Origin("user" if user else "untrusted")),
        agent=agent, crew_version=roster.version,
        limits=ev.Limits(tool_calls=roster.budgets.tool_calls), started_ms=0, calls=(call,),
        catalogue=roster.catalogue(agent) if agent in roster.agents else "",
        spent=ev.Spent(steps=1, tool_calls=1),
    )
    given = facts or {}
    answers: dict[str, ev.LimitAnswered] = {}
    while True:
        judged = judge.begin(Conversation("dry-run", turns=1, turn=turn), call)
        judged.answers = answers
        known = {name: given[name] for name in judged.facts if name in given}
        decision = judge.end(judged, known, [unavailable(name) for name in judged.facts if name not in given])
        if decision.ask is None:
            return decision
        asked = decision.ask
        answers[asked.reservation] = room(Counter(asked.key), 0, ev.LimitAsked(
            asked.reservation, "dry-run", 1, asked.limit, asked.amount, asked.max, asked.window_s, False, call.id, 1,
            asked.take,
        ))
