"""Counters of limits over windows: what `<ns>.limits` adds up to under each of its keys. Pure.

    limit.asked ─▶ room? ─▶ open, and its answer is owed to the conversation
    limit.settled: ran ─▶ past: counts until it leaves the window      not run ─▶ given back

The place of an ask in the log decides: of two that would fit alone, the second is refused, whoever
folds them. Time is the broker's. What is open counts for as long as what is past.

Invariant: what `reserve` was granted, given back ones left out, never passes the limit in any window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec
from msgspec.structs import replace

from crewline import events as ev
from crewline.bus.base import Record
from crewline.records import Entry

COUNTER_VERSION = 2
DAY_MS = 86_400_000
DONE_MAX = 128  # ids of settled reservations that are remembered, so that a repeated ask takes nothing
TURNS_MAX = 100_000  # turns of one day that are remembered, in 8 bytes each: what they spent is said again after a store is lost
# What has left its window is kept so much longer (as long as the window at most; of days a day): a clock that has jumped
# ahead comes back.
JUMP_MS = 600_000
PAST_MAX = 256  # entries a counter keeps apart; beyond that they are put together by time
_SLICES = 64
_SLICES_MS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 7_200_000, 14_400_000, 43_200_000, DAY_MS,
)
# Doubles: 0.1 three times is a little more than 0.3.
_TOLERANCE = 1e-9


class Counted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An amount that counts from `at_ms` (broker time)."""

    at_ms: int
    amount: float


