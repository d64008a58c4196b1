"""Bytes in, server-sent events out: the part of a stream that has nothing to do with models.

The rules are those of the HTML standard ("interpreting an event stream"), kept where endpoints bend
them: lines end in LF, CR LF or CR, a byte-order mark may stand first, several data lines are joined
with a line feed, an event without data is dropped, and so is one whose closing blank line never came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SseEvent:
    """One event. `lines` are its data lines in order, at least one of them not blank."""

    name: str
    lines: tuple[str, ...]

    @property
    def data(self) -> str:
        return "\n".join(self.lines)


class SseDecoder:
    """Takes bytes as the network cuts them and returns the events they complete."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False
        self._first = True
        self._name = ""
        self._lines: list[str] = []

    def feed(self, data: bytes) -> list[SseEvent]:
        """Return the events that end within `data`. Bad UTF-8 becomes U+FFFD."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")  # the other half of a CR LF
        seen = len(self._rest)  # it holds no line end: a long line is not searched again for each piece
        self._rest += data
        if self._first:
            if len(self._rest) < len(_BOM) and _BOM.startswith(bytes(self._rest)):
                return []
            self._first = False
            seen = 0
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        events: list[SseEvent] = []
        start = 0
        for end in _LINE_END.finditer(self._rest, seen):
            self._after_cr = end.group() == b"\r" and end.end() == len(self._rest)
            event = self._line(self._rest[start : end.start()].decode("utf-8", "replace"))
            if event is not None:
                events.append(event)
            start = end.end()
        del self._rest[:start]
        return events

    def _line(self, line: str) -> SseEvent | None:
        if not line:
            event = SseEvent(self._name, tuple(self._lines))
            self._name, self._lines = "", []
            return event if any(text.strip() for text in event.lines) else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._lines.append(value)
        elif field == "event":
            self._name = value
        return None  # a comment, `id`, `retry`, or a field that nobody knows
