"""Dead letters: outside records that no trigger could use, as they came, with headers that say why.

A kill can write one twice; topic, partition and offset in its headers tell that it is the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from crewline.bus.base import RECORD_BYTES_MAX, Message, Record
from crewline.triggers.state import KeyState, Letter

KEPT_BYTES = 100_000  # of a value too long to be copied whole
HEADERS_BYTES_MAX = 10_000
_SAY_MAX = 500


def letter_of_record(topic: str, record: Record, trigger: str, say: str) -> Message:
    """Return the dead letter of an outside record: its key, value and headers, and what was wrong."""
    value = record.value
    headers = list(record.headers)
    whole = len(value or b"") + len(record.key) + sum(len(name) + len(each) for name, each in headers)
    if whole > RECORD_BYTES_MAX - HEADERS_BYTES_MAX:
        value, headers = (value or b"")[:KEPT_BYTES], []
        headers.append(("crewline-cut", f"{whole} bytes".encode()))
    headers += _why(trigger, say, record.topic, record.partition, record.offset)
    return Message(topic, record.key[:1_024], value, tuple(headers))


def letter_of_event(topic: str, state: KeyState, letter: Letter) -> Message:
    """Return the dead letter of an event that was taken already: the event (or its operands) as JSON."""
    value = _json(letter.event)
    return Message(
        topic, state.id.encode(), value[:KEPT_BYTES] if len(value) > RECORD_BYTES_MAX - HEADERS_BYTES_MAX else value,
        _why(state.trigger, letter.say, letter.topic, letter.partition, letter.offset),
    )


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _why(trigger: str, say: str, topic: str, partition: int, offset: int) -> tuple[tuple[str, bytes], ...]:
    return (
        ("crewline-trigger", trigger.encode()),
        ("crewline-reason", say[:_SAY_MAX].encode("utf-8", "replace")),
        ("crewline-topic", topic.encode()),
        ("crewline-partition", str(partition).encode()),
        ("crewline-offset", str(offset).encode()),
    )
