"""A pool's view: which claim stands, what is due, what is remembered. Pure folds over made-up records."""

import secrets
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
from crewline.bus.base import Record
from crewline.events import (
    CallAbandoned,
    CallDone,
    CallRefused,
    CallRequested,
    CallRevoked,
    CallStarted,
    Event,
    SealedVerdict,
)
from crewline.records import Entry
from crewline_tools.base import ToolSpec
from crewline_tools.pool_view import (
    Owed,
    PoolState,
    PoolView,
    find,
    fold,
    open_executions,
    owed,
    pending,
    place_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = "c:1"  # a conversation's id may hold a colon
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = {
    "pay": ToolSpec("pay", "Pay.", SCHEMA, "destructive", timeout_s=20.0),
    "look": ToolSpec("look", "Look.", SCHEMA, "read"),
}


def call(turn: int = 1, step: int = 1, k: int = 0) -> str:
    return f"{KEY}:t{turn}:s{step}:c{k}"


CALL = call()
X1 = f"{CALL}:x1"


def entry(event: Event, *, at_ms: int = 1_000, by: str = "pool/main", key: str = KEY) -> Entry:
    record = Record("demo.tools.main", 0, 0, at_ms, key.encode(), b"", ())
    return Entry(record, key, "id", event.TYPE, "r1", "", event, by, "")


def requested(tool: str = "pay", at: str = CALL, execution: int = 1) -> CallRequested:
    return CallRequested(at, execution, tool, "{}", SealedVerdict("", "", "", "", ""), "desk", "r1")


def folded(*events: Event, state: PoolState | None = None) -> PoolState:
    state = state or PoolState(KEY)
    for number, event in enumerate(events):
        state = fold(state, entry(event, at_ms=1_000 + number), "main")
    return state


def due(state: PoolState) -> dict[str, str]:
    return {effect.id: effect.kind for effect in pending(state, TOOLS)}


def reported(state: PoolState) -> Owed:
    """Return what the conversation is told of the first execution."""
    known = find(state, X1)
    assert known is not None
    done = known.ended or known.unknown
    assert done is not None
    return owed(done)


STARTED = CallStarted(CALL, 1, "nonce")
REFUSED = CallRefused(CALL, 1, "verdict.expired", "late")
REVOKED = CallRevoked(CALL, 1, "the turn is ending")
DONE = CallDone(CALL, 1, "ok", "paid")
UNKNOWN = CallDone(CALL, 1, "unknown", "?", "call.lost")


def test_a_safe_execution_is_run_and_forgotten_when_it_is_reported() -> None:
    state = folded(requested("look"))
    assert due(state) == {f"{X1}:execute": "execute"}

    state = folded(CallDone(CALL, 1, "ok"), state=state)
    assert due(state) == {}
    assert open_executions([state]) == []


@pytest.mark.parametrize("tool", ["pay", "nobody_knows_it"])
def test_an_unsafe_or_unknown_execution_is_claimed_first(tool: str) -> None:
    assert due(folded(requested(tool))) == {f"{X1}:claim": "claim"}


def test_a_started_execution_is_run_by_its_claimer_and_watched_by_everybody() -> None:
    effects = pending(folded(requested(), STARTED), TOOLS)

    assert {effect.kind: effect.due_ms for effect in effects} == {"run": None, "overdue": 1_001 + 5_000 + 20_000}


def test_the_outcome_of_a_claimed_execution_is_owed_to_the_conversation() -> None:
    state = folded(requested(), STARTED, DONE)

    assert due(state) == {f"{X1}:report": "report"}
    assert pending(state, TOOLS)[0].owed
    assert reported(state).id == X1
    assert reported(state).completed.output == "paid"


@pytest.mark.parametrize("claims", list(permutations([STARTED, REFUSED, REVOKED])))
def test_the_first_claim_stands_whoever_wrote_it(claims: Sequence[Event]) -> None:
    known = find(folded(requested(), *claims), X1)

    assert known is not None
    assert known.claim == {STARTED: "started", REFUSED: "refused", REVOKED: "revoked"}[claims[0]]


def test_of_two_starters_the_first_runs() -> None:
    known = find(folded(requested(), STARTED, CallStarted(CALL, 1, "zombie")), X1)

    assert known is not None
    assert known.nonce == "nonce"


def test_a_revocation_before_its_request_stands_and_is_reported() -> None:
    state = folded(REVOKED, requested())

    assert due(state) == {f"{X1}:report": "report"}
    assert reported(state).completed.outcome == "revoked"


def test_a_revocation_after_the_start_asks_the_tool_to_stop_and_closes_nothing() -> None:
    assert due(folded(requested(), STARTED, REVOKED)) == {
        f"{X1}:run": "run", f"{X1}:overdue": "overdue", f"{X1}:cancel": "cancel"}


def test_a_revoked_safe_execution_is_dropped() -> None:
    assert due(folded(requested("look"), REVOKED)) == {f"{X1}:report": "report"}


@pytest.mark.parametrize(("events", "id", "outcome"), [
    ([DONE], X1, "ok"),
    ([CallDone(CALL, 1, "error", "no")], X1, "error"),
    ([CallAbandoned(CALL, 1, "nonce")], f"{X1}:abandoned", "abandoned"),
])
def test_what_is_final_has_the_executions_id_and_what_is_not_another(
    events: Sequence[Event], id: str, outcome: str
) -> None:
    told = reported(folded(requested(), STARTED, *events))

    assert (told.id, told.completed.outcome) == (id, outcome)


@pytest.mark.parametrize(("code", "id"), [("verdict.expired", f"{X1}:refused"), ("verdict.forged", X1)])
def test_an_expired_verdict_is_not_final_any_other_refusal_is(code: str, id: str) -> None:
    assert reported(folded(requested(), CallRefused(CALL, 1, code, "no"))).id == id


def test_only_the_claimer_can_abandon() -> None:
    assert open_executions([folded(requested(), STARTED, CallAbandoned(CALL, 1, "zombie"))])


def test_a_late_outcome_after_unknown_is_reported_under_the_executions_own_id() -> None:
    state = folded(requested(), STARTED, UNKNOWN)
    assert due(state) == {f"{X1}:unknown:report": "report_unknown"}
    assert reported(state).id == f"{X1}:unknown"

    state = folded(DONE, state=state)
    assert due(state) == {f"{X1}:report": "report"}


def test_coming_too_late_after_unknown_says_for_certain_that_it_did_not_run() -> None:
    told = reported(folded(requested(), STARTED, UNKNOWN, CallAbandoned(CALL, 1, "nonce")))

    assert (told.id, told.completed.outcome) == (X1, "error")


def test_unknown_after_the_outcome_says_nothing() -> None:
    assert folded(requested(), STARTED, DONE, UNKNOWN) == folded(requested(), STARTED, DONE)


def test_repeats_change_nothing() -> None:
    once = folded(requested(), STARTED, UNKNOWN, DONE)

    assert folded(requested(), STARTED, requested(), STARTED, UNKNOWN, UNKNOWN, DONE, DONE, requested()) == once


@pytest.mark.parametrize("later", [call(step=2), call(turn=2, step=1)])
def test_a_later_step_settles_earlier_ones_and_repeats_of_them_are_never_run(later: str) -> None:
    state = folded(requested(), STARTED, DONE, requested("look", later))

    assert [each.call for each in state.executions] == [later]
    for late in (requested(), STARTED, REVOKED, DONE, requested("look")):
        assert folded(late, state=state) is state


def test_a_later_execution_settles_the_earlier_ones_of_its_call_alone() -> None:
    other = requested("look", call(k=1))
    state = folded(requested(), other, STARTED, UNKNOWN, requested(execution=2))

    assert [each.id for each in state.executions] == [f"{call(k=1)}:x1", f"{CALL}:x2"]
    assert folded(requested(), STARTED, DONE, state=state) is state


def test_what_is_remembered_does_not_grow_with_the_conversation() -> None:
    state = PoolState(KEY)
    for step in range(1, 200):
        at = call(step=step)
        state = folded(requested(at=at), CallStarted(at, 1, "n"), CallDone(at, 1, "ok", "x"), state=state)

    assert len(state.executions) == 1
    assert len(PoolView("main").encode(state)) < 300


@pytest.mark.parametrize("event", [requested(), STARTED, REFUSED, REVOKED])
@pytest.mark.parametrize("by", ["pool/other", "deployment", "", "guard"])
def test_only_what_is_sealed_for_this_pool_counts(event: Event, by: str) -> None:
    assert fold(PoolState(KEY), entry(event, by=by), "main") == PoolState(KEY)


@pytest.mark.parametrize("event", [CallDone(CALL, 1, "ok"), CallAbandoned(CALL, 1, "n"), requested(execution=0),
                                   requested(at="c:2:t1:s1:c0"), requested(at="c:1:t0:s1:c0"), requested(at="c:1")])
def test_what_begins_nothing_changes_nothing(event: Event) -> None:
    assert folded(event) == PoolState(KEY)


@pytest.mark.parametrize(("at", "place"), [
    ("c:1:t3:s14:c0", (3, 14)), ("c:1:t3:s14:c0:x1", None), ("c:1:t03:s1:c0", None), ("c:11:t1:s1:c0", None), ("", None)])
def test_a_call_says_where_it_stands(at: str, place: tuple[int, int] | None) -> None:
    assert place_of(KEY, at) == place


def test_a_gap_parks_nothing_and_a_failed_fold_does() -> None:
    view = PoolView("main")
    record = Record("demo.tools.main", 0, 0, 0, KEY.encode(), None, ())
    state = folded(requested())

    assert view.reject(state, record, "log.gap", "gone", parks=True) is state
    assert view.reject(state, record, "record.invalid", "bad", parks=False) is state
    assert pending(view.reject(state, record, "fold.failed", "bug", parks=True), TOOLS) == []


def test_a_snapshot_is_the_state() -> None:
    view = PoolView("main")
    state = folded(requested(), requested("look", call(k=1)), STARTED, UNKNOWN, REVOKED)

    assert view.decode(view.encode(state)) == state


# --- two pools, every interleaving -------------------------------------------------------------

Action = tuple[str, int]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "act", "act", "append", "append", "go", "go", "race", "crash", "rewind", "ask", "ask_next",
                         "later", "revoke", "overdue"]),
        st.integers(0, 1),
    ),
    min_size=40,  # short ones find nothing
    max_size=60,
)


