"""Facts: values that the guardrail looks up itself, so that no policy has to believe the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from crewline import events as ev
from crewline.expressions import Expression
from crewline.guardrail.policies import PolicySet

log = logging.getLogger("crewline.guardrail")

# (tool, arguments) -> JSON value; (tool, arguments, injected) for a tool that has arguments injected.
RunFact = Callable[..., Awaitable[Any]]
Injects = Mapping[str, Mapping[str, Expression]]  # by tool, then by argument
FACT_S_MAX = 10.0  # a call waits 30 s for its verdict (`Limits.guard_s`); the answer must come well before


class FactFinder:
    """Looks facts up with read tools. Nothing is kept from one judgement to the next.

    Args:
        run_fact: runs a read tool in-process. It may raise anything.
    """

    def __init__(self, run_fact: RunFact, *, timeout_s: float = FACT_S_MAX) -> None:
        self._run_fact = run_fact
        self._timeout_s = timeout_s

    async def look_up(
        self, policies: PolicySet, names: Sequence[str], values: Mapping[str, Any], injects: Injects
    ) -> tuple[dict[str, Any], list[ev.Reason]]:
        """Return (facts by name, a reason `facts.unavailable` for each that is not to be had).

        `values` holds `args`, `user`, `run` and `agent`; `injects` what tools are given by us. Raises: nothing but CancelledError.
        """
        if len(names) == 1:  # nearly always: a task of its own would cost more than the rest
            found = [await self._one(policies, names[0], values, injects)]
        else:
            found = await asyncio.gather(*(self._one(policies, name, values, injects) for name in names))
        facts = {name: value for name, (value, reason) in zip(names, found, strict=True) if reason is None}
        return facts, [reason for _, reason in found if reason is not None]

    async def _one(
        self, policies: PolicySet, name: str, values: Mapping[str, Any], injects: Injects
    ) -> tuple[Any, ev.Reason | None]:
        fact = policies.facts[name]
        try:
            args = _evaluated(fact.args, values)
            injected = [_evaluated(injects[fact.rule.tool], values)] if fact.rule.tool in injects else []
            async with asyncio.timeout(self._timeout_s):
                return await self._run_fact(fact.rule.tool, args, *injected), None
        except Exception as error:
            log.warning("fact %r (tool %r) is not available: %s: %s", name, fact.rule.tool, type(error).__name__, error)
            return None, unavailable(name)


def _evaluated(expressions: Mapping[str, Expression], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: expression.evaluate(values) for name, expression in expressions.items()}


def unavailable(name: str) -> ev.Reason:
    """Return the reason for a fact that could not be looked up."""
    say = f"The fact {name!r}, which this call is checked against, cannot be looked up now."
    return ev.Reason("facts.unavailable", say, fix={"retry": True})
