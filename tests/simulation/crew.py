"""The crew that the simulation runs: brains that do what the message says, tools that keep count.

A message is a plan: steps divided by ";", calls of one step by "|", as in `look 1|pay 30;handoff;pay 200`.
`delegate look 1,pay 3` asks the clerk to carry out `look 1;pay 3`. `fail` fails a step's first attempt,
`break` its first call of the brain in each process, `wait N` makes it take N seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from crewline.errors import ModelError
from crewline.events import CallText, Capability
from crewline.guardrail.policies import Approvals, PolicyRule, PolicySet
from crewline.guardrail.windows import LimitRule
from crewline.roster import Agent, Budgets, Roster
from crewline_agents.base import Reply, StepItem, StepRequest, Usage
from crewline_tools.base import ToolEffect, ToolSpec
from crewline_tools.context import ToolContext
from crewline_tools.errors import ToolError
from crewline_tools.reconcile import Settled, UncertainCall

CREW = "sim"
HELD_FROM = 100
DENIED_FROM = 1_000
LIMIT = LimitRule("spree", ("pay",), 2, 60.0, action="deny")  # of all conversations, hence of all partitions


class Outside(Protocol):
    """The world beyond the platform: models that cost money, and what tools do."""

    async def pay_for_a_step(self, request: StepRequest) -> None: ...

    async def start_tool(self, tool: str, execution: str, call: str, text: str) -> float: ...

    def happened(self, call: str) -> bool: ...


def latency_s(*of: Any, most: float) -> float:
    """Return a pause that depends on nothing but `of`: mostly short, sometimes long."""
    roll = int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=4).digest(), "big") / 2**32
    return most * roll**4


class PlanBrain:
    """Carries out the plan in the last thing the user said."""

    def __init__(self, world: Outside) -> None:
        self._world = world
        self._broken: set[tuple[str, int]] = set()

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        await self._world.pay_for_a_step(request)
        plan = next(message.text for message in reversed(request.messages) if message.role == "user")
        steps = plan.split(";")
        todo = [each.split() for each in steps[request.step - 1].split("|")] if request.step <= len(steps) else []
        slow = sum(float(words[1]) for words in todo if words[0] == "wait")
        await asyncio.sleep(slow or latency_s("brain", request.id, request.attempt, most=4.0))
        if request.attempt == 1 and ["fail"] in todo:
            raise ModelError("the model is busy", retryable=True)
        if ["break"] in todo and (request.id, id(asyncio.get_running_loop())) not in self._broken:
            self._broken.add((request.id, id(asyncio.get_running_loop())))
            raise ValueError("the brain has a bug")
        calls = tuple(self._call(k, words) for k, words in enumerate(todo) if words[0] in ARGUMENTS)
        if calls or request.step <= len(steps):
            yield Reply("", calls or (self._call(0, ["look", str(request.step)]),), "tool_calls", Usage(10, 5))
        else:
            yield Reply(f"done in {request.step} steps", usage=Usage(10, 5))

    def _call(self, k: int, words: list[str]) -> CallText:
        name, rest = words[0], " ".join(words[1:])
        return CallText(f"w{k}", name, msgspec.json.encode(ARGUMENTS[name](rest)).decode())

    async def close(self) -> None: ...


def _amount(rest: str) -> dict[str, Any]:
    return {"amount": int(rest or 1)}


ARGUMENTS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "look": _amount, "note": _amount, "pay": _amount, "slow": _amount, "boom": _amount, "move": _amount,
    "decline": _amount,
    "delegate": lambda rest: {"capability": "refund.decide", "input": rest.replace(",", ";")},
    "handoff": lambda rest: {"agent": rest or "expert"},
}


@dataclass(frozen=True)
class SimTool:
    """A tool whose starts are counted. What it does is done the moment it starts."""

    spec: ToolSpec
    world: Outside
    reconcile: Callable[[UncertainCall], Any] | None = None
    blocking: bool = False

    def arguments(self, text: str, injected: Mapping[str, Any] | None) -> dict[str, Any]:
        return msgspec.json.decode(text, type=dict[str, Any])

    def bind(self, text: str, injected: Mapping[str, Any] | None, context: ToolContext) -> Callable[[], Any]:
        task = asyncio.current_task()
        assert task is not None
        execution = task.get_name().removesuffix(":execute")  # the pool names the task that runs it so

        async def call() -> str:
            pause_s = await self.world.start_tool(self.spec.name, execution, context.call_id, text)
            await asyncio.sleep(pause_s)
            if self.spec.name == "boom":
                raise ValueError("the tool has a bug")
            if self.spec.name == "decline":
                raise ToolError("declined", ran=False)
            return f"{self.spec.name} did {text}"

        return call


def _spec(name: str, effect: ToolEffect, *, idempotent: bool = False, timeout_s: float = 8.0) -> ToolSpec:
    parameters = {
        "type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"],
        "additionalProperties": False,
    }
    return ToolSpec(name, f"{name}.", parameters, effect, idempotent=idempotent, timeout_s=timeout_s)


SPECS = {
    spec.name: spec
    for spec in (
        _spec("look", "read"), _spec("note", "write", idempotent=True), _spec("pay", "write"),
        _spec("slow", "write", timeout_s=4.0), _spec("boom", "write"), _spec("move", "write"), _spec("decline", "write"),
    )
}
PAUSES_S = {"look": 1.0, "note": 1.0, "pay": 3.0, "slow": 8.0, "boom": 1.0, "move": 12.0, "decline": 0.5}
POLICIES = (
    PolicyRule("large", tools=("pay",), when=f"args.amount >= {HELD_FROM}.0", action="require_approval",
               reason="Large payments need a person."),
    PolicyRule("huge", tools=("pay",), when=f"args.amount >= {DENIED_FROM}.0", reason="Never so much."),
)


def tools_of(world: Outside) -> dict[str, SimTool]:
    async def reconcile(call: UncertainCall) -> Settled:
        await asyncio.sleep(0.01)
        return call.ran("it moved") if world.happened(call.call_id) else call.not_run()

    return {name: SimTool(spec, world, reconcile if name == "move" else None) for name, spec in SPECS.items()}


def roster_of(world: Outside, *, wall_s: float, guard_s: float, day: bool) -> Roster:
    brain = PlanBrain(world)
    every = tuple(SPECS)
    return Roster(
        CREW, "v1",
        {
            "desk": Agent("desk", brain, tools=every, delegates=("refund.decide",), handoffs=("expert",), history=2),
            "expert": Agent("expert", brain, tools=every, history=2),
            "clerk": Agent("clerk", brain, tools=("look", "pay", "note"), history=2,
                           capabilities={"refund.decide": Capability("refund.decide")}),
        },
        SPECS, guard_s=guard_s,
        budgets=Budgets(tool_calls=40, wall_s=wall_s, day={"tool_calls": 10_000.0} if day else {}),
    )


def policies_of(*, approval_s: float, limited: bool) -> PolicySet:
    limits = (LIMIT,) if limited else ()
    return PolicySet(POLICIES, approvals=Approvals(("boss",), approval_s), limits=limits, epoch=1, name="sim")
