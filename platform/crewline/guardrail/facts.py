"""Facts: values that the guardrail looks up itself, so that no policy has to believe the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from crewline import events as ev
from crewline.guardrail.policies import PolicySet

log = logging.getLogger("crewline.guardrail")

RunFact = Callable[[str, dict[str, Any]], Awaitable[Any]]
FACT_S_MAX = 10.0  # a call waits 30 s for its verdict (`Limits.guard_s`); the answer must come well before


class FactFinder:
    """Looks facts up with read tools. Nothing is kept from one judgement to the next.

    Args:
        run_fact: runs a read tool in-process: (tool, arguments) -> JSON value. It may raise anything.
    """

    def __init__(self, run_fact: RunFact, *, timeout_s: float = FACT_S_MAX) -> None:
        self._run_fact = run_fact
        self._timeout_s = timeout_s

    async def look_up(
        self, policies: PolicySet, names: Sequence[str], values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[ev.Reason]]:
        """Return (facts by name, a reason `facts.unavailable` for each that is not to be had).

        `values` holds `args`, `user` and `run`. Raises: nothing but CancelledError.
        """
        if len(names) == 1:  # nearly always: a task of its own would cost more than the rest
            found = [await self._one(policies, names[0], values)]
        else:
            found = await asyncio.gather(*(self._one(policies, name, values) for name in names))
        facts = {name: value for name, (value, reason) in zip(names, found, strict=True) if reason is None}
        return facts, [reason for _, reason in found if reason is not None]

    async def _one(
        self, policies: PolicySet, name: str, values: Mapping[str, Any]
    ) -> tuple[Any, ev.Reason | None]:
        fact = policies.facts[name]
        try:
            args = {arg: expression.evaluate(values) for arg, expression in fact.args.items()}
            async with asyncio.timeout(self._timeout_s):
                return await self._run_fact(fact.rule.tool, args), None
        except Exception as error:
            log.warning("fact %r (tool %r) is not available: %s: %s", name, fact.rule.tool, type(error).__name__, error)
            return None, unavailable(name)


def unavailable(name: str) -> ev.Reason:
    """Return the reason for a fact that could not be looked up."""
    say = f"The fact {name!r}, which this call is checked against, cannot be looked up now."
    return ev.Reason("facts.unavailable", say, fix={"retry": True})
