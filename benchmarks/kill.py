"""The kill test: real processes, killed and stopped at random and at named points, and what came of it.

    python benchmarks/kill.py --turns 300 --kills 40 --stops 20 [--seed N] [--state DIR]
    python benchmarks/kill.py --turns 300 --kills 40 --bus kafka://127.0.0.1:9092 [--store redis://127.0.0.1:6379]

Two workers, a guardrail, a tool pool and a client run as processes of their own. On Kafka a killed member's
partitions are taken over after the session's 10 s, so a run takes longer there. What happened is read
from witnesses outside crewline (files the model and the payment tool write) and from the log itself.
Ends with one JSON line; exit status 1 if a turn was lost, a payment doubled, a recorded reply asked
again, or if a process ended that nobody had killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crewline.events import CallCompleted, ModelReplied, decode
from kill_process import crew
from place import Place, add_arguments

PROCESS = Path(__file__).with_name("kill_process.py")
ROLES = {"worker-1": "worker", "worker-2": "worker", "guardrail": "guardrail", "tools": "tools", "client": "client"}
# Where a process may be told to kill itself: name of the point, and whose process passes it.
POINTS = {
    "worker": ["worker.after_fold", "worker.after_act", "worker.after_append", "worker.after_snapshot",
               "bus.before_commit", "bus.in_group_commit", "bus.after_commit"],
    "guardrail": ["guardrail.after_fold", "guardrail.after_append", "guardrail.after_snapshot", "bus.after_commit"],
    "tools": ["pool.after_claim", "pool.before_run", "pool.after_run", "tools.main.after_append", "bus.after_commit"],
    "client": ["bus.before_commit", "bus.after_commit"],
}
STOP_S = (1.0, 6.0)


class Processes:
    """The processes under test: each is started again when it is gone."""

    def __init__(self, place: Place, turns: int, spacing_s: float, chance: random.Random) -> None:
        self.place = place
        self.turns = turns
        self.spacing_s = spacing_s
        self.chance = chance
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.at_point: set[str] = set()
        self.crashed = 0  # ended by themselves
        self.log = (place.state / "processes.log").open("ab")

    def start(self, name: str, *, point: bool) -> None:
        role = ROLES[name]
        environment = dict(os.environ)
        if point:
            environment["CREWLINE_CRASH_AT"] = f"{self.chance.choice(POINTS[role])}:{self.chance.randint(1, 40)}"
            self.at_point.add(name)
        arguments = [sys.executable, str(PROCESS), role, *self.place.arguments()]
        if role == "client":
            arguments += ["--turns", str(self.turns), "--spacing", str(self.spacing_s)]
        self.running[name] = subprocess.Popen(arguments, env=environment, stdout=self.log, stderr=self.log)

    def ended(self) -> list[str]:
        """Return who has ended and is to be started again."""
        codes = {name: process.poll() for name, process in self.running.items()}
        ended = [name for name, code in codes.items() if code is not None and not (name == "client" and code == 0)]
        self.crashed += sum(codes[name] != -signal.SIGKILL for name in ended)
        return ended

    def stop_all(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def torment(processes: Processes, *, kills: int, stops: int, pause_s: float, limit_s: float) -> tuple[int, int]:
    """Kill and stop until all kills and stops are spent; return how many were."""
    chance, killed, stopped = processes.chance, 0, 0
    continue_at: dict[str, float] = {}
    next_at = time.monotonic() + 2.0
    until = time.monotonic() + limit_s
    while (killed < kills or stopped < stops or continue_at) and time.monotonic() < until:
        now = time.monotonic()
        for name in [name for name, at in continue_at.items() if now >= at]:
            processes.running[name].send_signal(signal.SIGCONT)
            del continue_at[name]
        for name in processes.ended():
            if name in processes.at_point:
                processes.at_point.discard(name)
                killed += processes.running[name].returncode == -signal.SIGKILL
            processes.start(name, point=killed < kills and chance.random() < 0.4)
        if now >= next_at:
            next_at = now + pause_s * chance.uniform(0.5, 1.5)
            alive = [name for name in ROLES if name not in continue_at and processes.running[name].poll() is None]
            name = chance.choice(alive)
            if stopped < stops and chance.random() < stops / (kills + stops):
                processes.running[name].send_signal(signal.SIGSTOP)
                continue_at[name] = now + chance.uniform(*STOP_S)
                stopped += 1
            elif killed < kills:
                processes.running[name].kill()
                processes.running[name].wait()
                killed += 1
                processes.at_point.discard(name)
                processes.start(name, point=chance.random() < 0.4)
        time.sleep(0.02)
    return killed, stopped


async def settle(processes: Processes, limit_s: float) -> dict[str, int]:
    """Be the person: say of each unknown payment what the ledger says, until every turn has ended."""
    state, turns = processes.place.state, processes.turns
    until = time.monotonic() + limit_s
    unknown: set[str] = set()
    async with processes.place.client() as client:
        while True:
            for name in processes.ended():
                processes.start(name, point=False)
            projection = await client.projection()
            for waiting in projection.open_calls():
                unknown.add(f"{waiting.id}:x{waiting.call.execution}")
                paid = any(line.split()[0] == waiting.id for line in lines(state, "payments"))
                await client.resolve(waiting.id, "ran" if paid else "not_run", by="kill.py", output="paid")
            ended = {turn.intent for turn in projection.turns.values() if turn.finished_ms is not None}
            done = sum(f"turn-{n}" in ended for n in range(turns))
            if done == turns or time.monotonic() > until:
                return {
                    "answered": done,
                    "parked": sum(1 for each in projection.states.values() if each.parked),
                    "failed": sum(turn.status == "failed" for turn in projection.turns.values()),
                    "unknown": len(unknown),
                }
            await asyncio.sleep(0.2)


def lines(state: Path, file: str) -> list[str]:
    path = state / file
    return path.read_text().splitlines() if path.exists() else []


async def judge(place: Place) -> dict[str, int]:
    """Compare the witnesses with the log."""
    replied_ms: dict[str, int] = {}
    not_run: Counter[str] = Counter()
    state = place.state
    async with place.client() as client:
        begins, ends = await client.bus.offsets(client.topics.conversations)
        for partition, end in ends.items():
            offset = begins[partition]
            while offset < end:
                batch = await client.bus.read(client.topics.conversations, partition, offset)
                for record in batch.records:
                    envelope = decode(record.headers, record.value)
                    if isinstance(envelope.event, ModelReplied):
                        replied_ms.setdefault(envelope.id, record.timestamp_ms)
                    if isinstance(envelope.event, CallCompleted) and envelope.event.outcome in ("abandoned", "refused"):
                        not_run[envelope.event.call] += 1
                offset = batch.next_offset
    executions = Counter(line.split()[0] for line in lines(state, "payments"))
    repeated = sum(
        int(at_ms) > replied_ms[step] + 5
        for step, at_ms, _ in (line.split() for line in lines(state, "model.calls"))
        if step in replied_ms
    )
    return {
        "doubled": sum(count - 1 for count in executions.values() if count > 1),
        "payments": len(executions),
        "model_calls": len(lines(state, "model.calls")),
        "model_calls_repeated": repeated,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    add_arguments(parser)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds until what is not answered counts as lost")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two blows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Place.new(options.state or Path(folder), "kill", bus=options.bus, store=options.store)
        print(f"seed {options.seed}, {place.state}, {place.namespace} on {place.bus}", file=sys.stderr)
        spacing_s = 0.9 * options.pause * (options.kills + options.stops) / options.turns
        processes = Processes(place, options.turns, spacing_s, random.Random(options.seed))
        place.run(place.create_topics(crew(place.namespace)))
        started = time.monotonic()
        try:
            for name in ROLES:
                processes.start(name, point=False)
            killed, stopped = torment(
                processes, kills=options.kills, stops=options.stops, pause_s=options.pause, limit_s=options.limit
            )
            outcome = place.run(settle(processes, options.limit))
        finally:
            processes.stop_all()
        outcome |= place.run(judge(place))
        place.run(place.remove_topics())
        result = {
            "turns": options.turns, "kills": killed, "stops": stopped, "answered": outcome["answered"],
            "lost": options.turns - outcome["answered"] - outcome["parked"], **outcome,
            "crashed": processes.crashed, "seconds": round(time.monotonic() - started, 1), "seed": options.seed,
        }
        print(json.dumps(result))
        return int(any(result[name] for name in ("lost", "doubled", "model_calls_repeated", "crashed")))


if __name__ == "__main__":
    sys.exit(main())
