"""The tool pool: the role that claims executions, runs tools, and reports outcomes.

Give it to an `Engine` on `<ns>.tools.<pool>`. What is due is decided in `pool_view.py`; this file acts.

A safe tool (read or idempotent) is simply run; its outcome goes to the conversation first, and only then
does a `call.done` without output close the execution here: so what is closed has been reported, and what
has not is run again. An unsafe one is run by the process whose claim stands, while it is fresh:

    take a slot ─ check the verdict ─ append call.started(nonce) ─ fold ─ my nonce, ≤ 5 s old? ─ call it
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crewline import events as ev
from crewline.bus.base import Bus, Message, Record
from crewline.crashpoints import reach
from crewline.engine import Acted, Effect
from crewline.errors import BusError, CrewlineError
from crewline.records import Scribe
from crewline.seal import Keyring
from crewline.topics import CrewTopics

from crewline_tools.context import Cancelled, Report, ToolContext, idempotency_key
from crewline_tools.pool_view import CLAIM_S, Execution, PoolState, PoolView, find, overdue_ms, owed, pending
from crewline_tools.reconcile import Settled, UncertainCall
from crewline_tools.results import describe, render
from crewline_tools.running import Gate, Ran, Runner, Tool, always
from crewline_tools.slots import Slots
from crewline_tools.verify import Verifier

log = logging.getLogger("crewline.tools")


def uptime_s() -> float:
    """Return a clock that no one sets and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """`slots` bounds the tools that run at once. `retry_s_min` to `retry_s_max` is the pause between the
    attempts of a safe execution, and between those of an append. `close_s` is how long `close` waits for
    tools that cannot be stopped."""

    slots: int = 10
    retry_s_min: float = 0.2
    retry_s_max: float = 10.0
    close_s: float = 10.0


@dataclass(slots=True)
class _Claim:
    """A claim this process has made. Kept in memory only: a restarted process has lost it, as it must."""

    key: str
    each: Execution
    nonce: str
    made_at: float
    expiry: asyncio.TimerHandle


