"""Clocks that are wrong by minutes, or jump: deadlines fire early or late, never twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from crewline import RunFailed, tool
from crewline import events as ev
from crewline.bus import sqlite
from crewline.crews import running as running_module
from crewline.crews.running import Crew, Running
from crewline.engine import Engine
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.roster import Budgets
from crewline_agents.base import Reply, StepRequest
from flow_bench import Bench, PlannedBrain, calls, say, until

paid: list[float] = []
FIVE_MINUTES_S = 300.0
PAY = calls(("pay", '{"amount": 60}'))
LARGE = [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")]


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


@tool(effect="destructive", timeout="1s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return "paid"


class Clock:
    """A wall clock that is wrong by `off_s`, which may change at any time."""

    def __init__(self, off_s: float = 0.0) -> None:
        self.off_s = off_s

    def ms(self) -> int:
        return int((time.time() + self.off_s) * 1000)


@asynccontextmanager
async def up(
    crew: Crew, bench: Bench, clocks: dict[str, Clock], patch: pytest.MonkeyPatch
) -> AsyncIterator[dict[str, Running]]:
    """Run each role by itself, with a clock of its own."""
    async with AsyncExitStack() as stack:
        roles = {}
        for role, clock in clocks.items():
            patch.setattr(running_module, "clock_ms", clock.ms)
            roles[role] = await stack.enter_async_context(crew.up(state=bench.state, only=[role]))
        yield roles


def told() -> PlannedBrain:
    return PlannedBrain(PAY, lambda request: say(request.messages[-1].text))


async def standing(running: Running) -> Counter[str]:
    """Return how often each event id stands in the log, deadlines among them."""
    found: Counter[str] = Counter()
    begins, ends = await running.bus.offsets(running.roster.topics.conversations)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await running.bus.read(running.roster.topics.conversations, partition, offset)
            found.update(ev.header(record.headers, "ce_id") or "" for record in batch.records)
            offset = batch.next_offset
    return found


@pytest.mark.parametrize("off", [
    {"worker": FIVE_MINUTES_S}, {"worker": -FIVE_MINUTES_S},
    {"guardrail": FIVE_MINUTES_S}, {"tools": -FIVE_MINUTES_S},
])
async def test_with_one_clock_wrong_by_five_minutes_a_call_still_runs_once(
    bench: Bench, off: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = {role: Clock(off.get(role, 0.0)) for role in ("worker", "guardrail", "tools")}
    crew = bench.crew({"desk": told()}, [pay], guard_s=400.0)
    async with up(crew, bench, clocks, monkeypatch) as roles:
        answer = await roles["worker"].ask("pay", timeout=20)

    assert answer.text == "paid"
    assert paid == [60]


@pytest.mark.parametrize("off", [{"guardrail": -FIVE_MINUTES_S}, {"tools": FIVE_MINUTES_S}])
async def test_verdicts_that_are_over_when_the_pool_sees_them_end_as_clock_skew_and_nothing_runs(
    bench: Bench, off: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = {role: Clock(off.get(role, 0.0)) for role in ("worker", "guardrail", "tools")}
    async with up(bench.crew({"desk": told()}, [pay]), bench, clocks, monkeypatch) as roles:
        answer = await roles["worker"].ask("pay", timeout=20)

    assert "clock.skew" in answer.text
    assert paid == []


async def test_a_worker_whose_clock_is_ahead_gives_up_on_nobody_before_the_logs_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes too early does not count: times in the log are the broker's."""
    clocks = {"worker": Clock(FIVE_MINUTES_S), "tools": Clock()}
    crew = bench.crew({"desk": told()}, [pay], guard_s=30.0)
    async with up(crew, bench, clocks, monkeypatch) as roles:
        handle = await roles["worker"].client.publish("pay", agent="desk", intent="c1")
        await until(lambda: _written(roles["worker"], "c1:t1:s1:c0:x1"))
        monkeypatch.setattr(running_module, "clock_ms", Clock().ms)
        async with crew.up(state=bench.state, only=["guardrail"]):
            answer = await handle.answer(20)

    assert answer.text == "paid"
    assert paid == [60]


