"""Crews that find each other over the marketplace, in one process: who is chosen, who is waited for, who is not."""

from __future__ import annotations

import pytest
from crewline import events as ev
from crewline.crews.running import Crew, Running
from crewline.events import AgentAdvertised, Capability, DelegationChosen, IntentPublished
from crewline.records import Scribe
from crewline.roster import Budgets
from crewline.seal import load_keys
from crewline.topics import MARKET
from flow_bench import Bench, PlannedBrain, calls, say, until


def front(bench: Bench, wanted: str = "pay.out", *, wall_s: float = 600.0) -> Crew:
    """Return a crew whose desk has somebody else do the work."""
    brain = PlannedBrain(
        calls(("delegate", f'{{"capability": "{wanted}", "input": {{"amount": 5}}}}')),
        lambda request: say(request.messages[-1].text),
    )
    return bench.crew({"desk": brain}, name="front", delegates=[wanted], budgets=Budgets(wall_s=wall_s))


def back(bench: Bench, name: str = "back") -> Crew:
    """Return a crew that does it."""
    return bench.crew({"payer": PlannedBrain(say(f"paid by {name}"))}, name=name, capabilities={"payer": ["pay.out"]})


async def advertise(running: Running, crew: str, *, lease_s: float) -> None:
    """Put up an idle agent's advertisement, as a process did that has since died without withdrawing it."""
    scribe = Scribe(load_keys(running.state / "keys"), source=crew, now_ms=lambda: 0)
    ad = AgentAdvertised(
        crew, "1", "payer", "gone", f"{crew}.conversations", (Capability("pay.out"),), 0, 0, 1_000, lease_s
    )
    await running.bus.append([scribe.message(MARKET, f"{crew}/payer/gone", ad, id=f"{crew}@1", run="")])


async def chosen(running: Running) -> list[DelegationChosen]:
    found = []
    topic = running.roster.topics.conversations
    begins, ends = await running.bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await running.bus.read(topic, partition, offset)
            found += [event for record in batch.records
                      if isinstance(event := ev.decode(record.headers, record.value).event, DelegationChosen)]
            offset = batch.next_offset
    return found


@pytest.mark.parametrize("wanted", ["pay.out", "back:pay.out"])
async def test_an_agent_of_another_crew_is_asked_by_capability_or_by_crew_and_capability(bench: Bench, wanted: str) -> None:
    async with back(bench).up(state=bench.state) as other, front(bench, wanted).up(state=bench.state) as running:
        await other.ready()
        await running.ready()
        answer = await running.ask("pay", timeout=20)

    assert answer.text == "paid by back"
    assert answer.usage.steps == 3, "what the other crew used counts too"


async def test_a_crew_named_in_the_request_is_asked_and_no_other(bench: Bench) -> None:
    async with (
        back(bench).up(state=bench.state), back(bench, "bank").up(state=bench.state),
        front(bench, "bank:pay.out").up(state=bench.state) as running,
    ):
        answers = {(await running.ask("pay", timeout=20)).text for _ in range(5)}

    assert answers == {"paid by bank"}


async def test_an_offer_whose_lease_is_over_is_not_chosen(bench: Bench) -> None:
    async with back(bench).up(state=bench.state), front(bench).up(state=bench.state) as running:
        assert running.market is not None
        view = running.market.view
        await advertise(running, "ghost", lease_s=0.001)
        await until(lambda: any(offer.advertised.crew == "ghost" and view.stalled(offer) for offer in view.offers())
                    and any(offer.advertised.crew == "back" for offer in view.offers()))
        answers = {(await running.ask("pay", timeout=20)).text for _ in range(5)}
        choices = await chosen(running)

    assert answers == {"paid by back"}
    reasons = {candidate.crew: candidate.why for choice in choices for candidate in choice.candidates}
    assert reasons["ghost"] == "stalled: its lease is over"


async def test_work_that_nobody_offers_waits_and_is_taken_up_when_somebody_does(bench: Bench) -> None:
    async with front(bench).up(state=bench.state) as running:
        await advertise(running, "ghost", lease_s=0.001)
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await until(lambda: _waits(running))
        async with back(bench).up(state=bench.state):
            answer = await handle.answer(20)

    assert answer.text == "paid by back"


async def _waits(running: Running) -> bool:
    turn = (await running.client.projection()).states["i-1"].turn
    return turn is not None and any(call.status == "granted" and call.chosen is None for call in turn.calls)


async def test_a_crew_that_does_not_answer_is_waited_for_until_the_deadline_and_no_longer(bench: Bench) -> None:
    """Its lease is not over, so it is asked; it is dead all the same."""
    async with back(bench).up(state=bench.state):
        pass  # its topics are there, its process is not
    async with front(bench, wall_s=3.0).up(state=bench.state) as running:
        await advertise(running, "back", lease_s=3600.0)
        await until(lambda: any(True for _ in running.market.view.offers()) if running.market else False)
        answer = await running.ask("pay", timeout=20)
        asked = await _child_asked(running)

    assert "delegation.deadline" in answer.text, "and the agent can still say so"
    assert asked, "the intent lies in its log, for when it is back"


async def _child_asked(running: Running) -> bool:
    topic = "back.conversations"
    begins, ends = await running.bus.offsets(topic)
    for partition, end in ends.items():
        if begins[partition] < end:
            batch = await running.bus.read(topic, partition, begins[partition])
            if any(isinstance(ev.decode(record.headers, record.value).event, IntentPublished) for record in batch.records):
                return True
    return False
