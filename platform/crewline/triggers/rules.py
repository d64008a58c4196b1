"""What a trigger says, compiled: where events come from, when it fires, and what is asked for then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from crewline.errors import UsageError
from crewline.expressions import Aggregate, Expression, ExpressionError

HOPS_MAX = 1_440  # windows that hold one event: each costs memory and CPU for every key
WINDOW_S_MAX = 15 * 86_400.0  # half of what `<ns>.triggers` keeps: a lost store is rebuilt from that

OnError = Literal["dead_letter", "skip", "stop"]


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How windows lie. Times in milliseconds.

    `tumbling`: one after the other, `advance_ms` = `size_ms`. `hopping`: a new one every `advance_ms`.
    `session`: from the first event until none came for `gap_ms`. `grace_ms`: how late an event may be.
    """

    kind: Literal["tumbling", "hopping", "session"]
    size_ms: int = 0
    advance_ms: int = 0
    gap_ms: int = 0
    grace_ms: int = 0

    def starts(self, at_ms: int) -> range:
        """Return the starts of the windows that hold an event of `at_ms`, earliest first."""
        last = at_ms // self.advance_ms * self.advance_ms
        first = (at_ms - self.size_ms) // self.advance_ms * self.advance_ms + self.advance_ms
        return range(first, last + 1, self.advance_ms)


@dataclass(frozen=True, slots=True)
class Gathering:
    """The intent that takes the answers of a scatter, and for how long it waits for them."""

    intent: str
    wait_for: Literal["all", "any", "majority"]
    timeout_ms: int


@dataclass(frozen=True)
class TriggerRule:
    """A trigger. `asks` is the capability asked for, or those of the scatter when there is a `gather`.

    Expressions: `key` and `time` see `event`; the others see the aggregates as well, `input` also `window`.
    Raises: UsageError for an expression that cannot be compiled or windows beyond the bounds.
    """

    name: str
    topic: str
    key: str
    asks: Sequence[str]
    time: str | None = None
    window: WindowRule | None = None
    aggregates: Mapping[str, str] = field(default_factory=dict)
    when: str | None = None
    cooldown_ms: int = 0
    gather: Gathering | None = None
    input: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    conversation: str | None = None
    concurrency: int = 1
    on_error: OnError = "dead_letter"

    def __post_init__(self) -> None:
        window = self.window
        if window is not None and window.kind != "session" and len(window.starts(0)) > HOPS_MAX:
            raise UsageError(f"trigger {self.name!r}: an event would be in {len(window.starts(0)):,} windows; {HOPS_MAX:,} "
                             "at most: make 'advance' longer or 'size' shorter")
        if window is not None and max(window.size_ms, window.gap_ms) + window.grace_ms > WINDOW_S_MAX * 1000:
            raise UsageError(f"trigger {self.name!r}: a window may last {WINDOW_S_MAX / 86_400:g} days at most, its grace included")
        try:
            _ = self.compiled
        except ExpressionError as error:
            raise UsageError(f"trigger {self.name!r}: {error.message}") from None

    @property
    def intake(self) -> str:
        """The name under which the store holds how far the topic was taken for this trigger."""
        return f"intake.{self.name}.{self.topic}"

    @property
    def fires_at_close(self) -> bool:
        """Whether windows speak only when they close: sessions, and those without a condition."""
        return self.window is not None and (self.window.kind == "session" or self.when is None)

    @cached_property
    def compiled(self) -> Compiled:
        """The expressions."""
        after = ("event", *self.aggregates)
        inside = (*after, "window") if self.window is not None else after

        def maybe(text: str | None, names: Sequence[str]) -> Expression | None:
            return Expression.compile(text, names=names) if text is not None else None

        return Compiled(
            key=Expression.compile(self.key, names=("event",)),
            time=maybe(self.time, ("event",)),
            aggregates={name: Aggregate.compile(text) for name, text in self.aggregates.items()},
            when=maybe(self.when, after),
            input={name: Expression.compile(text, names=inside) for name, text in self.input.items()},
            user=maybe(self.user, after),
            conversation=maybe(self.conversation, after),
        )

    @cached_property
    def needs_event(self) -> bool:
        """Whether anything reads the event itself once its window is known."""
        compiled = self.compiled
        later = [compiled.when, compiled.user, compiled.conversation, *compiled.input.values()]
        return self.window is None or any(each is not None and "event" in each.roots for each in later)

    @cached_property
    def digest(self) -> str:
        """What says whether two processes count alike: a changed trigger begins with new windows."""
        said: dict[str, Any] = {
            "topic": self.topic, "key": self.key, "time": self.time, "aggregates": list(self.aggregates.items()),
            "when": self.when, "input": list(self.input.items()), "user": self.user, "conversation": self.conversation,
            "cooldown": self.cooldown_ms, "asks": list(self.asks), "on_error": self.on_error,
            "window": repr(self.window), "gather": repr(self.gather),
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Compiled:
    """The expressions of a trigger."""

    key: Expression
    time: Expression | None
    aggregates: Mapping[str, Aggregate]
    when: Expression | None
    input: Mapping[str, Expression]
    user: Expression | None
    conversation: Expression | None
