"""A process killed at each named place: every intent is answered, nothing is paid twice, what was recorded is not asked again.

The longer form, with random kills and stops: benchmarks/kill.py.
"""

from __future__ import annotations

import os
import random
import signal

import pytest
from fault_bench import Lab, until

SEED = int(os.environ.get("SEED", "1"))
INTENTS = [f"turn-{n}" for n in range(4)]
POINTS = [
    "worker.after_fold", "worker.after_act", "worker.after_append", "worker.after_snapshot",
    "guardrail.after_fold", "guardrail.after_append", "guardrail.after_snapshot",
    "tools.main.after_append", "pool.after_claim", "pool.before_run", "pool.after_run",
    "bus.before_commit", "bus.in_group_commit", "bus.after_commit",
]


@pytest.mark.parametrize("point", POINTS)
async def test_a_crew_killed_at_a_named_place_goes_on_after_its_restart(lab: Lab, point: str) -> None:
    times = random.Random(f"{SEED} {point}").randint(1, 4)
    if point in ("pool.before_run", "pool.after_run"):
        times += len(INTENTS)  # in a payment: the first runs are of the read tool
    await lab.create_topics()
    async with lab.client() as client:
        for intent in INTENTS:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        first = lab.start(crash=f"{point}:{times}")
        await until(lambda: first.poll() is not None, seconds=30)
        assert first.returncode == -signal.SIGKILL, lab.output()

        lab.start()
        answers = await lab.settle(client, INTENTS)
        verdict = await lab.judge(client)

    again = f"again: SEED={SEED}, {point}:{times}"
    assert answers == ["desk: payer: paid"] * len(INTENTS), again
    assert len(verdict.payments) == len(INTENTS), again
    assert verdict.doubled == [], again
    assert verdict.repeated == [], again
    assert verdict.unknown == lab.listed, again
    assert await lab.audit_holds(), again


async def test_a_half_written_commit_left_by_a_power_failure_is_no_more_than_a_crash(lab: Lab) -> None:
    await lab.create_topics()
    async with lab.client() as client:
        for intent in INTENTS:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
    first = lab.start(crash="bus.in_group_commit:20")
    await until(lambda: first.poll() is not None, seconds=30)
    with (lab.state / "log.db-wal").open("ab") as wal:
        wal.write(b"\xa5" * 6_000)  # frames that were not whole when the power went; nothing in them was acknowledged

    lab.start()
    async with lab.client() as client:
        answers = await lab.settle(client, INTENTS)
        verdict = await lab.judge(client)

    assert answers == ["desk: payer: paid"] * len(INTENTS)
    assert (verdict.doubled, verdict.repeated) == ([], [])
    assert await lab.audit_holds()


async def test_a_crew_killed_again_and_again_loses_nothing(lab: Lab) -> None:
    chance = random.Random(SEED)
    intents = [f"turn-{n}" for n in range(12)]
    await lab.create_topics()
    async with lab.client() as client:
        for intent in intents:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        for _ in range(5):
            process = lab.start(crash=f"{chance.choice(POINTS)}:{chance.randint(1, 8)}")
            await until(lambda process=process: process.poll() is not None or lab.settled(client, intents), seconds=40)
        lab.start()
        answers = await lab.settle(client, intents)
        verdict = await lab.judge(client)

    assert answers == ["desk: payer: paid"] * len(intents), f"again: SEED={SEED}"
    assert (verdict.doubled, verdict.repeated) == ([], []), f"again: SEED={SEED}"
    assert verdict.unknown == lab.listed, f"again: SEED={SEED}"
