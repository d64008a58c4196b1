"""`crewline topics`: the log itself. Topics, their records, how far each group is behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.cli.settings import Settings

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
