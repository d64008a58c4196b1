"""Many conversations that each wait for a person, and the time until a new process has them.

    python benchmarks/parked.py --conversations 10000 [--store-lost] [--state DIR]
    python benchmarks/parked.py --conversations 100000 --partitions 24 --bus kafka://127.0.0.1:9092

Every role runs in one process, with the options a crew has by default. Ready means: all roles have folded
their part of the log, every open approval of it is in memory, and the market is known; the interpreter's start
counts. On the embedded log the process is killed and started again; `--store-lost` removes the store before,
so that all of it is read from the log. On Kafka a second process joins, which takes over half; then the first is
killed, and the second takes over the rest when the group's session of 10 s is over. At the end calls are approved,
to see that it works. Ends with one JSON line; exit status 1 if it took more than `--goal` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from crewline import events as ev
from crewline import tool
from crewline.bus.base import Message
from crewline.client import Client
from crewline.crews.running import Crew, Running
from crewline.engine import EngineOptions
from crewline.errors import BusUnavailable
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.records import Scribe
from crewline.roster import Agent, Roster
from crewline.seal import load_keys
from crewline.topics import PARTITIONS
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry
from place import Place, add_arguments

BATCH = 500
PARK_S = 1_800.0
COUNT_S = 1.0  # counting 100,000 takes some 50 ms of the event loop
HISTORY = "The customer writes at some length about a lamp that came broken. " * 15  # 1 kB


class Model:
    """Asks for a payment, then answers."""

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        if request.step == 1:
            yield Reply(calls=(CallText("c1", "pay", '{"amount": 60}'),), finish="tool_calls", usage=Usage(10, 5))
        else:
            yield Reply("done", usage=Usage(10, 5))

    async def close(self) -> None:
        return None


@tool(effect="destructive", timeout="5s")
async def pay(amount: float) -> str:
    """Pay out."""
    return "paid"


def crew(namespace: str, partitions: int, snapshot_records: int) -> Crew:
    """Return a crew whose only payment a person must approve."""
    tools = ToolRegistry()
    tools.add(pay)
    rules = [PolicyRule("large", tools=("pay",), action="require_approval", reason="A person decides")]
    roster = Roster(namespace, "1", {"desk": Agent("desk", Model(), tools=("pay",))}, tools.specs(), namespace=namespace)
    policies = PolicySet(rules, approvals=Approvals(("leads",), 86_400.0))
    return Crew(roster, tools, policies, partitions=partitions, options=EngineOptions(snapshot_records=snapshot_records))


def write(file: Path, text: str) -> None:
    """Write `text` so that nobody sees a part of it."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


class Process:
    """A process of every role, which says in files of its own when it is ready and what it holds."""

    def __init__(self, place: Place, name: str, options: argparse.Namespace) -> None:
        self.ready_file, self.held_file = place.state / f"{name}.ready", place.state / f"{name}.held"
        self.ready_file.unlink(missing_ok=True)
        self.held_file.unlink(missing_ok=True)
        self.began = time.monotonic()
        more = ["--serve", name, "--partitions", str(options.partitions), "--snapshot-records", str(options.snapshot_records)]
        self.process = subprocess.Popen([sys.executable, __file__, *place.arguments(), *more])

    @property
    def held(self) -> int:
        """How many conversations that wait for a person it has in memory."""
        return int(self.held_file.read_text()) if self.held_file.exists() else 0

    def wait(self, condition: Callable[[], bool], *, seconds: float = 120.0) -> float:
        """Wait until `condition` holds; return the seconds since this process was started."""
        limit = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"the process is not ready (exit status {self.process.poll()}; it holds {self.held})")
            time.sleep(0.005)
        return time.monotonic() - self.began

    def ready(self) -> float:
        """Wait until it is ready; return the seconds since it was started."""
        return self.wait(self.ready_file.exists)

    def rss_mb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def serve(place: Place, name: str, made: Crew) -> None:
    """Run every role until SIGTERM; write NAME.ready when it is, and NAME.held again and again."""
    async with place.up(made) as running:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.ready()
        write(place.state / f"{name}.ready", str(len(running.engines["guardrail"].states())))
        counting = asyncio.create_task(count_held(running, place.state / f"{name}.held"))
        await running.serve()
        counting.cancel()


async def count_held(running: Running, file: Path) -> None:
    """Keep `file` up to date: how many conversations wait for a person, as the guardrail, which has the deadlines, knows."""
    while True:
        held = sum(
            state.turn is not None and any(call.status == "held" for call in state.turn.calls)
            for state in running.engines["guardrail"].states()
        )
        write(file, str(held))
        await asyncio.sleep(COUNT_S)


