"""What an engine is given: a view of the records, and a role that says what is due and does it."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from crewline.bus.base import Message, Record
from crewline.records import Entry

S = TypeVar("S")
Seen = TypeVar("Seen", contravariant=True)


class Effect(NamedTuple):
    """Something the world must do before a conversation can go on.

    `id` is deterministic. `kind` says what, `ref` about which part of the state (a call's id). `due_ms`
    is when (Unix ms; None: now). `slot`: it takes one of the owner's places while it runs. `owed`: it
    is a record for another topic, over when the bus has acknowledged it.
    """

    id: str
    kind: str
    ref: str = ""
    due_ms: int | None = None
    slot: bool = False
    owed: bool = False


Acted = Sequence[Message] | Coroutine[Any, Any, Sequence[Message]]


class View(Protocol[S]):
    """How records become state: pure, total, versioned. `version` changes when a snapshot's form does."""

    version: int

    def initial(self, key: str) -> S:
        """Return the state of a key without records."""
        ...

    def fold(self, state: S, entry: Entry) -> S:
        """Return the state after `entry`. Raises: UnknownEvent to freeze this key until a newer process."""
        ...

    def reject(self, state: S, record: Record, code: str, say: str, *, parks: bool) -> S:
        """Return the state after a record that counts as absent; `parks`: nothing after it can be folded."""
        ...

    def encode(self, state: S) -> bytes: ...

    def decode(self, data: bytes) -> S: ...


class Role(Protocol[S]):
    """What is done with the state: which effects are this role's, and how each is run."""

    name: str
    topic: str
    view: View[S]

    def pending(self, state: S) -> Sequence[Effect]:
        """Return this role's open effects. Pure: reads only `state`."""
        ...

    def act(self, effect: Effect, state: S) -> Acted:
        """Run an effect; return the messages it leads to, at once or as a coroutine.

        The coroutine is cancelled when the effect is over or the partition is lost. What it returns is
        appended, again and again with the same ids, until the bus acknowledges it. An exception means:
        try again later.
        """
        ...

    def observe(self, carry: bytes, record: Record) -> bytes:
        """Return the partition's running value after `record`, whatever it is (the hash chain); or `carry`."""
        ...

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        """Return records about the partition as a whole, after a batch was folded; usually none."""
        ...


Noted = Literal["record_rejected", "append_failed", "store_failed", "store_rebuilt"]


class Observer(Protocol[Seen]):
    """Told what an engine does, for metrics, traces and logs. It is quick, writes nothing, and never raises."""

    def folded(self, before: Seen, after: Seen, entry: Entry, *, live: bool) -> None:
        """A record was folded, in the order of its partition. `live`: it came after this owner took over;
        the others an owner before it may have seen already."""
        ...

    def noted(self, what: Noted) -> None:
        """Something went wrong that the engine goes on from."""
        ...

    def context(self, effect: Effect, state: Seen) -> Context:
        """Return the context in which an effect is run."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`slots` bounds effects that run at once; `snapshot_records` and `snapshot_s` how often the store is
    written; `states_max` how many idle states stay in memory; `retry_s_min` to `retry_s_max` the pause
    before a failed effect or append is tried again."""

    slots: int = 64
    snapshot_records: int = 1_000
    snapshot_s: float = 5.0
    states_max: int = 2_000
    poll_s: float = 1.0
    records_max: int = 500
    retry_s_min: float = 0.05
    retry_s_max: float = 10.0
