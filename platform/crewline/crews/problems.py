"""What is wrong with a crew file, and where."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crewline.errors import CrewlineError

Severity = Literal["error", "warning"]
Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Where something stands. Line and column count from 1; 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: `file:line:col: path: what is wrong; what to do`, warnings marked."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: Severity = "error"

    @classmethod
    def at(cls, place: Place, path: str, message: str, severity: Severity = "error") -> Problem:
        """Return the finding at `place`."""
        return cls(place.file, place.line, place.column, path, message, severity)

    def __str__(self) -> str:
        where = Place(self.file, self.line, self.column)
        warning = "warning: " if self.severity == "warning" else ""
        return f"{where}: {warning}{f'{self.path}: ' if self.path else ''}{self.message}"


class CrewFileError(CrewlineError):
    """The crew file has problems: all of them that are errors, in order of line, in `problems`."""

    code = "crew.invalid"
    exit_code = 3

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def in_order(problems: Collection[Problem]) -> list[Problem]:
    """Return the findings by file and line, each once."""
    return sorted(dict.fromkeys(problems), key=lambda each: (each.file, each.line, each.column, each.path, each.message))


def dotted(path: Path) -> str:
    """Return a path as messages show it: `agents.frontdesk.tools.0`."""
    return ".".join(map(str, path))


def closest(word: str, known: Collection[str]) -> str | None:
    """Return the one of `known` that was probably meant by `word`, or None."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return "; did you mean 'goal'?" or ""."""
    meant = closest(word, known)
    return f"; did you mean {meant!r}?" if meant is not None else ""
