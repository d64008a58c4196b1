"""`crewline topics`: the log itself. Topics, their records, how far each group is behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.bus.base import GroupLag
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings

CLEAR = "\x1b[2J\x1b[H"  # a table that is watched is drawn over itself

app = new_app("The log: topics, records, lag.")


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
def lag(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option(metavar="2s", help="With --watch: how often.")] = "2s",
    partitions: Annotated[bool, typer.Option("-p", "--partitions", help="Each partition for itself.")] = False,
    group: Annotated[str, typer.Option(metavar="PATTERN", help="Only these groups, as in `support.*`.")] = "*",
) -> None:
    """Show how far each consumer group is behind, in records and seconds.

    Example: crewline topics lag --watch
    """
    from crewline.cli.output import Output
    from crewline.cli.text import seconds_of

    settings = globals_.of(context)
    every_s = seconds_of(every, "--every") if watch else None
    asyncio.run(_lag(Output(settings), group, every_s, lambda out, lags: _show_lags(out, lags, partitions)))


async def _lag(out: Output, pattern: str, every_s: float | None, show: Callable[[Output, list[GroupLag]], None]) -> None:
    from crewline.cli.output import write
    from crewline.cli.state import open_log
    from crewline.errors import BusUnavailable

    redrawn = every_s is not None and out.settings.lively(sys.stdout) and not out.settings.json
    async with open_log(out.settings) as bus:
        while True:
            try:
                lags = [each for each in await bus.lags() if fnmatchcase(each.group, pattern)]
                write(sys.stdout, CLEAR if redrawn else "")
                show(out, lags)
            except BusUnavailable as error:
                if every_s is None:
                    raise
                out.insist(f"{error.message}; looking again", tone="red")  # it may be what is watched for
            if every_s is None:
                return
            await asyncio.sleep(every_s)


def _show_lags(out: Output, lags: Sequence[GroupLag], partitions: bool) -> None:
    if out.settings.json:
        out.document({"groups": [_document(each) for each in _by_group(lags)]})
    elif not lags:
        out.say("no group reads the log now: crewline up crew.yaml")
    elif partitions:
        rows = [[each.group, each.topic, str(each.partition), *_behind([each])] for each in sorted(lags, key=_place)]
        out.table(("group", "topic", "partition", "behind", "for", "members"), rows, right=("partition", "behind", "for"))
    else:
        rows = [[each[0].group, each[0].topic, *_behind(each)] for each in _by_group(lags)]
        out.table(("group", "topic", "behind", "for", "members"), rows, right=("behind", "for"))


def _place(lag: GroupLag) -> tuple[str, str, int]:
    return lag.group, lag.topic, lag.partition


def _by_group(lags: Sequence[GroupLag]) -> list[list[GroupLag]]:
    """Return the lags of each group on each topic, in order of their partitions."""
    return [list(each) for _, each in groupby(sorted(lags, key=_place), key=lambda lag: _place(lag)[:2])]


def _document(lags: Sequence[GroupLag]) -> dict[str, object]:
    return {
        "group": lags[0].group, "topic": lags[0].topic, "records": sum(each.lag for each in lags),
        "seconds": round(max(each.lag_s for each in lags), 3),
        "members": sorted({each.member for each in lags if each.member}),
        "partitions": {str(each.partition): each.lag for each in lags},
        "partition_seconds": {str(each.partition): round(each.lag_s, 3) for each in lags},
    }


def _behind(lags: Sequence[GroupLag]) -> list[str]:
    from crewline.cli.text import duration

    behind, behind_s = sum(each.lag for each in lags), max(each.lag_s for each in lags)
    members = sorted({each.member for each in lags if each.member})
    return [f"{behind:,}", duration(behind_s) if behind else "", ", ".join(members) or "nobody"]


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
    from crewline.cli.tailing import Wanted, tail_topic

    settings = globals_.of(context)
    asyncio.run(tail_topic(settings, Output(settings), topic, follow, start, limit, Wanted(type, agent, key)))


@app.command("publish")
def publish(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="A topic of the outside world, such as a trigger reads.")],
    value: Annotated[str, typer.Argument(help="A JSON value; - for one in each line of standard input.")],
    key: Annotated[str, typer.Option("--key", "-k", help="The records' key; none: the topic's partitions take turns.")] = "",
) -> None:
    """Append records to a topic, as an outside producer would: without a seal.

    Example: crewline topics publish payments.transactions --key c-17 '{"card_id": "c-17", "amount": 120.0}'
    """
    from crewline.cli.output import Output
    from crewline.cli.publishing import publish as publish_records

    asyncio.run(publish_records(Output(globals_.of(context)), topic, value, key))
