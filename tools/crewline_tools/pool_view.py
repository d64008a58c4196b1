"""A tool pool's view of one conversation: its executions, whose they are, how they ended, what is due.

    requested ─▶ (safe)   execute ──────────────────────────▶ call.done (reported already) ─▶ forgotten
    requested ─▶ (unsafe) claim ─▶ started ─▶ run ─▶ call.done ─▶ report (owed to conversations)
                              │        └ no outcome in time ─▶ reconcile, or unknown ─▶ report
                              └▶ refused, revoked ─▶ report

Pure: no clock, no I/O. Two rules make "at most once" out of an ordered partition:

* Of one execution the first claim stands (`call.started`, `call.refused`, `call.revoked`), whoever wrote it.
* Calls have places (turn, step), and a conversation goes on to the next step only when every call of the
  last one is closed. So a request with a later place settles all earlier ones: they are forgotten, and a
  request from an earlier place (a zombie worker's, a repeat) is never run. The same holds for a lower
  execution of a call. What is remembered is thus one step's calls, however long the conversation is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from crewline import events as ev
from crewline.bus.base import Record
from crewline.engine import Effect
from crewline.records import Entry
from crewline.traceparent import HEADER, from_outside
from msgspec.structs import replace

from crewline_tools.base import ToolSpec

log = logging.getLogger("crewline.tools")

SNAPSHOT_VERSION = 1
CLAIM_S = 5.0  # a claimer that has not begun to run by then must not
CLAIM_MS = 5_000
TIMEOUT_MS = 30_000  # of a claim whose request, and so whose tool, is not known

_VERDICT = msgspec.json.Decoder(ev.CallJudged)

Place = tuple[int, int]
_PLACE = re.compile(r":t([1-9]\d{0,8}):s([1-9]\d{0,8}):c\d{1,6}")


class State(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True, gc=False):
    """Base of the parts of a pool's state."""


class Execution(State, frozen=True):
    """One execution of a call.

    `request` is dropped once nothing can run any more. `started_ms` is broker time. `ended` is how it
    ended, `unknown` that nobody could say for a while; each is owed to the conversation. `trace` is the
    `traceparent` of its request, if somebody outside began the trace.

    Invariant: `claim`, `nonce`, `started_ms` and `ended` never change once set.
    """

    id: str
    call: str
    number: int
    run: str
    request: ev.CallRequested | None = None
    claim: Literal["", "started", "refused", "revoked"] = ""
    nonce: str = ""
    started_ms: int = 0
    revoke_asked: bool = False
    ended: ev.CallDone | None = None
    unknown: ev.CallDone | None = None
    reported: bool = False
    trace: str = ""


class PoolState(State, frozen=True):
    """What a pool knows of one conversation. `place` is the latest step that asked for a call here."""

    key: str
    place: Place = (0, 0)
    executions: tuple[Execution, ...] = ()
    parked: str | None = None


class Owed(NamedTuple):
    """A `call.completed` to be appended to the conversation, and its id."""

    id: str
    completed: ev.CallCompleted


def execution_id(call: str, execution: int) -> str:
    return f"{call}:x{execution}"


def place_of(key: str, call: str) -> Place | None:
    """Return (turn, step) of a call of conversation `key`, or None if it is no such call."""
    found = _PLACE.fullmatch(call, len(key)) if call.startswith(key) else None
    return (int(found[1]), int(found[2])) if found else None


# --- fold --------------------------------------------------------------------------------------


def fold(state: PoolState, entry: Entry, pool: str) -> PoolState:
    """Return the state after `entry`; what does not stand changes nothing. Pure and total."""
    event: Any = entry.event
    rule = _FOLDS.get(type(event))
    if rule is None or entry.sealed_by != f"pool/{pool}" or state.parked is not None:
        return state
    place = place_of(state.key, event.call)
    if place is None or place < state.place or event.execution < 1:
        return state
    known = find(state, execution_id(event.call, event.execution))
    if known is None:
        if type(event) not in _OPENING or _superseded(state, event):
            return state
        known = Execution(execution_id(event.call, event.execution), event.call, event.execution, entry.run)
    changed = rule(known, entry, event)
    if changed is known:
        return state
    return _put(state, place, changed)


