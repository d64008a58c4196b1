"""Writes the live view's lines to stderr, appended; on a terminal, with a footer below them."""

from __future__ import annotations

import shutil
import sys
import time

from crewline.cli.live import NAME_WIDTH, WIDTH, Line, format_line
from crewline.cli.output import Output
from crewline.cli.text import clean, cut, duration, paint, width_of

NAME_WIDTH_MAX = 20
WIDTH_MAX = 120


class Printer:
    """Writes lines to stderr; on a terminal, a footer below them says what is waited for."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._lively = out.settings.lively(sys.stderr) and not out.settings.quiet
        self._name_width = NAME_WIDTH
        self._footer = ""
        self._began = time.monotonic()

    def show(self, lines: list[Line]) -> None:
        """Append lines."""
        self.clear()
        for line in lines:
            self._name_width = max(self._name_width, min(NAME_WIDTH_MAX, width_of(line.who)))
            self._out.say(
                format_line(line, width=self._width(), name_width=self._name_width, color=self._out.color_err)
            )

    def footer(self, text: str) -> None:
        """Draw the line below: how long it takes, and what is waited for. Nothing where it cannot be drawn over."""
        if not self._lively:
            return
        took = duration(time.monotonic() - self._began)
        footer = cut(clean(f"{took}  {text}", one_line=True), self._width() - 1)
        sys.stderr.write(f"\r\x1b[2K{paint(footer, 'dim', on=self._out.color_err)}")
        sys.stderr.flush()
        self._footer = footer

    def clear(self) -> None:
        """Take the footer away."""
        if self._footer:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._footer = ""

    def _width(self) -> int:
        if not self._lively:
            return WIDTH
        return min(WIDTH_MAX, max(40, shutil.get_terminal_size((WIDTH, 24)).columns))
