"""Brokers that a test may kill, freeze and move, and a load on them whose every record is accounted for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from crewline.bus import Bus, Consumer, Message
from crewline.bus.kafka import KafkaOptions, open_bus
from crewline.bus.kafka.bus import KafkaBus
from crewline.errors import BusUnavailable
from crewline.testing import until
from servers import ROOT, KafkaServer

PARTITIONS = 6


class Cluster:
    """The brokers of a `KafkaServer`, one by one."""

    def __init__(self, server: KafkaServer) -> None:
        self.server = server
        self.frozen: set[int] = set()

    @property
    def address(self) -> str:
        return self.server.address

    def pid(self, broker: int) -> int:
        return int((self.server.directory / f"{broker}.pid").read_text())

    def kill(self, broker: int) -> None:
        """SIGKILL it, and return when it is gone."""
        pid = self.pid(broker)
        os.kill(pid, signal.SIGKILL)
        while _state(pid) not in ("", "Z"):
            os.sched_yield()

    def freeze(self, *brokers: int) -> None:
        for broker in brokers:
            self.frozen.add(broker)
            os.kill(self.pid(broker), signal.SIGSTOP)

    def thaw(self) -> None:
        for broker in self.frozen:
            os.kill(self.pid(broker), signal.SIGCONT)
        self.frozen.clear()

    async def start(self, *, port: int | None = None) -> str:
        """Start those that do not run, at `port` and up; return the addresses."""
        self.server.port = port or self.server.port
        process = await asyncio.create_subprocess_exec(
            "scripts/kafka", "start", "--brokers", str(self.server.brokers), "--port", str(self.server.port),
            "--dir", str(self.server.directory), cwd=ROOT, stdout=subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0
        self.server.address = f"kafka://{said.decode().strip()}"
        return self.server.address

    async def open(self, **options: object) -> KafkaBus:
        return await open_bus(self.address, KafkaOptions(**options))  # type: ignore[arg-type]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Load:
    """Appends numbered records to every partition, one call after the other in each, and reads them in a group.

    An append that fails is made again: only then may a record stand twice.
    """

    def __init__(self, bus: Bus, reading: Bus, topic: str) -> None:
        self.bus = bus
        self.reading = reading
        self.topic = topic
        self.appended: dict[int, int] = defaultdict(int)  # acknowledged, by partition
        self.failed = 0
        self.seen: dict[int, list[int]] = defaultdict(list)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        consumer = await self.reading.consumer(
            self.topic, f"{self.topic}.group", assigned=self._assigned, revoked=self._revoked, member="load"
        )
        appending = (self._append(partition) for partition in range(PARTITIONS))
        self._tasks = [asyncio.create_task(each) for each in (self._read(consumer), *appending)]

    async def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        return {partition: len(self.seen[partition]) for partition in partitions}

    async def _revoked(self, partitions: Sequence[int]) -> None: ...

    async def _append(self, partition: int) -> None:
        while not self._stopping:
            number = self.appended[partition]
            try:
                await self.bus.append([Message(self.topic, b"k", b"%d" % number, partition=partition)])
            except BusUnavailable:
                self.failed += 1
            else:
                self.appended[partition] += 1

    async def _read(self, consumer: Consumer) -> None:
        while True:
            for batch in await consumer.poll(1.0):
                self.seen[batch.partition] += [int(record.value or b"") for record in batch.records]

    async def goes_on(self, *, seconds: float = 40.0) -> None:
        """Wait until every partition has taken, and given, more than now."""
        before = [(self.appended[partition], len(self.seen[partition])) for partition in range(PARTITIONS)]

        def waiting() -> list[str]:
            return [
                f"{partition}: {self.appended[partition] - appended} appended, {len(self.seen[partition]) - seen} read"
                for partition, (appended, seen) in enumerate(before)
                if self.appended[partition] <= appended + 1 or len(self.seen[partition]) <= seen + 1
            ]

        try:
            await until(lambda: not waiting(), seconds=seconds)
        except AssertionError:
            raise AssertionError(f"after {seconds:g} s partitions do not go on: {waiting()}") from None

    async def finish(self) -> None:
        """Stop appending; read to the end; say what is wrong: lost, in another order, or doubled without a failure."""
        self._stopping = True
        await asyncio.gather(*self._tasks[1:])
        await until(lambda: all(self.seen[each][-1:] == [self.appended[each] - 1] for each in range(PARTITIONS)))
        await self.close()
        for partition in range(PARTITIONS):
            firsts = list(dict.fromkeys(self.seen[partition]))
            assert firsts == list(range(self.appended[partition])), f"partition {partition}"
            doubled = len(self.seen[partition]) - len(firsts)
            assert doubled <= self.failed, f"partition {partition}: {doubled} stand twice, {self.failed} appends failed"

    async def close(self) -> None:
        """Let go of it, whatever it is doing. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
