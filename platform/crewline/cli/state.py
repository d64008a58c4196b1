"""The log, in the state folder or at Kafka: opened, its crew found, folded, a run looked up by the start of its id."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crewline.cli.output import Output
from crewline.cli.settings import Settings
from crewline.errors import NotFound, UsageError

if TYPE_CHECKING:
    from crewline.bus.base import Bus, Record
    from crewline.client import Client
    from crewline.crews.where import Where
    from crewline.projection import Frame, Projection, TurnSummary

SUFFIX = ".conversations"
LOG_FILE = "log.db"
LISTED_MAX = 10
PROGRESS_AFTER_S = 0.2
TICK_S = 0.5
Keep = Callable[[str], bool]


def user_name() -> str:
    """Return who decides, unless `--by` says otherwise: the name of the operating system's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def place(settings: Settings) -> Where:
    """Return where the log is, for a command that knows no crew file. Raises: UsageError, CrewFileError."""
    from crewline.crews.where import where

    said = None
    if settings.bus_file is not None:
        from crewline.crews.bus_file import load_bus

        beside(settings.bus_file)
        said = load_bus(settings.bus_file)
    return where(state=settings.state, bus=settings.bus_address, keys=settings.keys, said=said)


def beside(file: Path) -> None:
    """Let Python that a file refers to (`token: module:function`) be found beside it."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


@asynccontextmanager
async def open_log(settings: Settings) -> AsyncIterator[Bus]:
    """Open the log. Raises: NotFound if the state folder has none; BusUnavailable if no broker answers."""
    where = place(settings)
    if where.embedded and not (settings.state / LOG_FILE).exists():
        raise NotFound(
            f"there is no log in {settings.state}: no crew has run there yet",
            hint="crewline up crew.yaml; a crew that runs on Kafka is reached with --bus",
        )
    bus = await where.open_bus("crewline.client")
    try:
        yield bus
    finally:
        await bus.close()


async def crews_of(bus: Bus) -> list[str]:
    """Return the crews (their namespaces) whose conversations are in the log."""
    return sorted(name.removesuffix(SUFFIX) for name in await bus.topics() if name.endswith(SUFFIX))


async def crew_of(bus: Bus, settings: Settings) -> str:
    """Return the crew that is meant: the one named, or the only one. Raises: NotFound, UsageError."""
    from crewline.errors import UnknownTopic

    if settings.crew is not None:
        try:
            await bus.partitions(settings.crew + SUFFIX)  # on a large cluster that is less than asking for every topic
            return settings.crew
        except UnknownTopic:
            there = _listed(await crews_of(bus)) or "no crew"
            raise NotFound(f"there is no crew {settings.crew!r} at {bus.address}; there is {there}",
                           hint="crewline topics list") from None
    crews = await crews_of(bus)
    if not crews:
        raise NotFound(f"no crew has run at {bus.address} yet", hint="crewline up crew.yaml")
    if len(crews) > 1:
        raise UsageError(f"several crews share this log: {_listed(crews)}", hint=f"name one: --crew {crews[0]}")
    return crews[0]


def _listed(crews: list[str]) -> str:
    more = len(crews) - LISTED_MAX
    return ", ".join(crews[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[Client]:
    """Open a client of the crew. Raises: NotFound, UsageError, BusUnavailable."""
    from crewline.client import Client

    async with open_log(settings) as bus:
        crew = await crew_of(bus, settings)
        async with Client(bus, crew, keys=keys_folder(settings)) as client:
            yield client


def keys_folder(settings: Settings) -> Path:
    """Return the keys folder of the log. Raises: UsageError, CrewFileError."""
    return place(settings).keys


class Reading:
    """The whole log folded, with the frames kept whose run `keep` says yes to.

    `frames` stand in the order of the log within a partition, and by the broker's time across them.
    """

    def __init__(self, projection: Projection, keep: Keep) -> None:
        self.projection = projection
        self._keep = keep
        self._kept: list[tuple[int, int, int, Frame]] = []
        self._times: dict[int, int] = {}

    def take(self, record: Record) -> Frame | None:
        """Fold one record; return its frame, if it was not seen before."""
        frame = self.projection.take(record)
        # A clock set back must not turn the order of a partition around.
        at_ms = self._times[record.partition] = max(record.timestamp_ms, self._times.get(record.partition, 0))
        if frame is not None and self._keep(frame.run):
            self._kept.append((at_ms, record.partition, record.offset, frame))
        return frame

    @property
    def frames(self) -> list[Frame]:
        return [frame for *_, frame in sorted(self._kept, key=lambda kept: kept[:3])]


def nothing(run: str) -> bool:
    """Keep no frame."""
    return False


async def read_log(client: Client, out: Output, keep: Keep = nothing) -> Reading:
    """Read the crew's conversations to their present end; on a terminal, count the records while it takes long."""
    from crewline.projection import Projection

    bus, topic = client.bus, client.topics.conversations
    begins, ends = await bus.offsets(topic)
    reading = Reading(Projection(client.keyring, topic=topic, partitions=await bus.partitions(topic)), keep)
    progress = Progress(out, sum(ends[partition] - begins[partition] for partition in ends))
    for partition, end in sorted(ends.items()):
        offset = begins[partition]
        while offset < end:
            batch = await bus.read(topic, partition, offset, records_max=2_000)
            for record in batch.records:
                if record.offset < end:
                    reading.take(record)
            offset = max(batch.next_offset, offset + 1)
            progress.add(len(batch.records))
    progress.clear()
    return reading