def _put(state: PoolState, place: Place, changed: Execution) -> PoolState:
    if place > state.place:
        return replace(state, place=place, executions=(changed,))
    if find(state, changed.id) is not None:
        return replace(state, executions=tuple([changed if each.id == changed.id else each for each in state.executions]))
    kept = tuple(each for each in state.executions if each.call != changed.call)  # a lower execution is settled
    return replace(state, executions=(*kept, changed))


def _superseded(state: PoolState, event: Any) -> bool:
    return any(each.call == event.call and each.number > event.execution for each in state.executions)


def find(state: PoolState, id: str) -> Execution | None:
    """Return the execution of that id, or None."""
    for each in state.executions:
        if each.id == id:
            return each
    return None


def _requested(known: Execution, entry: Entry, event: ev.CallRequested) -> Execution:
    if known.request is not None or known.ended is not None:
        return known
    trace = from_outside(ev.header(entry.record.headers, HEADER), event.run, entry.id)
    return replace(known, request=event, run=event.run, trace=trace)


def _started(known: Execution, entry: Entry, event: ev.CallStarted) -> Execution:
    if known.claim or known.ended is not None:
        return known
    return replace(known, claim="started", nonce=event.nonce, started_ms=entry.at_ms)


def _refused(known: Execution, entry: Entry, event: ev.CallRefused) -> Execution:
    if known.claim or known.ended is not None:
        return known
    return _end(replace(known, claim="refused"), ev.CallDone(event.call, event.execution, "refused", event.say, event.code))


def _revoked(known: Execution, entry: Entry, event: ev.CallRevoked) -> Execution:
    if known.ended is not None:
        return known
    if known.claim or _may_change_unclaimed(known):
        # It may be running by now: whoever runs it tells how it ended.
        return known if known.revoke_asked else replace(known, revoke_asked=True)
    say = f"The call was called back before it ran: {event.why}." if event.why else "The call was called back before it ran."
    return _end(replace(known, claim="revoked"), ev.CallDone(event.call, event.execution, "revoked", say, "call.revoked"))


def _may_change_unclaimed(known: Execution) -> bool:
    """Whether it is an idempotent tool's, which runs without a claim and yet changes something."""
    if known.request is None:
        return False
    try:
        verdict = _VERDICT.decode(known.request.verdict.value)
        return verdict.safe and verdict.effect != "read"
    except (msgspec.DecodeError, RecursionError):
        return False  # no verdict at all: nothing will run with it


def _abandoned(known: Execution, entry: Entry, event: ev.CallAbandoned) -> Execution:
    if known.claim != "started" or known.nonce != event.nonce or known.ended is not None:
        return known
    say = "The pool came too late to run the call safely, and did not."
    # Once it is unknown, the conversation waits for an outcome and takes no new execution: this is one.
    outcome: ev.Outcome = "abandoned" if known.unknown is None else "error"
    return _end(known, ev.CallDone(event.call, event.execution, outcome, say, "call.abandoned"))


def _done(known: Execution, entry: Entry, event: ev.CallDone) -> Execution:
    if known.ended is not None:
        return known
    if event.outcome == "unknown":
        return known if known.unknown is not None else replace(known, unknown=event)
    if known.claim:
        return _end(known, event)
    # A safe execution: its outcome stands in the conversation already (see `ToolPool`), nothing is owed.
    return replace(known, request=None, ended=ev.CallDone(event.call, event.execution, event.outcome), reported=True)


def _end(known: Execution, ended: ev.CallDone) -> Execution:
    return replace(known, request=None, ended=ended)


