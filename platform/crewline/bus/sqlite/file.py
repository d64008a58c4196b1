"""The file of the embedded log: its layout, its pragmas, its errors in our words.

Each partition is a table `records_<id>` whose key is the offset: an append goes to the right edge of a
B-tree, where SQLite fills whole pages and splits none. (One table for all, keyed by partition and offset,
cost twice the CPU and twice the WAL: 32 and 16 µs a record at 50 records over 12 partitions.)
`headers` is msgpack, [[name, value], ...].
`members.lease_until_ms` is CLOCK_MONOTONIC, which all processes of a host share and nobody can set.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from crewline.errors import BusError, BusUnavailable, LogDamaged, UsageError
from crewline.events import Headers

FILE = "log.db"
APPLICATION_ID = 0x63726577  # "crew"
FORMAT = 1
BUSY_MS = 5_000
ROWS_MAX = 64  # of one INSERT

_SCHEMA = """
CREATE TABLE topics(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL, compacted INTEGER NOT NULL,
  retention_s REAL, retention_bytes INTEGER);
CREATE TABLE partitions(
  id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, partition INTEGER NOT NULL,
  begin_offset INTEGER NOT NULL DEFAULT 0, end_offset INTEGER NOT NULL DEFAULT 0,
  last_ms INTEGER NOT NULL DEFAULT 0, value_bytes INTEGER NOT NULL DEFAULT 0,
  compacted_to INTEGER NOT NULL DEFAULT 0, UNIQUE(topic_id, partition));
CREATE TABLE groups(
  id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 0,
  UNIQUE(topic_id, name));
CREATE TABLE members(
  joined INTEGER PRIMARY KEY AUTOINCREMENT, group_id INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
  home TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL,
  lease_until_ms INTEGER NOT NULL, session_ms INTEGER NOT NULL);
CREATE TABLE owners(
  group_id INTEGER NOT NULL, partition INTEGER NOT NULL, member TEXT NOT NULL, PRIMARY KEY(group_id, partition)
) WITHOUT ROWID;
CREATE TABLE commits(
  group_id INTEGER NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL, PRIMARY KEY(group_id, partition)
) WITHOUT ROWID;
CREATE TABLE chores(name TEXT PRIMARY KEY, due_ms INTEGER NOT NULL) WITHOUT ROWID;
"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Headers)
encode_headers = _encoder.encode
decode_headers = _decoder.decode


def connect(path: Path) -> apsw.Connection:
    """Open the log, creating it if it is not there.

    Raises: UsageError (directory not writable, newer format), LogDamaged, BusUnavailable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the state directory {path.parent}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"cannot write {path}: give this user the directory, or use another state directory")
    try:
        connection = apsw.Connection(str(path), statementcachesize=512)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except apsw.Error as error:
        raise in_our_words(error, path) from error
    return connection


def _prepare(connection: apsw.Connection, path: Path) -> None:
    connection.set_busy_timeout(BUSY_MS)
    application = connection.pragma("application_id")
    version = connection.pragma("user_version")
    if application == 0 and version == 0:
        tables = fetch_one(connection, "SELECT count(*) FROM sqlite_master")
        if tables and connection.pragma("application_id") == 0:
            raise LogDamaged(f"{path} is a SQLite file, but no log of crewline: move it away and start again")
    elif application != APPLICATION_ID:
        raise LogDamaged(f"{path} is a SQLite file, but no log of crewline: move it away and start again")
    if version > FORMAT:
        raise UsageError(
            f"{path} has format {version}, this crewline knows {FORMAT}: upgrade crewline, or use another state directory"
        )
    connection.pragma("journal_mode", "wal")
    # FULL: the WAL is synced at every commit. NORMAL can lose an acknowledged commit when power fails.
    connection.pragma("synchronous", "full")
    connection.wal_autocheckpoint(0)  # the writer does it after the callers have their answer
    if application == 0:
        _create(connection)


def _create(connection: apsw.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.pragma("application_id") == 0:  # else another process was first
            connection.execute(_SCHEMA)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", FORMAT)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def fetch(connection: apsw.Connection, sql: str, binds: tuple[object, ...] = ()) -> list[Any]:
    """Return all rows, as tuples of whatever the statement's columns are."""
    return connection.execute(sql, binds).fetchall()


def fetch_one(connection: apsw.Connection, sql: str, binds: tuple[object, ...] = ()) -> Any:
    """Return the first column of the first row, or None if there is no row."""
    rows = fetch(connection, sql, binds)
    return rows[0][0] if rows else None


def in_our_words(error: apsw.Error, path: Path) -> BusError:
    """Return what `error` of SQLite means to whoever runs crewline."""
    if isinstance(error, apsw.FullError):
        return BusUnavailable(
            f"{path}: disk is full; free space, then it works again by itself. Nothing accepted was lost"
        )
    if isinstance(error, apsw.NotADBError):
        return LogDamaged(f"{path} is not a log of crewline (nor a SQLite file): move it away and start again")
    if isinstance(error, apsw.CorruptError):
        return LogDamaged(
            f"{path} is damaged ({error}): stop crewline, copy log.db, log.db-wal and log.db-shm, then restore a "
            f"backup or save what can be read with `sqlite3 {path.name} .recover`"
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return BusUnavailable(
            f"{path} was locked by another process for {BUSY_MS / 1000:g} s: is one stopped (`ps` shows state T) or "
            "copying the file?"
        )
    if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError | apsw.PermissionsError):
        return BusUnavailable(f"{path} cannot be opened for writing ({error}): check that it exists and who owns it")
    return BusUnavailable(f"{path}: {error}; check the disk (`dmesg`), then try again")


def records_sql(partition_id: int) -> str:
    """Return the statement that makes a partition's table."""
    return (
        f"CREATE TABLE records_{partition_id}(offset INTEGER PRIMARY KEY, ms INTEGER NOT NULL,"
        " key BLOB NOT NULL, value BLOB, headers BLOB NOT NULL)"
    )


@lru_cache(maxsize=4_096)
def insert_sql(partition_id: int, rows: int) -> str:
    """Return the INSERT of `rows` records: one statement, see sqlite_reader.py for why."""
    return f"INSERT INTO records_{partition_id} VALUES " + ",".join(["(?,?,?,?,?)"] * rows)


@lru_cache(maxsize=256)
def advance_sql(partitions: int) -> str:
    """Return the UPDATE that moves the ends of `partitions` partitions: (id, end, last_ms, more bytes) each."""
    return (
        "WITH new(id, e, ms, more) AS (VALUES " + ",".join(["(?,?,?,?)"] * partitions) + ") "
        "UPDATE partitions SET end_offset = new.e, last_ms = new.ms, value_bytes = value_bytes + new.more "
        "FROM new WHERE partitions.id = new.id"
    )
