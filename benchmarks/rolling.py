"""A rolling restart under load: every process of a crew is stopped (SIGTERM) and started again, one after the other.

    python benchmarks/rolling.py --bus kafka://127.0.0.1:9092 [--rate 10] [--each 2] [--rounds 1] [--drain 5s]

Two processes of each role, started as users start them (`crewline up … --only ROLE`), while turns are asked
at a steady rate: a read, an unsafe payment, an answer. What a restart costs is read off the turns: how long
those took that were under way or asked while processes were restarted, beside those before. Ends with one JSON line; exit
status 1 if a turn was lost or failed, a payment was made twice, its outcome is unknown, or a process did
not end in good order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from crewline.client import Client, TimedOut
from crewline.crews.running import Crew
from crewline.errors import RunFailed
from crewline.seal import make_keys
from crewline.testing import until

ROLES = ("worker", "guardrail", "tools")
CREW = """\
schema: crew/v1
name: {name}
version: 1.0.0
models: {{default: {{provider: scripted, script: script.yaml}}}}
agents: {{clerk: {{role: Clerk, goal: Pay, tools: [look, pay]}}}}
tools:
  look: {{python: "rolling_tools:look", effect: read}}
  pay: {{python: "rolling_tools:pay", effect: destructive, timeout: 5s}}
guardrails:
  policies: {{fine: {{tools: [pay], action: allow, reason: a benchmark}}}}
"""
SCRIPT = """\
clerk:
  - call: look
    args: {what: till}
  - call: pay
    args: {amount: 5}
  - say: paid
"""
TOOLS = '''\
import asyncio, os
from crewline import ToolContext, tool

@tool(effect="read")
async def look(what: str) -> str:
    """Look."""
    await asyncio.sleep(0.005)
    return "12 coins"

@tool(effect="destructive", timeout="5s")
async def pay(amount: float, ctx: ToolContext) -> str:
    """Pay; nobody can undo or repeat it. Each payment is a line in a file that only grows."""
    ledger = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, (ctx.call_id + "\\n").encode())
    os.close(ledger)
    await asyncio.sleep(0.03)
    return "paid"
'''
UP_S = 60.0
STOP_S = 30.0
ANSWER_S = 60.0  # what is not answered by then counts as lost


class Turn(NamedTuple):
    """A turn: when it was asked, how long it took (seconds), and how it ended: done, failed or lost."""

    asked: float
    took_s: float
    status: str


class Process:
    """One process of a role, as a user starts it."""

    def __init__(self, command: list[str], folder: Path, name: str) -> None:
        self.command = command
        self.folder = folder
        self.output = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._began_at = 0  # in its output

    async def start(self) -> None:
        self._start()
        await until(self._is_up, seconds=UP_S)

    def _start(self) -> None:
        with self.output.open("ab") as output:
            self._began_at = output.tell()
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SystemExit(f"{' '.join(self.command)} ended:\n{self.output.read_text()}")
        return b"ask it" in self.output.read_bytes()[self._began_at :]

    async def stop(self) -> tuple[float, int]:
        """Return how long it took to end (seconds), and its exit code."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.wait, STOP_S)
        return time.monotonic() - began, code

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Load:
    """Asks at a steady rate until it is told to stop; then waits for what is open."""

    def __init__(self, client: Client, rate: float) -> None:
        self._client = client
        self._pause_s = 1 / rate
        self._stopping = asyncio.Event()
        self.turns: list[Turn] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as asking:
            while not self._stopping.is_set():
                asking.create_task(self._ask())
                await asyncio.sleep(self._pause_s)

    async def _ask(self) -> None:
        began = time.monotonic()
        handle = await self._client.publish("pay", agent="clerk", follow=False)
        try:
            await handle.answer(ANSWER_S)
            status = "done"
        except RunFailed as failed:
            status = "failed"
            print(f"turn {handle.intent} failed: {failed}", file=sys.stderr)
        except TimedOut:
            status = "lost"
            state = (await self._client.projection()).states.get(handle.conversation)
            print(f"turn {handle.intent} has no answer: {state}", file=sys.stderr)
        self.turns.append(Turn(began, time.monotonic() - began, status))

    def stop(self) -> None:
        self._stopping.set()