async def publish(place: Place, count: int) -> None:
    """Publish `count` intents."""
    async with place.client() as client:
        keys = load_keys(place.state / "keys")
        scribe = Scribe(keys, source=place.namespace, now_ms=lambda: int(time.time() * 1000))
        topic = client.topics.conversations
        for start in range(0, count, BATCH):
            await append(client, [
                scribe.message(topic, f"c{n}", ev.IntentPublished(HISTORY, agent="desk", user=f"u{n}"), id=f"c{n}", run=f"c{n}")
                for n in range(start, min(start + BATCH, count))
            ])


async def append(client: Client, messages: Sequence[Message]) -> None:
    """Append `messages`, again if the log does not answer: a repeated intent is the same intent."""
    while True:
        try:
            await client.bus.append(messages)
            return
        except BusUnavailable as error:
            print(error, file=sys.stderr)


async def approve(place: Place, conversations: Sequence[str]) -> None:
    """Approve some conversations' calls and wait for their answers."""
    async with place.client() as client:
        for conversation in conversations:
            handle = await client.publish(HISTORY, agent="desk", intent=conversation)
            await client.approve(f"{conversation}:", by="lead")
            assert (await handle.answer(60)).text == "done"


def restarted(place: Place, options: argparse.Namespace) -> dict[str, float]:
    """Kill the one process there is, and start it again."""
    first = Process(place, "first", options)
    try:
        parked(place, first, options.conversations)
    finally:
        first.kill()
    if options.store_lost:
        for file in place.state.glob("store.db*"):
            file.unlink()
    again = Process(place, "again", options)
    try:
        ready_s = again.ready()
        rss_mb = again.rss_mb()
        held = int(again.ready_file.read_text())
        assert held >= options.conversations, f"{held} open approvals are in memory"
        place.run(approve(place, [f"c{options.conversations // 2}"]))
    finally:
        again.kill()
    return {"ready_s": round(ready_s, 2), "rss_mb": rss_mb}


def taken_over(place: Place, options: argparse.Namespace) -> dict[str, float]:
    """Have a second process join, then kill the first."""
    count = options.conversations
    first = Process(place, "first", options)
    second = None
    try:
        parked(place, first, count)
        alone_mb = first.rss_mb()
        second = Process(place, "second", options)
        joined_s = second.ready()
        half = int(second.ready_file.read_text())
        assert 0.3 * count < half < 0.7 * count, f"it took over {half} of {count}"
        half_mb = second.rss_mb()
        first.kill()
        killed_at = time.monotonic()
        second.wait(lambda: second.held == count, seconds=120.0)
        after_kill_s = time.monotonic() - killed_at
        place.run(approve(place, [f"c{n}" for n in range(0, count, count // 8)]))
        return {
            "taken_over": half, "ready_s": round(joined_s, 2), "rss_mb": half_mb, "rss_mb_all": alone_mb,
            "all_after_kill_s": round(after_kill_s, 2), "rss_mb_all_after_kill": second.rss_mb(),
        }
    finally:
        first.kill()
        if second is not None:
            second.kill()


def parked(place: Place, first: Process, count: int) -> None:
    first.ready()
    began = time.monotonic()
    place.run(publish(place, count))
    first.wait(lambda: first.held == count, seconds=PARK_S)
    print(f"{count} conversations parked in {time.monotonic() - began:.1f} s", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=PARTITIONS)
    parser.add_argument("--store-lost", action="store_true")
    parser.add_argument("--goal", type=float, help="seconds (default: 5; on Kafka 10)")
    parser.add_argument("--snapshot-records", type=int, default=EngineOptions().snapshot_records)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    add_arguments(parser)
    options = parser.parse_args()
    if options.serve is not None:
        place = Place.of(options)
        place.run(serve(place, options.serve, crew(place.namespace, options.partitions, options.snapshot_records)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place.new(options.state or Path(folder), "parked", bus=options.bus, store=options.store)
        place.run(place.create_topics(crew(place.namespace, options.partitions, options.snapshot_records)))
        try:
            result = taken_over(place, options) if place.on_kafka else restarted(place, options)
        finally:
            place.run(place.remove_topics())
    print(json.dumps({"conversations": options.conversations, **result}))
    return int(result["ready_s"] > (options.goal or (10.0 if place.on_kafka else 5.0)))


if __name__ == "__main__":
    sys.exit(main())
