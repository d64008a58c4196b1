"""An answer on stdout as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from crewline import events as ev
from crewline.cli.output import write
from crewline.cli.text import clean
from crewline.projection import Frame


class Streamed:
    """Writes the text of a conversation's steps: to the letter when piped. Tokens and records come on two topics, so in any order.

    Args:
        before: called before something is written.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._writing: tuple[str, int] | None = None  # the step and attempt whose text is on the screen
        self._written = ""
        self._said: set[str] = set()  # steps whose record has come: their late tokens are nothing new
        self._midline = False

    def take(self, frame: Frame) -> None:
        """Write the entry agent's text as it comes; what the record says counts, and fills up what was lost."""
        event = frame.event
        if isinstance(event, ev.TokensStreamed) and not event.note and event.step not in self._said:
            self._begin(event.step, event.attempt)
            self._written += event.text
            self._put(event.text)
        elif isinstance(event, ev.ModelReplied):
            text = event.refusal if event.refusal is not None else event.text
            self._begin(frame.event_id, event.attempt, told=text)
            if not event.calls or self._written:
                self._put(text[len(self._written) :])
            self.end_line()
            self._said.add(frame.event_id)
            self._writing, self._written = None, ""

    def _begin(self, step: str, attempt: int, *, told: str | None = None) -> None:
        """Start a new line for another step or attempt, or if what was written is not how the text begins."""
        self._before()
        if self._writing != (step, attempt) or (told is not None and not told.startswith(self._written)):
            self.end_line()
            self._writing, self._written = (step, attempt), ""

    def _put(self, text: str) -> None:
        if text:
            write(sys.stdout, clean(text) if sys.stdout.isatty() else text)
            self._midline = not text.endswith("\n")

    def end_line(self) -> None:
        """End the line, if there is something on it."""
        if self._midline:
            self._put("\n")
