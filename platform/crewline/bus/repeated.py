"""A line of the log that repeats itself, as in an outage, is counted instead."""

from __future__ import annotations

import logging
import time


class OnceInAWhile(logging.Filter):
    """Lets a warning or error of one place in the code pass once per `repeat_s`, with how often it came meanwhile."""

    def __init__(self, repeat_s: float) -> None:
        super().__init__()
        self._repeat_s = repeat_s
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        place = (record.name, record.lineno)
        since, held_back = self._seen.get(place, (-self._repeat_s, 0))
        if now - since < self._repeat_s:
            self._seen[place] = (since, held_back + 1)
            return False
        self._seen[place] = (now, 0)
        if held_back:
            record.msg = f"{record.getMessage()} ({held_back} more like this in between)"
            record.args = ()
        return True
