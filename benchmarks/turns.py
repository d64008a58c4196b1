"""Throughput of whole turns, guarded, sealed and durable (on the embedded log: synchronous=FULL).

    python benchmarks/turns.py --conversations 200 --turns 50 --tools 1 [--unsafe]
    python benchmarks/turns.py --bus kafka://127.0.0.1:9092 --workers 2 …      see turns_kafka.py

On the embedded log all roles and the client run in one process. The floor, measured in the same run, is the bare append and read,
by as many readers, of the same bytes through APSW, in commits of the size the run had. One JSON line last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
from crewline import tool
from crewline.bus.base import Bus, Record
from crewline.client import Client
from crewline.crews.running import Crew
from crewline.events import header
from crewline.guardrail import PolicyRule, PolicySet
from crewline.roster import Agent, Roster
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry
from place import Place, add_arguments

READERS = {"conversations": 3, "tools": 1}  # worker, guardrail, client; the pool
COMMIT_RECORDS = 64


class InstantModel:
    """Calls the tools asked for, one a step, then answers: the model costs nothing, so the platform shows."""

    def __init__(self, tools: int, name: str) -> None:
        self._tools = tools
        self._name = name

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        if request.step <= self._tools:
            call = CallText("c1", self._name, f'{{"order_id": "A-{request.turn}-{request.step}"}}')
            yield Reply(calls=(call,), finish="tool_calls", usage=Usage(100, 20))
        else:
            yield Reply("Your parcel is on its way and arrives on Tuesday.", usage=Usage(120, 30))

    async def close(self) -> None:
        return None


@tool(effect="read", timeout="5s")
async def find_order(order_id: str) -> dict[str, Any]:
    """Find an order."""
    return {"order_id": order_id, "status": "on its way", "total": 80.0}


@tool(effect="write", timeout="5s")
async def note_order(order_id: str) -> dict[str, Any]:
    """Write a note about an order; not idempotent, so each execution is claimed."""
    return {"order_id": order_id, "noted": True}


def crew(tools: int, *, unsafe: bool, namespace: str = "bench") -> Crew:
    """Return the benchmark's crew."""
    registry = ToolRegistry()
    registry.add(note_order if unsafe else find_order)
    name = "note_order" if unsafe else "find_order"
    agent = Agent("desk", InstantModel(tools, name), tools=(name,), history=20)
    policies = PolicySet([PolicyRule("fine", tools=(name,), when="size(args.order_id) < 30", action="allow", reason="a test")])
    return Crew(Roster(namespace, "1", {"desk": agent}, registry.specs(), namespace=namespace), registry, policies)


async def converse(client: Client, conversation: str, turns: int, latencies: list[float]) -> None:
    for _ in range(turns):
        began = time.perf_counter()
        await client.ask("Where is my parcel?", agent="desk", conversation=conversation)
        latencies.append(time.perf_counter() - began)


async def measure(client: Client, conversations: int, turns: int, cpu_s: Callable[[], float]) -> dict[str, float]:
    """Have `conversations` talk at once for `turns` turns each, then one alone."""
    latencies: list[float] = []
    await converse(client, "warm-up", 5, [])
    began, cpu = time.perf_counter(), cpu_s()
    await asyncio.gather(*(converse(client, f"c-{n}", turns, latencies) for n in range(conversations)))
    seconds, cpu = time.perf_counter() - began, cpu_s() - cpu
    count = conversations * turns
    alone: list[float] = []
    await converse(client, "alone", 50, alone)
    latencies.sort()
    return {
        "turns_per_s": round(count / seconds, 1),
        "cpu_ms_per_turn": round(cpu / count * 1000, 3),
        "p50_ms": round(statistics.median(latencies) * 1000, 1),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "alone_p50_ms": round(statistics.median(alone) * 1000, 2),
    }


async def read_all(bus: Bus, topic: str) -> list[Record]:
    records: list[Record] = []
    begins, ends = await bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await bus.read(topic, partition, offset, records_max=5_000)
            records += batch.records
            offset = batch.next_offset
    return records


def size(record: Record) -> int:
    return len(record.key) + len(record.value or b"") + sum(len(name) + len(value) for name, value in record.headers)


def bytes_by_turn(records: list[Record], conversation: str) -> dict[int, int]:
    """Return the bytes of each turn's records (by the turn in their ids), intents left out."""
    totals: dict[int, int] = defaultdict(int)
    for record in records:
        id = header(record.headers, "ce_id") or ""
        if id.startswith(f"{conversation}:t"):
            totals[int(id.split(":")[1][1:])] += size(record)
    return totals


