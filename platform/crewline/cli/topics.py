"""`crewline topics`: the log itself. Topics, their records, how far each group is behind."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.bus.base import Bus, Record
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings
    from crewline.projection import Frame
    from crewline.records import Reader

app = new_app("The log: topics, records, lag. Reads only.")

BATCH = 500


@app.command("list")
def list_topics(context: typer.Context) -> None:
    """List the topics.

    Example: crewline topics list
    """
    asyncio.run(_list(globals_.of(context)))


async def _list(settings: Settings) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_log
    from crewline.cli.text import duration, size

    out = Output(settings)
    async with open_log(settings) as bus:
        topics = await bus.topics()
    if settings.json:
        out.document({"topics": [
            {"name": name, "partitions": info.spec.partitions, "compacted": info.spec.compacted,
             "retention_s": info.spec.retention_s, "records": sum(info.ends.values()) - sum(info.begins.values()),
             "bytes": info.bytes, "begins": {str(p): at for p, at in info.begins.items()},
             "ends": {str(p): at for p, at in info.ends.items()}}
            for name, info in sorted(topics.items())
        ]})
        return
    if not topics:
        out.say("the log has no topics yet: crewline up crew.yaml")
        return
    rows = []
    for name, info in sorted(topics.items()):
        kept = "newest of each key" if info.spec.compacted else (
            "whole" if info.spec.retention_s is None else duration(info.spec.retention_s)
        )
        records = sum(info.ends.values()) - sum(info.begins.values())
        rows.append([name, str(info.spec.partitions), f"{records:,}", size(info.bytes), kept])
    out.table(("topic", "partitions", "records", "size", "kept"), rows, right=("partitions", "records", "size"))


@app.command("lag")
def lag(context: typer.Context) -> None:
    """Show how far each consumer group is behind, in records and seconds.

    Example: crewline topics lag
    """
    asyncio.run(_lag(globals_.of(context)))


async def _lag(settings: Settings) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_log
    from crewline.cli.text import duration

    out = Output(settings)
    async with open_log(settings) as bus:
        lags = await bus.lags()
    groups: dict[tuple[str, str], list[object]] = {}
    documents = []
    for group, topic in sorted({(each.group, each.topic) for each in lags}):
        of_group = [each for each in lags if (each.group, each.topic) == (group, topic)]
        members = sorted({each.member for each in of_group if each.member})
        behind, behind_s = sum(each.lag for each in of_group), max(each.lag_s for each in of_group)
        documents.append({"group": group, "topic": topic, "records": behind, "seconds": round(behind_s, 3), "members": members,
                          "partitions": {str(each.partition): each.lag for each in of_group}})
        groups[group, topic] = [f"{behind:,}", duration(behind_s) if behind else "", ", ".join(members) or "nobody"]
    if settings.json:
        out.document({"groups": documents})
    elif not documents:
        out.say("no group reads the log now: crewline up crew.yaml")
    else:
        rows = [[group, topic, *map(str, rest)] for (group, topic), rest in groups.items()]
        out.table(("group", "topic", "behind", "for", "members"), rows, right=("behind", "for"))


class Wanted(NamedTuple):
    """Which records to print; patterns as in a shell (`call.*`)."""

    type: str | None = None
    agent: str | None = None
    key: str | None = None

    def fits(self, frame: Frame) -> bool:
        asked = ((self.type, frame.type), (self.agent, frame.agent), (self.key, frame.conversation))
        return all(pattern is None or fnmatchcase(value, pattern) for pattern, value in asked)


@app.command("tail")
def tail(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="A topic; `conversations` is the crew's own.")] = "conversations",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as records come, until Ctrl-C.")] = False,
    start: Annotated[
        str | None, typer.Option("--from", metavar="WHERE", help="start, end, an offset (42), 1h ago, or a time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Without --from: how many of the newest.")] = 20,
    type: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only these types, as in `call.*`.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only these agents.")] = None,
    key: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only these keys (conversations).")] = None,
) -> None:
    """Print records, decoded.

    Example: crewline topics tail -f --type "call.*"
    """
    from crewline.cli.output import Output

    settings = globals_.of(context)
    asyncio.run(_tail(settings, Output(settings), topic, follow, start, limit, Wanted(type, agent, key)))


async def _tail(
    settings: Settings, out: Output, topic: str, follow: bool, start: str | None, limit: int, wanted: Wanted
) -> None:
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
