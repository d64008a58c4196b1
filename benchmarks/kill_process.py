"""One process of the kill test: `python benchmarks/kill_process.py ROLE --state DIR …`, started by `kill.py`.

ROLE is worker, guardrail, tools or client. The crew asks a model that notes each call, and runs an unsafe
tool that notes each payment, in files that only ever grow: the witnesses that `kill.py` reads afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

from crewline import ToolContext, tool
from crewline.client import Client
from crewline.crews.running import Crew
from crewline.engine import EngineOptions
from crewline.events import Capability
from crewline.guardrail import PolicyRule, PolicySet
from crewline.roster import Agent, Budgets, Roster
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry
from place import Place, add_arguments

STATE = Path(".")  # where the witnesses write; set by `main`
MODEL_S = 0.02
PAYMENT_S = 0.03


def note(file: str, line: str) -> None:
    """Append one line, whole, whoever else does: the kernel orders O_APPEND writes."""
    descriptor = os.open(STATE / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


class WitnessedModel:
    """Looks up, pays, delegates to a second agent, answers; each request is noted before it is made."""

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        note("model.calls", f"{request.id} {time.time_ns() // 1_000_000} {os.getpid()}")
        await asyncio.sleep(MODEL_S)
        amount = request.messages[-1].text if request.messages[-1].role == "user" else ""
        if request.agent == "clerk":
            plan = [
                CallText("c1", "look_up", '{"order": "A-1"}'),
                CallText("c2", "delegate", '{"capability": "pay.out", "input": {"amount": 5}}'),
            ]
        else:
            plan = [CallText("c1", "pay", '{"amount": 5}')]
        if request.step <= len(plan):
            yield Reply(calls=(plan[request.step - 1],), finish="tool_calls", usage=Usage(10, 5))
        else:
            yield Reply(f"done {amount}", usage=Usage(10, 5))

    async def close(self) -> None:
        return None


@tool(effect="read", timeout="5s", retries=3)
async def look_up(order: str) -> str:
    """Look an order up."""
    await asyncio.sleep(0.005)
    return f"{order}: 1 lamp"


@tool(effect="destructive", timeout="2s")
async def pay(amount: float, ctx: ToolContext) -> str:
    """Pay out; nobody can undo or repeat it."""
    note("payments", f"{ctx.call_id} {ctx.attempt} {os.getpid()}")
    await asyncio.sleep(PAYMENT_S)
    return "paid"


def crew(namespace: str) -> Crew:
    """Return the kill test's crew."""
    tools = ToolRegistry()
    tools.add(look_up)
    tools.add(pay)
    brain = WitnessedModel()
    clerk = Agent("clerk", brain, tools=("look_up",), delegates=("pay.out",))
    payer = Agent("payer", brain, tools=("pay",), capabilities={"pay.out": Capability("pay.out")})
    roster = Roster(
        namespace, "1", {"clerk": clerk, "payer": payer}, tools.specs(), namespace=namespace,  # others may test on this broker
        budgets=Budgets(wall_s=900.0), guard_s=120.0,
    )
    policies = PolicySet([PolicyRule("pay", tools=("pay",), action="allow", reason="a test")])
    return Crew(roster, tools, policies, options=EngineOptions(snapshot_records=200, snapshot_s=1.0))


async def serve(place: Place, role: str) -> None:
    """Run one role until SIGTERM."""
    async with place.up(crew(place.namespace), only=[role]) as running:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.serve()


async def ask(place: Place, turns: int, spacing_s: float) -> None:
    """Publish intents turn-0, turn-1, … `spacing_s` apart and wait for all answers; a restarted client repeats the rest."""
    if not (STATE / "began").exists():
        note("began", str(time.time()))
    began = float((STATE / "began").read_text().split()[0])
    answered = set((STATE / "answers").read_text().split()) if (STATE / "answers").exists() else set()
    async with place.client() as client:
        await asyncio.gather(
            *(ask_one(client, f"turn-{n}", began + n * spacing_s) for n in range(turns) if f"turn-{n}" not in answered)
        )


async def ask_one(client: Client, intent: str, at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.time()))
    handle = await client.publish("go", agent="clerk", intent=intent)
    await handle.answer()
    note("answers", intent)


def main() -> None:
    global STATE
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=0.0)
    add_arguments(parser)
    options = parser.parse_args()
    place = Place.of(options)
    STATE = place.state
    note("pids", f"{options.role} {os.getpid()}")
    place.run(ask(place, options.turns, options.spacing) if options.role == "client" else serve(place, options.role))


if __name__ == "__main__":
    main()
