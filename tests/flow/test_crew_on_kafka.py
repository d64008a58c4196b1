"""The same crews on a real Kafka broker: whole, and each role apart."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from crewline import tool
from crewline.client import Client
from crewline.errors import UsageError
from crewline.guardrail import PolicyRule, PolicySet
from crewline.seal import make_keys, write_role_keys
from flow_bench import Bench, PlannedBrain, calls, say

PAID: dict[str, float] = {}
ALLOW = PolicySet([PolicyRule("fine", ("pay",), (), None, "allow", "a test")])


@tool(effect="destructive", timeout="5s")
def pay(to: str, amount: float) -> str:
    """Pay.

    Args:
        to: whom.
        amount: how much.
    """
    PAID[to] = PAID.get(to, 0.0) + amount
    return f"paid {to}"


@pytest.fixture
def name() -> str:
    """A crew name of the test's own: topics stay on the broker."""
    return f"c-{secrets.token_hex(4)}"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The deployment's keys: on Kafka they are not made by whoever starts first."""
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


def payer(to: str) -> PlannedBrain:
    return PlannedBrain(calls(("pay", f'{{"to": "{to}", "amount": 3}}')), say(f"{to} has it"))


async def test_a_crew_pays_and_answers_on_kafka(bench: Bench, kafka_address: str, keys: Path, name: str) -> None:
    crew = bench.crew({"desk": payer(name)}, [pay], policies=ALLOW, name=name)
    async with crew.up(state=bench.state, bus=kafka_address, keys=keys) as running:
        answer = await running.ask("pay", timeout=30)

    assert answer.text == f"{name} has it"
    assert PAID[name] == 3.0


async def test_each_role_runs_apart_with_the_keys_of_its_own(
    bench: Bench, tmp_path: Path, kafka_address: str, keys: Path, name: str
) -> None:
    """A pool's folder holds the pool's key alone; the asker's process runs no role."""
    write_role_keys(keys, "tools.main", tmp_path / "pool")
    crew = bench.crew({"desk": payer(name)}, [pay], policies=ALLOW, name=name)
    folders = {"worker": keys, "guardrail": keys, "tools.main": tmp_path / "pool"}
    async with AsyncExitStack() as stack:
        for role, folder in folders.items():
            state = tmp_path / role
            running = await stack.enter_async_context(crew.up(state=state, bus=kafka_address, keys=folder, only=[role]))
            assert list(running.engines) == [role]
        client = await stack.enter_async_context(Client(kafka_address, name, keys=keys))
        answer = await client.ask("pay", agent="desk", timeout=30)

    assert answer.text == f"{name} has it"
    assert PAID[name] == 3.0


async def test_an_answer_is_there_for_whoever_comes_later(bench: Bench, kafka_address: str, keys: Path, name: str) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("once"))}, name=name)
    async with crew.up(state=bench.state, bus=kafka_address, keys=keys) as running:
        handle = await running.client.publish("hello", agent="desk")
        first = await handle.answer(30)
    async with crew.up(state=bench.state / "another", bus=kafka_address, keys=keys) as running:
        again = await running.client.publish("hello", agent="desk", intent=handle.intent)
        assert (await again.answer(30)).text == first.text == "once"


async def test_keys_are_not_made_by_whoever_starts_first(bench: Bench, kafka_address: str, name: str) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("never"))}, name=name)
    with pytest.raises(UsageError, match="there is no keys folder; make one with `crewline keys init"):
        await crew.up(state=bench.state, bus=kafka_address).__aenter__()
    assert not (bench.state / "keys").exists()


@pytest.mark.parametrize(
    ("role", "missing"), [("worker", "seal.key"), ("guardrail", "seal.key, guard.key"), ("tools.main", "pool-main.key")]
)
async def test_a_role_without_its_key_says_which(bench: Bench, tmp_path: Path, keys: Path, role: str, missing: str) -> None:
    write_role_keys(keys, "tools.other", tmp_path / "pool")
    crew = bench.crew({"desk": PlannedBrain(say("never"))}, [pay], policies=ALLOW)
    with pytest.raises(UsageError, match=f"holds no {missing}, which {role} needs"):
        await crew.up(state=bench.state, bus="kafka://127.0.0.1:1", keys=tmp_path / "pool", only=[role]).__aenter__()
