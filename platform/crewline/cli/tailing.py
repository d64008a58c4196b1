"""Records of a topic, decoded and printed: what is there, and what comes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from crewline.bus.base import Bus, Record
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings
    from crewline.projection import Frame
    from crewline.records import Reader

BATCH = 500


class Wanted(NamedTuple):
    """Which records to print; patterns as in a shell (`call.*`)."""

    type: str | None = None
    agent: str | None = None
    key: str | None = None

    def fits(self, frame: Frame) -> bool:
        asked = ((self.type, frame.type), (self.agent, frame.agent), (self.key, frame.conversation))
        return all(pattern is None or fnmatchcase(value, pattern) for pattern, value in asked)


async def tail_topic(
    settings: Settings, out: Output, topic: str, follow: bool, start: str | None, limit: int, wanted: Wanted
) -> None:
    """Print the records that are wanted; `start` None: the newest `limit`. With `follow`, until Ctrl-C.

    Raises: NotFound, UsageError.
    """
    from crewline.cli.state import open_log

    async with open_log(settings) as bus:
        topic = await topic_of(bus, settings, topic)
        reader = await _reader(bus, settings, topic)
        begins, ends = await bus.offsets(topic)
        since_ms, starts = _starts(start, begins, ends)
        frames, place = await _read(bus, topic, starts, ends, reader, since_ms, wanted)
        shown = frames if start is not None else frames[-limit:]
        for frame in shown:
            _print(frame, out)
        if not shown and not follow:
            out.say(f"no record of {topic} fits", tone="dim")
        if follow:
            await _follow(bus, topic, place, reader, wanted, out)
    if settings.json:
        out.document({"type": "result", "topic": topic, "records": len(shown)})


async def topic_of(bus: Bus, settings: Settings, name: str) -> str:
    """Return the topic that is meant: its whole name, or the part after the crew's. Raises: NotFound."""
    from crewline.cli.state import crew_of
    from crewline.errors import NotFound

    topics = await bus.topics()
    if name in topics:
        return name
    whole = f"{await crew_of(bus, settings)}.{name}"
    if whole in topics:
        return whole
    raise NotFound(f"there is no topic {name!r}; there is {', '.join(sorted(topics)) or 'none'}", hint="crewline topics list")


async def _reader(bus: Bus, settings: Settings, topic: str) -> Reader | None:
    """Return what checks the records; None without keys (then types and data are shown as they claim to be)."""
    from crewline.cli.state import keys_folder
    from crewline.errors import UsageError
    from crewline.records import Reader
    from crewline.seal import load_keys

    with suppress(UsageError):
        return Reader(load_keys(keys_folder(settings)), partitions=await bus.partitions(topic))
    return None


def _starts(
    start: str | None, begins: Mapping[int, int], ends: Mapping[int, int]
) -> tuple[int, dict[int, int]]:
    """Return (Unix ms, offset by partition) to start at."""
    from crewline.cli.text import moment_of

    if start is None or start == "start":
        return 0, dict(begins)
    if start == "end":
        return 0, dict(ends)
    if re.fullmatch(r"\d+", start):
        return 0, {partition: min(max(begin, int(start)), ends[partition]) for partition, begin in begins.items()}
    return moment_of(start, "--from"), dict(begins)


async def _read(
    bus: Bus, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], reader: Reader | None, since_ms: int,
    wanted: Wanted,
) -> tuple[list[Frame], dict[int, int]]:
    """Return what there is, in order of time, and where each partition goes on."""
    found: list[tuple[int, int, int, Frame]] = []
    for partition, offset in starts.items():
        while offset < ends[partition]:
            batch = await bus.read(topic, partition, offset, records_max=BATCH)
            for record in batch.records:
                if record.offset < ends[partition] and record.timestamp_ms >= since_ms:
                    frame = _frame(record, reader)
                    if wanted.fits(frame):
                        found.append((record.timestamp_ms, partition, record.offset, frame))
            offset = max(batch.next_offset, offset + 1)
    return [frame for *_, frame in sorted(found, key=lambda each: each[:3])], dict(ends)


async def _follow(
    bus: Bus, topic: str, starts: Mapping[int, int], reader: Reader | None, wanted: Wanted, out: Output
) -> None:
    tail = await bus.tail(topic, starts)
    try:
        while True:
            for batch in await tail.poll(5.0):
                for record in batch.records:
                    frame = _frame(record, reader)
                    if wanted.fits(frame):
                        _print(frame, out)
    finally:
        await tail.close()


def _frame(record: Record, reader: Reader | None) -> Frame:
    from crewline import events as ev
    from crewline.errors import CrewlineError, RecordInvalid
    from crewline.projection import frame_of

    try:
        event = ev.decode(record.headers, record.value).event if reader is None else reader.read(record).event
    except RecordInvalid:
        return frame_of(record, stands=None if record.value is None else False)
    except CrewlineError:
        return frame_of(record, stands=None)
    return frame_of(record, stands=None, event=event)


def _print(frame: Frame, out: Output) -> None:
    from crewline.cli.text import clean, clock, cut, paint

    if out.settings.json:
        out.document(frame.as_json())
        return
    data = frame.data.decode("utf-8", "replace") if frame.data else "(tombstone)"
    who = f" {frame.agent}" if frame.agent else ""
    mark = "  [does not count]" if frame.stands is False else ""
    rest = clean(f"{frame.type or '-'} {frame.conversation}{who}{mark} {data}", one_line=True)
    line = f"{frame.id:>9}  {clock(frame.at_ms)}  {rest}"
    if sys.stdout.isatty():
        import shutil

        line = cut(line, shutil.get_terminal_size().columns)
    out.put(paint(line, "red" if frame.stands is False else "", on=out.color_out))
