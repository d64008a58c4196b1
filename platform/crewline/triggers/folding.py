"""The fold of a trigger's key: events into windows, windows into firings, answers into findings. Pure.

One rule a record. A firing is made by the fold alone, so the same records make the same firings with the same
ids; what is published of them follows from the state (see pending.py).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from crewline import events as ev
from crewline.expressions import ExpressionError
from crewline.records import Entry
from crewline.seal import DEPLOYMENT
from crewline.triggers import windows as windowing
from crewline.triggers.aggregates import AggregateError
from crewline.triggers.rules import TriggerRule
from crewline.triggers.state import Asked, Firing, KeyState, Letter, Taken, Window

FIRINGS_MAX = 1_000  # of one key, open or waiting
LETTERS_MAX = 1_000
HELD_MS = 24 * 3_600_000  # a firing whose answer has not come by then gives its place back
TEXT_BYTES_MAX = 512  # of `user` and `conversation`: as long as a key may be
FINDING_BYTES_MAX = 100_000
_IDS = uuid.UUID("6f0b1f52-5a3c-4c0e-9d7b-0d4a3f1f7c11")


def fold(state: KeyState, entry: Entry, rules: Mapping[str, TriggerRule]) -> KeyState:
    """Return the state after `entry`. Pure and total; what does not stand changes nothing.

    Records of a trigger that is not there any more change nothing either.
    """
    rule = rules.get(state.trigger)
    if rule is None or entry.sealed_by != DEPLOYMENT:
        return state
    folding = _FOLDS.get(type(entry.event))
    return folding(state, entry, entry.event, rule) if folding is not None else state


def firing_id(topic: str, trigger_key: str, window: str) -> str:
    """Return the id of a firing: the same for the same namespace, trigger, key and window.

    A window is one of its trigger as it was then: an intent of a changed one must not pass for an answered one.
    """
    return str(uuid.uuid5(_IDS, "\n".join((topic, trigger_key, window))))


def ask_id(firing: str, capability: str) -> str:
    """Return the id of one of several intents of a firing."""
    return str(uuid.uuid5(_IDS, f"{firing}\n{capability}"))


# --- events ---------------------------------------------------------------------------------------


def _taken(state: KeyState, entry: Entry, event: ev.EventTaken, rule: TriggerRule) -> KeyState:
    if event.rule != rule.digest:
        return state  # taken for another version of the trigger: it begins anew
    if state.rule != event.rule:
        state = _begin_anew(state, event)
    news = _is_new(state, event)
    if news is None:
        return state
    state = replace(state, taken=news)
    if state.stopped is not None:
        return state
    if rule.window is None:
        return _without_window(state, entry, event, rule)
    clock_ms = windowing.clock_at(state, event.arrived_ms, event.at_ms)
    state = _close(state, entry, rule, clock_ms)
    sample = windowing.Sample(event.at_ms, event.values, event.event)
    try:
        windows, holding = windowing.place(rule, state.windows, sample, clock_ms)
    except AggregateError as error:
        return _failed(_moved(state, event, clock_ms), rule, event, str(error))
    state = replace(_moved(state, event, clock_ms), windows=tuple(windows))
    if not holding:
        say = f"late: its windows were closed {clock_ms - event.at_ms:,} ms after its time at the latest"
        return _failed(replace(state, late=state.late + 1), rule, event, say, stops=False)
    return state if rule.fires_at_close else _early(state, entry, event, rule, holding)


def _begin_anew(state: KeyState, event: ev.EventTaken) -> KeyState:
    """Another version of the trigger counts from here: open windows are given up, firings go on."""
    taken = state.taken if state.topic == event.topic else ()
    return KeyState(state.id, event.rule, event.topic, taken, firings=state.firings, letters=state.letters)


def _is_new(state: KeyState, event: ev.EventTaken) -> tuple[Taken, ...] | None:
    """Return `taken` with this event, or None if it was taken before (an intake repeats after a kill)."""
    rest = []
    for each in state.taken:
        if each.partition != event.partition:
            rest.append(each)
        elif (each.epoch, each.offset) >= (event.epoch, event.offset):
            return None
    return (*rest, Taken(event.partition, event.epoch, event.offset))


def _moved(state: KeyState, event: ev.EventTaken, clock_ms: int) -> KeyState:
    latest = event.at_ms if state.event_ms is None else max(state.event_ms, event.at_ms)
    return replace(state, event_ms=latest, arrived_ms=max(state.arrived_ms, event.arrived_ms), closed_ms=clock_ms)


def _without_window(state: KeyState, entry: Entry, event: ev.EventTaken, rule: TriggerRule) -> KeyState:
    """The condition was looked at when the event was taken."""
    where = f"{event.topic}:{event.epoch}:{event.partition}:{event.offset}"
    try:
        return _fire(state, entry, rule, event.at_ms, where, {"event": event.event}, None)
    except ExpressionError as error:
        return _failed(state, rule, event, error.message)


def _early(
    state: KeyState, entry: Entry, event: ev.EventTaken, rule: TriggerRule, holding: Sequence[int]
) -> KeyState:
    """Fire for each window that holds the event and now meets the condition, once a window."""
    for start in holding:
        if _cooling(state, rule, event.at_ms):
            return state
        window = next(each for each in state.windows if each.start_ms == start)
        if window.fired:
            continue
        try:
            state = _if_true(state, entry, rule, event.at_ms, window, event.event)
        except ExpressionError as error:
            return _failed(state, rule, event, error.message)
    return state


def _if_true(
    state: KeyState, entry: Entry, rule: TriggerRule, at_ms: int, window: Window, event: Any
) -> KeyState:
    """Fire for a window if it meets the condition. Raises: ExpressionError."""
    values = {**windowing.results(rule, window), "event": event}
    when = rule.compiled.when
    if when is not None and not when.truth(values):
        return state
    fired = _fire(state, entry, rule, at_ms, f"{rule.digest}:{window.start_ms}", values, window)
    marked = tuple(replace(each, fired=True) if each.start_ms == window.start_ms else each for each in fired.windows)
    return replace(fired, windows=marked)


# --- windows that close -----------------------------------------------------------------------------


def _close(state: KeyState, entry: Entry, rule: TriggerRule, clock_ms: int) -> KeyState:
    """Close what the key's clock has passed; fire for those that speak then."""
    assert rule.window is not None
    closed, still = windowing.close(rule.window, state.windows, clock_ms)
    if not closed:
        return state
    state = replace(state, windows=tuple(still), closed_ms=max(state.closed_ms, clock_ms))
    for window in closed if rule.fires_at_close else ():
        at_ms = window.end_ms + rule.window.gap_ms
        if _cooling(state, rule, at_ms):
            state = replace(state, held_back=state.held_back + 1)
            continue
        try:
            state = _if_true(state, entry, rule, at_ms, window, window.last)
        except ExpressionError as error:
            say = f"the window from {ev.time_of(window.start_ms)}: {error.message}"
            state = _with_letter(state, rule, Letter(f"letter:{state.id}:{window.start_ms}", say, state.topic, -1, -1, window.last))
    return state


