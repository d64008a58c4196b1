"""Limits over windows and budgets for the day, in running crews: on the embedded log and on Kafka."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from crewline import events as ev
from crewline import tool
from crewline.client import Answer
from crewline.crews.running import Crew, Running, clock_ms
from crewline.errors import RunFailed
from crewline.guardrail import Approvals, LimitRule, PolicyRule, PolicySet
from crewline.guardrail.counters import Counter
from crewline.records import Scribe
from crewline.roster import Budgets, Price
from crewline.seal import load_keys, make_keys
from crewline_agents.base import Reply, StepRequest, Usage
from flow_bench import Bench, PlannedBrain, calls, say, until

PAID: dict[str, list[float]] = {}
ALLOW = PolicyRule("fine", ("pay",), action="allow", reason="a test")


@tool(effect="destructive", timeout="5s")
async def pay(purse: str, amount: float) -> str:
    """Pay.

    Args:
        purse: whose money it is.
        amount: how much.
    """
    PAID.setdefault(purse, []).append(amount)
    return "paid"


@pytest.fixture
def purse() -> str:
    """A purse, and crew name, of the test's own: topics stay on the broker."""
    return f"limits-{secrets.token_hex(4)}"


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.servers)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("kafka_address") if request.param == "kafka" else f"embedded:{tmp_path / 'log'}"


@asynccontextmanager
async def many(crew: Callable[[], Crew], count: int, bus: str, folder: Path) -> AsyncIterator[Sequence[Running]]:
    """Run `count` members of a crew, each as if in a process of its own: workers, guardrails, keepers, pools."""
    make_keys(folder / "keys")
    members = [crew().up(state=folder / f"member-{n}", bus=bus, store=f"sqlite:{folder / 'store'}", keys=folder / "keys")
               for n in range(count)]
    async with members[0]:
        if count == 1:
            yield members
            return
        async with members[1]:
            yield members


def spender(purse: str, amount: float) -> PlannedBrain:
    def report(request: StepRequest) -> Reply:
        return say(request.messages[-1].text)

    return PlannedBrain(calls(("pay", f'{{"purse": "{purse}", "amount": {amount}}}')), report)


def limited(*limits: LimitRule, approvals: Approvals | None = None) -> PolicySet:
    return PolicySet([ALLOW], limits=limits, approvals=approvals)


async def ask_all(members: Sequence[Running], count: int, user: str | None = None) -> list[Answer]:
    asking = [members[n % len(members)].ask("pay", conversation=f"c{n}", user=user, timeout=60) for n in range(count)]
    return await asyncio.gather(*asking)


async def test_conversations_on_many_partitions_never_pass_a_limit_together(
    bench: Bench, bus: str, tmp_path: Path, purse: str
) -> None:
    policies = limited(LimitRule("purse", ("pay",), 50.0, 3_600.0, key="args.purse", sum="args.amount", action="deny"))

    async with many(lambda: bench.crew({"desk": spender(purse, 5)}, [pay], policies=policies, name=purse), 2, bus, tmp_path) as members:
        await until(lambda: all(len(member.engines["limits"]._parts) in range(1, 12) for member in members), seconds=30)
        answers = await ask_all(members, 24)

    assert PAID[purse] == [5.0] * 10, "all of the limit, and no more"
    refused = [answer.text for answer in answers if answer.text != "paid"]
    assert len(refused) == 14
    assert all('"code":"limit.purse"' in text and "50 of 50 are used within 1 hour" in text for text in refused)


async def test_what_was_used_is_known_after_a_restart_without_store(
    bench: Bench, bus: str, tmp_path: Path, purse: str
) -> None:
    policies = limited(LimitRule("purse", ("pay",), 10.0, 3_600.0, sum="args.amount", action="deny"))

    def crew() -> Crew:
        return bench.crew({"desk": spender(purse, 5)}, [pay], policies=policies, name=purse)

    async with many(crew, 1, bus, tmp_path) as (first,):
        await first.ask("pay", timeout=30)
    for left in (tmp_path / "store").glob("*"):
        left.unlink()
    async with many(crew, 1, bus, tmp_path) as (second,):
        for _ in range(2):
            answer = await second.ask("pay", timeout=30)

    assert PAID[purse] == [5.0, 5.0]
    assert "10 of 10 are used" in answer.text


