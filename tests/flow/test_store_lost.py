"""A store that is lost, behind, damaged, lacks a key or belongs to another log: noticed, rebuilt, correct."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from crewline import tool
from crewline.conversation import Conversation
from crewline.crews.running import Running
from crewline.engine import EngineOptions
from flow_bench import PAYMENTS_ARE_HELD, Bench, greets_then_pays, until

paid: list[float] = []
OPTIONS = EngineOptions(retry_s_min=0.01, retry_s_max=0.5, poll_s=0.1, snapshot_records=1, states_max=1)
DESKS = 12


@tool(effect="destructive", timeout="1s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return "paid"


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


# --- what happens to the store between two lives of the crew -----------------------------------


def lost(state: Path) -> None:
    for file in state.glob("store.db*"):
        file.unlink()


def behind(state: Path) -> None:
    """It is an old copy: what it knew after the first turns."""
    lost(state)
    shutil.copy(state / "old-store.db", state / "store.db")


def evicted(state: Path) -> None:
    """One conversation's snapshot is gone, its mark is not."""
    with apsw.Connection(str(state / "store.db")) as connection:
        connection.execute("DELETE FROM snapshots WHERE key = cast('c1' AS BLOB) AND role != 'tools.main'")
        assert connection.changes() == 2


def damaged(state: Path) -> None:
    """Its pages hold rubbish."""
    path = state / "store.db"
    with apsw.Connection(str(path)) as connection:
        connection.pragma("wal_checkpoint(truncate)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def other_version(state: Path) -> None:
    """A version wrote it whose snapshots have another form."""
    with apsw.Connection(str(state / "store.db")) as connection:
        connection.execute("UPDATE snapshots SET state = cast(x'7fff' || substr(state, 3) AS BLOB)")


@pytest.mark.parametrize(("harm", "says"), [
    (lost, ""), (behind, ""), (evicted, "lacks"), (damaged, "is damaged"), (other_version, ""),
])
async def test_a_crew_goes_on_correctly_whatever_became_of_its_store(
    bench: Bench, harm: Callable[[Path], None], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    brain = greets_then_pays()
    crew = bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=OPTIONS)
    keys = [f"c{n}" for n in range(DESKS)]
    async with crew.up(state=bench.state) as running:
        for key in keys:
            await running.ask("one", conversation=key, timeout=20)
    with apsw.Connection(str(bench.state / "store.db")) as connection:
        connection.pragma("wal_checkpoint(truncate)")
    shutil.copy(bench.state / "store.db", bench.state / "old-store.db")
    async with crew.up(state=bench.state) as running:
        for key in keys:
            await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two")
        await until(lambda: _held(running))
        before = dict((await running.client.projection()).states)

    harm(bench.state)

    with caplog.at_level(logging.WARNING):
        async with crew.up(state=bench.state) as running:
            await running.ready()
            assert _states(running) == before
            handles = [await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two") for key in keys]
            for call in await running.client.open_calls():
                await running.approve(call.id, by="lead")
            answers = [(await handle.answer(20)).text for handle in handles]
    assert says in caplog.text
    assert answers == ["one | two | paid"] * DESKS
    assert len(paid) == DESKS
    assert len(brain.asked) == 3 * DESKS, "no reply was asked for again"


async def _held(running: Running) -> bool:
    return len(await running.client.open_calls()) == DESKS


def _states(running: Running) -> dict[str, Conversation]:
    """What the guardrail holds in memory: what waits for a person, up to the approval's deadline."""
    return {state.id: state for state in running.engines["guardrail"].states()}


async def test_a_store_lost_under_a_running_crew_is_written_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    brain = greets_then_pays()
    crew = bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=OPTIONS)
    keys = [f"c{n}" for n in range(DESKS)]
    async with crew.up(state=bench.state) as running:
        for key in keys:
            await running.ask("one", conversation=key, timeout=20)
        with apsw.Connection(str(bench.state / "store.db")) as connection:
            connection.execute("DELETE FROM marks; DELETE FROM snapshots")
        for key in keys:
            await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two")
        await until(lambda: _held(running))
    async with crew.up(state=bench.state) as running:
        handles = [await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two") for key in keys]
        for call in await running.client.open_calls():
            await running.approve(call.id, by="lead")
        answers = [(await handle.answer(20)).text for handle in handles]

    assert answers == ["one | two | paid"] * DESKS, "the second life saw the first turn of each conversation"
    assert len(brain.asked) == 3 * DESKS


async def test_an_old_store_beside_a_new_log_is_not_believed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    brain = greets_then_pays()
    crew = bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=OPTIONS)
    keys = [f"c{n}" for n in range(DESKS)]
    async with crew.up(state=bench.state) as running:
        for key in keys:
            await running.ask("one", conversation=key, timeout=20)
    for file in bench.state.glob("log.db*"):
        file.unlink()

    async with crew.up(state=bench.state) as running:
        answers = [(await running.ask("again", conversation=key, timeout=20)) for key in keys]

    assert "belongs to another log" in caplog.text
    assert {(answer.text, answer.turn) for answer in answers} == {("hello", 1)}, "its conversations are new ones"
