"""The maintenance office: work orders, ordered parts and stopped machines in one SQLite file.

`PLANT_DB` names the file (default `.crewline/plant.db`).
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MACHINES = {"pump-4": ("centrifugal pump, hall 2", "6205-2RS"), "pump-7": ("dosing pump, hall 3", "6308-ZZ")}
PRICES_EUR = {"6205-2RS": 12.40, "6308-ZZ": 31.00, "MOTOR-15KW": 1_840.00}
_TABLES = ("orders", "parts", "stops")


def path() -> Path:
    """Return the office's file."""
    return Path(os.environ.get("PLANT_DB", ".crewline/plant.db"))


@contextmanager
def office() -> Iterator[sqlite3.Connection]:
    """Open the office; made if it is not there yet."""
    path().parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path(), timeout=10)
    try:
        with connection:
            for table in _TABLES:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, machine, what)")
        yield connection
    finally:
        connection.close()


def note(table: str, key: str, machine: str, what: str) -> int:
    """Write a work order, a part or a stop, once for its key; return its number."""
    assert table in _TABLES
    with office() as connection, connection:
        connection.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)", (key, machine, what))
        row = connection.execute(f"SELECT rowid FROM {table} WHERE key = ?", (key,)).fetchone()
    return int(row[0])


def noted(table: str) -> list[tuple[str, str]]:
    """Return (machine, what) of all that was noted."""
    assert table in _TABLES
    with office() as connection:
        return list(connection.execute(f"SELECT machine, what FROM {table} ORDER BY rowid"))
