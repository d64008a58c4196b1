"""Text for terminals: what is safe to show, how wide it is, how times and counts are written."""

from __future__ import annotations

import re
import time
import unicodedata
from datetime import datetime
from zlib import crc32

from crewline.errors import UsageError

_CODES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}
_AGENT_TONES = ("cyan", "magenta", "blue", "green", "yellow")
# Control characters (a terminal would obey them) and those that turn the writing direction around.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LIMIT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def paint(text: str, tone: str, *, on: bool) -> str:
    """Return `text` in a colour, if `on`."""
    return f"\x1b[{_CODES[tone]}m{text}\x1b[0m" if on and tone in _CODES else text


def tone_of(agent: str) -> str:
    """Return the colour of an agent: the same everywhere, in every process."""
    return _AGENT_TONES[crc32(agent.encode()) % len(_AGENT_TONES)]


def clean(text: str, *, one_line: bool = False) -> str:
    """Return `text` with what a terminal would obey, or the eye would misread, written as `U+202E`."""
    if one_line:
        text = " ".join(text.split())
    return _UNSAFE.sub(lambda found: f"U+{ord(found[0]):04X}", text)


def width_of(text: str) -> int:
    """Return how many columns `text` takes on a terminal."""
    return sum(_width(each) for each in text) if not text.isascii() else len(text)


def _width(char: str) -> int:
    if unicodedata.combining(char) or char == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def pad(text: str, width: int, right: bool = False) -> str:
    """Return `text` filled up to `width` columns."""
    blanks = " " * max(0, width - width_of(text))
    return blanks + text if right else text + blanks


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, with an ellipsis if something is left out."""
    if width_of(text) <= width:
        return text
    used, kept = 1, []
    for char in text:
        used += _width(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"


def duration(seconds: float) -> str:
    """Return a duration as people read it: 412 ms, 7.2 s, 4 min 05 s, 3 h 20 min, 2 d 3 h."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def ago(at_ms: int, now_ms: int) -> str:
    """Return how long ago `at_ms` was."""
    return f"{duration(max(0, now_ms - at_ms) // 1000 or 0)} ago" if now_ms - at_ms >= 1000 else "now"


def clock(at_ms: int) -> str:
    """Return a moment of the log in local time, to the millisecond."""
    return datetime.fromtimestamp(at_ms / 1000).isoformat(" ", timespec="milliseconds")


def count(number: int, noun: str) -> str:
    """Return `1 agent`, `2,608 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """Return a number of bytes: 812 B, 4.1 kB, 3.0 MB."""
    if number < 1_000:
        return f"{number} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if number < factor * 1_000:
            return f"{number / factor:.1f} {unit}"
    return f"{number / 1e12:.1f} TB"


def seconds_of(text: str, what: str) -> float:
    """Return the seconds of `500ms`, `20s`, `5m`, `2h`, `7d`. Raises: UsageError naming `what`."""
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{what} {text!r} is no duration", hint=f"write a number and its unit: {what} 5m")
    return float(found[1]) * _UNIT_S[found[2]]


def moment_of(text: str, what: str) -> int:
    """Return the Unix milliseconds of `1h` (that long ago) or of an ISO time. Raises: UsageError."""
    if _LIMIT.fullmatch(text.strip()):
        return int((time.time() - seconds_of(text, what)) * 1000)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise UsageError(
            f"{what} {text!r} is neither a duration nor a time", hint=f"{what} 1h, or {what} 2026-11-25T09:30"
        ) from None
