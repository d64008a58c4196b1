"""`crewline up`: run crews in the foreground until Ctrl-C or SIGTERM, and say what happens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.bus.base import Tail
    from crewline.cli.output import Output
    from crewline.crews.running import Crew, Running
    from crewline.projection import Frame


def up(
    context: typer.Context,
    files: Annotated[list[str] | None, typer.Argument(help="Crew files or their folders; default: ./crew.yaml.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="ROLES", help="Run these roles alone: worker,guardrail,tools,tools.NAME.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the scripted model named `offline`.")] = False,
) -> None:
    """Run crews until Ctrl-C.

    Example: crewline up crew.yaml --offline
    """
    from crewline.cli import logs
    from crewline.cli.output import Output
    from crewline.cli.session import crew_files
    from crewline.crews.running import Crew

    settings = globals_.of(context)
    out = Output(settings)
    logs.set_up(settings, tracebacks=True)
    paths = crew_files(files)
    if len(paths) > 1 and overlay:
        raise UsageError("an overlay belongs to one crew file", hint="run each crew with its own `crewline up`")
    crews = [Crew.load(path, overlays=overlay or (), offline=offline) for path in paths]
    names = [crew.roster.topics.namespace for crew in crews]
    if len(set(names)) < len(names):
        raise UsageError(f"two crews share one namespace: {', '.join(names)}", hint="give each its own `name:`")
    roles = None if only is None else [role.strip() for role in only.split(",") if role.strip()]
    asyncio.run(_serve(crews, settings.state, roles, out))


async def _serve(crews: Sequence[Crew], state: Path, only: list[str] | None, out: Output) -> None:
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(crew.up(state=state, only=only)) for crew in crews]
        _stop_on_signals(running, out)
        tails = [await each.bus.tail(each.roster.topics.conversations) for each in running]
        await asyncio.gather(*(each.ready() for each in running))
        for each in running:
            _say_ready(each, out)
        followers = [asyncio.create_task(_tell(*each, out)) for each in zip(running, tails, strict=True)]
        try:
            async with asyncio.TaskGroup() as group:
                for each in running:
                    group.create_task(each.serve())
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
    out.say("stopped; everything is in the log, `crewline up` goes on", tone="dim")


def _stop_on_signals(running: Sequence[Running], out: Output) -> None:
    """Stop in good order on the first SIGINT or SIGTERM, at once on the second."""
    loop = asyncio.get_running_loop()
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            sys.stderr.flush()
            os._exit(130)
        out.say("\nstopping: what runs is handed over (again: at once)", tone="dim")
        for each in running:
            each.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _say_ready(running: Running, out: Output) -> None:
    """Print the status block of a crew that is up."""
    roster = running.roster
    rows = [
        ("crew", f"{roster.crew} {roster.version}"),
        ("agents", ", ".join(f"{name}*" if name == running.entry else name for name in roster.agents)),
        ("tools", ", ".join(sorted(roster.tools)) or "none"),
        ("roles", ", ".join(running.roles) or "none"),
        ("state", str(running.state)),
        ("ask it", f'crewline run {roster.topics.namespace} "…" --agent {running.entry}'
         + (f" --state {running.state}" if str(running.state) != globals_.STATE else "")),
    ]
    out.say("\n".join(f"{name:<8} {value}" for name, value in rows))


async def _tell(running: Running, tail: Tail, out: Output) -> None:
    """Print a line when a turn starts, ends, or a call waits for somebody."""
    from crewline.errors import BusError, CrewlineError
    from crewline.projection import frame_of
    from crewline.records import Reader

    partitions = await running.bus.partitions(running.roster.topics.conversations)
    reader = Reader(running.client.keyring, partitions=partitions)
    seen: set[str] = set()
    try:
        while True:
            for batch in await tail.poll(5.0):
                for record in batch.records:
                    try:
                        frame = frame_of(record, stands=None, event=reader.read(record).event)
                    except CrewlineError:  # forged, or of a newer version: shown as such
                        frame = frame_of(record, stands=False)
                    if frame.event_id not in seen and (line := happening(frame)):
                        seen.add(frame.event_id)
                        _print(running, frame, line, out)
    except BusError as error:
        out.insist(f"the log is not followed any more: {error}", tone="red")
    finally:
        await tail.close()


def _print(running: Running, frame: Frame, line: str, out: Output) -> None:
    from crewline.cli.output import to_json
    from crewline.cli.text import clock, paint

    if out.settings.json:
        out.put(to_json(frame.as_json()))
        return
    at = clock(frame.at_ms)[11:19]
    out.say(f"{paint(at, 'dim', on=out.color_err)} {running.roster.crew}  {line}")


def happening(frame: Frame) -> str:
    """Return a turn's start or end, or a held or unknown call, in a line; "" for everything else."""
    from crewline import events as ev
    from crewline.cli.text import clean, count

    event = frame.event
    match event:
        case ev.TurnStarted():
            said = f"› {event.agent} takes up turn {event.turn} of {frame.conversation}"
        case ev.TurnFinished():
            symbol = "✓" if event.status == "done" else "✗"
            why = f": {event.reason.say}" if event.reason is not None else ""
            said = f"{symbol} {event.agent} {event.status} turn {event.turn} of {frame.conversation}{why}"
            if event.spent.steps:
                said += f" ({count(event.spent.steps, 'step')}, {count(event.spent.tool_calls, 'call')})"
        case ev.CallJudged(decision="require_approval"):
            said = f"⏸ {event.agent}'s {event.tool} waits: crewline approvals show {event.call}"
        case ev.CallCompleted(outcome="unknown"):
            said = f"⏸ nobody knows whether {event.call} ran: crewline approvals list"
        case ev.RecordRejected():
            said = f"✗ record rejected: {event.code}: {event.say}"
        case _:
            return ""
    return clean(said, one_line=True)
