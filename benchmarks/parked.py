"""Many conversations that each wait for a person, a SIGKILL, and the time until a new process is ready.

    python benchmarks/parked.py --conversations 10000 [--store lost] [--state DIR]

Every role runs in one process, with the options a crew has by default. Ready means: all roles have folded
the log, every open approval is in memory, and the market is known; the interpreter's start counts. `--store
lost` removes the store before the restart, so that all of it is read from the log. Then one call is approved, to see that it works. Ends with one JSON line;
exit status 1 if it took more than `--goal` seconds.
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
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from crewline import events as ev
from crewline import tool
from crewline.client import Client
from crewline.crews.running import Crew, Running
from crewline.engine import EngineOptions
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.records import Scribe
from crewline.roster import Agent, Roster
from crewline.seal import load_keys, make_keys
from crewline.testing import until
from crewline_agents.base import CallText, Reply, StepItem, StepRequest, Usage
from crewline_tools.registry import ToolRegistry

BATCH = 500
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


def crew(snapshot_records: int) -> Crew:
    """Return a crew whose only payment a person must approve."""
    tools = ToolRegistry()
    tools.add(pay)
    rules = [PolicyRule("large", tools=("pay",), action="require_approval", reason="A person decides")]
    roster = Roster("parked", "1", {"desk": Agent("desk", Model(), tools=("pay",))}, tools.specs())
    policies = PolicySet(rules, approvals=Approvals(("leads",), 86_400.0))
    return Crew(roster, tools, policies, options=EngineOptions(snapshot_records=snapshot_records))


def write(file: Path, text: str) -> None:
    """Write `text` so that nobody sees a part of it."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


async def serve(state: Path, snapshot_records: int) -> None:
    """Run every role until SIGTERM; write `ready` when it is."""
    async with crew(snapshot_records).up(state=state) as running:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        await running.ready()
        write(state / "ready", str(len(running.engines["guardrail"].states())))
        held = asyncio.create_task(count_held(running, state / "held"))
        await running.serve()
        held.cancel()


async def count_held(running: Running, file: Path) -> None:
    """Keep `file` up to date: how many conversations wait for a person, once both readers of them know of it."""
    while True:
        held = sum(
            state.turn is not None and any(call.status == "held" for call in state.turn.calls)
            for state in running.engines["guardrail"].states()
        )
        at_rest = running.engines["worker"].folded == running.engines["guardrail"].folded
        write(file, str(held if at_rest else 0))
        await asyncio.sleep(0.5)


async def park(state: Path, count: int) -> float:
    """Publish `count` intents and wait until every role has each of them held; return the seconds it took."""
    began = time.monotonic()
    async with Client(f"embedded:{state}", "parked") as client:
        scribe = Scribe(load_keys(state / "keys"), source="parked", now_ms=lambda: int(time.time() * 1000))
        topic = client.topics.conversations
        for first in range(0, count, BATCH):
            await client.bus.append([
                scribe.message(topic, f"c{n}", ev.IntentPublished(HISTORY, agent="desk", user=f"u{n}"), id=f"c{n}", run=f"c{n}")
                for n in range(first, min(first + BATCH, count))
            ])

        await until(lambda: (state / "held").exists() and (state / "held").read_text() == str(count), seconds=600.0)
    return time.monotonic() - began


async def approve(state: Path, conversation: str) -> None:
    """Approve one conversation's call and wait for its answer."""
    async with Client(f"embedded:{state}", "parked") as client:
        handle = await client.publish(HISTORY, agent="desk", intent=conversation)
        await client.approve(f"{conversation}:", by="lead")
        assert (await handle.answer(60)).text == "done"


def start(state: Path, snapshot_records: int) -> subprocess.Popen[bytes]:
    (state / "ready").unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", str(state), "--snapshot-records", str(snapshot_records)]
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], *, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit(f"the process is not ready (exit status {process.poll()})")
        time.sleep(0.005)


def resident_mb(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--state", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--store", choices=["kept", "lost"], default="kept")
    parser.add_argument("--goal", type=float, default=5.0, help="seconds")
    parser.add_argument("--snapshot-records", type=int, default=EngineOptions().snapshot_records)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve, options.snapshot_records))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        state = options.state or Path(folder)
        make_keys(state / "keys")
        process = start(state, options.snapshot_records)
        try:
            wait_for((state / "ready").exists, process)
            parked_s = asyncio.run(park(state, options.conversations))
            print(f"{options.conversations} conversations parked in {parked_s:.1f} s", file=sys.stderr)
            process.kill()
            process.wait()
            if options.store == "lost":
                for file in state.glob("store.db*"):
                    file.unlink()

            began = time.monotonic()
            process = start(state, options.snapshot_records)
            wait_for((state / "ready").exists, process)
            ready_s = time.monotonic() - began
            rss_mb = resident_mb(process)
            held = int((state / "ready").read_text() or 0)
            assert held >= options.conversations, f"{held} open approvals are in memory"
            asyncio.run(approve(state, f"c{options.conversations // 2}"))
        finally:
            process.kill()
            process.wait()
    print(json.dumps({"conversations": options.conversations, "ready_s": round(ready_s, 2), "rss_mb": rss_mb}))
    return int(ready_s > options.goal)


if __name__ == "__main__":
    sys.exit(main())