async def _written(running: Running, id: str) -> bool:
    return (await standing(running))[id] > 0


# After a deadline in 200 s was set: what the clock says then, and whether that is past the deadline.
JUMPS = [
    [(FIVE_MINUTES_S, True)],  # early
    [(-FIVE_MINUTES_S, False), (201 - FIVE_MINUTES_S, False), (201, True)],  # set back, and late; then put right
    [(FIVE_MINUTES_S, True), (-FIVE_MINUTES_S, True), (FIVE_MINUTES_S, True)],  # to and fro
]


async def jump(clock: Clock, engine: Engine[Any], off_s: float) -> None:
    """Set the clock, and have the engine look at it, as it does by itself every 30 s."""
    clock.off_s = off_s
    engine._ring()
    await asyncio.gather(*engine._sends)


@pytest.mark.parametrize("jumps", JUMPS)
async def test_an_approvals_deadline_fires_once_however_the_clock_jumps(
    bench: Bench, jumps: list[tuple[float, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    policies = PolicySet(LARGE, approvals=Approvals(("leads",), 200.0))
    monkeypatch.setattr(running_module, "clock_ms", clock.ms)
    async with bench.crew({"desk": told()}, [pay], policies=policies).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="c1")
        await until(lambda: _armed(running, "guardrail", "approval_deadline"))
        for off_s, fires in jumps:
            await jump(clock, running.engines["guardrail"], off_s)
            assert bool(await running.client.open_calls()) is not fires
        answer = await handle.answer(20)
        ids = await standing(running)

    assert "approval.expired" in answer.text
    assert paid == []
    assert ids["c1:t1:s1:c0:j1:deadline"] == 1


@pytest.mark.parametrize("jumps", JUMPS)
async def test_a_turns_deadline_counts_once_however_the_hosts_clock_jumps(
    bench: Bench, jumps: list[tuple[float, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(running_module, "clock_ms", clock.ms)
    monkeypatch.setattr(sqlite, "open_bus", partial(sqlite.open_bus, clock_ms=clock.ms))  # the log's time, too
    brain = PlannedBrain(lambda request: _never())
    async with bench.crew({"desk": brain}, budgets=Budgets(wall_s=200.0)).up(state=bench.state) as running:
        handle = await running.client.publish("go", agent="desk", intent="c1")
        await until(lambda: brain.asked and _armed(running, "worker", "deadline"))
        for off_s, fires in jumps:
            await jump(clock, running.engines["worker"], off_s)
            assert ((await standing(running))["c1:t1:deadline"] > 0) is fires
        with pytest.raises(RunFailed) as failure:
            await handle.answer(20)
        ids = await standing(running)

    assert failure.value.reason_code == "deadline"
    assert (ids["c1:t1:end"], ids["c1:t1:deadline"], len(brain.asked)) == (1, 1, 1)


async def test_a_turns_deadline_that_comes_early_by_a_wrong_clock_does_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answer_now = Clock(), asyncio.Event()

    async def think(request: StepRequest) -> Reply:
        await answer_now.wait()
        return say("in time")

    monkeypatch.setattr(running_module, "clock_ms", clock.ms)
    brain = PlannedBrain(think)
    async with bench.crew({"desk": brain}, budgets=Budgets(wall_s=200.0)).up(state=bench.state) as running:
        handle = await running.client.publish("go", agent="desk", intent="c1")
        await until(lambda: brain.asked and _armed(running, "worker", "deadline"))
        await jump(clock, running.engines["worker"], FIVE_MINUTES_S)
        await until(lambda: _written(running, "c1:t1:deadline"))
        clock.off_s = 0.0
        answer_now.set()
        answer = await handle.answer(20)

    assert answer.text == "in time"
    assert len(brain.asked) == 1


def _armed(running: Running, role: str, kind: str) -> bool:
    return any(timer[-1].kind == kind for timer in running.engines[role]._timers)


async def _never() -> Reply:
    await asyncio.Event().wait()
    raise AssertionError
