"""The store of one host: one SQLite file, `store.db`, that any number of its processes share.

WAL with `synchronous=NORMAL`: a power failure may take the newest transactions, never a part of one, and the
file stays sound. That is enough for a cache: marks and snapshots go back together to an older moment, and the
log, which is synced at every commit, still has everything from that mark on. For the same reason a damaged
file is put aside with a warning and begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
from crewline.errors import StoreError

from crewline_memory.base import Mark, Snapshot

log = logging.getLogger(__name__)

FILE = "store.db"
FORMAT = 1
BUSY_MS = 5_000
ROWS_MAX = 50  # of one statement

_SCHEMA = """
CREATE TABLE marks(
  namespace TEXT NOT NULL, role TEXT NOT NULL, partition INTEGER NOT NULL,
  next_offset INTEGER NOT NULL, id_before TEXT NOT NULL, snapshots INTEGER NOT NULL, carry BLOB NOT NULL,
  PRIMARY KEY(namespace, role, partition)) WITHOUT ROWID;
CREATE TABLE snapshots(
  namespace TEXT NOT NULL, role TEXT NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL,
  state BLOB NOT NULL, pending INTEGER NOT NULL, acked TEXT NOT NULL, frozen_at INTEGER,
  UNIQUE(namespace, role, partition, key));
