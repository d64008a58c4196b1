"""aiokafka's log: with a broker away it repeats itself ten times a second; here each line comes at most once in a while."""

from __future__ import annotations

import logging

from crewline.bus.repeated import OnceInAWhile

REPEAT_S = 30.0
ORDINARY = "Heartbeat failed for group %s because it is rebalancing"  # so a member hears of any coming and going


def is_worth_saying(record: logging.LogRecord) -> bool:
    """Return whether to pass a line on. aiokafka warns of each rebalance: that is for whoever looks for bugs."""
    if record.msg == ORDINARY and record.levelno > logging.DEBUG:
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    return True


_filter = OnceInAWhile(REPEAT_S)


def limit_logs() -> None:
    """Limit every logger of aiokafka, and of the bus on it, that there is by now. Again: no change."""
    for name in list(logging.root.manager.loggerDict):
        if name == "aiokafka" or name.startswith(("aiokafka.", "crewline.bus.kafka")):
            logger = logging.getLogger(name)  # a parent's filters do not see a child's records
            logger.addFilter(is_worth_saying)
            logger.addFilter(_filter)
