"""What every memory store promises. The suite: tests/contract/test_memory_store.py.

First part: working state (snapshots and marks). A store is a cache of the log: losing it costs time, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a role has folded one partition.

    `next_offset` is the first record not yet folded; `id_before` the `ce_id` of the record before it
    (empty at the log's start): if the log holds another there, the store's part belongs to another log.
    `snapshots` is the number of keys stored for this role and partition: fewer found means one was lost.
    `carry` is the role's own running value for the partition (the guardrail's hash chain), or empty.
    """

    next_offset: int
    id_before: str = ""
    snapshots: int = 0
    carry: bytes = b""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One key's folded state.

    `pending`: it has effects to run, so it is loaded at start. `acked`: ids of owed effects that the
    bus has acknowledged. `frozen_at`: the offset of the first record that could not be folded yet.
    """

    state: bytes
    pending: bool
    acked: tuple[str, ...] = ()
    frozen_at: int | None = None


class MemoryStore(Protocol):
    """Snapshots and marks by (namespace, role, partition). Every call is atomic and may come from any process."""

    async def mark(self, role: str, partition: int) -> Mark | None:
        """Return the mark, or None if nothing (or not everything: see `Mark.snapshots`) is stored."""
        ...

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        """Return the snapshots of keys with pending effects or frozen."""
        ...

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        """Return what is stored of `keys`."""
        ...

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        """Write all of it in one transaction; return False, writing nothing, if a mark at or above
        `mark.next_offset` is stored, or none at or above `after` (an old copy was put back: it lacks
        what the writer relies on). `mark.snapshots` is filled in by the store.

        Raises: StoreError if the store is full or away: nothing was written, or, if it is away and reached
        over a network, all of it (a late answer). Then a later mark is written, or this one refused.
        """
        ...

    async def drop(self, role: str, partition: int) -> None:
        """Forget everything of one role and partition: it is rebuilt from the log."""
        ...

    async def close(self) -> None: ...
