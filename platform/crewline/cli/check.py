"""`crewline check`: every problem of crew files, with its line. No code of the user's is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crewline.cli import settings as globals_

if TYPE_CHECKING:
    from crewline.crews.problems import Problem


def check(
    context: typer.Context,
    files: Annotated[list[str] | None, typer.Argument(help="Crew files or their folders; default: ./crew.yaml.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over each.")] = None,
    format: Annotated[Literal["text", "json", "github"], typer.Option(help="For people, programs, or GitHub's CI.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Check crew files. Each problem has its file, line and column, and says what to do.

    Example: crewline check crew.yaml --format github
    """
    from crewline.cli.output import CONFIG, Output
    from crewline.cli.session import crew_files
    from crewline.cli.text import count
    from crewline.crews import check_crew, effective_policies, load_crew, not_yet

    settings = globals_.of(context)
    out = Output(settings)
    paths = crew_files(files)
    problems = [problem for path in paths for problem in check_crew(path, overlay or ())]
    configs = [] if problems else [load_crew(path, overlays=overlay or (), resolve=False) for path in paths]
    later = [each for config in configs for each in not_yet(config)]
    errors = sum(strict or problem.severity == "error" for problem in problems)
    if settings.json or format == "json":
        out.document({"ok": errors == 0, "files": [str(path) for path in paths],
                      "problems": [as_document(each) for each in problems],
                      "not_yet": [as_document(each) for each in later]})
    else:
        for problem in problems:
            out.put(as_github(problem) if format == "github" else str(problem))
        names = ", ".join(map(str, paths))
        if not problems:
            out.say(f"{names}: no problems", tone="green")
            for config in configs:
                rows = [(row.tool, row.effect, row.says) for row in effective_policies(config)]
                if rows and format == "text":
                    out.table(("tool", "effect", "policy"), rows)
            for each in later:
                out.say(f"`crewline up` refuses for now: {each}")
        else:
            out.say(f"{names}: {count(errors, 'error')}, {count(len(problems) - errors, 'warning')}")
    if errors:
        raise typer.Exit(CONFIG)


def as_document(problem: Problem) -> dict[str, Any]:
    """Return a problem for programs."""
    return {
        "file": problem.file, "line": problem.line, "column": problem.column, "path": problem.path,
        "message": problem.message, "severity": problem.severity,
    }


def as_github(problem: Problem) -> str:
    """Return a problem as GitHub's workflow command, which marks the line in a pull request."""
    place = f"file={_property(problem.file)}"
    if problem.line:
        place += f",line={problem.line},col={problem.column}"
    said = f"{problem.path}: {problem.message}" if problem.path else problem.message
    return f"::{problem.severity} {place}::{_escaped(said)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
