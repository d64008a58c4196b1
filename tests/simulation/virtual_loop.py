"""An event loop without a clock, and processes that can be stopped between any two steps of their code.

Time jumps to the next timer when nothing is ready, so an hour of waiting costs nothing. Every callback
runs in the context it was made in; `PROCESS` in that context says whose it is. A paused process keeps its
callbacks until it is resumed (SIGSTOP), a dead one for good (SIGKILL: no `finally` runs).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
WORLD = copy_context()  # of what happens outside of all processes: the network, the broker, people


class Stuck(Exception):
    """Nothing is ready, and no timer is set: nothing will ever happen again."""


class Gone(BaseException):
    """What a dead process's handles raise when its tasks are cleared away. Nothing may catch it."""


class Process:
    """One operating system process: running, paused or dead.

    `fuse`: after so many more callbacks `blown` is called, in between two of them.
    """

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.state = "running"
        self.skew_ms = 0
        self.fuse: int | None = None
        self.blown: Callable[[], None] | None = None
        self.held: list[asyncio.Handle] = []
        self._loop = loop
        loop.processes.append(self)
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<{self.name} {self.state}>"

    @property
    def alive(self) -> bool:
        return self.state != "dead"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work, context=self._context.copy())

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Have `function` called in this process, soon."""
        self._loop.call_soon(function, *args, context=self._context)

    def pause(self) -> None:
        if self.state == "running":
            self.state = "paused"

    def resume(self) -> None:
        if self.state == "paused":
            self.state = "running"
            held, self.held = self.held, []
            self._loop.put_back(held)

    def kill(self) -> None:
        self.state = "dead"
        self.fuse = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in the order they became ready; nothing in it depends on the machine.

    `steps` counts callbacks run. With `clearing` set, dead processes' callbacks run too.
    """

    _ready: Any
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self.steps = 0
        self.processes: list[Process] = []
        self.clearing = False
        self._tasks: list[asyncio.Task[Any]] = []  # a dead process's too: collecting one would run its `finally`
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        return self._now

    def create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **kwargs)
        self._tasks.append(task)
        return task

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def at(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        """Call `callback` outside of all processes, `delay_s` from now."""
        return self.call_at(self._now + delay_s, callback, *args, context=WORLD)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise AssertionError("no threads in here")

    def clear_away(self) -> None:
        """Cancel everything that is left, and run it out. Handles of the bus and the store raise `Gone`."""
        self.clearing = True
        for process in self.processes:
            held, process.held = process.held, []
            self._ready.extend(held)
        for _ in range(50):
            tasks = [task for task in self._tasks if not task.done()]
            if not tasks and not self._ready:
                break
            for task in tasks:
                task.cancel()
            self.call_soon(self.stop, context=WORLD)
            self.run_forever()
        self._scheduled.clear()
        self._ready.clear()
        self._tasks.clear()
        self.close()

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            while scheduled and scheduled[0]._cancelled:  # type: ignore[attr-defined]
                heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            if not scheduled:
                raise Stuck
            self._now = max(self._now, scheduled[0].when())
        now = self._now
        while scheduled and scheduled[0].when() <= now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer._cancelled:  # type: ignore[attr-defined]
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.state != "running" and not self.clearing:
                process.held.append(handle)
                continue
            self.steps += 1
            handle._run()
            if process is not None and process.fuse is not None:
                process.fuse -= 1
                if process.fuse <= 0:
                    process.fuse = None
                    assert process.blown is not None
                    process.blown()
