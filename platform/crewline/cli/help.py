"""`crewline help`: a command explained, or the exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from crewline.cli import settings as globals_
from crewline.errors import NotFound

TOPICS = ("exit-codes",)


def show_help(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND…|exit-codes]", help="What to explain.")] = None,
) -> None:
    """Explain a command, or the exit codes.

    Example: crewline help exit-codes
    """
    from crewline.cli.output import EXIT_CODES, Output

    settings = globals_.of(context)
    out = Output(settings)
    if words == ["exit-codes"]:
        if settings.json:
            out.document({str(code): meaning for code, meaning in EXIT_CODES.items()})
        else:
            for code, meaning in EXIT_CODES.items():
                out.put(f"{code:>4}  {meaning}")
        return
    from crewline.cli import run_line

    known = context.find_root().command
    if words and known.get_command(context, words[0]) is None:  # type: ignore[attr-defined]  # it is the top group
        raise NotFound(f"there is no command {words[0]!r}", hint="crewline --help, or crewline help exit-codes")
    raise typer.Exit(run_line([*(words or ()), "--help"]))
