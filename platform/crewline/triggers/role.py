"""The triggers' role: it publishes what firings ask for, keeps their places, and says when time has passed.

    outside topic ──Intake──▶ <ns>.triggers ──Engine(Triggers)──▶ <ns>.conversations
                                    ▲                                    │
                                    └────────── intent.answered ─────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from crewline import events as ev
from crewline.bus.base import Bus, Message, Record
from crewline.engine import Acted, Effect
from crewline.errors import BusError, RecordInvalid, RecordTooLarge
from crewline.records import Scribe
from crewline.topics import CrewTopics
from crewline.triggers.gate import Gate
from crewline.triggers.letters import letter_of_event
from crewline.triggers.rules import TriggerRule
from crewline.triggers.state import Firing, KeyState
from crewline.triggers.view import TriggersView, pending

log = logging.getLogger("crewline.triggers")

RETRY_S = 0.5


class Triggers:
    """The role. Give it to an `Engine` on `<ns>.triggers`.

    Args:
        rules: the crew's triggers by name.
        crew: the crew's name, for where intents come from.
        taken_until: waits until every event an outside topic holds now is in `<ns>.triggers`, and returns the
            time (Unix ms) at which it looked: only then is silence silence. Given the trigger and a due time.
    """

    name = "triggers"

    def __init__(
        self, rules: Mapping[str, TriggerRule], *, crew: str, topics: CrewTopics, scribe: Scribe, bus: Bus,
        clock_ms: Callable[[], int], taken_until: Callable[[str, int], Awaitable[int]],
    ) -> None:
        self.topic = topics.triggers
        self.view = TriggersView(rules)
        self.gates = {name: Gate(rule.concurrency) for name, rule in rules.items()}
        self._rules = rules
        self._crew = crew
        self._topics = topics
        self._scribe = scribe
        self._bus = bus
        self._clock_ms = clock_ms
        self._taken_until = taken_until

    def waiting(self, trigger: str) -> int:
        """Return how many firings of `trigger` wait for a place here."""
        return self.gates[trigger].waiting

    def pending(self, state: KeyState) -> Sequence[Effect]:
        return pending(state, self._rules)

    def observe(self, carry: bytes, record: Record) -> bytes:
        return carry

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        return ()

    def act(self, effect: Effect, state: KeyState) -> Acted:
        return _ACTS[effect.kind](self, effect, state)

    # --- firings -------------------------------------------------------------------------------

    def _place(self, effect: Effect, state: KeyState) -> Acted:
        return self._hold(_firing(state, effect.ref), state)

    async def _hold(self, firing: Firing, state: KeyState) -> Sequence[Message]:
        """Hold one of the trigger's places until the firing is over: then the engine cancels this."""
        gate = self.gates[state.trigger]
        if firing.started_ms is not None:
            gate.enter_anyway(firing.id)
        else:
            await gate.enter(firing.id)
        try:
            if firing.started_ms is None:
                await self._start(firing, state)
            await asyncio.Event().wait()  # for ever: what ends this is the fold
        finally:
            gate.leave(firing.id)
        raise AssertionError("unreachable")

    async def _start(self, firing: Firing, state: KeyState) -> None:
        """Say that the firing has its place. Not by returning the record: the place must be held beyond it."""
        message = self._message(state, ev.FiringStarted(firing.id), id=f"{firing.id}:started", run=firing.id)
        while True:
            try:
                await self._bus.append([message])
                return
            except BusError as error:
                log.warning("%s: %s; trying again", state.id, error)
                await asyncio.sleep(RETRY_S)

    def _publish(self, effect: Effect, state: KeyState) -> Acted:
        firing = _firing(state, effect.ref)
        asked = next(each for each in firing.asked if each.id == effect.id)
        rule = self._rules[state.trigger]
        scattered = firing.gather is not None and firing.stage == "ask"
        intent = ev.IntentPublished(
            input=firing.input,
            capability=asked.capability,
            user=firing.user,
            origin=ev.Origin("trigger", crew=self._crew, trigger=rule.name, topic=rule.topic),
            reply_to=ev.ReplyTo(self.topic, state.id, asked.id, firing.id),
            deadline_ms=firing.deadline_ms if scattered else None,
            gathered=firing.gathered,
        )
        # A scatter's intents are worked on side by side, so each has a conversation of its own.
        conversation = asked.id if scattered or firing.conversation is None else firing.conversation
        try:
            return [
                self._scribe.message(
                    self._topics.conversations, conversation, intent, id=asked.id, run=firing.id, cause=state.id
                )
            ]
        except (RecordTooLarge, RecordInvalid) as error:
            log.error("trigger %s: a firing cannot be published: %s", rule.name, error.message)
            closed = ev.FiringClosed(firing.id, error.code, error.message)
            return [self._message(state, closed, id=f"{firing.id}:closed", run=firing.id)]

    # --- time ----------------------------------------------------------------------------------

    def _give_up(self, effect: Effect, state: KeyState) -> Acted:
        return [self._passed(effect, state, self._clock_ms(), silent=False)]

    def _silence(self, effect: Effect, state: KeyState) -> Acted:
        return self._when_silent(effect, state)

    async def _when_silent(self, effect: Effect, state: KeyState) -> Sequence[Message]:
        until_ms = await self._taken_until(state.trigger, int(effect.ref))
        return [self._passed(effect, state, until_ms, silent=True)]

    def _passed(self, effect: Effect, state: KeyState, until_ms: int, *, silent: bool) -> Message:
        return self._message(state, ev.TimePassed(until_ms, silent), id=f"{effect.id}:{until_ms}", run=state.id)

    # --- errors --------------------------------------------------------------------------------

    def _letter(self, effect: Effect, state: KeyState) -> Acted:
        return self._write_letter(effect, state)

    async def _write_letter(self, effect: Effect, state: KeyState) -> Sequence[Message]:
        letter = next(each for each in state.letters if each.id == effect.ref)
        log.warning("trigger %s: %s partition %d offset %d: %s", state.trigger, letter.topic, letter.partition,
                    letter.offset, letter.say)
        await self._bus.append([letter_of_event(self._topics.dead_letters, state, letter)])
        closed = ev.FiringClosed(letter.id, "dead_letter", letter.say[:500])
        return [self._message(state, closed, id=f"{letter.id}:written", run=state.id)]

    def _message(self, state: KeyState, event: ev.Event, *, id: str, run: str) -> Message:
        return self._scribe.message(self.topic, state.id, event, id=id, run=run)


def _firing(state: KeyState, id: str) -> Firing:
    return next(each for each in state.firings if each.id == id)


_Act = Callable[[Triggers, Effect, KeyState], Acted]
_ACTS: dict[str, _Act] = {
    "place": Triggers._place,
    "publish": Triggers._publish,
    "give_up": Triggers._give_up,
    "silence": Triggers._silence,
    "letter": Triggers._letter,
}
