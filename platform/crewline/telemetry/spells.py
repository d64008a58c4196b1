"""What took how long in a conversation, read off its records: turns, steps, judgements, calls, people.

Pure but for one memory (when a step began, which no state keeps): metrics count these spells, traces draw
them. Times are those of the log, so every process that reads the same records tells the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal, NamedTuple

from crewline_tools.pool_view import PoolState, execution_id, find

from crewline import events as ev
from crewline.conversation import Call, Conversation, step_id, turn_id
from crewline.conversation.calls import GIVEN_UP
from crewline.records import Entry

Kind = Literal["queue", "turn", "step", "attempt", "judgement", "person", "execution", "delegation", "call"]
_REMEMBERED_MAX = 10_000  # conversations


class Spell(NamedTuple):
    """A stretch of time that has just ended. `name` is the agent, the tool or the capability at work."""

    kind: Kind
    id: str
    parent: str
    run: str
    name: str
    outcome: str
    begin_ms: int
    end_ms: int
    code: str = ""

    @property
    def seconds(self) -> float:
        return max(0, self.end_ms - self.begin_ms) / 1000


class _Since(NamedTuple):
    """Since when (broker time) the present step of a turn, its attempt and its calls have been open."""

    step: str
    step_ms: int
    attempt: int
    attempt_ms: int
    calls_ms: int


def stood(before: Conversation, after: Conversation) -> bool:
    """Return whether the record between two states counts: `conversation.stands`, without folding it again."""
    return after is not before and len(after.rejected) <= len(before.rejected) and after.again is before.again


class Spells:
    """Reads spells off the records of conversations, in the order of their partitions."""

    def __init__(self) -> None:
        self._since: OrderedDict[str, _Since] = OrderedDict()

    def read(self, before: Conversation, after: Conversation, entry: Entry) -> list[Spell]:
        """Return what ended with a record that stands."""
        found: list[Spell] = []
        if isinstance(entry.event, ev.TurnStarted | ev.TurnFinished):
            found += _of_turn(before, entry)
        elif isinstance(entry.event, ev.ModelReplied | ev.ModelFailed):
            found += self._of_step(before, entry, entry.event)
            found += _never_begun(after, entry)
        elif before.turn is not None and before.turn.calls:
            found += _of_call(before, entry)
            found += self._ended_calls(before, after, entry)
        self._remember(after, entry)
        return found

    def _remember(self, after: Conversation, entry: Entry) -> None:
        turn = after.turn
        if turn is None:
            self._since.pop(after.id, None)
            return
        id, at_ms = step_id(after.id, turn), entry.at_ms
        since = self._since.get(after.id)
        if since is None or since.step != id:
            self._since[after.id] = _Since(id, at_ms, turn.attempt, at_ms, at_ms)
            self._since.move_to_end(after.id)
            if len(self._since) > _REMEMBERED_MAX:
                self._since.popitem(last=False)
        elif since.attempt != turn.attempt:
            begin_ms = max(at_ms, turn.due_ms or 0)  # the pause before it is not the model's
            self._since[after.id] = since._replace(attempt=turn.attempt, attempt_ms=begin_ms)
        elif isinstance(entry.event, ev.ModelReplied):
            self._since[after.id] = since._replace(calls_ms=at_ms)

    def _of_step(self, before: Conversation, entry: Entry, event: ev.ModelReplied | ev.ModelFailed) -> Iterator[Spell]:
        turn, at_ms = before.turn, entry.at_ms
        assert turn is not None
        id = step_id(before.id, turn)
        since = self._since.get(before.id) or _Since(id, before.last_ms, turn.attempt, before.last_ms, at_ms)
        outcome, code, agent = "replied", "", turn.agent
        if isinstance(event, ev.ModelFailed):
            outcome, code = ("failed" if event.retry_at_ms is None else "retried"), event.code
        begin_ms = min(since.attempt_ms, at_ms)  # due times are of another clock than the log's
        yield Spell("attempt", f"{id}:a{turn.attempt}", id, turn.run, agent, outcome, begin_ms, at_ms, code)
        if outcome != "retried":
            yield Spell("step", id, turn_id(before.id, turn.number), turn.run, agent, outcome, since.step_ms, at_ms, code)

    def _ended_calls(self, before: Conversation, after: Conversation, entry: Entry) -> Iterator[Spell]:
        turn = before.turn
        assert turn is not None
        calls = after.turn.calls if after.turn is not None and after.turn.number == turn.number else ()
        still = {call.id: call for call in calls}
        since = self._since.get(before.id)
        for call in turn.calls:
            now = still.get(call.id)
            if call.status == "closed" or (now is not None and now.status != "closed"):
                continue
            # The last call of a step is gone from the state by now; then it is the record that ended it.
            done = now.outcome if now is not None else None
            outcome, code = (done.outcome, done.code or "") if done is not None else _outcome_of(entry.event)
            begin_ms = since.calls_ms if since is not None else call.since_ms
            parent = turn_id(before.id, turn.number)
            outcome = "unknown" if code == GIVEN_UP else outcome
            yield Spell("call", call.id, parent, turn.run, call.name, outcome, begin_ms, entry.at_ms, code)


def of_pool(before: PoolState, entry: Entry) -> list[Spell]:
    """Return the execution that ended with a record of a pool's topic, if it did: as long as the tool ran."""
    event = entry.event
    if not isinstance(event, ev.CallDone) or event.outcome not in ("ok", "error", "unknown"):
        return []
    id = execution_id(event.call, event.execution)
    known = find(before, id)
    if known is None or known.ended is not None or known.unknown is not None:
        return []  # a repeat, or told as unknown already
    name = known.request.tool if known.request is not None else ""
    begin_ms = entry.at_ms - round(event.duration_s * 1000)
    return [Spell("execution", id, event.call, known.run, name, event.outcome, begin_ms, entry.at_ms, event.code or "")]