_FOLDS: Mapping[type[ev.Event], Any] = {
    ev.CallRequested: _requested,
    ev.CallStarted: _started,
    ev.CallRefused: _refused,
    ev.CallRevoked: _revoked,
    ev.CallAbandoned: _abandoned,
    ev.CallDone: _done,
}
# What may come first: a claim is one even where its request was never seen (a worker revokes a call that it
# may not have sent yet; below the log's start a request may be gone).
_OPENING = frozenset({ev.CallRequested, ev.CallStarted, ev.CallRefused, ev.CallRevoked})


# --- what is due -------------------------------------------------------------------------------


def pending(state: PoolState, tools: Mapping[str, ToolSpec]) -> list[Effect]:
    """Return what the pool owes this conversation. Pure.

    An unknown tool counts as unsafe: it is claimed, by a refusal. So does a claim of nobody knows what.
    """
    if state.parked is not None:
        return []
    effects: list[Effect] = []
    for each in state.executions:
        if each.reported:
            continue
        if each.ended is not None:
            effects.append(Effect(f"{each.id}:report", "report", each.id, owed=True))
        elif each.claim == "started":
            effects += _started_effects(each, tools)
        elif each.request is not None:
            spec = tools.get(each.request.tool)
            if spec is not None and spec.safe:
                effects.append(Effect(f"{each.id}:execute", "execute", each.id))
            else:
                effects.append(Effect(f"{each.id}:claim", "claim", each.id))
    return effects


def _started_effects(each: Execution, tools: Mapping[str, ToolSpec]) -> list[Effect]:
    effects = []
    if each.unknown is not None:
        effects.append(Effect(f"{each.id}:unknown:report", "report_unknown", each.id, owed=True))
    else:
        # Both: whose claim it is, only the process knows that made its nonce. `run` does nothing elsewhere.
        effects.append(Effect(f"{each.id}:run", "run", each.id))
        effects.append(Effect(f"{each.id}:overdue", "overdue", each.id, due_ms=overdue_ms(each, tools)))
    if each.revoke_asked:
        effects.append(Effect(f"{each.id}:cancel", "cancel", each.id))
    return effects


def overdue_ms(each: Execution, tools: Mapping[str, ToolSpec]) -> int:
    """Return the broker time at which whoever started an execution must have been done with it."""
    spec = tools.get(each.request.tool) if each.request is not None else None
    return each.started_ms + CLAIM_MS + (int(spec.timeout_s * 1000) if spec is not None else TIMEOUT_MS)


def owed(done: ev.CallDone) -> Owed:
    """Return the copy of an outcome that the conversation gets. What is not final has an id of its own."""
    final = done.outcome in ("ok", "error", "revoked") or (done.outcome == "refused" and done.code != "verdict.expired")
    id = execution_id(done.call, done.execution)
    completed = ev.CallCompleted(
        done.call, done.execution, done.outcome, done.output, done.code, done.fix, done.duration_s
    )
    return Owed(id if final else f"{id}:{done.outcome}", completed)


class PoolView:
    """The view that the engine is given."""

    version = SNAPSHOT_VERSION

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(PoolState)

    def initial(self, key: str) -> PoolState:
        return PoolState(key)

    def fold(self, state: PoolState, entry: Entry) -> PoolState:
        return fold(state, entry, self._pool)

    def reject(self, state: PoolState, record: Record, code: str, say: str, *, parks: bool) -> PoolState:
        """A rejected record counts as absent.

        A gap parks nothing: what is gone is older than the topic's retention (7 days at least), so the
        verdict of anything unclaimed has expired long ago, and what was claimed becomes unknown.
        """
        log.warning("%s partition %d offset %d: record rejected: %s: %s",
                    record.topic, record.partition, record.offset, code, say)
        return replace(state, parked=f"{code}: {say}") if parks and code != "log.gap" else state

    def encode(self, state: PoolState) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> PoolState:
        return self._decoder.decode(data)


def open_executions(states: Sequence[PoolState]) -> list[Execution]:
    """Return the executions that have not ended, for the command line and metrics."""
    return [each for state in states for each in state.executions if each.ended is None]
