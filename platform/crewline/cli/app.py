"""The top command: the global options, and how Typer is set up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from crewline.cli.groups import LazyGroup, new_app
from crewline.cli.settings import STATE, YAML, Settings

EPILOG = "Global options may stand anywhere before `--`. Exit codes: crewline help exit-codes"


def command() -> Any:
    """Return the command line as one command, ready to be run."""
    if "_CREWLINE_COMPLETE" in os.environ:  # a shell asks; without its own options Typer leaves this to us
        from typer._completion_classes import completion_init

        completion_init()
    app = new_app("Crews of LLM agents over a Kafka log: judged, durable, killable at any moment.")
    app.callback(cls=LazyGroup, epilog=EPILOG, no_args_is_help=True)(_options)
    return typer.main.get_command(app)


def _version(asked: bool) -> None:
    if asked:
        from crewline import __version__

        typer.echo(f"crewline {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    state: Annotated[
        Path, typer.Option(metavar="DIR", envvar="CREWLINE_STATE", help="The folder of log, keys and memory.")
    ] = Path(STATE),
    bus: Annotated[
        str | None,
        typer.Option("--bus", "-b", metavar="BUS", envvar="CREWLINE_BUS",
                     help="Where the log is: embedded, kafka://HOST:PORT, or a YAML file with a `bus:`."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="CREWLINE_KEYS", help="The keys folder.")
    ] = None,
    crew: Annotated[
        str | None, typer.Option(metavar="NAME", envvar="CREWLINE_CREW", help="The crew, if the log holds several.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", envvar="CREWLINE_JSON", help="JSON for programs.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar="CREWLINE_QUIET", help="Only answers and errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", envvar="CREWLINE_VERBOSE", help="More; tracebacks of our own faults.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", envvar="CREWLINE_NO_COLOR", help="No colour (also NO_COLOR).")
    ] = False,
    no_input: Annotated[
        bool, typer.Option("--no-input", envvar="CREWLINE_NO_INPUT", help="Never ask anything.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    from crewline.errors import UsageError

    if bus is not None and bus != "embedded" and not bus.startswith("kafka://") and not bus.endswith(YAML):
        raise UsageError(
            f"--bus {bus!r} is unknown",
            hint="embedded, kafka://HOST:PORT[,HOST:PORT], or a YAML file with a `bus:` section",
        )
    context.obj = Settings(
        state=state, bus=bus, keys=keys, crew=crew, json=json, quiet=quiet, verbose=verbose, no_color=no_color,
        no_input=no_input,
    )
