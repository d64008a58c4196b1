"""Records in and out: an event sealed into a message, a record checked into an entry.

Reading is the border: a record that is no event, stands on a partition its key does not belong to, or
lacks the seal of somebody who may write it, does not get past `Reader`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from crewline import events
from crewline.bus.base import RECORD_BYTES_MAX, Message, Record
from crewline.errors import RecordInvalid, RecordTooLarge, SealError, UnknownEvent
from crewline.events import Event
from crewline.recent import Recent
from crewline.seal import DEPLOYMENT, Keyring, UnknownKey
from crewline.topics import partition_of
from crewline.traceparent import context_of, wanted

GUARD = "guard"
PEOPLE = "people"
UNSEALED = ""
TOMBSTONE = "record.deleted"

_READ = 512  # entries a reader remembers, at least
_MADE_BYTES_MAX = 16_384  # larger values are not remembered, but checked
KEY_BYTES_MAX = 512
HEADER_BYTES_MAX = 1_024  # ids grow by a few dozen bytes on top of a key
_ORDINARY = frozenset({DEPLOYMENT})
# Who may write each type. A pool's word is bounded further by the fold: only calls sent to that pool.
WRITERS: dict[str, frozenset[str]] = {
    "intent.published": frozenset({DEPLOYMENT, UNSEALED}),
    "turn.started": _ORDINARY,
    "model.replied": _ORDINARY,
    "model.failed": _ORDINARY,
    "call.judged": frozenset({GUARD}),
    "approval.decided": frozenset({PEOPLE, GUARD}),
    "call.completed": frozenset({DEPLOYMENT, "pool"}),
    "call.resolved": frozenset({PEOPLE}),
    "delegation.chosen": _ORDINARY,
    "intent.answered": frozenset({DEPLOYMENT, UNSEALED}),
    "cancel.requested": _ORDINARY,
    "turn.finished": _ORDINARY,
    "record.rejected": _ORDINARY,
    # Brains run other people's code in the worker: it must not be able to give a reservation back.
    "limit.asked": frozenset({GUARD}),
    "limit.answered": frozenset({GUARD}),
    "limit.settled": frozenset({GUARD}),
    # The worker seals what it sends to a pool with that pool's key, which it can derive and the pool can check.
    "call.requested": frozenset({"pool"}),
    "call.revoked": frozenset({"pool"}),
    "call.started": frozenset({"pool"}),
    "call.refused": frozenset({"pool"}),
    "call.abandoned": frozenset({"pool"}),
    "call.done": frozenset({"pool"}),
    "event.taken": _ORDINARY,
    "firing.started": _ORDINARY,
    "time.passed": _ORDINARY,
    "firing.closed": _ORDINARY,
    "tokens.streamed": _ORDINARY,
    "call.progressed": frozenset({DEPLOYMENT, "pool"}),
    "checkpoint.signed": frozenset({GUARD}),
    "agent.advertised": frozenset({DEPLOYMENT, UNSEALED}),
}


class Entry(NamedTuple):
    """A checked record. `sealed_by` is `deployment`, `guard`, `people`, `pool/NAME` or "" (unsealed)."""

    record: Record
    key: str
    id: str
    type: str
    run: str
    cause: str
    event: Event
    sealed_by: str
    seal: str

    @property
    def at_ms(self) -> int:
        return self.record.timestamp_ms

    @property
    def offset(self) -> int:
        return self.record.offset


class Made(NamedTuple):
    """A message that this process has sealed. When it comes back from the log, byte for byte, comparing it costs
    a tenth of decoding its headers and sealing it once more."""

    message: Message
    key: str
    id: str
    type: str
    run: str
    cause: str
    seal: str


class Scribe:
    """Seals events into messages.

    Args:
        keyring: the keys this role holds.
        source: `ce_source`, the crew's namespace.
        seal_as: `deployment` or `pool/NAME`: how ordinary records are sealed.
        now_ms: the clock for `ce_time` (people only; order and due times come from the broker's).
    """

    def __init__(self, keyring: Keyring, *, source: str, now_ms: Callable[[], int], seal_as: str = DEPLOYMENT) -> None:
        self._keyring = keyring
        self._source = source
        self._seal_as = seal_as
        self._traced = wanted()
        self.now_ms = now_ms

    def message(
        self,
        topic: str,
        key: str,
        event: Event,
        *,
        id: str,
        run: str,
        cause: str = "",
        signed_by: str | None = None,
        seal_as: str | None = None,
        partition: int | None = None,
        traceparent: str | None = None,
    ) -> Message:
        """Return the message of `event`, sealed; `signed_by` (`guard`, `people`) takes Ed25519 instead, and
        `seal_as` (`pool/NAME`) another key than this scribe's own.

        Raises: RecordTooLarge if its value is over 900 kB; UsageError if the key is not held.
        """
        value = events.encode(event)
        if len(value) > RECORD_BYTES_MAX:
            raise RecordTooLarge(f"{event.TYPE} {id} has {len(value):,} bytes; a record holds {RECORD_BYTES_MAX:,}")
        raw_key = key.encode()
        if self._traced and run and traceparent is None:
            traceparent = str(context_of(run, id))
        seal_as = seal_as or self._seal_as
        if signed_by is not None:
            seal = self._keyring.sign(signed_by, topic, raw_key, event.TYPE, id, value)
        elif seal_as == DEPLOYMENT:
            seal = self._keyring.seal(topic, raw_key, event.TYPE, id, value)
        else:
            seal = self._keyring.seal_as_pool(seal_as[5:], topic, raw_key, event.TYPE, id, value)
        headers = events.headers_of(
            event.TYPE, id, source=self._source, subject=key, at_ms=self.now_ms(), run=run, cause=cause, seal=seal,
            traceparent=traceparent,
        )
        message = Message(topic, raw_key, value, headers, partition)
        if len(value) <= _MADE_BYTES_MAX:
            self._keyring.made.put(headers[-1][1], Made(message, key, id, event.TYPE, run or id, cause, seal))
        return message

    def tombstone(self, topic: str, key: str) -> Message:
        """Return a sealed tombstone: without a seal, anybody could withdraw what others wrote."""
        raw_key = key.encode()
        seal = self._keyring.seal(topic, raw_key, TOMBSTONE, "", b"")
        return Message(topic, raw_key, None, (("ce_type", TOMBSTONE.encode()), ("seal", seal.encode())))


NO_KEY = b"no-key"


def held_key(raw: bytes) -> bytes:
    """Return the key under which a record's conversation is held: its own; or, if that is empty, no UTF-8 or
    too long, one made from it, so that its rejection can be written and found again."""
    if not raw:
        return NO_KEY
    if len(raw) > KEY_BYTES_MAX:
        return f"long-key:{hashlib.sha256(raw).hexdigest()}".encode()
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace").encode()
    return raw


def _check_sizes(record: Record) -> None:
    """Refuse what would grow with every record that is derived from it. Raises: RecordInvalid."""
    if len(record.key) > KEY_BYTES_MAX:
        raise RecordInvalid(f"the key has {len(record.key):,} bytes; a conversation's id has {KEY_BYTES_MAX} at most")
    if max([len(value) for _, value in record.headers], default=0) <= HEADER_BYTES_MAX:
        return
    for name, value in record.headers:
        if len(value) > HEADER_BYTES_MAX:
            raise RecordInvalid(f"header {name[:80]!r} has {len(value):,} bytes; {HEADER_BYTES_MAX:,} at most")


class Reader:
    """Checks records of one topic with `partitions` partitions against a keyring.

    Roles of one process that trust the same keys share one: each record is checked once for all of them.
    """

    def __init__(self, keyring: Keyring, *, partitions: int) -> None:
        self._keyring = keyring
        self._partitions = partitions
        self._read: Recent[tuple[str, int, int], Entry] = Recent(_READ)

    def read(self, record: Record) -> Entry:
        """Return the entry in `record`; see `check`. Remembers the last ones, as long as the record is the same."""
        position = record[:3]
        entry = self._read.get(position)
        if entry is None or (entry.record is not record and entry.record != record):
            entry = self.check(record)
            self._read.put(position, entry)
        return entry

    def check(self, record: Record) -> Entry:
        """Return the entry in `record`.

        Raises:
            RecordInvalid (SealError among them): it counts as absent, and the worker says so.
            UnknownEvent: a newer process may know it.
        """
        if (made := self._made(record)) is not None:
            return made
        key = record.key
        _check_sizes(record)
        try:
            envelope = events.decode(record.headers, record.value)
        except UnknownEvent:
            self._check_unknown(record)
            raise
        if partition_of(key, self._partitions) != record.partition and envelope.type != "record.rejected":
            raise RecordInvalid(
                f"key {key[:80]!r} belongs to partition {partition_of(key, self._partitions)}, not {record.partition}: "
                "its producer must use partitioner=murmur2_random"
            )
        try:
            text = key.decode()
        except UnicodeDecodeError:
            raise RecordInvalid("the key is no UTF-8 text") from None
        if not text:
            raise RecordInvalid("the record has no key; its key must be the conversation's id")
        by = self._sealed_by(record, envelope)
        writers = WRITERS[envelope.type]
        if by not in writers and not (by.startswith("pool/") and "pool" in writers):
            raise SealError(
                f"{envelope.type} may not be written by {by or 'an unsealed producer'}"
                f" (only by {', '.join(sorted(writer or 'anybody' for writer in writers))})"
            )
        return Entry(
            record, text, envelope.id, envelope.type, envelope.run or envelope.id, envelope.cause, envelope.event, by,
            envelope.seal or "",
        )

    def _made(self, record: Record) -> Entry | None:
        """Return the entry in a record that this process has made itself, with a key that this keyring holds."""
        headers = record.headers
        made: Made | None = self._keyring.made.get(headers[-1][1]) if headers else None
        if made is None or made.message[:4] != (record.topic, *record[4:]):
            return None
        by = self._keyring.vouched(made.seal)
        if by is None or partition_of(record.key, self._partitions) != record.partition:
            return None  # it is checked like any other
        if by not in (writers := WRITERS[made.type]) and not (by.startswith("pool/") and "pool" in writers):
            return None
        assert record.value is not None
        event = events.decode_own(made.type, record.value)
        return Entry(record, made.key, made.id, made.type, made.run, made.cause, event, by, made.seal)

    def seals_tombstone(self, record: Record) -> bool:
        """Return whether this deployment wrote a tombstone."""
        try:
            seal = events.header(record.headers, "seal") or ""
            return self._keyring.check(seal, record.topic, record.key, TOMBSTONE, "", b"") == DEPLOYMENT
        except SealError:
            return False

    def _check_unknown(self, record: Record) -> None:
        """A record of an unknown type stops its conversation until a newer process comes: only one of our own may.

        Raises: RecordInvalid if nobody vouches for it.
        """
        seal, type, id = (events.header(record.headers, name) or "" for name in ("seal", "ce_type", "ce_id"))
        if not seal:
            raise SealError(f"unsealed record of the unknown type {type[:80]!r}")
        by = self._keyring.check(seal, record.topic, record.key, type, id, record.value or b"")
        if by not in (DEPLOYMENT, GUARD, PEOPLE):
            raise SealError(f"{by} may not write records of the unknown type {type[:80]!r}")

    def _sealed_by(self, record: Record, envelope: events.Envelope) -> str:
        if envelope.seal is None:
            return UNSEALED
        try:
            return self._keyring.check(
                envelope.seal, record.topic, record.key, envelope.type, envelope.id, record.value or b""
            )
        except UnknownKey:
            if UNSEALED in WRITERS[envelope.type]:
                return UNSEALED  # another deployment's: nobody here vouches for it
            raise
