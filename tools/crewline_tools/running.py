"""One run of one function: in a thread or in the loop, with a timeout, whatever it does.

`run` never raises what a tool raises. It says what happened, and leaves it to the pool what that means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from crewline.errors import CrewlineError

from crewline_tools.base import ToolSpec
from crewline_tools.context import Cancelled, ToolContext
from crewline_tools.errors import ToolError
from crewline_tools.reconcile import Settled, UncertainCall
from crewline_tools.results import cut, describe, fix_of, render
from crewline_tools.threads import Threads

log = logging.getLogger("crewline.tools")

CANCEL_S = 1.0  # how long a cancelled async tool may take to clean up
SAY_BYTES_MAX = 4_096


class Tool(Protocol):
    """What a pool runs. `ToolFunction` is one; a tool of an MCP server another."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def blocking(self) -> bool:
        """Whether the bound call blocks (it gets a thread) or is a coroutine function (it runs in the loop)."""
        ...

    @property
    def reconcile(self) -> Callable[[UncertainCall], Any] | None: ...

    def arguments(self, text: str, injected: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return checked arguments by name. Raises: CrewlineError."""
        ...

    def bind(self, text: str, injected: Mapping[str, Any] | None, context: ToolContext) -> Callable[[], Any]:
        """Return the call, ready to be made. Raises: CrewlineError if the arguments do not fit."""
        ...


class Ran(NamedTuple):
    """What happened.

    how: `returned`, `said` (a ToolError), `raised` (anything else), `timeout`, `invalid` (the arguments do
    not fit: not called), `too_late` (the gate was closed: not called). `going_on` is the call that outlived
    its timeout, or None.
    """

    how: Literal["returned", "said", "raised", "timeout", "invalid", "too_late"]
    output: str
    code: str | None = None
    fix: dict[str, Any] | None = None
    retryable: bool = False
    shown: bool = True
    duration_s: float = 0.0
    going_on: asyncio.Future[Any] | None = None


class TooLate(Exception):
    """The gate is closed: the call must not be made any more."""


Gate = Callable[[], bool]


def always() -> bool:
    return True


class Runner:
    """Runs tools, and counts those that hang.

    `given_up` is how many calls now run on after their timeout.
    """

    def __init__(self, name: str) -> None:
        self._threads = Threads(name)
        self.given_up = 0

    async def run(
        self,
        tool: Tool,
        text: str,
        injected: Mapping[str, Any] | None,
        context: ToolContext,
        cancelled: Cancelled,
        gate: Gate = always,
    ) -> Ran:
        """Call the tool once. `gate` is asked last, right before the call, in the thread that makes it.

        Raises: CancelledError alone, if the caller is cancelled; an async tool is then cancelled too.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            call = tool.bind(text, injected, context)
        except CrewlineError as error:
            return Ran("invalid", cut(error.message, bytes_max=SAY_BYTES_MAX), error.code)
        future = self._start(call, tool.blocking, gate)
        if not await self._wait(future, tool.spec.timeout_s, cancelled):
            if future.done() and (late := self.outcome(tool, future, clock() - began)).how in ("returned", "said"):
                return late  # it was told to stop, and had an answer all the same
            say = f"{tool.spec.name} did not end within {tool.spec.timeout_s:g} s"
            going_on = None if future.done() else future
            if going_on is not None:
                self._give_up(tool, going_on)
            return Ran("timeout", say, "tool.timeout", retryable=True, duration_s=clock() - began, going_on=going_on)
        return self.outcome(tool, future, clock() - began)

    def outcome(self, tool: Tool, future: asyncio.Future[Any], duration_s: float) -> Ran:
        """Return what a call that is over came to."""
        error = _error_of(future)
        if error is None:
            rendered = render(future.result())
            if rendered.problem is not None:
                log.warning("%s: %s", tool.spec.name, rendered.problem)
                text = f"{tool.spec.name} ran, but {rendered.problem}. It is shown as Python shows it: {rendered.text}"
                return Ran("returned", cut(text), "tool.result", shown=False, duration_s=duration_s)
            return Ran("returned", rendered.text, duration_s=duration_s)
        if isinstance(error, TooLate):
            return Ran("too_late", "", "call.abandoned")
        if isinstance(error, ToolError):
            code = "tool.not_run" if error.ran is False else error.code
            say = cut(str(error.say), bytes_max=SAY_BYTES_MAX)
            return Ran("said", say, code, fix_of(error.fix), bool(error.retryable), duration_s=duration_s)
        log.error("%s raised", tool.spec.name, exc_info=error)
        return Ran("raised", cut(describe(error), bytes_max=SAY_BYTES_MAX), "tool.raised", retryable=True,
                   duration_s=duration_s)

    async def settle(self, tool: Tool, call: UncertainCall) -> Settled:
        """Ask the tool's reconcile function what became of a call. If it fails or takes too long, nobody can say."""
        reconcile = tool.reconcile
        if reconcile is None:
            return call.cannot_say()
        is_async = asyncio.iscoroutinefunction(reconcile)
        future = self._start(lambda: reconcile(call), not is_async, always)
        if not await self._wait(future, tool.spec.timeout_s, Cancelled()):
            log.error("%s: its reconcile function did not end within %g s", tool.spec.name, tool.spec.timeout_s)
            return call.cannot_say()
        error = _error_of(future)
        if error is not None:
            log.error("%s: its reconcile function raised", tool.spec.name, exc_info=error)
            return call.cannot_say()
        settled = future.result()
        if not isinstance(settled, Settled):
            log.error("%s: its reconcile function returned %s; return call.ran(…), call.not_run() or call.cannot_say()",
                      tool.spec.name, type(settled).__name__)
            return call.cannot_say()
        return settled

    def close(self) -> None:
        self._threads.close()

    def _start(self, call: Callable[[], Any], blocking: bool, gate: Gate) -> asyncio.Future[Any]:
        if blocking:
            return self._threads.start(lambda: _call(call, gate))
        return asyncio.ensure_future(_call_async(call, gate))

    async def _wait(self, future: asyncio.Future[Any], timeout_s: float, cancelled: Cancelled) -> bool:
        """Wait for a call; return whether it ended by itself in time. If not, it has been cancelled."""
        try:
            if await _ends(future, timeout_s):
                return True
            cancelled.set()
            if isinstance(future, asyncio.Task):
                future.cancel()
                await _ends(future, CANCEL_S)
            return False
        except asyncio.CancelledError:
            cancelled.set()
            if isinstance(future, asyncio.Task):
                future.cancel()
            future.add_done_callback(_error_of)  # looked at, so that nobody calls it forgotten
            raise

    def _give_up(self, tool: Tool, future: asyncio.Future[Any]) -> None:
        self.given_up += 1
        log.error("%s hangs: it was given up after %g s and goes on in the background (%d such calls now)",
                  tool.spec.name, tool.spec.timeout_s, self.given_up)
        future.add_done_callback(self._came_back)

    def _came_back(self, future: asyncio.Future[Any]) -> None:
        self.given_up -= 1
        _error_of(future)


async def _ends(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Wait for a future; return whether it is done. As `asyncio.wait`, for one, at a third of its cost."""
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def end(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, end)
    future.add_done_callback(end)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(end)
    return future.done()


class _Raised(NamedTuple):
    """What an async tool raised. Carried as a value: a task that raises SystemExit would end the loop."""

    error: BaseException


def _call(call: Callable[[], Any], gate: Gate) -> Any:
    if not gate():
        raise TooLate
    return call()


async def _call_async(call: Callable[[], Any], gate: Gate) -> Any:
    if not gate():
        return _Raised(TooLate())
    try:
        return await call()
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        return _Raised(error)


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    if future.cancelled():
        return asyncio.CancelledError("the tool was cancelled from within")
    error = future.exception()
    if error is None and isinstance(future.result(), _Raised):
        raised: BaseException = future.result().error
        return raised
    return error
