"""A client of a crew that runs here or elsewhere: it publishes intents and decisions, and reads the log.

Closing a client never changes a run. Its handle on one is (intent, partition, end offset before its
first send): with these, any later client finds the answer.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from crewline import events as ev
from crewline.bus.base import Bus, Message, Position, Record
from crewline.bus.opening import load_keyring, open_address
from crewline.errors import BusUnavailable, CrewlineError, NotFound, RunFailed, UsageError
from crewline.projection import Frame, OpenCall, Projection, frame_of
from crewline.records import PEOPLE, Entry, Reader, Scribe
from crewline.seal import Keyring
from crewline.topics import CrewTopics

RETRY_S = 0.5


class TimedOut(CrewlineError):
    """The answer did not come in time. The run goes on; ask for it again by its handle."""

    code = "timeout"
    exit_code = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """How a turn ended well. `text` is the answer as text, `value` as the capability's schema has it."""

    value: Any
    usage: ev.Spent
    run: str
    conversation: str
    turn: int
    agent: str

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else msgspec.json.encode(self.value).decode()


def new_id() -> str:
    """Return a new id for an intent (and the conversation and run it opens): 16 random characters."""
    return base64.b32encode(secrets.token_bytes(10)).decode().lower()


class Client:
    """Ask a crew, follow its runs, decide what it holds.

    Args:
        bus: an open bus, or an address: `embedded:DIR` or `kafka://HOST:PORT[,HOST:PORT]`.
        crew: the crew's namespace (`bus.topic_prefix`; default: its name).
        keys: the keyring, or the keys folder (embedded: `DIR/keys`; needed on Kafka).
        reader: checks records; given by a running crew, so that they are checked once.

    Use it as an async context manager. Raises UsageError for an address it does not know.
    """

    def __init__(
        self, bus: Bus | str, crew: str, *, keys: Keyring | Path | None = None, reader: Reader | None = None
    ) -> None:
        self.crew = crew
        self.topics = CrewTopics(crew)
        self._given = bus
        self._keys = keys
        self._bus: Bus | None = None if isinstance(bus, str) else bus
        self._keyring: Keyring | None = keys if isinstance(keys, Keyring) else None
        self._reader = reader
        self._partitions = 0
        self._handles: dict[str, list[Handle]] = {}  # by intent, for their answers
        self._followed: dict[str, list[Handle]] = {}  # by conversation and by run
        self._follower: asyncio.Task[None] | None = None
        self._following = asyncio.Lock()
        self._projection: Projection | None = None

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop following; close the bus if this client opened it."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        if isinstance(self._given, str) and self._bus is not None:
            await self._bus.close()

    async def _open(self) -> Bus:
        if self._bus is None:
            assert isinstance(self._given, str)
            self._bus = await open_address(self._given)
        if self._keyring is None:
            self._keyring = load_keyring(self._given, self._keys)
        if not self._partitions:
            self._partitions = await self._bus.partitions(self.topics.conversations)
        return self._bus

    @property
    def bus(self) -> Bus:
        assert self._bus is not None, "use the client as an async context manager"
        return self._bus

    @property
    def keyring(self) -> Keyring:
        assert self._keyring is not None, "use the client as an async context manager"
        return self._keyring

    def _read(self, record: Record) -> Entry:
        if self._reader is None:
            self._reader = Reader(self.keyring, partitions=self._partitions)
        return self._reader.read(record)

    @cached_property
    def _scribe(self) -> Scribe:
        return Scribe(self.keyring, source=self.crew, now_ms=lambda: int(time.time() * 1000))

    # --- asking --------------------------------------------------------------------------------

    async def ask(
        self, text: str, *, agent: str | None = None, user: str | None = None, conversation: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask an agent (None: see `publish`) and wait for its answer.

        Args:
            timeout: seconds; None waits for as long as the turn takes.

        Raises: RunFailed if the turn fails or is cancelled; TimedOut; BusUnavailable if the intent
        could not be published within the timeout (or 30 s).
        """
        handle = await self.publish(text, agent=agent, user=user, conversation=conversation, follow=False)
        return await handle.answer(timeout)

    async def publish(
        self, input: Any, *, capability: str | None = None, agent: str | None = None, user: str | None = None,
        conversation: str | None = None, intent: str | None = None, deadline_ms: int | None = None,
        follow: bool = True,
    ) -> Handle:
        """Publish an intent to an agent or a capability; return a handle on it.

        `intent` repeats an earlier one: it is taken once, and its answer comes in any case. `follow`:
        gather the run's records for `Handle.frames`; without it only the answer is watched for.
        Raises: UsageError unless exactly one of `agent` and `capability` is given; BusUnavailable.
        """
        if (capability is None) == (agent is None):
            raise UsageError("an intent goes to an agent or to a capability: name exactly one")
        await self._open()
        intent = intent or new_id()
        conversation = conversation or intent
        event = ev.IntentPublished(
            input=input, agent=agent, capability=capability, user=user, origin=ev.Origin("user"), deadline_ms=deadline_ms
        )
        await self._follow()
        handle = Handle(self, intent, conversation, follow=follow)
        message = self._scribe.message(self.topics.conversations, conversation, event, id=intent, run=intent)
        try:
            handle.position = await self._append(message)
        except BaseException:
            handle.close()
            raise
        return handle

    async def stream(
        self, text: str, *, agent: str | None = None, capability: str | None = None, user: str | None = None,
        conversation: str | None = None,
    ) -> AsyncIterator[Frame]:
        """Ask, and yield the run's records as they come, streamed text included, until the turn ends."""
        handle = await self.publish(text, agent=agent, capability=capability, user=user, conversation=conversation)
        async for frame in handle.frames():
            yield frame

    async def _append(self, message: Message, *, seconds: float = 30.0) -> Position:
        """Append, again with the same id while the bus is away: a repeat is the same intent or decision."""
        until = time.monotonic() + seconds
        while True:
            try:
                return (await self.bus.append([message]))[0]
            except BusUnavailable:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(RETRY_S)

    # --- deciding ------------------------------------------------------------------------------

    async def open_calls(self) -> list[OpenCall]:
        """Return what waits for a person: held and unknown calls, oldest first."""
        return (await self.projection()).open_calls()

    async def find_call(self, prefix: str) -> OpenCall:
        """Return the waiting call whose id (or conversation's id) starts so. Raises: NotFound, UsageError."""
        found = [call for call in await self.open_calls() if call.id.startswith(prefix)]
        if not found:
            raise NotFound(f"no call that waits for a person has an id starting with {prefix!r}",
                           hint="crewline approvals list")
        if len(found) > 1:
            raise UsageError(f"{prefix!r} fits {len(found)} waiting calls: {', '.join(each.id for each in found)}")
        return found[0]

    async def approve(self, call: str, *, by: str, note: str = "") -> None:
        """Approve a held call, for exactly the bytes it shows now. Raises: NotFound, UsageError."""
        await self._decide(call, "approve", by=by, note=note)

    async def edit(self, call: str, arguments: str, *, by: str, note: str = "") -> None:
        """Approve a held call with other arguments (JSON text); they are judged again. Raises: as `approve`."""
        await self._decide(call, "edit", by=by, note=note, arguments=arguments)

    async def deny(self, call: str, *, by: str, note: str = "") -> None:
        """Deny a held call; the agent reads `note`. Raises: as `approve`."""
        await self._decide(call, "deny", by=by, note=note)

    async def _decide(
        self, prefix: str, decision: Literal["approve", "edit", "deny"], *, by: str, note: str,
        arguments: str | None = None,
    ) -> None:
        found = await self.find_call(prefix)
        call = found.call
        if call.status != "held" or call.verdict is None:
            raise UsageError(f"call {call.id} is not held but unknown: say what became of it with `resolve`")
        decided = ev.ApprovalDecided(call.id, call.judgement, call.verdict.args_sha256, decision, by, arguments, note)
        await self._append(self._signed(found, decided, f"{call.judgement_id}:by:{new_id()}"))

    async def resolve(
        self, call: str, resolution: Literal["ran", "not_run", "give_up"], *, by: str, output: str = ""
    ) -> None:
        """Say what became of an unknown call. Raises: NotFound, UsageError."""
        found = await self.find_call(call)
        if found.call.status != "unknown":
            raise UsageError(f"call {found.id} is not unknown; approve, edit or deny it")
        resolved = ev.CallResolved(found.id, found.call.execution, resolution, by, output)
        await self._append(self._signed(found, resolved, f"{found.call.execution_id}:by:{new_id()}"))

    def _signed(self, found: OpenCall, event: ev.Event, id: str) -> Message:
        return self._scribe.message(
            self.topics.conversations, found.conversation, event, id=id, run=found.run, cause=found.id, signed_by=PEOPLE
        )

    async def cancel(self, conversation: str, *, by: str, intent: str | None = None) -> None:
        """Ask for the conversation's turn (or the turn of `intent`) to be stopped.

        Raises: NotFound if the conversation has no turn under way and no intent waiting.
        """
        await self._open()
        event = ev.CancelRequested(intent=intent, by=by)
        if intent is None:
            # It names what it stops: repeated, it stops nothing else.
            state = (await self.projection()).states.get(conversation)
            if state is None or (state.turn is None and not state.queue):
                raise NotFound(f"nothing is under way in conversation {conversation}", hint="crewline runs list")
            event = ev.CancelRequested(
                turn=state.turn.number if state.turn is not None else None,
                intent=None if state.turn is not None else state.queue[0].id,
                by=by,
            )
        await self._append(
            self._scribe.message(self.topics.conversations, conversation, event, id=new_id(), run=intent or conversation)
        )

    # --- reading -------------------------------------------------------------------------------

    async def projection(self) -> Projection:
        """Return the whole log folded, up to its present end. Kept and continued between calls."""
        await self._open()
        if self._projection is None:
            self._projection = Projection(
                self.keyring, topic=self.topics.conversations, partitions=self._partitions
            )
        return await self._projection.catch_up(self.bus)

    async def _follow(self) -> None:
        if self._follower is not None and not self._follower.done():
            return
        async with self._following:
            if self._follower is not None and not self._follower.done():
                return
            conversations = await self.bus.tail(self.topics.conversations)
            tokens = await self.bus.tail(self.topics.tokens)
            self._follower = asyncio.create_task(self._read_tails(conversations, tokens))

    async def _read_tails(self, *tails: Any) -> None:
        async def read(tail: Any) -> None:
            while True:
                for batch in await tail.poll(5.0):
                    for record in batch.records:
                        self._dispatch(record)

        try:
            await asyncio.gather(*(read(tail) for tail in tails))
        except CrewlineError as error:
            self.fail(error)
        finally:
            for tail in tails:
                await tail.close()

    def _dispatch(self, record: Record) -> None:
        is_end = ev.header(record.headers, "ce_type") in (ev.TurnFinished.TYPE, ev.RecordRejected.TYPE)
        if not is_end and not self._followed:
            return
        run = ev.header(record.headers, "ce_correlationid") or ""
        followers = [*self._followed.get(run, ()), *self._followed.get(record.key.decode("utf-8", "replace"), ())]
        if not is_end and not followers:
            return
        try:
            frame = frame_of(record, stands=None, event=self._read(record).event)
        except CrewlineError:
            frame = frame_of(record, stands=False)  # forged or unreadable: shown, never an answer
        if isinstance(frame.event, ev.TurnFinished):
            followers += self._handles.get(frame.event.intent, ())
        if isinstance(frame.event, ev.RecordRejected):
            self._refused(frame.event, record.topic)
        for handle in dict.fromkeys(followers):
            handle.give(frame)


    def _refused(self, rejected: ev.RecordRejected, topic: str) -> None:
        """Tell the handle whose intent was rejected, and all of a conversation that ended there."""
        at = Position(topic, rejected.partition, rejected.offset)
        for handle in [each for handles in self._handles.values() for each in handles]:
            if handle.position == at:
                handle.give(RunFailed(rejected.say, reason_code=rejected.code, run=handle.intent))

    def fail(self, error: CrewlineError) -> None:
        """Give up on every answer that is waited for: whoever would write it is gone."""
        for handle in [each for handles in self._handles.values() for each in handles]:
            handle.give(error)


class Handle:
    """A published intent: its run goes on whatever becomes of this handle."""

    def __init__(
        self, client: Client, intent: str, conversation: str, *, follow: bool
    ) -> None:
        self.client = client
        self.intent = intent
        self.conversation = conversation
        self.position: Position | None = None  # of the intent: a later client reads on from there
        self._given: deque[Frame | CrewlineError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._tables = [(client._handles, intent)]
        if follow:
            self._tables += [(client._followed, key) for key in dict.fromkeys((conversation, intent))]
        for table, key in self._tables:
            table.setdefault(key, []).append(self)

    def close(self) -> None:
        """Stop watching."""
        for table, key in self._tables:
            handles = table.get(key, [])
            if self in handles:
                handles.remove(self)
            if not handles:
                table.pop(key, None)

    def give(self, frame: Frame | CrewlineError) -> None:
        """Take what the client's follower has for this handle: a frame, or why there will be none."""
        self._given.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> Frame:
        """Wait for a frame. Raises: what was given instead of one."""
        while not self._given:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        given = self._given.popleft()
        if isinstance(given, CrewlineError):
            raise given
        return given

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the run's records as they come (first of each event id), ending with its `turn.finished`.

        Raises: BusError if the log cannot be followed any more.
        """
        seen: set[str] = set()
        try:
            while True:
                frame = await self._next()
                if frame.stands is not False:  # a forged record must not take a true one's place
                    if frame.event_id in seen:
                        continue
                    seen.add(frame.event_id)
                yield frame
                if self._is_end(frame):
                    return
        finally:
            self.close()

    def _is_end(self, frame: Frame) -> bool:
        return isinstance(frame.event, ev.TurnFinished) and frame.event.intent == self.intent

    async def answer(self, timeout: float | None = None) -> Answer:
        """Wait for the answer; `timeout` in seconds. Raises: RunFailed, TimedOut."""
        if timeout is None:
            return await self._answer()
        try:
            async with asyncio.timeout(timeout):
                return await self._answer()
        except TimeoutError:
            raise TimedOut(
                f"no answer within {timeout:g} s; the run goes on", hint=f"crewline runs watch {self.intent}"
            ) from None

    async def _answer(self) -> Answer:
        try:
            while not self._is_end(frame := await self._next()):
                pass
            return answer_of(frame)
        finally:
            self.close()


def answer_of(frame: Frame) -> Answer:
    """Return the answer in a `turn.finished`. Raises: RunFailed if the turn did not end well."""
    event = frame.event
    assert isinstance(event, ev.TurnFinished)
    if event.status != "done":
        reason = event.reason or ev.Reason(event.status, f"the turn {event.status}")
        raise RunFailed(reason.say, reason_code=reason.code, run=frame.run, hint=f"crewline runs show {frame.run}")
    return Answer(event.answer, event.spent, frame.run, frame.conversation, event.turn, event.agent)
