"""`crewline market`: who offers which capability, on the topic that all crews of a log share."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.bus.base import Bus
    from crewline.cli.settings import Settings
    from crewline.events import AgentAdvertised

app = new_app("Who offers which capability.")


@app.callback()
def _group() -> None:
    pass


@app.command("list")
def list_offers(
    context: typer.Context,
    alive: Annotated[bool, typer.Option("--alive", help="Only those heard of within their lease.")] = False,
) -> None:
    """List the capabilities on offer, by whom, how busy each is.

    Example: crewline market list --alive
    """
    asyncio.run(_list(globals_.of(context), alive))


async def _list(settings: Settings, alive: bool) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_log
    from crewline.cli.text import ago

    out = Output(settings)
    async with open_log(settings) as bus:
        offers = await _offers(bus, settings)
    now_ms = int(time.time() * 1000)
    rows = []
    for key, (advertised, at_ms) in sorted(offers.items()):
        stalled = now_ms - at_ms > advertised.lease_s * 1000
        if stalled and alive:
            continue
        rows += [(capability, advertised, at_ms, "stalled" if stalled else "alive", key) for capability in advertised.capabilities]
    rows.sort(key=lambda row: (row[0].name, row[4]))
    if settings.json:
        out.document({"offers": [
            {"capability": capability, "crew": ad.crew, "crew_version": ad.crew_version, "agent": ad.agent,
             "instance": ad.instance, "topic": ad.topic, "in_flight": ad.in_flight, "queued": ad.queued,
             "capacity": ad.capacity, "heard_ms": at_ms, "status": status}
            for capability, ad, at_ms, status, _ in rows
        ]})
    elif not rows:
        out.say("nobody offers anything now; crews with `capabilities:` do while they run: crewline up crew.yaml")
    else:
        out.table(
            ("capability", "crew", "agent", "instance", "load", "status", "heard"),
            [[capability.name, ad.crew, ad.agent, ad.instance, f"{ad.in_flight + ad.queued}/{ad.capacity}", status,
              ago(at_ms, now_ms)] for capability, ad, at_ms, status, _ in rows],
            right=("load",),
        )


async def _offers(bus: Bus, settings: Settings) -> dict[str, tuple[AgentAdvertised, int]]:
    """Return the newest advertisement of each instance, unless it was withdrawn."""
    from crewline.cli.state import keys_folder
    from crewline.errors import CrewlineError, UnknownTopic
    from crewline.events import AgentAdvertised
    from crewline.records import Reader
    from crewline.seal import load_keys
    from crewline.topics import MARKET

    reader = Reader(load_keys(keys_folder(settings)), partitions=1)
    offers: dict[str, tuple[AgentAdvertised, int]] = {}
    try:
        begins, ends = await bus.offsets(MARKET)
    except UnknownTopic:
        return offers
    for partition, offset in begins.items():
        while offset < ends[partition]:
            batch = await bus.read(MARKET, partition, offset)
            for record in batch.records:
                key = record.key.decode("utf-8", "replace")
                offers.pop(key, None)
                if record.value is not None:
                    with suppress(CrewlineError):
                        event = reader.read(record).event
                        if isinstance(event, AgentAdvertised):
                            offers[key] = event, record.timestamp_ms
            offset = max(batch.next_offset, offset + 1)
    return offers
