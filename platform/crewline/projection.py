"""The conversations log folded for people: states, runs, and frames as they are shown and streamed.

A projection reads; it never writes. Whether a record stands is decided by `conversation.take`, as for
every other reader, so what it shows is what the worker acted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crewline import events as ev
from crewline.bus.base import Bus, Record
from crewline.conversation import Call, Conversation, reject, status_of, take, turn_id
from crewline.conversation.state import Queued
from crewline.errors import RecordInvalid, UnknownEvent
from crewline.records import Entry, Reader, held_key
from crewline.seal import Keyring


@dataclass(frozen=True, slots=True)
class Frame:
    """A record as people and `--json` see it. `id` is `<partition>.<offset>`; `data` its value, untouched.

    `stands` is None where it is not known (streamed text, records of an unknown type).
    """

    id: str
    type: str
    stands: bool | None
    at_ms: int
    conversation: str
    run: str
    agent: str
    cause: str
    event_id: str
    data: bytes
    event: ev.Event | None

    def as_json(self) -> dict[str, Any]:
        """Return the frame in the wire format of console-and-cli (the same in SSE and NDJSON)."""
        return {
            "id": self.id,
            "type": self.type,
            "stands": self.stands,
            "ts": self.at_ms,
            "conv": self.conversation,
            "run": self.run,
            "agent": self.agent,
            "cause": self.cause,
            "ce_id": self.event_id,
            "data": msgspec.Raw(self.data or b"null"),
        }


@dataclass(slots=True)
class TurnSummary:
    """A turn as lists show it. Times are Unix ms of the log; `finished_ms` None while it goes on."""

    conversation: str
    turn: int
    intent: str
    run: str
    crew_version: str
    agent: str
    text: str
    user: str | None
    status: str
    started_ms: int
    finished_ms: int | None = None
    answer: Any = None
    reason: ev.Reason | None = None
    spent: ev.Spent = ev.Spent()
    tools: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    holds: int = 0
    delegated: bool = False


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that waits for a person: held (approve, edit, deny) or unknown (resolve)."""

    call: Call
    conversation: str
    run: str
    agent: str
    user: str | None

    @property
    def id(self) -> str:
        return self.call.id

    @property
    def arguments(self) -> str:
        """The exact bytes that would run."""
        verdict = self.call.verdict
        if verdict is not None and verdict.arguments is not None:
            return verdict.arguments
        return self.call.edited if self.call.edited is not None else self.call.arguments


def is_part(queued: Queued) -> bool:
    """Return whether an intent is a part of a run that began elsewhere: delegated, or one of a trigger's scatter."""
    asked = queued.intent
    return asked.reply_to is not None and not (asked.origin.kind == "trigger" and queued.id == queued.run)


class Projection:
    """States and turns of one crew's conversations, as far as it has read.

    Args:
        keyring: the keys of a reader; the public halves and the deployment's key.
        topic: `<ns>.conversations`. partitions: its number of partitions.
    """

    def __init__(self, keyring: Keyring, *, topic: str, partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions
        self.states: dict[str, Conversation] = {}
        self.turns: dict[str, TurnSummary] = {}
        self.next: dict[int, int] = {}
        self.frozen: dict[str, str] = {}  # conversations with a record that only a newer version can read
        self._reader = Reader(keyring, partitions=partitions)

    async def catch_up(self, bus: Bus) -> Projection:
        """Read every partition to its present end; return self. Raises: BusError."""
        begins, ends = await bus.offsets(self.topic)
        for partition, end in ends.items():
            offset = max(self.next.get(partition, 0), begins[partition])
            while offset < end:
                batch = await bus.read(self.topic, partition, offset, records_max=2_000)
                for record in batch.records:
                    self.take(record)
                offset = max(batch.next_offset, offset + 1)
        return self

    def take(self, record: Record) -> Frame | None:
        """Fold one record, in the order of its partition; return its frame (None if seen before)."""
        if record.offset < self.next.get(record.partition, 0):
            return None
        self.next[record.partition] = record.offset + 1
        key = held_key(record.key).decode()
        state = self.states.get(key) or Conversation(key)
        if key in self.frozen:
            return frame_of(record, stands=None)
        try:
            entry = self._reader.read(record)
            step = take(state, entry)
        except UnknownEvent as error:
            self.frozen[key] = error.message
            return frame_of(record, stands=None)
        except RecordInvalid as error:
            self.states[key] = reject(state, record, error.code, error.message, parks=False)
            return frame_of(record, stands=False)
        self.states[key] = step.state
        if step.stands:
            self._note(state, step.state, entry)
        return frame_of(record, stands=step.stands, event=entry.event)

    def _note(self, before: Conversation, after: Conversation, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, ev.TurnStarted):
            queued = before.queue[0]
            asked = queued.intent
            text = asked.input if isinstance(asked.input, str) else msgspec.json.encode(asked.input).decode()
            self.turns[entry.id] = TurnSummary(
                after.id, event.turn, event.intent, queued.run, event.crew_version, event.agent, text, asked.user,
                "working", queued.at_ms, agents=[event.agent], delegated=is_part(queued),
            )
            return
        number = event.turn if isinstance(event, ev.TurnFinished) else (after.turn or before.turn or _NONE).number
        summary = self.turns.get(turn_id(after.id, number))
        if summary is None:
            return
        if isinstance(event, ev.TurnFinished):
            summary.status, summary.finished_ms, summary.spent = event.status, entry.at_ms, event.spent
            summary.answer, summary.reason = event.answer, event.reason
            return
        summary.status = status_of(after)
        if after.turn is not None:
            summary.spent = after.turn.spent
        if isinstance(event, ev.ModelReplied):
            summary.tools += [call.name for call in event.calls]
            if event.agent not in summary.agents:
                summary.agents.append(event.agent)
        elif isinstance(event, ev.CallJudged) and event.decision == "require_approval":
            summary.holds += 1

    def open_calls(self) -> list[OpenCall]:
        """Return what waits for a person, oldest first."""
        waiting = [
            OpenCall(call, state.id, state.turn.run, call.verdict.agent, state.turn.asked.user)
            for state in self.states.values()
            if state.turn is not None
            for call in state.turn.calls
            if call.status in ("held", "unknown") and call.verdict is not None
        ]
        return sorted(waiting, key=lambda each: each.call.since_ms)

    def queued(self) -> Iterator[tuple[Conversation, str]]:
        """Yield (conversation, intent id) of intents that no turn has taken up yet."""
        for state in self.states.values():
            for queued in state.queue:
                yield state, queued.id


class _NoTurn:
    number = 0


_NONE: Any = _NoTurn()


def frame_of(record: Record, *, stands: bool | None, event: ev.Event | None = None) -> Frame:
    """Return the frame of a record; what its headers do not say is empty."""
    headers: Mapping[str, bytes] = dict(record.headers)

    def text(name: str) -> str:
        return headers.get(name, b"").decode("utf-8", "replace")

    agent = getattr(event, "agent", None) or ""
    return Frame(
        f"{record.partition}.{record.offset}", text("ce_type"), stands, record.timestamp_ms,
        record.key.decode("utf-8", "replace"), text("ce_correlationid"), agent, text("ce_causationid"), text("ce_id"),
        record.value or b"", event,
    )
