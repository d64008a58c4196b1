"""The bus on Kafka beside the floor that bare aiokafka sets: four hops a ping, as in a turn.

    python benchmarks/bus.py --bus kafka://127.0.0.1:9092 [--pings 4000] [--conversations 200] [--rounds 3]

A ping is appended to the first of four topics; whoever reads one of them appends it to the next; it is back
when the last one's reader has it. Everything runs in one process: one producer, four readers. Measured with
many pings under way, then with one at a time; the floor with the same bytes, acks=all, aiokafka as it comes. Floor
and bus take turns, since a machine's speed changes; both on the loop that roles on Kafka use (`crewline.bus.kafka.run`).
The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from crewline.bus.base import Bus, Message
from crewline.bus.kafka import open_bus
from crewline.bus.kafka import run as run_on_kafka
from crewline.topics import TopicSpec

HOPS = 4
PARTITIONS = 12
Handle = Callable[[int, Sequence[tuple[bytes, bytes]]], None]  # hop, its (key, value)s


class Line(Protocol):
    """Four topics one after the other."""

    async def open(self, topics: Sequence[str], heard: Handle) -> None: ...

    def send(self, hop: int, records: Sequence[tuple[bytes, bytes]]) -> None: ...

    async def close(self) -> None: ...


class BusLine:
    """Over our bus: tails, one call an append."""

    def __init__(self, bus: Bus, headers: Sequence[tuple[str, bytes]]) -> None:
        self._bus = bus
        self._headers = tuple(headers)
        self._topics: Sequence[str] = ()
        self._sends: set[asyncio.Future[Any]] = set()
        self._readers: list[asyncio.Task[None]] = []

    async def open(self, topics: Sequence[str], heard: Handle) -> None:
        self._topics = topics
        await self._bus.create_topics([TopicSpec(topic, PARTITIONS) for topic in topics])
        tails = [await self._bus.tail(topic) for topic in topics]

        async def read(hop: int) -> None:
            while True:
                batches = await tails[hop].poll(5.0)
                heard(hop, [(record.key, record.value or b"") for batch in batches for record in batch.records])

        self._readers = [asyncio.create_task(read(hop)) for hop in range(HOPS)]

    def send(self, hop: int, records: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            call = asyncio.ensure_future(self._bus.append([Message(self._topics[hop], key, value, self._headers)]))
            self._sends.add(call)
            call.add_done_callback(self._sends.discard)

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, *self._sends, return_exceptions=True)


class BareLine:
    """Over aiokafka: a producer, and a consumer of its own for each topic."""

    def __init__(self, servers: str, headers: Sequence[tuple[str, bytes]]) -> None:
        self._servers = servers
        self._headers = list(headers)
        self._topics: Sequence[str] = ()
        self._sends: set[asyncio.Task[Any]] = set()
        self._readers: list[asyncio.Task[None]] = []
        self._clients: list[Any] = []

    async def open(self, topics: Sequence[str], heard: Handle) -> None:
        from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        self._topics = topics
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        await admin.create_topics([NewTopic(topic, PARTITIONS, -1, {}) for topic in topics])
        await admin.close()
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers, acks="all", compression_type="lz4")
        await self._producer.start()
        self._clients.append(self._producer)
        for hop, topic in enumerate(topics):
            consumer = AIOKafkaConsumer(bootstrap_servers=self._servers, enable_auto_commit=False)
            await consumer.start()
            consumer.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
            await consumer.seek_to_end()
            self._clients.append(consumer)
            self._readers.append(asyncio.create_task(self._read(consumer, hop, heard)))

    async def _read(self, consumer: Any, hop: int, heard: Handle) -> None:
        while True:
            fetched = await consumer.getmany(timeout_ms=5000)
            heard(hop, [(record.key, record.value) for records in fetched.values() for record in records])

    def send(self, hop: int, records: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            task = asyncio.create_task(self._producer.send_and_wait(self._topics[hop], value, key, headers=self._headers))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, *self._sends, return_exceptions=True)
        for client in self._clients:
            await client.stop()


async def ping(line: Line, value: bytes, pings: int, conversations: int) -> dict[str, float]:
    """Return rates with `conversations` pings under way, and the latency of one at a time."""
    back: dict[bytes, asyncio.Future[None]] = {}

    def heard(hop: int, records: Sequence[tuple[bytes, bytes]]) -> None:
        if hop + 1 < HOPS:
            line.send(hop + 1, records)
            return
        for key, _ in records:
            back.pop(key).set_result(None)

    async def converse(key: bytes, count: int, latencies: list[float]) -> None:
        for _ in range(count):
            began = time.perf_counter()
            done = back[key] = asyncio.get_running_loop().create_future()
            line.send(0, [(key, value)])
            await done
            latencies.append(time.perf_counter() - began)

    run = uuid.uuid4().hex[:8]
    await line.open([f"bench.{run}.{hop}" for hop in range(HOPS)], heard)
    try:
        await converse(b"warm-up", 20, [])
        latencies: list[float] = []
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(
            *(converse(b"conversation-%04d" % number, pings // conversations, latencies) for number in range(conversations))
        )
        seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        alone: list[float] = []
        lone_cpu = time.process_time()
        await converse(b"alone", 200, alone)
        lone_cpu = time.process_time() - lone_cpu
    finally:
        await line.close()
    return {
        "pings_per_s": round(len(latencies) / seconds),
        "cpu_ms_per_ping": round(cpu_s / len(latencies) * 1000, 3),
        "p50_ms": round(statistics.median(latencies) * 1000, 1),
        "alone_p50_ms": round(statistics.median(alone) * 1000, 2),
        "alone_p99_ms": round(sorted(alone)[197] * 1000, 2),
        "alone_cpu_ms_per_ping": round(lone_cpu / len(alone) * 1000, 3),
    }


async def measure(line: Line, value: bytes, pings: int, conversations: int, name: str) -> dict[str, float]:
    rates = await ping(line, value, pings, conversations)
    print(f"{name:15}", rates, flush=True)
    return rates


async def compare(
    address: str, value: bytes, headers: Sequence[tuple[str, bytes]], pings: int, conversations: int, rounds: int
) -> None:
    """Measure the floor and the bus at `address` in turn; print the best of each, and the ratios."""
    floors, ours = [], []
    for _ in range(rounds):
        floors.append(await measure(BareLine(address.removeprefix("kafka://"), headers), value, pings, conversations, "bare aiokafka:"))
        async with await open_bus(address) as bus:
            ours.append(await measure(BusLine(bus, headers), value, pings, conversations, "the bus:"))
    floor, bus_best = best(floors), best(ours)
    ratio = {name: round(bus_best[name] / floor[name], 2) for name in floor}
    print(json.dumps({"benchmark": "bus_kafka", "floor": floor, "bus": bus_best, "ratio": ratio}))


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: (max if name == "pings_per_s" else min)(each[name] for each in rounds) for name in rounds[0]}


def run(address: str, value: bytes, headers: Sequence[tuple[str, bytes]], pings: int, conversations: int, rounds: int) -> None:
    """Measure, on the loop that roles on Kafka use."""
    run_on_kafka(compare(address, value, headers, pings, conversations, rounds))
