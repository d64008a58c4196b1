"""A conversation's records, written by hand: each method appends one and folds it.

    talk = Talk()
    talk.intent("i1"); talk.started(); talk.replied(call("pay", amount=5))
    talk.judged("allow"); talk.completed("ok", "paid")
    assert talk.turn.step == 2

Ids, judgements, executions and hashes are taken from the state, as the real roles take them; every one of
them can be said otherwise, to write what is late, repeated or forged.
"""

from __future__ import annotations

from typing import Any

import msgspec
from crewline import events as ev
from crewline.bus.base import Record
from crewline.conversation import (
    FOLD_VERSION,
    Call,
    Conversation,
    Step,
    Turn,
    sha256_of,
    step_id,
    take,
    turn_id,
)
from crewline.records import Entry
from crewline.seal import DEPLOYMENT

TOPIC = "crew.conversations"
START_MS = 1_000_000
DEADLINE_MS = START_MS + 600_000
SEALERS = {"call.judged": "guard", "approval.decided": "people", "call.resolved": "people"}


def call(name: str, id: str = "w1", **arguments: Any) -> ev.CallText:
    """Return a call as a model writes it."""
    return ev.CallText(id, name, msgspec.json.encode(arguments).decode())


def limits(**changed: Any) -> ev.Limits:
    return ev.Limits(**{"deadline_ms": DEADLINE_MS, **changed})


