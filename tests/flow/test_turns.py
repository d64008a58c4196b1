"""A turn from its intent to its answer, and what may happen on the way: one crew, every role, a real log."""

from __future__ import annotations

import asyncio

import pytest
from crewline import RunFailed, ToolError, tool
from crewline.crews.running import Running
from crewline.engine import EngineOptions
from crewline.errors import ModelError
from crewline.events import CallCompleted, Envelope, ModelFailed, TurnFinished, decode
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.roster import Budgets
from flow_bench import Bench, PlannedBrain, calls, say, until

paid: list[float] = []


@tool(effect="read", timeout="5s")
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order}: one lamp"


@tool(effect="destructive", timeout="1s")
async def pay(amount: float) -> str:
    """Pay out."""
    paid.append(amount)
    return f"paid {amount:g}"


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    paid.clear()


async def events(running: Running, conversation: str | None = None) -> list[Envelope]:
    """The conversation records of the log, in order of partition and offset."""
    topic, found = running.roster.topics.conversations, []
    begins, ends = await running.bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await running.bus.read(topic, partition, offset)
            found += [decode(record.headers, record.value) for record in batch.records
                      if conversation in (None, record.key.decode())]
            offset = batch.next_offset
    return found


LARGE = [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")]
HOLD = PolicySet(LARGE, approvals=Approvals(("leads",), 3600.0))


async def test_a_turn_calls_a_tool_and_answers(bench: Bench) -> None:
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), lambda request: say(request.messages[-1].text))
    async with bench.crew({"desk": brain}, [look_up]).up(state=bench.state) as running:
        answer = await running.ask("Where is A-1?", user="u-1", timeout=20)

    assert answer.text == "A-1: one lamp"
    assert (answer.usage.steps, answer.usage.tool_calls) == (2, 1)


async def test_the_next_turn_sees_the_last_one(bench: Bench) -> None:
    brain = PlannedBrain(lambda request: say(" | ".join(message.text for message in request.messages)))
    async with bench.crew({"desk": brain}).up(state=bench.state) as running:
        first = await running.ask("one", timeout=20)
        second = await running.ask("two", conversation=first.conversation, timeout=20)

    assert second.text == "one | one | two"


async def test_a_restarted_crew_goes_on_without_asking_the_model_again(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), say("done"))
    async with bench.crew({"desk": brain}, [pay], policies=HOLD).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await until(running.client.open_calls)
    async with bench.crew({"desk": brain}, [pay], policies=HOLD).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await running.approve((await running.client.open_calls())[0].id, by="lead")
        answer = await handle.answer(20)

    assert answer.text == "done"
    assert paid == [60]
    assert [request.step for request in brain.asked] == [1, 2]


@pytest.mark.parametrize(("decision", "expected"), [("approve", [60.0]), ("edit", [40.0]), ("deny", [])])
async def test_a_held_call_waits_for_a_person(bench: Bench, decision: str, expected: list[float]) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), lambda request: say(request.messages[-1].text))
    async with bench.crew({"desk": brain}, [pay], policies=HOLD).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk")
        held = (await until(running.client.open_calls))[0]
        assert held.arguments == '{"amount": 60}'
        assert paid == []
        if decision == "approve":
            await running.approve(held.id, by="lead")
        elif decision == "edit":
            await running.edit(held.id, '{"amount": 40}', by="lead")
        else:
            await running.deny(held.id, by="lead", note="too much")
        answer = await handle.answer(20)

    assert paid == expected
    assert "too much" in answer.text if decision == "deny" else "paid" in answer.text


async def test_nobody_decides_in_time_and_the_call_is_denied(bench: Bench) -> None:
    soon = PolicySet(LARGE, approvals=Approvals(("leads",), 0.3))
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), lambda request: say(request.messages[-1].text))
    async with bench.crew({"desk": brain}, [pay], policies=soon).up(state=bench.state) as running:
        answer = await running.ask("pay", timeout=20)

    assert "approval.expired" in answer.text
    assert paid == []


