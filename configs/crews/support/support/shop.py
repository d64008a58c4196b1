"""The shop: orders and refunds in one SQLite file.

`SHOP_DB` names the file (default `.crewline/shop.db`), `SHOP_BANK_S` how long the bank takes for a
payment, in seconds. A payment with a key that was used before is the same payment.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ORDERS = [
    ("A-1001", "u-7", "Desk lamp, brass", 80.00, "delivered"),
    ("A-1002", "u-7", "Light bulb E27", 6.50, "delivered"),
    ("A-1003", "u-9", "Oak shelf", 149.00, "on its way"),
    ("A-1004", "u-9", "Tea towel, set of two", 24.00, "delivered"),
]


def path() -> Path:
    """Return the shop's file."""
    return Path(os.environ.get("SHOP_DB", ".crewline/shop.db"))


@contextmanager
def shop() -> Iterator[sqlite3.Connection]:
    """Open the shop; made with a few orders if it is not there yet."""
    path().parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path(), timeout=10)
    try:
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer, item, total REAL, status)")
            connection.execute("CREATE TABLE IF NOT EXISTS attempts (key TEXT, at REAL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS refunds (id TEXT PRIMARY KEY, key TEXT UNIQUE, order_id, amount REAL, at REAL)"
            )
            connection.executemany("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?)", ORDERS)
        yield connection
    finally:
        connection.close()


def order(order_id: str) -> dict[str, object] | None:
    """Return an order, or None."""
    with shop() as connection:
        row = connection.execute("SELECT id, customer, item, total, status FROM orders WHERE id = ?", (order_id,)).fetchone()
    return None if row is None else dict(zip(("order_id", "customer", "item", "total", "status"), row, strict=True))


def pay(order_id: str, amount: float, *, key: str) -> tuple[str, float]:
    """Pay a refund; return (refund id, amount paid). The same key pays once."""
    with shop() as connection:
        with connection:
            connection.execute("INSERT INTO attempts VALUES (?, ?)", (key, time.time()))
        time.sleep(float(os.environ.get("SHOP_BANK_S", "0")))
        with connection:
            count = connection.execute("SELECT count(*) FROM refunds").fetchone()[0]
            connection.execute(
                "INSERT OR IGNORE INTO refunds VALUES (?, ?, ?, ?, ?)", (f"rf_{count + 1}", key, order_id, amount, time.time())
            )
        row = connection.execute("SELECT id, amount FROM refunds WHERE key = ?", (key,)).fetchone()
    return row[0], row[1]


def ledger() -> tuple[int, int]:
    """Return (payments started, payments made)."""
    with shop() as connection:
        started = connection.execute("SELECT count(*) FROM attempts").fetchone()[0]
        made = connection.execute("SELECT count(*) FROM refunds").fetchone()[0]
    return started, made
