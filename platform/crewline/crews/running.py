"""A crew, loaded and running: every role in this process, or some of them, on one bus."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from crewline.bus.base import Bus
from crewline.client import Answer, Client, Handle
from crewline.conversation import ConversationView
from crewline.crews.where import Where, where
from crewline.engine import Engine, EngineOptions
from crewline.errors import CrewlineError, UnknownTopic, UsageError
from crewline.marketplace import Marketplace
from crewline.projection import Frame
from crewline.records import Reader, Scribe
from crewline.roster import Roster
from crewline.seal import DEPLOYMENT, Keyring, load_keys, make_keys
from crewline.topics import MARKET, PARTITIONS, TopicSpec
from crewline.worker import Worker

if TYPE_CHECKING:
    from crewline_memory.base import MemoryStore
    from crewline_tools.pool import ToolPool
    from crewline_tools.registry import ToolRegistry
    from crewline_tools.running import Tool

    from crewline.crews.models import CrewConfig
    from crewline.guardrail import PolicySet
    from crewline.triggers import Intake, TriggerRule, Triggers

log = logging.getLogger("crewline")

STATE = Path(".crewline")
ROLES = ("worker", "guardrail", "tools", "triggers")


def clock_ms() -> int:
    """Return the wall clock in Unix milliseconds."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Crew:
    """A crew, ready to run. `Crew.load` makes one from a crew file; tests and benchmarks make their own.

    Args:
        roster: agents, tools, budgets. tools: the functions behind the tools. policies: what the guardrail
        holds calls to. config: the crew file, if there is one. triggers: outside topics that become intents.
    """

    roster: Roster
    tools: ToolRegistry
    policies: PolicySet
    config: CrewConfig | None = None
    partitions: int = PARTITIONS
    options: EngineOptions = field(default_factory=EngineOptions)
    triggers: Sequence[TriggerRule] = ()

    @classmethod
    def load(cls, path: str | Path, *, overlays: Sequence[str | Path] = (), offline: bool = False) -> Crew:
        """Return the crew that a crew file declares, its tools and brains imported.

        `offline` gives every agent the model `offline`, which must be scripted.
        Raises: CrewFileError with every problem of the file; UsageError if a reference cannot be imported.
        """
        from crewline.crews.assembly import crew_from_file

        return crew_from_file(Path(path), overlays=[Path(each) for each in overlays], offline=offline)

    @property
    def name(self) -> str:
        return self.roster.crew

    def up(
        self, *, state: Path = STATE, bus: str | None = None, keys: Path | None = None, store: str | None = None,
        only: Collection[str] | None = None,
    ) -> Running:
        """Return the crew running; use it as an async context manager.

        Args:
            state: the folder of this process's own files, and of log, keys and store where nothing else is said.
            bus: `embedded:DIR` or `kafka://HOST:PORT[,…]`; None: what the crew file says, else embedded in `state`.
            keys: the keys folder, the same for the whole deployment; None: the crew file's, else in `state`.
            store: `sqlite:DIR` or `redis://…`; None: what the crew file says, else SQLite in `state`.
            only: the roles to run here (`worker`, `guardrail`, `tools`, `tools.POOL`, `triggers`); None: all.

        Raises: UsageError for a role or an address that there is not.
        """
        said, memory = (self.config.bus, self.config.memory) if self.config is not None else (None, None)
        place = where(state=state, bus=bus, keys=keys, store=store, said=said, memory=memory)
        return Running(self, where=place, state=state, only=only)

    def ask_sync(self, text: str, *, state: Path = STATE, user: str | None = None, timeout: float | None = None) -> Answer:
        """Run the crew, ask its entry agent, return the answer: for scripts and notebooks. Raises: as `Running.ask`."""

        async def ask() -> Answer:
            async with self.up(state=state) as running:
                return await running.ask(text, user=user, timeout=timeout)

        return asyncio.run(ask())


