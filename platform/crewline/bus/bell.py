"""The bell: how processes on one log wake each other without polling.

Each process that reads has a FIFO in `<state dir>/bells/`; whoever commits writes one byte into everybody
else's. A FIFO without a reader belongs to a process that is dead, and is removed by whoever notices. A ring
that is lost costs a second: readers also look at the file once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_SETTLED_NS = 50_000_000  # a directory changed this recently may change again within its time stamp's grain


class Bell:
    """This process's FIFO (once `listen` was called) and the way to everybody else's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "bells"
        self._directory.mkdir(exist_ok=True)
        self._own: Path | None = None
        self._own_fd = -1
        self._others: dict[str, int] = {}
        self._listed_ns = -1

    def listen(self, loop: asyncio.AbstractEventLoop, rung: Callable[[], None]) -> None:
        """Call `rung` on `loop` whenever another process has committed."""
        own = self._directory / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._own = own  # first: the writer's thread must not take it for another process's
        os.mkfifo(own, 0o600)
        # Read and write: with a writer of its own the FIFO never reports end of file.
        self._own_fd = os.open(own, os.O_RDWR | os.O_NONBLOCK)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._own_fd, 65_536)
            rung()

        loop.add_reader(self._own_fd, drain)

    def ring(self) -> None:
        """Wake the others. Called by the writer's thread, after its commit."""
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns != self._listed_ns:
            self._list(changed_ns)
        for name, fd in list(self._others.items()):
            try:
                os.write(fd, b"!")
            except BlockingIOError:
                pass  # full: it has been rung already
            except OSError:  # EPIPE: nobody reads
                os.close(self._others.pop(name))
                self._remove(name)

    def _list(self, changed_ns: int) -> None:
        names = set(os.listdir(self._directory))
        if self._own is not None:
            names.discard(self._own.name)
        for name in self._others.keys() - names:
            os.close(self._others.pop(name))
        for name in names - self._others.keys():
            try:
                self._others[name] = os.open(self._directory / name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                # A FIFO made this very moment has no reader yet: only old ones are dead.
                if error.errno == errno.ENXIO and self._is_old(name):
                    self._remove(name)
        settled = time.time_ns() - changed_ns > _SETTLED_NS and names == self._others.keys()
        self._listed_ns = changed_ns if settled else -1

    def _is_old(self, name: str) -> bool:
        try:
            return time.time() - os.stat(self._directory / name).st_mtime > 5.0
        except FileNotFoundError:
            return False

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._directory / name)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening and ringing; remove the FIFO."""
        if self._own is not None:
            loop.remove_reader(self._own_fd)
            os.close(self._own_fd)
            self._remove(self._own.name)
            self._own = None
        for fd in self._others.values():
            os.close(fd)
        self._others.clear()