async def test_a_person_lets_a_call_pass_its_limit_and_it_counts(bench: Bench, purse: str) -> None:
    policies = limited(LimitRule("purse", ("pay",), 6.0, 3_600.0, sum="args.amount"), approvals=Approvals(("leads",)))
    crew = bench.crew({"desk": spender(purse, 5)}, [pay], policies=policies, name=purse)
    async with crew.up(state=bench.state) as running:
        await running.ask("pay", timeout=20)
        for conversation in ("two", "three"):
            asked = await running.client.publish("pay", agent="desk", conversation=conversation)
            await until(lambda: held(running))
            (call,) = await running.client.open_calls()
            assert call.call.verdict is not None
            (reason,) = call.call.verdict.reasons
            assert reason.code == "limit.purse"
            await running.approve(call.id, by="ann")
            assert (await asked.answer(20)).text == "paid"
            used = [reason.fix]
        assert used[0] is not None
        assert used[0]["left"] == 0, "what was approved counts"
    assert PAID[purse] == [5.0, 5.0, 5.0]


async def held(running: Running) -> bool:
    return len(await running.client.open_calls()) == 1


async def test_what_is_denied_or_does_not_run_is_given_back(bench: Bench, purse: str) -> None:
    """Held calls that a person denies take nothing: in the end all of the limit is there for others."""
    policies = PolicySet(
        [PolicyRule("large", ("pay",), when="args.amount > 5.0", action="require_approval", reason="A person decides."),
         PolicyRule("small", ("pay",), when="args.amount <= 5.0", action="allow", reason="Small.")],
        limits=[LimitRule("purse", ("pay",), 10.0, 3_600.0, sum="args.amount", action="deny")], approvals=Approvals(("leads",)),
    )
    brains = {"desk": spender(purse, 5), "big": spender(purse, 8)}
    crew = bench.crew(brains, [pay], policies=policies, name=purse)
    async with crew.up(state=bench.state) as running:
        asked = await running.client.publish("pay", agent="big", conversation="big")
        await until(lambda: held(running))
        (call,) = await running.client.open_calls()
        await running.deny(call.id, by="ann")
        await asked.answer(20)
        answers = [await running.ask("pay", agent="desk", conversation=f"c{n}", timeout=20) for n in range(3)]
        await until(lambda: settled(running))

    assert [answer.text == "paid" for answer in answers] == [True, True, False]
    assert PAID[purse] == [5.0, 5.0]


def settled(running: Running) -> bool:
    """Whether every counter knows what became of what it granted."""
    counters: list[Counter] = running.engines["limits"].states()
    return bool(counters) and not any(counter.open for counter in counters)


@pytest.mark.parametrize("seal_as", ["deployment", "pool/main"])
async def test_a_reservation_is_not_given_back_by_whoever_is_not_the_guardrail(bench: Bench, purse: str, seal_as: str) -> None:
    """A worker or a pool that writes `limit.settled`, or answers in the keeper's place, changes nothing."""
    policies = limited(LimitRule("purse", ("pay",), 5.0, 3_600.0, sum="args.amount", action="deny"))
    crew = bench.crew({"desk": spender(purse, 5)}, [pay], policies=policies, name=purse)
    async with crew.up(state=bench.state) as running:
        await running.ask("pay", conversation="first", timeout=20)
        (asked,) = [each async for each in asked_of(running)]
        scribe = Scribe(load_keys(running.state / "keys"), source=purse, now_ms=clock_ms, seal_as=seal_as)
        topics = running.roster.topics
        back = ev.LimitSettled(asked.reservation, False)
        room = ev.LimitAnswered("c9:t1:s1:c0:j1:purse:1", "purse", "purse", 1, True, "reserve", 5.0, 0.0, 5.0, "c9:t1:s1:c0", 1)
        await running.bus.append([
            scribe.message(topics.limits, "purse", back, id=f"{asked.reservation}:settled", run="c9"),
            scribe.message(topics.conversations, "c9", room, id=room.reservation, run="c9"),
        ])
        answer = await running.ask("pay", conversation="c9", timeout=20)
        assert running.engines["limits"].rejected == 1

    assert "5 of 5 are used" in answer.text
    assert PAID[purse] == [5.0]