class Member:
    """One process of a pool: how far it has read, what it folded, which claims are its own."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.state, self.read = PoolState(KEY), 0
        self.nonces: dict[str, str] = {}
        self.outbox: list[Event] = []

    def step(self) -> None:
        if self.read < len(self.world.log):
            self.state = fold(self.state, entry(self.world.log[self.read], at_ms=self.read), "main")
            self.read += 1

    def go(self) -> None:
        self.look()
        self.send()

    def look(self) -> None:
        while self.read < len(self.world.log):
            self.step()
        self.act(overdue=False)

    def send(self) -> None:
        self.world.log += self.outbox
        self.outbox = []

    def act(self, *, overdue: bool) -> None:
        for effect in pending(self.state, TOOLS):
            each = find(self.state, effect.ref)
            assert each is not None
            if effect.kind == "claim" and each.id not in self.nonces:
                self.nonces[each.id] = secrets.token_hex(4)
                self.outbox.append(CallStarted(each.call, each.number, self.nonces[each.id]))
            elif effect.kind == "run" and each.nonce == self.nonces.get(each.id):
                self.nonces[each.id] = "used up"
                self.world.ran(each.id)
                self.outbox.append(CallDone(each.call, each.number, "ok", "paid"))
            elif effect.kind == "overdue" and overdue:
                self.outbox.append(CallDone(each.call, each.number, "unknown"))


class World:
    def __init__(self) -> None:
        self.log: list[Event] = [requested()]
        self.runs: dict[str, int] = {}
        self.members = [Member(self), Member(self)]
        self.place, self.execution = 1, 1

    def ran(self, id: str) -> None:
        self.runs[id] = self.runs.get(id, 0) + 1

    def do(self, what: str, who: int) -> None:
        member = self.members[who]
        if what == "read":
            member.step()
        elif what in ("act", "overdue"):
            member.act(overdue=what == "overdue")
        elif what == "append" and member.outbox:
            self.log.append(member.outbox.pop(0))
        elif what == "go":  # nothing comes in between for a while
            member.go()
        elif what == "race":  # both claim, and whoever's claim arrives first is at it before the other's does
            self.members[1 - who].look()
            for each in (member, self.members[1 - who]):
                each.look()
                each.send()
                each.look()
        elif what == "crash":  # its memory is gone; what it had sent may arrive all the same, or not
            self.members[who] = Member(self)
        elif what == "rewind":  # the partition goes away and comes back: claims are still in memory
            member.state, member.read = PoolState(KEY), 0
        elif what == "ask":  # a repeat, from however long ago
            self.log.append(self.log[who % len(self.log)])
        elif what == "ask_next":
            self.execution += 1
            self.log.append(requested(at=call(step=self.place), execution=self.execution))
        elif what == "later":
            self.place, self.execution = self.place + 1, 1
            self.log.append(requested(at=call(step=self.place)))
        elif what == "revoke":
            self.log.append(CallRevoked(call(step=self.place), self.execution))


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_an_execution_is_run_at_most_once_whatever_two_pools_do(actions: list[Action]) -> None:
    world = World()
    for what, who in actions:
        world.do(what, who)
    for _ in range(4):
        for member in world.members:
            member.go()

    assert all(count == 1 for count in world.runs.values()), world.runs
