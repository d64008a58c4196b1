"""What this process has sealed itself is known again when it comes back from the log; nothing else passes for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crewline.bus.base import Message, Record
from crewline.errors import RecordInvalid, SealError
from crewline.events import EVENTS, Headers
from crewline.recent import Recent
from crewline.records import Entry, Reader, Scribe
from crewline.seal import Keyring
from crewline.topics import partition_of
from wire_examples import full

TOPIC, PARTITIONS, AT_MS = "demo.conversations", 12, 1_795_641_851_123


def sealed(keyring: Keyring, name: str = "turn.started", *, seal_as: str | None = None, topic: str = TOPIC) -> Message:
    scribe = Scribe(keyring, source="demo", now_ms=lambda: AT_MS)
    return scribe.message(topic, "c-1", full(EVENTS[name]), id="i-1", run="r-1", cause="c", seal_as=seal_as)


def standing(message: Message, **changed: object) -> Record:
    """Return the message as it comes back from a log: equal, but none of its parts the same object."""
    headers = tuple((name, bytes(bytearray(value))) for name, value in message.headers)
    value = bytes(bytearray(message.value or b""))
    partition = partition_of(message.key, PARTITIONS)
    record = Record(message.topic, partition, 7, AT_MS, bytes(bytearray(message.key)), value, headers)
    return record._replace(**changed)  # type: ignore[arg-type]


def others(keyring_of: Callable[[], Keyring], record: Record) -> Entry:
    """Return what a process reads that has the same keys and has not made the record."""
    return Reader(keyring_of(), partitions=PARTITIONS).check(record)


def ring() -> Keyring:
    return Keyring(deployment=b"d" * 32)


def counted(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the seals that are checked in full."""
    checked: list[str] = []
    real = keyring.check

    def check(seal: str, *rest: object) -> str:
        checked.append(seal)
        return real(seal, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(keyring, "check", check)
    return checked


def test_what_was_made_here_reads_as_everybody_else_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = ring()
    record = standing(sealed(keyring))
    checked = counted(keyring, monkeypatch)

    assert Reader(keyring, partitions=PARTITIONS).check(record) == others(ring, record)
    assert checked == []


HEADERS = standing(sealed(ring())).headers


@pytest.mark.parametrize(
    "changed",
    [
        {"value": (standing(sealed(ring())).value or b"") + b" "},
        {"topic": "other.conversations"},
        {"key": b"c-2", "partition": partition_of(b"c-2", PARTITIONS)},
        {"headers": tuple((name, b"i-2" if name == "ce_id" else value) for name, value in HEADERS)},
        {"headers": tuple((name, b"intent.published" if name == "ce_type" else value) for name, value in HEADERS)},
    ],
    ids=["value", "topic", "key", "id", "type"],
)
def test_a_seal_made_here_is_good_for_no_other_record(changed: dict[str, object]) -> None:
    keyring = ring()
    record = standing(sealed(keyring), **changed)

    with pytest.raises(SealError):
        Reader(keyring, partitions=PARTITIONS).check(record)


def test_what_the_seal_does_not_cover_is_read_from_the_record() -> None:
    keyring = ring()
    made = standing(sealed(keyring))
    headers: Headers = tuple((name, b"r-2" if name == "ce_correlationid" else value) for name, value in made.headers)

    assert Reader(keyring, partitions=PARTITIONS).check(made._replace(headers=headers)).run == "r-2"


def test_on_a_partition_that_is_not_its_keys_it_does_not_count() -> None:
    keyring = ring()
    record = standing(sealed(keyring), partition=(partition_of(b"c-1", PARTITIONS) + 1) % PARTITIONS)

    with pytest.raises(RecordInvalid, match="belongs to partition"):
        Reader(keyring, partitions=PARTITIONS).check(record)


def test_a_pool_takes_what_is_sealed_with_its_key_and_nothing_else_that_was_made_beside_it() -> None:
    keyring = ring()
    pool = Reader(keyring.for_pool("payments"), partitions=PARTITIONS)
    tools = "demo.tools.payments"

    assert pool.check(standing(sealed(keyring, "call.requested", seal_as="pool/payments", topic=tools))).sealed_by == "pool/payments"
    for name, seal_as in (("turn.started", None), ("call.requested", "pool/other")):
        with pytest.raises(SealError):
            pool.check(standing(sealed(keyring, name, seal_as=seal_as, topic=tools)))


def test_a_type_that_its_writer_may_not_write_is_refused_here_too() -> None:
    keyring = ring()

    with pytest.raises(SealError, match="may not be written by"):
        Reader(keyring, partitions=PARTITIONS).check(standing(sealed(keyring, "call.resolved")))


def test_an_entry_is_kept_for_an_equal_record_and_not_for_another_at_its_place() -> None:
    keyring = ring()
    reader = Reader(keyring, partitions=PARTITIONS)
    message = sealed(keyring)
    entry = reader.read(standing(message))

    assert reader.read(standing(message)) is entry
    assert reader.read(standing(sealed(keyring, "turn.finished"))).type == "turn.finished"


def test_recent_forgets_the_oldest_and_keeps_at_least_its_count() -> None:
    recent: Recent[int, str] = Recent(4)
    for number in range(100):
        recent.put(number, str(number))
        assert [recent.get(kept) for kept in range(max(0, number - 3), number + 1)] == [
            str(kept) for kept in range(max(0, number - 3), number + 1)
        ]
        assert len(recent) <= 8

    assert recent.get(50) is None
