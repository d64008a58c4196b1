"""The bank: cards, cases and blocks in one SQLite file, named by `FRAUD_DB` (default `.crewline/bank.db`)."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CARDS = [
    ("c-17", "u-7", "retail", 2, 41.50),
    ("c-18", "u-9", "retail", 1, 18.00),
    ("c-99", "u-1", "private_banking", 3, 900.00),
]


def path() -> Path:
    """Return the bank's file."""
    return Path(os.environ.get("FRAUD_DB", ".crewline/bank.db"))


@contextmanager
def bank() -> Iterator[sqlite3.Connection]:
    """Open the bank; made with a few cards if it is not there yet."""
    path().parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path(), timeout=10)
    try:
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS cards (id TEXT PRIMARY KEY, customer, segment, daily INT, usual REAL)")
            connection.execute("CREATE TABLE IF NOT EXISTS cases (key TEXT PRIMARY KEY, card, reason)")
            connection.execute("CREATE TABLE IF NOT EXISTS blocks (key TEXT PRIMARY KEY, card)")
            connection.executemany("INSERT OR IGNORE INTO cards VALUES (?, ?, ?, ?, ?)", CARDS)
        yield connection
    finally:
        connection.close()


def card(card_id: str) -> dict[str, object] | None:
    """Return a card, or None."""
    with bank() as connection:
        row = connection.execute("SELECT customer, segment, daily, usual FROM cards WHERE id = ?", (card_id,)).fetchone()
    return None if row is None else dict(zip(("customer", "segment", "daily_payments", "usual_amount"), row, strict=True))


def note(table: str, *values: str) -> int:
    """Write a case or a block, once for its key (the first of `values`); return its number."""
    assert table in ("cases", "blocks")
    with bank() as connection, connection:
        places = ", ".join("?" * len(values))
        connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", values)
        row = connection.execute(f"SELECT rowid FROM {table} WHERE key = ?", values[:1]).fetchone()
    return int(row[0])


def noted(table: str) -> list[str]:
    """Return the cards with a case or a block."""
    assert table in ("cases", "blocks")
    with bank() as connection:
        return [row[0] for row in connection.execute(f"SELECT card FROM {table} ORDER BY rowid")]
