"""One process of a fault test: `python fault_process.py CREW STATE ROLE...` (no roles: all of them).

The model notes each request, the payment tool each payment, in files that only ever grow: witnesses outside
crewline. `CREWLINE_CRASH_AT=point:n` kills the process there, `FAULT_STOP_AT=point:n` stops it (SIGSTOP).
`FAULT_BUS` and `FAULT_STORE` are where it runs, if not in STATE; `FAULT_SUFFIX` makes its namespace one of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import crewline.bus.sqlite
import crewline.engine.loop
import crewline.engine.ownership
import crewline_tools.pool
from crewline import ToolContext, tool
from crewline.crashpoints import reach
from crewline.crews.running import Crew
from crewline.engine import EngineOptions
from crewline.events import Capability
from crewline.guardrail import LimitRule, PolicyRule, PolicySet
from crewline.roster import Agent, Budgets, Roster
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry

CREW, STATE, ROLES = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
BUS, STORE, SUFFIX = os.environ.get("FAULT_BUS"), os.environ.get("FAULT_STORE"), os.environ.get("FAULT_SUFFIX", "")
SESSION_S = 2.0


def note(file: str, line: str) -> None:
    """Append one line, whole, whoever else does: the kernel orders O_APPEND writes."""
    descriptor = os.open(STATE / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


class WitnessedModel:
    """`desk` looks up and has the payment made by whoever the intent names; `payer` pays."""

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        note("model.calls", f"{request.id} {time.time_ns() // 1_000_000} {os.getpid()}")
        await asyncio.sleep(0.01)
        plan = [CallText("c1", "pay", '{"amount": 5}')]
        if request.agent == "desk":
            wanted = next(message.text for message in request.messages if message.role == "user")
            plan = [
                CallText("c1", "look_up", '{"order": "A-1"}'),
                CallText("c2", "delegate", f'{{"capability": "{wanted}", "input": {{"amount": 5}}}}'),
            ]
        if request.step <= len(plan):
            yield Reply(calls=(plan[request.step - 1],), finish="tool_calls", usage=Usage(10, 5))
        else:
            yield Reply(f"{request.agent}: {request.messages[-1].text}", usage=Usage(10, 5))

    async def close(self) -> None: ...


@tool(effect="read", timeout="5s", retries=3)
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order}: 1 lamp"


@tool(effect="destructive", timeout="0.5s")
async def pay(amount: float, ctx: ToolContext) -> str:
    """Pay out; nobody can undo or repeat it."""
    note("payments", f"{ctx.call_id} {ctx.attempt} {os.getpid()}")
    await asyncio.sleep(0.01)
    return "paid"


def crew(name: str) -> Crew:
    """Return `fault` (desk and payer), `front` (desk alone), `back` or `thrift` (payer alone; `thrift` may pay 4 times)."""
    tools = ToolRegistry()
    brain = WitnessedModel()
    agents = []
    if name not in ("back", "thrift"):
        tools.add(look_up)
        agents.append(Agent("desk", brain, tools=("look_up",), delegates=("pay.out", "back:pay.out")))
    if name != "front":
        tools.add(pay)
        agents.append(Agent("payer", brain, tools=("pay",), capabilities={"pay.out": Capability("pay.out")}))
    roster = Roster(
        name + SUFFIX, "1", {agent.name: agent for agent in agents}, tools.specs(), budgets=Budgets(wall_s=300.0), guard_s=60.0
    )
    fine = PolicyRule("fine", tools=tuple(tools), action="allow", reason="a test")
    purse = LimitRule("purse", ("pay",), 20.0, 3_600.0, sum="args.amount", action="deny")
    policies = PolicySet([fine], limits=[purse] if name == "thrift" else [])
    options = EngineOptions(snapshot_records=5, snapshot_s=0.2, poll_s=0.1, retry_s_min=0.02, retry_s_max=1.0)
    return Crew(roster, tools, policies, options=options)


def stop_at(name: str, times: int) -> None:
    """Have this process stop itself (SIGSTOP) the `times`-th time it comes to that place."""
    left = times

    def reach_or_stop(reached: str) -> None:
        nonlocal left
        reach(reached)
        if reached == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    for module in (crewline.engine.loop, crewline.engine.ownership, crewline_tools.pool):
        module.reach = reach_or_stop  # type: ignore[attr-defined]


async def serve() -> None:
    """Run the roles until SIGTERM."""
    async with crew(CREW).up(state=STATE, bus=BUS, keys=STATE / "keys", store=STORE, only=ROLES or None) as running:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.ready()
        note("ready", str(os.getpid()))
        await running.serve()


if __name__ == "__main__":
    crewline.bus.sqlite.open_bus = partial(crewline.bus.sqlite.open_bus, session_s=SESSION_S)
    if "FAULT_STOP_AT" in os.environ:
        point, _, count = os.environ["FAULT_STOP_AT"].partition(":")
        stop_at(point, int(count or 1))
    asyncio.run(serve())
