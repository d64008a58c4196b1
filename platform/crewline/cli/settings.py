"""The global options: what they are, and that they may stand anywhere on the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import typer

STATE = ".crewline"
FLAGS = {
    "--json": "json", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose",
    "--no-color": "no_color", "--no-input": "no_input",
}
VALUES = {"--state": "state", "--bus": "bus", "-b": "bus", "--keys": "keys", "--crew": "crew"}
YAML = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options as given. `bus` and `keys` are None where the crew file, then the state folder, decides."""

    state: Path = Path(STATE)
    bus: str | None = None
    keys: Path | None = None
    crew: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    no_input: bool = False

    @property
    def bus_file(self) -> Path | None:
        """The YAML file whose `bus` section says where the log is, if `--bus` names one."""
        return Path(self.bus) if self.bus is not None and self.bus.endswith(YAML) else None

    @property
    def bus_address(self) -> str | None:
        """The bus's address, if `--bus` gives one."""
        if self.bus is None or self.bus_file is not None:
            return None
        return f"embedded:{self.state}" if self.bus == "embedded" else self.bus

    @property
    def as_options(self) -> str:
        """The options that say where the log is, as another command needs them; each with a blank before it."""
        own_state = self.state != Path(STATE) and self.bus in (None, "embedded")
        given = (("--state", self.state if own_state else None), ("--bus", self.bus), ("--keys", self.keys))
        return "".join(f" {name} {value}" for name, value in given if value is not None)

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to ask: a terminal on both sides, and not told otherwise."""
        return not (self.no_input or self.json or is_ci()) and sys.stdin.isatty() and sys.stderr.isatty()

    def colored(self, stream: TextIO) -> bool:
        """Whether to colour what goes to `stream` (NO_COLOR, then FORCE_COLOR, then the terminal)."""
        if self.no_color or os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR", "") not in ("", "0"):
            return True
        return self.lively(stream) and os.environ.get("TERM") != "dumb"

    def lively(self, stream: TextIO) -> bool:
        """Whether `stream` is a terminal on which a line may be drawn over."""
        return stream.isatty() and not is_ci()


def is_ci() -> bool:
    """Whether a build server runs this: no prompt, no colour, no line drawn over."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def of(context: typer.Context) -> Settings:
    """Return the global options of a running command."""
    settings = context.find_root().obj
    return settings if isinstance(settings, Settings) else Settings()


def hoist(argv: list[str]) -> list[str]:
    """Return `argv` with the global options first, so that they may stand behind the command too.

    What comes after `--` stays as it is.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    first: list[str] = []
    rest: list[str] = []
    tokens = iter(argv[:end])
    for token in tokens:
        name, _, _ = token.partition("=")
        if token in FLAGS or (name in VALUES and "=" in token and name.startswith("--")):
            first.append(token)
        elif token in VALUES:
            first.append(token)
            first += [value for value in [next(tokens, None)] if value is not None]
        else:
            rest.append(token)
    return [*first, *rest, *argv[end:]]


def early(hoisted: list[str]) -> Settings:
    """Return the flags as far as an error needs them before the command line is parsed."""
    end = hoisted.index("--") if "--" in hoisted else len(hoisted)
    given = {FLAGS[token] for token in hoisted[:end] if token in FLAGS}
    given |= {name for name in ("json", "quiet", "verbose", "no_color", "no_input") if _env(name)}
    return Settings(
        json="json" in given, quiet="quiet" in given, verbose="verbose" in given, no_color="no_color" in given,
        no_input="no_input" in given,
    )


def _env(name: str) -> bool:
    return os.environ.get(f"CREWLINE_{name.upper()}", "").lower() in ("1", "true", "yes", "on")
