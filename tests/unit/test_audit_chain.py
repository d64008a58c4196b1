"""The hash chain, its checkpoints, and the walk that names the first break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from crewline import events as ev
from crewline.bus.base import Batch, Message, Record
from crewline.guardrail.audit import START, AuditTrail, head_after
from crewline.guardrail.audit_verify import AuditReport, verify
from crewline.records import Scribe
from crewline.seal import Keyring, key_id
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

TOPIC, AUDIT = "demo.conversations", "demo.audit"


def keyring(seed: bytes = b"g" * 32) -> Keyring:
    public = bytes(SigningKey(seed).verify_key)
    return Keyring(deployment=b"d" * 32, guard=seed, public={f"guard-{key_id(public)}": public})


class Log:
    """Two topics in lists: what `verify` reads of a bus."""

    def __init__(self, partitions: int = 2) -> None:
        self.records: dict[tuple[str, int], list[Record]] = {(TOPIC, p): [] for p in range(partitions)}
        self.records[AUDIT, 0] = []
        self.begins: dict[tuple[str, int], int] = {}

    def add(self, message: Message) -> Record:
        partition = message.partition or 0
        records = self.records[message.topic, partition]
        record = Record(message.topic, partition, len(records), 5, message.key, message.value, message.headers)
        records.append(record)
        return record

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        mine = {partition: records for (name, partition), records in self.records.items() if name == topic}
        return ({p: self.begins.get((topic, p), 0) for p in mine},
                {p: records[-1].offset + 1 if records else 0 for p, records in mine.items()})

    async def read(self, topic: str, partition: int, start: int, *, records_max: int = 500) -> Batch:
        end = (await self.offsets(topic))[1][partition]
        found = [record for record in self.records[topic, partition] if record.offset >= start][:3]
        return Batch(topic, partition, found, found[-1].offset + 1 if found else end, end)


class Owner:
    """A guardrail that folds every record of a log, batch by batch."""

    def __init__(self, log: Log, *, file: Path | None = None, records: int = 4) -> None:
        self.log, self.now_ms, self.heads = log, 1_000, {0: b"", 1: b""}
        self.keyring = keyring()
        self.scribe = Scribe(self.keyring, source="demo", now_ms=lambda: self.now_ms)
        self.trail = AuditTrail(self.scribe, clock_ms=lambda: self.now_ms, audit_topic=AUDIT, file=file, records=records)

    def write(self, count: int, partition: int = 0) -> None:
        """Append records one by one and fold each; checkpoints go to the audit topic."""
        for _ in range(count):
            n = len(self.log.records[TOPIC, partition])
            message = self.scribe.message(TOPIC, f"c{partition}", ev.CancelRequested(by=f"n{n}"), id=f"id{n}", run="r",
                                          partition=partition)
            self.fold(self.log.add(message))

    def fold(self, record: Record) -> None:
        head = self.heads[record.partition] = self.trail.observe(self.heads[record.partition], record)
        for message in self.trail.checkpoint(TOPIC, record.partition, record.offset + 1, head):
            self.log.add(message)

    async def verify(self, file: Path | None = None) -> AuditReport:
        bus: Any = self.log
        return await verify(bus, TOPIC, audit_topic=AUDIT, keyring=self.keyring, file=file)


def signed_at(log: Log) -> list[tuple[int, int]]:
    found = [json.loads(record.value or b"") for record in log.records[AUDIT, 0]]
    return [(each["partition"], each["next_offset"]) for each in found]


# --- the chain -----------------------------------------------------------------------------------

BYTES = st.binary(max_size=6)
RECORDS = st.builds(
    Record, st.just("t"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), BYTES, st.none() | BYTES,
    st.lists(st.tuples(st.text(max_size=3), BYTES), max_size=3).map(tuple),
)


@given(RECORDS, RECORDS)
def test_two_records_have_one_head_only_if_all_that_counts_is_equal(one: Record, other: Record) -> None:
    counts = [(r.partition, r.offset, r.key, r.value, r.headers) for r in (one, other)]
    assert (head_after(START, one) == head_after(START, other)) == (counts[0] == counts[1])


def test_nothing_moves_from_one_part_into_the_next() -> None:
    base = Record("t", 0, 0, 0, b"ab", b"cd", (("h", b"x"),))
    for other in (
        base._replace(key=b"abh", headers=(("", b"x"),)), base._replace(key=b"a", value=b"bcd"),
        base._replace(headers=(("hx", b""),)), base._replace(value=b"", headers=(("h", b"xcd"),)),
        base._replace(value=None), base._replace(headers=()), base._replace(offset=1), base._replace(partition=1),
    ):
        assert head_after(START, other) != head_after(START, base)
    assert head_after(START, base._replace(timestamp_ms=9, topic="u")) == head_after(b"", base)


def plain_head(before: bytes, record: Record) -> bytes:
    """The chain as the page describes it, written a second time and slowly."""
    parts = [record.key]
    for name, content in record.headers:
        parts += [name.encode(), content]
    lengths = [len(part) for part in parts] + [0xFFFFFFFF if record.value is None else len(record.value)]
    numbers = record.partition.to_bytes(4, "big") + record.offset.to_bytes(8, "big")
    numbers += len(record.headers).to_bytes(4, "big") + b"".join(length.to_bytes(4, "big") for length in lengths)
    return hashlib.sha256(before + numbers + b"".join(parts) + (record.value or b"")).digest()


def test_the_chain_is_what_the_page_says_and_does_not_change() -> None:
    one = Record("t", 1, 2, 3, b"key", b"value", (("ce_id", b"1"), ("seal", b"s")))
    other = Record("t", 1, 3, 3, b"key", None, ())
    first = head_after(b"", one)
    assert first == plain_head(b"\0" * 32, one)
    assert head_after(first, other) == plain_head(first, other)
    assert first.hex() == "ecdeaba16491d65ed7f7c8e0ad27c7fc8293853006424f4dd6f0b7277ffd5777"


def test_names_of_headers_that_are_no_utf8_are_chained_too() -> None:
    record = Record("t", 0, 0, 0, b"\xff", b"\xff", (("\udcff", b"\xff"),))
    assert head_after(START, record) != head_after(START, record._replace(headers=(("\udcfe", b"\xff"),)))


# --- checkpoints ---------------------------------------------------------------------------------


async def test_a_checkpoint_is_due_at_take_over_and_after_so_many_records() -> None:
    owner = Owner(Log())
    owner.write(10)
    assert signed_at(owner.log) == [(0, 1), (0, 5), (0, 9)]


async def test_a_checkpoint_is_due_after_a_minute_if_something_came() -> None:
    owner = Owner(Log(), records=1_000)
    owner.write(2)
    owner.now_ms += 59_999
    owner.write(1)
    owner.now_ms += 1
    assert owner.trail.checkpoint(TOPIC, 0, 1, owner.heads[0]) == (), "nothing came since"
    owner.write(1)
    assert signed_at(owner.log) == [(0, 1), (0, 4)]


async def test_without_an_audit_topic_the_chain_is_kept_and_nothing_is_signed() -> None:
    owner = Owner(Log())
    trail = AuditTrail(owner.scribe, clock_ms=lambda: 0)
    record = Record("t", 0, 0, 0, b"k", b"v", ())
    assert trail.checkpoint(TOPIC, 0, 1, trail.observe(b"", record)) == ()


async def test_a_disk_that_fails_is_said_and_does_not_stop_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner(Log(), file=tmp_path / "nowhere" / "audit.jsonl")
    owner.write(1)
    assert signed_at(owner.log) == [(0, 1)]
    assert "audit.jsonl" in caplog.text


# --- verify --------------------------------------------------------------------------------------


async def test_an_untouched_log_holds(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    owner = Owner(Log(), file=file)
    owner.write(10)
    owner.write(3, partition=1)
    report = await owner.verify(file)

    assert report.ok
    assert (report.records, report.checkpoints, report.unchecked, report.warnings) == (13, 4, {0: 1, 1: 2}, [])
    assert file.stat().st_mode & 0o777 == 0o600


async def test_two_owners_sign_the_same_heads() -> None:
    owner = Owner(Log())
    owner.write(10)
    zombie = Owner(owner.log, records=3)
    for record in list(owner.log.records[TOPIC, 0]):
        zombie.fold(record)
    report = await owner.verify()
    assert report.ok
    assert len(signed_at(owner.log)) == 7
    assert report.checkpoints == 6, "one of them was signed by both"


def spoil(records: list[Record], how: str) -> None:
    match how:
        case "value":
            records[6] = records[6]._replace(value=b'{"by":"x"}')
        case "key":
            records[6] = records[6]._replace(key=b"c9")
        case "header":
            records[6] = records[6]._replace(headers=records[6].headers[:-1])
        case "removed":
            del records[6]
        case "swapped":
            records[6], records[7] = records[7]._replace(offset=6), records[6]._replace(offset=7)
        case "closed up":
            records[6:] = [record._replace(offset=record.offset - 1) for record in records[7:]]


@pytest.mark.parametrize("how", ["value", "key", "header", "removed", "swapped", "closed up"])
async def test_whatever_is_changed_is_found_between_two_checkpoints(how: str) -> None:
    owner = Owner(Log())
    owner.write(10)
    spoil(owner.log.records[TOPIC, 0], how)
    report = await owner.verify()

    assert not report.ok
    assert report.first is not None
    assert (report.first.code, report.first.partition, report.first.offset, report.first.until) == ("audit.changed", 0, 5, 8)


async def test_the_first_break_is_the_first_partitions() -> None:
    owner = Owner(Log())
    owner.write(10, partition=1)
    owner.write(10)
    for partition in (1, 0):
        spoil(owner.log.records[TOPIC, partition], "value")
    report = await owner.verify()
    assert report.first is not None
    assert [found.partition for found in report.breaks] == [0, 1]
    assert report.first.partition == 0


@pytest.mark.parametrize("kept", [0, 5, 8])
async def test_a_log_cut_off_at_its_end_is_found(kept: int) -> None:
    owner = Owner(Log())
    owner.write(10)
    del owner.log.records[TOPIC, 0][kept:]
    report = await owner.verify()
    assert report.first is not None
    assert (report.first.code, report.first.offset, report.first.until) == ("audit.truncated", kept, 8)


async def test_a_cut_log_is_found_by_the_file_if_the_audit_topic_is_cut_as_well(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    owner = Owner(Log(), file=file)
    owner.write(10)
    del owner.log.records[TOPIC, 0][6:]
    del owner.log.records[AUDIT, 0][1:]

    assert (await owner.verify()).ok, "the broker alone tells a whole story"
    report = await owner.verify(file)
    assert [found.code for found in report.breaks] == ["audit.truncated"]
    assert report.warnings == ["2 checkpoints stand in the file alone, not on the audit topic"]


async def test_a_log_without_its_beginning_is_checked_from_a_checkpoint_or_not_at_all() -> None:
    owner = Owner(Log())
    owner.write(10)
    records = owner.log.records[TOPIC, 0]
    for begin, codes in ((5, []), (6, ["audit.start_gone"])):
        owner.log.records[TOPIC, 0] = records[begin:]
        owner.log.begins[TOPIC, 0] = begin
        report = await owner.verify()
        assert [found.code for found in report.breaks] == codes
    owner.log.begins[TOPIC, 0] = 5
    owner.log.records[TOPIC, 0] = [records[5], *records[7:]]
    report = await owner.verify()
    assert report.first is not None
    assert (report.first.code, report.first.offset, report.first.until) == ("audit.changed", 5, 8)


async def test_a_forged_checkpoint_does_not_count_and_is_named() -> None:
    owner = Owner(Log())
    owner.write(3)
    forger = Scribe(keyring(b"f" * 32), source="demo", now_ms=lambda: 0)
    signed = ev.CheckpointSigned(TOPIC, 0, 2, "00" * 32, 0)
    owner.log.add(forger.message(AUDIT, f"{TOPIC}/0", signed, id="x", run="r", signed_by="guard"))
    owner.log.add(owner.scribe.message(AUDIT, f"{TOPIC}/0", signed, id="y", run="r"))
    report = await owner.verify()
    assert [found.code for found in report.breaks] == ["audit.forged", "audit.forged"]
    assert f"{AUDIT}@1" in report.breaks[0].say


async def test_file_and_topic_that_tell_different_stories_are_found(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    owner = Owner(Log(), file=file)
    owner.write(5)
    other = Owner(Log())
    other.write(1)
    other.now_ms += 1
    changed = other.log.records[TOPIC, 0][0]._replace(value=b"{}")
    log = other.log
    log.records[TOPIC, 0], log.records[AUDIT, 0] = [], []
    log.records[TOPIC, 0].append(changed)
    again = Owner(log)
    again.fold(changed)
    report = await again.verify(file)
    assert "audit.disagree" in [found.code for found in report.breaks]


@pytest.mark.parametrize("line", [b"{}\n", b"\xff\xff\n", b'{"value": 5, "seal": 1, "topic": 2, "key": 3, "id": 4}\n', b"[]\n"])
async def test_a_line_that_is_no_checkpoint_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "audit.jsonl"
    owner = Owner(Log(), file=file)
    owner.write(1)
    with file.open("ab") as out:
        out.write(line)
    report = await owner.verify(file)
    assert [found.code for found in report.breaks] == ["audit.forged"]
    assert f"{file}:2" in report.breaks[0].say


async def test_a_line_torn_by_a_crash_and_a_missing_file_are_said_but_break_nothing(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    owner = Owner(Log(), file=file)
    owner.write(1)
    with file.open("ab") as out:
        out.write(b'{"topic":')
    for where in (file, tmp_path / "none"):
        report = await owner.verify(where)
        assert report.ok
        assert len(report.warnings) == 1


def test_records_may_have_holes_between_them() -> None:
    records: Sequence[Record] = [Record("t", 0, offset, 0, b"k", b"v", ()) for offset in (0, 1, 4, 9)]
    head = b""
    for record in records:
        head = head_after(head, record)
    assert len(head) == 32
