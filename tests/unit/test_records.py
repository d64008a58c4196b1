"""The border: what gets past `Reader`, and what `Scribe` writes."""

from __future__ import annotations

from typing import Any

import pytest
from crewline import events
from crewline.bus.base import RECORD_BYTES_MAX, Message, Record
from crewline.errors import RecordInvalid, RecordTooLarge, SealError, UnknownEvent, UsageError
from crewline.events import EVENTS
from crewline.records import GUARD, PEOPLE, UNSEALED, WRITERS, Reader, Scribe
from crewline.seal import DEPLOYMENT, Keyring, key_id
from crewline.topics import partition_of
from wire_examples import full

TOPIC, PARTITIONS, AT_MS = "demo.conversations", 12, 1_795_641_851_123
SEALERS = [DEPLOYMENT, "pool/payments", GUARD, PEOPLE, UNSEALED]


def ring(deployment: bytes = b"d" * 32, guard: bytes = b"g" * 32, people: bytes = b"p" * 32) -> Keyring:
    from nacl.signing import SigningKey

    halves = {who: bytes(SigningKey(seed).verify_key) for who, seed in ((GUARD, guard), (PEOPLE, people))}
    public = {f"{who}-{key_id(half)}": half for who, half in halves.items()}
    return Keyring(deployment=deployment, guard=guard, people=people, public=public)


def message_by(sealer: str, name: str, *, keyring: Keyring | None = None, key: str = "c-1", **more: Any) -> Message:
    """Return the example of an event as `sealer` would write it."""
    scribe = Scribe(keyring or ring(), source="demo", now_ms=lambda: AT_MS)
    message = scribe.message(
        TOPIC,
        key,
        full(EVENTS[name]),
        id="i-1",
        run="r-1",
        signed_by=sealer if sealer in (GUARD, PEOPLE) else None,
        seal_as=sealer if sealer.startswith("pool/") else None,
        **more,
    )
    if sealer == UNSEALED:
        headers = tuple(header for header in message.headers if header[0] != "seal")
        return Message(message.topic, message.key, message.value, headers)
    return message


def record_of(message: Message, *, partition: int | None = None, topic: str = TOPIC) -> Record:
    where = partition_of(message.key, PARTITIONS) if partition is None else partition
    return Record(topic, where, 7, AT_MS, message.key, message.value, message.headers)


@pytest.fixture
def reader() -> Reader:
    return Reader(ring(), partitions=PARTITIONS)


# Who may write what, said a second time: by hand, from the design, not from the code.
ORDINARY = {
    "turn.started", "model.replied", "model.failed", "delegation.chosen", "cancel.requested", "turn.finished",
    "record.rejected", "tokens.streamed", "event.taken", "firing.started", "time.passed", "firing.closed",
}  # fmt: skip
MAY_WRITE = {
    DEPLOYMENT: ORDINARY | {"intent.published", "intent.answered", "call.completed", "call.progressed", "agent.advertised"},
    "pool/payments": {
        "call.requested", "call.revoked", "call.started", "call.refused", "call.abandoned", "call.done",
        "call.completed", "call.progressed",
    },
    GUARD: {"call.judged", "approval.decided", "checkpoint.signed", "limit.asked", "limit.answered", "limit.settled"},
    PEOPLE: {"approval.decided", "call.resolved"},
    UNSEALED: {"intent.published", "intent.answered", "agent.advertised"},
}  # fmt: skip


@pytest.mark.parametrize("sealer", SEALERS, ids=lambda sealer: sealer or "unsealed")
@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_event_counts_only_from_those_who_may_write_it(reader: Reader, sealer: str, name: str) -> None:
    record = record_of(message_by(sealer, name))
    if name in MAY_WRITE[sealer]:
        entry = reader.read(record)
        assert (entry.sealed_by, entry.event) == (sealer, full(EVENTS[name]))
    else:
        with pytest.raises(SealError, match=r"may not be written by"):
            reader.read(record)


def test_every_event_has_its_writers() -> None:
    assert set(WRITERS) == set(EVENTS) == set().union(*MAY_WRITE.values())


def test_an_entry_says_what_the_record_says(reader: Reader) -> None:
    message = message_by(DEPLOYMENT, "turn.started", cause="i-0")
    record = record_of(message)

    entry = reader.read(record)

    assert (entry.key, entry.id, entry.type, entry.run, entry.cause) == ("c-1", "i-1", "turn.started", "r-1", "i-0")
    assert (entry.offset, entry.at_ms) == (7, AT_MS)
    assert entry.record is record
    assert entry.seal == events.header(message.headers, "seal")


def test_a_record_without_a_run_opens_its_own(reader: Reader) -> None:
    message = message_by(UNSEALED, "intent.published")
    headers = tuple(header for header in message.headers if header[0] != "ce_correlationid")
    assert reader.read(record_of(Message(TOPIC, message.key, message.value, headers))).run == "i-1"


# --- broken, moved, foreign --------------------------------------------------------------------


def test_a_changed_value_is_refused(reader: Reader) -> None:
    record = record_of(message_by(DEPLOYMENT, "turn.started"))
    assert record.value is not None
    with pytest.raises(SealError, match="changed or forged"):
        reader.read(record._replace(value=record.value.replace(b'"turn":', b'"turn": ')))


def test_a_broken_seal_does_not_fall_back_to_unsealed(reader: Reader) -> None:
    """Else a forger could have an intent taken by breaking its seal, under an id of his choice."""
    record = record_of(message_by(DEPLOYMENT, "intent.published"))
    assert record.value is not None
    with pytest.raises(SealError, match="changed or forged"):
        reader.read(record._replace(value=record.value[:-1] + b" }"))


