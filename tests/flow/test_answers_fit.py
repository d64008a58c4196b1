"""What a capability promises to answer is held when the answer is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from crewline.crews.running import Crew
from crewline.errors import RunFailed, UsageError
from crewline.events import Capability
from flow_bench import Bench, PlannedBrain, calls, say

DECISION: dict[str, Any] = {
    "type": "object", "required": ["decision", "amount"],
    "properties": {"decision": {"enum": ["approved", "refused"]}, "amount": {"type": "number"}},
}


def promising(crew: Crew, agent: str, output: dict[str, Any]) -> Crew:
    agents = dict(crew.roster.agents)
    agents[agent] = replace(agents[agent], capabilities={"refund.decide": Capability("refund.decide", output=output)})
    return replace(crew, roster=replace(crew.roster, agents=agents))


async def test_an_answer_that_does_not_fit_goes_back_to_the_model(bench: Bench) -> None:
    brain = PlannedBrain(say("Approved!"), say('{"decision": "yes", "amount": "80"}'), say('{"decision": "approved", "amount": 80}'))
    crew = promising(bench.crew({"refunds": brain}), "refunds", DECISION)
    async with crew.up(state=bench.state) as running:
        handle = await running.publish("refund.decide", {"order": "A"}, conversation="c1")
        answer = await handle.answer(20)

    assert answer.value == {"decision": "approved", "amount": 80}
    first, second = (asked.messages[-1] for asked in brain.asked[1:])
    assert (first.role, first.name) == ("user", "crewline")
    assert first.text.startswith("The answer does not fit what refund.decide promises: it is not JSON alone")
    assert "/decision: " in second.text
    assert "/amount: " in second.text
    assert answer.usage.steps == 3, "each try is a step"


async def test_a_model_that_never_fits_fails_its_turn_with_the_reason(bench: Bench) -> None:
    brain = PlannedBrain(say('{"decision": "approved"}'))
    crew = promising(bench.crew({"refunds": brain}, max_steps=3), "refunds", DECISION)
    async with crew.up(state=bench.state) as running:
        handle = await running.publish("refund.decide", {"order": "A"})
        with pytest.raises(RunFailed, match=r"does not fit what refund\.decide promises") as failed:
            await handle.answer(20)

    assert failed.value.reason_code == "answer.schema"
    assert len(brain.asked) == 3


async def test_who_takes_the_conversation_over_is_bound_by_what_was_promised(bench: Bench) -> None:
    first = PlannedBrain(calls(("handoff", '{"agent": "specialist"}')))
    second = PlannedBrain(say("unused"), say("I think so."), say('{"decision": "refused", "amount": 0}'))
    crew = promising(bench.crew({"refunds": first, "specialist": second}, handoffs=["specialist"]), "refunds", DECISION)
    async with crew.up(state=bench.state) as running:
        answer = await (await running.publish("refund.decide", {"order": "A"})).answer(20)

    assert answer.value == {"decision": "refused", "amount": 0}


async def test_whoever_delegates_gets_what_was_promised(bench: Bench) -> None:
    desk = PlannedBrain(calls(("delegate", '{"capability": "refund.decide", "input": {}}')), lambda asked: say(asked.messages[-1].text))
    refunds = PlannedBrain(say("Well…"), say('{"decision": "refused", "amount": 0}'))
    crew = promising(bench.crew({"desk": desk, "refunds": refunds}, delegates=["refund.decide"]), "refunds", DECISION)
    async with crew.up(state=bench.state) as running:
        answer = await running.ask("please", timeout=20)
    assert answer.text == '{"decision":"refused","amount":0}'


async def test_an_agent_that_is_asked_by_name_answers_in_words(bench: Bench) -> None:
    crew = promising(bench.crew({"refunds": PlannedBrain(say("Hello."))}), "refunds", DECISION)
    async with crew.up(state=bench.state) as running:
        assert (await running.ask("hello", timeout=20)).text == "Hello."


async def test_a_promise_that_is_no_schema_is_refused_at_the_start(bench: Bench) -> None:
    crew = promising(bench.crew({"refunds": PlannedBrain(say("{}"))}), "refunds", {"type": "thing"})
    with pytest.raises(UsageError, match=r"output of capability 'refund\.decide'"):
        async with crew.up(state=bench.state):
            pass
