"""The embedded log when processes are killed, stopped or many, and when the disk is full or damaged.

Run as a program this file is the other process: `python test_sqlite_bus_faults.py append|member DIR ...`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import apsw
import pytest
from crewline import crashpoints
from crewline.bus.base import Message, Record
from crewline.bus.sqlite import SQLiteBus, open_bus
from crewline.bus.sqlite import bus as sqlite_bus
from crewline.bus.sqlite.file import connect
from crewline.errors import BusUnavailable, LogDamaged, UsageError
from crewline.topics import TopicSpec

TOPIC = "demo.conversations"
PARTITIONS = 6
WAIT_S = 20.0
LONG_S = 600.0  # a session that does not end within a test


# --- the other process -------------------------------------------------------------------------


async def child_append(directory: Path, name: str, calls: int) -> None:
    """Append calls of three records to partition 0; say so after each acknowledgement."""
    async with await open_bus(directory) as bus:
        print("ready", flush=True)
        for call in range(calls):
            await bus.append([Message(TOPIC, b"k", f"{name}.{call}.{n}".encode(), partition=0) for n in range(3)])
            print("acked", call, flush=True)


async def child_member(directory: Path, name: str, session_s: float) -> None:
    """Poll as a member of the group; say what is owned whenever it changes."""

    async def assigned(partitions: Sequence[int]) -> Mapping[int, int]:
        return dict.fromkeys(partitions, 0)

    async def revoked(partitions: Sequence[int]) -> None:
        print("revoked", *sorted(partitions), flush=True)

    bus = await open_bus(directory, session_s=session_s)
    consumer = await bus.consumer(TOPIC, "workers", assigned=assigned, revoked=revoked, member=name)
    said = None
    while True:
        await consumer.poll(0.2)
        if consumer.assignment() != said:
            said = consumer.assignment()
            print("owns", *sorted(said), flush=True)


class Child:
    """Another process on the same log, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    @classmethod
    async def start(cls, *arguments: object, crash_at: str = "") -> Child:
        environment = {**os.environ, crashpoints.VARIABLE: crash_at}
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, __file__, *map(str, arguments), stdout=asyncio.subprocess.PIPE, env=environment
            )
        )

    async def hear(self, condition: Callable[[str], bool]) -> str:
        """Return the next line of which `condition` holds."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := (await self.process.stdout.readline()).decode().strip():
                self.lines.append(line)
                if condition(line):
                    return line
        raise AssertionError(f"the child ended; it said {self.lines}")

    async def rest(self) -> list[str]:
        """Wait for its end; return all that it said."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            self.lines += (await self.process.stdout.read()).decode().split("\n")
            await self.process.wait()
        return self.lines

    async def stop(self, directory: Path) -> None:
        """SIGSTOP it, but not within a transaction: a stopped process would keep its lock."""
        lock = connect(directory / "log.db")
        lock.execute("BEGIN IMMEDIATE")
        self.process.send_signal(signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        lock.execute("ROLLBACK")
        lock.close()

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


# --- this process ------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[SQLiteBus]:
    async with await open_bus(tmp_path, session_s=LONG_S) as bus:
        await bus.create_topics([TopicSpec(TOPIC, PARTITIONS)])
        yield bus


@pytest.fixture
async def children() -> AsyncIterator[list[Child]]:
    """Children to be killed at the end of the test, stopped or not."""
    started: list[Child] = []
    yield started
    for child in started:
        if child.process.returncode is None:
            child.process.kill()
        await child.rest()


class Member:
    """A member in this process that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[int, ...]]] = []

    async def join(self, bus: SQLiteBus) -> Member:
        self.consumer = await bus.consumer(
            TOPIC, "workers", assigned=self.assigned, revoked=self.revoked, member="parent"
        )
        return self

    async def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        self.told.append(("assigned", tuple(partitions)))
        return dict.fromkeys(partitions, 0)

    async def revoked(self, partitions: Sequence[int]) -> None:
        self.told.append(("revoked", tuple(partitions)))

    async def owns(self, count: int) -> None:
        """Poll until `count` partitions are owned."""
        async with asyncio.timeout(WAIT_S):
            while len(self.consumer.assignment()) != count:
                await self.consumer.poll(0.2)


async def all_records(bus: SQLiteBus, partition: int = 0) -> list[Record]:
    records: list[Record] = []
    batch = await bus.read(TOPIC, partition, 0)
    while batch.records:
        records += batch.records
        batch = await bus.read(TOPIC, partition, batch.next_offset)
    return records


def owns(count: int) -> Callable[[str], bool]:
    return lambda line: line.startswith("owns") and len(line.split()) == count + 1


# --- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "written_unheard"), [("bus.in_group_commit", 0), ("bus.before_commit", 0), ("bus.after_commit", 1)]
)
async def test_killed_in_a_commit_every_acknowledged_record_is_there_and_no_half_call(
    tmp_path: Path, bus: SQLiteBus, point: str, written_unheard: int
) -> None:
    child = await Child.start("append", tmp_path, "c", 50, crash_at=f"{point}:9")
    acked = [line for line in await child.rest() if line.startswith("acked")]

    assert child.process.returncode == -signal.SIGKILL
    assert len(acked) == 8
    calls = len(acked) + written_unheard
    assert [record.value for record in await all_records(bus)] == [
        f"c.{call}.{n}".encode() for call in range(calls) for n in range(3)
    ]
    [position] = await bus.append([Message(TOPIC, b"k", b"after", partition=0)])
    assert position.offset == calls * 3


async def test_killed_again_and_again_nothing_acknowledged_is_lost(tmp_path: Path, bus: SQLiteBus) -> None:
    acked: list[str] = []
    for life in range(4):
        child = await Child.start("append", tmp_path, life, 10_000)
        await child.hear(lambda line, enough=f"acked {life * 7 + 3}": line == enough)  # type: ignore[misc]
        child.process.kill()
        acked += [f"{life}.{line.split()[1]}.{n}" for line in await child.rest() if line[:5] == "acked" for n in range(3)]

    values = [(record.value or b"").decode() for record in await all_records(bus)]
    assert len(values) == len(set(values))
    assert [value for value in values if value in set(acked)] == acked


async def test_a_killed_members_partitions_are_taken_over_long_before_its_session_ends(
    tmp_path: Path, bus: SQLiteBus, children: list[Child]
) -> None:
    child = await Child.start("member", tmp_path, "child", LONG_S)
    children.append(child)
    await child.hear(owns(PARTITIONS))
    parent = await Member().join(bus)
    await asyncio.gather(parent.owns(3), child.hear(owns(3)))
    child.process.kill()

    await parent.owns(PARTITIONS)
    assert [what for what, _ in parent.told] == ["assigned", "assigned"], "kept partitions were not disturbed"


# --- stopped -----------------------------------------------------------------------------------


async def test_a_stopped_members_partitions_go_at_the_end_of_its_session_and_it_learns_so(
    tmp_path: Path, bus: SQLiteBus, children: list[Child]
) -> None:
    async with await open_bus(tmp_path, session_s=1.0) as own:
        parent = await Member().join(own)
        await parent.owns(PARTITIONS)
        child = await Child.start("member", tmp_path, "child", 1.0)
        children.append(child)
        await asyncio.gather(parent.owns(3), child.hear(owns(3)))
        await child.stop(tmp_path)
        await parent.owns(PARTITIONS)

        child.go_on()
        revoked, _ = await asyncio.gather(child.hear(lambda line: line.startswith("revoked")), parent.owns(3))
        assert len(revoked.split()) == 4
        await child.hear(owns(3))


async def test_a_wheel_of_zombies_always_ends_with_each_partition_owned_once(
    tmp_path: Path, bus: SQLiteBus, children: list[Child]
) -> None:
    async with await open_bus(tmp_path, session_s=0.8) as own:
        parent = await Member().join(own)
        await parent.owns(PARTITIONS)
        for name in ("one", "two"):
            children.append(await Child.start("member", tmp_path, name, 0.8))
        await asyncio.gather(parent.owns(2), *(child.hear(owns(2)) for child in children))
        for turn in range(3):
            stopped, running = children[turn % 2], children[1 - turn % 2]
            await stopped.stop(tmp_path)
            await asyncio.gather(parent.owns(3), running.hear(owns(3)))
            stopped.go_on()
            await asyncio.gather(parent.owns(2), stopped.hear(owns(2)), running.hear(owns(2)))

        owners = [lag.member for lag in await own.lags()]
        assert sorted(map(str, owners)) == ["one", "one", "parent", "parent", "two", "two"]


# --- many --------------------------------------------------------------------------------------


async def test_two_processes_interleave_each_in_its_own_order(
    tmp_path: Path, bus: SQLiteBus, children: list[Child]
) -> None:
    tail = await bus.tail(TOPIC, {0: 0})
    child = await Child.start("append", tmp_path, "child", 100)
    children.append(child)
    await child.hear(lambda line: line == "ready")
    for call in range(100):
        await bus.append([Message(TOPIC, b"k", f"parent.{call}.{n}".encode(), partition=0) for n in range(3)])
    records: list[Record] = []
    async with asyncio.timeout(WAIT_S):
        while len(records) < 600:
            for batch in await tail.poll(1.0):
                records += batch.records

    assert [record.offset for record in records] == list(range(600))
    values = [(record.value or b"").decode() for record in records]
    for name in ("parent", "child"):
        assert [v for v in values if v.startswith(name)] == [f"{name}.{c}.{n}" for c in range(100) for n in range(3)]
    assert all(values[at].rpartition(".")[0] == values[at + 2].rpartition(".")[0] for at in range(0, 600, 3))


async def test_the_bell_alone_wakes_a_reader_in_another_process(
    tmp_path: Path, bus: SQLiteBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_bus, "TICK_S", LONG_S)  # no looking at the file now and then
    tail = await bus.tail(TOPIC)
    child = await Child.start("append", tmp_path, "c", 1)
    batches = await tail.poll(WAIT_S)
    await child.rest()

    assert batches
    assert batches[0].records[0].value == b"c.0.0"


async def test_a_lost_bell_is_made_up_for_by_looking_at_the_file(tmp_path: Path, bus: SQLiteBus) -> None:
    tail = await bus.tail(TOPIC)
    for fifo in (tmp_path / "bells").iterdir():
        fifo.unlink()
    child = await Child.start("append", tmp_path, "c", 1)
    batches = await tail.poll(WAIT_S)
    await child.rest()

    assert batches


async def test_bells_of_the_dead_are_removed_and_ones_own_at_the_end(tmp_path: Path, bus: SQLiteBus) -> None:
    dead = tmp_path / "bells" / "1-dead"
    os.mkfifo(dead)
    os.utime(dead, (0, 0))
    await bus.tail(TOPIC)
    await bus.append([Message(TOPIC, b"k", b"v")])
    await until(lambda: not dead.exists())

    assert [stat.S_ISFIFO(fifo.stat().st_mode) for fifo in (tmp_path / "bells").iterdir()] == [True]
    await bus.close()
    assert list((tmp_path / "bells").iterdir()) == []


# --- the disk ----------------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_appends_work_again_once_there_is_room(bus: SQLiteBus) -> None:
    large = Message(TOPIC, b"k", b"x" * 200_000, partition=0)
    await bus.append([large])
    pages = await bus.change(lambda connection: connection.pragma("page_count"))
    await bus.change(lambda connection: connection.pragma("max_page_count", pages + 20))
    with pytest.raises(BusUnavailable, match=r"log\.db: disk is full; free space"):
        await bus.append([large])

    assert len((await bus.read(TOPIC, 0, 0)).records) == 1
    await bus.change(lambda connection: connection.pragma("max_page_count", 1 << 30))
    [position] = await bus.append([large])
    assert position.offset == 1


async def test_a_torn_wal_gives_back_whole_calls_only(tmp_path: Path, bus: SQLiteBus) -> None:
    for call in range(10):
        await bus.append([Message(TOPIC, b"k", f"{call}.{n}".encode() * 300, partition=0) for n in range(3)])
    size = (tmp_path / "log.db-wal").stat().st_size
    counts = []
    for cut in (size, size - 1, size - 4_096, size // 2, size // 2 - 77, 33, 0):
        copy = tmp_path / f"copy-{cut}"
        copy.mkdir()
        shutil.copy(tmp_path / "log.db", copy)
        (copy / "log.db-wal").write_bytes((tmp_path / "log.db-wal").read_bytes()[:cut])
        async with await open_bus(copy) as recovered:
            await recovered.create_topics([TopicSpec(TOPIC, PARTITIONS)])
            values = [record.value for record in await all_records(recovered)]
            assert values == [f"{c}.{n}".encode() * 300 for c in range(len(values) // 3) for n in range(3)]
            [position] = await recovered.append([Message(TOPIC, b"k", b"after", partition=0)])
            assert position.offset == len(values)
            counts.append(len(values))

    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 30
    assert counts[1] == 27, "the last call is torn, all before it stand"


async def test_damaged_pages_are_said_with_file_and_remedy(tmp_path: Path, bus: SQLiteBus) -> None:
    await bus.append([Message(TOPIC, b"k", b"x" * 100_000)])
    await bus.close()
    whole = (tmp_path / "log.db").read_bytes()
    (tmp_path / "log.db").write_bytes(whole[:4_096] + b"\xa5" * (len(whole) - 4_096))

    with pytest.raises(LogDamaged, match=r"log\.db is damaged .*\.recover"):
        await open_bus(tmp_path)


async def test_a_damaged_record_page_is_said_by_the_read_that_meets_it(tmp_path: Path, bus: SQLiteBus) -> None:
    [position] = await bus.append([Message(TOPIC, b"k", b"needle" * 10_000)])
    await bus.append([Message(TOPIC, b"k", b"fine", partition=(position.partition + 1) % PARTITIONS)])
    await bus.close()
    raw = bytearray((tmp_path / "log.db").read_bytes())
    page = raw.index(b"needleneedle") // 4_096 * 4_096
    raw[page : page + 512] = b"\xa5" * 512
    (tmp_path / "log.db").write_bytes(raw)

    async with await open_bus(tmp_path) as damaged:
        with pytest.raises(LogDamaged, match=r"log\.db is damaged"):
            await damaged.read(*position)
        assert (await damaged.read(TOPIC, (position.partition + 1) % PARTITIONS, 0)).records[0].value == b"fine"


async def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_text("dear diary, " * 100)
    with pytest.raises(LogDamaged, match=r"log\.db is not a log of crewline"):
        await open_bus(tmp_path)
    assert (tmp_path / "log.db").read_text().startswith("dear diary")

    other = tmp_path / "other"
    other.mkdir()
    connection = apsw.Connection(str(other / "log.db"))
    connection.execute("CREATE TABLE recipes(name)")
    connection.close()
    with pytest.raises(LogDamaged, match="no log of crewline"):
        await open_bus(other)


async def test_a_log_of_a_newer_crewline_is_refused(tmp_path: Path, bus: SQLiteBus) -> None:
    await bus.change(lambda connection: connection.pragma("user_version", 99))
    with pytest.raises(UsageError, match="format 99, this crewline knows 1: upgrade"):
        await open_bus(tmp_path)


async def test_a_directory_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the state directory"):
        await open_bus(tmp_path / "file" / "state")


async def test_a_directory_that_cannot_be_written_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chmod(tmp_path, 0o500)
    if os.geteuid() == 0:  # root may write everywhere: then the answer is the one that anybody else gets
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="cannot write"):
        await open_bus(tmp_path)


async def test_a_log_locked_for_too_long_is_said_and_works_again_after(tmp_path: Path, bus: SQLiteBus) -> None:
    await bus.change(lambda connection: connection.set_busy_timeout(20))
    lock = connect(tmp_path / "log.db")
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusUnavailable, match="locked by another process"):
        await bus.append([Message(TOPIC, b"k", b"v", partition=0)])
    lock.execute("ROLLBACK")
    lock.close()

    [position] = await bus.append([Message(TOPIC, b"k", b"v", partition=0)])
    assert position.offset == 0


if __name__ == "__main__":
    what, place, name, number = sys.argv[1:]
    if what == "append":
        asyncio.run(child_append(Path(place), name, int(number)))
    else:
        asyncio.run(child_member(Path(place), name, float(number)))
