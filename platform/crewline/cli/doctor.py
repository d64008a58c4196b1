"""`crewline doctor`: is everything there that a crew needs, and who needs which rights at Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_

if TYPE_CHECKING:
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings
    from crewline.crews.doctor import Finding
    from crewline.crews.models import CrewConfig

SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def doctor(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A crew file or its folder; default: ./crew.yaml, if it is there.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
    acls: Annotated[bool, typer.Option("--acls", help="Print the kafka-acls commands of every role instead.")] = False,
    principal_prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Role worker is User:TEXTworker; default: the topic prefix and a dash.")
    ] = None,
    command_config: Annotated[
        str, typer.Option(metavar="FILE", help="With which an administrator signs in, for --acls.")
    ] = "admin.properties",
    offline: Annotated[bool, typer.Option("--offline", help="As for `up --offline`: models need no keys.")] = False,
    create_topics: Annotated[bool, typer.Option("--create-topics", help="Create the topics that are missing.")] = False,
) -> None:
    """Look at all that a crew needs: Python, packages, folders, crew file, keys, log, topics, clock, store.

    Example: crewline doctor crew.yaml -f prod.yaml --acls
    """
    from crewline.cli.output import Output
    from crewline.cli.session import CREW_FILE, crew_files

    settings = globals_.of(context)
    out = Output(settings)
    path = crew_files([str(file)])[0] if file is not None else Path(CREW_FILE) if acls or Path(CREW_FILE).exists() else None
    overlays = [*(overlay or ()), *([settings.bus_file] if settings.bus_file is not None else [])]
    if acls:
        assert path is not None
        _print_acls(path, overlays, principal_prefix, command_config, settings, out)
        return
    findings = asyncio.run(_look(path, overlays, settings, offline=offline, create=create_topics))
    problems = [each for each in findings if each.verdict == "problem"]
    if settings.json:
        out.document({"ok": not problems, "findings": [
            {"check": each.check, "verdict": each.verdict, "say": each.say, "hint": each.hint or None} for each in findings
        ]})
    else:
        _print(findings, out)
    if problems:
        raise typer.Exit(problems[0].exit_code)


def _print_acls(
    path: Path, overlays: list[Path], prefix: str | None, command_config: str, settings: Settings, out: Output
) -> None:
    from crewline.crews import load_crew
    from crewline.crews.acls import acl_commands, rights_of
    from crewline.crews.models_bus import KafkaBus
    from crewline.errors import UsageError

    config = load_crew(path, overlays=overlays, resolve=False)
    if not isinstance(config.bus, KafkaBus):
        raise UsageError(f"{path}: the crew's log is not on Kafka", hint="name its overlay: -f kafka.yaml")
    rights = rights_of(config)
    address = settings.bus_address or ""
    servers = address.removeprefix("kafka://") if address.startswith("kafka://") else _plain(config.bus.bootstrap_servers)
    start = prefix if prefix is not None else f"{config.bus.topic_prefix or config.name}-"
    lines = list(acl_commands(rights, servers=servers, principal_prefix=start, command_config=command_config))
    if settings.json:
        out.document({"commands": [line for line in lines if not line.startswith("#")]})
        return
    for line in lines:
        out.put(line)


def _plain(servers: str) -> str:
    """Return the servers; a reference that nobody resolved is looked up, since these commands name no secret."""
    import os

    from crewline.crews.values import resolve

    return str(resolve(servers, os.environ))


async def _look(path: Path | None, overlays: list[Path], settings: Settings, *, offline: bool, create: bool) -> list[Finding]:
    from crewline.cli.state import beside, place
    from crewline.crews.doctor import crew_findings, keys_findings, log_findings, setup_findings
    from crewline.crews.where import where
    from crewline.errors import CrewlineError

    loaded: list[CrewConfig] = []
    crew = list(crew_findings(path, overlays, loaded, offline=offline)) if path is not None else []
    config = loaded[0] if loaded else None
    findings = [*setup_findings(settings.state, config, offline=offline), *crew]
    if config is None and path is not None:
        return findings
    try:
        if config is None or path is None:
            at = place(settings)
        else:
            beside(path)
            at = where(state=settings.state, bus=settings.bus_address, keys=settings.keys, said=config.bus, memory=config.memory)
    except CrewlineError as error:
        return [*findings, _finding("log", error)]
    findings += keys_findings(at)
    return findings + [each async for each in log_findings(at, config, create=create)]


def _finding(check: str, error: Exception) -> Finding:
    from crewline.crews.doctor import Finding
    from crewline.errors import CrewlineError

    assert isinstance(error, CrewlineError)
    return Finding(check, "problem", error.message, error.hint or "", error.exit_code)


def _print(findings: list[Finding], out: Output) -> None:
    from crewline.cli.text import clean, count, paint

    width = max(len(each.check) for each in findings)
    for each in findings:
        sign, tone = SIGNS[each.verdict]
        out.put(f"{paint(sign, tone, on=out.color_out)} {each.check:<{width}}  {clean(each.say, one_line=True)}")
        if each.hint:
            out.put(f"  {'':<{width}}  → {clean(each.hint, one_line=True)}")
    problems = sum(each.verdict == "problem" for each in findings)
    if problems:
        out.say(count(problems, "problem"), tone="red")
    else:
        out.say("nothing is in the way", tone="green")
