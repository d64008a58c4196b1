"""A tool pool under the real engine: a log in memory (or the embedded one), and a guardrail's pen."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crewline.bus.base import Assigned, Batch, Message, Position, Record, Revoked
from crewline.engine import Engine, EngineOptions
from crewline.errors import BusUnavailable
from crewline.events import (
    CallCompleted,
    CallJudged,
    CallRequested,
    CallRevoked,
    Event,
    SealedVerdict,
    decode,
    encode,
)
from crewline.records import Reader, Scribe
from crewline.seal import Keyring, key_id
from crewline.testing import until
from crewline.topics import CrewTopics, partition_of
from crewline_memory.base import Mark, Snapshot
from crewline_tools.functions import ToolFunction
from crewline_tools.pool import PoolOptions, ToolPool
from msgspec.structs import replace
from nacl.signing import SigningKey

GUARD_SEED = b"g" * 32
PUBLIC = bytes(SigningKey(GUARD_SEED).verify_key)
KEYRING = Keyring(deployment=b"d" * 32, guard=GUARD_SEED, public={f"guard-{key_id(PUBLIC)}": PUBLIC})
TOPICS = CrewTopics("demo")
TOOLS_TOPIC = TOPICS.tools("main")
PARTITIONS = 2
OPTIONS = PoolOptions(retry_s_min=0.001, close_s=5.0)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryBus:
    """As much of a bus as a role needs. Every consumer owns every partition: two of them are a zombie and its heir.

    `behind_ms` is how far the broker's clock is behind ours (set it back to 0, and time has passed). `fail_appends` is how many calls of `append`
    fail, after having written (their answer was lost).
    """

    address = "memory:"

    def __init__(self) -> None:
        self.log: dict[tuple[str, int], list[Record]] = {}
        self.behind_ms = 0
        self.fail_appends = 0
        self.grown = asyncio.Event()

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        positions = []
        for message in messages:
            partition = partition_of(message.key, PARTITIONS)
            records = self.log.setdefault((message.topic, partition), [])
            positions.append(Position(message.topic, partition, len(records)))
            records.append(Record(message.topic, partition, len(records), now_ms() - self.behind_ms, message.key,
                                  message.value, message.headers))
        self.grown.set()
        await asyncio.sleep(0)
        if self.fail_appends:
            self.fail_appends -= 1
            raise BusUnavailable("the answer was lost")
        return positions

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        return (dict.fromkeys(range(PARTITIONS), 0), {p: len(self.log.get((topic, p), [])) for p in range(PARTITIONS)})

    async def read(self, topic: str, partition: int, start: int, *, records_max: int = 500) -> Batch:
        records = self.log.get((topic, partition), [])
        found = records[start : start + records_max]
        return Batch(topic, partition, found, start + len(found), len(records))

    async def consumer(
        self, topic: str, group: str, *, assigned: Assigned, revoked: Revoked, member: str = ""
    ) -> MemoryConsumer:
        return MemoryConsumer(self, topic, assigned, revoked)


class MemoryConsumer:
    def __init__(self, bus: MemoryBus, topic: str, assigned: Assigned, revoked: Revoked) -> None:
        self._bus, self._topic, self._assigned, self._revoked = bus, topic, assigned, revoked
        self._next: dict[int, int] | None = None
        self._closed = False

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        if self._next is None:
            self._next = dict(await self._assigned(range(PARTITIONS)))
        for last in (False, True):
            found = [await self._bus.read(self._topic, p, at) for p, at in self._next.items()]
            batches = [batch for batch in found if batch.records]
            for batch in batches:
                self._next[batch.partition] = batch.next_offset
            if batches or last or self._closed:
                return batches
            self._bus.grown.clear()
            try:
                await asyncio.wait_for(self._bus.grown.wait(), min(timeout_s, 0.02))
            except TimeoutError:
                return []
        return []

    def assignment(self) -> frozenset[int]:
        return frozenset(self._next or ())

    async def commit(self, offsets: Mapping[int, int]) -> None: ...

    async def close(self) -> None:
        self._closed = True
        await self._revoked(sorted(self._next or ()))


class NoStore:
    """Forgets everything: each start folds the whole log."""

    async def mark(self, role: str, partition: int) -> Mark | None:
        return None

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        return {}

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        return {}

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        return True

    async def drop(self, role: str, partition: int) -> None: ...

    async def close(self) -> None: ...


class Cable:
    """A bus as one process sees it. Once `cut`, nothing it appends arrives, and it never hears so."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def append(self, messages: Sequence[Message]) -> Awaitable[list[Position]]:
        return asyncio.get_running_loop().create_future() if self.cut else self._bus.append(messages)