async def test_the_same_intent_before_during_and_after_its_turn_is_one_turn(bench: Bench) -> None:
    brain = PlannedBrain(say("once"))
    async with bench.crew({"desk": brain}).up(state=bench.state) as running:
        handles = [await running.client.publish("go", agent="desk", intent="i-1") for _ in range(3)]
        answers = [await handle.answer(20) for handle in handles]
        late = await running.client.publish("go", agent="desk", intent="i-1")
        answers.append(await late.answer(20))

    assert {answer.text for answer in answers} == {"once"}
    assert len(brain.asked) == 1


async def test_delegated_work_is_done_by_the_agent_that_offers_it(bench: Bench) -> None:
    desk = PlannedBrain(
        calls(("delegate", '{"capability": "pay.out", "input": {"amount": 5}}')), lambda request: say(request.messages[-1].text)
    )
    payer = PlannedBrain(calls(("pay", '{"amount": 5}')), say("all paid"))
    crew = bench.crew({"desk": desk, "payer": payer}, [pay], delegates=["pay.out"], capabilities={"payer": ["pay.out"]})
    async with crew.up(state=bench.state) as running:
        answer = await running.ask("pay 5", user="u-1", timeout=20)
        runs = {envelope.run for envelope in await events(running)}

    assert answer.text == "all paid"
    assert paid == [5]
    assert payer.asked[0].user == "u-1"
    assert runs == {answer.run}, "one run, in two conversations"
    assert answer.usage.steps == 4


async def test_a_hand_over_lasts(bench: Bench) -> None:
    desk = PlannedBrain(calls(("handoff", '{"agent": "senior"}')), say("never"))
    senior = PlannedBrain(say("senior here"))
    async with bench.crew({"desk": desk, "senior": senior}, handoffs=["senior"]).up(state=bench.state) as running:
        first = await running.ask("help", timeout=20)
        second = await running.ask("still there?", conversation=first.conversation, timeout=20)

    assert (first.text, second.text) == ("senior here", "senior here")
    assert (first.agent, second.agent) == ("senior", "senior")


async def test_a_failing_model_is_asked_again_and_then_the_turn_fails(bench: Bench) -> None:
    def fail(_: object) -> None:
        raise ModelError("the model is away", retryable=True, retry_after_s=0.0)

    brain = PlannedBrain(fail)
    async with bench.crew({"desk": brain}, attempts=2).up(state=bench.state) as running:
        with pytest.raises(RunFailed, match="the model is away"):
            await running.ask("go", timeout=30)
        failed = [each.event for each in await events(running) if isinstance(each.event, ModelFailed)]

    assert [event.attempt for event in failed] == [1, 2]
    assert len(brain.asked) == 2


async def test_a_model_that_loops_is_stopped(bench: Bench) -> None:
    brain = PlannedBrain(lambda request: calls(("look_up", f'{{"order": "A-{request.step}"}}')))
    async with bench.crew({"desk": brain}, [look_up], max_steps=3).up(state=bench.state) as running:
        with pytest.raises(RunFailed) as failure:
            await running.ask("go", timeout=20)

    assert failure.value.reason_code == "steps.exceeded"
    assert len(brain.asked) == 3


async def test_fifty_calls_in_one_reply_are_all_answered(bench: Bench) -> None:
    wanted = [("look_up", f'{{"order": "A-{n}"}}') for n in range(50)]
    brain = PlannedBrain(calls(*wanted), lambda request: say(str(sum(each.role == "tool" for each in request.messages))))
    options = EngineOptions(slots=10, poll_s=0.2)
    async with bench.crew({"desk": brain}, [look_up], options=options).up(state=bench.state) as running:
        answer = await running.ask("go", timeout=20)

    assert answer.text == "50"


async def test_calls_beyond_the_budget_are_denied_and_the_turn_goes_on(bench: Bench) -> None:
    wanted = [("look_up", f'{{"order": "A-{n}"}}') for n in range(5)]
    brain = PlannedBrain(
        calls(*wanted), lambda request: say(str(sum("budget.tool_calls" in each.text for each in request.messages)))
    )
    crew = bench.crew({"desk": brain}, [look_up], budgets=Budgets(tool_calls=3))
    async with crew.up(state=bench.state) as running:
        answer = await running.ask("go", timeout=20)

    assert answer.text == "2"