class ToolPool:
    """The role of one tool pool.

    Args:
        pool: its name.
        tools: what it runs, by name.
        topics: the crew's topics.
        scribe: seals records; it must be able to seal as `pool/NAME`.
        keyring: holds the guardrail's public halves.
        bus: for what goes to other topics before an execution is closed here, and for progress.
        clock_ms: wall clock, for the expiry of verdicts.
        uptime_s: a clock that never jumps, for the age of claims.
        sleep: pauses between attempts.
    """

    def __init__(
        self,
        pool: str,
        tools: Mapping[str, Tool],
        *,
        topics: CrewTopics,
        scribe: Scribe,
        keyring: Keyring,
        bus: Bus,
        clock_ms: Callable[[], int],
        options: PoolOptions = PoolOptions(),
        uptime_s: Callable[[], float] = uptime_s,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.name = f"tools.{pool}"
        self.topic = topics.tools(pool)
        self.view = PoolView(pool)
        self.slots = Slots(options.slots)
        self.runner = Runner(f"crewline-{pool}")
        self._tools = dict(tools)
        self._specs = {name: tool.spec for name, tool in tools.items()}
        self._topics = topics
        self._seal_as = f"pool/{pool}"
        self._scribe = scribe
        self._bus = bus
        self._clock_ms = clock_ms
        self._options = options
        self._uptime_s = uptime_s
        self._sleep = sleep
        self._verifier = Verifier(keyring, pool=pool, topic=topics.conversations, tools=self._specs)
        self._claims: dict[str, _Claim] = {}
        self._running: dict[str, Cancelled] = {}  # execution -> its context's `cancelled`
        self._background: set[asyncio.Task[Any]] = set()

    # --- the engine's side ---------------------------------------------------------------------

    def pending(self, state: PoolState) -> Sequence[Effect]:
        return pending(state, self._specs)

    def observe(self, carry: bytes, record: Record) -> bytes:
        return carry

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        return ()

    def act(self, effect: Effect, state: PoolState) -> Acted:
        each = find(state, effect.ref)
        assert each is not None
        match effect.kind:
            case "execute":
                return self._execute(state.key, each)
            case "claim":
                return self._claim(state.key, each)
            case "run":
                return self._run(state.key, each)
            case "overdue":
                # Here it still runs, within its own timeout, and says itself how it ended.
                return () if each.id in self._running else self._settle_lost(state.key, each)
            case "report" | "report_unknown":
                return self._report(state.key, each, effect.kind)
            case _:
                assert effect.kind == "cancel"
                if (cancelled := self._running.get(each.id)) is not None:
                    cancelled.set()  # an unsafe call cannot be stopped; it can be told
                return ()

    async def close(self) -> None:
        """Wait for unsafe tools under way, up to `close_s`, and for their outcomes to be in the log.

        Call it when the engine has stopped and the bus is still open. What does not end in time is
        unknown to the next owner.
        """
        for id in list(self._claims):
            self._give_up(id)
        until = asyncio.get_running_loop().time() + self._options.close_s
        # Until nothing is left: a run that ends has its outcome appended, which is a task of its own.
        while self._background and (left_s := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._background), timeout=left_s)
            await asyncio.sleep(0)
        for task in list(self._background):
            log.error("%s: %s had not ended when the pool closed; its outcome will be unknown", self.name, task.get_name())
            task.cancel()
        self.runner.close()

    # --- safe tools ----------------------------------------------------------------------------

    async def _execute(self, key: str, each: Execution) -> Sequence[Message]:
        request = _request(each)
        if (refusal := await self._admitted(key, each, request)) is not None:
            return [refusal]
        if each.revoke_asked:
            self.slots.free()
            say = "The call was called back. If it began before that, it may have had its effect."
            done = ev.CallDone(each.call, each.number, "revoked", say, "call.revoked")
            return await self._report_safe(key, each, done)
        try:
            ran = await self._attempts(key, each, request)
        finally:
            self._running.pop(each.id, Cancelled()).set()
            self.slots.free()
        return await self._report_safe(key, each, _done(each, ran))

    async def _report_safe(self, key: str, each: Execution, done: ev.CallDone) -> Sequence[Message]:
        """Tell the conversation first; only then is the execution closed here."""
        completed = owed(done)
        await self._append([self._message(self._topics.conversations, key, completed.completed, completed.id, each)])
        mark = ev.CallDone(each.call, each.number, done.outcome, code=done.code, duration_s=done.duration_s)
        return [self._message(self.topic, key, mark, f"{each.id}:done", each)]

    async def _attempts(self, key: str, each: Execution, request: ev.CallRequested) -> Ran:
        tool = self._tools[request.tool]
        attempt = 1
        while True:
            cancelled = self._running[each.id] = Cancelled()  # each attempt has its own: one may outlive it
            reach("pool.before_run")
            ran = await self._call(key, each, request, cancelled, attempt, always)
            reach("pool.after_run")
            if ran.how == "returned" or not ran.retryable or attempt > tool.spec.retries:
                return ran
            pause_s = min(self._options.retry_s_max, self._options.retry_s_min * 2 ** (attempt - 1))
            if request.deadline_ms and self._clock_ms() + pause_s * 1000 >= request.deadline_ms:
                return ran
            log.info("%s: attempt %d of %s failed (%s); again in %g s", each.id, attempt, request.tool, ran.output, pause_s)
            await self._sleep(pause_s)
            attempt += 1

    # --- unsafe tools --------------------------------------------------------------------------

    async def _claim(self, key: str, each: Execution) -> Sequence[Message]:
        """Append a claim. The slot comes first: a claim that then had to wait would be too old to be used."""
        request = _request(each)
        if (refusal := await self._admitted(key, each, request)) is not None:
            return [refusal]
        nonce = secrets.token_hex(16)
        self._forget_claim(each.id)
        expiry = asyncio.get_running_loop().call_later(CLAIM_S + 0.1, self._expire, each.id, nonce)
        self._claims[each.id] = _Claim(key, each, nonce, self._uptime_s(), expiry)
        started = ev.CallStarted(each.call, each.number, nonce, by=self.name)
        return [self._message(self.topic, key, started, f"{each.id}:claim", each)]

    def _expire(self, id: str, nonce: str) -> None:
        if (claim := self._claims.get(id)) is not None and claim.nonce == nonce:
            self._give_up(id)

    def _give_up(self, id: str) -> None:
        """Say that a claim of ours will not be used: its partition is another's by now, or we are stopping.

        Without it, whoever owns the partition could only call the execution unknown, and ask a person.
        """
        if (claim := self._claims.get(id)) is None:
            return
        self._forget_claim(id)  # from here on the nonce starts nothing
        abandoned = ev.CallAbandoned(claim.each.call, claim.each.number, claim.nonce)
        self._spawn(self._append([self._message(self.topic, claim.key, abandoned, f"{id}:abandoned", claim.each)]), id)

    def _forget_claim(self, id: str) -> None:
        """Give up a claim of ours that was not used, and its slot with it."""
        if (claim := self._claims.pop(id, None)) is not None:
            claim.expiry.cancel()
            self.slots.free()

    def _run(self, key: str, each: Execution) -> Acted:
        claim = self._claims.get(each.id)
        if claim is None:
            return ()  # somebody else's, or of a process that is no more: `overdue` sees to it
        if claim.nonce != each.nonce:
            self._forget_claim(each.id)
            return ()
        reach("pool.after_claim")
        # From here on the nonce is used up: whatever happens, this claim never starts a second run.
        del self._claims[each.id]
        claim.expiry.cancel()
        cancelled = Cancelled()
        self._running[each.id] = cancelled
        task = asyncio.create_task(self._run_claimed(key, each, claim, cancelled), name=each.id)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return self._outcome_of(task)

    async def _outcome_of(self, task: asyncio.Task[list[Message]]) -> Sequence[Message]:
        """Pass a run's outcome on to the engine. If the engine lets go (the partition is lost, the outcome
        was overtaken), the tool runs on all the same, and its outcome is appended without the engine."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._append_alone)
            raise

    def _append_alone(self, task: asyncio.Task[list[Message]]) -> None:
        if not task.cancelled():
            self._spawn(self._append(task.result()), task.get_name())

    async def _run_claimed(
        self, key: str, each: Execution, claim: _Claim, cancelled: Cancelled
    ) -> list[Message]:
        request = _request(each)

        def in_time() -> bool:
            return self._uptime_s() - claim.made_at <= CLAIM_S

        try:
            reach("pool.before_run")
            ran = await self._call(key, each, request, cancelled, 1, in_time)
            reach("pool.after_run")
            if ran.how == "too_late":
                return [self._message(self.topic, key, ev.CallAbandoned(each.call, each.number, claim.nonce),
                                      f"{each.id}:abandoned", each)]
            if ran.how not in ("raised", "timeout"):
                return [self._done_message(key, each, _done(each, ran, unsafe=True))]
            return [self._done_message(key, each, await self._uncertain(key, each, request, ran))]
        except Exception as error:  # our own bug; whether the tool ran, nobody can say
            log.exception("%s: running it failed", each.id)
            return [self._done_message(key, each, _unknown(each, describe(error), "tool.failed"))]
        finally:
            self._running.pop(each.id, None)
            self.slots.free()

    async def _uncertain(self, key: str, each: Execution, request: ev.CallRequested, ran: Ran) -> ev.CallDone:
        """The tool raised, or its time is up: it may have done it. Ask it to find out, if it can."""
        tool = self._tools[request.tool]
        if ran.going_on is not None:
            ran.going_on.add_done_callback(lambda future: self._came_late(key, each, tool, future))
        settled = await self._settled(tool, key, each, request)
        if settled.what == "ran":
            return _settled_done(each, settled)
        if settled.what == "not_run" and ran.going_on is None:  # what still runs may still do it
            return ev.CallDone(each.call, each.number, "error", f"{ran.output}. It did not happen.", "tool.not_run",
                               duration_s=ran.duration_s, by="reconcile")
        return _unknown(each, ran.output, ran.code)

    def _came_late(self, key: str, each: Execution, tool: Tool, future: asyncio.Future[Any]) -> None:
        """A call that was given up has ended after all. If it knows how, that settles the unknown."""
        ran = self.runner.outcome(tool, future, tool.spec.timeout_s)
        if ran.how in ("returned", "said"):
            log.warning("%s ended long after its timeout; its outcome is reported now", each.id)
            self._spawn(self._append([self._done_message(key, each, _done(each, ran, unsafe=True))]), each.id)

    async def _settle_lost(self, key: str, each: Execution) -> Sequence[Message]:
        """It was started, by a process that has not said how it ended and had its time.

        Our own clock has rung, and it may be minutes ahead. Settling too early could start a second run
        beside the first, so the time that counts is asked of the log that stamped the claim.
        """
        due_ms = overdue_ms(each, self._specs)
        while (early_ms := due_ms - await self._broker_ms(key, each)) > 0:
            await self._sleep(early_ms / 1000)
        tool = self._tools.get(each.request.tool) if each.request is not None else None
        settled = Settled("cannot_say")
        if tool is not None and each.request is not None:
            settled = await self._settled(tool, key, each, each.request)
        if settled.what == "ran":
            return [self._done_message(key, each, _settled_done(each, settled))]
        if settled.what == "not_run":
            return [self._message(self.topic, key, ev.CallAbandoned(each.call, each.number, each.nonce),
                                  f"{each.id}:abandoned", each)]
        unknown = _unknown(each, "the process that ran it did not say how it ended", "call.lost")
        return [self._done_message(key, each, unknown)]

    async def _broker_ms(self, key: str, each: Execution) -> int:
        """Return the broker's time now: that of a record made for it, on the claim's own partition."""
        probe = ev.CallProgressed(each.call, each.number, 0.0, say="Its outcome is being looked for.")
        message = self._message(self.topic, key, probe, f"{each.id}:probe:{secrets.token_hex(6)}", each)
        position = (await self._bus.append([message]))[0]
        batch = await self._bus.read(self.topic, position.partition, position.offset, records_max=1)
        return batch.records[0].timestamp_ms

    async def _settled(self, tool: Tool, key: str, each: Execution, request: ev.CallRequested) -> Settled:
        if tool.reconcile is None:
            return Settled("cannot_say")
        try:
            arguments = tool.arguments(request.arguments, request.injected)
        except CrewlineError as error:
            log.error("%s: cannot be reconciled: %s", each.id, error.message)
            return Settled("cannot_say")
        call = UncertainCall(
            each.call, self._key_of(each, request), arguments, request.user, key, request.run, request.agent
        )
        return await self.runner.settle(tool, call)

    # --- both ----------------------------------------------------------------------------------

    async def _admitted(self, key: str, each: Execution, request: ev.CallRequested) -> Message | None:
        """Take a slot, and check the verdict as it is then. Return None with the slot held, or the refusal."""
        refusal = self._checked(key, each, request)
        if refusal is not None or self.slots.take_now():
            return refusal
        await self.slots.take()
        try:
            refusal = self._checked(key, each, request)  # time has passed
        except BaseException:
            self.slots.free()
            raise
        if refusal is not None:
            self.slots.free()
        return refusal

    def _checked(self, key: str, each: Execution, request: ev.CallRequested) -> Message | None:
        """Return the refusal of a request whose verdict does not hold now. A refusal is a claim: it is final
        only if it is the first."""
        reason = self._verifier.check(key, request, now_ms=self._clock_ms())
        if reason is None:
            return None
        log.warning("%s: %s refused: %s: %s", each.id, request.tool, reason.code, reason.say)
        refused = ev.CallRefused(each.call, each.number, reason.code, reason.say)
        return self._message(self.topic, key, refused, f"{each.id}:claim", each)

    async def _call(
        self, key: str, each: Execution, request: ev.CallRequested, cancelled: Cancelled, attempt: int, gate: Gate
    ) -> Ran:
        tool = self._tools[request.tool]
        deadline_ms = self._clock_ms() + int(tool.spec.timeout_s * 1000)
        context = ToolContext(
            call_id=each.call,
            idempotency_key=self._key_of(each, request),
            user=request.user,
            conversation=key,
            run=request.run,
            agent=request.agent,
            attempt=attempt,
            deadline=datetime.fromtimestamp(deadline_ms / 1000, UTC),
            report=self._progress_of(key, each),
            cancelled=cancelled,
        )
        return await self.runner.run(tool, request.arguments, request.injected, context, cancelled, gate)

    def _key_of(self, each: Execution, request: ev.CallRequested) -> str:
        return idempotency_key(self._topics.namespace, request.run, each.call)

    def _report(self, key: str, each: Execution, kind: str) -> Sequence[Message]:
        self._forget_claim(each.id)  # refused or revoked before our claim stood
        done = each.ended if kind == "report" else each.unknown
        assert done is not None
        copy = owed(done)
        return [self._message(self._topics.conversations, key, copy.completed, copy.id, each)]

    def _progress_of(self, key: str, each: Execution) -> Report:
        loop = asyncio.get_running_loop()

        def report(done: float, total: float | None, say: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._progressed, key, each, done, total, say)

        return report

    def _progressed(self, key: str, each: Execution, done: Any, total: Any, say: Any) -> None:
        try:
            numbers = [float(done), float(total) if total is not None else 0.0]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("not finite")
            progressed = ev.CallProgressed(each.call, each.number, numbers[0], None if total is None else numbers[1],
                                           render(str(say)).text[:500])
            id = f"{each.id}:progress:{secrets.token_hex(6)}"
            message = self._message(self._topics.tokens, key, progressed, id, each)
        except (TypeError, ValueError, CrewlineError) as error:
            log.debug("%s: progress that cannot be shown: %s", each.id, error)
            return
        self._spawn(self._append_once(message), id)

    # --- appending -----------------------------------------------------------------------------

    def _done_message(self, key: str, each: Execution, done: ev.CallDone) -> Message:
        id = f"{each.id}:unknown" if done.outcome == "unknown" else f"{each.id}:done"
        return self._message(self.topic, key, done, id, each)

    def _message(self, topic: str, key: str, event: ev.Event, id: str, each: Execution) -> Message:
        return self._scribe.message(topic, key, event, id=id, run=each.run, cause=each.id, seal_as=self._seal_as)

    async def _append(self, messages: Sequence[Message]) -> None:
        """Append the same records until the bus has acknowledged them."""
        failures = 0
        while True:
            try:
                await self._bus.append(messages)
                return
            except BusError as error:
                log.warning("%s: append failed: %s; trying again", self.name, error)
            await self._sleep(min(self._options.retry_s_max, self._options.retry_s_min * 2 ** min(failures, 16)))
            failures += 1

    async def _append_once(self, message: Message) -> None:
        try:
            await self._bus.append([message])
        except BusError as error:
            log.debug("progress was lost (the result is not): %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _request(each: Execution) -> ev.CallRequested:
    assert each.request is not None
    return each.request


def _done(each: Execution, ran: Ran, *, unsafe: bool = False) -> ev.CallDone:
    """Return how a run ended, for the log. A result that cannot be shown is a failure only where nothing happened."""
    ok = ran.how == "returned" and (ran.shown or unsafe)
    return ev.CallDone(
        each.call, each.number, "ok" if ok else "error", ran.output, None if ok else ran.code, ran.fix, round(ran.duration_s, 6)
    )


def _unknown(each: Execution, why: str, code: str | None) -> ev.CallDone:
    return ev.CallDone(each.call, each.number, "unknown", f"Nobody can say whether it ran: {why}.", code)


def _settled_done(each: Execution, settled: Settled) -> ev.CallDone:
    return ev.CallDone(each.call, each.number, "ok", render(settled.output).text, by="reconcile")
