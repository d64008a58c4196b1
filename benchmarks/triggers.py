"""How many events a second one process takes from an outside topic, groups, and counts in windows.

    python benchmarks/triggers.py [--bus kafka://HOST:PORT] [--events 20000] [--keys 500]

Three triggers of growing cost, one after the other: a condition without a window, a tumbling window with two
aggregates, a hopping window of ten with five. None of them fires: this is what it costs to watch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
import uuid
from pathlib import Path

from crewline.bus import Message
from crewline.bus.opening import open_address
from crewline.crews.running import Crew
from crewline.guardrail import PolicySet
from crewline.roster import Roster
from crewline.seal import make_keys
from crewline.topics import TopicSpec
from crewline.triggers import TakenUntil, TriggerRule, WindowRule
from crewline_tools.registry import ToolRegistry

MINUTE, BATCH, START_MS = 60_000, 500, 1_795_600_800_000
SIMPLE = {"n": "count()", "total": "sum(event.amount)"}
RICH = SIMPLE | {"mean": "avg(event.amount)", "spread": "stddev(event.amount)", "trend": "slope(event.amount)"}


def rules(topic: str) -> list[TriggerRule]:
    never = "total > 1e12"
    return [
        TriggerRule("condition", topic, "event.card", ["x.do"], when="event.amount > 1e9"),
        TriggerRule("tumbling", topic, "event.card", ["x.do"], time="event.at", aggregates=SIMPLE, when=never,
                    window=WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE)),
        TriggerRule("hopping", topic, "event.card", ["x.do"], time="event.at", aggregates=RICH, when=never,
                    window=WindowRule("hopping", 10 * MINUTE, MINUTE)),
    ]  # fmt: skip


async def measure(address: str, state: Path, rule: TriggerRule, namespace: str, events: int) -> dict[str, object]:
    """Run the role `triggers` alone until every event is taken and folded."""
    crew = Crew(Roster(namespace, "1", {}), ToolRegistry(), PolicySet([]), partitions=12, triggers=[rule])
    began, cpu = time.perf_counter(), _cpu_s()
    async with crew.up(state=state, bus=address, keys=state / "keys", only=["triggers"]) as running:
        assert running.triggers is not None
        store = running.intakes[0]._store
        taken = TakenUntil({rule.name: rule}, namespace=namespace, bus_of=lambda _: running.bus, store=store, clock_ms=lambda: 1)
        await taken(rule.name, 1)
        engine = running.engines["triggers"]
        _, ends = await running.bus.offsets(crew.roster.topics.triggers)
        while engine.folded < sum(ends.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        seconds, cpu = time.perf_counter() - began, _cpu_s() - cpu
    return {"trigger": rule.name, "events": events, "events_per_s": round(events / seconds), "cpu_us_per_event": round(cpu / events * 1e6)}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus", help="kafka://HOST:PORT; default: an embedded log in a temporary folder")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state, namespace = Path(folder), f"bench-{uuid.uuid4().hex[:8]}"
        make_keys(state / "keys")
        address = options.bus or f"embedded:{state}"
        topic = f"{namespace}.outside"
        bus = await open_address(address)
        await bus.create_topics([TopicSpec(topic, 4)])
        for first in range(0, options.events, BATCH):
            await bus.append([
                Message(topic, b"", json.dumps({"card": f"c-{n % options.keys}", "amount": 12.5, "at": START_MS + n * 20}).encode(), (), n % 4)
                for n in range(first, min(first + BATCH, options.events))
            ])  # fmt: skip
        await bus.close()
        for rule in rules(topic):
            print(json.dumps(await measure(address, state, rule, f"{namespace}.{rule.name}", options.events)), flush=True)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    asyncio.run(main())
