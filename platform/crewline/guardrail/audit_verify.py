"""Walks a log and its checkpoints, and names the first place where they part.

What it finds: a record changed, removed, added or moved (the head at the next checkpoint differs); a log
cut off at its end (a checkpoint lies beyond it) or at its start; a checkpoint forged, or told in two ways.
What it cannot see: a change after the last checkpoint, and a log and all its checkpoints made anew by
somebody who holds the guardrail's key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from crewline import events as ev
from crewline.bus.base import Bus
from crewline.errors import CrewlineError, RecordInvalid
from crewline.guardrail.audit import head_after
from crewline.records import GUARD
from crewline.seal import Keyring


@dataclass(frozen=True, slots=True)
class AuditBreak:
    """Where log and checkpoints part: some record from `offset` to `until` is not what it was.

    `code`: `audit.changed`, `audit.truncated`, `audit.start_gone`, `audit.forged`, `audit.disagree`.
    """

    code: str
    partition: int
    offset: int
    until: int
    say: str


@dataclass(slots=True)
class AuditReport:
    """What `verify` saw. `unchecked` is how many records stand after the last checkpoint, by partition."""

    records: int = 0
    checkpoints: int = 0
    breaks: list[AuditBreak] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: dict[int, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.breaks

    @property
    def first(self) -> AuditBreak | None:
        """The first break: that of the lowest partition, and there of the lowest offset."""
        return min(self.breaks, key=lambda each: (each.partition, each.offset), default=None)


@dataclass(frozen=True, slots=True)
class _Point:
    signed: ev.CheckpointSigned
    where: str


async def verify(
    bus: Bus, topic: str, *, audit_topic: str, keyring: Keyring, file: Path | None = None
) -> AuditReport:
    """Return what a walk over `topic` and its checkpoints finds. Reads everything; writes nothing.

    Args:
        keyring: holds the guardrail's public keys, old ones included.
        file: the checkpoints kept outside the broker, if they are at hand.

    Raises: UnknownTopic, BusUnavailable.
    """
    report = AuditReport()
    topics_points = await _from_topic(bus, topic, audit_topic, keyring, report)
    file_points = _from_file(file, topic, keyring, report) if file is not None else []
    points = _merged(topics_points, file_points, report)
    report.checkpoints = len(points)
    begins, ends = await bus.offsets(topic)
    for signed_partition in sorted({partition for partition, _ in points} - set(begins)):
        say = f"checkpoints speak of partition {signed_partition}, which {topic} does not have"
        report.breaks.append(AuditBreak("audit.truncated", signed_partition, 0, 0, say))
    for partition in sorted(begins):
        heads = {offset: point for (where, offset), point in points.items() if where == partition}
        await _walk(bus, topic, partition, begins[partition], ends[partition], heads, report)
    return report


async def _walk(
    bus: Bus, topic: str, partition: int, begin: int, end: int, heads: dict[int, _Point], report: AuditReport
) -> None:
    head, last_good = b"", begin
    if begin > 0:
        known = heads.get(begin)
        say = f"{topic} partition {partition} begins at offset {begin}: what stood before is gone"
        if known is None:
            report.breaks.append(AuditBreak("audit.start_gone", partition, 0, begin - 1, say))
            return
        report.warnings.append(say + "; it is checked from a signed checkpoint on")
        head = bytes.fromhex(known.signed.head)
    due = sorted(offset for offset in heads if offset > begin)
    offset, since = begin, 0
    while offset < end:
        batch = await bus.read(topic, partition, offset, records_max=1_000)
        for record in batch.records:
            while due and record.offset >= due[0]:
                at = due.pop(0)
                if not _holds(heads[at], head, partition, last_good, at, topic, report):
                    return
                last_good, since = at, 0
            head = head_after(head, record)
            report.records += 1
            since += 1
        if batch.next_offset <= offset:
            break
        offset = batch.next_offset
    while due and due[0] <= end:
        at = due.pop(0)
        if not _holds(heads[at], head, partition, last_good, at, topic, report):
            return
        last_good, since = at, 0
    if due:
        say = (f"{topic} partition {partition} ends at offset {end}, but {heads[due[-1]].where} signed it up to"
               f" {due[-1]}: records were cut off")
        report.breaks.append(AuditBreak("audit.truncated", partition, end, due[-1] - 1, say))
    report.unchecked[partition] = since


def _holds(point: _Point, head: bytes, partition: int, good: int, at: int, topic: str, report: AuditReport) -> bool:
    if head.hex() == point.signed.head:
        return True
    say = f"{topic} partition {partition}: a record from offset {good} to {at - 1} is not the one that {point.where} signed"
    report.breaks.append(AuditBreak("audit.changed", partition, good, at - 1, say))
    return False


async def _from_topic(
    bus: Bus, topic: str, audit_topic: str, keyring: Keyring, report: AuditReport
) -> list[_Point]:
    points = []
    begins, ends = await bus.offsets(audit_topic)
    for partition in sorted(begins):
        offset = begins[partition]
        while offset < ends[partition]:
            batch = await bus.read(audit_topic, partition, offset, records_max=1_000)
            for record in batch.records:
                where = f"the checkpoint at {audit_topic}@{record.offset}"
                try:
                    sealed = ev.decode(record.headers, record.value)
                    if not isinstance(sealed.event, ev.CheckpointSigned):
                        raise RecordInvalid(f"a {sealed.type} is no checkpoint")
                    _check(keyring, sealed.seal or "", audit_topic, record.key, sealed.id, record.value or b"")
                except CrewlineError as error:
                    _forged(report, record.partition, where, error)
                    continue
                if sealed.event.topic == topic:
                    points.append(_Point(sealed.event, where))
            if batch.next_offset <= offset:
                break
            offset = batch.next_offset
    return points


def _from_file(file: Path, topic: str, keyring: Keyring, report: AuditReport) -> list[_Point]:
    points = []
    for number, line in _lines(file, report):
        where = f"{file}:{number}"
        try:
            given = json.loads(line)
            value = given["value"].encode()
            _check(keyring, given["seal"], given["topic"], given["key"].encode(), given["id"], value)
            signed = msgspec.json.decode(value, type=ev.CheckpointSigned)
        except (ValueError, LookupError, TypeError, AttributeError, CrewlineError) as error:
            _forged(report, 0, where, error)
            continue
        if signed.topic == topic:
            points.append(_Point(signed, where))
    return points


def _lines(file: Path, report: AuditReport) -> Iterator[tuple[int, bytes]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        report.warnings.append(f"{file}: cannot be read: {error.strerror}")
        return
    if lines and lines[-1]:
        report.warnings.append(f"{file}: the last line is not whole; it was being written when the process died")
        lines.pop()
    yield from ((number, line) for number, line in enumerate(lines, 1) if line)


def _check(keyring: Keyring, seal: str, topic: str, key: bytes, id: str, value: bytes) -> None:
    if (by := keyring.check(seal, topic, key, ev.CheckpointSigned.TYPE, id, value)) != GUARD:
        raise RecordInvalid(f"sealed by {by}, not by the guardrail")


def _forged(report: AuditReport, partition: int, where: str, error: Exception) -> None:
    report.breaks.append(AuditBreak("audit.forged", partition, 0, 0, f"{where} does not count: {error}"))


def _merged(from_topic: list[_Point], from_file: list[_Point], report: AuditReport) -> dict[tuple[int, int], _Point]:
    """Return one checkpoint for each place. Both may lack some: a process can die between the two writes."""
    points: dict[tuple[int, int], _Point] = {}
    for point in (*from_topic, *from_file):
        place = (point.signed.partition, point.signed.next_offset)
        other = points.setdefault(place, point)
        if other.signed.head != point.signed.head:
            say = f"{other.where} and {point.where} sign different heads for partition {place[0]} offset {place[1]}"
            report.breaks.append(AuditBreak("audit.disagree", place[0], max(0, place[1] - 1), place[1] - 1, say))
    on_topic = {(point.signed.partition, point.signed.next_offset) for point in from_topic}
    alone = [point for point in from_file if (point.signed.partition, point.signed.next_offset) not in on_topic]
    if alone:
        report.warnings.append(f"{len(alone)} checkpoints stand in the file alone, not on the audit topic")
    return points