class Talk:
    """One conversation, its entries and its state. `took` is what the last entry did."""

    def __init__(self, key: str = "c1", *, step_ms: int = 100) -> None:
        self.key = key
        self.state = Conversation(key)
        self.entries: list[Entry] = []
        self.now_ms = START_MS
        self.step_ms = step_ms
        self.took = Step(self.state, False)

    # --- reading -------------------------------------------------------------------------------

    @property
    def turn(self) -> Turn:
        assert self.state.turn is not None
        return self.state.turn

    def call(self, k: int = 0) -> Call:
        return self.turn.calls[k]

    # --- writing -------------------------------------------------------------------------------

    def entry(self, event: ev.Event, id: str, *, by: str | None = None, run: str = "run") -> Entry:
        """Return `event` as the next entry, without folding it."""
        self.now_ms += self.step_ms
        sealed_by = SEALERS.get(event.TYPE, DEPLOYMENT) if by is None else by
        record = Record(TOPIC, 0, len(self.entries), self.now_ms, self.key.encode(), ev.encode(event), ())
        return Entry(record, self.key, id, event.TYPE, run, "", event, sealed_by, "e1.seal")

    def put(self, event: ev.Event, id: str, *, by: str | None = None, run: str = "run") -> bool:
        """Append and fold `event`; return whether it stands."""
        return self.add(self.entry(event, id, by=by, run=run))

    def add(self, entry: Entry) -> bool:
        self.took = take(self.state, entry)
        self.entries.append(entry)
        self.state = self.took.state
        return self.took.stands

    def again(self, entry: Entry) -> bool:
        """Append a record that stands in the log already once more."""
        self.now_ms += self.step_ms
        record = entry.record._replace(offset=len(self.entries), timestamp_ms=self.now_ms)
        return self.add(entry._replace(record=record))

    def intent(self, id: str = "i1", input: Any = "hello", *, by: str | None = None, agent: str | None = "desk",
               **fields: Any) -> bool:
        return self.put(ev.IntentPublished(input, agent, **{"user": "ann", **fields}), id, by=by, run=id)

    def started(self, *, agent: str = "desk", turn: int | None = None, intent: str | None = None, **bounds: Any) -> bool:
        number = self.state.turns + 1 if turn is None else turn
        asked = intent or (self.state.queue[0].id if self.state.queue else "none")
        event = ev.TurnStarted(number, asked, agent, "v1", bounds.pop("fold", FOLD_VERSION), limits(**bounds))
        return self.put(event, turn_id(self.key, number))

    def replied(self, *calls: ev.CallText, text: str = "", id: str | None = None, **fields: Any) -> bool:
        event = ev.ModelReplied("desk", 1, text, calls, **fields)
        return self.put(event, id or step_id(self.key, self.turn))

    def failed(self, *, retry_at_ms: int | None = None, attempt: int | None = None) -> bool:
        number = attempt or self.turn.attempt
        return self.put(ev.ModelFailed(number, "model", "It failed.", retry_at_ms), f"{step_id(self.key, self.turn)}:a{number}")

    def judged(self, decision: Any = "allow", k: int = 0, *, safe: bool = False, pool: str = "main",
               arguments: str | None = None, by: str | None = None, deadline_ms: int = DEADLINE_MS,
               **changed: Any) -> bool:
        call = self.call(k)
        final = arguments if arguments is not None else call.edited if call.edited is not None else call.arguments
        fields: dict[str, Any] = {
            "call": call.id, "judgement": call.judgement, "execution": call.execution, "conversation": self.key,
            "agent": self.turn.agent, "tool": call.name, "pool": pool, "safe": safe, "decision": decision,
            "effect": "read" if safe else "destructive",
            "args_sha256": sha256_of(final), "arguments": arguments,
        }
        if decision == "require_approval":
            fields["approval"] = ev.ApprovalAsked(("boss",), deadline_ms)
        if decision == "deny":
            fields["reasons"] = (ev.Reason("policy.no", "It is not allowed."),)
        return self.put(ev.CallJudged(**{**fields, **changed}), call.judgement_id, by=by)

    def decided(self, decision: Any, k: int = 0, *, who: str = "boss", by: str | None = None,
                sha256: str | None = None, judgement: int | None = None, arguments: str | None = None) -> bool:
        call = self.call(k)
        assert call.verdict is not None
        event = ev.ApprovalDecided(
            call.id, judgement or call.judgement, sha256 or call.verdict.args_sha256, decision, who, arguments
        )
        return self.put(event, f"{call.judgement_id}:by:{len(self.entries)}", by=by)

    def completed(self, outcome: Any, output: str = "", k: int = 0, *, code: str | None = None, by: str = "pool/main",
                  id: str | None = None, execution: int | None = None, fix: dict[str, Any] | None = None) -> bool:
        call = self.call(k)
        number = execution or call.execution
        if code == "guard.unavailable":
            fix = fix or {"judgement": call.judgement}
            self.now_ms = max(self.now_ms, call.since_ms + int(self.turn.limits.guard_s * 1000))
        final = outcome in ("ok", "error", "revoked") or (outcome == "refused" and code != "verdict.expired")
        own = f"{call.id}:x{number}" + ("" if final else f":{outcome}")
        return self.put(ev.CallCompleted(call.id, number, outcome, output, code, fix), id or own, by=by)

    def resolved(self, resolution: Any, output: str = "", k: int = 0, *, execution: int | None = None,
                 by: str | None = None) -> bool:
        call = self.call(k)
        event = ev.CallResolved(call.id, execution or call.execution, resolution, "boss", output)
        return self.put(event, f"{call.execution_id}:by:{len(self.entries)}", by=by)

    def chosen(self, k: int = 0, *, token: str = "t0k", deadline_ms: int = DEADLINE_MS) -> bool:
        call = self.call(k)
        event = ev.DelegationChosen(
            call.id, call.execution, "refund.decide", "crew", "clerk", TOPIC, "d-1", "please", token,
            ev.Grant(depth=1), deadline_ms,
        )
        return self.put(event, f"{call.execution_id}:chosen")

    def answered(self, status: Any = "done", answer: Any = "yes", k: int = 0, *, token: str = "t0k",
                 spent: ev.Spent = ev.Spent(), by: str | None = "") -> bool:
        event = ev.IntentAnswered(token, status, answer, None, spent)
        return self.put(event, self.call(k).execution_id, by=by)

    def cancel(self, *, turn: int | None = None, intent: str | None = None, who: str = "ann") -> bool:
        if turn is None and intent is None and self.state.turn is not None:
            turn = self.turn.number
        return self.put(ev.CancelRequested(turn, intent, who), f"cancel-{len(self.entries)}")

    def deadline(self) -> bool:
        event = ev.CancelRequested(turn=self.turn.number, by="deadline")
        self.now_ms = max(self.now_ms, self.turn.deadline_ms)
        return self.put(event, f"{turn_id(self.key, self.turn.number)}:deadline")

    def finished(self, status: Any = "done", answer: Any = None, *, turn: int | None = None) -> bool:
        number = turn or (self.state.turn.number if self.state.turn else self.state.turns)
        intent = self.state.turn.intent if self.state.turn else self.state.finished[-1].intent
        return self.put(ev.TurnFinished(number, intent, status, answer, "desk"), f"{turn_id(self.key, number)}:end")

    # --- shortcuts -----------------------------------------------------------------------------

    def opened(self, *calls: ev.CallText, intent: str = "i1", **bounds: Any) -> Talk:
        """An intent, its turn, and a first reply with `calls` (none: no reply yet)."""
        self.intent(intent)
        self.started(**bounds)
        if calls:
            self.replied(*calls)
        return self

    def granted(self, name: str = "pay", *, safe: bool = False, pool: str = "main", **arguments: Any) -> Talk:
        """A turn whose one call may run."""
        self.opened(call(name, **arguments))
        self.judged("allow", safe=safe, pool=pool)
        return self


def folded(entries: list[Entry], key: str = "c1") -> Conversation:
    """Return the state after `entries`, from the start."""
    state = Conversation(key)
    for entry in entries:
        state = take(state, entry).state
    return state