def _time(state: KeyState, entry: Entry, event: ev.TimePassed, rule: TriggerRule) -> KeyState:
    now_ms = min(event.until_ms, entry.at_ms)  # the owner's clock may be ahead of the log's
    for firing in state.firings:
        if firing.started_ms is not None and firing.deadline_ms <= now_ms:
            state = _on_deadline(state, entry, firing)
    if event.silent and rule.window is not None and state.rule == rule.digest and state.event_ms is not None:
        state = _close(state, entry, rule, windowing.clock_at(state, now_ms))
    return state


# --- firing -----------------------------------------------------------------------------------------


def _cooling(state: KeyState, rule: TriggerRule, at_ms: int) -> bool:
    return state.fired_ms is not None and at_ms < state.fired_ms + rule.cooldown_ms


def _fire(
    state: KeyState, entry: Entry, rule: TriggerRule, at_ms: int, where: str, values: dict[str, Any], window: Window | None
) -> KeyState:
    """Return the state with one more firing, unless it is too soon. Raises: ExpressionError."""
    if _cooling(state, rule, at_ms):
        return replace(state, held_back=state.held_back + 1)
    compiled = rule.compiled
    user, conversation = (
        None if each is None else text_of(each.evaluate(values), what)
        for each, what in ((compiled.user, "user"), (compiled.conversation, "conversation"))
    )
    input = _input(rule, values, window)
    id = firing_id(entry.record.topic, state.id, where)
    if len(state.firings) >= FIRINGS_MAX:
        say = f"full: {FIRINGS_MAX:,} firings of this key wait already"
        return _with_letter(replace(state, full=state.full + 1), rule, Letter(f"letter:{id}", say, state.topic, -1, -1, input))
    asks = tuple(Asked(id if rule.gather is None else ask_id(id, each), each) for each in rule.asks)
    firing = Firing(id, input, user, conversation, asks, gather=rule.gather)
    fired_ms = at_ms if state.fired_ms is None else max(state.fired_ms, at_ms)
    return replace(state, firings=(*state.firings, firing), fired_ms=fired_ms)


