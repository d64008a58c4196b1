"""A whole deployment in one thread: processes, a broker, a store, people, time; and everything that goes wrong.

    again: Simulation(seed).run()      the same schedule, step by step

Each seed picks its own kinds of trouble (swarm testing: a schedule with few kinds goes deeper into each).
First trouble, then a time without any in which everything must come to its end; then the checks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from crew import CREW, PAUSES_S, latency_s, policies_of, roster_of, tools_of
from crewline import events as ev
from crewline.bus.base import Message, Record
from crewline.conversation import Call, Conversation, sha256_of
from crewline.engine import Engine, EngineOptions
from crewline.events import header
from crewline.guardrail.audit import AuditTrail, head_after
from crewline.guardrail.keeper import LimitKeeper
from crewline.guardrail.service import Guardrail
from crewline.records import Entry, Reader, Scribe
from crewline.seal import Keyring
from crewline.worker import Choice, Worker
from crewline_agents.base import StepRequest
from crewline_tools.pool import PoolOptions, ToolPool
from observer import Observer, Start
from sim_bus import Broker, BusFaults, SimBus
from sim_store import SimStore, StoreFaults, StoreServer
from virtual_loop import PROCESS, Gone, Process, Stuck, VirtualLoop

PARTITIONS = 2
KEYS = ("c1", "c2", "c3")
SESSION_S = 10.0
QUIET_S = 45.0  # longer than any pause between two attempts
END_S = 7_200.0
STEPS_MAX = 60_000
RECORDS_MAX = 3_000
ROLES = ("worker", "guardrail", "pool", "limits")
CALLS = ("look", "look", "note", "pay", "pay", "pay 250", "pay 2000", "slow", "boom", "move", "decline", "handoff",
         "delegate look 1", "delegate look 1,pay 7", "delegate pay 150")
TROUBLE = ("crash", "pause", "restart", "rebalance", "store", "clock", "network", "forgery", "cancel", "repeat")


def _keyring() -> Keyring:
    from crewline.seal import key_id
    from nacl.signing import SigningKey

    seeds = {"guard": b"g" * 32, "people": b"p" * 32}
    public = {}
    for who, seed in seeds.items():
        half = bytes(SigningKey(seed).verify_key)
        public[f"{who}-{key_id(half)}"] = half
    return Keyring(deployment=b"d" * 32, public=public, guard=seeds["guard"], people=seeds["people"])


KEYRING = _keyring()


class CachedReader(Reader):
    """Checks each record once: what comes of it depends on nothing but the record and the keys."""

    def __init__(self, keyring: Keyring, known: dict[tuple[str, int, int], Entry | Exception]) -> None:
        super().__init__(keyring, partitions=PARTITIONS)
        self._known = known

    def read(self, record: Record) -> Entry:
        where = record[:3]
        found = self._known.get(where)
        if found is None:
            try:
                found = super().read(record)
            except Exception as error:
                found = error
            self._known[where] = found
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found


@dataclass
class Machine:
    """One process with its engines."""

    process: Process
    bus: SimBus
    roles: tuple[str, ...]
    engines: list[Engine[Any]] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    pool: ToolPool | None = None


@dataclass
class Result:
    """What a schedule came to. `wrong` is empty, or says what does not hold."""

    seed: int
    wrong: list[str]
    records: int
    steps: int
    virtual_s: float


class Market:
    """The crew asks itself; for a while it may not know of any offer."""

    def __init__(self, world: Simulation) -> None:
        self._world = world

    def choose(self, capability: str, *, conversation: str, input: Any) -> Choice | ev.Reason:
        if self._world.loop.time() < self._world.market_from_s:
            return ev.Reason("market.nobody", "Nobody offers it.")
        return Choice(CREW, "clerk", f"{CREW}.conversations", ())


class Simulation:
    """One schedule, made from its seed. `trouble` chooses the kinds (see `TROUBLE`) in its place."""

    def __init__(self, seed: int, *, trouble: Collection[str] | None = None) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._callback_failed)
        drawn = {kind for kind in TROUBLE if rng.random() < 0.5}
        self.trouble = drawn if trouble is None else set(trouble)
        self.until_s = rng.choice([15.0, 40.0, 120.0])
        self.market_from_s = rng.choice([0.0, 0.0, 20.0])
        self.broker = Broker(self.loop, rng, self._bus_faults())
        self.store = StoreServer(self.loop, rng, StoreFaults(on="store" in self.trouble))
        # Limits cost records: half of the schedules have one, some a budget for the day.
        limited, day = rng.random() < 0.5, rng.random() < 0.2
        self.roster = roster_of(self, wall_s=rng.choice([60.0, 600.0]), guard_s=rng.choice([5.0, 30.0]), day=day)
        self.policies = policies_of(approval_s=rng.choice([30.0, 900.0]), limited=limited)
        self.tools = tools_of(self)
        self.topics = self.roster.topics
        for spec in self.topics.specs(self.roster.pools, partitions=PARTITIONS):
            self.broker.create(spec)
        self._entries: dict[tuple[str, int, int], Entry | Exception] = {}
        self._pool_entries: dict[tuple[str, int, int], Entry | Exception] = {}
        self.pool_keys = KEYRING.for_pool("main")
        self.observer = Observer(
            self.topics, CachedReader(KEYRING, self._entries), CachedReader(self.pool_keys, self._pool_entries),
            self._person_is_needed, limited=limited, day=day,
        )
        self.broker.observers += [self.observer, self._provoke]
        self.people = Scribe(KEYRING, source=CREW, now_ms=lambda: self.broker.now_ms)
        self.machines: list[Machine] = []
        self.asked: set[str] = set()
        self.booted = 0
        self.ids = 0
        self.trouble_over = False
        self._quiet_since = 0.0
        self._seen = -1
        self.options = EngineOptions(
            slots=rng.choice([1, 3, 64]), snapshot_records=rng.choice([2, 8, 1_000]), snapshot_s=rng.choice([0.5, 5.0]),
            states_max=rng.choice([0, 1, 2_000]), poll_s=600.0, records_max=rng.choice([1, 3, 500]),
            retry_s_min=0.05, retry_s_max=10.0,
        )

    def _bus_faults(self) -> BusFaults:
        rng = self.rng
        faults = BusFaults(on="network" in self.trouble, blind="rebalance" in self.trouble)
        for name in ("refused", "ack_lost", "twice", "partly", "late", "slow", "read_fails"):
            if rng.random() < 0.5:
                setattr(faults, name, 0.0)
        return faults

    # --- one schedule --------------------------------------------------------------------------

    def run(self) -> Result:
        with _quiet(), _chance(self.rng):
            self._begin()
            try:
                self.loop.run_forever()
            except Stuck:
                self._say("nothing will ever happen again")
            if not self.observer.wrong:
                self._check()
            records, steps, now = self.observer.records, self.loop.steps, self.loop.time()
            self.loop.clear_away()
        return Result(self.seed, self.observer.wrong, records, steps, now)

    def _begin(self) -> None:
        rng = self.rng
        count = rng.choice([2, 3] if "rebalance" in self.trouble else [1, 2, 2, 3])
        for _ in range(count):
            self.boot(tuple(role for role in ROLES if count == 1 or rng.random() < 0.8))
        self._complete()
        for key in KEYS[: rng.choice([1, 2, 3])]:
            for _ in range(rng.choice([1, 1, 2, 3])):
                self.loop.at(rng.uniform(0, self.until_s / 2), self._ask, key)
        for kind in sorted(self.trouble):
            act = getattr(self, f"_{kind}", None)
            if act is not None:
                for _ in range(rng.choice([1, 2, 4])):
                    self.loop.at(rng.uniform(0.0, self.until_s), act)
        if self.market_from_s:
            self.loop.at(self.market_from_s, self._market_opens)
        self.loop.at(self.until_s, self._heal)

    def boot(self, roles: tuple[str, ...]) -> Machine:
        """Start a process that runs `roles`."""
        self.booted += 1
        process = Process(f"p{self.booted}", self.loop)
        if "clock" in self.trouble:
            process.skew_ms = self.rng.choice([0, 0, -300_000, 300_000, 20_000, -50_000])
        machine = Machine(process, SimBus(self.broker, process), roles)
        self.machines.append(machine)
        for role in roles:
            process.call(self._start_engine, machine, role)
        return machine

    def _start_engine(self, machine: Machine, name: str) -> None:
        process, bus = machine.process, machine.bus

        def clock_ms() -> int:
            return self.broker.now_ms + process.skew_ms

        keys = self.pool_keys if name == "pool" else KEYRING
        scribe = Scribe(keys, source=CREW, now_ms=clock_ms, seal_as="pool/main" if name == "pool" else "deployment")
        role: Any
        if name == "worker":
            role = Worker(self.roster, scribe=scribe, bus=bus, market=Market(self), clock_ms=clock_ms)
        elif name == "guardrail":
            audit = AuditTrail(scribe, clock_ms=clock_ms)
            role = Guardrail(self.roster, policies=self.policies, scribe=scribe, clock_ms=clock_ms, audit=audit)
        elif name == "limits":
            role = LimitKeeper(self.topics, scribe=scribe)
        else:
            role = machine.pool = ToolPool(
                "main", self.tools, topics=self.topics, scribe=scribe, keyring=keys, bus=bus, clock_ms=clock_ms,
                options=PoolOptions(slots=self.options.slots), uptime_s=self.loop.time,
            )
        if name == "worker":
            role.act = self._checked(machine, role.act)
        reader = CachedReader(keys, self._pool_entries if name == "pool" else self._entries)
        engine = Engine(role, bus=bus, store=SimStore(self.store, process), reader=reader, group=f"{CREW}.{name}",
                        clock_ms=clock_ms, options=self.options, member=process.name)
        machine.engines.append(engine)
        task = machine.tasks[name] = process.spawn(engine.run())
        task.add_done_callback(lambda task: self._engine_ended(machine, engine, task))

    def _engine_ended(self, machine: Machine, engine: Engine[Any], task: Any) -> None:
        if self.loop.clearing or not machine.process.alive or engine._stopping.is_set():
            return
        self._say(f"{machine.process.name}'s {engine.role.name} ended: {task.exception()!r}")

    def _callback_failed(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self.loop.clearing and "callback" in context.get("message", "") and not isinstance(error, Gone):
            self._say(f"a callback raised {error!r}: {context['message']}")

    def _complete(self) -> None:
        """See to it that each role is run by some process."""
        running = {role for machine in self.machines if machine.process.alive for role in machine.roles}
        missing = tuple(role for role in ROLES if role not in running)
        if missing:
            self.boot(missing)

    def _say(self, wrong: str) -> None:
        self.observer.wrong.append(wrong)
        self.loop.stop()

    def _heal(self) -> None:
        """No more trouble: from here on everything must come to its end by itself."""
        self.trouble_over = True
        self.broker.faults.on = self.broker.faults.blind = False
        self.store.faults.on = False
        for machine in self.machines:
            machine.process.fuse = None
            machine.process.resume()
        self.broker.wake_all()
        self._complete()
        self.loop.at(5.0, self._is_it_over)

    def _is_it_over(self) -> None:
        now = self.loop.time()
        if self.observer.records != self._seen:
            self._seen, self._quiet_since = self.observer.records, now
        if self.observer.wrong or (self.observer.idle() and now - self._quiet_since > QUIET_S):
            self.loop.stop()
        elif now > self.until_s + END_S:
            open_ones = [state for state in self.observer.conversations.values() if state.turn or state.queue]
            self._say(f"not finished after {END_S:g} s: {open_ones}; pool: {self.observer.pool_states}")
        elif self.observer.records > RECORDS_MAX or self.loop.steps > STEPS_MAX:
            self._say(f"endless: {self.observer.records} records, {self.loop.steps} steps")
        else:
            self.loop.at(5.0, self._is_it_over)

    # --- checks --------------------------------------------------------------------------------

    def _check(self) -> None:
        observer = self.observer
        observer.check_answers()
        observer.check_tools()
        observer.check_limits()
        heads = [b""] * PARTITIONS
        for partition, log in enumerate(self.broker.logs[self.topics.conversations]):
            for record in log:
                heads[partition] = head_after(heads[partition], record)
        owned: dict[tuple[str, int], int] = {}
        for machine in self.machines:
            if not machine.process.alive:
                continue
            for engine in machine.engines:
                self._check_engine(machine, engine, heads, owned)
        for role in ("worker", "guardrail", "tools.main", "limits"):
            for partition in range(PARTITIONS):
                if owned.get((role, partition)) != 1:
                    observer.wrong.append(f"{role} partition {partition} has {owned.get((role, partition), 0)} owners")
        for (role, partition), stored in self.store.parts.items():
            if stored.mark is None or not stored.whole():
                continue
            states = [(key, snapshot.state[2:]) for key, snapshot in stored.snapshots.items() if snapshot.frozen_at is None]
            observer.check_states(f"the store for {role} partition {partition} at {stored.mark.next_offset}", partition, states,
                                  role=role, below=stored.mark.next_offset)

    def _check_engine(
        self, machine: Machine, engine: Engine[Any], heads: list[bytes], owned: dict[tuple[str, int], int]
    ) -> None:
        role = engine.role
        for partition, part in engine._parts.items():
            where = (role.name, partition)
            owned[where] = owned.get(where, 0) + 1
            end = len(self.broker.logs[role.topic][partition])
            who = f"{machine.process.name}'s {role.name} partition {partition}"
            if part.next_offset != end:
                self.observer.wrong.append(f"{who} is at {part.next_offset} of {end}")
            states = [(key, role.view.encode(held.state)) for key, held in part.keys.items()]
            self.observer.check_states(who, partition, states, role=role.name)
            if role.name == "guardrail" and part.carry != heads[partition]:
                self.observer.wrong.append(f"{who} has another audit chain")
        if engine._slots != engine._options.slots:
            self.observer.wrong.append(f"{machine.process.name}'s {role.name} lost {engine._options.slots - engine._slots} slots")

    # --- the outside world ---------------------------------------------------------------------

    def _checked(self, machine: Machine, act: Callable[..., Any]) -> Callable[..., Any]:
        """Look on when the worker begins an effect: what it does right after a batch, it must do knowing all of it."""

        def checked(effect: Any, state: Any) -> Any:
            if effect.kind == "think":
                step = effect.id.rpartition(":a")[0]
                engine = next(each for each in machine.engines if each.role.name == "worker")
                task = asyncio.current_task()
                in_line = task is not None and task is machine.tasks.get("worker") and not engine._stopping.is_set()
                self._check_step(machine, state.id, step, whole_batch=in_line)
            return act(effect, state)

        return checked

    def _check_step(self, machine: Machine, conversation: str, step: str, *, whole_batch: bool) -> None:
        offset = self.observer.replied.get(step)
        consumer = machine.bus.consumer_of(self.topics.conversations, f"{CREW}.worker")
        if offset is None or consumer is None:
            return
        partition = self.broker.partition(Message(self.topics.conversations, conversation.encode(), b""))
        folded = (consumer.position if whole_batch else consumer.settled).get(partition, 0)
        if partition in consumer.owned and offset < max(folded, consumer.assigned_end.get(partition, 0)):
            self._say(f"{machine.process.name} paid for step {step} again, whose reply it had read")

    async def pay_for_a_step(self, request: StepRequest) -> None:
        """A model is asked. A caught-up owner must not ask for what stands in the log already."""
        process = PROCESS.get()
        machine = next(machine for machine in self.machines if machine.process is process)
        self._check_step(machine, request.conversation, request.id, whole_batch=False)

    async def start_tool(self, tool: str, execution: str, call: str, text: str) -> float:
        process = PROCESS.get()
        partition = self.broker.partition(Message(self.topics.conversations, call.partition(":t")[0].encode(), b""))
        offset = len(self.broker.logs[self.topics.conversations][partition])
        name = process.name if process is not None else "?"
        self.observer.starts.append(Start(tool, execution, call, text, name, self.loop.time(), offset))
        return latency_s(tool, execution, most=PAUSES_S[tool])

    def happened(self, call: str) -> bool:
        return any(start.call == call for start in self.observer.starts)

    def _market_opens(self) -> None:
        for machine in self.machines:
            for engine in machine.engines:
                if engine.role.name == "worker":
                    machine.process.call(engine.reconsider)

    # --- people --------------------------------------------------------------------------------

    def _id(self, what: str) -> str:
        self.ids += 1
        return f"{what}{self.ids}"

    def _write(self, message: Message) -> None:
        self.broker.commit(message, None)

    def _ask(self, key: str) -> None:
        rng = self.rng
        steps = []
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            calls = [rng.choice(CALLS) for _ in range(rng.choice([1, 1, 2]))]
            steps.append("|".join(call if " " in call or call == "handoff" else f"{call} {rng.randint(1, 9)}" for call in calls))
        if rng.random() < 0.2:
            steps.insert(0, rng.choice(["fail", "break", "wait 15"]))
        intent = ev.IntentPublished(";".join(steps) or "wait 1", "desk", user="ann", origin=ev.Origin("user"))
        id = self._id("i")
        message = self.people.message(self.topics.conversations, key, intent, id=id, run=id)
        self._write(message)
        if "repeat" in self.trouble:
            for _ in range(rng.choice([0, 1, 2, 5])):
                self.loop.at(rng.expovariate(1 / 20.0), self._write, message)

    def _cancel(self, key: str | None = None) -> None:
        open_ones = [
            state for state in self.observer.conversations.values() if state.turn is not None and key in (None, state.id)
        ]
        if not open_ones:
            return
        state = self.rng.choice(open_ones)
        assert state.turn is not None
        queued = [each.id for each in state.queue]
        intent = self.rng.choice([None, state.turn.intent, *queued])
        event = ev.CancelRequested(None if intent else state.turn.number, intent, "ann")
        self._write(self.people.message(self.topics.conversations, state.id, event, id=self._id("x"), run=state.turn.run))

    def _person_is_needed(self, state: Conversation, call: Call) -> None:
        what = f"{call.judgement_id} {call.status}"
        if what in self.asked:
            return
        self.asked.add(what)
        decide = self._decide if call.status == "held" else self._resolve
        self.loop.at(self.rng.choice([0.5, 5.0, 40.0]), decide, state.id, call.id, self.rng.random())

    def _state(self, key: str) -> Conversation:
        raw = key.encode()
        return self.observer.conversations[self.broker.partition(Message(self.topics.conversations, raw, b"")), raw]

    def _now(self, key: str, id: str, status: str) -> Call | None:
        state = self._state(key)
        return next((call for call in state.turn.calls if call.id == id and call.status == status), None) if state.turn else None

    def _decide(self, key: str, id: str, mood: float) -> None:
        call = self._now(key, id, "held")
        if call is None or call.verdict is None or mood < 0.1:
            return  # nobody looks: the deadline decides
        state = self._state(key)
        assert state.turn is not None
        if mood < 0.3:
            self._sign(state, ev.ApprovalDecided(id, call.judgement, sha256_of('{"amount":999}'), "approve", "boss"))
            self._sign(state, ev.ApprovalDecided(id, call.judgement + 1, call.verdict.args_sha256, "approve", "boss"))
        sha256 = call.verdict.args_sha256
        if mood > 0.85:
            decided = ev.ApprovalDecided(id, call.judgement, sha256, "deny", "boss")
        elif mood > 0.7:
            decided = ev.ApprovalDecided(id, call.judgement, sha256, "edit", "boss", '{"amount":111}')
        else:
            decided = ev.ApprovalDecided(id, call.judgement, sha256, "approve", "boss")
        self._sign(state, decided)

    def _resolve(self, key: str, id: str, mood: float) -> None:
        call = self._now(key, id, "unknown")
        if call is None:
            return
        state = self._state(key)
        if self.happened(id):
            what = "ran" if mood < 0.8 else "give_up"
        else:  # and it cannot start any more: whoever claimed it has been too late for long
            what = "not_run" if mood < 0.8 else "give_up"
        self._sign(state, ev.CallResolved(id, call.execution, what, "boss", "I looked"))  # type: ignore[arg-type]

    def _sign(self, state: Conversation, event: ev.Event) -> None:
        run = state.turn.run if state.turn else state.id
        self._write(self.people.message(
            self.topics.conversations, state.id, event, id=self._id("d"), run=run, signed_by="people"
        ))

    # --- trouble -------------------------------------------------------------------------------

    def _victim(self) -> Machine | None:
        alive = [machine for machine in self.machines if machine.process.state == "running"]
        return self.rng.choice(alive) if alive and not self.trouble_over else None

    def _provoke(self, record: Record) -> None:
        """Have trouble come where it hurts: around claims, and while an unsafe call may be running."""
        rng = self.rng
        if self.trouble_over or rng.random() > 0.4:
            return
        kind = header(record.headers, "ce_type")
        if kind == "turn.started" and "cancel" in self.trouble and rng.random() < 0.3:
            self.loop.at(0.0, self._cancel, record.key.decode(errors="replace"))
        if record.topic != self.topics.tools("main"):
            return
        if "rebalance" in self.trouble and kind == "call.requested":
            group = self.broker.groups[record.topic, f"{CREW}.pool"]
            self.loop.at(rng.choice([0.0, 0.0, 0.005]), partial(self.broker.rebalance, group, moving=True))
        if kind == "call.requested" and "cancel" in self.trouble and rng.random() < 0.5:
            self.loop.at(rng.choice([0.0, 0.005, 0.02, 0.1]), self._cancel, record.key.decode(errors="replace"))
        machine = next((each for each in self.machines if each.process is self.broker.writers[record[:3]]), None)
        if kind in ("call.started", "call.done") and machine is not None and machine.process.state == "running":
            kinds = [each for each in ("crash", "pause") if each in self.trouble]
            if kind == "call.started" and {"pause", "rebalance"} <= self.trouble and rng.random() < 0.5:
                self._light(machine, self._miss_its_time)
            elif kinds and rng.random() < 0.7:
                self._light(machine, self._kill if rng.choice(kinds) == "crash" else self._freeze)

    def _light(self, machine: Machine, then: Callable[[Machine], None]) -> None:
        """Have `then` happen to a process some steps of its code from now."""
        machine.process.fuse = self.rng.choice([1, 2, 4, 8, 30, 200])
        machine.process.blown = lambda: then(machine)

    def _crash(self) -> None:
        if (machine := self._victim()) is not None:
            self._light(machine, self._kill)

    def _kill(self, machine: Machine) -> None:
        machine.process.kill()
        self.loop.at(self.rng.choice([0.0, SESSION_S]), self.broker.expel, machine.process)
        self.loop.at(self.rng.choice([0.0, 3.0, 30.0]), self.boot, machine.roles)

    def _pause(self) -> None:
        if (machine := self._victim()) is not None:
            self._light(machine, self._freeze)

    def _miss_its_time(self, machine: Machine) -> None:
        """It sleeps with a claim in its hands; another settles the call; it wakes and reads on as if it were the owner."""
        machine.process.pause()
        self.loop.at(25.0, machine.process.resume)
        self.broker.rebalance(self.broker.groups[self.topics.tools("main"), f"{CREW}.pool"], moving=True)
        for consumer in machine.bus.consumers:
            consumer.blind_until = self.loop.time() + 60.0
            self.loop.at(60.0, consumer.wake)

    def _freeze(self, machine: Machine) -> None:
        machine.process.pause()
        self.loop.at(self.rng.choice([0.5, 4.0, 20.0, 60.0]), machine.process.resume)
        if self.rng.random() < 0.6:
            self.loop.at(self.rng.choice([0.0, SESSION_S]), self.broker.expel, machine.process)

    def _restart(self) -> None:
        """A deploy: stop in good order, start anew."""
        machine = self._victim()
        if machine is None:
            return
        for engine in machine.engines:
            machine.process.call(engine.stop)
        self.loop.at(self.rng.choice([0.0, 5.0]), self.boot, machine.roles)
        self.loop.at(6.0, self._gone, machine)

    def _gone(self, machine: Machine) -> None:
        machine.process.kill()
        self.broker.expel(machine.process)

    def _rebalance(self) -> None:
        if not self.trouble_over:
            self.broker.rebalance(self.rng.choice(list(self.broker.groups.values())))

    def _store(self) -> None:
        if not self.trouble_over:
            self.rng.choice([self.store.lose_everything, self.store.go_back, self.store.evict])()

    def _clock(self) -> None:
        if (machine := self._victim()) is not None:
            machine.process.skew_ms = self.rng.choice([0, -300_000, 300_000, 30_000])

    def _forgery(self) -> None:
        rng = self.rng
        partition = rng.randrange(PARTITIONS)
        log = self.broker.logs[self.topics.conversations][partition]
        if not log:
            return
        record = rng.choice(log)
        headers = dict(record.headers)
        kind = rng.choice(["copy", "unsealed", "changed", "garbage", "pool", "type", "key", "place"])
        if kind == "unsealed" and b"intent" not in headers.get("ce_type", b""):
            headers.pop("seal", None)
        elif kind == "changed":
            record = record._replace(value=(record.value or b"") + b" ")
        elif kind == "garbage":
            headers = {"x": b"\xff"}
        elif kind == "key":
            record = record._replace(key=rng.choice([b"", b"\xff\xfe"]))
        elif kind == "place":
            record = record._replace(partition=PARTITIONS - 1 - record.partition)
        elif kind == "type":
            headers["ce_type"] = b"call.resolved"
        elif kind == "pool":
            entry = self._entries.get(record[:3])
            if isinstance(entry, Entry):
                keys = Scribe(KEYRING.for_pool("other"), source=CREW, now_ms=lambda: 0, seal_as="pool/other")
                forged = keys.message(record.topic, entry.key, entry.event, id=entry.id, run=entry.run)
                self._write(forged)
            return
        self._write(Message(record.topic, record.key, record.value, tuple(headers.items()), record.partition))

    # --- reading -------------------------------------------------------------------------------

    def trace(self) -> Iterator[str]:
        """Yield the log in the order of time, for a person."""
        records = [record for logs in self.broker.logs.values() for log in logs for record in log]
        starts = {start.at_s: start for start in self.observer.starts}
        lines: list[tuple[int, int, str]] = []
        for number, record in enumerate(records):
            headers = dict(record.headers)
            writer = self.broker.writers[record[:3]]
            stands = "*" if record[1:3] in self.observer.standing and record.topic == self.topics.conversations else " "
            lines.append((record.timestamp_ms, number, (
                f"{(record.timestamp_ms - 1_700_000_000_000) / 1000:9.3f} {record.topic.partition('.')[2]:13} "
                f"{record.partition}@{record.offset:<4}{stands} {headers.get('ce_type', b'?').decode():18} "
                f"{headers.get('ce_id', b'?').decode():28} {writer.name if writer else '-':4} {(record.value or b'')[:150]!r}"
            )))
        for at_s, start in starts.items():
            at_ms = int(at_s * 1000) + 1_700_000_000_000
            lines.append((at_ms, 0, f"{at_s:9.3f} RUNS {start.execution} {start.tool} {start.text} in {start.process}"))
        yield f"trouble: {', '.join(sorted(self.trouble))}; {self.broker.faults}; {self.options}"
        for *_, line in sorted(lines):
            yield line


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _chance(rng: Random) -> Iterator[None]:
    """Nonces and tokens come from the seed as well."""
    real = secrets.token_hex
    secrets.token_hex = lambda nbytes=32: rng.randbytes(nbytes or 32).hex()
    try:
        yield
    finally:
        secrets.token_hex = real
