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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crewline import events as ev
from crewline.bus.base import Bus, Message, Record
from crewline.errors import BusError, CrewlineError
from crewline.records import Reader, Scribe
from crewline.roster import Roster
from crewline.schemas import ArgumentSchema
from crewline.seal import DEPLOYMENT
from crewline.topics import MARKET
from crewline.worker import Choice

log = logging.getLogger("crewline.marketplace")

HEARTBEAT_S = 5.0
LEASE_S = 15.0
LEASE_S_MAX = 300.0  # whatever an advertisement says
CAPACITY_MAX = 10_000
GONE_S = 86_400.0
CANDIDATES_MAX = 8  # of a choice are recorded


@dataclass(frozen=True, slots=True)
class Offer:
    """An advertisement as it was last seen; `at_ms` is the broker's time of it."""

    key: str
    advertised: ev.AgentAdvertised
    at_ms: int
    sealed: bool = True
    inputs: Mapping[str, ArgumentSchema] = field(default_factory=dict)

    @property
    def load(self) -> float:
        """Return how busy the instance is: work in flight and queued, per place it has."""
        work = max(0, self.advertised.in_flight) + max(0, self.advertised.queued)
        return work / min(max(1, self.advertised.capacity), CAPACITY_MAX)


class MarketView:
    """The advertisements, in memory. Pure but for the clock it is given (seconds, monotonic).

    Unsealed ones (of other deployments and other systems) count for who names their crew, as
    `crew:capability`; and nobody but this deployment speaks for its own crew and its topic.
    """

    def __init__(self, *, crew: str, topic: str = "", monotonic: Callable[[], float] = time.monotonic) -> None:
        self._crew = crew
        self._topic = topic
        self._monotonic = monotonic
        self._offers: dict[str, Offer] = {}
        self._by_capability: dict[str, dict[str, Offer]] = {}
        self._broker_ms = 0
        self._seen_at = 0.0

    def take(self, key: str, advertised: ev.AgentAdvertised | None, at_ms: int, *, sealed: bool = True) -> bool:
        """Take an advertisement, or a withdrawal (None). Return whether what is offered changed.

        Raises: UsageError if one of its schemas is none; nothing was taken.
        """
        if at_ms >= self._broker_ms:
            self._broker_ms, self._seen_at = at_ms, self._monotonic()
        before = self._offers.get(key)
        ours = advertised is not None and (advertised.crew == self._crew or advertised.topic == self._topic)
        if not sealed and (ours or (before is not None and before.sealed)):
            log.warning("market: an unsealed record speaks for %s; it is ignored", key)
            return False
        inputs = _schemas(advertised)
        self._drop_gone()
        self._offers.pop(key, None)
        for capability in before.advertised.capabilities if before else ():
            self._by_capability[capability.name].pop(key, None)
        if advertised is None:
            return before is not None
        offer = self._offers[key] = Offer(key, advertised, at_ms, sealed, inputs)
        for capability in advertised.capabilities:
            self._by_capability.setdefault(capability.name, {})[key] = offer
        return before is None or before.advertised.capabilities != advertised.capabilities or self.stalled(before)

    def now_ms(self) -> int:
        """Return the broker's time, as well as it is known here."""
        return self._broker_ms + int((self._monotonic() - self._seen_at) * 1000)

    def stalled(self, offer: Offer) -> bool:
        """Return whether the offer's lease is over."""
        return self.now_ms() - offer.at_ms > min(offer.advertised.lease_s, LEASE_S_MAX) * 1000

    def _drop_gone(self) -> None:
        """Forget instances that fell silent long ago: a crashed one withdraws nothing."""
        oldest_ms = self.now_ms() - int(GONE_S * 1000)
        for offer in [offer for offer in self._offers.values() if offer.at_ms < oldest_ms] if self._offers else ():
            del self._offers[offer.key]
            for capability in offer.advertised.capabilities:
                self._by_capability[capability.name].pop(offer.key, None)

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
                     if (offer.advertised.crew == crew if crew else offer.sealed)]
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
        schema = offer.inputs.get(name)
        if schema is None:
            return None
        if not isinstance(input, dict):
            return ev.Reason("schema.type", f"{name} takes an object as its input")
        problems = schema.problems(input)
        return problems[0] if problems else None


def _schemas(advertised: ev.AgentAdvertised | None) -> dict[str, ArgumentSchema]:
    capabilities = advertised.capabilities if advertised is not None else ()
    return {each.name: ArgumentSchema(each.input) for each in capabilities if each.input is not None}


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
        self.view = MarketView(crew=roster.crew, topic=roster.topics.conversations)
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
        try:
            if record.value is None:
                sealed = self._reader.seals_tombstone(record)
                return self.view.take(key, None, record.timestamp_ms, sealed=sealed)
            entry = self._reader.read(record)
            if not isinstance(entry.event, ev.AgentAdvertised):
                return False
            sealed = entry.sealed_by == DEPLOYMENT
            return self.view.take(key, entry.event, record.timestamp_ms, sealed=sealed)
        except CrewlineError as error:
            log.warning("market offset %d: %s", record.offset, error)
            return False

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
                await self._bus.append([self._scribe.tombstone(MARKET, key) for key in keys])
        except (BusError, TimeoutError) as error:
            log.warning("the advertisements were not withdrawn (their lease ends in %g s): %s", LEASE_S, str(error) or "no answer")

    def _key(self, agent: str) -> str:
        return f"{self._roster.crew}/{agent}/{self._instance}"
