"""Consumer groups across processes: who is a member, who owns what, who is dead.

There is no coordinator. Each member computes its quota from the same tables (`quota`), releases what it owns
beyond it and takes what nobody owns, up to it. So a partition changes hands only after its owner has let go
of it, or is dead: partitions kept go on undisturbed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import apsw

from crewline.bus.base import GroupLag
from crewline.bus.sqlite.catalog import Catalog, Member, look
from crewline.bus.sqlite.file import fetch, fetch_one


def quota(member: str, owned: Mapping[str, int], partitions: int) -> int:
    """Return how many of `partitions` belong to `member`, given how many each owns (in joining order).

    Quotas differ by one at most and add up to `partitions`; the larger ones go to those who own most, so
    that as few partitions as possible move.
    """
    order = sorted(owned, key=lambda one: -owned[one])  # stable: joining order among equals
    least, more = divmod(partitions, len(order))
    return least + (order.index(member) < more)


class Share(NamedTuple):
    """What `review` found: all that is owned, those of it to let go, and the group's version."""

    owned: frozenset[int]
    surplus: frozenset[int]
    version: int


def group_id(connection: apsw.Connection, topic_id: int, group: str) -> int:
    """Return the group's id, making the group if need be."""
    connection.execute("INSERT OR IGNORE INTO groups(topic_id, name) VALUES (?,?)", (topic_id, group))
    return int(fetch_one(connection, "SELECT id FROM groups WHERE topic_id = ? AND name = ?", (topic_id, group)))


def review(connection: apsw.Connection, me: Member, partitions: int, *, may_judge: bool) -> Share:
    """Renew `me`'s lease (join, if others thought it dead), bury the dead, take what is free.

    `may_judge` False: this process has itself been stopped, so others' leases say nothing yet.
    """
    if not renew(connection, me):
        join(connection, me)
    members = [member for member in look(connection).members if member.group_id == me.group_id]
    dead = [member for member in members if member.id != me.id and is_dead(member, may_judge=may_judge)]
    for member in dead:
        _remove(connection, member.id)
    gone = {member.id for member in dead}
    owned: dict[str, set[int]] = {member.id: set() for member in members if member.id not in gone}
    for partition, owner in fetch(
        connection, "SELECT partition, member FROM owners WHERE group_id = ?", (me.group_id,)
    ):
        owned[owner].add(partition)
    mine = owned[me.id]
    fair = quota(me.id, {member: len(parts) for member, parts in owned.items()}, partitions)
    free = sorted(set(range(partitions)).difference(*owned.values()))
    for partition in free[: max(0, fair - len(mine))]:
        connection.execute("INSERT INTO owners VALUES (?,?,?)", (me.group_id, partition, me.id))
        mine.add(partition)
    if dead:
        _announce(connection, me.group_id)
    version = fetch_one(connection, "SELECT version FROM groups WHERE id = ?", (me.group_id,))
    return Share(frozenset(mine), frozenset(sorted(mine)[fair:]), version)


def join(connection: apsw.Connection, me: Member) -> None:
    """Become a member, and let the others know."""
    connection.execute(
        "INSERT INTO members(group_id, id, name, home, pid, started, lease_until_ms, session_ms)"
        " VALUES (?,?,?,?,?,?,?,?)",
        (me.group_id, me.id, me.name, me.home, me.pid, me.started, monotonic_ms() + me.session_ms, me.session_ms),
    )
    _announce(connection, me.group_id)


def renew(connection: apsw.Connection, me: Member) -> bool:
    """Renew a lease; return False if the member is no longer one."""
    connection.execute(
        "UPDATE members SET lease_until_ms = ? WHERE id = ?", (monotonic_ms() + me.session_ms, me.id)
    )
    return connection.changes() == 1


def release(connection: apsw.Connection, me: Member, partitions: Collection[int]) -> None:
    """Let go of `partitions`: whoever is below its quota may take them."""
    for partition in partitions:
        connection.execute(
            "DELETE FROM owners WHERE group_id = ? AND partition = ? AND member = ?",
            (me.group_id, partition, me.id),
        )
    _announce(connection, me.group_id)


def leave(connection: apsw.Connection, me: Member) -> None:
    """End the membership: all it owns is free at once."""
    _remove(connection, me.id)
    _announce(connection, me.group_id)


def _remove(connection: apsw.Connection, member: str) -> None:
    connection.execute("DELETE FROM owners WHERE member = ?", (member,))
    connection.execute("DELETE FROM members WHERE id = ?", (member,))


def _announce(connection: apsw.Connection, group: int) -> None:
    connection.execute("UPDATE groups SET version = version + 1 WHERE id = ?", (group,))


# --- who is dead -------------------------------------------------------------------------------


def monotonic_ms() -> int:
    """Return the clock of leases: the same in all processes of a host, and nobody can set it."""
    return time.monotonic_ns() // 1_000_000


@lru_cache(maxsize=1)
def home() -> str:
    """Return where process ids mean something: this boot of this host, this namespace of processes."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{boot}/{space}"


def started_at(pid: int) -> int:
    """Return when `pid` started, in ticks since boot; 0 if unknown, -1 if there is no such process.

    With the pid it names a process for good: pids come again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if os.path.isdir("/proc/self"):
            return -1
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return -1
        except PermissionError:
            pass
        return 0
    state, *fields = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])  # Z: killed, and its parent has not looked yet


def is_dead(member: Member, *, may_judge: bool) -> bool:
    """Return whether `member` cannot come back, or has been silent for longer than its session."""
    boot, here = member.home.partition("/")[0], home()
    if boot != here.partition("/")[0]:
        return True  # of before the last boot
    if member.home == here and started_at(member.pid) != member.started:
        return True
    left_ms = member.lease_until_ms - monotonic_ms()
    return may_judge and not -1 < left_ms <= member.session_ms


# --- how far behind ----------------------------------------------------------------------------


def lags(connection: apsw.Connection, catalog: Catalog, now_ms: int) -> list[GroupLag]:
    """Return the lag of every group on every partition that it owns or has committed."""
    found = []
    names = {topic.id: topic for topic in catalog.topics.values()}
    rows = fetch(
        connection,
        "SELECT g.topic_id, g.name, p.partition, p.id, p.begin_offset, p.end_offset, c.next_offset, m.name"
        " FROM groups g JOIN partitions p ON p.topic_id = g.topic_id"
        " LEFT JOIN commits c ON c.group_id = g.id AND c.partition = p.partition"
        " LEFT JOIN owners o ON o.group_id = g.id AND o.partition = p.partition"
        " LEFT JOIN members m ON m.id = o.member"
        " WHERE c.next_offset IS NOT NULL OR o.member IS NOT NULL ORDER BY 1, 2, 3",
    )
    for topic_id, group, number, partition, begin, end, committed, member in rows:
        if committed is None:
            committed = begin
        lag_s = 0.0
        if committed < end:
            oldest = fetch_one(
                connection,
                f"SELECT ms FROM records_{partition} WHERE offset >= ? ORDER BY offset LIMIT 1",
                (committed,),
            )
            lag_s = max(0.0, (now_ms - oldest) / 1000) if oldest is not None else 0.0
        found.append(GroupLag(group, names[topic_id].name, number, committed, end, lag_s, member))
    return found
