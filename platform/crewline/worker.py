"""The worker: the role that advances conversations. It asks models, has calls run, delegates, answers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from crewline_agents.base import Note, Reply, StepRequest, TextDelta, ToolOffer
from crewline_tools.builtin import HANDOFF
from msgspec.structs import replace

from crewline import events as ev
from crewline.answers import AnswerSchema
from crewline.bus.base import Bus, Message, Record
from crewline.conversation import (
    FOLD_VERSION,
    Call,
    Conversation,
    ConversationView,
    Turn,
    step_id,
    turn_id,
    worker_pending,
)
from crewline.conversation.calls import call_of
from crewline.engine import Acted, Effect
from crewline.errors import BusError, CrewlineError, ModelError, RecordInvalid, RecordTooLarge, UnknownTopic
from crewline.expressions import Expression
from crewline.records import Scribe
from crewline.roster import HISTORY, Agent, Roster
from crewline.topics import partition_of

log = logging.getLogger("crewline.worker")

DEPTH_MAX = 8  # delegations within delegations
RETRY_S_MIN = 0.5
RETRY_S_MAX = 60.0
TOKENS_FLUSH_S = 0.025
RETRY_AFTER_S_MAX = 86_400.0
CALLS_MAX = 256  # of one reply
CHILD_MARGIN_MS = 2_000  # a child's deadline is this much before its parent's


class Choice(NamedTuple):
    """Who is asked, and who else was looked at."""

    crew: str
    agent: str
    topic: str
    candidates: tuple[ev.Candidate, ...]


class Market(Protocol):
    """What the worker asks of the marketplace."""

    def choose(self, capability: str, *, conversation: str, input: Any) -> Choice | ev.Reason:
        """Return whom to ask for `capability` (or `crew:capability`), or why nobody is asked now.

        A reason `market.nobody` is not final: the worker asks again when an advertisement arrives. Any
        other (the input does not fit the schema) goes to the model.
        """
        ...


class Worker:
    """The worker's role. Give it to an `Engine` on `<ns>.conversations`.

    Args:
        roster: the crew as it is now.
        scribe: seals with the deployment's key.
        bus: for streamed text, for turns answered before, and for owed answers; results go through the engine.
        market: who offers what.
        clock_ms: wall clock.
        view: shared with other roles of this process that fold the same log.

    Raises: UsageError if what a capability promises to answer is no JSON Schema.
    """

    name = "worker"

    def __init__(
        self, roster: Roster, *, scribe: Scribe, bus: Bus, market: Market, clock_ms: Callable[[], int],
        view: ConversationView | None = None,
    ) -> None:
        self.roster = roster
        self.topic = roster.topics.conversations
        self.view = view or ConversationView()
        self._scribe = scribe
        self._bus = bus
        self._market = market
        self._clock_ms = clock_ms
        self._inject: dict[str, dict[str, Expression]] = {}
        self._answers = {
            (agent.name, offered.name): AnswerSchema(offered.name, offered.output)
            for agent in roster.agents.values()
            for offered in agent.capabilities.values()
            if offered.output is not None
        }

    def pending(self, state: Conversation) -> Sequence[Effect]:
        return worker_pending(state)

    def observe(self, carry: bytes, record: Record) -> bytes:
        return carry

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        return ()

    def act(self, effect: Effect, state: Conversation) -> Acted:
        return _ACTS[effect.kind](self, effect, state)

    # --- turns ---------------------------------------------------------------------------------

    def _start(self, effect: Effect, state: Conversation) -> Acted:
        queued = state.queue[0]
        asked = queued.intent
        agent = self._agent_for(asked, state)
        budgets, grant = self.roster.budgets, asked.grant
        declared = self.roster.agents.get(agent)
        deadline_ms = self._clock_ms() + int(budgets.wall_s * 1000)
        if asked.deadline_ms is not None:
            deadline_ms = min(deadline_ms, asked.deadline_ms)
        limits = ev.Limits(
            max_steps=declared.max_steps if declared else 1,
            attempts=declared.attempts if declared and declared.attempts else self.roster.attempts,
            tool_calls=_least(budgets.tool_calls, grant.tool_calls if grant else None) or 0,
            tokens=_least(budgets.tokens, grant.tokens if grant else None),
            cost_usd=_least(budgets.cost_usd, grant.cost_usd if grant else None),
            deadline_ms=deadline_ms,
            guard_s=self.roster.guard_s,
            history=declared.history if declared else HISTORY,
            depth=max(0, grant.depth) if grant else 0,
            # What a delegated turn of this crew spends is in its parent's sum.
            day=() if asked.origin.kind == "agent" and asked.origin.crew == self.roster.crew else tuple(budgets.day),
        )
        started = ev.TurnStarted(
            state.turns + 1, queued.id, agent, self.roster.version, FOLD_VERSION, limits
        )
        message = self._message(state, started, id=effect.id, run=queued.run, cause=queued.id)
        if state.owed is None:
            return [message]
        return self._after_answer(state, message)

    async def _after_answer(self, state: Conversation, message: Message) -> Sequence[Message]:
        """The next turn forgets the answer owed by the last one, so that one must be safe first."""
        try:
            await self._bus.append(self._answer_messages(state))
        except UnknownTopic as error:
            log.error("nobody can be answered there: %s", error)  # an outside producer named a topic that is none
        return [message]

    def _agent_for(self, asked: ev.IntentPublished, state: Conversation) -> str:
        agent = asked.agent or self.roster.capabilities.get(asked.capability or "", "")
        if state.handed is not None and state.handed[0] == agent and state.handed[1] in self.roster.agents:
            return state.handed[1]
        return agent

    def _finish(self, effect: Effect, state: Conversation) -> Acted:
        turn = _turn(state)
        if turn.failing is not None:
            finished = ev.TurnFinished(turn.number, turn.intent, "failed", None, turn.agent, turn.failing, turn.spent)
        elif turn.cancelled_by is not None:
            reason = ev.Reason("cancelled", f"{turn.cancelled_by} stopped the turn.")
            finished = ev.TurnFinished(turn.number, turn.intent, "cancelled", None, turn.agent, reason, turn.spent)
        else:
            answer = self._answer_of(turn)
            finished = ev.TurnFinished(turn.number, turn.intent, "done", answer, turn.agent, None, turn.spent)
        cause = step_id(state.id, turn)
        try:
            return [self._message(state, finished, id=effect.id, run=turn.run, cause=cause)]
        except (RecordInvalid, RecordTooLarge) as error:
            reason = ev.Reason("answer.invalid", f"The answer cannot be written: {error.message}")
            failed = replace(finished, status="failed", answer=None, reason=reason)
            return [self._message(state, failed, id=effect.id, run=turn.run, cause=cause)]

    def _answer_of(self, turn: Turn) -> Any:
        """A capability with an output schema answers with a value, everything else with text."""
        if turn.answer is None or self._promised(turn) is None:
            return turn.answer
        try:
            return msgspec.json.decode(turn.answer)
        except (msgspec.DecodeError, RecursionError):
            return turn.answer

    def _again(self, effect: Effect, state: Conversation) -> Acted:
        done = next(done for done in state.again if str(done.turn) == effect.ref)
        return self._copy(state, done.offset)

    async def _copy(self, state: Conversation, offset: int) -> Sequence[Message]:
        """Append a standing record once more, byte for byte, for whoever asks again."""
        partition = partition_of(state.id.encode(), await self._bus.partitions(self.topic))
        batch = await self._bus.read(self.topic, partition, offset, records_max=1)
        record = batch.records[0]
        return [Message(self.topic, record.key, record.value, record.headers)]

    def _deadline(self, effect: Effect, state: Conversation) -> Acted:
        turn = _turn(state)
        cancel = ev.CancelRequested(turn=turn.number, by="deadline")
        return [self._message(state, cancel, id=f"{turn_id(state.id, turn.number)}:deadline", run=turn.run)]

    def _reject(self, effect: Effect, state: Conversation) -> Acted:
        item = next(item for item in state.rejected if item.id == effect.ref)
        rejected = ev.RecordRejected(item.partition, item.offset, item.code, item.say, item.parks)
        log.warning("%s partition %d offset %d: record rejected: %s: %s",
                    self.topic, item.partition, item.offset, item.code, item.say)
        return [self._message(state, rejected, id=item.id, run=state.id, partition=item.partition)]

    def _answer(self, effect: Effect, state: Conversation) -> Acted:
        return self._answer_messages(state)

    def _answer_messages(self, state: Conversation) -> Sequence[Message]:
        owed = state.owed
        assert owed is not None
        cause = turn_id(state.id, state.turns)
        try:
            return [self._scribe.message(owed.to.topic, owed.to.key, owed.answered, id=owed.to.effect, run=owed.run, cause=cause)]
        except RecordTooLarge as error:
            reason = ev.Reason("answer.too_large", error.message)
            answered = replace(owed.answered, status="failed", answer=None, reason=reason)
            return [self._scribe.message(owed.to.topic, owed.to.key, answered, id=owed.to.effect, run=owed.run, cause=cause)]

    # --- steps ---------------------------------------------------------------------------------

    def _think(self, effect: Effect, state: Conversation) -> Acted:
        return self._ask_brain(effect, state)

    async def _ask_brain(self, effect: Effect, state: Conversation) -> Sequence[Message]:
        turn = _turn(state)
        agent = self.roster.agents.get(turn.agent)
        if agent is None:
            say = f"agent {turn.agent!r} is not in crew {self.roster.crew} {self.roster.version} any more"
            if turn.step == 1 and not turn.agent:
                say = f"nobody in crew {self.roster.crew} offers {turn.asked.capability!r}"
            return [self._failed(effect, state, "crew.changed" if turn.agent else "market.nobody", say)]
        try:
            async with asyncio.timeout(max(1.0, (turn.deadline_ms - self._clock_ms()) / 1000 + 1.0)):
                reply = await self._stream(agent, self._request_for(state, turn, agent), state, turn)
        except ModelError as error:
            return [self._attempt_failed(effect, state, error)]
        except TimeoutError:
            return [self._attempt_failed(effect, state, ModelError("the model did not answer in time", retryable=False))]
        except CrewlineError as error:
            return [self._failed(effect, state, error.code, error.message, error.hint)]
        except Exception as error:  # a brain may be anybody's code: its faults are attempts like others, and bounded
            log.exception("the brain of agent %r failed", agent.name)
            say = f"the brain of agent {agent.name!r} failed: {type(error).__name__}: {error}"
            return [self._attempt_failed(effect, state, ModelError(say, retryable=True))]
        replied = ev.ModelReplied(
            agent=agent.name,
            attempt=turn.attempt,
            text=reply.text,
            calls=reply.calls,
            finish=reply.finish,
            usage=reply.usage,
            cost_usd=_cost(agent, reply.usage),
            model=reply.model,
            refusal=reply.refusal,
            echo=reply.echo,
            catalogue=self.roster.catalogue(agent.name),
            unfit=None if reply.calls or reply.refusal is not None else self._unfit(turn, reply.text),
        )
        try:
            return [self._message(state, replied, id=step_id(state.id, turn), run=turn.run)]
        except RecordTooLarge as error:
            return [self._failed(effect, state, "model.too_large", error.message)]
        except RecordInvalid as error:
            return [self._failed(effect, state, "model.invalid", error.message)]

    def _unfit(self, turn: Turn, text: str) -> ev.Reason | None:
        """Return why `text` is no answer to what the turn was asked for, or None."""
        schema = self._promised(turn)
        return schema.problem(text) if schema is not None else None

    def _promised(self, turn: Turn) -> AnswerSchema | None:
        """Return what the capability that was asked for answers; whoever took the conversation over is bound by it too."""
        name = turn.asked.capability
        if name is None or not self._answers:
            return None
        agents = (turn.agent, turn.entry, self.roster.capabilities.get(name, ""))
        return next((self._answers[agent, name] for agent in agents if (agent, name) in self._answers), None)

    def _request_for(self, state: Conversation, turn: Turn, agent: Agent) -> StepRequest:
        past = [message for each in state.history[-agent.history :] for message in each.messages] if agent.history else []
        return StepRequest(
            id=step_id(state.id, turn),
            conversation=state.id,
            run=turn.run,
            agent=agent.name,
            turn=turn.number,
            step=turn.step,
            attempt=turn.attempt,
            system=agent.system,
            messages=[*past, *turn.messages],
            tools=[ToolOffer(tool.name, tool.description, tool.parameters) for tool in self.roster.offers(agent.name)],
            user=turn.asked.user,
        )

    async def _stream(self, agent: Agent, request: StepRequest, state: Conversation, turn: Turn) -> Reply:
        stream = TokenStream(self._bus, self._scribe, self.roster.topics.tokens, request)
        reply: Reply | None = None
        async for item in agent.brain.step(request):
            if isinstance(item, Reply):
                reply = item
            elif isinstance(item, TextDelta):
                stream.add(item.text)
            elif isinstance(item, Note):
                stream.add(item.text, note=True)
        if reply is None:
            raise ModelError(f"the brain of agent {agent.name!r} ended without a reply", retryable=True)
        if len(reply.calls) > CALLS_MAX:
            raise ModelError(f"the model asked for {len(reply.calls):,} calls at once; {CALLS_MAX} are taken", retryable=True)
        return reply

    def _attempt_failed(self, effect: Effect, state: Conversation, error: ModelError) -> Message:
        turn = _turn(state)
        now_ms = self._clock_ms()
        wait_s = min(RETRY_S_MAX, RETRY_S_MIN * 2 ** (turn.attempt - 1))
        if error.retry_after_s is not None and error.retry_after_s == error.retry_after_s:
            wait_s = min(max(wait_s, error.retry_after_s), RETRY_AFTER_S_MAX)
        retry_at_ms = now_ms + int(wait_s * 1000)
        final = not error.retryable or turn.attempt >= turn.limits.attempts or retry_at_ms >= turn.deadline_ms
        return self._failed(effect, state, error.code, error.message, error.hint, None if final else retry_at_ms)

    def _failed(
        self, effect: Effect, state: Conversation, code: str, say: str, hint: str | None = None,
        retry_at_ms: int | None = None,
    ) -> Message:
        turn = _turn(state)
        failed = ev.ModelFailed(turn.attempt, code, say[:4_000], retry_at_ms, hint)
        return self._message(state, failed, id=effect.id, run=turn.run)

    # --- calls ---------------------------------------------------------------------------------

    def _guard_timeout(self, effect: Effect, state: Conversation) -> Acted:
        say = "The guardrail did not judge the call in time, so it was not run. Try again later."
        fix = {"judgement": _call(state, effect.ref).judgement}
        return self._completed(state, effect.ref, "refused", say, "guard.unavailable", fix)

    def _request(self, effect: Effect, state: Conversation) -> Acted:
        turn, call = _turn(state), _call(state, effect.ref)
        assert call.verdict is not None and call.sealed is not None
        try:
            injected = self._injected(call, turn)
        except CrewlineError as error:
            # An owner before this one may have requested it already, so the claim on the pool's topic decides.
            return self._called_back(effect, state, f"its arguments cannot be injected: {error.message}")
        requested = ev.CallRequested(
            call.id, call.execution, call.name, call.arguments, call.sealed, call.verdict.agent, turn.run,
            turn.asked.user, injected, turn.deadline_ms,
        )
        topic = self.roster.topics.tools(call.verdict.pool)
        try:
            return [self._to_pool(topic, state, requested, effect, turn, call)]
        except (RecordTooLarge, RecordInvalid) as error:
            return self._called_back(effect, state, f"it cannot be requested: {error.message}")

    def _injected(self, call: Call, turn: Turn) -> dict[str, Any] | None:
        tool = self.roster.tools.get(call.name)
        if tool is None or not tool.inject:
            return None
        if call.name not in self._inject:
            names = ("user", "run", "agent")
            self._inject[call.name] = {
                name: Expression.compile(text, names=names) for name, text in tool.inject.items()
            }
        values = {"user": {"id": turn.asked.user}, "run": {"id": turn.run}, "agent": turn.agent}
        return {name: expression.evaluate(values) for name, expression in self._inject[call.name].items()}

    def _revoke(self, effect: Effect, state: Conversation) -> Acted:
        return self._called_back(effect, state, "the turn is ending")

    def _called_back(self, effect: Effect, state: Conversation, why: str) -> Sequence[Message]:
        turn, call = _turn(state), _call(state, effect.ref)
        assert call.verdict is not None
        revoked = ev.CallRevoked(call.id, call.execution, why[:500])
        topic = self.roster.topics.tools(call.verdict.pool)
        return [self._to_pool(topic, state, revoked, effect, turn, call)]

    def _to_pool(
        self, topic: str, state: Conversation, event: ev.Event, effect: Effect, turn: Turn, call: Call
    ) -> Message:
        assert call.verdict is not None
        return self._scribe.message(
            topic, state.id, event, id=effect.id, run=turn.run, cause=call.judgement_id,
            seal_as=f"pool/{call.verdict.pool}",
        )

    def _builtin(self, effect: Effect, state: Conversation) -> Acted:
        call = _call(state, effect.ref)
        if call.name != HANDOFF:
            return self._completed(state, call.id, "error", f"there is no built-in tool {call.name!r}", "crew.changed")
        agent = msgspec.json.decode(call.arguments).get("agent", "")
        if agent not in self.roster.agents:
            return self._completed(state, call.id, "error", f"there is no agent {agent!r}", "crew.changed")
        return self._completed(state, call.id, "ok", f"{agent} goes on with the conversation.", fix={"agent": agent})

    def _completed(
        self, state: Conversation, call_id: str, outcome: ev.Outcome, say: str, code: str | None = None,
        fix: dict[str, Any] | None = None,
    ) -> Sequence[Message]:
        turn, call = _turn(state), _call(state, call_id)
        completed = ev.CallCompleted(call.id, call.execution, outcome, say, code, fix)
        return [self._message(state, completed, id=call.execution_id, run=turn.run, cause=call.judgement_id)]

    # --- delegation ----------------------------------------------------------------------------

    def _choose(self, effect: Effect, state: Conversation) -> Acted:
        turn, call = _turn(state), _call(state, effect.ref)
        if turn.limits.depth >= DEPTH_MAX:
            say = f"Work may be passed on {DEPTH_MAX} times at most; do it here."
            return self._completed(state, call.id, "refused", say, "delegation.depth")
        arguments = msgspec.json.decode(call.arguments)
        capability = arguments["capability"]
        choice = self._market.choose(capability, conversation=state.id, input=arguments["input"])
        if isinstance(choice, ev.Reason):
            if choice.code == "market.nobody":
                return ()
            return self._completed(state, call.id, "error", choice.say, choice.code, choice.fix)
        chosen = ev.DelegationChosen(
            call=call.id,
            execution=call.execution,
            capability=capability.partition(":")[2] or capability,
            crew=choice.crew,
            agent=choice.agent,
            topic=choice.topic,
            child=child_of(self.topic, call.execution_id),
            input=arguments["input"],
            token=secrets.token_hex(16),
            grant=_grant(turn),
            deadline_ms=turn.deadline_ms - CHILD_MARGIN_MS,
            candidates=choice.candidates,
        )
        try:
            return [self._message(state, chosen, id=effect.id, run=turn.run, cause=call.judgement_id)]
        except (RecordInvalid, RecordTooLarge) as error:
            return self._completed(state, call.id, "error", error.message, "delegation.input")

    def _nobody(self, effect: Effect, state: Conversation) -> Acted:
        capability = msgspec.json.decode(_call(state, effect.ref).arguments)["capability"]
        return self._completed(state, effect.ref, "error", f"Nobody offers {capability}.", "market.nobody")

    def _publish(self, effect: Effect, state: Conversation) -> Acted:
        turn, call = _turn(state), _call(state, effect.ref)
        chosen = call.chosen
        assert chosen is not None
        intent = ev.IntentPublished(
            input=chosen.input,
            capability=chosen.capability,
            user=turn.asked.user,
            origin=ev.Origin("agent", self.roster.crew, turn.agent),
            reply_to=ev.ReplyTo(self.topic, state.id, call.execution_id, chosen.token),
            grant=chosen.grant,
            deadline_ms=chosen.deadline_ms,
        )
        cause = f"{call.execution_id}:chosen"
        try:
            return [self._scribe.message(chosen.topic, chosen.child, intent, id=chosen.child, run=turn.run, cause=cause)]
        except RecordTooLarge as error:
            return self._completed(state, call.id, "error", error.message, "delegation.deadline")

    def _cancel_child(self, effect: Effect, state: Conversation) -> Acted:
        return [self._cancel_of(effect, state)]

    def _cancel_of(self, effect: Effect, state: Conversation) -> Message:
        turn, chosen = _turn(state), _call(state, effect.ref).chosen
        assert chosen is not None
        cancel = ev.CancelRequested(intent=chosen.child, by=turn.cancelled_by or "its parent")
        return self._scribe.message(chosen.topic, chosen.child, cancel, id=f"{chosen.child}:cancel", run=turn.run)

    def _child_late(self, effect: Effect, state: Conversation) -> Acted:
        chosen = _call(state, effect.ref).chosen
        assert chosen is not None
        say = f"{chosen.crew}/{chosen.agent} did not answer in time."
        late = self._completed(state, effect.ref, "error", say, "delegation.deadline")
        return [self._cancel_of(effect, state), *late]

    def _message(
        self, state: Conversation, event: ev.Event, *, id: str, run: str, cause: str = "", partition: int | None = None
    ) -> Message:
        return self._scribe.message(self.topic, state.id, event, id=id, run=run, cause=cause, partition=partition)


class TokenStream:
    """Streamed text of one step: a record per flush, never per token, and none for a reply that is there at once."""

    def __init__(self, bus: Bus, scribe: Scribe, topic: str, request: StepRequest) -> None:
        self._bus = bus
        self._scribe = scribe
        self._topic = topic
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._text = ""
        self._note = False

    def add(self, text: str, *, note: bool = False) -> None:
        """Take a piece of text; append what is gathered if the last flush is 25 ms ago."""
        if note is not self._note:
            self._flush()
            self._note = note
        self._text += text
        if self._loop.time() - self._since >= TOKENS_FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        self._since = self._loop.time()
        if not self._text:
            return
        request, text, self._text = self._request, self._text, ""
        tokens = ev.TokensStreamed(request.id, request.attempt, request.agent, text, self._note)
        try:
            message = self._scribe.message(
                self._topic, request.conversation, tokens, id=f"{request.id}:{secrets.token_hex(6)}", run=request.run
            )
        except CrewlineError as error:
            log.debug("streamed text was not written (the reply is): %s", error)
            return
        task = self._loop.create_task(_append_once(self._bus, message))
        _STREAMING.add(task)
        task.add_done_callback(_STREAMING.discard)


_STREAMING: set[asyncio.Task[None]] = set()


async def _append_once(bus: Bus, message: Message) -> None:
    try:
        await bus.append([message])
    except BusError as error:
        log.debug("streamed text was lost (the reply is not): %s", error)


def child_of(topic: str, execution: str) -> str:
    """Return the id of the intent that a delegated execution publishes, and of the conversation it opens.

    A repeat is the same intent; two crews with conversations of one name have different ones.
    """
    return "d-" + hashlib.sha256(f"{topic}\n{execution}".encode()).hexdigest()[:24]


def _turn(state: Conversation) -> Turn:
    assert state.turn is not None
    return state.turn


def _call(state: Conversation, id: str) -> Call:
    call = call_of(state, id)
    assert call is not None
    return call


def _least(*bounds: Any) -> Any:
    return min((bound for bound in bounds if bound is not None), default=None)


def _cost(agent: Agent, usage: ev.Usage | None) -> float | None:
    if agent.price is None or usage is None:
        return None
    tokens = (usage.input_tokens or 0) * agent.price.input_usd + (usage.output_tokens or 0) * agent.price.output_usd
    return tokens / 1_000_000


def _grant(turn: Turn) -> ev.Grant:
    """Return half of what the turn has left, so that calls delegated side by side cannot overspend it."""
    open_grants = [call.chosen.grant for call in turn.calls if call.chosen is not None and call.status != "closed"]

    def half(limit: Any, spent: Any, granted: list[Any]) -> Any:
        if limit is None:
            return None
        return max(0, (limit - spent - sum(each or 0 for each in granted))) / 2

    limits, spent = turn.limits, turn.spent
    tool_calls = half(limits.tool_calls, spent.tool_calls, [grant.tool_calls for grant in open_grants])
    tokens = half(limits.tokens, spent.input_tokens + spent.output_tokens, [grant.tokens for grant in open_grants])
    return ev.Grant(
        tool_calls=int(tool_calls),
        tokens=None if tokens is None else int(tokens),
        cost_usd=half(limits.cost_usd, spent.cost_usd, [grant.cost_usd for grant in open_grants]),
        depth=limits.depth + 1,
    )


_Act = Callable[[Worker, Effect, Conversation], Acted]
_ACTS: dict[str, _Act] = {
    "reject": Worker._reject,
    "again": Worker._again,
    "answer": Worker._answer,
    "start": Worker._start,
    "think": Worker._think,
    "finish": Worker._finish,
    "deadline": Worker._deadline,
    "guard_timeout": Worker._guard_timeout,
    "request": Worker._request,
    "revoke": Worker._revoke,
    "builtin": Worker._builtin,
    "choose": Worker._choose,
    "nobody": Worker._nobody,
    "publish": Worker._publish,
    "cancel_child": Worker._cancel_child,
    "child_late": Worker._child_late,
}
