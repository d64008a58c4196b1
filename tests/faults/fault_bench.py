"""What the fault tests share: processes to kill and stop, and what witnesses and log say afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crewline.bus.opening import open_address
from crewline.client import Client
from crewline.events import CallCompleted, Envelope, ModelReplied, decode
from crewline.guardrail.audit_verify import verify
from crewline.seal import load_keys, make_keys
from crewline.testing import until as until
from crewline.topics import CrewTopics

PROCESS = Path(__file__).with_name("fault_process.py")


@dataclass
class Verdict:
    """What came of it: compared with the witnesses, which know nothing of crewline."""

    payments: Counter[str]
    repeated: list[str]
    unknown: set[str]
    doubled: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.doubled = [call for call, count in self.payments.items() if count > 1]


class Lab:
    """One state folder, and processes of crews on it, or on a `bus` and a `store` elsewhere with namespaces that end in `suffix`."""

    def __init__(self, state: Path, *, bus: str | None = None, store: str | None = None, suffix: str = "") -> None:
        self.state = state
        self.bus = bus or f"embedded:{state}"
        self.suffix = suffix
        self._where = {"FAULT_SUFFIX": suffix} | ({"FAULT_BUS": bus} if bus else {}) | ({"FAULT_STORE": store} if store else {})
        self.processes: list[subprocess.Popen[bytes]] = []
        self.listed: set[str] = set()  # executions that were shown as unknown to a person
        state.mkdir()
        make_keys(state / "keys")
        self._log = (state / "processes.log").open("ab")

    async def create_topics(self, crew: str = "fault") -> None:
        """Make the crew's topics, so that intents can be published before any process runs."""
        async with await open_address(self.bus) as bus:
            await bus.create_topics(CrewTopics(crew + self.suffix).specs(("main",)))

    def start(self, *roles: str, crew: str = "fault", crash: str = "", stop: str = "") -> subprocess.Popen[bytes]:
        """Start a process of these roles (none named: all)."""
        environment = os.environ | self._where
        environment |= {"CREWLINE_CRASH_AT": crash} if crash else {}
        environment |= {"FAULT_STOP_AT": stop} if stop else {}
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), crew, str(self.state), *roles],
            env=environment, stdout=self._log, stderr=self._log,
        )
        self.processes.append(process)
        return process

    async def ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until its roles have folded the log."""
        await until(lambda: str(process.pid) in self.lines("ready") or self._died(process), seconds=30)

    def _died(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, f"the process ended with {process.returncode}:\n{self.output()}"
        return False

    def client(self, crew: str = "fault") -> Client:
        return Client(self.bus, crew + self.suffix, keys=self.state / "keys")

    def lines(self, file: str) -> list[str]:
        path = self.state / file
        return path.read_text().splitlines() if path.exists() else []

    def output(self) -> str:
        return (self.state / "processes.log").read_text()[-4_000:]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self._log.close()

    # --- the person, and the judge -------------------------------------------------------------

    async def settled(self, client: Client, intents: Sequence[str]) -> bool:
        """Say of each unknown payment what the ledger says; return whether every intent's turn has ended."""
        projection = await client.projection()
        for waiting in projection.open_calls():
            if (id := f"{waiting.id}:x{waiting.call.execution}") not in self.listed:
                self.listed.add(id)
                paid = any(line.split()[0] == waiting.id for line in self.lines("payments"))
                await client.resolve(waiting.id, "ran" if paid else "not_run", by="a test", output="paid")
        ended = {turn.intent: turn.status for turn in projection.turns.values() if turn.finished_ms is not None}
        return set(intents) <= set(ended)

    async def settle(self, client: Client, intents: Sequence[str], *, seconds: float = 40.0) -> list[Any]:
        """Wait until every intent is answered; return the answers."""
        try:
            await until(lambda: self.settled(client, intents), seconds=seconds)
        except AssertionError:
            states = [state for state in (await client.projection()).states.values() if state.turn or state.queue]
            raise AssertionError(f"lost: {states}\n{self.output()}") from None
        turns = {turn.intent: turn for turn in (await client.projection()).turns.values()}
        return [turns[intent].answer for intent in intents]

    async def judge(self, client: Client) -> Verdict:
        """Compare the witnesses with the log."""
        replied_ms: dict[str, int] = {}
        unknown = set()
        for at_ms, envelope in await records(client, client.topics.conversations):
            if isinstance(envelope.event, ModelReplied):
                replied_ms.setdefault(envelope.id, at_ms)
            if isinstance(envelope.event, CallCompleted) and envelope.event.outcome == "unknown":
                unknown.add(f"{envelope.event.call}:x{envelope.event.execution}")
        payments = Counter(line.split()[0] for line in self.lines("payments"))
        asked = (line.split() for line in self.lines("model.calls"))
        repeated = [step for step, at_ms, _ in asked if step in replied_ms and int(at_ms) > replied_ms[step] + 5]
        return Verdict(payments, repeated, unknown)

    async def audit_holds(self, crew: str = "fault") -> bool:
        """Return whether the guardrail's chain over the conversations holds."""
        topics = CrewTopics(crew + self.suffix)
        async with await open_address(self.bus) as bus:
            report = await verify(
                bus, topic=topics.conversations, keyring=load_keys(self.state / "keys"), audit_topic=topics.audit,
                file=self.state / "audit.jsonl",
            )
        assert report.checkpoints > 0
        assert report.breaks == []
        return True


async def records(client: Client, topic: str) -> list[tuple[int, Envelope]]:
    """Return (timestamp, event) of a topic's records, in order of partition and offset."""
    found = []
    begins, ends = await client.bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await client.bus.read(topic, partition, offset)
            found += [(record.timestamp_ms, decode(record.headers, record.value)) for record in batch.records]
            offset = batch.next_offset
    return found


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has been stopped (SIGSTOP)."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
