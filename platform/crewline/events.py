"""The protocol: every event of every topic, who writes it, who reacts, and how it looks on the wire.

A record's value is the event's data alone, as JSON; its type and everything that says where it comes
from are CloudEvents headers (`Envelope`). Fields this version does not know are ignored here and kept
in the log: a record is never written again from its decoded form, its bytes are copied.

On `<ns>.conversations`, keyed by conversation:
  IntentPublished TurnStarted ModelReplied ModelFailed CallJudged ApprovalDecided CallCompleted
  CallResolved DelegationChosen IntentAnswered CancelRequested TurnFinished RecordRejected LimitAnswered
On `<ns>.tools.<pool>`, keyed by conversation:
  CallRequested CallStarted CallRefused CallRevoked CallAbandoned CallDone
On `<ns>.limits`, keyed by limit and its key:
  LimitAsked LimitSettled
On `<ns>.triggers`, keyed by `trigger/key`:
  EventTaken FiringStarted TimePassed FiringClosed, and IntentAnswered for what was asked
On `<ns>.tokens`: TokensStreamed CallProgressed · on `<ns>.audit`: CheckpointSigned · on the market: AgentAdvertised

Effect ids (deterministic; the result of an effect has its id as `ce_id`):
  <conv>:t<turn>  :s<step>  :a<attempt>      and in a step  :c<call>  :j<judgement>  :x<execution>
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Literal

import msgspec

from crewline.errors import RecordInvalid, UnknownEvent

Headers = tuple[tuple[str, bytes], ...]


class Data(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A part of an event's data.

    `gc=False`, here and on states: they are trees and hold no cycles, so the collector need not walk them.
    """


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of all events. `TYPE` is the `ce_type` on the wire."""

    TYPE: ClassVar[str] = ""


class CallText(Data, frozen=True):
    """A call as the model wrote it. `arguments` is its raw text, never parsed and written again.

    `id` is unique in its reply, non-empty, and the same on a replay (the provider's own, or ours).
    `valid`: the text is one JSON object by RFC 8259 (the guardrail denies the rest, with a reason).
    `problem`: why it is not valid. `echo`: provider fields that must go back with the call.
    """

    id: str
    name: str
    arguments: str
    valid: bool = True
    problem: str | None = None
    echo: dict[str, Any] | None = None


class Usage(Data, frozen=True):
    """Token counts as last reported; None where the endpoint gave none."""

    input_tokens: int | None = None
    output_tokens: int | None = None


class Origin(Data, frozen=True):
    """Whose words an intent's input is.

    kind `user`: a person said it; `agent`: a model of `crew`/`agent` wrote it; `trigger`: it was computed from
    records of the outside `topic` by `trigger`; `untrusted`: nobody vouches for it (an unsealed producer).
    """

    kind: Literal["user", "agent", "trigger", "untrusted"] = "untrusted"
    crew: str | None = None
    agent: str | None = None
    trigger: str | None = None
    topic: str | None = None


class Gathered(Data, frozen=True):
    """A finding that a gathered intent carries: who was asked for what answered, as `run.gathered` shows it."""

    capability: str


class ReplyTo(Data, frozen=True):
    """Where the answer of a delegated intent goes: appended to `topic` under `key`, with id `effect`.

    `token` must come back with it; whoever answers proves with it that the intent reached him.
    """

    topic: str
    key: str
    effect: str
    token: str


class Grant(Data, frozen=True):
    """What a delegated run may spend, taken from the parent's; None is no bound of its own."""

    tool_calls: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None
    depth: int = 0


class Limits(Data, frozen=True):
    """The bounds of one turn, copied from the crew file when it starts.

    `deadline_ms` is broker time. `attempts` bounds model attempts a step. `guard_s` is how long a
    call waits for its verdict. `history` is how many earlier turns a brain sees. `day` names what the
    turn spends of the crew's budget for the day.
    """

    max_steps: int = 10
    attempts: int = 4
    tool_calls: int = 50
    tokens: int | None = None
    cost_usd: float | None = None
    deadline_ms: int = 0
    guard_s: float = 30.0
    history: int = 20
    depth: int = 0
    day: tuple[str, ...] = ()


class Reason(Data, frozen=True):
    """Why something was not done, for a model and a person.

    `code` is stable; `say` one sentence; `path` a JSON pointer into the arguments; `fix` machine-readable.
    """

    code: str
    say: str
    path: str | None = None
    fix: dict[str, Any] | None = None


class Spent(Data, frozen=True):
    """What a turn used, its delegated turns included."""

    steps: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """Return the sum. Counts come from endpoints and other crews: each stays between 0 and 2^53."""
        return Spent(
            _count(self.steps + other.steps),
            _count(self.tool_calls + other.tool_calls),
            _count(self.input_tokens + other.input_tokens),
            _count(self.output_tokens + other.output_tokens),
            min(max(0.0, self.cost_usd + other.cost_usd), 1e15),
        )

    def within(self, grant: Grant) -> Spent:
        """Return what may be charged of it: nothing below 0, and no more than was granted."""
        tokens = grant.tokens if grant.tokens is not None else COUNT_MAX
        cost = grant.cost_usd if grant.cost_usd is not None else 1e15
        return Spent(
            _count(self.steps),
            min(_count(self.tool_calls), grant.tool_calls if grant.tool_calls is not None else COUNT_MAX),
            min(_count(self.input_tokens), tokens),
            min(_count(self.output_tokens), tokens),
            min(max(0.0, self.cost_usd), cost),
        )


COUNT_MAX = 2**53


def _count(number: int) -> int:
    return min(max(0, number), COUNT_MAX)


# --- conversations -----------------------------------------------------------------------------


class IntentPublished(Event, frozen=True):
    """Work is asked for. Written by clients, triggers and other crews' workers; the worker takes it up.

    `ce_id` is the intent's id: a repeat is the same intent. Exactly one of `agent` and `capability` is
    set. Unsealed ones count without `user` and `gathered` and with origin untrusted, whatever they claim.
    `gathered` are the answers of a scatter that a trigger put into `input`.
    """

    TYPE: ClassVar[str] = "intent.published"

    input: Any = None
    agent: str | None = None
    capability: str | None = None
    user: str | None = None
    origin: Origin = Origin()
    reply_to: ReplyTo | None = None
    grant: Grant | None = None
    deadline_ms: int | None = None
    gathered: tuple[Gathered, ...] = ()


class TurnStarted(Event, frozen=True):
    """An intent was taken up. Written by the worker; `ce_id` is the turn's id.

    `fold` fixes the fold version for the whole turn; `limits` bound it whatever a later crew file says.
    """

    TYPE: ClassVar[str] = "turn.started"

    turn: int
    intent: str
    agent: str
    crew_version: str
    fold: int
    limits: Limits


class ModelReplied(Event, frozen=True):
    """What a brain said in a step. Written by the worker; the guardrail judges its calls, the worker goes on.

    `ce_id` is the step's id. `catalogue` is the hash of the tools the brain was offered. `unfit`: the
    text is no answer, since it does not fit the output its capability promises; the brain is told why.
    """

    TYPE: ClassVar[str] = "model.replied"

    agent: str
    attempt: int
    text: str = ""
    calls: tuple[CallText, ...] = ()
    finish: str = "stop"
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str = ""
    refusal: str | None = None
    echo: dict[str, Any] | None = None
    catalogue: str = ""
    unfit: Reason | None = None


class ModelFailed(Event, frozen=True):
    """An attempt of a step failed. Written by the worker. Not final while `retry_at_ms` is set."""

    TYPE: ClassVar[str] = "model.failed"

    attempt: int
    code: str
    say: str
    retry_at_ms: int | None = None
    hint: str | None = None


class ApprovalAsked(Data, frozen=True):
    """Who may approve a held call, and until when (broker time); then it is denied."""

    approvers: tuple[str, ...]
    deadline_ms: int


class LimitUse(Data, frozen=True):
    """What a call takes of a limit over a window, as its verdict rests on it.

    `used` was there before, `left` is there after; `over`: a person let it pass beyond `max`.
    """

    limit: str
    reservation: str
    amount: float
    used: float
    max: float
    left: float
    over: bool = False


class CallJudged(Event, frozen=True):
    """The verdict on one judgement of a call. Written by the guardrail and sealed with its Ed25519 key.

    `ce_id` is the call's id with `:j<judgement>`; the first record of a number stands. It is good for
    one `execution`, of one `tool` in one `pool`, with the exact bytes that `args_sha256` names:
    `arguments` if set (amended or edited), else the model's own text. `require_approval` is not final.
    `effect` is the tool's; `safe`: it is `read` or idempotent, so a repeat of the execution does nothing more.
    `limits` are the reservations it rests on: any other of this judgement is given back. `would`: what the
    decision would have been, of a guardrail that only looks on (`mode: shadow`); `reasons` say why.
    """

    TYPE: ClassVar[str] = "call.judged"

    call: str
    judgement: int
    execution: int
    conversation: str
    agent: str
    tool: str
    pool: str
    safe: bool
    decision: Literal["allow", "amend", "require_approval", "deny"]
    args_sha256: str
    arguments: str | None = None
    replaces_sha256: str | None = None
    reasons: tuple[Reason, ...] = ()
    facts: dict[str, Any] | None = None
    checks: tuple[str, ...] = ()
    policy_set: str = ""
    epoch: int = 0
    catalogue: str = ""
    effect: str = ""
    approval: ApprovalAsked | None = None
    by: str = "guard"
    issued_ms: int = 0
    expires_ms: int = 0
    limits: tuple[LimitUse, ...] = ()
    would: Literal["", "require_approval", "deny"] = ""


class ApprovalDecided(Event, frozen=True):
    """A person, or the deadline, has spoken about a held call. Sealed with the people's key; at the
    deadline written by the guardrail with its own (`by` "deadline", and only `deny`).

    Counts for the judgement it names and the bytes it names; the first in the log counts.
    """

    TYPE: ClassVar[str] = "approval.decided"

    call: str
    judgement: int
    args_sha256: str
    decision: Literal["approve", "edit", "deny"]
    by: str
    arguments: str | None = None
    note: str = ""


Outcome = Literal["ok", "error", "refused", "revoked", "abandoned", "unknown"]


class CallCompleted(Event, frozen=True):
    """How an execution of a call ended. Written by its tool pool (a copy of `call.done`), or by the
    worker for built-in tools and for calls that never reached a pool.

    `ce_id` is the execution's id; those that are not final add the outcome to it (`:x1:unknown`), so
    that the first record of each id is always the one that counts. `output` is text for the model.
    """

    TYPE: ClassVar[str] = "call.completed"

    call: str
    execution: int
    outcome: Outcome
    output: str = ""
    code: str | None = None
    fix: dict[str, Any] | None = None
    duration_s: float = 0.0


class CallResolved(Event, frozen=True):
    """A person says what became of an unknown call. Sealed with the people's key.

    `ran` closes it with `output`; `not_run` opens the next execution; `give_up` closes it as failed.
    """

    TYPE: ClassVar[str] = "call.resolved"

    call: str
    execution: int
    resolution: Literal["ran", "not_run", "give_up"]
    by: str
    output: str = ""


class Candidate(Data, frozen=True):
    """An offer that was looked at, and why it was or was not taken."""

    crew: str
    agent: str
    instance: str
    why: str


class DelegationChosen(Event, frozen=True):
    """Who is asked to do a delegated piece of work, and why. Written by the worker, before anything
    is published: only the choice that stands is. `ce_id` is the execution's id with `:chosen`."""

    TYPE: ClassVar[str] = "delegation.chosen"

    call: str
    execution: int
    capability: str
    crew: str
    agent: str
    topic: str
    child: str
    input: Any
    token: str
    grant: Grant
    deadline_ms: int
    candidates: tuple[Candidate, ...] = ()


class IntentAnswered(Event, frozen=True):
    """The answer of a delegated intent. Written by the child's worker to the parent's conversation;
    `ce_id` is the execution's id. Must return the `token` of the choice that stands."""

    TYPE: ClassVar[str] = "intent.answered"

    token: str
    status: Literal["done", "failed", "cancelled"]
    answer: Any = None
    reason: Reason | None = None
    spent: Spent = Spent()


class CancelRequested(Event, frozen=True):
    """Stop a turn. Written by clients, and by a parent's worker to its children. It names the turn or the
    intent it means: one that names neither does nothing, since a repeat would stop the next turn."""

    TYPE: ClassVar[str] = "cancel.requested"

    turn: int | None = None
    intent: str | None = None
    by: str = ""


class TurnFinished(Event, frozen=True):
    """The end of a turn. Written by the worker; `ce_id` is the turn's id with `:end`."""

    TYPE: ClassVar[str] = "turn.finished"

    turn: int
    intent: str
    status: Literal["done", "failed", "cancelled"]
    answer: Any = None
    agent: str = ""
    reason: Reason | None = None
    spent: Spent = Spent()


class RecordRejected(Event, frozen=True):
    """A record could not be taken as an event, and counts as absent. Written by the worker alone.

    `parks`: the fold itself failed on it, or the log has a gap before it: the conversation ends here.
    """

    TYPE: ClassVar[str] = "record.rejected"

    partition: int
    offset: int
    code: str
    say: str
    parks: bool = False


# --- limits over windows -----------------------------------------------------------------------

Take = Literal["reserve", "look", "over"]


class LimitAsked(Event, frozen=True):
    """Is there room in a counter? Written by the guardrail to `<ns>.limits` under the counter's key;
    `ce_id` is the reservation's id with `:asked`. Its place in the log decides, and its broker time is
    when it counts from.

    For a call: `amount` of `max` within `window_s` (`day`: since midnight, UTC). `take` is `reserve`;
    `look` takes nothing (the call waits for a person in any case); `over` is taken whatever there is
    (a person let it pass). `replaces` are earlier reservations of the same call on the same counter.
    Without a call it is the turn's own, of a budget for the day: what it spent is known when it ends.
    """

    TYPE: ClassVar[str] = "limit.asked"

    reservation: str
    conversation: str
    turn: int
    limit: str
    amount: float
    max: float
    window_s: float
    day: bool = False
    call: str = ""
    judgement: int = 0
    take: Take = "reserve"
    replaces: tuple[str, ...] = ()


class LimitAnswered(Event, frozen=True):
    """Whether there was room. Written by the counter's owner to the conversation that asked, sealed with
    the guardrail's key; `ce_id` is the reservation's id. The guardrail goes on with the judgement.

    `used` is what was taken before; `again_ms` when there will be room (broker time; None: never for
    so much). `problem`: the counter cannot be trusted, so nothing is granted.
    """

    TYPE: ClassVar[str] = "limit.answered"

    reservation: str
    limit: str
    key: str
    turn: int
    granted: bool
    take: Take
    amount: float
    used: float
    max: float
    call: str = ""
    judgement: int = 0
    again_ms: int | None = None
    problem: str | None = None


class LimitSettled(Event, frozen=True):
    """What became of a reservation. Written by the guardrail to `<ns>.limits`; `ce_id` is its id with
    `:settled`. `ran`: it counts, with `amount`, until it leaves the window; otherwise it is given back.
    `spent`: by a turn that ended at `at_ms` (broker time); so it counts also if nobody had asked before that."""

    TYPE: ClassVar[str] = "limit.settled"

    reservation: str
    ran: bool
    amount: float = 0.0
    spent: bool = False
    at_ms: int = 0


# --- tools.<pool> ------------------------------------------------------------------------------


class SealedVerdict(Data, frozen=True):
    """The standing `call.judged` record, byte for byte, with what its seal covers."""

    topic: str
    key: str
    id: str
    value: str
    seal: str


class CallRequested(Event, frozen=True):
    """Run this call. Written by the worker; `ce_id` is the execution's id with `:requested`.

    `arguments` are the exact bytes that the verdict names; `injected` is what the runtime adds.
    """

    TYPE: ClassVar[str] = "call.requested"

    call: str
    execution: int
    tool: str
    arguments: str
    verdict: SealedVerdict
    agent: str
    run: str
    user: str | None = None
    injected: dict[str, Any] | None = None
    deadline_ms: int = 0


class CallStarted(Event, frozen=True):
    """A claim: this process runs the execution. The first claim on the partition stands."""

    TYPE: ClassVar[str] = "call.started"

    call: str
    execution: int
    nonce: str
    by: str = ""


class CallRefused(Event, frozen=True):
    """A claim: the execution will not be run, since its verdict does not hold (`code`)."""

    TYPE: ClassVar[str] = "call.refused"

    call: str
    execution: int
    code: str
    say: str


class CallRevoked(Event, frozen=True):
    """A claim, by the worker: the execution must not be run any more."""

    TYPE: ClassVar[str] = "call.revoked"

    call: str
    execution: int
    why: str = ""


class CallAbandoned(Event, frozen=True):
    """The claimer came too late to run safely, and did not run. Ends the execution."""

    TYPE: ClassVar[str] = "call.abandoned"

    call: str
    execution: int
    nonce: str


class CallDone(Event, frozen=True):
    """How the claimed execution ended, whole. `call.completed` is its copy in the conversation."""

    TYPE: ClassVar[str] = "call.done"

    call: str
    execution: int
    outcome: Outcome
    output: str = ""
    code: str | None = None
    fix: dict[str, Any] | None = None
    duration_s: float = 0.0
    by: str = "pool"


# --- triggers ----------------------------------------------------------------------------------


class EventTaken(Event, frozen=True):
    """A record of an outside topic was taken for a trigger. Written by its intake; the windows react.

    `rule` is the digest of the trigger that took it: windows of another one do not count it. `topic`,
    `partition`, `offset` say where it stands; `epoch` grows when that topic is made anew. `at_ms` is the
    event's time, `arrived_ms` its record's. `values` are the operands of the aggregates, in their order;
    `event` is there if an expression reads it.
    """

    TYPE: ClassVar[str] = "event.taken"

    rule: str
    topic: str
    partition: int
    offset: int
    at_ms: int
    arrived_ms: int
    epoch: int = 0
    values: tuple[Any, ...] = ()
    event: Any = None


class FiringStarted(Event, frozen=True):
    """A firing got one of its trigger's places: its intents are published. Written by the triggers role."""

    TYPE: ClassVar[str] = "firing.started"

    firing: str


class TimePassed(Event, frozen=True):
    """It was `until_ms` (Unix ms). Written by the triggers role when a key has something due.

    `silent`: the outside topic was taken to where it ended then, so windows may close.
    """

    TYPE: ClassVar[str] = "time.passed"

    until_ms: int
    silent: bool = False


class FiringClosed(Event, frozen=True):
    """Nothing more comes of this: a firing that cannot be published, or an error whose dead letter is written."""

    TYPE: ClassVar[str] = "firing.closed"

    firing: str
    code: str
    say: str = ""


# --- tokens, audit, market ---------------------------------------------------------------------


class TokensStreamed(Event, frozen=True):
    """Text of a step as it is written; shown, never folded. `attempt` tells a failed attempt's text apart."""

    TYPE: ClassVar[str] = "tokens.streamed"

    step: str
    attempt: int
    agent: str
    text: str
    note: bool = False


class CallProgressed(Event, frozen=True):
    """How far a running tool says it is; shown, never folded."""

    TYPE: ClassVar[str] = "call.progressed"

    call: str
    execution: int
    done: float
    total: float | None = None
    say: str = ""


class CheckpointSigned(Event, frozen=True):
    """The head of a partition's hash chain. Written by the guardrail, sealed with its Ed25519 key.

    `head` is h(next_offset − 1): see guardrail/audit.py.
    """

    TYPE: ClassVar[str] = "checkpoint.signed"

    topic: str
    partition: int
    next_offset: int
    head: str
    at_ms: int


class Capability(Data, frozen=True):
    """A capability on offer."""

    name: str
    description: str = ""
    version: str = "1"
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    price_usd: float | None = None
    latency_s: float | None = None


class AgentAdvertised(Event, frozen=True):
    """An agent's instance offers capabilities until its lease is over. Written by each worker; key
    `crew/agent/instance`; a tombstone withdraws it. Age counts from the broker's timestamp."""

    TYPE: ClassVar[str] = "agent.advertised"

    crew: str
    crew_version: str
    agent: str
    instance: str
    topic: str
    capabilities: tuple[Capability, ...]
    in_flight: int = 0
    queued: int = 0
    capacity: int = 0
    lease_s: float = 15.0


EVENTS: Mapping[str, type[Event]] = {
    event.TYPE: event
    for event in (
        IntentPublished,
        TurnStarted,
        ModelReplied,
        ModelFailed,
        CallJudged,
        ApprovalDecided,
        CallCompleted,
        CallResolved,
        DelegationChosen,
        IntentAnswered,
        CancelRequested,
        TurnFinished,
        RecordRejected,
        LimitAsked,
        LimitAnswered,
        LimitSettled,
        CallRequested,
        CallStarted,
        CallRefused,
        CallRevoked,
        CallAbandoned,
        CallDone,
        EventTaken,
        FiringStarted,
        TimePassed,
        FiringClosed,
        TokensStreamed,
        CallProgressed,
        CheckpointSigned,
        AgentAdvertised,
    )
}


# --- the envelope ------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """An event with the CloudEvents attributes that matter here. `run` is the correlation id, `cause`
    the causation id; `seal` is unchecked."""

    id: str
    type: str
    run: str
    cause: str
    event: Event
    seal: str | None = None
    traceparent: str | None = None


LEVELS_MAX = 100
_ENCODER = msgspec.json.Encoder()
_PACKER = msgspec.msgpack.Encoder()
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]')
_DECODERS = {name: msgspec.json.Decoder(event) for name, event in EVENTS.items()}
_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE = ("content-type", b"application/json")
_TYPE_HEADERS = {name: ("ce_type", name.encode()) for name in EVENTS}


def encode(event: Event) -> bytes:
    """Return the event's data as it stands in a record's value.

    Raises: RecordInvalid if `decode` would refuse it: integers beyond 64 bits, more than 100 levels.
    """
    try:
        value = _ENCODER.encode(event)
        _check_bounds(event, value)
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise RecordInvalid(f"this {event.TYPE} cannot be written: {error}") from None
    return value


def _check_bounds(event: Event, value: bytes) -> None:
    """Refuse what decodes but cannot be kept: a snapshot holds what MessagePack can, and a value nested
    almost too deep to decode cannot be encoded again further down the stack.

    Raises: OverflowError: an integer needs more than 64 bits; RecursionError: over `LEVELS_MAX` levels.
    """
    _PACKER.encode(event)  # cheaper than looking for long numbers in the text
    # Counting brackets is an upper bound and nearly free; the exact depth is for the rare rest.
    if value.count(b"[") + value.count(b"{") > LEVELS_MAX:
        depth = 0
        for token in _STRING_OR_BRACKET.finditer(value):
            bracket = token.group()[:1]
            if bracket in b"[{":
                depth += 1
                if depth > LEVELS_MAX:
                    raise RecursionError(f"it is nested deeper than {LEVELS_MAX} levels")
            elif bracket in b"]}":
                depth -= 1


@lru_cache(maxsize=64)
def _second_of(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def time_of(at_ms: int) -> str:
    """Return `at_ms` (Unix milliseconds) as RFC 3339 in UTC, as `ce_time` wants it."""
    at_s, ms = divmod(at_ms, 1_000)
    return f"{_second_of(at_s)}.{ms:03d}Z"


def headers_of(
    event_type: str, id: str, *, source: str, subject: str, at_ms: int, run: str, cause: str, seal: str | None,
    traceparent: str | None = None,
) -> Headers:
    """Return the CloudEvents headers of a record (Kafka protocol binding, binary mode)."""
    headers: Headers = (
        ("ce_id", id.encode()),
        _TYPE_HEADERS[event_type],
        ("ce_source", source.encode()),
        ("ce_subject", subject.encode()),
        ("ce_time", time_of(at_ms).encode()),
        _SPECVERSION,
        ("ce_correlationid", run.encode()),
        ("ce_causationid", cause.encode()),
        _CONTENT_TYPE,
    )
    if traceparent:
        headers = (*headers, ("traceparent", traceparent.encode()))
    return (*headers, ("seal", seal.encode())) if seal else headers


def header(headers: Headers, name: str) -> str | None:
    """Return the first header of that name as text, or None (also if it is no UTF-8)."""
    for key, value in headers:
        if key == name:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def decode(headers: Headers, value: bytes | None) -> Envelope:
    """Return the event of a record with these headers and this value.

    Raises:
        RecordInvalid: no CloudEvents headers, no value, or data that the event's type does not allow
            (integers have 64 bits, and nothing is nested deeper than 100 levels).
        UnknownEvent: a well-formed record of a type that this version does not know.
    """
    attributes = dict(headers)
    if len(attributes) != len(headers):
        attributes = dict(reversed(headers))  # the first of a name counts, as in `header`
    try:
        event_type = attributes["ce_type"].decode()
        id = attributes["ce_id"].decode()
    except (KeyError, UnicodeDecodeError):
        raise RecordInvalid("the record has no ce_id and ce_type headers: it is no CloudEvent") from None
    if not id:
        raise RecordInvalid("the record's ce_id is empty")
    if value is None:
        raise RecordInvalid("the record has no value")
    decoder = _DECODERS.get(event_type)
    if decoder is None:
        raise UnknownEvent(f"unknown event type {event_type!r}; a newer crewline may know it")
    try:
        event = decoder.decode(value)
        _check_bounds(event, value)
        return Envelope(
            id,
            event_type,
            attributes.get("ce_correlationid", b"").decode(),
            attributes.get("ce_causationid", b"").decode(),
            event,
            attributes["seal"].decode() if "seal" in attributes else None,
            attributes["traceparent"].decode() if "traceparent" in attributes else None,
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise RecordInvalid(f"the data of this {event_type} cannot be read: {error}") from None


def decode_own(event_type: str, value: bytes) -> Event:
    """Return the event in a value that `encode` has made in this process: it is within bounds."""
    return _DECODERS[event_type].decode(value)


def json_schemas() -> dict[str, Any]:
    """Return the JSON Schema of every event's data, by wire type, with shared definitions."""
    events = list(EVENTS.values())
    schemas, components = msgspec.json.schema_components(events, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "crewline events",
        "events": {event.TYPE: schema for event, schema in zip(events, schemas, strict=True)},
        "$defs": components,
    }
