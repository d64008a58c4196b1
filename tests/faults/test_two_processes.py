"""Crews in processes of their own on one state folder: they share the work, and find each other."""

from __future__ import annotations

import asyncio

from crewline.events import AgentAdvertised, DelegationChosen
from crewline.topics import MARKET
from fault_bench import Lab, records, until


async def test_two_processes_of_a_crew_share_its_work_and_one_goes_on_alone(lab: Lab) -> None:
    first, second = lab.start(), lab.start()
    await asyncio.gather(lab.ready(first), lab.ready(second))
    async with lab.client() as client:
        at_work: set[str] = set()
        sent: list[str] = []

        async def ask_until(pids: set[str]) -> None:
            """Each gets its share of the partitions when the other has let go of it: ask until both are at work."""
            while not pids <= at_work:
                assert len(sent) < 200, f"only {at_work} of {pids} work:\n{lab.output()}"
                sent.append(f"turn-{len(sent)}")
                await client.publish("pay.out", agent="desk", intent=sent[-1], follow=False)
                await lab.settle(client, sent)
                at_work.update(line.split()[2] for line in lab.lines("model.calls"))

        await ask_until({str(first.pid), str(second.pid)})
        more = [f"more-{n}" for n in range(8)]
        for intent in more[:4]:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        first.kill()
        for intent in more[4:]:
            await client.publish("pay.out", agent="desk", intent=intent, follow=False)
        answers = await lab.settle(client, more)
        verdict = await lab.judge(client)

    assert answers == ["desk: payer: paid"] * 8
    assert second.poll() is None
    assert (verdict.doubled, verdict.repeated) == ([], [])
    assert verdict.unknown <= lab.listed
    assert await lab.audit_holds()


async def test_two_crews_find_and_use_each_other_even_one_that_starts_late(lab: Lab) -> None:
    wanted = {"by-capability": "pay.out", "by-crew": "back:pay.out"}
    await lab.create_topics("front")
    front = lab.start(crew="front")
    await lab.ready(front)
    async with lab.client("front") as client:
        for intent, capability in wanted.items():
            await client.publish(capability, agent="desk", intent=intent, follow=False)

        async def both_wait() -> bool:
            calls = [call for state in (await client.projection()).states.values() if state.turn for call in state.turn.calls]
            return sum(call.name == "delegate" and call.status == "granted" and call.chosen is None for call in calls) == 2

        await until(both_wait)
        assert not await lab.settled(client, list(wanted)), "nobody offers it yet, and the intents wait"

        lab.start(crew="back")
        answers = await lab.settle(client, list(wanted))
        chosen = [each.event for _, each in await records(client, client.topics.conversations)
                  if isinstance(each.event, DelegationChosen)]
        offers = {each.event.crew for _, each in await records(client, MARKET) if isinstance(each.event, AgentAdvertised)}
    async with lab.client("back") as client:
        runs = {turn.run for turn in (await client.projection()).turns.values()}

    assert answers == ["desk: payer: paid"] * 2
    assert {(each.crew, each.agent, each.capability) for each in chosen} == {("back", "payer", "pay.out")}
    assert offers == {"back"}, "`front` offers nothing"
    assert runs == set(wanted), "the work of one run, in two crews"
    assert len(lab.lines("payments")) == 2
