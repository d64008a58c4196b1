"""A broker in memory, and what a network does to those who talk to it.

    Broker     the log itself, consumer groups, and the faults
    SimBus     one process's connection: a `Bus` (crewline.bus.base)

What may happen: an append takes its time; is refused; stands although its sender is told otherwise; stands
twice; stands in part; stands long after its sender gave up. Of one sender, records of one partition keep
their order; anything else is delivered in any order. Partitions change hands at any time, and whoever had
them learns of it at its next poll: until then it is a zombie, and nobody stops it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from crewline.bus.base import Assigned, Batch, GroupLag, Message, Position, Record, Revoked, Tail, TopicInfo
from crewline.errors import BusUnavailable, OffsetOutOfRange, UnknownTopic
from crewline.events import header
from crewline.topics import TopicSpec, partition_of
from virtual_loop import Gone, Process, VirtualLoop

RACED = ("call.started", "call.refused", "model.replied", "call.judged")
EPOCH_MS = 1_700_000_000_000


@dataclass
class BusFaults:
    """How likely each fate of an append is, and how slow the network."""

    on: bool = True
    refused: float = 0.02
    ack_lost: float = 0.03
    twice: float = 0.02
    partly: float = 0.02
    late: float = 0.01
    read_fails: float = 0.01
    slow: float = 0.03
    slow_s: float = 12.0
    partial_fetch: float = 0.3
    # Whoever loses a partition may go on reading it for a while, and so be an owner like the new one.
    blind: bool = False


@dataclass(eq=False)
class _Group:
    topic: str
    members: list[SimConsumer] = field(default_factory=list)
    owners: dict[int, SimConsumer] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    version: int = 0  # grows whenever partitions are handed out anew


class Broker:
    """The log. `writers` says which process wrote each record (None: somebody outside)."""

    def __init__(self, loop: VirtualLoop, rng: Random, faults: BusFaults) -> None:
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.logs: dict[str, list[list[Record]]] = {}
        self.specs: dict[str, TopicSpec] = {}
        self.writers: dict[tuple[str, int, int], Process | None] = {}
        self.groups: dict[tuple[str, str], _Group] = {}
        self.observers: list[Any] = []
        self.consumers: list[SimConsumer] = []
        self._partitions: dict[tuple[bytes, int], int] = {}

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + int(self.loop.time() * 1000)

    def create(self, spec: TopicSpec) -> None:
        self.specs[spec.name] = spec
        self.logs[spec.name] = [[] for _ in range(spec.partitions)]

    def log(self, topic: str) -> list[list[Record]]:
        try:
            return self.logs[topic]
        except KeyError:
            raise UnknownTopic(f"there is no topic {topic}") from None

    def partition(self, message: Message) -> int:
        if message.partition is not None:
            return message.partition
        count = len(self.log(message.topic))
        key = (message.key, count)
        if key not in self._partitions:
            self._partitions[key] = partition_of(message.key, count)
        return self._partitions[key]

    def commit(self, message: Message, writer: Process | None) -> Position:
        """Write a record. It is durable, and every consumer may see it from now on."""
        partition = self.partition(message)
        log = self.log(message.topic)[partition]
        record = Record(
            message.topic, partition, len(log), self.now_ms, message.key, message.value, message.headers
        )
        log.append(record)
        self.writers[message.topic, partition, record.offset] = writer
        for group in self.groups.values():
            if group.topic == message.topic:
                for member in group.members:
                    if partition in member.owned:
                        member.wake()
        for observer in self.observers:
            observer(record)
        return Position(message.topic, partition, record.offset)

    # --- groups --------------------------------------------------------------------------------

    def join(self, group: _Group, member: SimConsumer) -> None:
        group.members.append(member)
        self.rebalance(group)

    def leave(self, group: _Group, member: SimConsumer) -> None:
        if member in group.members:
            group.members.remove(member)
            self.rebalance(group)

    def rebalance(self, group: _Group, *, moving: bool = False) -> None:
        """Hand the partitions out anew (`moving`: to others if there are any). Owners learn of it at their next poll."""
        group.version += 1
        members = list(group.members)
        before = dict(group.owners)
        group.owners.clear()
        if members:
            for partition in range(len(self.logs[group.topic])):
                kept = before.get(partition)
                keep = kept in members and not moving and self.rng.random() < 0.5
                others = [member for member in members if member is not kept] if moving else members
                group.owners[partition] = kept if keep and kept is not None else self.rng.choice(others or members)
        for member in members:
            if self.faults.blind and any(group.owners[partition] is not member for partition in member.owned):
                blind_s = self.rng.choice([0.0, 0.5, 10.0, 60.0])
                member.blind_until = self.loop.time() + blind_s
                self.loop.at(blind_s, member.wake)
            member.wake()

    def wake_all(self) -> None:
        """Have everybody find out what is theirs."""
        for consumer in self.consumers:
            consumer.wake()

    def expel(self, process: Process) -> None:
        """Its session is over: the partitions go to others, and it does not know."""
        for group in self.groups.values():
            for member in [member for member in group.members if member.process is process]:
                self.leave(group, member)
                member.wake()  # once it runs again it finds out, and joins anew


class SimConsumer:
    """One member of a group, in one process.

    `assigned_end` is each partition's end when it was given to this member; `position` what was delivered;
    `settled` what was delivered before the last poll began, so that it has been folded.
    """

    def __init__(self, bus: SimBus, group: _Group, assigned: Assigned, revoked: Revoked) -> None:
        self.bus = bus
        self.process = bus.process
        self.owned: dict[int, None] = {}
        self.position: dict[int, int] = {}
        self.settled: dict[int, int] = {}
        self.assigned_end: dict[int, int] = {}
        self._broker = bus.broker
        self._group = group
        self._assigned = assigned
        self._revoked = revoked
        self._closed = False
        self.blind_until = 0.0
        self._learnt = -1
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False

    def wake(self) -> None:
        """There is something to learn or to read: a waiting poll hears of it after a while."""
        if self._waiter is not None and not self._woken:
            self._woken = True
            self._broker.loop.at(self._broker.rng.uniform(0.001, 0.02), self._rouse, self._waiter)

    def _rouse(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        self.bus.check()
        if self._closed:
            return []
        self.settled = dict(self.position)
        await self._learn()
        batches = self._fetch(records_max)
        if not batches:
            await self._wait(timeout_s)
            self.bus.check()
            await self._learn()
            batches = self._fetch(records_max)
        elif self._broker.rng.random() < 0.5:
            await asyncio.sleep(0)
        self.bus.fail_a_read()
        self.settled = dict(self.position)
        for batch in batches:
            self.position[batch.partition] = batch.next_offset
        return batches

    async def _wait(self, timeout_s: float) -> None:
        self._waiter = waiter = self._broker.loop.create_future()
        self._woken = False
        timer = self._broker.loop.call_later(timeout_s, self._rouse, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def _learn(self) -> None:
        """Find out what was taken away and what was given since the last poll, until nothing changes any more."""
        while await self._learn_once():
            pass

    async def _learn_once(self) -> bool:
        group = self._group
        if self._learnt == group.version:
            return False
        if self._broker.faults.blind and self._broker.loop.time() < self.blind_until:
            return False
        if self not in group.members:
            await self._give_up(list(self.owned))
            self._broker.join(group, self)
        version = group.version
        mine = [partition for partition, owner in group.owners.items() if owner is self]
        if lost := [partition for partition in self.owned if partition not in mine]:
            await self._give_up(lost)
        if gained := [partition for partition in mine if partition not in self.owned]:
            ends = {partition: len(self._broker.logs[group.topic][partition]) for partition in gained}
            starts = await self._assigned(gained)
            for partition in gained:
                self.owned[partition] = None
                self.position[partition] = starts[partition]
                self.assigned_end[partition] = ends[partition]
        self._learnt = version
        return True

    async def _give_up(self, partitions: list[int]) -> None:
        for partition in partitions:
            del self.owned[partition]
            del self.position[partition]
            self.assigned_end.pop(partition, None)
        if partitions:
            await self._revoked(partitions)

    def _fetch(self, records_max: int) -> list[Batch]:
        faults, rng = self._broker.faults, self._broker.rng
        logs, position = self._broker.logs[self._group.topic], self.position
        partitions = [partition for partition in self.owned if len(logs[partition]) != position[partition]]
        if not partitions:
            return []
        if len(partitions) > 1:
            rng.shuffle(partitions)
        batches: list[Batch] = []
        for partition in partitions:
            log = logs[partition]
            start = position[partition]
            if start > len(log):
                raise OffsetOutOfRange(f"{self._group.topic} partition {partition} ends at {len(log)}, not {start}")
            end = min(len(log), start + records_max)
            if end > start and faults.on and rng.random() < faults.partial_fetch:
                if batches and rng.random() < 0.5:
                    continue
                end = rng.randint(start + 1, end)
            if end > start:
                batches.append(Batch(self._group.topic, partition, log[start:end], end, len(log)))
        return batches

    def assignment(self) -> frozenset[int]:
        return frozenset(self.owned)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        await self.bus.network()
        self._group.committed.update(offsets)

    async def close(self) -> None:
        self.bus.check()
        if not self._closed:
            self._closed = True
            await self._give_up(list(self.owned))
            self._broker.leave(self._group, self)


@dataclass(eq=False)
class _Call:
    """One call of `append`: how many of its records are still under way, and where they stand."""

    done: asyncio.Future[list[Position]]
    positions: list[Position | None]
    left: int
    error: Exception | None = None


class SimBus:
    """One process's connection to the broker."""

    address = "sim:"

    def __init__(self, broker: Broker, process: Process) -> None:
        self.broker = broker
        self.process = process
        self.consumers: list[SimConsumer] = []
        self._queues: dict[tuple[str, int], deque[tuple[_Call, int, Message, str]]] = {}
        self._due: dict[tuple[str, int], float] = {}

    def check(self) -> None:
        if not self.process.alive or self.broker.loop.clearing:
            raise Gone

    def fail_a_read(self) -> None:
        faults = self.broker.faults
        if faults.on and self.broker.rng.random() < faults.read_fails:
            raise BusUnavailable("the broker did not answer in time")

    async def network(self) -> None:
        self.check()
        if self.broker.rng.random() < 0.3:
            await asyncio.sleep(self.broker.rng.uniform(0.0005, 0.02))
            self.check()
        self.fail_a_read()

    # --- appending -----------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> Awaitable[list[Position]]:
        self.check()
        broker, loop = self.broker, self.broker.loop
        for message in messages:
            broker.log(message.topic)  # UnknownTopic: nothing is written
        call = _Call(loop.create_future(), [None] * len(messages), len(messages))
        if not messages:
            call.done.set_result([])
        fate = self._fate()
        for index, message in enumerate(messages):
            where = (message.topic, broker.partition(message))
            own = fate
            if fate == "partly":
                own = broker.rng.choice(["ack_lost", "refused"])
            if own == "late":
                loop.at(broker.rng.uniform(0.1, 40.0), self._write_late, message)
                own = "refused"
            due = max(self._due.get(where, 0.0), loop.time() + self._delay_s(message))
            self._due[where] = due
            self._queues.setdefault(where, deque()).append((call, index, message, own))
            loop.at(due - loop.time(), self._arrive, where)
        return call.done

    def _fate(self) -> str:
        faults = self.broker.faults
        if not faults.on:
            return "ok"
        roll = self.broker.rng.random()
        for name in ("refused", "ack_lost", "twice", "partly", "late"):
            roll -= getattr(faults, name)
            if roll < 0:
                return name
        return "ok"

    def _delay_s(self, message: Message) -> float:
        faults, rng = self.broker.faults, self.broker.rng
        if faults.blind and rng.random() < 0.4 and header(message.headers, "ce_type") in RACED:
            return rng.choice([0.05, 0.5, 4.0, 6.0])  # long enough for the other owner to write the same
        if faults.on and rng.random() < faults.slow:
            return rng.uniform(0.1, faults.slow_s)
        return rng.uniform(0.001, 0.01)

    def _arrive(self, where: tuple[str, int]) -> None:
        """The next record of this sender for this partition is at the broker."""
        call, index, message, fate = self._queues[where].popleft()
        rng = self.broker.rng
        lost = not self.process.alive and rng.random() < 0.5  # it never left the process
        if fate != "refused" and not lost:
            call.positions[index] = self.broker.commit(message, self.process)
            if fate == "twice":
                self.broker.loop.at(rng.choice([0.0, 0.001, 3.0]), self._write_late, message)
        if fate in ("refused", "ack_lost"):
            call.error = BusUnavailable("the broker did not answer in time")
        call.left -= 1
        if call.left == 0:
            self.broker.loop.at(rng.choice([0.0005, 0.002, 0.005, 0.08]), self._acknowledge, call)

    def _write_late(self, message: Message) -> None:
        self.broker.commit(message, self.process)

    def _acknowledge(self, call: _Call) -> None:
        if call.done.done():
            return
        if call.error is not None:
            call.done.set_exception(call.error)
        else:
            call.done.set_result([position for position in call.positions if position is not None])

    # --- the rest of the protocol --------------------------------------------------------------

    async def read(self, topic: str, partition: int, start: int, *, records_max: int = 500) -> Batch:
        await self.network()
        log = self.broker.log(topic)[partition]
        if start > len(log) or start < 0:
            raise OffsetOutOfRange(f"{topic} partition {partition} ends at {len(log)}, not {start}")
        records = log[start : start + records_max]
        return Batch(topic, partition, records, start + len(records), len(log))

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        await self.network()
        log = self.broker.log(topic)
        return dict.fromkeys(range(len(log)), 0), {partition: len(each) for partition, each in enumerate(log)}

    async def partitions(self, topic: str) -> int:
        await self.network()
        return len(self.broker.log(topic))

    async def consumer(
        self, topic: str, group: str, *, assigned: Assigned, revoked: Revoked, member: str = ""
    ) -> SimConsumer:
        self.check()
        self.broker.log(topic)
        joined = self.broker.groups.setdefault((topic, group), _Group(topic))
        consumer = SimConsumer(self, joined, assigned, revoked)
        self.consumers.append(consumer)
        self.broker.consumers.append(consumer)
        self.broker.join(joined, consumer)
        return consumer

    def consumer_of(self, topic: str, group: str) -> SimConsumer | None:
        """Return this process's member of a group, if it has one."""
        joined = self.broker.groups.get((topic, group))
        return next((each for each in self.consumers if each._group is joined), None)

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        raise NotImplementedError

    async def topics(self) -> dict[str, TopicInfo]:
        raise NotImplementedError

    async def tail(self, topic: str, starts: Mapping[int, int] | None = None) -> Tail:
        raise NotImplementedError

    async def lags(self) -> list[GroupLag]:
        raise NotImplementedError

    async def close(self) -> None: ...

