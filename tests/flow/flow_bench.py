"""What flow tests share: a brain that follows a plan, and a small crew on a log of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from crewline.crews.running import Crew
from crewline.engine import EngineOptions
from crewline.events import Capability
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.roster import Agent, Budgets, Roster
from crewline.testing import until as until
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, TextDelta, Usage
from crewline_tools.registry import ToolRegistry

Plan = Callable[[StepRequest], "Reply | Awaitable[Reply]"]
PAYMENTS_ARE_HELD = PolicySet(
    [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")],
    approvals=Approvals(("leads",), 3600.0),
)


def calls(*wanted: tuple[str, str]) -> Reply:
    """A reply that asks for calls, each (tool, raw arguments)."""
    texts = tuple(CallText(f"w{n}", name, arguments) for n, (name, arguments) in enumerate(wanted))
    return Reply(calls=texts, finish="tool_calls", usage=Usage(10, 5))


def say(text: str) -> Reply:
    return Reply(text, usage=Usage(10, 5))


class PlannedBrain:
    """Answers step n with the n-th reply (or what a function of the request returns); counts what it was asked."""

    def __init__(self, *plan: Reply | Plan) -> None:
        self.plan = plan
        self.asked: list[StepRequest] = []

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        self.asked.append(request)
        planned = self.plan[min(request.step, len(self.plan)) - 1]
        reply = planned if isinstance(planned, Reply) else planned(request)
        if not isinstance(reply, Reply):
            reply = await reply
        if reply.text:
            yield TextDelta(reply.text)
        yield reply

    async def close(self) -> None:
        return None


def greets_then_pays() -> PlannedBrain:
    """A conversation's first turn answers at once; its second one pays 60, and says all that it was told."""

    def first(request: StepRequest) -> Reply:
        return say("hello") if request.turn == 1 else calls(("pay", '{"amount": 60}'))

    def second(request: StepRequest) -> Reply:
        return say(" | ".join(message.text for message in request.messages if message.role != "assistant"))

    return PlannedBrain(first, second)


class Bench:
    """Builds crews on one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def crew(
        self,
        brains: dict[str, PlannedBrain],
        functions: Sequence[Callable[..., Any]] = (),
        *,
        policies: PolicySet | None = None,
        delegates: Sequence[str] = (),
        handoffs: Sequence[str] = (),
        capabilities: dict[str, Sequence[str]] | None = None,
        name: str = "demo",
        max_steps: int = 10,
        budgets: Budgets = Budgets(),
        guard_s: float = 30.0,
        attempts: int = 4,
        options: EngineOptions = EngineOptions(retry_s_min=0.01, poll_s=0.2),
    ) -> Crew:
        """Return a crew: each agent may call every tool; the first one delegates and hands off."""
        registry = ToolRegistry()
        for function in functions:
            registry.add(function)
        offered = capabilities or {}
        agents = {
            agent: Agent(
                agent, brain, tools=tuple(registry), max_steps=max_steps,
                delegates=tuple(delegates) if n == 0 else (), handoffs=tuple(handoffs) if n == 0 else (),
                capabilities={each: Capability(each) for each in offered.get(agent, ())},
            )
            for n, (agent, brain) in enumerate(brains.items())
        }
        roster = Roster(name, "1", agents, registry.specs(), budgets=budgets, guard_s=guard_s, attempts=attempts)
        allow = [PolicyRule("fine", tools=tuple(registry), action="allow", reason="a test")] if registry else []
        return Crew(roster, registry, policies or PolicySet(allow), options=options)
