"""A limit over a window while guardrails, keepers and pools are killed: never passed, and in the end all of it is used.

Eight conversations want to pay 5 of 20. What a kill left unknown a person settles by the ledger.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess

import pytest
from crewline.client import Client
from crewline.guardrail.counters import Counter, count
from crewline.records import Reader
from crewline.seal import load_keys
from crewline.topics import CrewTopics
from fault_bench import Lab, until

SEED = int(os.environ.get("SEED", "1"))
INTENTS = [f"turn-{n}" for n in range(8)]
# (place, how often it is reached at most before the first process dies there)
POINTS = {"guardrail.after_append": 6, "limits.after_fold": 2, "limits.after_append": 2, "limits.after_snapshot": 1, "pool.before_run": 3}


async def publish(client: Client) -> None:
    for intent in INTENTS:
        await client.publish("pay", agent="payer", intent=intent, conversation=f"c-{intent}", follow=False)


async def purse(lab: Lab) -> Counter:
    """Fold the counter from its log."""
    topic = CrewTopics("thrift").limits
    reader = Reader(load_keys(lab.state / "keys"), partitions=12)
    counter = Counter("purse")
    async with lab.client("thrift") as client:
        begins, ends = await client.bus.offsets(topic)
        for partition, end in ends.items():
            offset = begins[partition]
            while offset < end:
                batch = await client.bus.read(topic, partition, offset)
                for record in batch.records:
                    counter = count(counter, reader.check(record))
                offset = batch.next_offset
    return counter


async def hold(lab: Lab, again: str) -> None:
    """Let a whole crew finish; hold the outcome against the witnesses."""
    async with lab.client("thrift") as client:
        answers = await lab.settle(client, INTENTS)
        verdict = await lab.judge(client)
        assert sorted(answer == "payer: paid" for answer in answers) == [False] * 4 + [True] * 4, (answers, again)
        assert len(verdict.payments) == 4, again
        assert verdict.doubled == [], again

    async def told() -> bool:
        return not (await purse(lab)).open

    await until(told)
    counter = await purse(lab)
    assert [each.amount for each in counter.past] == [5.0] * 4, again


@pytest.mark.parametrize("point", POINTS)
async def test_a_limit_holds_whoever_is_killed_and_where(lab: Lab, point: str) -> None:
    times = random.Random(f"{SEED} {point}").randint(1, POINTS[point])
    await lab.create_topics("thrift")
    async with lab.client("thrift") as client:
        await publish(client)
    first = lab.start(crew="thrift", crash=f"{point}:{times}")
    await until(lambda: first.poll() is not None, seconds=30)
    assert first.returncode == -signal.SIGKILL, lab.output()

    lab.start(crew="thrift")
    await hold(lab, f"again: SEED={SEED}, {point}:{times}\n{lab.output()}")


async def test_a_limit_holds_while_two_crews_are_killed_in_turn(lab: Lab) -> None:
    chance = random.Random(SEED)
    await lab.create_topics("thrift")

    def doomed() -> subprocess.Popen[bytes]:
        point = chance.choice(list(POINTS))
        return lab.start(crew="thrift", crash=f"{point}:{chance.randint(1, POINTS[point])}")

    async with lab.client("thrift") as client:
        await publish(client)
        killed = [doomed(), doomed()]

        async def one_dies() -> bool:
            return any(each.poll() is not None for each in killed) or await lab.settled(client, INTENTS)

        for _ in range(3):
            await until(one_dies, seconds=40)
            killed.append(doomed())
            killed.remove(next((each for each in killed if each.poll() is not None), killed[-1]))
    lab.start(crew="thrift")
    await hold(lab, f"again: SEED={SEED}\n{lab.output()}")
