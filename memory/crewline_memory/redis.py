"""The store that several hosts share: one Redis, without modules. What it keeps there: redis_scripts.py.

A store over a network has one more fate than a file: a call that was sent and not answered may have been done.
So every write has an id of its own; sent again, it is told apart from another owner's.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence

import msgspec
from crewline.errors import StoreError

from crewline_memory import redis_scripts as scripts
from crewline_memory.base import Mark, Snapshot
from crewline_memory.redis_link import RedisLink, Value, open_link

log = logging.getLogger(__name__)

PAGE_KEYS = 200  # read at a time: Redis serves nobody else meanwhile
TRIES = 10

_Form = tuple[bytes, bool, tuple[str, ...], int | None]
_form = msgspec.msgpack.Decoder(_Form)


async def open_store(url: str, namespace: str) -> RedisStore:
    """Open the store of `namespace` on the Redis at `url` (see `open_link`).

    Raises: StoreError: it is not there, not let in, or it is a Redis that cannot be relied on.
    """
    return RedisStore(await open_link(url), namespace)


class RedisStore:
    """See `MemoryStore`. Made by `open_store`."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self.namespace = namespace
        self._link = link
        self._writer = secrets.token_hex(8)
        self._writes = 0

    async def mark(self, role: str, partition: int) -> Mark | None:
        keys = self._keys(role, partition)
        (offset, id_before, carry, snapshots, open_keys), has_snapshots, has_open = await self._link.run(scripts.MARK, keys)
        if offset is None:
            return None
        if (has_snapshots, has_open) == (int(snapshots), int(open_keys)):
            return Mark(int(offset), id_before.decode(), has_snapshots, carry)
        log.warning("%s lacks snapshots of %s, partition %d: it has %d of %d, of the open ones %d of %d; they are rebuilt "
                    "from the log", self._link.name, role, partition, has_snapshots, int(snapshots), has_open, int(open_keys))
        return None

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        keys = self._keys(role, partition)
        for _ in range(TRIES):
            write, found = await self._link.run(scripts.OPEN, keys)
            snapshots = await self._pages(keys, found, write)
            if snapshots is not None:
                return snapshots
        raise self._overtaken(role, partition)

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        for _ in range(TRIES):
            snapshots = await self._pages(self._keys(role, partition), keys)
            if snapshots is not None:
                return snapshots
        raise self._overtaken(role, partition)

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        self._writes += 1
        arguments: list[Value] = [
            f"{self._writer}:{self._writes}", mark.next_offset, after, mark.id_before, mark.carry
        ]
        size = 0
        for key, snapshot in snapshots.items():
            value = msgspec.msgpack.encode((snapshot.state, snapshot.pending, snapshot.acked, snapshot.frozen_at))
            arguments += (key, value, int(snapshot.pending or snapshot.frozen_at is not None))
            size += len(key) + len(value)
        return bool(await self._link.run(scripts.WRITE, self._keys(role, partition), arguments, size=size))

    async def drop(self, role: str, partition: int) -> None:
        await self._link.run(scripts.DROP, self._keys(role, partition))

    async def close(self) -> None:
        await self._link.close()

    def _keys(self, role: str, partition: int) -> tuple[str, str, str]:
        return scripts.part_keys(self.namespace, role, partition)

    async def _pages(
        self, part: tuple[str, str, str], keys: Sequence[bytes], *writes: bytes | None
    ) -> dict[bytes, Snapshot] | None:
        """Return what is stored of `keys`, read page by page; None if the part was written meanwhile.

        `writes`: the write after which `keys` were read, if they were.
        """
        found: dict[bytes, Snapshot] = {}
        seen = set(writes)
        for start in range(0, len(keys), PAGE_KEYS):
            page = keys[start : start + PAGE_KEYS]
            write, values = await self._link.run(scripts.PAGE, part, page)
            seen.add(write)
            if len(seen) > 1:
                return None
            found |= {key: _decoded(value) for key, value in zip(page, values, strict=True) if value is not None}
        return found

    def _overtaken(self, role: str, partition: int) -> StoreError:
        return StoreError(
            f"{self._link.name}: another owner writes {role}, partition {partition}, again and again while it is read"
        )


def _decoded(value: bytes) -> Snapshot:
    state, pending, acked, frozen_at = _form.decode(value)
    return Snapshot(state, pending, acked, frozen_at)
