"""aiokafka's log: with a broker away it repeats itself ten times a second; here each line comes at most once in a while."""

from __future__ import annotations

import logging
import time

REPEAT_S = 30.0


class OnceInAWhile(logging.Filter):
    """Lets a line of one place in the code pass once per `REPEAT_S`, and says how often it came meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        place = (record.name, record.lineno)
        since, held_back = self._seen.get(place, (-REPEAT_S, 0))
        if now - since < REPEAT_S:
            self._seen[place] = (since, held_back + 1)
            return False
        self._seen[place] = (now, 0)
        if held_back:
            record.msg = f"{record.getMessage()} ({held_back} more like this in between)"
            record.args = ()
        return True


_filter = OnceInAWhile()


def limit_logs() -> None:
    """Limit every logger of aiokafka, and of the bus on it, that there is by now. Again: no change."""
    for name in list(logging.root.manager.loggerDict):
        if name == "aiokafka" or name.startswith(("aiokafka.", "crewline.bus.kafka")):
            logging.getLogger(name).addFilter(_filter)  # a parent's filters do not see a child's records
