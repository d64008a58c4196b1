"""The matrix of test_kills.py on Kafka, with the store on Redis: a process killed at each named place.

A killed member's partitions are free when its session of 10 s is over: so the crews, one a place, wait side by side.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
from pathlib import Path

import pytest
from fault_bench import Lab, until

SEED = int(os.environ.get("SEED", "1"))
INTENTS = [f"turn-{n}" for n in range(4)]
POINTS = {
    "worker": ["worker.after_fold", "worker.after_act", "worker.after_append", "worker.after_snapshot"],
    "pool": ["tools.main.after_append", "pool.after_claim", "pool.before_run", "pool.after_run"],
    "guardrail and bus": [
        "guardrail.after_fold", "guardrail.after_append", "guardrail.after_snapshot",
        "bus.before_commit", "bus.in_group_commit", "bus.after_commit",
    ],
}  # fmt: skip


async def ended(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    await until(lambda: process.poll() is not None, seconds=60)
    return process


async def begun(lab: Lab, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    await until(lambda: str(process.pid) in lab.lines("ready") or process.poll() is not None, seconds=60)
    return process


def was_not_let_in(lab: Lab, process: subprocess.Popen[bytes]) -> bool:
    """Whether a process gave up because a busy broker did not answer within 3 s. Whoever runs it starts it again."""
    return process.returncode == 1 and "BusUnavailable: no way into Kafka" in lab.output()


async def killed_and_started_again(lab: Lab, point: str) -> None:
    """Have a crew killed at `point`, start it again, and assert that nothing shows it."""
    times = random.Random(f"{SEED} {point}").randint(1, 4)
    if point in ("pool.before_run", "pool.after_run"):
        times += len(INTENTS)  # in a payment: the first runs are of the read tool
    again = f"again: SEED={SEED}, {point}:{times}"
    await lab.create_topics()
    async with lab.client() as client:
        for intent in INTENTS:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        first = await ended(lab.start(crash=f"{point}:{times}"))
        while was_not_let_in(lab, first):
            first = await ended(lab.start(crash=f"{point}:{times}"))
        assert first.returncode == -signal.SIGKILL, f"{again}\n{lab.output()}"

        second = await begun(lab, lab.start())
        while was_not_let_in(lab, second):
            second = await begun(lab, lab.start())
        answers = await lab.settle(client, INTENTS, seconds=90)
        verdict = await lab.judge(client)

    assert answers == ["desk: payer: paid"] * len(INTENTS), again
    assert len(verdict.payments) == len(INTENTS), again
    assert verdict.doubled == [], again
    assert verdict.repeated == [], again
    assert verdict.unknown == lab.listed, again
    assert await lab.audit_holds(), again


@pytest.mark.slow
@pytest.mark.parametrize("where", POINTS)
async def test_a_crew_on_kafka_killed_at_any_place_goes_on_after_its_restart(
    kafka_address: str, redis_url: str, tmp_path: Path, where: str
) -> None:
    ours = secrets.token_hex(4)
    labs = [Lab(tmp_path / point, bus=kafka_address, store=redis_url, suffix=f"-{ours}-{point}") for point in POINTS[where]]
    try:
        ended = await asyncio.gather(*map(killed_and_started_again, labs, POINTS[where]), return_exceptions=True)
    finally:
        for lab in labs:
            lab.close()

    assert [f"{point}: {error!r}" for point, error in zip(POINTS[where], ended, strict=True) if error is not None] == []