async def test_no_counter_no_call(bench: Bench, tmp_path: Path, purse: str) -> None:
    """Without the counters' keeper nothing under a limit runs, and the model is told."""
    policies = limited(LimitRule("purse", ("pay",), 10.0, 3_600.0, action="deny"))
    crew = bench.crew({"desk": spender(purse, 5)}, [pay], policies=policies, name=purse, guard_s=0.5)
    async with crew.up(state=bench.state) as running:
        running.engines["limits"].stop()
        await running._tasks["limits"]
        answer = await running.ask("pay", timeout=20)
    assert "guard.unavailable" in answer.text
    assert purse not in PAID


# --- budgets for the day -----------------------------------------------------------------------


def priced(crew: Crew) -> Crew:
    from dataclasses import replace

    agents = {name: replace(agent, price=Price(1.0, 1.0)) for name, agent in crew.roster.agents.items()}
    return replace(crew, roster=replace(crew.roster, agents=agents))


async def test_a_crew_that_has_used_its_day_starts_nothing_more(bench: Bench, bus: str, tmp_path: Path, purse: str) -> None:
    """Each turn costs 1 USD: of 2 USD a day the third turn is stopped, and none of its calls runs."""
    brain = PlannedBrain(lambda _: Reply("done", usage=Usage(900_000, 100_000)))
    pays = spender(purse, 1)
    budgets = Budgets(day={"cost_usd": 2.0, "tool_calls": 50})

    def crew() -> Crew:
        return priced(bench.crew({"desk": brain, "payer": pays}, [pay], policies=PolicySet([ALLOW]), budgets=budgets, name=purse))

    async with many(crew, 1, bus, tmp_path) as (running,):
        for n in range(2):
            assert (await running.ask("go", conversation=f"c{n}", timeout=30)).text == "done"
            await until(lambda n=n: spent(running, "cost_usd") == n + 1)
        with pytest.raises(RunFailed, match=r"budget for the day \(cost_usd: 2 of 2 used\)"):
            await running.ask("go", agent="payer", conversation="c2", timeout=30)
    assert purse not in PAID


def spent(running: Running, what: str) -> float:
    counters: list[Counter] = running.engines["limits"].states()
    return sum(each.amount for counter in counters if counter.key == f"budgets.day.{what}" for each in counter.past)


async def test_delegated_turns_are_counted_once(bench: Bench, purse: str) -> None:
    desk = PlannedBrain(calls(("delegate", '{"capability": "work.do", "input": {}}')), say("done"))
    worker = PlannedBrain(say("worked"))
    crew = bench.crew({"desk": desk, "hand": worker}, delegates=["work.do"], capabilities={"hand": ["work.do"]},
                      budgets=Budgets(day={"tokens": 1_000, "wall_time": 600.0}), name=purse)
    async with crew.up(state=bench.state) as running:
        await running.ask("go", timeout=20)
        await until(lambda: spent(running, "tokens") > 0)
        assert spent(running, "tokens") == 45, "three steps of 15 tokens, the delegated one among them"
        records = [each async for each in asked_of(running)]
        assert sorted(event.limit for event in records) == ["budgets.day.tokens", "budgets.day.wall_time"]


async def asked_of(running: Running) -> AsyncIterator[ev.LimitAsked]:
    topic = running.roster.topics.limits
    begins, ends = await running.bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await running.bus.read(topic, partition, offset)
            for record in batch.records:
                event = ev.decode(record.headers, record.value).event
                if isinstance(event, ev.LimitAsked):
                    yield event
            offset = batch.next_offset