@dataclass
class Process:
    """One process of the pool."""

    pool: ToolPool
    engine: Engine[Any]
    cable: Cable
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.engine.stop()
        await self.task
        await self.pool.close()

    async def kill(self) -> None:
        """End it as SIGKILL would, as far as others can see: nothing more of it reaches the log."""
        self.cable.cut = True
        self.engine.stop()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class PoolBench:
    """Requests calls as worker and guardrail would, and reads what the log then says."""

    bus: Any
    tools: dict[str, ToolFunction] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    scribe: Scribe = field(default_factory=lambda: Scribe(KEYRING, source="demo", now_ms=now_ms))

    async def start(
        self, *, options: PoolOptions = OPTIONS, group: str = "g",
        uptime_s: Callable[[], float] = time.monotonic, clock_ms: Callable[[], int] = now_ms,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> Process:
        cable = Cable(self.bus)
        held = KEYRING.for_pool("main")
        pool = ToolPool(
            "main", self.tools, topics=TOPICS, scribe=Scribe(held, source="demo", now_ms=now_ms, seal_as="pool/main"),
            keyring=held, bus=cable, clock_ms=clock_ms, options=options, uptime_s=uptime_s, sleep=sleep,
        )
        engine: Engine[Any] = Engine(
            pool, bus=cable, store=NoStore(), reader=Reader(held, partitions=PARTITIONS), group=group,  # type: ignore[arg-type]
            clock_ms=clock_ms, options=EngineOptions(retry_s_min=0.001, retry_s_max=0.05, poll_s=0.2),
        )
        process = Process(pool, engine, cable, asyncio.create_task(engine.run()))
        self.processes.append(process)
        await engine.ready()
        return process

    def request(
        self, tool: str, arguments: str = "{}", /, *, key: str = "c1", step: int = 1, k: int = 0, execution: int = 1,
        asked: Mapping[str, Any] | None = None, **judged: Any,
    ) -> Message:
        """Return a request with a verdict that holds; `judged` and `asked` change the two."""
        call = f"{key}:t1:s{step}:c{k}"
        spec = self.tools[tool].spec
        verdict = CallJudged(
            call=call, judgement=execution, execution=execution, conversation=key, agent="desk", tool=tool, pool="main",
            safe=spec.safe, effect=spec.effect, decision="allow", args_sha256=hashlib.sha256(arguments.encode()).hexdigest(), epoch=1,
            catalogue=spec.digest(), issued_ms=now_ms(), expires_ms=now_ms() + 60_000,
        )
        value = encode(replace(verdict, **judged))
        id = f"{call}:j{execution}"
        seal = KEYRING.sign("guard", TOPICS.conversations, key.encode(), CallJudged.TYPE, id, value)
        sealed = SealedVerdict(TOPICS.conversations, key, id, value.decode(), seal)
        request = CallRequested(call, execution, tool, arguments, sealed, "desk", "r1", user="u1")
        return self.message(key, replace(request, **(asked or {})), f"{call}:x{execution}:requested")

    def revoke(self, *, key: str = "c1", step: int = 1, k: int = 0) -> Message:
        call = f"{key}:t1:s{step}:c{k}"
        return self.message(key, CallRevoked(call, 1, "the turn is ending"), f"{call}:x1:revoked")

    def message(self, key: str, event: Event, id: str) -> Message:
        return self.scribe.message(TOOLS_TOPIC, key, event, id=id, run="r1", seal_as="pool/main")

    async def records(self, topic: str, key: str | None = None) -> list[tuple[str, Any]]:
        """Return (ce_id, event) of a topic's records, or of those of one key."""
        begins, ends = await self.bus.offsets(topic)
        found = []
        for partition, end in ends.items():
            at = begins[partition]
            while at < end:
                batch = await self.bus.read(topic, partition, at)
                for record in batch.records:
                    if key is None or record.key == key.encode():
                        envelope = decode(record.headers, record.value)
                        found.append((envelope.id, envelope.event))
                at = batch.next_offset
        return found

    async def told(self, *, count: int = 1, key: str | None = None) -> list[tuple[str, CallCompleted]]:
        """Wait until the conversations were told `count` different things; return the first of each id."""

        async def enough() -> list[tuple[str, CallCompleted]]:
            first: dict[str, CallCompleted] = {}
            for id, event in await self.records(TOPICS.conversations, key):
                first.setdefault(id, event)
            return list(first.items()) if len(first) >= count else []

        result: list[tuple[str, CallCompleted]] = await until(enough)
        return result

    async def outcome(self, request: Message) -> tuple[str, CallCompleted]:
        """Append a request; return the first thing its conversation is told."""
        await self.bus.append([request])
        return (await self.told(key=request.key.decode()))[0]

    async def kinds(self, key: str | None = None) -> list[str]:
        """Return the types on the pool's topic, in order."""
        return [event.TYPE for _, event in await self.records(TOOLS_TOPIC, key)]