def _of_turn(before: Conversation, entry: Entry) -> Iterator[Spell]:
    event, turn = entry.event, before.turn
    if isinstance(event, ev.TurnStarted):
        queued = before.queue[0]
        yield Spell("queue", f"{entry.id}:queue", entry.id, queued.run, event.agent, "taken", queued.at_ms, entry.at_ms)
    elif isinstance(event, ev.TurnFinished) and turn is not None:
        code = event.reason.code if event.reason is not None else ""
        id = turn_id(before.id, turn.number)
        yield Spell("turn", id, "", turn.run, turn.agent, event.status, turn.started_ms, entry.at_ms, code)


def _never_begun(after: Conversation, entry: Entry) -> Iterator[Spell]:
    """Tell of calls that were over when they were asked for: the reply has used up what the turn may spend."""
    turn = after.turn
    if turn is None:
        return
    for call in turn.calls:
        if call.status == "closed" and call.outcome is not None:
            parent, outcome = turn_id(after.id, turn.number), call.outcome.outcome
            yield Spell("call", call.id, parent, turn.run, call.name, outcome, entry.at_ms, entry.at_ms)


def _of_call(before: Conversation, entry: Entry) -> Iterator[Spell]:
    """What was waited for in a call: a verdict, a person, its execution, another crew."""
    event, turn, at_ms = entry.event, before.turn, entry.at_ms
    call = _called(before, entry)
    if call is None or turn is None:
        return
    begin_ms = call.since_ms
    match event:
        case ev.CallJudged():
            code = event.reasons[0].code if event.reasons else ""
            yield Spell("judgement", entry.id, call.id, turn.run, call.name, event.decision, begin_ms, at_ms, code)
        case ev.ApprovalDecided():
            outcome = "expired" if event.by == "deadline" else event.decision
            yield Spell("person", f"{call.judgement_id}:person", call.id, turn.run, call.name, outcome, begin_ms, at_ms)
        case ev.CallResolved():
            id = f"{call.execution_id}:person"
            yield Spell("person", id, call.id, turn.run, call.name, event.resolution, begin_ms, at_ms)
        case ev.CallCompleted() if call.chosen is not None:
            yield _delegation(call, turn.run, "late", begin_ms, at_ms)
        case ev.CallCompleted() if call.status == "granted":
            id, code = call.execution_id, event.code or ""
            yield Spell("execution", id, call.id, turn.run, call.name, event.outcome, begin_ms, at_ms, code)
        case ev.IntentAnswered():
            yield _delegation(call, turn.run, event.status, begin_ms, at_ms)


def _delegation(call: Call, run: str, outcome: str, begin_ms: int, at_ms: int) -> Spell:
    name = call.chosen.capability if call.chosen is not None else call.name
    return Spell("delegation", call.execution_id, call.id, run, name, outcome, begin_ms, at_ms)


def _called(before: Conversation, entry: Entry) -> Call | None:
    """Return the call that a record is about, as it stood before it."""
    if before.turn is None:
        return None
    if isinstance(entry.event, ev.IntentAnswered):
        return next((call for call in before.turn.calls if call.execution_id == entry.id), None)
    id = getattr(entry.event, "call", None)
    return next((call for call in before.turn.calls if call.id == id), None)


def _outcome_of(event: ev.Event) -> tuple[str, str]:
    match event:
        case ev.CallCompleted():
            return event.outcome, event.code or ""
        case ev.CallJudged() | ev.ApprovalDecided():
            return "refused", ""
        case ev.CallResolved(resolution="ran"):
            return "ok", ""
        case ev.CallResolved(resolution="give_up"):
            return "unknown", GIVEN_UP
        case ev.IntentAnswered():
            return ("ok" if event.status == "done" else "error"), ""
        case _:
            return "revoked", ""
