"""A process stopped (SIGSTOP) beyond its lease, and resumed when others have gone on without it."""

from __future__ import annotations

import signal

import pytest
from fault_bench import Lab, is_stopped, until

INTENTS = [f"turn-{n}" for n in range(4)]
LATER = [f"late-{n}" for n in range(4)]
REST = {
    "worker": ("guardrail", "tools"),
    "guardrail": ("worker", "tools"),
    "tools": ("worker", "guardrail"),
}


@pytest.mark.parametrize(("role", "point"), [
    ("worker", "worker.after_act"),  # the model has replied; the reply is not in the log
    ("guardrail", "guardrail.after_fold"),  # it was going to judge
    ("tools", "pool.after_claim"),  # between its claim and the call
])
async def test_an_owner_that_comes_back_after_its_lease_does_no_harm(lab: Lab, role: str, point: str) -> None:
    await lab.create_topics()
    async with lab.client() as client:
        for intent in INTENTS:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        lab.start(*REST[role])
        zombie = lab.start(role, stop=point)
        await until(lambda: is_stopped(zombie), seconds=30)
        lab.start(role)
        answers = await lab.settle(client, INTENTS)

        zombie.send_signal(signal.SIGCONT)
        for intent in LATER:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        answers += await lab.settle(client, LATER)
        verdict = await lab.judge(client)

    assert zombie.poll() is None, "it lives on, as a member like the others"
    assert set(answers) <= {"desk: payer: paid"}
    assert (verdict.doubled, len(verdict.payments)) == ([], len(INTENTS) + len(LATER))
    assert verdict.unknown <= lab.listed
    if role == "tools":
        assert verdict.unknown, "what the stopped process had claimed: nobody could know whether it had begun"
    assert await lab.audit_holds()