class Running:
    """A crew's roles at work in this process. Leaving the context hands everything over and stops."""

    def __init__(self, crew: Crew, *, where: Where, state: Path, only: Collection[str] | None) -> None:
        self.crew = crew
        self.roster = crew.roster
        self.where = where
        self.state = state
        self.roles = _roles(crew, only)
        self.instance = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.engines: dict[str, Engine[Any]] = {}
        self.market: Marketplace | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pools: list[ToolPool] = []
        self.triggers: Triggers | None = None
        self.intakes: list[Intake] = []
        self._stack = AsyncExitStack()
        self._bus: Bus | None = None
        self._reader: Reader
        self._view = ConversationView()
        self._client: Client | None = None
        self._stopping = asyncio.Event()
        self._drain_s = 0.0

    @property
    def bus(self) -> Bus:
        assert self._bus is not None, "use the running crew as an async context manager"
        return self._bus

    @property
    def client(self) -> Client:
        assert self._client is not None, "use the running crew as an async context manager"
        return self._client

    @property
    def entry(self) -> str:
        """The agent a chat talks to: the crew file's `console.entry`, else the first one."""
        return self.roster.entry or next(iter(self.roster.agents))

    # --- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            # What people say stands in there: for nobody else on this machine.
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.where.embedded:
                make_keys(self.where.keys)
            keyring = load_keys(self.where.keys)
            self._check_keys(keyring)
            self._bus = bus = await self.where.open_bus(self._client_id)
            self._stack.push_async_callback(bus.close)
            await bus.create_topics(self._topics())
            if "triggers" in self.roles:
                await self._check_outside_topics(bus)
            store = await self.where.open_store(self.roster.topics.namespace)
            self._stack.push_async_callback(store.close)
            # One reader for all who trust the same keys: a record is checked once, not once a role.
            reader = self._reader = Reader(keyring.without("guard", "people"), partitions=self.crew.partitions)
            self._client = await self._stack.enter_async_context(
                Client(bus, self.roster.topics.namespace, keys=keyring.without("guard"), reader=reader)
            )
            self._start(keyring, bus, store)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    @property
    def _client_id(self) -> str:
        """Return what Kafka's logs and quotas know this process by: its role, or the crew if it has several."""
        namespace = self.roster.topics.namespace
        return f"{namespace}.{self.roles[0]}" if len(self.roles) == 1 else namespace

    def _check_keys(self, keyring: Keyring) -> None:
        """Raise UsageError if a role lacks a key: better here than at its first record."""
        held = set(keyring.holds())
        for role in self.roles:
            pool = role.removeprefix("tools.")
            needed = {"worker": {DEPLOYMENT: "seal.key"}, "guardrail": {DEPLOYMENT: "seal.key", "guard": "guard.key"},
                      "triggers": {DEPLOYMENT: "seal.key"}}.get(
                role, {} if DEPLOYMENT in held else {f"pool/{pool}": f"pool-{pool}.key"}
            )
            missing = [file for key, file in needed.items() if key not in held]
            if missing:
                raise UsageError(
                    f"{self.where.keys} holds no {', '.join(missing)}, which {role} needs",
                    hint="copy it from the deployment's keys, or name another folder: --keys DIR",
                )

    def _topics(self) -> list[TopicSpec]:
        """Return the topics to be there. A role of its own asks Kafka for no more than it may touch."""
        every = self.roster.topics.specs(self.roster.pools, partitions=self.crew.partitions)
        if self.crew.triggers:
            every += self.roster.topics.trigger_specs(partitions=self.crew.partitions)
        if self.where.embedded or self.roles == _roles(self.crew, None):
            return every
        needed = topics_of(self.roster, self.roles)
        return [spec for spec in every if spec.name in needed]

    async def _check_outside_topics(self, bus: Bus) -> None:
        """Raise UsageError if a trigger's topic is not there. The embedded log has no other owner to make it."""
        outside = dict.fromkeys(rule.topic for rule in self.crew.triggers)
        there = await bus.topics() if self.where.embedded else {}
        missing = [TopicSpec(topic, self.crew.partitions) for topic in outside if topic not in there]
        if self.where.embedded:
            await bus.create_topics(missing)
        for topic in outside:
            try:
                await bus.partitions(topic)
            except UnknownTopic:
                name = next(rule.name for rule in self.crew.triggers if rule.topic == topic)
                raise UsageError(f"trigger {name!r} reads topic {topic!r}, which {bus.address} does not have",
                                 hint="whoever writes it creates it; or correct `topic`") from None

    async def _stop(self) -> None:
        """End what was started, as far as that came, and close what was opened."""
        for intake in self.intakes:
            intake.stop()
        for name, engine in self.engines.items():
            # A trigger's places are held for as long as its runs last: they are no work to wait for.
            engine.stop(drain_s=0.0 if name == "triggers" else self._drain_s)
        market = self._tasks.pop("market", None)
        if market is not None:
            market.cancel()
        await asyncio.gather(*self._tasks.values(), *([market] if market else []), return_exceptions=True)
        await asyncio.gather(*(pool.close() for pool in self._pools))
        for brain in {id(agent.brain): agent.brain for agent in self.roster.agents.values()}.values():
            await brain.close()
        await self._stack.aclose()

    def _start(self, keyring: Keyring, bus: Bus, store: MemoryStore) -> None:
        for role in self.roles:
            if role == "worker":
                self._start_worker(keyring.without("guard", "people"), bus, store)
            elif role == "triggers":
                self._start_triggers(keyring.without("guard", "people"), bus, store)
            elif role == "guardrail":
                self._start_guardrail(keyring.without("people"), bus, store)
            else:
                self._start_pool(role.removeprefix("tools."), keyring, bus, store)
        for name, engine in self.engines.items():
            self._tasks[name] = asyncio.create_task(engine.run(), name=name)
        for task in self._tasks.values():
            task.add_done_callback(self._role_ended)

    def _role_ended(self, task: asyncio.Task[None]) -> None:
        """A role that dies must not leave askers waiting for what nobody will write."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("role %s ended: %s: %s", task.get_name(), type(error).__name__, error, exc_info=error)
        known = error if isinstance(error, CrewlineError) else CrewlineError(f"role {task.get_name()} ended: {error}")
        self.client.fail(known)

    def _engine(self, name: str, role: Any, reader: Reader, bus: Bus, store: MemoryStore) -> None:
        self.engines[name] = Engine(
            role,
            bus=bus,
            store=store,
            reader=reader,
            group=f"{self.roster.topics.namespace}.{name}",
            clock_ms=clock_ms,
            options=self.crew.options,
            member=self.instance,
        )

    def _start_worker(self, keyring: Keyring, bus: Bus, store: MemoryStore) -> None:
        scribe = Scribe(keyring, source=self.roster.topics.namespace, now_ms=clock_ms)
        self.market = market = Marketplace(
            bus, self.roster, scribe=scribe, reader=Reader(keyring, partitions=1), instance=self.instance,
            load=self._load, changed=self._market_changed,
        )
        worker = Worker(
            self.roster, scribe=scribe, bus=bus, market=market, clock_ms=clock_ms, view=self._view
        )
        self._engine("worker", worker, self._reader, bus, store)
        self._tasks["market"] = asyncio.create_task(market.run(), name="market")

    def _load(self) -> tuple[int, int, int]:
        engine = self.engines["worker"]
        return engine.in_flight(), 0, self.crew.options.slots

    def _market_changed(self) -> None:
        self.engines["worker"].reconsider()

    def _start_guardrail(self, keyring: Keyring, bus: Bus, store: MemoryStore) -> None:
        from crewline_tools.reading import ReadTools

        from crewline.guardrail import AuditTrail, Guardrail, LimitKeeper

        scribe = Scribe(keyring, source=self.roster.topics.namespace, now_ms=clock_ms)
        facts = ReadTools(self._functions())
        self._stack.callback(facts.close)
        guardrail = Guardrail(
            self.roster,
            policies=self.crew.policies,
            scribe=scribe,
            clock_ms=clock_ms,
            run_fact=facts.run,
            view=self._view,
            audit=AuditTrail(
                scribe, clock_ms=clock_ms, audit_topic=self.roster.topics.audit, file=self.state / "audit.jsonl"
            ),
        )
        self._engine("guardrail", guardrail, self._reader, bus, store)
        if self.crew.policies.limits or self.roster.budgets.day:
            keeper = LimitKeeper(self.roster.topics, scribe=scribe)
            self._engine("limits", keeper, self._reader, bus, store)

    def _start_triggers(self, keyring: Keyring, bus: Bus, store: MemoryStore) -> None:
        from crewline.triggers import Intake, TakenUntil, Triggers

        topics, rules = self.roster.topics, {rule.name: rule for rule in self.crew.triggers}
        scribe = Scribe(keyring, source=topics.namespace, now_ms=clock_ms)
        self.triggers = role = Triggers(
            rules, crew=self.roster.crew, topics=topics, scribe=scribe, bus=bus, clock_ms=clock_ms,
            taken_until=TakenUntil(rules, namespace=topics.namespace, bus_of=self._outside_bus, store=store, clock_ms=clock_ms),
        )
        self._engine("triggers", role, self._reader, bus, store)
        for rule in self.crew.triggers:
            intake = Intake(
                rule, bus=bus, store=store, scribe=scribe, reader=self._reader, topics=topics, clock_ms=clock_ms,
                waiting=role.waiting, open_bus=lambda: self.where.open_bus(self._client_id), member=self.instance,
            )
            self.intakes.append(intake)
            self._tasks[intake.name] = asyncio.create_task(intake.run(), name=intake.name)

    def _outside_bus(self, trigger: str) -> Bus:
        return next(intake.outside for intake in self.intakes if intake.rule.name == trigger)

    def _start_pool(self, pool: str, keyring: Keyring, bus: Bus, store: MemoryStore) -> None:
        from crewline_tools.pool import ToolPool

        held = keyring.for_pool(pool)
        role = ToolPool(
            pool,
            self.crew.tools.of_pool(pool),
            topics=self.roster.topics,
            scribe=Scribe(held, source=self.roster.topics.namespace, now_ms=clock_ms, seal_as=f"pool/{pool}"),
            keyring=held,
            bus=bus,
            clock_ms=clock_ms,
        )
        self._pools.append(role)
        self._engine(role.name, role, Reader(held, partitions=self.crew.partitions), bus, store)

    def _functions(self) -> dict[str, Tool]:
        return {name: self.crew.tools[name] for name in self.crew.tools}

    async def ready(self) -> None:
        """Wait until every role here has folded its part of the log, and knows the market."""
        await asyncio.gather(*(engine.ready() for engine in self.engines.values()))
        if self.market is not None:
            await self.market.loaded()

    async def serve(self) -> None:
        """Work until `stop`. Raises whatever ends a role."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({stopping, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            stopping.cancel()

    def stop(self, *, drain_s: float = 0.0) -> None:
        """End `serve`; begin nothing more. What runs has `drain_s` seconds to come to its end before it is handed over."""
        self._drain_s = drain_s
        self._stopping.set()

    # --- asking --------------------------------------------------------------------------------

    async def ask(
        self, text: str, *, user: str | None = None, conversation: str | None = None, agent: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask the entry agent (or `agent`) and wait. Raises: RunFailed, TimedOut; see `Client.ask`."""
        return await self.client.ask(
            text, agent=agent or self.entry, user=user, conversation=conversation, timeout=timeout
        )

    def stream(
        self, text: str, *, user: str | None = None, conversation: str | None = None, agent: str | None = None
    ) -> AsyncIterator[Frame]:
        """Ask, and yield the run's records as they come; see `Client.stream`."""
        return self.client.stream(text, agent=agent or self.entry, user=user, conversation=conversation)

    async def publish(
        self, capability: str, input: Mapping[str, Any] | str, *, user: str | None = None,
        conversation: str | None = None,
    ) -> Handle:
        """Publish an intent to a capability; return a handle on it."""
        return await self.client.publish(input, capability=capability, user=user, conversation=conversation)

    async def approve(self, call: str, *, by: str, note: str = "") -> None:
        """See `Client.approve`."""
        await self.client.approve(call, by=by, note=note)

    async def edit(self, call: str, arguments: str, *, by: str, note: str = "") -> None:
        """See `Client.edit`."""
        await self.client.edit(call, arguments, by=by, note=note)

    async def deny(self, call: str, *, by: str, note: str = "") -> None:
        """See `Client.deny`."""
        await self.client.deny(call, by=by, note=note)


def topics_of(roster: Roster, roles: Collection[str]) -> frozenset[str]:
    """Return the names of the topics that these roles read or write; of no role: those of whoever asks."""
    topics = roster.topics
    needed = {topics.conversations}
    if not roles:
        needed |= {topics.tokens}
    if "worker" in roles:
        needed |= {topics.tokens, topics.triggers, MARKET, *map(topics.tools, roster.pools)}
    if "guardrail" in roles:
        needed |= {topics.audit, topics.limits}
    if "triggers" in roles:
        needed |= {topics.triggers, topics.dead_letters}
    return frozenset(needed | {topics.tools(role.removeprefix("tools.")) for role in roles if role.startswith("tools.")})


def _roles(crew: Crew, only: Collection[str] | None) -> list[str]:
    every = ["worker", "guardrail", *(f"tools.{pool}" for pool in crew.roster.pools)]
    if crew.triggers:
        every.append("triggers")
    if only is None:
        return every
    wanted: list[str] = []
    for name in only:
        fits = [role for role in every if role == name or (name == "tools" and role.startswith("tools."))]
        if not fits:
            raise UsageError(f"there is no role {name!r}; this crew has: {', '.join(every)} (tools: every pool)")
        wanted += fits
    return list(dict.fromkeys(wanted))