async def test_bad_calls_come_back_to_the_model_as_reasons(bench: Bench) -> None:
    brain = PlannedBrain(
        calls(("look_upp", '{"order": "A-1"}'), ("look_up", '{"order": '), ("look_up", '{"ordr": "A-1"}')),
        lambda request: say("\n".join(each.text for each in request.messages if each.role == "tool")),
    )
    async with bench.crew({"desk": brain}, [look_up]).up(state=bench.state) as running:
        answer = await running.ask("go", timeout=20)

    unknown, broken, misspelt = answer.text.splitlines()
    assert "tool.unknown" in unknown
    assert "look_up" in unknown
    assert "decode." in broken
    assert "schema." in misspelt


async def test_a_tool_that_fails_says_so_to_the_model(bench: Bench) -> None:
    @tool(effect="read", timeout="5s")
    async def closed(order: str) -> str:
        """Fail."""
        raise ToolError(f"order {order} is closed")

    brain = PlannedBrain(calls(("closed", '{"order": "A-1"}')), lambda request: say(request.messages[-1].text))
    async with bench.crew({"desk": brain}, [closed]).up(state=bench.state) as running:
        answer = await running.ask("go", timeout=20)

    assert "order A-1 is closed" in answer.text


async def test_an_unsafe_tool_that_breaks_is_unknown_until_a_person_says(bench: Bench) -> None:
    @tool(effect="destructive", timeout="5s")
    async def break_down(amount: float) -> str:
        """Break."""
        paid.append(amount)
        raise OSError("the line went dead")

    brain = PlannedBrain(calls(("break_down", '{"amount": 1}')), lambda request: say(request.messages[-1].text))
    async with bench.crew({"desk": brain}, [break_down]).up(state=bench.state) as running:
        handle = await running.client.publish("go", agent="desk")
        unknown = (await until(running.client.open_calls))[0]
        assert unknown.call.status == "unknown"
        await running.client.resolve(unknown.id, "ran", by="lead", output="it went through")
        answer = await handle.answer(20)

    assert answer.text == "it went through"
    assert paid == [1]


async def test_a_cancelled_turn_ends_and_its_held_call_never_runs(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), say("never"))
    async with bench.crew({"desk": brain}, [pay], policies=HOLD).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk")
        await until(running.client.open_calls)
        await running.client.cancel(handle.conversation, by="u-1")
        with pytest.raises(RunFailed) as failure:
            await handle.answer(20)

    assert failure.value.reason_code == "cancelled"
    assert paid == []


async def test_without_a_guardrail_no_call_runs_and_a_late_verdict_is_ignored(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 1}')), lambda request: say(request.messages[-1].text))
    crew = bench.crew({"desk": brain}, [pay], guard_s=0.3)
    async with crew.up(state=bench.state, only=["worker", "tools"]) as running:
        answer = await running.ask("go", timeout=20)
    async with crew.up(state=bench.state, only=["guardrail", "tools"]) as running:
        await running.ready()

    assert "guard.unavailable" in answer.text
    assert paid == []


async def test_a_turn_waits_for_a_pool_that_is_away(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 1}')), say("done"))
    crew = bench.crew({"desk": brain}, [pay])
    async with crew.up(state=bench.state, only=["worker", "guardrail"]) as running:
        handle = await running.client.publish("go", agent="desk", intent="i-1")
        await until(lambda: _type(running, "call.judged"))
        async with crew.up(state=bench.state, only=["tools"]):
            answer = await handle.answer(20)

    assert answer.text == "done"
    assert paid == [1]


async def _type(running: Running, wanted: str) -> bool:
    return any(envelope.type == wanted for envelope in await events(running))


async def test_two_hundred_conversations_side_by_side(bench: Bench) -> None:
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), say("done"))
    async with bench.crew({"desk": brain}, [look_up]).up(state=bench.state) as running:
        answers = await asyncio.gather(*(running.ask("go", timeout=60) for _ in range(200)))
        ends = [each for each in await events(running) if isinstance(each.event, TurnFinished)]
        completed = [each for each in await events(running) if isinstance(each.event, CallCompleted)]

    assert {answer.text for answer in answers} == {"done"}
    assert len(ends) == len({each.id for each in ends}) == 200
    assert len({each.id for each in completed}) == 200
