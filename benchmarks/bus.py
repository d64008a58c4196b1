"""How fast the log is, beside the floor that SQLite, or bare aiokafka, sets.

    python benchmarks/bus.py [--records 20000] [--batch 50]
    python benchmarks/bus.py --bus kafka://127.0.0.1:9092 [--pings 4000] [--conversations 200] [--rounds 3]

The second is described in bus_kafka.py. The first, on the embedded log:

Appends batches (one call each, as an engine does) while a consumer in the same process reads them; then
reads everything back from the file; then measures one record at a time. The floor is bare APSW: the same
rows over the same 12 partitions, the same pragmas, the same batches, nothing else. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import apsw
import bus_kafka
from crewline.bus.base import Message
from crewline.bus.sqlite import SQLiteBus, open_bus
from crewline.bus.sqlite.file import connect, encode_headers, insert_sql, records_sql
from crewline.bus.sqlite.writer import CHECKPOINT_BYTES
from crewline.topics import TopicSpec, partition_of

TOPIC = "bench.conversations"
VALUE = b'{"text":"' + b"x" * 500 + b'"}'
HEADERS = (
    ("ce_id", b"0192f3c4-conversation:t1:s1"),
    ("ce_type", b"model.replied"),
    ("ce_source", b"bench"),
    ("ce_subject", b"0192f3c4-conversation"),
    ("ce_time", b"2026-11-25T08:00:00Z"),
    ("ce_specversion", b"1.0"),
    ("ce_correlationid", b"0192f3c4-run"),
    ("ce_causationid", b"0192f3c4-conversation:t1:s0"),
    ("seal", b"s" * 43),
)


def floor(directory: Path, records: int, batch: int) -> dict[str, float]:
    """Bare APSW: rows made in advance."""
    connection = connect(directory / "log.db")
    for partition in range(1, 13):
        connection.execute(records_sql(partition))
    homes = [1 + partition_of(b"conversation-%04d" % number, 12) for number in range(batch)]
    ends = [0] * 13
    uncopied = 0
    wall, cpu = time.perf_counter(), time.process_time()
    headers = encode_headers(HEADERS)
    for start in range(0, records, batch):
        binds: dict[int, list[int | bytes | None]] = {}
        for home in homes:
            binds.setdefault(home, []).extend((ends[home], start, b"conversation-0001", VALUE, headers))
            ends[home] += 1
        connection.execute("BEGIN IMMEDIATE")
        for home, values in binds.items():
            connection.execute(insert_sql(home, len(values) // 5), values)
        connection.execute("COMMIT")
        uncopied += batch * len(VALUE)
        if uncopied > CHECKPOINT_BYTES:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            uncopied = 0
    result = rates(records, time.perf_counter() - wall, time.process_time() - cpu)
    connection.close()
    return result


def rates(records: int, wall_s: float, cpu_s: float) -> dict[str, float]:
    return {"records_per_s": round(records / wall_s), "cpu_us_per_record": round(cpu_s / records * 1e6, 2)}


async def append_and_follow(bus: SQLiteBus, records: int, batch: int, appenders: int) -> dict[str, float]:
    """Some appenders, whose batches a commit takes together, and one consumer, in one process."""
    begins = (await bus.offsets(TOPIC))[1]

    async def from_now(partitions: Sequence[int]) -> Mapping[int, int]:
        return {partition: begins[partition] for partition in partitions}

    async def revoked(partitions: Sequence[int]) -> None:
        pass

    consumer = await bus.consumer(TOPIC, "bench", assigned=from_now, revoked=revoked)
    await consumer.poll(0)
    messages = [Message(TOPIC, b"conversation-%04d" % number, VALUE, HEADERS) for number in range(batch)]

    async def append(calls: int) -> None:
        for _ in range(calls):
            await bus.append(messages)

    async def follow() -> None:
        seen = 0
        while seen < records:
            seen += sum(len(batch.records) for batch in await consumer.poll(1.0))

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(follow(), *(append(records // batch // appenders) for _ in range(appenders)))
    result = rates(records, time.perf_counter() - wall, time.process_time() - cpu)
    await consumer.close()
    return result


async def read_back(bus: SQLiteBus, records: int) -> dict[str, float]:
    """A fresh tail over everything: nothing is in memory."""
    tail = await bus.tail(TOPIC, dict.fromkeys(range(await bus.partitions(TOPIC)), 0))
    wall, cpu = time.perf_counter(), time.process_time()
    seen = 0
    while seen < records:
        seen += sum(len(batch.records) for batch in await tail.poll(1.0))
    return rates(records, time.perf_counter() - wall, time.process_time() - cpu)


async def one_by_one(bus: SQLiteBus, other: SQLiteBus, count: int) -> dict[str, float]:
    """Milliseconds of an append alone, and until a tail on another connection has the record."""
    tail = await other.tail(TOPIC)
    acked, seen = [], []
    for number in range(count):
        start = time.perf_counter()
        poll = asyncio.ensure_future(tail.poll(1.0))
        await bus.append([Message(TOPIC, b"conversation-%04d" % number, VALUE, HEADERS)])
        acked.append(time.perf_counter() - start)
        await poll
        seen.append(time.perf_counter() - start)
    return {
        "append_ms_p50": round(statistics.median(acked) * 1000, 2),
        "append_ms_p99": round(sorted(acked)[int(count * 0.99)] * 1000, 2),
        "other_connection_ms_p50": round(statistics.median(seen) * 1000, 2),
    }


async def main(records: int, batch: int) -> None:
    report: dict[str, object] = {"records": records, "batch": batch}
    for commit in (batch, 4 * batch):
        with tempfile.TemporaryDirectory() as name:
            report[f"floor_{commit}"] = floor(Path(name), records, commit)
        print(f"floor, {commit} a commit:         ", report[f"floor_{commit}"])
    with tempfile.TemporaryDirectory() as name:
        async with await open_bus(Path(name)) as bus:
            await bus.create_topics([TopicSpec(TOPIC)])
            for appenders in (1, 4):
                commit = appenders * batch
                rated = report[f"bus_{commit}"] = await append_and_follow(bus, records, batch, appenders)
                print(f"append, follow, {commit} a commit:", rated)
            async with await open_bus(Path(name)) as other:
                report["read_back"] = await read_back(other, 2 * records)
                print("read back:     ", report["read_back"])
                report["one_by_one"] = await one_by_one(bus, other, 500)
                print("one by one:    ", report["one_by_one"])
    print(json.dumps({"benchmark": "bus", **report}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--bus", help="kafka://HOST:PORT: four hops a ping on this broker instead")
    parser.add_argument("--pings", type=int, default=4_000)
    parser.add_argument("--conversations", type=int, default=200, help="pings under way at once")
    parser.add_argument("--rounds", type=int, default=3, help="of floor and bus; the best of each counts")
    options = parser.parse_args()
    if options.bus:
        bus_kafka.run(options.bus, VALUE, HEADERS, options.pings, options.conversations, options.rounds)
    else:
        asyncio.run(main(options.records, options.batch))