def floor(conversations: list[Record], tools: list[Record], folder: Path) -> tuple[float, float]:
    """Return (seconds, CPU seconds) of appending and reading the same bytes through bare APSW."""
    connection = apsw.Connection(str(folder / "floor.db"))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE r (id INTEGER PRIMARY KEY, topic INT, part INT, key BLOB, headers BLOB, value BLOB)")
    encode = msgspec.msgpack.Encoder().encode
    rows = [(number, record.partition, record.key, encode(record.headers), record.value)
            for number, records in enumerate((conversations, tools)) for record in records]
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(rows), COMMIT_RECORDS):
        with connection:
            connection.executemany(
                "INSERT INTO r (topic, part, key, headers, value) VALUES (?, ?, ?, ?, ?)", rows[start : start + COMMIT_RECORDS]
            )
    for number, readers in enumerate(READERS.values()):
        for _ in range(readers):
            for _row in connection.execute("SELECT id, part, key, headers, value FROM r WHERE topic = ?", (number,)):
                pass
    spent = time.perf_counter() - began, time.process_time() - cpu
    connection.close()
    return spent


def sizes(conversations: list[Record], tools: list[Record], options: argparse.Namespace) -> dict[str, float]:
    """Return what a turn leaves in the log."""
    by_turn = bytes_by_turn(conversations + tools, "c-0")
    count = options.conversations * options.turns + 55
    return {
        "bytes_per_turn_first": by_turn[1],
        "bytes_per_turn_50th": by_turn[min(50, options.turns)],
        "records_per_turn": round((len(conversations) + len(tools)) / count, 2),
    }


async def run(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure on the embedded log, and its floor."""
    async with crew(options.tools, unsafe=options.unsafe).up(state=folder) as running:
        await running.ready()
        result = await measure(running.client, options.conversations, options.turns, time.process_time)
        # Before the log is read back for the floor: that is the benchmark's memory, not the crew's.
        result["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        conversations = await read_all(running.bus, "bench.conversations")
        tools = await read_all(running.bus, "bench.tools.main")
    result |= sizes(conversations, tools, options)
    seconds, cpu = floor(conversations, tools, folder)
    count = options.conversations * options.turns + 55
    result["floor_turns_per_s"] = round(count / seconds, 1)
    result["floor_cpu_ms_per_turn"] = round(cpu / count * 1000, 3)
    result["ratio_turns"] = round(result["turns_per_s"] / result["floor_turns_per_s"], 3)
    result["ratio_cpu"] = round(result["cpu_ms_per_turn"] / result["floor_cpu_ms_per_turn"], 2)
    return result


async def run_on_kafka(place: Place, options: argparse.Namespace) -> dict[str, float]:
    """Measure on Kafka, the roles in other processes, and its floor."""
    import turns_kafka as kafka

    made = crew(options.tools, unsafe=options.unsafe, namespace=place.namespace)
    async with kafka.running(place, made, options) as processes, place.client() as client:
        result = await measure(client, options.conversations, options.turns, processes.cpu_s)
        result["rss_mb_max"] = processes.rss_mb_max()
        conversations = await read_all(client.bus, client.topics.conversations)
        tools = await read_all(client.bus, client.topics.tools("main"))
    result |= sizes(conversations, tools, options)
    like = [record for record in conversations + tools if kafka.is_of(record, "c-0")]
    floor = await kafka.floor(options.bus, like, options.conversations, options.conversations * options.turns)
    return kafka.compared(result, floor, options.tools)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=50, help="turns of each conversation")
    parser.add_argument("--tools", type=int, default=1, help="tool calls a turn")
    parser.add_argument("--unsafe", action="store_true", help="with a tool that must be claimed")
    parser.add_argument("--profile", action="store_true", help="print where the time goes to stderr (embedded log)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the crew (Kafka)")
    parser.add_argument("--apart", action="store_true", help="each role in processes of its own (Kafka)")
    add_arguments(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.state or Path(temporary)
        if options.bus != "embedded":
            place = Place.new(folder, "bench", bus=options.bus, store=options.store)
            result = place.run(run_on_kafka(place, options))
        elif options.profile:
            import cProfile
            import pstats

            profile = cProfile.Profile()
            profile.enable()
            result = asyncio.run(run(options, folder))
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
        else:
            result = asyncio.run(run(options, folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