class Open(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A reservation of which nobody has said what became of it. `amount` counts: 0 if nothing was taken."""

    answer: ev.LimitAnswered
    conversation: str
    run: str
    at_ms: int
    amount: float


class Counter(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One counter: a limit, for one of its keys. `turns` are those of `turns_day` whose spending it has."""

    key: str
    open: tuple[Open, ...] = ()
    past: tuple[Counted, ...] = ()
    done: tuple[str, ...] = ()
    turns: bytes = b""
    turns_day: int = 0
    # Why it cannot be trusted; then it grants nothing.
    problem: str | None = None


def count(counter: Counter, entry: Entry) -> Counter:
    """Return the counter after `entry`. Pure and total."""
    match entry.event:
        case ev.LimitAsked() as asked:
            return _asked(counter, entry, asked)
        case ev.LimitSettled() as settled:
            return _settled(counter, entry, settled)
        case _:
            return counter


def _asked(counter: Counter, entry: Entry, asked: ev.LimitAsked) -> Counter:
    id = asked.reservation
    if id in counter.done or any(each.answer.reservation == id for each in counter.open):
        return counter  # a repeat is the same reservation
    if not asked.call and _turn(id) in counter.turns:
        return counter  # the turn is over, and counted
    counter = _without(counter, asked.replaces)
    at_ms = entry.at_ms
    kept_ms = _since(at_ms, asked) - (DAY_MS if asked.day else min(JUMP_MS, int(asked.window_s * 1000)))
    counter = replace(
        counter,
        open=tuple(each for each in counter.open if _is_awaited(each, kept_ms, at_ms)),
        past=tuple(each for each in counter.past if each.at_ms > kept_ms),
    )
    answer = room(counter, at_ms, asked)
    taken = asked.amount if answer.granted and asked.take != "look" else 0.0
    return replace(counter, open=(*counter.open, Open(answer, asked.conversation, entry.run, at_ms, taken)))


def room(counter: Counter, at_ms: int, asked: ev.LimitAsked) -> ev.LimitAnswered:
    """Return whether `asked`, at `at_ms`, has room beside all that counts."""
    since_ms = _since(at_ms, asked)
    counts = sorted((each for each in _counts(counter) if each.at_ms > since_ms), key=lambda each: each.at_ms)
    used = math.fsum(each.amount for each in counts)
    fits = _fits(used, asked)
    return ev.LimitAnswered(
        reservation=asked.reservation, limit=asked.limit, key=counter.key, turn=asked.turn,
        granted=counter.problem is None and (fits or asked.take == "over"), take=asked.take, amount=asked.amount,
        used=used, max=asked.max, call=asked.call, judgement=asked.judgement,
        again_ms=None if fits else _again(counts, used, at_ms, asked), problem=counter.problem,
    )


def _is_awaited(each: Open, since_ms: int, now_ms: int) -> bool:
    """Return whether a reservation may still count; or, if it takes nothing, whether its answer may be on its way."""
    return each.at_ms > since_ms or (not each.amount and each.at_ms > now_ms - DAY_MS)


def _settled(counter: Counter, entry: Entry, settled: ev.LimitSettled) -> Counter:
    known = next((each for each in counter.open if each.answer.reservation == settled.reservation), None)
    if settled.spent:
        # A call counts from when it was granted; what a turn spent, from when it ended.
        at_ms = min(settled.at_ms or entry.at_ms, entry.at_ms)
        after = _with_turn(counter, settled.reservation, at_ms // DAY_MS, is_open=known is not None)
    elif known is not None:
        at_ms = known.at_ms
        after = _without(counter, (settled.reservation,))
    else:
        return counter
    if after is None:
        return _without(counter, (settled.reservation,)) if known is not None else counter
    if not settled.ran or not settled.amount:
        return after
    past = (*after.past, Counted(at_ms, settled.amount))
    return replace(after, past=past if len(past) <= PAST_MAX else _merged(past))


def _with_turn(counter: Counter, id: str, day: int, *, is_open: bool) -> Counter | None:
    """Return the counter with one more turn that has said what it spent; None if it had said so before.

    Of a day that is over nobody can tell any more, and it does not matter: only what is open is news then.
    """
    turn = _turn(id)
    if turn in counter.turns or id in counter.done or (day < counter.turns_day and not is_open):
        return None
    after = _without(counter, (id,))
    if day < counter.turns_day:
        return after
    turns = counter.turns if day == counter.turns_day else b""
    return replace(after, turns=(turns + turn)[-8 * TURNS_MAX :], turns_day=day)


def _turn(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()[:8]


def _without(counter: Counter, gone: tuple[str, ...]) -> Counter:
    if not gone:
        return counter
    kept = tuple(each for each in counter.open if each.answer.reservation not in gone)
    return replace(counter, open=kept, done=(*counter.done, *gone)[-DONE_MAX:])


def _since(at_ms: int, asked: ev.LimitAsked) -> int:
    """Return the last instant that does not count any more."""
    return at_ms - at_ms % DAY_MS - 1 if asked.day else at_ms - int(asked.window_s * 1000)


def _counts(counter: Counter) -> Iterator[Counted]:
    yield from counter.past
    yield from (Counted(each.at_ms, each.amount) for each in counter.open if each.amount)


def _fits(used: float, asked: ev.LimitAsked) -> bool:
    if not asked.call:
        return used < asked.max  # a turn: what it will spend, nobody knows
    return used + asked.amount <= asked.max * (1 + _TOLERANCE)


def _again(counts: list[Counted], used: float, at_ms: int, asked: ev.LimitAsked) -> int | None:
    """Return when so much will have left the window that `asked` fits, if nothing else is taken; None: never."""
    if not _fits(0.0, asked):
        return None
    if asked.day:
        return at_ms - at_ms % DAY_MS + DAY_MS
    for each in counts:
        used -= each.amount
        if _fits(used, asked):
            return each.at_ms + int(asked.window_s * 1000)
    return at_ms + int(asked.window_s * 1000)


def _merged(past: tuple[Counted, ...]) -> tuple[Counted, ...]:
    """Put entries together so that few are left: those of one slice of time count as long as its newest.

    A slice is about a 64th of the time they span. A day is a whole number of slices (or a slice of days),
    so that none crosses midnight.
    """
    ordered = sorted(past, key=lambda each: each.at_ms)
    least_ms = (ordered[-1].at_ms - ordered[0].at_ms) / _SLICES
    slice_ms = next((each for each in _SLICES_MS if each >= least_ms), DAY_MS * math.ceil(least_ms / DAY_MS))
    merged = []
    for _, group in groupby(ordered, key=lambda each: each.at_ms // slice_ms):
        each = list(group)
        merged.append(Counted(each[-1].at_ms, math.fsum(one.amount for one in each)))
    return tuple(merged)


class CounterView:
    """The view of a counter that the engine is given."""

    version = COUNTER_VERSION

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Counter)

    def initial(self, key: str) -> Counter:
        return Counter(key)

    def fold(self, state: Counter, entry: Entry) -> Counter:
        return count(state, entry)

    def reject(self, state: Counter, record: Record, code: str, say: str, *, parks: bool) -> Counter:
        """A record that counts as absent changes nothing; after a gap, or a bug here, nothing is granted."""
        return replace(state, problem=f"{code}: {say[:500]}") if parks else state

    def encode(self, state: Counter) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data)
