"""Threads for plain functions, which may have to be given up: Python cannot end a thread that hangs.

Not a ThreadPoolExecutor: there a hanging function keeps its worker for good, the rest waits behind it, and
the interpreter waits for it at its exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Threads:
    """Daemon threads, made when needed and used again. Callers bound how many run at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[SimpleQueue[_Job | None]] = []
        self._lock = threading.Lock()
        self.made = 0

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `function` in a thread, with the caller's context variables; return its future result.

        Cancelling the future does not stop the function. Call it in a running event loop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        with self._lock:
            jobs = self._idle.pop() if self._idle else None
        if jobs is None:
            jobs = SimpleQueue()
            self.made += 1
            threading.Thread(target=self._work, args=(jobs,), name=f"{self._name}-{self.made}", daemon=True).start()
        jobs.put((lambda: context.run(function), loop, future))
        return future

    def close(self) -> None:
        """End the threads that are idle. Those that run go on, and nobody waits for them."""
        with self._lock:
            idle, self._idle = self._idle, []
        for jobs in idle:
            jobs.put(None)

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            function, loop, future = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # SystemExit too: it ends the tool, not the pool
                error = raised
            with self._lock:
                self._idle.append(jobs)  # before the answer, so that whoever gets it finds an idle thread
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody is there to hear it
            del job, function, loop, future, result, error  # or an idle thread would keep them alive


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("the tool raised StopIteration"))
    else:
        future.set_exception(error)
