"""What a running tool is told about its call, and what it can say while it runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime
from typing import Any

PROGRESS_S_MIN = 0.1  # between two records of progress of one call
NEVER = datetime.max.replace(tzinfo=UTC)

Report = Callable[[float, float | None, str], None]


class Cancelled:
    """Set once, by whoever gives a call up; read by its tool, in whatever thread. (An event that nobody waits for.)"""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


class _Said:
    """Awaitable, and done already: `await ctx.progress(…)` and `ctx.progress(…)` say the same."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class ToolContext:
    """One execution of a call, as its tool sees it. Everything has a default, so that a unit test can
    pass `ToolContext()`. Safe to use from the thread in which a plain function runs.

    Attributes:
        call_id: the call; the same for every attempt and execution of it.
        idempotency_key: the same for every attempt, execution and restart of this call, and for no other
            call. Give it to the service you call.
        user, conversation, run, agent: on whose behalf, where, in which run, for which agent.
        attempt: counts from 1; more than 1 after a failure that is tried again.
        deadline: when this attempt times out (UTC).
    """

    def __init__(
        self,
        *,
        call_id: str = "call",
        idempotency_key: str = "key",
        user: str | None = None,
        conversation: str = "",
        run: str = "",
        agent: str = "",
        attempt: int = 1,
        deadline: datetime = NEVER,
        report: Report | None = None,
        cancelled: Cancelled | None = None,
    ) -> None:
        self.call_id = call_id
        self.idempotency_key = idempotency_key
        self.user = user
        self.conversation = conversation
        self.run = run
        self.agent = agent
        self.attempt = attempt
        self.deadline = deadline
        self._report = report
        self._cancelled = cancelled or Cancelled()
        self._said_at = -PROGRESS_S_MIN

    def __repr__(self) -> str:
        return f"<ToolContext {self.call_id} attempt {self.attempt}>"

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more: the turn ends, or the time is up."""
        return self._cancelled.is_set()

    def progress(self, done: float, total: float | None = None, say: str = "") -> Awaitable[None]:
        """Show how far the tool is. `await` it in an async tool, just call it in a plain one.

        Best effort: at most one record every 100 ms, never an error.
        """
        now = time.monotonic()
        if self._report is not None and now - self._said_at >= PROGRESS_S_MIN:
            self._said_at = now
            self._report(done, total, say)
        return _Said()


def idempotency_key(namespace: str, run: str, call: str) -> str:
    """Return the key of a call: 32 hex digits, the same for every execution of it, in every process."""
    return hashlib.sha256("\n".join((namespace, run, call)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
