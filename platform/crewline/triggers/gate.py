"""How many runs of one trigger are open at once, in this process: those beyond wait for a place, in order."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Gate:
    """Places for `limit` firings. Whoever is inside leaves by `leave`; the one who waits longest comes next."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside: set[str] = set()
        self._waiting: OrderedDict[str, asyncio.Future[None]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many firings wait for a place."""
        return len(self._waiting)

    @property
    def inside(self) -> int:
        """How many firings have one."""
        return len(self._inside)

    async def enter(self, firing: str) -> None:
        """Wait for a place, and take it. Cancelled while waiting: it has none."""
        if len(self._inside) < self.limit and not self._waiting:
            self._inside.add(firing)
            return
        place = self._waiting[firing] = asyncio.get_running_loop().create_future()
        try:
            await place
        except asyncio.CancelledError:
            self._waiting.pop(firing, None)
            self.leave(firing)  # it may have been given a place in this very moment
            raise

    def enter_anyway(self, firing: str) -> None:
        """Take a place for a firing that had one before this process began."""
        self._inside.add(firing)

    def leave(self, firing: str) -> None:
        """Give a place back, if it has one."""
        self._inside.discard(firing)
        while self._waiting and len(self._inside) < self.limit:
            next_one, place = self._waiting.popitem(last=False)
            if not place.done():
                self._inside.add(next_one)
                place.set_result(None)
