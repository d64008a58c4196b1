"""The marketplace: who offers what, on one compacted topic for all crews of a broker.

Each worker advertises its agents, follows the topic, and chooses from memory. Age is counted in the
broker's time: the newest timestamp seen plus what has passed here since, so a wrong clock expires nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from crewline import events as ev
from crewline.bus.base import Bus, Message, Record
from crewline.errors import BusError, RecordInvalid, UnknownEvent
from crewline.records import Reader, Scribe
from crewline.roster import Roster
from crewline.schemas import ArgumentSchema
from crewline.topics import MARKET
from crewline.worker import Choice

log = logging.getLogger("crewline.marketplace")

HEARTBEAT_S = 5.0
LEASE_S = 15.0
CANDIDATES_MAX = 8  # of a choice are recorded


@dataclass(frozen=True, slots=True)
class Offer:
    """An advertisement as it was last seen; `at_ms` is the broker's time of it."""

    key: str
    advertised: ev.AgentAdvertised
    at_ms: int

    @property
    def load(self) -> float:
        """Return how busy the instance is: work in flight and queued, per place it has."""
        return (self.advertised.in_flight + self.advertised.queued) / max(1, self.advertised.capacity)


class MarketView:
    """The advertisements, in memory. Pure but for the clock it is given (seconds, monotonic)."""

    def __init__(self, *, crew: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._crew = crew
        self._monotonic = monotonic
        self._offers: dict[str, Offer] = {}
        self._by_capability: dict[str, dict[str, Offer]] = {}
        self._schemas: dict[tuple[str, str], ArgumentSchema] = {}
        self._broker_ms = 0
        self._seen_at = 0.0

    def take(self, key: str, advertised: ev.AgentAdvertised | None, at_ms: int) -> bool:
        """Take an advertisement, or a withdrawal (None). Return whether what is offered changed."""
        if at_ms >= self._broker_ms:
            self._broker_ms, self._seen_at = at_ms, self._monotonic()
        before = self._offers.pop(key, None)
        for capability in before.advertised.capabilities if before else ():
            self._by_capability[capability.name].pop(key, None)
            self._schemas.pop((key, capability.name), None)
        if advertised is None:
            return before is not None
        offer = self._offers[key] = Offer(key, advertised, at_ms)
        for capability in advertised.capabilities:
            self._by_capability.setdefault(capability.name, {})[key] = offer
        return before is None or before.advertised.capabilities != advertised.capabilities or self.stalled(before)

    def now_ms(self) -> int:
        """Return the broker's time, as well as it is known here."""
        return self._broker_ms + int((self._monotonic() - self._seen_at) * 1000)

    def stalled(self, offer: Offer) -> bool:
        """Return whether the offer's lease is over."""
        return self.now_ms() - offer.at_ms > offer.advertised.lease_s * 1000

    def offers(self) -> Iterable[Offer]:
        """Return every advertisement, stalled ones too."""
        return self._offers.values()

    def choose(self, wanted: str, *, conversation: str, input: Any) -> Choice | ev.Reason:
        """Return whom to ask for `wanted` (`capability`, or `crew:capability`), or why nobody is asked.

        Offers whose input schema the input does not fit are left out; of the rest the least loaded is
        taken, equals by a hash of the conversation, so that the same state gives the same choice.
        """
        crew, _, capability = wanted.rpartition(":")
        looked_at = [offer for offer in self._by_capability.get(capability, {}).values()
                     if not crew or offer.advertised.crew == crew]
        able, candidates, misfit = [], [], None
        for offer in looked_at:
            if self.stalled(offer):
                candidates.append(_candidate(offer, "stalled: its lease is over"))
                continue
            problem = self._misfit(offer, capability, input)
            if problem is not None:
                misfit = misfit or problem
                candidates.append(_candidate(offer, f"the input does not fit its schema: {problem.say}"))
                continue
            able.append(offer)
        if not able:
            if misfit is not None:
                return misfit
            return ev.Reason("market.nobody", f"Nobody offers {wanted}.")
        able.sort(key=lambda offer: (offer.load, _tie(conversation, offer.key)))
        best = able[0]
        candidates = [
            _candidate(best, f"least loaded ({best.load:.2f})"),
            *(_candidate(offer, f"load {offer.load:.2f}") for offer in able[1:]),
            *candidates,
        ]
        ad = best.advertised
        return Choice(ad.crew, ad.agent, ad.topic, tuple(candidates[:CANDIDATES_MAX]))

    def _misfit(self, offer: Offer, name: str, input: Any) -> ev.Reason | None:
        capability = next(each for each in offer.advertised.capabilities if each.name == name)
        if capability.input is None:
            return None
        schema = self._schemas.get((offer.key, name))
        if schema is None:
            schema = self._schemas[(offer.key, name)] = ArgumentSchema(capability.input)
        if not isinstance(input, dict):
            return ev.Reason("schema.type", f"{name} takes an object as its input")
        problems = schema.problems(input)
        return problems[0] if problems else None


def _candidate(offer: Offer, why: str) -> ev.Candidate:
    ad = offer.advertised
    return ev.Candidate(ad.crew, ad.agent, ad.instance, why)


def _tie(conversation: str, key: str) -> bytes:
    return hashlib.sha256(f"{conversation}\n{key}".encode()).digest()


class Marketplace:
    """One worker's stand on the market: it advertises the crew's agents and follows the others'.

    Args:
        load: returns (in flight, queued, capacity) of this worker.
        changed: called when what is on offer has changed, so that waiting intents are looked at again.
    """

    def __init__(
        self, bus: Bus, roster: Roster, *, scribe: Scribe, reader: Reader, instance: str,
        load: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 1), changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.view = MarketView(crew=roster.crew)
        self._bus = bus
        self._roster = roster
        self._scribe = scribe
        self._reader = reader
        self._instance = instance
        self._load = load
        self._changed = changed
        self._loaded = asyncio.Event()

    def choose(self, capability: str, *, conversation: str, input: Any) -> Choice | ev.Reason:
        """See `MarketView.choose`."""
        return self.view.choose(capability, conversation=conversation, input=input)

    async def loaded(self) -> None:
        """Wait until the topic is read to the end it had at the start."""
        await self._loaded.wait()

    async def run(self, *, advertise: bool = True) -> None:
        """Follow and advertise until cancelled; then withdraw."""
        offering = advertise and any(agent.capabilities for agent in self._roster.agents.values())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                if offering:
                    tasks.create_task(self._heartbeat())
        finally:
            if offering:
                await self._withdraw()

    async def _follow(self) -> None:
        begins, ends = await self._bus.offsets(MARKET)
        tail = await self._bus.tail(MARKET, begins)
        if all(begins[partition] >= end for partition, end in ends.items()):
            self._loaded.set()
        try:
            while True:
                changed = False
                for batch in await tail.poll(LEASE_S):
                    changed |= any([self._take(record) for record in batch.records])
                    if batch.next_offset >= ends[batch.partition]:
                        self._loaded.set()
                if changed:
                    self._changed()
        finally:
            await tail.close()

    def _take(self, record: Record) -> bool:
        key = record.key.decode("utf-8", "replace")
        if record.value is None:
            return self.view.take(key, None, record.timestamp_ms)
        try:
            event = self._reader.read(record).event
        except (RecordInvalid, UnknownEvent) as error:
            log.warning("market offset %d: %s", record.offset, error)
            return False
        return isinstance(event, ev.AgentAdvertised) and self.view.take(key, event, record.timestamp_ms)

    async def _heartbeat(self) -> None:
        while True:
            try:
                await self._bus.append(self._advertisements())
            except BusError as error:
                log.warning("no heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_S * random.uniform(0.8, 1.2))

    def _advertisements(self) -> list[Message]:
        in_flight, queued, capacity = self._load()
        return [
            self._scribe.message(
                MARKET,
                self._key(agent.name),
                ev.AgentAdvertised(
                    self._roster.crew, self._roster.version, agent.name, self._instance,
                    self._roster.topics.conversations, tuple(agent.capabilities.values()),
                    in_flight, queued, capacity, LEASE_S,
                ),
                id=f"{self._key(agent.name)}@{self._scribe.now_ms()}",
                run="",
            )
            for agent in self._roster.agents.values()
            if agent.capabilities
        ]

    async def _withdraw(self) -> None:
        keys = [self._key(agent.name) for agent in self._roster.agents.values() if agent.capabilities]
        try:
            async with asyncio.timeout(2.0):
                await self._bus.append([Message(MARKET, key.encode(), None) for key in keys])
        except (BusError, TimeoutError) as error:
            log.warning("the advertisements were not withdrawn (their lease ends in %g s): %s", LEASE_S, error)

    def _key(self, agent: str) -> str:
        return f"{self._roster.crew}/{agent}/{self._instance}"
