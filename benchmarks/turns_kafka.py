"""Whole turns on Kafka, roles in processes of their own, beside the floor that bare aiokafka sets.

    python benchmarks/turns.py --bus kafka://127.0.0.1:9092 --conversations 200 --tools 1 --workers 2 [--apart]

`--workers N` processes each run every role, as N times `crewline up` would; with `--apart` N of them run the
worker alone, and guardrail and tool pool have one each. The client is this process. CPU is that of all of them,
without the broker's. The floor is measured in the same run, after the turns: a ping is four times produce and
consume (acks=all, the bytes of a turn's median record), as many under way as there are conversations.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus_kafka import HOPS as FLOOR_HOPS
from bus_kafka import BareLine, ping
from crewline.bus.base import Record
from crewline.crews.running import Crew
from crewline.events import header
from place import KAFKA, Place, add_arguments, topics_of

PINGS = 4_000
ROLES = ("worker", "guardrail", "tools")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Processes:
    """The crew's processes."""

    def __init__(self, place: Place, tools: int, *, unsafe: bool) -> None:
        self._common = [*place.arguments(), "--tools", str(tools), *(["--unsafe"] if unsafe else [])]
        self._all: list[subprocess.Popen[str]] = []

    def start(self, *roles: str) -> None:
        command = [sys.executable, __file__, *self._common, "--only", ",".join(roles)]
        self._all.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    async def ready(self) -> None:
        """Wait until each has said that it is ready. Raises: SystemExit if one ends instead."""
        for process in self._all:
            assert process.stdout is not None
            if await asyncio.to_thread(process.stdout.readline) != "ready\n":
                raise SystemExit(f"a process ended with {process.wait()} before it was ready")

    def cpu_s(self) -> float:
        """Return the CPU seconds that they and this process have used."""
        return sum(_cpu_s(pid) for pid in (os.getpid(), *(process.pid for process in self._all)))

    def rss_mb_max(self) -> float:
        """Return the peak resident memory of the largest."""
        peaks = (_status_kb(process.pid, "VmHWM") for process in self._all)
        return round(max(peaks) / 1024, 1)

    def stop(self) -> None:
        for process in self._all:
            process.terminate()
        for process in self._all:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _status_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@asynccontextmanager
async def running(place: Place, crew: Crew, options: argparse.Namespace) -> AsyncIterator[Processes]:
    """Start the crew's processes on topics of their own; end them and remove the topics."""
    processes = Processes(place, options.tools, unsafe=options.unsafe)
    async with topics_of(place, crew):
        try:
            for _ in range(options.workers):
                processes.start(*(ROLES[:1] if options.apart else ROLES))
            for role in ROLES[1:] if options.apart else ():
                processes.start(role)
            await processes.ready()
            yield processes
        finally:
            processes.stop()


async def floor(address: str, records: list[Record], conversations: int, pings: int) -> dict[str, float]:
    """Measure bare aiokafka with the bytes and headers of the median record."""
    like = sorted(records, key=lambda record: len(record.value or b""))[len(records) // 2]
    headers = [(name, value) for name, value in like.headers]
    pings = max(PINGS, min(pings, 4 * PINGS)) // conversations * conversations
    return await ping(BareLine(address.removeprefix(KAFKA), headers), like.value or b"", pings, conversations)


def hops(tools: int) -> int:
    """Return how many records of a turn wait for one another.

    intent, turn.started, model.replied, then for each call judged, requested, completed, model.replied; turn.finished.
    """
    return 4 + 4 * tools


def compared(turns: dict[str, float], floor: dict[str, float], tools: int) -> dict[str, float]:
    """Return `turns` with the floor and the ratios beside it."""
    per_hop_ms = floor["alone_p50_ms"] / FLOOR_HOPS
    return turns | {f"floor_{name}": value for name, value in floor.items()} | {
        "hops": hops(tools),
        "ratio_turns": round(turns["turns_per_s"] / floor["pings_per_s"], 3),
        "ratio_cpu": round(turns["cpu_ms_per_turn"] / floor["cpu_ms_per_ping"], 2),
        "ratio_alone_per_hop": round(turns["alone_p50_ms"] / hops(tools) / per_hop_ms, 2),
    }


def is_of(record: Record, conversation: str) -> bool:
    """Whether a record belongs to a turn of `conversation`."""
    return (header(record.headers, "ce_id") or "").startswith(f"{conversation}:t")


async def serve(place: Place, crew: Crew, roles: list[str]) -> None:
    """Run roles until SIGTERM; say `ready` when they are."""
    async with place.up(crew, only=roles) as up:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, up.stop)
        await up.ready()
        print("ready", flush=True)
        await up.serve()


def main() -> None:
    """One of the crew's processes."""
    from turns import crew  # which imports this module, when it is the program

    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=int, default=1)
    parser.add_argument("--unsafe", action="store_true")
    parser.add_argument("--only", required=True)
    add_arguments(parser)
    options = parser.parse_args()
    place = Place.of(options)
    place.run(serve(place, crew(options.tools, unsafe=options.unsafe, namespace=place.namespace), options.only.split(",")))


if __name__ == "__main__":
    main()
