"""What a conversation is: its turns, calls and queue, as frozen records, and the ids of their parts."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import msgspec
from crewline_agents.base import ChatMessage
from crewline_tools.base import BUILTIN_POOL

from crewline import events as ev

CallStatus = Literal["judging", "held", "granted", "unknown", "closed"]


class State(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of the parts of a conversation's state."""


class Queued(State, frozen=True):
    """An intent waiting for its turn. `trace` is its `traceparent`, if somebody outside began the trace."""

    id: str
    run: str
    intent: ev.IntentPublished
    at_ms: int
    size: int = 0
    cancelled_by: str | None = None
    trace: str = ""


class Finished(State, frozen=True, array_like=True):
    """A finished intent: enough to know a repeat, and to find its `turn.finished` again."""

    intent: str
    turn: int
    offset: int


class Owed(State, frozen=True):
    """An answer owed to another conversation. It is acknowledged before the next turn starts."""

    to: ev.ReplyTo
    run: str
    answered: ev.IntentAnswered


class Call(State, frozen=True):
    """One call of the current step, as far as it has come.

    `arguments` are the bytes that count now: the model's, an amendment or an edit. `since_ms` is when
    the present status began. `verdict` is the standing one of the latest judgement.
    """

    id: str
    wire_id: str
    name: str
    arguments: str
    valid: bool
    problem: str | None
    status: CallStatus
    since_ms: int
    judgement: int = 1
    execution: int = 1
    verdict: ev.CallJudged | None = None
    sealed: ev.SealedVerdict | None = None
    edited: str | None = None
    approved_by: str | None = None
    approved_sha256: str | None = None
    chosen: ev.DelegationChosen | None = None
    expiries: int = 0
    outcome: ev.CallCompleted | None = None

    @property
    def may_change(self) -> bool:
        """Whether its pool may change something with it: it is requested there, and no mere read."""
        verdict = self.verdict
        return verdict is not None and verdict.pool != BUILTIN_POOL and verdict.effect != "read"

    @property
    def execution_id(self) -> str:
        return f"{self.id}:x{self.execution}"

    @property
    def judgement_id(self) -> str:
        return f"{self.id}:j{self.judgement}"


class DoneCall(State, frozen=True, array_like=True):
    """A call of this turn that was run (or may have been): for repeats and for counting."""

    tool: str
    args_sha256: str
    outcome: str
    safe: bool


class Turn(State, frozen=True):
    """The turn under way. `failing` or `cancelled_by` set: it ends as soon as its calls are closed."""

    number: int
    intent: str
    run: str
    asked: ev.IntentPublished
    agent: str
    crew_version: str
    limits: ev.Limits
    started_ms: int
    step: int = 1
    attempt: int = 1
    due_ms: int | None = None
    calls: tuple[Call, ...] = ()
    catalogue: str = ""
    messages: tuple[ChatMessage, ...] = ()
    spent: ev.Spent = ev.Spent()
    done_calls: tuple[DoneCall, ...] = ()
    denials: tuple[str, ...] = ()
    answer: str | None = None
    failing: ev.Reason | None = None
    cancelled_by: str | None = None
    paused_ms: int = 0
    paused_since_ms: int | None = None
    entry: str = ""
    trace: str = ""

    @property
    def deadline_ms(self) -> int:
        """When the turn must end (broker time): the time a person was waited for does not count."""
        return self.limits.deadline_ms + self.paused_ms

    @property
    def ending(self) -> bool:
        return self.failing is not None or self.cancelled_by is not None


class Past(State, frozen=True):
    """A finished turn as later turns see it."""

    number: int
    messages: tuple[ChatMessage, ...]
    origin: str = "user"


class Rejected(State, frozen=True):
    """A record that counts as absent, which the worker has yet to say."""

    partition: int
    offset: int
    code: str
    say: str
    parks: bool

    @property
    def id(self) -> str:
        return f"rejected:{self.partition}:{self.offset}"


class Reserved(State, frozen=True):
    """What a counter answered. `ended`: nothing rests on it any more, and its counter is to be told so:
    whether the call ran, and what it came to (`amount`); of a turn also when it ended (`ended_ms`)."""

    answer: ev.LimitAnswered
    ended: Literal["", "ran", "not_run"] = ""
    amount: float = 0.0
    ended_ms: int = 0


class Conversation(State, frozen=True):
    """All that is known of one conversation."""

    id: str
    turns: int = 0
    # (agent that intents name, agent the conversation was handed over to)
    handed: tuple[str, str] | None = None
    # A sealed intent was published here: unsealed ones are refused from then on.
    owned: bool = False
    # The most turns that any agent here wants to see; one who wants fewer takes nothing from the others.
    kept: int = 0
    turn: Turn | None = None
    queue: tuple[Queued, ...] = ()
    history: tuple[Past, ...] = ()
    finished: tuple[Finished, ...] = ()
    again: tuple[Finished, ...] = ()
    owed: Owed | None = None
    rejected: tuple[Rejected, ...] = ()
    parked: str | None = None
    last_ms: int = 0
    # Reservations against limits over windows; those of turns up to `forgotten` may not be known any more.
    reserved: tuple[Reserved, ...] = ()
    forgotten: int = 0


class Step(NamedTuple):
    """What a record does: the state after it, and whether it stands."""

    state: Conversation
    stands: bool


def turn_id(conversation: str, turn: int) -> str:
    return f"{conversation}:t{turn}"


def step_id(conversation: str, turn: Turn) -> str:
    return f"{conversation}:t{turn.number}:s{turn.step}"


def sha256_of(arguments: str) -> str:
    """Return the hex SHA-256 of a call's argument bytes: what verdicts and decisions are bound to."""
    return hashlib.sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest()
