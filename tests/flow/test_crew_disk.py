"""A running crew whose disk fails it: a clear error with file and remedy, the process alive, nothing accepted lost.

What the log and the store do by themselves: tests/faults/test_sqlite_*_faults.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crewline import tool
from crewline.crews.running import Running
from crewline.engine import EngineOptions
from crewline.errors import LogDamaged
from crewline_agents.base import Reply, StepRequest
from flow_bench import Bench, PlannedBrain, calls, say, until

OPTIONS = EngineOptions(retry_s_min=0.01, retry_s_max=0.1, poll_s=0.1, snapshot_records=1)
PAGES_MAX = 1 << 30
paid: list[float] = []


@tool(effect="destructive", timeout="5s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return "paid"


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


async def leave_room(running: Running, pages: int | None) -> None:
    """Let the log grow by `pages` at most; None: without a bound."""
    bus: Any = running.bus
    most = PAGES_MAX if pages is None else await bus.change(lambda connection: connection.pragma("page_count")) + pages
    await bus.change(lambda connection: connection.pragma("max_page_count", most))


def alive(running: Running) -> bool:
    return not any(task.done() for task in running._tasks.values())


async def test_a_full_disk_stops_the_crew_and_room_lets_it_go_on_by_itself(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def think(request: StepRequest) -> Reply:
        await go_on.wait()
        return calls(("pay", '{"amount": 60}'))

    brain = PlannedBrain(think, say("done " + "x" * 60_000))
    async with bench.crew({"desk": brain}, [pay], options=OPTIONS).up(state=bench.state) as running:
        handles = [await running.client.publish("pay", agent="desk", intent=f"i-{n}") for n in range(5)]
        await until(lambda: len(brain.asked) == 5)
        await leave_room(running, 12)
        go_on.set()
        await until(lambda: "log.db: disk is full; free space" in caplog.text)
        assert alive(running)

        await leave_room(running, None)
        answers = [await handle.answer(30) for handle in handles]

    assert {answer.text[:5] for answer in answers} == {"done "}
    assert paid == [60] * 5, "each once, whatever could not be written in between"
    assert len({request.id for request in brain.asked}) == len(brain.asked) == 10, "what was paid for was kept and written"


async def test_a_full_disk_under_the_store_costs_snapshots_and_nothing_else(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    brain = PlannedBrain(say("x" * 20_000))
    crew = bench.crew({"desk": brain}, options=OPTIONS)
    async with crew.up(state=bench.state) as running:
        await running.ask("one", conversation="c1", timeout=20)
        store: Any = running.engines["worker"]._store
        await store._run(lambda connection: connection.pragma("max_page_count", connection.pragma("page_count")))
        for _ in range(5):
            await running.ask("more", conversation="c1", timeout=20)
        assert alive(running)
    assert "store.db: disk is full; free space" in caplog.text
    async with crew.up(state=bench.state) as running:
        last = await running.ask("and again", conversation="c1", timeout=20)

    assert last.turn == 7
    assert len(brain.asked) == 7


async def test_a_damaged_log_is_refused_with_the_remedy(bench: Bench) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("x" * 20_000))}, options=OPTIONS)
    async with crew.up(state=bench.state) as running:
        for n in range(5):
            await running.ask("go", conversation=f"c{n}", timeout=20)
    path = bench.state / "log.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4_096] + b"\xa5" * (len(whole) - 4_096))

    with pytest.raises(LogDamaged, match=r"log\.db is damaged .*restore a backup or save what can be read"):
        async with crew.up(state=bench.state):
            pass


async def test_a_damaged_page_is_said_and_the_process_lives_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    brain = PlannedBrain(say("needle " + "n" * 20_000))
    crew = bench.crew({"desk": brain}, options=EngineOptions(poll_s=0.1))
    async with crew.up(state=bench.state) as running:
        await running.ask("go", timeout=20)
    path = bench.state / "log.db"
    raw = bytearray(path.read_bytes())
    page = raw.index(b"needle nnn") // 4_096 * 4_096
    raw[page : page + 512] = b"\xa5" * 512
    path.write_bytes(raw)
    for file in bench.state.glob("store.db*"):
        file.unlink()  # so that the log must be read

    async with crew.up(state=bench.state) as running:
        await until(lambda: "log.db is damaged" in caplog.text)
        assert alive(running)
    assert "restore a backup or save what can be read with `sqlite3 log.db .recover`" in caplog.text
    assert len(brain.asked) == 1
