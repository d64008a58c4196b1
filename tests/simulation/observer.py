"""The truth: the log folded once, by somebody who was always there; and what must be true of it.

    Observer   folds every record as it is written, remembers what stands
    violations of the promise are collected as sentences in `wrong`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from crew import HELD_FROM, LIMIT
from crewline import events as ev
from crewline.bus.base import Record
from crewline.conversation import Conversation, ConversationView, sha256_of, take, worker_pending
from crewline.errors import RecordInvalid, UnknownEvent
from crewline.guardrail.counters import Counter, CounterView
from crewline.records import Entry, Reader, held_key
from crewline.topics import CrewTopics
from crewline_tools.pool_view import PoolState, PoolView
from purse import Purses

Where = tuple[int, bytes]  # partition and key: what stands on a wrong partition is not the conversation's
States = list[tuple[int, Any]]  # (offset, state after it), oldest first


def _where(record: Record) -> Where:
    return record.partition, held_key(record.key)


@dataclass(frozen=True, slots=True)
class Start:
    """A tool's function was called. `text` is what it got."""

    tool: str
    execution: str
    call: str
    text: str
    process: str
    at_s: float
    offset: int


@dataclass(frozen=True, slots=True)
class Granted:
    """A standing verdict that lets one execution run."""

    offset: int
    tool: str
    safe: bool
    text: str
    reserved: tuple[str, ...]


