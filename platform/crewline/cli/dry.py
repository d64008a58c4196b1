"""A judgement outside of any run: which agent asks, the facts looked up, the guardrail's decision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from crewline.errors import NotFound, UsageError

if TYPE_CHECKING:
    from crewline.cli.output import Output
    from crewline.crews.running import Crew
    from crewline.guardrail import Decision

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\((.*)\)\s*", re.DOTALL)
RUN = "dry-run"


class CallSaid(NamedTuple):
    """A call as given on the command line. `arguments` is its raw text."""

    tool: str
    arguments: str


def call_of(text: str) -> CallSaid:
    """Return the call in `tool({…})`. Raises: UsageError."""
    found = _CALL.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no call", hint="""write tool({…}): --call 'find_order({"order_id": "A-1001"})'""")
    return CallSaid(found[1], found[2].strip() or "{}")


def facts_of(given: list[str] | None) -> dict[str, Any]:
    """Return the facts in `name=JSON` options. Raises: UsageError."""
    facts = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        try:
            facts[name] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"--fact {each!r} is no fact", hint="""write name=JSON: --fact 'order={"total": 80}'""")
    return facts


def agent_of(crew: Crew, tool: str, agent: str | None) -> str:
    """Return who asks: the agent named, or the first that may call the tool. Raises: NotFound."""
    agents = crew.roster.agents
    if agent is not None:
        if agent not in agents:
            raise NotFound(f"there is no agent {agent!r}; there is {', '.join(agents)}", hint="--agent NAME")
        return agent
    return next((name for name, each in agents.items() if tool in each.tools), next(iter(agents)))


async def judge(
    crew: Crew, said: CallSaid, *, agent: str, user: str | None, facts: Mapping[str, Any] | None = None
) -> Decision:
    """Return what the guardrail decides. Facts that are not given are looked up with the crew's read tools."""
    from crewline_tools.reading import ReadTools

    from crewline.guardrail import Judge, judge_with
    from crewline.guardrail.facts import FactFinder

    compiled = Judge(crew.roster, crew.policies)
    given = dict(facts or {})
    missing = [name for name in crew.policies.covering(said.tool, agent).facts if name not in given]
    try:
        args = json.loads(said.arguments)
    except ValueError:
        args = None  # the guardrail denies it, and says why
    if missing and isinstance(args, dict):
        values = {"args": args, "user": {"id": user}, "run": {"id": RUN, "gathered": []}, "agent": agent}
        tools = ReadTools({name: crew.tools[name] for name in crew.tools})
        try:
            found, _ = await FactFinder(tools.run).look_up(crew.policies, missing, values, compiled.injects)
        finally:
            tools.close()
        given |= found
    return judge_with(compiled, crew.roster, agent, said.tool, said.arguments, user=user, facts=given)


def report(out: Output, said: CallSaid, agent: str, decision: Decision) -> int:
    """Print a decision; return its exit code."""
    from crewline.cli import output as codes
    from crewline.cli.arguments import one_line

    if out.settings.json:
        out.document({
            "decision": decision.action, "tool": said.tool, "agent": agent, "arguments": decision.arguments or said.arguments,
            "args_sha256": decision.args_sha256, "reasons": decision.reasons, "facts": decision.facts,
            "checks": decision.checks,
        })
    else:
        word = {"allow": "✓ allow", "amend": "✓ amend", "deny": "✗ deny", "require_approval": "⏸ require approval"}
        out.put(f"{word[decision.action]}  {one_line(said.tool, decision.arguments or said.arguments)}  by {agent}")
        for reason in decision.reasons:
            out.put(f"  {reason.code}: {reason.say}" + (f" (at {reason.path})" if reason.path else ""))
        for name, value in (decision.facts or {}).items():
            out.put(f"  fact {name} = {json.dumps(value, ensure_ascii=False)}")
    return {"deny": codes.DENIED, "require_approval": codes.HELD}.get(decision.action, codes.OK)
