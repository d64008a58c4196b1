"""`crewline guard`: try a call against the policies; walk the audit chain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.cli.settings import Settings

app = new_app("The guardrail: try a call against the policies, verify the audit chain.")
audit = new_app("The signed checkpoints over the conversations.")
app.add_typer(audit, name="audit", help="Verify or list the signed checkpoints over the conversations.")

AUDIT_FILE = "audit.jsonl"


@app.command("test")
def test(
    context: typer.Context,
    call: Annotated[str, typer.Option(metavar="CALL", help="The call, as tool({…}).")],
    agent: Annotated[str | None, typer.Option(help="Who asks; default: the first agent with that tool.")] = None,
    user: Annotated[str | None, typer.Option(help="On whose behalf.")] = None,
    fact: Annotated[
        list[str] | None, typer.Option(metavar="NAME=JSON", help="A fact; those not given are looked up.")
    ] = None,
    file: Annotated[str | None, typer.Option("--file", metavar="CREW", help="The crew file; default: ./crew.yaml.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
) -> None:
    """Say what the guardrail would decide on a call, and why. The tool does not run.

    Exit code 0: allowed; 6: denied; 7: a person would have to approve.

    Example: crewline guard test --call 'issue_refund({"order_id": "A-1001", "amount": 80})' --user u-7
    """
    from crewline.cli import dry, logs
    from crewline.cli.output import Output
    from crewline.cli.session import crew_file
    from crewline.crews.running import Crew

    out = Output(globals_.of(context))
    logs.set_up(out.settings, tracebacks=False)
    said, facts = dry.call_of(call), dry.facts_of(fact)
    crew = Crew.load(crew_file(file), overlays=overlay or (), offline=True)
    who = dry.agent_of(crew, said.tool, agent)
    decision = asyncio.run(dry.judge(crew, said, agent=who, user=user, facts=facts))
    raise typer.Exit(dry.report(out, said, who, decision))


@audit.command("verify")
def verify(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Checkpoints kept outside the log.")] = None,
) -> None:
    """Walk the log and its signed checkpoints; name the first record that is not what was signed.

    Example: crewline guard audit verify
    """
    raise typer.Exit(asyncio.run(_verify(globals_.of(context), file)))


async def _verify(settings: Settings, file: Path | None) -> int:
    from crewline.cli.output import FAILED, Output
    from crewline.cli.state import open_client
    from crewline.cli.text import count
    from crewline.guardrail import verify as walk

    out = Output(settings)
    kept = file or settings.state / AUDIT_FILE
    async with open_client(settings) as client:
        report = await walk(
            client.bus, client.topics.conversations, audit_topic=client.topics.audit, keyring=client.keyring,
            file=kept if file is not None or kept.exists() else None,
        )
    if settings.json:
        out.document({
            "ok": report.ok, "records": report.records, "checkpoints": report.checkpoints, "warnings": report.warnings,
            "unchecked": sum(report.unchecked.values()),
            "breaks": [{"code": each.code, "partition": each.partition, "offset": each.offset, "until": each.until,
                        "say": each.say} for each in report.breaks],
        })
        return 0 if report.ok else FAILED
    for warning in report.warnings:
        out.insist(f"warning: {warning}", tone="yellow")
    for each in report.breaks:
        out.put(f"✗ {each.code}: {each.say}")
    if not report.ok:
        out.say_error("audit", f"the log is not what was signed ({count(len(report.breaks), 'break')})",
                      f"crewline topics tail --from {report.first.offset if report.first else 0}")
        return FAILED
    after = sum(report.unchecked.values())
    out.put(f"✓ {count(report.records, 'record')} hold against {count(report.checkpoints, 'checkpoint')}; "
            f"{after:,} after the last one are not signed yet")
    return 0


@audit.command("list")
def list_checkpoints(context: typer.Context) -> None:
    """List the checkpoints on the audit topic.

    Example: crewline guard audit list
    """
    asyncio.run(_list(globals_.of(context)))


async def _list(settings: Settings) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_client
    from crewline.cli.text import clock
    from crewline.errors import CrewlineError
    from crewline.events import CheckpointSigned
    from crewline.records import Reader

    out = Output(settings)
    found = []
    async with open_client(settings) as client:
        topic = client.topics.audit
        reader = Reader(client.keyring, partitions=await client.bus.partitions(topic))
        begins, ends = await client.bus.offsets(topic)
        for partition, offset in begins.items():
            while offset < ends[partition]:
                batch = await client.bus.read(topic, partition, offset)
                for record in batch.records:
                    try:
                        event = reader.read(record).event
                    except CrewlineError as error:
                        out.insist(f"offset {record.offset} does not count: {error}", tone="red")
                        continue
                    if isinstance(event, CheckpointSigned):
                        found.append((record, event))
                offset = max(batch.next_offset, offset + 1)
    if settings.json:
        out.document({"checkpoints": [{"offset": record.offset, "at_ms": record.timestamp_ms, "topic": event.topic,
                                       "partition": event.partition, "next_offset": event.next_offset, "head": event.head}
                                      for record, event in found]})
    elif not found:
        out.say("no checkpoint yet: the guardrail signs them while it runs (crewline up)")
    else:
        rows = [[clock(record.timestamp_ms), str(event.partition), str(event.next_offset), event.head[:16]]
                for record, event in found]
        out.table(("signed", "partition", "up to offset", "head"), rows, right=("partition", "up to offset"))
