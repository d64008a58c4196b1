"""How long a server asks to wait, in seconds, wherever it says so. None: it does not say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_WAIT_WORDS = re.compile(
    r"\b(?:retry|again|wait|available|reset\w*)\b[^.\d]{0,40}?"
    r"((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-zA-Z])\s*)+)",
    re.IGNORECASE,
)
_WAIT_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milli|h|m|s)", re.IGNORECASE)
_UNIT_S = {"ms": 0.001, "milli": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}


def wait_in_headers(headers: Mapping[str, str]) -> float | None:
    """Return the wait of `retry-after-ms` or `retry-after` (seconds, or a date)."""
    fields = {name.lower(): value.strip() for name, value in headers.items()}
    ms = _seconds(fields.get("retry-after-ms"))
    if ms is not None:
        return ms / 1000
    asked = fields.get("retry-after")
    if asked is None:
        return None
    seconds = _seconds(asked)
    if seconds is not None:
        return seconds
    until = _date(asked)
    # The server's own clock, if it shows it: only the difference is meant.
    now = _date(fields.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds()) if until is not None else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def wait_in_body(body: Any, text: str) -> float | None:
    """Return the wait that an error body gives in a field, or in words ("try again in 1m30.5s")."""
    error = body.get("error") if isinstance(body, dict) else None
    for place in (error, body):
        if not isinstance(place, dict):
            continue
        seconds = _seconds(place.get("retry_after"))
        if seconds is not None and not isinstance(place["retry_after"], bool):
            return seconds
        details = place.get("details")
        for detail in details if isinstance(details, list) else []:
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            if isinstance(delay, str) and _seconds(delay.removesuffix("s")) is not None:
                return _seconds(delay.removesuffix("s"))
    found = _WAIT_WORDS.search(text)
    if found is None:
        return None
    parts = _WAIT_PART.findall(found.group(1))
    return _seconds(round(sum(float(number) * _UNIT_S[unit.lower()] for number, unit in parts), 6))


def _seconds(value: Any) -> float | None:
    """Return a wait in seconds, or None if the value is no finite number from 0 up."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