def test_a_record_copied_to_another_topic_is_refused(reader: Reader) -> None:
    with pytest.raises(SealError):
        reader.read(record_of(message_by(DEPLOYMENT, "turn.started"), topic="other.conversations"))


def test_a_record_under_another_type_or_id_is_refused(reader: Reader) -> None:
    message = message_by(DEPLOYMENT, "turn.finished")
    for name, other in (("ce_type", b"intent.published"), ("ce_id", b"i-2")):
        headers = tuple((key, other if key == name else value) for key, value in message.headers)
        with pytest.raises(RecordInvalid):
            reader.read(record_of(Message(TOPIC, message.key, message.value, headers)))


@pytest.mark.parametrize("name", ["intent.published", "intent.answered", "agent.advertised"])
def test_another_deployments_seal_is_no_seal_where_none_is_needed(reader: Reader, name: str) -> None:
    entry = reader.read(record_of(message_by(DEPLOYMENT, name, keyring=ring(deployment=b"o" * 32))))
    assert entry.sealed_by == UNSEALED


@pytest.mark.parametrize(("sealer", "name"), [(DEPLOYMENT, "turn.started"), (GUARD, "call.judged"), (PEOPLE, "call.resolved")])
def test_another_deployments_seal_is_refused_where_one_is_needed(reader: Reader, sealer: str, name: str) -> None:
    foreign = ring(deployment=b"o" * 32, guard=b"q" * 32, people=b"r" * 32)
    with pytest.raises(SealError, match=r"does not hold|not in the keys folder"):
        reader.read(record_of(message_by(sealer, name, keyring=foreign)))


# --- keys and partitions -----------------------------------------------------------------------


def test_a_record_on_a_partition_that_is_not_its_keys_is_refused(reader: Reader) -> None:
    message = message_by(DEPLOYMENT, "turn.started")
    elsewhere = (partition_of(message.key, PARTITIONS) + 1) % PARTITIONS
    with pytest.raises(RecordInvalid, match="murmur2_random"):
        reader.read(record_of(message, partition=elsewhere))


def test_a_rejection_may_stand_where_the_rejected_record_does(reader: Reader) -> None:
    message = message_by(DEPLOYMENT, "record.rejected")
    elsewhere = (partition_of(message.key, PARTITIONS) + 1) % PARTITIONS
    assert reader.read(record_of(message, partition=elsewhere)).type == "record.rejected"


@pytest.mark.parametrize("key", [b"", b"\xff\xfe"])
def test_a_key_that_is_no_conversation_is_refused(reader: Reader, key: bytes) -> None:
    message = message_by(UNSEALED, "intent.published")
    with pytest.raises(RecordInvalid, match="key"):
        reader.read(record_of(Message(TOPIC, key, message.value, message.headers)))


def test_an_unknown_type_is_left_to_a_newer_process_if_one_of_us_wrote_it(reader: Reader) -> None:
    message = message_by(UNSEALED, "intent.published")
    headers = tuple((key, b"moon.landed" if key == "ce_type" else value) for key, value in message.headers)
    with pytest.raises(SealError):
        reader.read(record_of(Message(TOPIC, message.key, message.value, headers)))
    id = events.header(message.headers, "ce_id") or ""
    seal = ring().seal(TOPIC, message.key, "moon.landed", id, message.value or b"")
    with pytest.raises(UnknownEvent):
        reader.read(record_of(Message(TOPIC, message.key, message.value, (*headers, ("seal", seal.encode())))))


def test_a_tombstone_is_no_entry(reader: Reader) -> None:
    message = message_by(DEPLOYMENT, "agent.advertised")
    with pytest.raises(RecordInvalid):
        reader.read(record_of(Message(TOPIC, message.key, None, message.headers)))


# --- writing -----------------------------------------------------------------------------------


def test_a_record_over_the_limit_is_not_made() -> None:
    scribe = Scribe(ring(), source="demo", now_ms=lambda: AT_MS)
    fits = events.CancelRequested(by="x" * (RECORD_BYTES_MAX - len('{"by":""}')))
    assert len(scribe.message(TOPIC, "c-1", fits, id="i", run="r").value or b"") == RECORD_BYTES_MAX
    with pytest.raises(RecordTooLarge, match="900,000"):
        scribe.message(TOPIC, "c-1", events.CancelRequested(by=fits.by + "x"), id="i", run="r")


@pytest.mark.parametrize("seal_as", [DEPLOYMENT, "pool/mail"])
def test_a_role_cannot_write_with_a_key_it_does_not_hold(seal_as: str) -> None:
    scribe = Scribe(ring().for_pool("payments"), source="demo", now_ms=lambda: AT_MS, seal_as=seal_as)
    with pytest.raises(UsageError):
        scribe.message(TOPIC, "c-1", full(events.CallDone), id="i", run="r")


def test_a_pools_scribe_seals_as_its_pool(reader: Reader) -> None:
    scribe = Scribe(ring().for_pool("payments"), source="demo", now_ms=lambda: AT_MS, seal_as="pool/payments")
    message = scribe.message(TOPIC, "c-1", full(events.CallCompleted), id="i", run="r")
    assert reader.read(record_of(message)).sealed_by == "pool/payments"


def test_what_the_worker_sends_to_a_pool_is_read_with_that_pools_key() -> None:
    pool = Reader(ring().for_pool("payments"), partitions=PARTITIONS)
    message = message_by("pool/payments", "call.requested")
    assert pool.read(record_of(message)).sealed_by == "pool/payments"
