"""Guardrails: expressions see the right names, facts only read, and who must approve exists."""

from __future__ import annotations

from collections.abc import Collection

from crewline.crews.known import Known, listed
from crewline.crews.problems import did_you_mean
from crewline.crews.view import View
from crewline.expressions import Expression

FACT_NAMES = ("args", "user", "run")
CALL_NAMES = ("args", "facts", "user", "run", "agent", "tool", "effect", "origins", "untrusted_seen")
_TEXT_NAMES = ("user", "run", "agent", "origins", "untrusted_seen", "text")
STAGE_NAMES = {
    "input": _TEXT_NAMES,
    "tool_call": CALL_NAMES,
    "tool_result": (*CALL_NAMES, "result"),
    "output": _TEXT_NAMES,
}


def check_guardrails(known: Known) -> None:
    """Facts, policies, limits, budgets, approvals."""
    guardrails = known.root["guardrails"]
    for fact in guardrails["facts"].entries.values():
        _check_fact(known, fact)
    facts = guardrails["facts"].entries
    for policy in guardrails["policies"].entries.values():
        _check_policy(known, policy, facts)
    for limit in guardrails["limits"].entries.values():
        _check_limit(known, limit, facts)
    _check_budgets(known, guardrails)


def _check_fact(known: Known, fact: View) -> None:
    for argument in fact["args"].entries.values():
        argument.expression(FACT_NAMES)
    tool = known.tool(fact["tool"])
    effect = tool["effect"].text if tool is not None else None
    if effect in ("write", "destructive"):
        fact["tool"].say(
            f"a fact may only come from a tool with 'effect: read'; {fact['tool'].text!r} is {effect!r}"
        )


def _check_policy(known: Known, policy: View, facts: Collection[str]) -> None:
    for tool in policy["tools"].items:
        known.tool(tool, builtin=True)
    for agent in policy["agents"].items:
        known.agent(agent)
    stage = policy["stage"].text or "tool_call"
    when = policy["when"]
    _check_facts(when, when.expression(STAGE_NAMES.get(stage, STAGE_NAMES["tool_call"])), facts)
    if stage in ("input", "output") and policy["tools"].there:
        policy["tools"].say(f"at stage {stage!r} there is no tool; leave 'tools' out", at=policy["tools"].key)
    if policy["action"].says("require_approval") and not known.approvers:
        policy.say("policies ask for approval but 'guardrails.approvals' names no approvers", at=policy["action"].place)


def _check_limit(known: Known, limit: View, facts: Collection[str]) -> None:
    for tool in limit["tools"].items:
        known.tool(tool, builtin=True)
    for name in ("key", "sum"):
        _check_facts(limit[name], limit[name].expression(CALL_NAMES), facts)
    if limit["action"].says("require_approval") and not known.approvers:
        limit.say("limits ask for approval but 'guardrails.approvals' names no approvers", at=limit.key)


def _check_facts(view: View, expression: Expression | None, facts: Collection[str]) -> None:
    for name in sorted((expression.fields("facts") if expression is not None else None) or ()):
        if name not in facts:
            view.say(f"fact {name!r} is not defined{did_you_mean(name, facts)} (known: {listed(facts)})")


def _check_budgets(known: Known, guardrails: View) -> None:
    budgets = guardrails["budgets"]
    costed = [name for name in ("run", "day") if budgets.at(name, "cost_usd").there]
    if not costed:
        return
    used = {agent["model"].text or "default" for agent in known.agents.values()}
    for name, model in known.models.items():
        if name in used and model["provider"].says("openai") and not model["usd_per_million_tokens"].there:
            model.say(
                f"'guardrails.budgets.{costed[0]}.cost_usd' needs this model's prices; "
                "set 'usd_per_million_tokens: {input: …, output: …}'",
                at=model.key,
            )
