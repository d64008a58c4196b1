"""`crewline up`: run crews in the foreground until Ctrl-C or SIGTERM, and say what happens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewline.cli import settings as globals_
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.bus.base import Tail
    from crewline.cli.output import Output
    from crewline.crews.running import Running
    from crewline.projection import Frame


def up(
    context: typer.Context,
    files: Annotated[list[str] | None, typer.Argument(help="Crew files or their folders; default: ./crew.yaml.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="ROLES", help="Run these roles alone: worker,guardrail,triggers,tools,tools.NAME.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the scripted model named `offline`.")] = False,
    drain: Annotated[
        str, typer.Option(metavar="5s", help="When stopped: how long what runs may take to come to its end.")
    ] = "5s",
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", envvar="CREWLINE_METRICS",
            help="Serve metrics for Prometheus: :9464 (this machine alone) or HOST:PORT.",
        ),
    ] = None,
) -> None:
    """Run crews until Ctrl-C.

    Example: crewline up crew.yaml --offline
    """
    from crewline.cli import logs
    from crewline.cli.output import Output
    from crewline.cli.session import crew_files, load
    from crewline.cli.text import seconds_of

    settings = globals_.of(context)
    out = Output(settings)
    logs.set_up(settings, tracebacks=True)
    paths = crew_files(files)
    if len(paths) > 1 and overlay:
        raise UsageError("an overlay belongs to one crew file", hint="run each crew with its own `crewline up`")
    crews = [load(settings, path, overlay or (), offline=offline) for path in paths]
    names = [crew.roster.topics.namespace for crew in crews]
    if len(set(names)) < len(names):
        raise UsageError(f"two crews share one namespace: {', '.join(names)}", hint="give each its own `name:`")
    roles = None if only is None else [role.strip() for role in only.split(",") if role.strip()]
    running = [crew.up(state=settings.state, bus=settings.bus_address, keys=settings.keys, only=roles) for crew in crews]
    _run(running)(_serve(running, seconds_of(drain, "--drain"), metrics, out))


def _run(running: Sequence[Running]) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Return what runs the event loop: for crews on Kafka a faster one, where it is installed."""
    if all(each.where.kafka is None for each in running):
        return asyncio.run
    from crewline.bus.kafka.loop import run

    return run


async def _serve(running: Sequence[Running], drain_s: float, metrics: str | None, out: Output) -> None:
    from crewline.telemetry import Telemetry

    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(Telemetry(metrics=metrics))
        for each in running:
            await stack.enter_async_context(each)
            telemetry.watch(each.roster, each.bus, each.engines)
        if telemetry.page is not None:
            out.say(f"metrics  {telemetry.page}", tone="dim")
        _stop_on_signals(running, drain_s, out)
        told = [asyncio.create_task(_tell(each, out)) for each in running]
        try:
            async with asyncio.TaskGroup() as group:
                for each in running:
                    group.create_task(each.serve())
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            for task in told:
                task.cancel()
            await asyncio.gather(*told, return_exceptions=True)
    out.say("stopped; everything is in the log, `crewline up` goes on", tone="dim")


def _stop_on_signals(running: Sequence[Running], drain_s: float, out: Output) -> None:
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
            each.stop(drain_s=drain_s)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


async def _tell(running: Running, out: Output) -> None:
    """Say that a crew is up; then, where its worker runs, a line when a turn starts, ends, or a call waits for somebody.

    Processes without a worker have nothing to say, and may not be let to read what is said.
    """
    from crewline.errors import BusError

    try:
        tail = await running.bus.tail(running.roster.topics.conversations) if "worker" in running.roles else None
        await running.ready()
        _say_ready(running, out)
        if tail is not None:
            await _follow(running, tail, out)
    except BusError as error:
        out.insist(f"the log is not followed any more: {error}", tone="red")


def _say_ready(running: Running, out: Output) -> None:
    """Print the status block of a crew that is up."""
    from crewline.cli.session import reach

    roster = running.roster
    rows = [
        ("crew", f"{roster.crew} {roster.version}"),
        ("agents", ", ".join(f"{name}*" if name == running.entry else name for name in roster.agents)),
        ("tools", ", ".join(sorted(roster.tools)) or "none"),
        ("roles", ", ".join(running.roles) or "none"),
        ("state", str(running.state)),
        *_where(running),
        ("ask it", f'crewline run {roster.topics.namespace} "…" --agent {running.entry}{reach(out.settings, running)}'),
    ]
    out.say("\n".join(f"{name:<8} {value}" for name, value in rows))


def _where(running: Running) -> list[tuple[str, str]]:
    """Return the rows on log and memory, where they are not simply in the state folder."""
    where = running.where
    if where.kafka is None:
        return []
    memory = "Redis" if where.store_kind == "redis" else "SQLite in the state folder: workers on several hosts need Redis"
    return [("bus", f"{where.bus} ({where.kafka.tried})"), ("memory", memory)]


async def _follow(running: Running, tail: Tail, out: Output) -> None:
    from crewline.cli.session import reach
    from crewline.errors import CrewlineError
    from crewline.projection import frame_of
    from crewline.records import Reader

    partitions = await running.bus.partitions(running.roster.topics.conversations)
    reader = Reader(running.client.keyring, partitions=partitions)
    worker = running.engines["worker"]
    seen: set[str] = set()
    options = reach(out.settings, running)
    try:
        while True:
            for batch in await tail.poll(5.0):
                for record in batch.records if batch.partition in worker.positions() else ():
                    try:
                        frame = frame_of(record, stands=None, event=reader.read(record).event)
                    except CrewlineError:  # forged, or of a newer version: shown as such
                        frame = frame_of(record, stands=False)
                    if frame.event_id not in seen and (line := happening(frame, options)):
                        seen.add(frame.event_id)
                        _print(running, frame, line, out)
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


def happening(frame: Frame, reach: str) -> str:
    """Return a turn's start or end, or a held or unknown call, in a line; "" for everything else.

    `reach` are the options by which another command reaches the crew.
    """
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
            said = f"⏸ {event.agent}'s {event.tool} waits: crewline approvals show {event.call}{reach}"
        case ev.CallCompleted(outcome="unknown"):
            said = f"⏸ nobody knows whether {event.call} ran: crewline approvals list{reach}"
        case ev.RecordRejected():
            said = f"✗ record rejected: {event.code}: {event.say}"
        case _:
            return ""
    return clean(said, one_line=True)