def write_crew(folder: Path, name: str) -> Path:
    """Write the crew into `folder`; return its file."""
    (folder / "crew.yaml").write_text(CREW.format(name=name))
    (folder / "script.yaml").write_text(SCRIPT)
    (folder / "rolling_tools.py").write_text(TOOLS.format(ledger=str(folder / "payments")))
    make_keys(folder / "keys")
    return folder / "crew.yaml"


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    name = f"rolling-{secrets.token_hex(4)}"
    file = write_crew(folder, name)
    state = folder / "state"
    kafka = options.bus != "embedded"
    where = ["--keys", str(folder / "keys"), "--bus", options.bus, "--state", str(state)]
    crewline = [sys.executable, "-m", "crewline.cli", *where, "up", str(file), "--drain", options.drain, "--only"]
    processes = [Process([*crewline, role], folder, f"{role}-{n}") for role in ROLES for n in range(options.each)]
    address = options.bus if kafka else f"embedded:{state}"
    try:
        # Topics first: several that make the same ones at once would wait for each other.
        async with Crew.load(file).up(state=state, bus=address, keys=folder / "keys", only=["worker"]):
            pass
        await asyncio.gather(*(process.start() for process in processes))
        async with Client(address, name, keys=folder / "keys") as client:
            load = Load(client, options.rate)
            loading = asyncio.create_task(load.run())
            await asyncio.sleep(options.quiet)
            began, stops, codes = time.monotonic(), [], []
            for process in processes * options.rounds:
                took_s, code = await process.stop()
                stops.append(took_s)
                codes.append(code)
                await process.start()
            ended = time.monotonic()
            load.stop()
            await loading
            unknown = sum(call.call.status == "unknown" for call in await client.open_calls())
        codes += [code for _, code in await asyncio.gather(*(process.stop() for process in processes))]
    finally:
        for process in processes:
            process.kill()
    payments = Counter((folder / "payments").read_text().split())
    return report(load.turns, began, ended) | {
        "restarts": len(stops), "stop_s_max": round(max(stops), 2), "unknown": unknown,
        "doubled": sum(count - 1 for count in payments.values()), "payments": len(payments),
        "ended_badly": sum(code != 0 for code in codes),
    }


def report(turns: list[Turn], began: float, ended: float) -> dict[str, object]:
    """Return what the turns say; times in ms. A turn counts as during if it was open at any moment of the restarts."""
    before = sorted(turn.took_s * 1000 for turn in turns if turn.asked + turn.took_s < began)
    during = sorted(turn.took_s * 1000 for turn in turns if turn.asked + turn.took_s >= began and turn.asked < ended)
    p50 = statistics.median(before)
    return {
        "turns": len(turns), "failed": sum(turn.status == "failed" for turn in turns),
        "lost": sum(turn.status == "lost" for turn in turns), "restarting_s": round(ended - began, 1),
        "before_ms": {"p50": round(p50), "max": round(before[-1])},
        "during_ms": {"p50": round(statistics.median(during)), "p99": round(during[int(len(during) * 0.99)]), "max": round(during[-1])},
        "added_ms_max": round(during[-1] - p50),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus", default="embedded", help="embedded, or kafka://HOST:PORT[,…]")
    parser.add_argument("--state", type=Path, help="an empty folder to work in (default: a temporary one)")
    parser.add_argument("--rate", type=float, default=10.0, help="turns asked a second")
    parser.add_argument("--each", type=int, default=2, help="processes of each role")
    parser.add_argument("--rounds", type=int, default=1, help="how often each process is restarted")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds of load before the first restart")
    parser.add_argument("--drain", default="5s", help="as in `crewline up --drain`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(options.state or Path(folder), options))
    print(json.dumps({"benchmark": "rolling", "bus": options.bus.partition(":")[0], "rate": options.rate, "each": options.each, **result}))
    return int(any(result[name] for name in ("failed", "lost", "unknown", "doubled", "ended_badly")))


if __name__ == "__main__":
    sys.exit(main())