class Progress:
    """`Reading 1,204 of 8,310 records`, on a terminal, once it takes long."""

    def __init__(self, out: Output, total: int) -> None:
        self._lively = out.settings.lively(sys.stderr) and not out.settings.quiet
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._drawn = False

    def add(self, records: int) -> None:
        self._done += records
        if self._lively and time.monotonic() - self._began > PROGRESS_AFTER_S:
            sys.stderr.write(f"\r\x1b[2Kreading {self._done:,} of {self._total:,} records")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def find_run(projection: Projection, prefix: str) -> TurnSummary:
    """Return the first turn of the run whose id starts so (`last`: the newest). Raises: NotFound, UsageError."""
    tops = [turn for turn in projection.turns.values() if not turn.delegated]
    if prefix == "last":
        if not tops:
            raise NotFound("there is no run yet", hint='crewline run crew.yaml "hello"')
        return max(tops, key=lambda turn: turn.started_ms)
    found = [turn for turn in tops if turn.run == prefix] or [turn for turn in tops if turn.run.startswith(prefix)]
    if not found:
        waiting = [intent for _, intent in projection.queued() if intent.startswith(prefix)]
        if waiting:
            raise NotFound(f"run {waiting[0]} waits for its turn: nobody has taken it up yet", hint="crewline up crew.yaml")
        raise NotFound(f"no run has an id that starts with {prefix!r}", hint="crewline runs list")
    if len({turn.run for turn in found}) > 1:
        ids = ", ".join(sorted(turn.run for turn in found)[:5])
        raise UsageError(f"{prefix!r} fits {len(found)} runs: {ids}", hint="give more characters of the id")
    return found[0]


async def frames_of(client: Client, out: Output, prefix: str) -> tuple[TurnSummary, list[Frame], Reading]:
    """Return a run by the start of its id, its frames in order, and the log read. Raises: NotFound, UsageError."""
    run = prefix if prefix != "last" else find_run((await read_log(client, out)).projection, prefix).run
    reading = await read_log(client, out, lambda each: each.startswith(run))
    turn = find_run(reading.projection, run)
    return turn, [frame for frame in reading.frames if frame.run == turn.run], reading


async def follow_run(client: Client, out: Output, prefix: str) -> AsyncIterator[Frame | None]:
    """Yield a run's frames from its beginning on, for ever; None now and then while nothing comes.

    Raises: NotFound, UsageError.
    """
    turn, frames, reading = await frames_of(client, out, prefix)
    for frame in frames:
        yield frame
    tail = await client.bus.tail(client.topics.conversations, _starts(reading.projection, await _begins(client)))
    try:
        while True:
            batches = await tail.poll(TICK_S)
            if not batches:
                yield None
            for batch in batches:
                for record in batch.records:
                    seen = reading.take(record)
                    if seen is not None and seen.run == turn.run:
                        yield seen
    finally:
        await tail.close()


async def _begins(client: Client) -> Mapping[int, int]:
    begins, _ = await client.bus.offsets(client.topics.conversations)
    return begins


def _starts(projection: Projection, begins: Mapping[int, int]) -> dict[int, int]:
    return {partition: max(begin, projection.next.get(partition, 0)) for partition, begin in begins.items()}
