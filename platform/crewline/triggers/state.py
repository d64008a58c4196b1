"""What is known of one key of a trigger: its windows, its clock, its firings, as frozen records."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from crewline import events as ev
from crewline.triggers.rules import Gathering


class State(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of the parts of a key's state."""


class Window(State, frozen=True, array_like=True):
    """A window that is open. `values` are its aggregates, `last` its latest event (if an expression reads it).

    `end_ms` of a session is its last event's time: it closes `gap_ms` later. `latest_ms`: of the event kept.
    """

    start_ms: int
    end_ms: int
    values: tuple[list[Any], ...] = ()
    last: Any = None
    latest_ms: int = 0
    fired: bool = False


class Taken(State, frozen=True, array_like=True):
    """How far events of one outside partition were taken for this key: a repeat lies at or below it."""

    partition: int
    epoch: int
    offset: int


class Asked(State, frozen=True):
    """An intent of a firing. `id` is its id; `answered` is None until its answer came."""

    id: str
    capability: str
    answered: ev.IntentAnswered | None = None


class Firing(State, frozen=True):
    """What a trigger asks for. `id` is uuid5 of trigger, key and window: a repeat is the same intent.

    `started_ms`: when it got a place (broker time; None: it waits for one). `stage` `gather`: the scatter is
    over, and `asked` is the gathering intent alone. `deadline_ms`: when the stage ends in any case. `gather` is
    the trigger's as it was when it fired: a changed one does not change what is under way.
    """

    id: str
    input: Any
    user: str | None
    conversation: str | None
    asked: tuple[Asked, ...]
    started_ms: int | None = None
    stage: Literal["ask", "gather"] = "ask"
    deadline_ms: int = 0
    gathered: tuple[ev.Gathered, ...] = ()
    gather: Gathering | None = None


class Letter(State, frozen=True):
    """An event that could not be used after it was taken: written to the dead letters, then forgotten."""

    id: str
    say: str
    topic: str
    partition: int
    offset: int
    event: Any = None


class KeyState(State, frozen=True):
    """All that is known of one key. `id` is `trigger/key`.

    Its clock: `event_ms` is the latest event time, `arrived_ms` when that record arrived; windows are closed
    up to `closed_ms`. `fired_ms` is the event time of the last firing. `late`, `held_back` and `full` count events
    after their windows' grace, firings within the cooldown, and firings beyond what may wait. `stopped`: an error stopped
    this key (`on_error: stop`).
    """

    id: str
    rule: str = ""
    topic: str = ""
    taken: tuple[Taken, ...] = ()
    event_ms: int | None = None
    arrived_ms: int = 0
    closed_ms: int = 0
    windows: tuple[Window, ...] = ()
    firings: tuple[Firing, ...] = ()
    fired_ms: int | None = None
    letters: tuple[Letter, ...] = ()
    late: int = 0
    held_back: int = 0
    full: int = 0
    stopped: str | None = None

    @property
    def trigger(self) -> str:
        return self.id.partition("/")[0]