@dataclass
class Observer:
    """What stands. `on_needed` is told of calls that wait for a person: (state, call id)."""

    topics: CrewTopics
    reader: Reader
    pool_reader: Reader
    on_needed: Callable[[Conversation, Any], None]
    limited: bool = True
    day: bool = True
    view: ConversationView = field(default_factory=ConversationView)
    pool_view: PoolView = field(default_factory=lambda: PoolView("main"))
    conversations: dict[Where, Conversation] = field(default_factory=dict)
    history: dict[Where, States] = field(default_factory=dict)
    pool_states: dict[Where, PoolState] = field(default_factory=dict)
    pool_history: dict[Where, States] = field(default_factory=dict)
    counter_view: CounterView = field(default_factory=CounterView)
    counters: dict[Where, Counter] = field(default_factory=dict)
    counter_history: dict[Where, States] = field(default_factory=dict)
    purses: Purses = field(default_factory=Purses)
    standing: set[tuple[int, int]] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    accepted: dict[str, Where] = field(default_factory=dict)
    intents: list[tuple[str, int, int]] = field(default_factory=list)
    ends: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    finished: dict[str, list[ev.TurnFinished]] = field(default_factory=dict)
    replied: dict[str, int] = field(default_factory=dict)
    granted: dict[str, Granted] = field(default_factory=dict)
    approved: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    outcomes: dict[str, list[ev.CallCompleted]] = field(default_factory=dict)
    resolved: dict[str, list[ev.CallResolved]] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    records: int = 0

    def __call__(self, record: Record) -> None:
        self.records += 1
        try:
            if record.topic == self.topics.conversations:
                self._conversation(record)
            elif record.topic == self.topics.limits:
                self._limit(record)
            elif ".tools." in record.topic:
                self._pool(record)
        except Exception as error:
            self.wrong.append(f"the fold raised {error!r} at {record.topic} {record.partition}@{record.offset}")

    # --- folding -------------------------------------------------------------------------------

    def _conversation(self, record: Record) -> None:
        before = self.conversations.get(_where(record))
        if before is None:
            before = self.view.initial(held_key(record.key).decode())
        try:
            entry = self.reader.read(record)
            took = take(before, entry)
            state = took.state
            if took.stands:
                self.standing.add((record.partition, record.offset))
                self._stands(before, state, entry)
            self._asked(entry, state)
        except UnknownEvent:
            state = before
        except RecordInvalid as error:
            state = self.view.reject(before, record, error.code, error.message, parks=False)
        self.conversations[_where(record)] = state
        self.history.setdefault(_where(record), []).append((record.offset, state))
        for call in state.turn.calls if state.turn else ():
            if call.status in ("held", "unknown"):
                self.on_needed(state, call)

    def _pool(self, record: Record) -> None:
        state = self.pool_states.get(_where(record)) or self.pool_view.initial(held_key(record.key).decode())
        try:
            state = self.pool_view.fold(state, self.pool_reader.read(record))
        except UnknownEvent:
            pass
        except RecordInvalid as error:
            state = self.pool_view.reject(state, record, error.code, error.message, parks=False)
        self.pool_states[_where(record)] = state
        self.pool_history.setdefault(_where(record), []).append((record.offset, state))

    def _limit(self, record: Record) -> None:
        where = _where(record)
        counter = self.counters.get(where) or self.counter_view.initial(held_key(record.key).decode())
        entry = self.reader.read(record)
        match entry.event:
            case ev.LimitAsked() as asked:
                self.purses.asked(entry.key, asked, record.timestamp_ms)
            case ev.LimitSettled() as settled:
                self.purses.settled(settled)
            case _:
                pass
        self.counters[where] = counter = self.counter_view.fold(counter, entry)
        self.counter_history.setdefault(where, []).append((record.offset, counter))

    def _stands(self, before: Conversation, after: Conversation, entry: Entry) -> None:
        event = entry.event
        if entry.id in self.ids:
            self.wrong.append(f"a second record of id {entry.id} stands, {entry.type} at {entry.record.partition}@{entry.offset}")
        self.ids.add(entry.id)
        match event:
            case ev.IntentPublished():
                self.accepted[entry.id] = _where(entry.record)
            case ev.TurnFinished():
                self.finished.setdefault(event.intent, []).append(event)
            case ev.ModelReplied():
                self.replied[entry.id] = entry.offset
            case ev.CallJudged(decision="allow" | "amend"):
                call = next(each for each in after.turn.calls if each.id == event.call) if after.turn else None
                if call is not None:
                    uses = tuple(use.reservation for use in event.limits)
                    granted = Granted(entry.offset, call.name, event.safe, call.arguments, uses)
                    self.granted[f"{event.call}:x{event.execution}"] = granted
            case ev.ApprovalDecided(decision="approve" | "edit"):
                sha256 = event.args_sha256 if event.arguments is None else sha256_of(event.arguments)
                self.approved.setdefault(event.call, []).append((entry.offset, sha256))
            case ev.CallCompleted():
                self.outcomes.setdefault(f"{event.call}:x{event.execution}", []).append(event)
            case ev.LimitAnswered():
                known = self.purses.taken.get(entry.id)
                if known is None or known.granted is not event.granted:
                    self.wrong.append(f"{entry.id} was answered {event.granted}, reckoned again it is {known}")
            case ev.CallResolved():
                self.resolved.setdefault(f"{event.call}:x{event.execution}", []).append(event)
            case _:
                pass

    def _asked(self, entry: Entry, state: Conversation) -> None:
        """Note who asks, and every copy of an answer."""
        if isinstance(entry.event, ev.IntentPublished):
            self.intents.append((entry.id, entry.record.partition, entry.offset))
        elif isinstance(entry.event, ev.TurnFinished):
            self.ends.setdefault(entry.event.intent, []).append((entry.record.partition, entry.offset))

    # --- what must be true ---------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether nothing is open in any conversation."""
        for state in self.conversations.values():
            if state.turn is not None or any(not effect.owed for effect in worker_pending(state)):
                return False
        return True

    def check_answers(self) -> None:
        """Every accepted intent is answered once, and everyone who asked found an answer after asking."""
        for intent, key in self.accepted.items():
            answers = len(self.finished.get(intent, ()))
            if answers != 1:
                waits = self.conversations[key]
                self.wrong.append(f"intent {intent} has {answers} answers; {key} waits: {waits.turn and waits.turn.calls}")
        for intent, partition, offset in self.intents:
            if intent in self.accepted and not any(
                where == partition and end > offset for where, end in self.ends.get(intent, ())
            ):
                self.wrong.append(f"whoever asked for {intent} at {partition}@{offset} got no answer")
        for key, state in self.conversations.items():
            if state.parked is not None:
                self.wrong.append(f"conversation {key!r} is parked: {state.parked}")

    def check_tools(self) -> None:
        """Nothing ran without its verdict, and what is not safe ran once, and as the log says."""
        starts: dict[str, list[Start]] = {}
        by_call: dict[str, list[Start]] = {}
        for start in self.starts:
            starts.setdefault(start.execution, []).append(start)
            by_call.setdefault(start.call, []).append(start)
            self._check_verdict(start)
        for call, ran in by_call.items():
            unsafe = [start for start in ran if (grant := self.granted.get(start.execution)) and not grant.safe]
            if len(unsafe) > 1 and unsafe[0].tool != "decline":
                self.wrong.append(f"unsafe call {call} was started {len(unsafe)} times: {unsafe}")
            for execution in {start.execution: None for start in unsafe}:
                if len(starts[execution]) > 1:
                    self.wrong.append(f"unsafe execution {execution} was started twice: {starts[execution]}")
            for execution in {start.execution: None for start in unsafe if start.tool != "decline"}:
                told = [each.outcome for each in self.outcomes.get(execution, ())]
                if execution not in self.resolved and "ok" not in told and "error" not in told:
                    self.wrong.append(f"{execution} ran, and the log never says how it ended")
        for execution, outcomes in self.outcomes.items():
            granted = self.granted.get(execution)
            if granted is None or granted.safe or granted.tool in ("delegate", "handoff", "decline"):
                continue
            for outcome in outcomes:
                happened = execution in starts
                if happened and outcome.outcome in ("refused", "revoked", "abandoned"):
                    self.wrong.append(f"{execution} ran, and the log says {outcome.outcome} {outcome.code}")
                if not happened and outcome.outcome == "ok":
                    self.wrong.append(f"{execution} did not run, and the log says it did")

    def check_limits(self) -> None:
        """What ran rests on what was granted and never given back; every reservation is settled, what turns spent said once."""
        for start in self.starts:
            granted = self.granted.get(start.execution)
            if start.tool in LIMIT.tools and granted is not None and self.limited:
                held = [self.purses.taken[id] for id in granted.reserved if id in self.purses.taken]
                if len(held) != 1 or not held[0].counts:
                    self.wrong.append(f"{start.execution} ran, and its reservation is {held}")
        for call, outcomes in self.outcomes.items():
            granted = self.granted.get(call)
            for id in granted.reserved if granted is not None else ():
                never = all(each.outcome in ("refused", "revoked", "abandoned") for each in outcomes)
                if never and id in self.purses.taken and self.purses.taken[id].counts:
                    self.wrong.append(f"{call} never ran, and {id} is not given back")
        if left := self.purses.open():
            self.wrong.append(f"nobody says what became of {left}")
        for state in self.conversations.values():
            for done in state.finished if self.day else ():
                for finished in self.finished.get(done.intent, ()):
                    id = f"{state.id}:t{done.turn}:budgets.day.tool_calls"
                    told = self.purses.spent.get(id)
                    if not done.intent.startswith("d-") and told != finished.spent.tool_calls:
                        self.wrong.append(f"turn {done.turn} of {state.id} spent {finished.spent.tool_calls} calls, said was {told}")

    def _check_verdict(self, start: Start) -> None:
        granted = self.granted.get(start.execution)
        if granted is None or granted.offset >= start.offset:
            self.wrong.append(f"{start.execution} ran without a standing verdict")
            return
        if granted.text != start.text or granted.tool != start.tool:
            self.wrong.append(f"{start.execution} ran {start.tool} {start.text}, allowed was {granted.tool} {granted.text}")
        amount = msgspec.json.decode(start.text).get("amount", 0)
        if start.tool == "pay" and amount >= HELD_FROM:
            sha256 = sha256_of(start.text)
            if not any(offset < granted.offset and said == sha256 for offset, said in self.approved.get(start.call, ())):
                self.wrong.append(f"{start.execution} paid {amount} and nobody approved these bytes")

    def check_states(
        self, who: str, partition: int, states: Iterable[tuple[bytes, bytes]], *, role: str, below: int | None = None
    ) -> None:
        """Every state somebody holds is the one that the log gives (`below`: of the records before that offset)."""
        history: dict[Where, States]
        view: Any
        history, view = {
            "tools.main": (self.pool_history, self.pool_view), "limits": (self.counter_history, self.counter_view),
        }.get(role, (self.history, self.view))
        for key, encoded in states:
            true: Any = view.initial(key.decode())
            for offset, state in reversed(history.get((partition, key), [])):
                if below is None or offset < below:
                    true = state
                    break
            if view.encode(true) != encoded:
                self.wrong.append(f"{who} holds of {key!r} {view.decode(encoded)}, the log says {true}")
