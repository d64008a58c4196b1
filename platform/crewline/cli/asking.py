"""One request followed to its end: the live view, held calls, Ctrl-C, the time limit.

The crew (or the client) works in the background; what it says comes through a queue. Ctrl-C once asks,
twice leaves; neither ever kills the run.
"""

from __future__ import annotations

import queue
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from crewline import events as ev
from crewline.cli import output as codes
from crewline.cli.decide import Decider, Holds, held_by
from crewline.cli.live import LiveView, summary
from crewline.cli.output import Output, to_json
from crewline.cli.printer import Printer
from crewline.cli.prompts import Terminated, ask_line
from crewline.cli.session import Session
from crewline.cli.streaming import Streamed
from crewline.cli.text import duration
from crewline.errors import BusUnavailable
from crewline.projection import Frame

if TYPE_CHECKING:
    from crewline.client import Handle

TICK_S = 0.25
UNTAKEN_S = 10.0
_STATUS_CODES = {"done": codes.OK, "failed": codes.FAILED, "cancelled": codes.CANCELLED}


class Ended(NamedTuple):
    """How following a request ended. `status` is the turn's, or `needs you`, `timeout`, `detached`."""

    code: int
    status: str
    frame: Frame | None = None

    @property
    def event(self) -> ev.TurnFinished | None:
        event = self.frame.event if self.frame is not None else None
        return event if isinstance(event, ev.TurnFinished) else None

    @property
    def answer(self) -> str:
        """The answer as text; "" if there is none."""
        value = self.event.answer if self.event is not None else None
        return "" if value is None else value if isinstance(value, str) else to_json(value)


