"""A memory store in memory, and how it fails: gone, old, one key short, away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from crewline.errors import StoreError
from crewline_memory.base import Mark, Snapshot
from virtual_loop import Gone, Process, VirtualLoop

Part = tuple[str, int]


@dataclass
class StoreFaults:
    """`fails`, `slow`: how likely a call fails, or takes long. Old copies come back at any moment."""

    on: bool = True
    fails: float = 0.02
    slow: float = 0.2


@dataclass
class _Stored:
    mark: Mark | None = None
    snapshots: dict[bytes, Snapshot] = field(default_factory=dict)

    def whole(self) -> bool:
        return self.mark is not None and self.mark.snapshots == len(self.snapshots)


class StoreServer:
    """What all processes share."""

    def __init__(self, loop: VirtualLoop, rng: Random, faults: StoreFaults) -> None:
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.parts: dict[Part, _Stored] = {}
        self._old: dict[Part, list[_Stored]] = {}

    def part(self, role: str, partition: int) -> _Stored:
        return self.parts.setdefault((role, partition), _Stored())

    def remember(self, part: Part) -> None:
        stored = self.parts[part]
        self._old.setdefault(part, []).append(_Stored(stored.mark, dict(stored.snapshots)))

    def lose_everything(self) -> None:
        self.parts.clear()

    def go_back(self) -> None:
        """An old copy is restored, of everything or of one part."""
        parts = [part for part, old in self._old.items() if old]
        if self.rng.random() < 0.5:
            parts = parts[:1]
        for part in parts:
            old = self.rng.choice(self._old[part])
            self.parts[part] = _Stored(old.mark, dict(old.snapshots))

    def evict(self) -> None:
        """One key is dropped for want of room."""
        full = [stored for stored in self.parts.values() if stored.snapshots]
        if full:
            stored = self.rng.choice(full)
            del stored.snapshots[self.rng.choice(list(stored.snapshots))]


class SimStore:
    """One process's connection to the store."""

    def __init__(self, server: StoreServer, process: Process) -> None:
        self._server = server
        self._process = process

    async def _network(self) -> None:
        server = self._server
        self._check()
        if server.faults.on:
            if server.rng.random() < server.faults.slow:
                await asyncio.sleep(server.rng.uniform(0.0005, 0.05))
                self._check()
            if server.rng.random() < server.faults.fails:
                raise StoreError("the store did not answer")

    def _check(self) -> None:
        if not self._process.alive or self._server.loop.clearing:
            raise Gone

    async def mark(self, role: str, partition: int) -> Mark | None:
        await self._network()
        stored = self._server.part(role, partition)
        return stored.mark if stored.whole() else None

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        await self._network()
        stored = self._server.part(role, partition).snapshots
        return {key: each for key, each in stored.items() if each.pending or each.frozen_at is not None}

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        await self._network()
        stored = self._server.part(role, partition).snapshots
        return {key: stored[key] for key in keys if key in stored}

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        await self._network()
        stored = self._server.part(role, partition)
        if stored.mark is not None and stored.mark.next_offset >= mark.next_offset:
            return False
        if (stored.mark.next_offset if stored.mark is not None else 0) < after:
            return False
        stored.snapshots.update(snapshots)
        stored.mark = replace(mark, snapshots=len(stored.snapshots))
        self._server.remember((role, partition))
        return True

    async def drop(self, role: str, partition: int) -> None:
        await self._network()
        self._server.parts.pop((role, partition), None)

    async def close(self) -> None: ...