def _input(rule: TriggerRule, values: dict[str, Any], window: Window | None) -> Any:
    """Return what the intent is given: what `input` says; else the event, or the window's aggregates."""
    span = {}
    if window is not None:
        assert rule.window is not None
        span = {"start": ev.time_of(window.start_ms), "end": ev.time_of(window.end_ms + rule.window.gap_ms)}
    if rule.input:
        return {name: each.evaluate({**values, "window": span}) for name, each in rule.compiled.input.items()}
    if window is None:
        return values["event"]
    return {**{name: values[name] for name in rule.aggregates}, "from": span["start"], "to": span["end"]}


def text_of(value: Any, what: str) -> str:
    """Return a key, user or conversation as text. Raises: ExpressionError if it is none, or too long."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise ExpressionError(f"'{what}' gives {json.dumps(value)[:60]}; a text or a number is needed")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise ExpressionError(f"'{what}' gives a text of {len(text):,} characters; {TEXT_BYTES_MAX} bytes at most")
    return text


def _started(state: KeyState, entry: Entry, event: ev.FiringStarted, rule: TriggerRule) -> KeyState:
    firing = _firing(state, event.firing)
    if firing is None or firing.started_ms is not None:
        return state
    timeout_ms = firing.gather.timeout_ms if firing.gather is not None else HELD_MS
    return _put(state, replace(firing, started_ms=entry.at_ms, deadline_ms=entry.at_ms + timeout_ms))


def _closed(state: KeyState, entry: Entry, event: ev.FiringClosed, rule: TriggerRule) -> KeyState:
    return replace(
        state,
        firings=tuple(each for each in state.firings if each.id != event.firing),
        letters=tuple(each for each in state.letters if each.id != event.firing),
    )


# --- answers ----------------------------------------------------------------------------------------


def _answered(state: KeyState, entry: Entry, event: ev.IntentAnswered, rule: TriggerRule) -> KeyState:
    for firing in state.firings:
        for n, asked in enumerate(firing.asked):
            if asked.id == entry.id and asked.answered is None:
                answers = (*firing.asked[:n], replace(asked, answered=_kept(event)), *firing.asked[n + 1 :])
                firing = replace(firing, asked=answers)
                if firing.stage == "gather" or firing.gather is None:
                    return _drop(state, firing)
                after = _put(state, firing)
                return _gather(after, entry, firing) if _has_enough(firing) else after
    return state


def _kept(event: ev.IntentAnswered) -> ev.IntentAnswered:
    """Return an answer as it is kept: it must fit, with the others, into the gathering intent."""
    if len(ev.encode(event)) <= FINDING_BYTES_MAX:
        return event
    reason = ev.Reason("answer.too_large", f"The answer is longer than {FINDING_BYTES_MAX:,} bytes.")
    return replace(event, status="failed", answer=None, reason=reason)


def _has_enough(firing: Firing) -> bool:
    assert firing.gather is not None
    answers = [each.answered for each in firing.asked if each.answered is not None]
    if len(answers) == len(firing.asked):
        return True
    done = sum(answer.status == "done" for answer in answers)
    if firing.gather.wait_for == "all":
        return False
    return done >= (1 if firing.gather.wait_for == "any" else len(firing.asked) // 2 + 1)


def _on_deadline(state: KeyState, entry: Entry, firing: Firing) -> KeyState:
    if firing.gather is not None and firing.stage == "ask":
        return _gather(state, entry, firing)
    return _drop(state, firing)


def _gather(state: KeyState, entry: Entry, firing: Firing) -> KeyState:
    """The scatter is over: what has arrived goes to the gathering intent."""
    assert firing.gather is not None
    findings = {each.capability: _finding(each.answered) for each in firing.asked}
    given = firing.input if isinstance(firing.input, dict) else {"event": firing.input}
    gathered = tuple(
        ev.Gathered(each.capability) for each in firing.asked if each.answered is not None and each.answered.status == "done"
    )
    next_stage = replace(
        firing,
        stage="gather",
        input={**given, "findings": findings},
        asked=(Asked(firing.id, firing.gather.intent),),
        deadline_ms=entry.at_ms + HELD_MS,
        gathered=gathered,
    )
    return _put(state, next_stage)


def _finding(answered: ev.IntentAnswered | None) -> dict[str, Any]:
    if answered is None:
        return {"status": "missing", "reason": "It did not answer in time."}
    if answered.status == "done":
        return {"status": "done", "answer": answered.answer}
    return {"status": answered.status, "reason": answered.reason.say if answered.reason is not None else ""}


# --- errors -----------------------------------------------------------------------------------------


def _failed(state: KeyState, rule: TriggerRule, event: ev.EventTaken, say: str, *, stops: bool = True) -> KeyState:
    """Note an event that could not be used, as `on_error` says. Late ones (`stops` False) never stop a key."""
    id = f"letter:{event.topic}:{event.epoch}:{event.partition}:{event.offset}"
    letter = Letter(id, say, event.topic, event.partition, event.offset, event.event if event.event is not None else event.values)
    if stops and rule.on_error == "stop":
        state = replace(state, stopped=say, windows=())
    return _with_letter(state, rule, letter)


def _with_letter(state: KeyState, rule: TriggerRule, letter: Letter) -> KeyState:
    if rule.on_error == "skip" or len(state.letters) >= LETTERS_MAX:
        return state
    return replace(state, letters=(*state.letters, letter))


# --- parts of a state -------------------------------------------------------------------------------


def _firing(state: KeyState, id: str) -> Firing | None:
    return next((each for each in state.firings if each.id == id), None)


def _put(state: KeyState, firing: Firing) -> KeyState:
    return replace(state, firings=tuple(firing if each.id == firing.id else each for each in state.firings))


def _drop(state: KeyState, firing: Firing) -> KeyState:
    return replace(state, firings=tuple(each for each in state.firings if each.id != firing.id))


_Fold = Callable[[KeyState, Entry, Any, TriggerRule], KeyState]
_FOLDS: dict[type[ev.Event], _Fold] = {
    ev.EventTaken: _taken,
    ev.TimePassed: _time,
    ev.FiringStarted: _started,
    ev.FiringClosed: _closed,
    ev.IntentAnswered: _answered,
}
