"""A process of a crew with triggers: `python trigger_process.py ADDRESS STATE NAME` until SIGTERM.

`CREWLINE_CRASH_AT=point:n` kills it there. Its agents answer at once; what it published is in the log.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import crewline.bus.sqlite
from crewline.crews.running import Crew
from crewline.engine import EngineOptions
from crewline.events import Capability
from crewline.guardrail import PolicySet
from crewline.roster import Agent, Roster
from crewline.triggers import Gathering, TriggerRule, WindowRule
from crewline_agents.base import Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry

MINUTE = 60_000
SESSION_S = 2.0


class Answering:
    """Says something at once."""

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        yield Reply(f"{request.agent} has seen it", usage=Usage(1, 1))

    async def close(self) -> None: ...


def rules(outside: str) -> list[TriggerRule]:
    """A burst that one agent looks at, big payments that two look at before it decides, and what a window held."""
    burst = TriggerRule(
        "burst", outside, "event.card", ["officer.decide"], time="event.at",
        window=WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE), aggregates={"n": "count()", "total": "sum(event.amount)"},
        when="n >= 3", input={"card": "event.card", "from": "window.start", "n": "n"}, concurrency=2,
    )
    big = TriggerRule(
        "big", outside, "event.card", ["fraud.score", "trend.compare"], when="event.amount > 900.0",
        gather=Gathering("officer.decide", "all", 60_000), input={"card": "event.card", "at": "event.at"}, concurrency=2,
    )
    closed = TriggerRule(
        "closed", outside, "event.card", ["officer.decide"], time="event.at",
        window=WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE), aggregates={"n": "count()"},
        input={"card": "event.card", "closed": "window.start", "n": "n"},
    )
    return [burst, big, closed]


def crew(name: str) -> Crew:
    brain = Answering()
    offers = {"officer": "officer.decide", "fraud": "fraud.score", "trend": "trend.compare"}
    agents = {agent: Agent(agent, brain, capabilities={offer: Capability(offer)}) for agent, offer in offers.items()}
    options = EngineOptions(snapshot_records=5, snapshot_s=0.2, poll_s=0.1, retry_s_min=0.02, retry_s_max=1.0)
    return Crew(
        Roster(name, "1", agents), ToolRegistry(), PolicySet([]), options=options, partitions=3,
        triggers=rules(f"{name}.outside"),
    )


async def serve(address: str, state: Path, name: str) -> None:
    async with crew(name).up(state=state, bus=address, keys=state / "keys") as running:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.serve()


if __name__ == "__main__":
    crewline.bus.sqlite.open_bus = partial(crewline.bus.sqlite.open_bus, session_s=SESSION_S)
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
