"""A crew whose store is a Redis that is emptied, restarted, loses a key, freezes or goes away under it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from crewline import tool
from crewline.crews.running import Crew, Running
from crewline.engine import EngineOptions
from crewline.errors import StoreError
from crewline_memory import redis_link
from crewline_memory.redis_scripts import part_keys
from flow_bench import PAYMENTS_ARE_HELD, Bench, PlannedBrain, greets_then_pays, until
from redis.asyncio import Redis
from servers import RedisServer

paid: list[float] = []
# Every record is a reason to write, and next to nothing stays in memory: the store is asked all the time.
OPTIONS = EngineOptions(retry_s_min=0.01, retry_s_max=0.5, poll_s=0.1, snapshot_records=1, states_max=1)
DESKS = [f"c{n}" for n in range(6)]


@tool(effect="destructive", timeout="1s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return "paid"


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


@pytest.fixture
def brain() -> PlannedBrain:
    return greets_then_pays()


@pytest.fixture
def crew(bench: Bench, brain: PlannedBrain) -> Crew:
    return bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=OPTIONS)


@pytest.fixture
async def raw(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The same server for an administrator."""
    async with Redis.from_url(redis_server.url) as raw:
        yield raw


async def answer_first_turns(running: Running) -> None:
    for key in DESKS:
        assert (await running.ask("one", conversation=key, timeout=20)).text == "hello"


async def ask_to_pay(running: Running) -> None:
    for key in DESKS:
        await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two")

    async def held() -> bool:
        return len(await running.client.open_calls()) == len(DESKS)

    await until(held)


async def approve_all(running: Running) -> list[str]:
    """Return the answers, each of which names all that its conversation went through."""
    handles = [await running.client.publish("two", agent="desk", conversation=key, intent=f"{key}-two") for key in DESKS]
    for call in await running.client.open_calls():
        await running.approve(call.id, by="lead")
    return [(await handle.answer(20)).text for handle in handles]


def nothing_was_lost_or_done_twice(answers: list[str], brain: PlannedBrain) -> bool:
    assert answers == ["one | two | paid"] * len(DESKS), "each second turn knows its first"
    assert len(paid) == len(DESKS)
    assert len(brain.asked) == 3 * len(DESKS), "no reply was asked for again"
    return True


# --- harm ----------------------------------------------------------------------------------------


async def emptied(server: RedisServer, raw: Redis) -> None:
    await raw.flushall()


async def restarted(server: RedisServer, raw: Redis) -> None:
    server.stop()
    server.start()


async def one_conversation_lost(server: RedisServer, raw: Redis) -> None:
    gone = 0
    for role in ("worker", "guardrail"):
        for partition in range(12):
            gone += await raw.hdel(part_keys("demo", role, partition)[1], DESKS[0])
    assert gone == 2


async def open_ones_forgotten(server: RedisServer, raw: Redis) -> None:
    names = [name async for name in raw.scan_iter("crewline:*:open")]
    assert await raw.unlink(*names) == len(names) > 0


HARMS = [emptied, restarted, one_conversation_lost]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_crew_goes_on_while_its_store_is_harmed(
    bench: Bench, crew: Crew, brain: PlannedBrain, redis_server: RedisServer, raw: Redis,
    harm: Callable[[RedisServer, Redis], Awaitable[None]],
) -> None:
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await answer_first_turns(running)
        await harm(redis_server, raw)
        await ask_to_pay(running)
        await harm(redis_server, raw)
        answers = await approve_all(running)

    assert nothing_was_lost_or_done_twice(answers, brain)
    assert not list(bench.state.glob("store.db*"))


@pytest.mark.parametrize("harm", [*HARMS, open_ones_forgotten])
async def test_a_crew_begins_again_after_its_store_was_harmed(
    bench: Bench, crew: Crew, brain: PlannedBrain, redis_server: RedisServer, raw: Redis,
    harm: Callable[[RedisServer, Redis], Awaitable[None]],
) -> None:
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await answer_first_turns(running)
        await ask_to_pay(running)
    await harm(redis_server, raw)
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        answers = await approve_all(running)

    assert nothing_was_lost_or_done_twice(answers, brain)


async def test_a_crew_begins_where_its_store_says(
    bench: Bench, crew: Crew, brain: PlannedBrain, redis_server: RedisServer
) -> None:
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await answer_first_turns(running)
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await running.ready()
        assert running.engines["worker"].folded < len(DESKS), "the store had all but what came after its last write"


@pytest.mark.parametrize("frozen", [False, True])
async def test_turns_that_are_in_memory_go_on_without_the_store(
    bench: Bench, brain: PlannedBrain, redis_server: RedisServer, frozen: bool, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", 1.0)
    options = EngineOptions(retry_s_min=0.01, retry_s_max=0.5, poll_s=0.1, snapshot_records=1)
    crew = bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=options)
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await answer_first_turns(running)
        if frozen:
            redis_server.signal(signal.SIGSTOP)
        else:
            redis_server.kill()
        await ask_to_pay(running)
        answers = await approve_all(running)
        if frozen:
            redis_server.signal(signal.SIGCONT)
        else:
            redis_server.start()
        await until(lambda: "answers again" in caplog.text)

    assert nothing_was_lost_or_done_twice(answers, brain)
    told = [record.message for record in caplog.records if "Working on without it" in record.message]
    assert f"Redis at 127.0.0.1:{redis_server.port} {'did not answer' if frozen else 'cannot be reached'}" in "".join(told)


async def test_a_store_that_is_away_is_not_asked_again_at_every_record(
    bench: Bench, brain: PlannedBrain, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(retry_s_min=0.01, retry_s_max=0.5, poll_s=0.1, snapshot_records=1, snapshot_s=3_600.0)
    crew = bench.crew({"desk": brain}, [pay], policies=PAYMENTS_ARE_HELD, options=options)
    async with crew.up(state=bench.state, store=redis_server.url) as running:
        await answer_first_turns(running)
        redis_server.kill()
        await ask_to_pay(running)
        answers = await approve_all(running)
        told = Counter(record.message.partition(":")[0] for record in caplog.records if "no snapshot" in record.message)
        redis_server.start()

    assert nothing_was_lost_or_done_twice(answers, brain)
    assert told == {"worker": 1, "guardrail": 1, "tools.main": 1}, "until the next one is due"


async def test_a_crew_whose_store_is_not_there_does_not_start(bench: Bench, crew: Crew, redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{redis_server.port} cannot be reached") as told:
        async with crew.up(state=bench.state, store=redis_server.url):
            pass
    assert told.value.exit_code == 4, "as of a log that is not there: whoever supervises the process starts it again"
