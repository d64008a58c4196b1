"""An outside record becomes an event for a trigger: decoded, timed, and reduced to what the windows need. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from crewline import events as ev
from crewline.bus.base import Record
from crewline.errors import CrewlineError
from crewline.expressions import ExpressionError
from crewline.triggers.aggregates import AggregateError, check_operand
from crewline.triggers.folding import text_of
from crewline.triggers.rules import TriggerRule

EVENT_BYTES_MAX = 256_000
KEY_BYTES_MAX = 400  # with the trigger's name in front it is a record's key
DISTINCT_BYTES_MAX = 1_000
AHEAD_MS = 3_600_000  # how far an event's time may lie after its record's: one far off would close every window
_SECONDS_MAX = 100_000_000_000  # a number below it is Unix seconds (until the year 5138), above milliseconds
_TIME_MS_MAX = 253_402_300_799_999  # the end of the year 9999


class NotTaken(CrewlineError):
    """A record that the trigger cannot use. The message says why, for the dead letter."""

    code = "trigger.record"


class Fresh(NamedTuple):
    """An event to be written under `key` (`trigger/key`)."""

    key: str
    event: ev.EventTaken


def take(record: Record, rule: TriggerRule, *, epoch: int, now_ms: int) -> Fresh | None:
    """Return the event in `record`, or None if the trigger's condition leaves it out.

    Args: now_ms: a record's time counts up to here, since producers' clocks may be ahead.
    Raises: NotTaken.
    """
    event = _decoded(record)
    try:
        values = {"event": event}
        key = text_of(rule.compiled.key.evaluate(values), "key")
        if len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
            raise NotTaken(f"the key has more than {KEY_BYTES_MAX} bytes")
        arrived_ms = min(max(record.timestamp_ms, 0), now_ms)
        at_ms = arrived_ms if rule.compiled.time is None else time_of(rule.compiled.time.evaluate(values))
        if at_ms > arrived_ms + AHEAD_MS:
            raise NotTaken(f"its time lies {(at_ms - arrived_ms) / 3_600_000:.1f} hours after its record's; 1 hour at most")
        if rule.window is None and rule.compiled.when is not None and not rule.compiled.when.truth(values):
            return None
        operands = tuple(
            _operand(aggregate.function, None if aggregate.of is None else aggregate.of.evaluate(values))
            for aggregate in rule.compiled.aggregates.values()
        )
    except ExpressionError as error:
        raise NotTaken(error.message) from None
    except AggregateError as error:
        raise NotTaken(str(error)) from None
    except (ArithmeticError, RecursionError, ValueError) as error:  # a number of 400 digits, 1,000 levels
        raise NotTaken(f"it cannot be worked on: {type(error).__name__}: {error}") from None
    taken = ev.EventTaken(
        rule.digest, record.topic, record.partition, record.offset, at_ms, arrived_ms, epoch, operands,
        event if rule.needs_event else None,
    )
    return Fresh(f"{rule.name}/{key}", taken)


def time_of(value: Any) -> int:
    """Return an event's time in Unix ms: RFC 3339 text (no zone: UTC), Unix seconds, or Unix ms.

    Raises: NotTaken.
    """
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise NotTaken(f"'time' gives {value[:40]!r}, which is no RFC 3339 time") from None
        at_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        at_ms = round(value * 1000 if abs(value) < _SECONDS_MAX else value)
    else:
        raise NotTaken(f"'time' gives {type(value).__name__}; RFC 3339 text or a Unix time is needed")
    if not 0 <= at_ms <= _TIME_MS_MAX:
        raise NotTaken(f"'time' gives {value!r:.40}, which is no time between 1970 and 9999")
    return at_ms


def _decoded(record: Record) -> Any:
    value = record.value
    if value is None:
        raise NotTaken("the record has no value (a tombstone)")
    if len(value) > EVENT_BYTES_MAX:
        raise NotTaken(f"the record has {len(value):,} bytes; an event has {EVENT_BYTES_MAX:,} at most")
    try:
        return msgspec.json.decode(value)
    except RecursionError:
        raise NotTaken("the value is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotTaken(f"the value is not JSON: {error}") from None


def _operand(function: str, value: Any) -> Any:
    operand = check_operand(function, value)
    if function == "distinct" and len(msgspec.json.encode(operand)) > DISTINCT_BYTES_MAX:
        raise AggregateError(f"distinct() takes values of {DISTINCT_BYTES_MAX:,} bytes at most")
    return operand
