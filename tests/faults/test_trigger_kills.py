"""A process with triggers killed at each named place: every event counts once, every firing is published as one intent."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from crewline import events as ev
from crewline.bus import Bus, Message
from crewline.bus.opening import open_address
from crewline.client import Client
from crewline.errors import UnknownTopic
from crewline.seal import make_keys
from crewline.testing import until
from crewline.topics import CrewTopics, TopicSpec
from fault_bench import records

SEED = int(os.environ.get("SEED", "1"))
PROCESS = Path(__file__).with_name("trigger_process.py")
START_MS, MINUTE = 1_795_600_800_000, 60_000
CARDS, WINDOWS = 3, 3
POINTS = [
    "triggers.after_take", "triggers.after_mark", "triggers.after_fold", "triggers.after_append", "triggers.after_snapshot",
]
ONCE = CARDS * WINDOWS  # bursts; big payments, each looked at by two before it is decided; windows that closed
TURNS = ONCE + ONCE * 3 + CARDS * (WINDOWS - 1)


class TriggerLab:
    """A state folder, an outside topic, and processes of one crew on them."""

    def __init__(self, address: str, state: Path, name: str) -> None:
        self.address, self.state, self.name = address, state, name
        self.outside = f"{name}.outside"
        self.processes: list[subprocess.Popen[bytes]] = []
        make_keys(state / "keys")
        self._log = (state / "processes.log").open("ab")

    def start(self, crash: str = "") -> subprocess.Popen[bytes]:
        environment = dict(os.environ) | ({"CREWLINE_CRASH_AT": crash} if crash else {})
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), self.address, str(self.state), self.name],
            env=environment, stdout=self._log, stderr=self._log,
        )
        self.processes.append(process)
        return process

    def output(self) -> str:
        return (self.state / "processes.log").read_text()[-4_000:]

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await open_address(self.address)
        try:
            yield bus
        finally:
            await bus.close()

    async def send(self, *windows: int) -> None:
        """Write the events of some windows, keyed by nothing that the triggers ask about."""
        events = [
            {"card": f"c-{card}", "at": START_MS + window * 10 * MINUTE + n * MINUTE, "amount": 1_000 if n == 1 else 10}
            for window in windows for n in range(4) for card in range(CARDS)
        ]
        async with self.bus() as bus:
            await bus.create_topics([TopicSpec(self.outside, 1)])
            await bus.append([Message(self.outside, b"", json.dumps(each).encode()) for each in events])

    async def has_taken(self, count: int) -> bool:
        """Return whether the log of triggers has so many records."""
        async with self.bus() as bus:
            try:
                return sum((await bus.offsets(f"{self.name}.triggers"))[1].values()) >= count
            except UnknownTopic:
                return False

    async def run_and_kill(self, crash: str) -> None:
        """Run a process that dies there, and another one.

        The second window's events come when those of the first are marked, and the last ones to the second process:
        an event that is taken again must find its window open, or being late would hide that it counts twice.
        """
        await self.send(0)
        process = self.start(crash)
        await until(lambda: process.poll() is not None or self.has_taken(CARDS * 4 * 2), seconds=30)
        await self.send(1)
        await until(lambda: process.poll() is not None, seconds=30)
        assert process.returncode == -signal.SIGKILL, self.output()
        self.start()
        await until(lambda: self.has_taken(CARDS * 4 * 5), seconds=30)
        await self.send(2)

    async def intents(self, bus: Bus) -> tuple[dict[str, ev.IntentPublished], Counter[str], Counter[str]]:
        """Return the intents by id, and how often each was taken up and finished as a turn."""
        client = Client(bus, self.name, keys=self.state / "keys")
        published: dict[str, ev.IntentPublished] = {}
        started: Counter[str] = Counter()
        ended: dict[str, str] = {}
        for _, envelope in await records(client, CrewTopics(self.name).conversations):
            match envelope.event:
                case ev.IntentPublished() as intent:
                    assert published.setdefault(envelope.id, intent) == intent, "a repeat is the same intent"
                case ev.TurnStarted(intent=of):
                    started[of + envelope.id] += 1
                case ev.TurnFinished(intent=of):
                    ended[envelope.id] = of
        return published, Counter(id[:36] for id in started), Counter(ended.values())

    async def is_done(self, bus: Bus) -> bool:
        """Return whether as many turns have ended as the events ask for."""
        try:
            return len((await self.intents(bus))[2]) >= TURNS
        except UnknownTopic:
            return False  # no process has come so far as to make it

    async def ended(self, process: subprocess.Popen[bytes], bus: Bus) -> None:
        """Wait until a process has died, or everything is done."""
        await until(lambda: process.poll() is not None or self.is_done(bus), seconds=40)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._log.close()


@pytest.fixture
def sqlite_lab(tmp_path: Path) -> Iterator[TriggerLab]:
    lab = TriggerLab(f"embedded:{tmp_path}", tmp_path, "kills")
    yield lab
    lab.close()


@pytest.fixture
def kafka_lab(tmp_path: Path, kafka_address: str) -> Iterator[TriggerLab]:
    lab = TriggerLab(kafka_address, tmp_path, f"kills-{uuid.uuid4().hex[:8]}")
    yield lab
    lab.close()


async def judge(lab: TriggerLab, again: str) -> None:
    """Wait until all that the events ask for is done; compare it with what they ask for."""
    async with lab.bus() as bus:
        try:
            await until(lambda: lab.is_done(bus), seconds=40.0)
        except AssertionError:
            raise AssertionError(f"lost ({again}): {await lab.intents(bus)}\n{lab.output()}") from None
        published, started, ended = await lab.intents(bus)

    windows = [f"2026-11-25T10:{n}0:00.000Z" for n in range(WINDOWS)]
    inputs = [intent.input for intent in published.values()]
    bursts = [(each["card"], each["from"], each["n"]) for each in inputs if "from" in each]
    closed = [(each["card"], each["closed"], each["n"]) for each in inputs if "closed" in each]
    findings = [each["findings"].values() for each in inputs if "findings" in each]
    assert sorted(bursts) == [(f"c-{card}", window, 3) for card in range(CARDS) for window in windows], again
    assert sorted(closed) == [(f"c-{card}", window, 4) for card in range(CARDS) for window in windows[:-1]], again
    assert [[finding["status"] for finding in found] for found in findings] == [["done", "done"]] * ONCE, again
    assert Counter(started.values()) == Counter(ended.values()) == {1: TURNS}, again


@pytest.mark.parametrize("point", POINTS)
async def test_triggers_killed_at_a_named_place_lose_and_double_nothing(sqlite_lab: TriggerLab, point: str) -> None:
    lab, times = sqlite_lab, random.Random(f"{SEED} {point}").randint(4, 6)
    await lab.run_and_kill(f"{point}:{times}")

    await judge(lab, f"again: SEED={SEED}, {point}:{times}")


async def test_triggers_killed_again_and_again_lose_and_double_nothing(sqlite_lab: TriggerLab) -> None:
    lab, chance = sqlite_lab, random.Random(SEED)
    await lab.send(*range(WINDOWS))
    async with lab.bus() as bus:
        for _ in range(5):
            process = lab.start(crash=f"{chance.choice(POINTS)}:{chance.randint(1, 8)}")
            await lab.ended(process, bus)
            process.kill()
            process.wait()
    lab.start()

    await judge(lab, f"again: SEED={SEED}")


async def test_on_kafka_as_well(kafka_lab: TriggerLab) -> None:
    lab = kafka_lab
    await lab.run_and_kill("triggers.after_take:5")

    await judge(lab, "triggers.after_take:5")