class Asking:
    """Follows a handle in the main thread.

    Args:
        streams: write the answer to stdout as it comes (chat), instead of leaving it to the caller.
        timeout_s: how long to wait; None: for ever.
    """

    def __init__(
        self, session: Session, out: Output, holds: Holds, *, streams: bool = False, timeout_s: float | None = None
    ) -> None:
        self._session = session
        self._out = out
        self._holds = holds
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue()
        self._waiting: deque[Frame | BaseException | None] = deque()
        self._decider = Decider(session.client, session.background, out, holds.by)
        self._printer = Printer(out)
        self._answer = Streamed(before=self._printer.clear) if streams else None
        self._asked: ev.CallJudged | None = None
        self.view = LiveView(verbose=out.settings.verbose)

    def follow(self, handle: Handle) -> Ended:
        """Follow to the end. Raises: what ends the crew or the log."""
        self.view.run = handle.intent
        self._session.background.start(self._pump(handle.frames()))
        warn_at = time.monotonic() + UNTAKEN_S
        while True:
            try:
                if self._asked is not None:
                    self._ask(self._asked)  # Ctrl-C took the question away, and the run goes on
                frame = self._next()
                if frame is not None:
                    warn_at = float("inf") if isinstance(frame.event, ev.TurnStarted) else warn_at
                    ended = self._show(frame, handle)
                    if ended is not None:
                        return ended
                elif self._until is not None and time.monotonic() > self._until:
                    return self._timed_out(handle)
                elif time.monotonic() > warn_at:
                    warn_at = float("inf")
                    self._printer.clear()
                    self._out.insist(self._untaken(), tone="yellow")
                else:
                    self._session.check()
                    self._printer.footer(self.view.busy or "waiting for an agent")
            except KeyboardInterrupt as error:
                left = self._interrupted(handle, at_once=isinstance(error, Terminated))
                if left is not None:
                    return left

    def _untaken(self) -> str:
        if self._session.again is None:
            return "nobody has taken this up yet: does `crewline up` run on this state folder?"
        return "it waits for an earlier turn of this conversation to end: crewline runs list"

    async def _pump(self, frames: AsyncIterator[Frame]) -> None:
        try:
            async for frame in frames:
                self._queue.put(frame)
            self._queue.put(BusUnavailable("the log ended before the answer"))
        except BaseException as error:
            self._queue.put(error)
            raise

    def _next(self) -> Frame | None:
        """Return the next frame, or None after a tick without one."""
        try:
            item = self._waiting.popleft() if self._waiting else self._queue.get(timeout=TICK_S)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def _show(self, frame: Frame, handle: Handle) -> Ended | None:
        if self._out.settings.json:
            self._out.document(frame.as_json())
        if self._answer is not None and frame.conversation == handle.conversation and frame.stands is not False:
            self._answer.take(frame)
        lines = self.view.take(frame)
        if lines and not self._out.settings.json:
            if self._answer is not None:
                self._answer.end_line()
            self._printer.show(lines)
        if frame.stands is False:
            return None
        if self.view.finished is not None:
            return self._finished(self.view.finished)
        if (held := held_by(frame.event)) is not None:
            return self._hold(held, handle)
        unknown = isinstance(frame.event, ev.CallCompleted) and frame.event.outcome == "unknown"
        if unknown and self._holds.on_hold == "fail":
            return self._nobody(handle, self._then("crewline approvals list"))
        return None

    def _finished(self, frame: Frame) -> Ended:
        assert isinstance(frame.event, ev.TurnFinished)
        self._printer.clear()
        return Ended(_STATUS_CODES[frame.event.status], frame.event.status, frame)

    # --- held calls ----------------------------------------------------------------------------

    def _hold(self, held: ev.CallJudged, handle: Handle) -> Ended | None:
        self._printer.clear()
        if held.tool in self._holds.approve:
            self._decider.decide(held.call, "approve", f"--approve {held.tool}")
        elif self._holds.on_hold == "deny":
            self._decider.decide(held.call, "deny", "denied by --on-hold deny")
        elif self._holds.on_hold == "ask":
            self._ask(held)
        elif self._holds.on_hold == "fail":
            return self._nobody(handle, self._then(f"crewline approvals approve {held.call}"))
        else:
            self._out.say(f"it waits: crewline approvals approve {held.call}{self._session.reach}", tone="dim")
        return None

    def _ask(self, held: ev.CallJudged) -> None:
        self._asked = held
        self._decider.ask(held.call, lambda: self._decided_elsewhere(held))
        self._asked = None

    def _decided_elsewhere(self, held: ev.CallJudged) -> bool:
        """Look through what has come meanwhile, without taking it away."""
        self._waiting.extend(self._drained())
        return any(
            not isinstance(item, Frame)
            or isinstance(item.event, ev.TurnFinished)
            or (isinstance(item.event, ev.ApprovalDecided) and item.event.call == held.call)
            for item in self._waiting
        )

    def _then(self, command: str) -> str:
        command += self._session.reach
        return command if self._session.again is None else f"{command}   then: {self._session.again}"

    def _nobody(self, handle: Handle, hint: str) -> Ended:
        self._out.say_error("held", "a call needs a person, and nobody is here to ask. Nothing has run", hint)
        return Ended(codes.HELD, "needs you")

    # --- leaving early -------------------------------------------------------------------------

    def _timed_out(self, handle: Handle) -> Ended:
        self._printer.clear()
        took = duration(self._timeout_s or 0)
        self._out.say_error("timeout", f"no answer within {took}", self._session.goes_on(handle.intent))
        return Ended(codes.TIMEOUT, "timeout")

    def _interrupted(self, handle: Handle, *, at_once: bool) -> Ended | None:
        self._printer.clear()
        said: str | None = "d"
        if self._out.settings.interactive and not at_once:
            try:
                said = ask_line("\nstop the run? [y] stop  [d] detach  [Enter] go on › ", self._is_over)
            except KeyboardInterrupt:
                sys.stderr.write("\n")
        if said is not None and said.lower() in ("y", "yes", "stop"):
            self._session.background.run(
                self._session.client.cancel(handle.conversation, by=self._holds.by, intent=handle.intent)
            )
            self._asked = None
            return None
        if said is None and self._is_over():
            return None
        if said == "":
            return None
        self._out.insist(f"detached: {self._session.goes_on(handle.intent)}")
        return Ended(codes.INTERRUPTED, "detached")

    def _is_over(self) -> bool:
        self._waiting.extend(self._drained())
        return any(not isinstance(item, Frame) or isinstance(item.event, ev.TurnFinished) for item in self._waiting)

    def _drained(self) -> list[Frame | BaseException | None]:
        found = []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found

    def closing(self, ended: Ended) -> str:
        """Return the line that ends the run."""
        return summary(self.view) if ended.frame is not None else ""
