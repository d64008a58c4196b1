"""How many tools of a pool run at once. First come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """`count` places. Whoever takes one gives it back by `free`, once."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"a pool has at least one slot, not {count}")
        self.count = count
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> int:
        return self.count - self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take_now(self) -> bool:
        """Take a place if one is free and nobody waits for it; return whether it was so."""
        if self._free and not self._waiting:
            self._free -= 1
            return True
        return False

    async def take(self) -> None:
        """Take a place, waiting for one if need be."""
        if self.take_now():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free()  # it was given to us in the same instant
            else:
                self._waiting.remove(turn)
            raise

    def free(self) -> None:
        """Give a place back: to the first who waits, if anybody does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
