"""The audit chain: anybody who reads a partition computes the same head, and checkpoints sign it.

    h(n) = sha256( h(n-1) | partition u32 | offset u64 | headers u32 | lengths u32… | parts… )

h(-1) is 32 zero bytes. The parts are the key, each header's name and value in order, and the value; all
their lengths stand before them (big-endian; 0xffffffff: no value, a tombstone), so that no two records
have the same encoding. What the chain is checked with: `audit_verify.py`.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from crewline import events as ev
from crewline.bus.base import Message, Record
from crewline.records import GUARD, Scribe

log = logging.getLogger("crewline.guardrail.audit")

START = b"\0" * 32
CHECKPOINT_RECORDS = 1_000
CHECKPOINT_S = 60.0
_NO_VALUE = 0xFFFFFFFF
_NAMES: dict[str, bytes] = {}  # header names are few; encoding them again for each record is half the cost
_NAMES_MAX = 1_000
_FORMS: dict[int, struct.Struct] = {}


def head_after(head: bytes, record: Record) -> bytes:
    """Return the chain's head after `record`; `head` is the one before it (`START` or b"" at the beginning)."""
    headers = record.headers
    count = len(headers)
    form = _FORMS.get(count)
    if form is None:
        form = _FORMS[count] = struct.Struct(f">IQI{2 * count + 2}I")
    key, value = record.key, record.value
    parts = [key]
    for name, content in headers:
        encoded = _NAMES.get(name)
        parts.append(_encoded(name) if encoded is None else encoded)
        parts.append(content)
    lengths = [len(part) for part in parts]
    if value is None:
        lengths.append(_NO_VALUE)
    else:
        parts.append(value)
        lengths.append(len(value))
    numbers = form.pack(record.partition, record.offset, count, *lengths)
    return sha256(b"".join((head or START, numbers, *parts))).digest()


def _encoded(name: str) -> bytes:
    encoded = name.encode("utf-8", "surrogateescape")
    if len(_NAMES) < _NAMES_MAX:  # an outside producer may send any number of names
        _NAMES[name] = encoded
    return encoded


def checkpoint_key(topic: str, partition: int) -> str:
    """Return the key of a partition's checkpoints on the audit topic."""
    return f"{topic}/{partition}"


class AuditTrail:
    """Keeps the chain's heads, and says when one is to be signed.

    Args:
        scribe: holds the guardrail's Ed25519 key.
        audit_topic: where checkpoints go; None: none are made.
        file: where they are written as well, outside the broker; each is one line of JSON.
        records, seconds: a checkpoint is due after so many records, or this long after the last one.
    """

    def __init__(
        self,
        scribe: Scribe,
        *,
        clock_ms: Callable[[], int],
        audit_topic: str | None = None,
        file: Path | None = None,
        records: int = CHECKPOINT_RECORDS,
        seconds: float = CHECKPOINT_S,
    ) -> None:
        self._scribe = scribe
        self._clock_ms = clock_ms
        self._audit_topic = audit_topic
        self._file = file
        self._records = records
        self._ms = int(seconds * 1000)
        # By partition: (next offset, Unix ms) of the last checkpoint made by this process.
        self._last: dict[int, tuple[int, int]] = {}

    def observe(self, carry: bytes, record: Record) -> bytes:
        """Return the partition's head after `record`, whatever the record is."""
        return head_after(carry, record)

    def checkpoint(self, topic: str, partition: int, next_offset: int, head: bytes) -> Sequence[Message]:
        """Return the checkpoint of a partition if one is due, else nothing. Also writes it to the file.

        The first one of a process is due at once: it says that the chain was taken over whole.
        """
        if self._audit_topic is None or not head:
            return ()
        now_ms = self._clock_ms()
        offset, at_ms = self._last.get(partition, (-1, 0))
        if next_offset == offset:
            return ()
        # A lower offset: the topic was made anew, or another owner was ahead. A clock may have jumped back.
        if 0 <= next_offset - offset < self._records and offset >= 0 and 0 <= now_ms - at_ms < self._ms:
            return ()
        self._last[partition] = (next_offset, now_ms)
        signed = ev.CheckpointSigned(topic, partition, next_offset, head.hex(), now_ms)
        key = checkpoint_key(topic, partition)
        message = self._scribe.message(
            self._audit_topic, key, signed, id=f"checkpoint:{key}:{next_offset}", run=key, signed_by=GUARD
        )
        self._write(message)
        return [message]

    def _write(self, message: Message) -> None:
        """Append the checkpoint to the file. A disk that fails must not stop the guardrail: it says so."""
        if self._file is None:
            return
        headers = dict(message.headers)
        line = {
            "topic": message.topic,
            "key": message.key.decode(),
            "id": headers["ce_id"].decode(),
            "value": (message.value or b"").decode(),
            "seal": headers["seal"].decode(),
        }
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                # One write: lines of several processes do not mix.
                os.write(descriptor, json.dumps(line, separators=(",", ":")).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("%s: the checkpoint was not written: %s; make room, or see to the folder's rights",
                      self._file, error)