CREATE INDEX open_snapshots ON snapshots(namespace, role, partition) WHERE pending OR frozen_at IS NOT NULL;
"""
_PART = "namespace = ? AND role = ? AND partition = ?"

# All rows as one of JSON: every step of a statement lets go of the interpreter lock, and this thread gets it
# back from a busy event loop only after 5 ms.
_ROWS = (
    "SELECT json_group_array(json_array(hex(key), hex(state), pending, json(acked), frozen_at)) FROM snapshots"
    f" WHERE {_PART} AND "
)
_rows = msgspec.json.Decoder(list[tuple[str, str, int, tuple[str, ...], int | None]])

T = TypeVar("T")


async def open_store(directory: Path, namespace: str) -> SQLiteStore:
    """Open the store of `namespace` in `directory`, creating both if they are not there.

    Raises: StoreError: the directory cannot be written, or a newer crewline wrote the file.
    """
    store = SQLiteStore(directory / FILE, namespace)
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    return store


class SQLiteStore:
    """See `MemoryStore`. Made by `open_store`. Calls run one after the other in a thread of the store's own."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self.namespace = namespace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="crewline-store")
        self._connection: apsw.Connection | None = None
        self._inode = 0
        self._closed = False

    async def mark(self, role: str, partition: int) -> Mark | None:
        part = (self.namespace, role, partition)

        def job(connection: apsw.Connection) -> Mark | None:
            found = _mark(connection, part)
            if found is None:
                return None
            count = _one(connection, f"SELECT count(*) FROM snapshots WHERE {_PART}", part)
            if count == found.snapshots:
                return found
            log.warning("%s lacks snapshots of %s, partition %d: it has %d of %d; they are rebuilt from the log",
                        self.path, role, partition, count, found.snapshots)
            return None

        return await self._run(job)

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        part = (self.namespace, role, partition)
        return await self._run(
            lambda connection: _read(connection, _ROWS + "(pending OR frozen_at IS NOT NULL)", part)
        )

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        part = (self.namespace, role, partition)

        def job(connection: apsw.Connection) -> dict[bytes, Snapshot]:
            found: dict[bytes, Snapshot] = {}
            for start in range(0, len(keys), ROWS_MAX):
                some = keys[start : start + ROWS_MAX]
                found |= _read(connection, _ROWS + f"key IN ({_marks(len(some))})", (*part, *some))
            return found

        return await self._run(job)

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        part = (self.namespace, role, partition)
        rows = [
            (*part, key, snapshot.state, snapshot.pending, msgspec.json.encode(snapshot.acked).decode(), snapshot.frozen_at)
            for key, snapshot in snapshots.items()
        ]

        def job(connection: apsw.Connection) -> bool:
            stored = _mark(connection, part)
            at = stored.next_offset if stored is not None else 0
            if (stored is not None and at >= mark.next_offset) or at < after:
                return False
            count = stored.snapshots if stored is not None else 0
            for start in range(0, len(rows), ROWS_MAX):
                count += _put(connection, part, rows[start : start + ROWS_MAX])
            connection.execute(
                "INSERT OR REPLACE INTO marks VALUES (?,?,?,?,?,?,?)",
                (*part, mark.next_offset, mark.id_before, count, mark.carry),
            )
            return True

        return await self._run(job)

    async def drop(self, role: str, partition: int) -> None:
        part = (self.namespace, role, partition)

        def job(connection: apsw.Connection) -> None:
            connection.execute(f"DELETE FROM marks WHERE {_PART}", part)
            connection.execute(f"DELETE FROM snapshots WHERE {_PART}", part)

        await self._run(job)

    # --- the file ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file now rather than at the first call."""
        await self._run(lambda connection: None)

    async def close(self) -> None:
        """Wait for what was asked, and close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def _run(self, job: Callable[[apsw.Connection], T]) -> T:
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, job)

    def _in_thread(self, job: Callable[[apsw.Connection], T]) -> T:
        try:
            try:
                return self._transact(job)
            except (apsw.CorruptError, apsw.NotADBError) as error:
                self._put_aside(error)
                return self._transact(job)
        except apsw.FullError as error:
            raise StoreError(f"{self.path}: disk is full; free space. Nothing was written") from error
        except apsw.BusyError as error:
            raise StoreError(
                f"{self.path} was locked by another process for {BUSY_MS / 1000:g} s: is one stopped?"
            ) from error
        except (apsw.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}; check that this user may write it, and the disk") from error

    def _transact(self, job: Callable[[apsw.Connection], T]) -> T:
        connection = self._connection or self._connect()
        try:
            # IMMEDIATE: a transaction that reads first and then writes could not wait for another writer.
            connection.execute("BEGIN IMMEDIATE")
            result = job(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise
        return result

    def _connect(self) -> apsw.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = apsw.Connection(str(self.path))
        self._connection, self._inode = connection, os.stat(self.path).st_ino
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "normal")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.pragma("user_version")
        if version == 0:
            connection.execute(_SCHEMA)
            connection.pragma("user_version", FORMAT)
        connection.execute("COMMIT")
        if version > FORMAT:
            self._disconnect()
            raise StoreError(
                f"{self.path} has format {version}, this crewline knows {FORMAT}: upgrade crewline, or remove the "
                "file (it is rebuilt from the log)"
            )
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(apsw.Error):
                self._connection.close(True)
            self._connection = None

    def _put_aside(self, error: apsw.Error) -> None:
        """Rename the damaged file, unless another process has done so."""
        damaged = self._inode
        self._disconnect()
        if os.stat(self.path).st_ino != damaged:
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm"):  # first: a new file must not meet the old one's WAL
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        os.rename(self.path, aside)
        log.warning("%s is damaged (%s): put aside as %s; it is rebuilt from the log", self.path, error, aside.name)


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _one(connection: apsw.Connection, sql: str, binds: tuple[Any, ...]) -> Any:
    return connection.execute(sql, binds).fetchall()[0][0]


def _mark(connection: apsw.Connection, part: tuple[str, str, int]) -> Mark | None:
    rows: list[Any] = connection.execute(
        f"SELECT next_offset, id_before, snapshots, carry FROM marks WHERE {_PART}", part
    ).fetchall()
    return Mark(*rows[0]) if rows else None


def _read(connection: apsw.Connection, sql: str, binds: tuple[Any, ...]) -> dict[bytes, Snapshot]:
    return {
        bytes.fromhex(key): Snapshot(bytes.fromhex(state), bool(pending), acked, frozen_at)
        for key, state, pending, acked, frozen_at in _rows.decode(_one(connection, sql, binds))
    }


def _put(connection: apsw.Connection, part: tuple[str, str, int], rows: list[tuple[Any, ...]]) -> int:
    """Write snapshots; return how many keys are new."""
    known = _one(
        connection,
        f"SELECT count(*) FROM snapshots WHERE {_PART} AND key IN ({_marks(len(rows))})",
        (*part, *(row[3] for row in rows)),
    )
    connection.execute(
        "INSERT INTO snapshots(namespace, role, partition, key, state, pending, acked, frozen_at) VALUES "
        + ",".join(["(?,?,?,?,?,?,?,?)"] * len(rows))
        + " ON CONFLICT(namespace, role, partition, key) DO UPDATE SET state = excluded.state,"
        " pending = excluded.pending, acked = excluded.acked, frozen_at = excluded.frozen_at",
        [value for row in rows for value in row],
    )
    return len(rows) - int(known)
