"""A new version of the crew takes up what the old one left: tools moved or gone, agents gone, other limits, newer records."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from crewline import RunFailed, events, tool
from crewline.bus.base import Message
from crewline.conversation import describe, folding
from crewline.crews.running import Crew, Running
from crewline.engine import EngineOptions
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.records import WRITERS, Scribe
from crewline.roster import Agent, Roster
from crewline.seal import DEPLOYMENT, load_keys
from crewline.topics import partition_of
from crewline_tools.registry import ToolOptions, ToolRegistry
from flow_bench import Bench, PlannedBrain, calls, say, until

paid: list[float] = []
OPTIONS = EngineOptions(retry_s_min=0.01, poll_s=0.2)
PAY = calls(("pay", '{"amount": 60}'))


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


@tool(effect="destructive", timeout="1s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return "paid"


@tool(effect="read", timeout="5s")
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order}: one lamp"


def last_said() -> PlannedBrain:
    """Pays; pays once more if the tool has changed; then says what it was told."""
    return PlannedBrain(
        PAY,
        lambda request: PAY if "tool.changed" in request.messages[-1].text else say(request.messages[-1].text),
        lambda request: say(request.messages[-1].text),
    )


def crew_of(
    brain: PlannedBrain, tools: dict[str, str], *, hold: bool = False, agent: str = "desk", max_steps: int = 10
) -> Crew:
    """Return a crew of one agent; `tools` names its tools and each one's pool. `hold`: a person approves payments."""
    registry = ToolRegistry()
    for name, pool in tools.items():
        registry.load(f"{__name__}:{name}", ToolOptions(pool=pool))
    agents = {agent: Agent(agent, brain, tools=tuple(registry), max_steps=max_steps)}
    rules = [PolicyRule("fine", tools=tuple(registry), action="allow", reason="a test")]
    if hold:
        rules.insert(0, PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person"))
    policies = PolicySet(rules, approvals=Approvals(("leads",), 3600.0))
    return Crew(Roster("demo", "1", agents, registry.specs()), registry, policies, options=OPTIONS)


async def held_under(crew: Crew, bench: Bench) -> None:
    """Leave a conversation whose payment waits for a person."""
    async with crew.up(state=bench.state) as running:
        await running.client.publish("pay", agent="desk", intent="i-1")
        await until(running.client.open_calls)


async def approve_one(running: Running) -> None:
    await running.approve((await until(running.client.open_calls))[0].id, by="lead")


async def records_in(running: Running, pool: str) -> int:
    """Return how many records the pool's topic has (0 if there is none)."""
    topic = running.roster.topics.tools(pool)
    return sum((await running.bus.offsets(topic))[1].values())


async def test_a_tool_that_has_moved_to_another_pool_is_judged_anew_and_runs_there(bench: Bench) -> None:
    await held_under(crew_of(last_said(), {"pay": "main"}, hold=True), bench)
    async with crew_of(last_said(), {"pay": "vault"}).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await approve_one(running)
        answer = await handle.answer(20)
        assert await records_in(running, "main") == 0

    assert answer.text == "paid"
    assert paid == [60]


async def test_a_call_already_requested_never_moves_to_another_pool(bench: Bench) -> None:
    old = crew_of(last_said(), {"pay": "main"})
    async with old.up(state=bench.state, only=["worker", "guardrail"]) as running:
        await running.client.publish("pay", agent="desk", intent="i-1")
        await until(lambda: records_in(running, "main"))
    async with crew_of(last_said(), {"pay": "vault"}).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        other = await running.ask("pay", conversation="other", timeout=20)
        state = (await running.client.projection()).states["i-1"]
        assert (other.text, paid) == ("paid", [60]), "the new conversation's payment alone"
        assert describe(state) == "the result of pay", "what the old one waits for is plain to see"

        async with old.up(state=bench.state, only=["tools"]):
            answer = await handle.answer(20)

    assert answer.text == "paid"
    assert paid == [60, 60]


async def test_a_held_call_whose_tool_is_gone_does_not_run_and_the_agent_is_told(bench: Bench) -> None:
    await held_under(crew_of(last_said(), {"pay": "main"}, hold=True), bench)
    async with crew_of(last_said(), {"look_up": "main"}).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await approve_one(running)
        answer = await handle.answer(20)

    assert "tool.unknown" in answer.text
    assert paid == []


async def test_a_requested_call_whose_tool_is_gone_from_its_pool_is_refused(bench: Bench) -> None:
    async with crew_of(last_said(), {"pay": "main"}).up(state=bench.state, only=["worker", "guardrail"]) as running:
        await running.client.publish("pay", agent="desk", intent="i-1")
        await until(lambda: records_in(running, "main"))
    async with crew_of(last_said(), {"look_up": "main"}).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        answer = await handle.answer(20)

    assert "tool.unknown" in answer.text
    assert paid == []


async def test_a_turn_whose_agent_is_gone_fails_and_says_so(bench: Bench) -> None:
    await held_under(crew_of(last_said(), {"pay": "main"}, hold=True), bench)
    async with crew_of(last_said(), {"pay": "main"}, agent="other").up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await approve_one(running)
        with pytest.raises(RunFailed, match="'desk' is not in crew demo") as failure:
            await handle.answer(20)
        fine = await running.ask("pay", agent="other", timeout=20)

    assert failure.value.reason_code == "crew.changed"
    assert (fine.text, paid) == ("paid", [60])


async def test_a_turn_ends_under_the_limits_it_was_started_with(bench: Bench) -> None:
    tools = {"pay": "main", "look_up": "main"}
    plan = (PAY, calls(("look_up", '{"order": "A-1"}')), say("three steps"))
    await held_under(crew_of(PlannedBrain(*plan), tools, hold=True, max_steps=3), bench)
    async with crew_of(PlannedBrain(*plan), tools, hold=True, max_steps=1).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await approve_one(running)
        old = await handle.answer(20)
        handle = await running.client.publish("pay", agent="desk")
        await approve_one(running)
        with pytest.raises(RunFailed) as failure:
            await handle.answer(20)

    assert old.text == "three steps"
    assert failure.value.reason_code == "steps.exceeded", "a new turn has the new limits"


# --- records of a newer version ----------------------------------------------------------------


class TurnPaused(events.Event, frozen=True):
    """An event that a later version of crewline knows."""

    TYPE = "turn.paused"
    why: str = ""


def scribe_of(running: Running) -> Scribe:
    return Scribe(load_keys(running.state / "keys"), source="demo", now_ms=lambda: 0)


def newer_type(running: Running, patch: pytest.MonkeyPatch) -> Message:
    """Return a record of a type that this version does not know."""
    with patch.context() as newer:
        know_pauses(newer)
        return scribe_of(running).message(running.roster.topics.conversations, "c1", TurnPaused("lunch"), id="p-1", run="r")


def know_pauses(patch: pytest.MonkeyPatch) -> None:
    """Make this process one of the version that knows it."""
    patch.setitem(events._DECODERS, TurnPaused.TYPE, msgspec.json.Decoder(TurnPaused))  # type: ignore[arg-type]
    patch.setitem(events._TYPE_HEADERS, TurnPaused.TYPE, ("ce_type", TurnPaused.TYPE.encode()))
    patch.setitem(WRITERS, TurnPaused.TYPE, frozenset({DEPLOYMENT}))


def newer_fold(running: Running, patch: pytest.MonkeyPatch) -> Message:
    """Return a turn's start that needs the next version of the fold."""
    started = events.TurnStarted(2, "i-2", "desk", "2", folding.FOLD_VERSION + 1, events.Limits(10, 4, 50, deadline_ms=2**52))
    return scribe_of(running).message(running.roster.topics.conversations, "c1", started, id="c1:t2", run="i-2")


def fold_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(folding, "FOLD_VERSION", folding.FOLD_VERSION + 1)


@pytest.mark.parametrize(("record", "upgrade"), [(newer_type, know_pauses), (newer_fold, fold_more)])
@pytest.mark.parametrize("restarts", [0, 1])
async def test_a_record_of_a_newer_version_freezes_one_conversation_until_that_version_takes_it_up(
    bench: Bench, record: Callable[[Running, pytest.MonkeyPatch], Message], upgrade: Callable[[pytest.MonkeyPatch], None],
    restarts: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    brain = PlannedBrain(lambda request: say(f"{request.conversation} {request.turn}"))
    crew = bench.crew({"desk": brain})
    async with crew.up(state=bench.state) as running:
        await running.ask("one", conversation="c1", timeout=20)
        topic = running.roster.topics.conversations
        scribe = scribe_of(running)
        intent = scribe.message(topic, "c1", events.IntentPublished("two", agent="desk"), id="i-2", run="i-2")
        newer = record(running, monkeypatch)
        await running.bus.append([intent, newer] if record is newer_fold else [newer, intent])
        other = await running.ask("hello", conversation="c2", timeout=20)
        same = await running.ask("hello", conversation=_same_partition("c1"), timeout=20)
    for _ in range(restarts):
        async with crew.up(state=bench.state) as running:
            await running.ready()
            await running.ask("hello", conversation=_same_partition("c1"), timeout=20)
    frozen = len([request for request in brain.asked if request.conversation == "c1"])

    upgrade(monkeypatch)
    async with crew.up(state=bench.state) as running:
        handle = await running.client.publish("two", agent="desk", conversation="c1", intent="i-2")
        answer = await handle.answer(20)

    assert (other.text, same.text[-1]) == ("c2 1", "1"), "the others went on"
    assert frozen == 1, "the old version asked nothing after what it could not read"
    assert answer.text == "c1 2"


def _same_partition(key: str) -> str:
    wanted = partition_of(key.encode(), 12)
    return next(other for n in range(1_000) if partition_of((other := f"n{n}").encode(), 12) == wanted)
