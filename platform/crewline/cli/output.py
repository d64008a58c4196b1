"""Where output goes: the answer alone on stdout, everything else on stderr; and the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from crewline.cli.settings import Settings
from crewline.cli.text import clean, pad, paint, width_of
from crewline.errors import CrewlineError

OK, FAILED, USAGE, CONFIG, BROKER, NOT_FOUND, DENIED, HELD, TIMEOUT, CANCELLED = range(10)
INTERRUPTED, BROKEN_PIPE = 130, 141
EXIT_CODES = {
    OK: "it worked",
    FAILED: "the run failed",
    USAGE: "the command line is wrong",
    CONFIG: "the crew file is wrong",
    BROKER: "the log or the store does not answer or refuses",
    NOT_FOUND: "there is no run, call, tool or topic of that name",
    DENIED: "denied, by the guardrail or a person",
    HELD: "held for approval, and nobody was there to ask",
    TIMEOUT: "no answer in time (the run goes on)",
    CANCELLED: "the run was cancelled",
    INTERRUPTED: "interrupted (the run goes on)",
    BROKEN_PIPE: "whoever read the output has gone",
}

_HINTS = {
    "crew.invalid": "put it right, then: crewline check",
    "bus.unavailable": "try again; if it stays so, look who holds the log: crewline topics lag",
    "bus.damaged": "stop what runs on it, and restore the state folder from a copy",
    "bus.unknown_topic": "crewline topics list",
    "bus.topic_mismatch": "name another state folder: --state DIR",
    "store": "crewline doctor looks at it; docs/memory.md says what it must be like",
    "run.failed": "crewline runs show last",
}


def to_json(value: Any) -> str:
    """Return `value` as one line of JSON; `msgspec.Raw` in it is kept to the letter."""
    import msgspec

    return msgspec.json.encode(value).decode()


class ReaderGone(Exception):
    """Whoever read our output has gone (`| head`). Not an OSError: Typer has its own idea of those."""


def write(stream: TextIO, text: str) -> None:
    """Write and flush. Raises: ReaderGone."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None


class Output:
    """One command's output, as the global options want it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.color_out = settings.colored(sys.stdout)
        self.color_err = settings.colored(sys.stderr)

    # --- stdout --------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Print a run's answer: to the letter when piped, rendered as markdown on a coloured terminal."""
        if self.color_out and self.settings.lively(sys.stdout):
            from rich.console import Console
            from rich.markdown import Markdown

            Console(file=sys.stdout).print(Markdown(clean(text)))
        else:
            self.put(clean(text) if sys.stdout.isatty() else text)

    def put(self, line: str) -> None:
        """Print a line of data."""
        write(sys.stdout, line + "\n")

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        self.put(to_json(value))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """Print rows under their columns, as wide as they need; `right` names those aligned to the right."""
        cells = [[clean(cell, one_line=True) for cell in row] for row in rows]
        widths = [max(map(width_of, each)) for each in zip(columns, *cells, strict=True)]
        sides = [column in right for column in columns]
        titles = "  ".join(map(pad, columns, widths, sides)).rstrip()
        self.put(paint(titles, "bold", on=self.color_out))
        for row in cells:
            self.put("  ".join(map(pad, row, widths, sides)).rstrip())

    # --- stderr --------------------------------------------------------------------------------

    def say(self, line: str, *, tone: str = "") -> None:
        """Print a line for people, unless --quiet."""
        if not self.settings.quiet:
            self.insist(line, tone=tone)

    def insist(self, line: str, *, tone: str = "") -> None:
        """Print a line for people, whatever --quiet says: a warning, a question."""
        write(sys.stderr, paint(line, tone, on=self.color_err) + "\n")

    def fail(self, error: CrewlineError) -> int:
        """Say what went wrong and what to do next; return the exit code."""
        self.say_error(error.code, error.message, error.hint or _HINTS.get(error.code, "crewline --help"))
        return error.exit_code

    def say_error(self, code: str, message: str, hint: str | None) -> None:
        """Say an error: one line and its hint, or one JSON document with --json."""
        if self.settings.json:
            write(sys.stderr, to_json({"error": {"code": code, "message": message, "hint": hint}}) + "\n")
            return
        text = f"{paint('error:', 'red', on=self.color_err)} {clean(message)}\n"
        if hint:
            text += f"  {paint('→', 'dim', on=self.color_err)} {clean(hint)}\n"
        write(sys.stderr, text)
