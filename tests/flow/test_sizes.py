"""Too many, too large, misbehaving: nothing deadlocks, nothing is bought for ever, other conversations go on."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable

import pytest
from crewline import RunFailed, tool
from crewline.engine import EngineOptions
from crewline_agents.base import Reply, StepRequest
from flow_bench import Bench, PlannedBrain, calls, say, until


async def test_a_thousand_open_effects_with_ten_slots_all_end(bench: Bench) -> None:
    now, most = 0, 0

    async def think(request: StepRequest) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return say(request.conversation)

    brain = PlannedBrain(think)
    options = EngineOptions(slots=10, poll_s=0.2, snapshot_records=5_000)
    async with bench.crew({"desk": brain}, options=options).up(state=bench.state) as running:
        await running.ready()
        handles = await asyncio.gather(
            *(running.client.publish("go", agent="desk", intent=f"i-{n}", follow=False) for n in range(1_000))
        )
        answers = await asyncio.gather(*(handle.answer(60) for handle in handles))

    assert [answer.text for answer in answers] == [f"i-{n}" for n in range(1_000)]
    assert len(brain.asked) == 1_000
    assert most <= 10


async def test_ten_models_that_hang_keep_their_slots_and_the_rest_wait_for_theirs(bench: Bench) -> None:
    release = asyncio.Event()

    async def think(request: StepRequest) -> Reply:
        if request.conversation.startswith("slow"):
            await release.wait()
        return say("done")

    options = EngineOptions(slots=10, poll_s=0.2)
    brain = PlannedBrain(think)
    async with bench.crew({"desk": brain}, options=options).up(state=bench.state) as running:
        slow = [await running.client.publish("go", agent="desk", intent=f"slow-{n}") for n in range(9)]
        await until(lambda: len(brain.asked) == 9)
        assert (await running.ask("go", timeout=20)).text == "done", "one slot is enough for the others"
        release.set()
        assert {(await handle.answer(20)).text for handle in slow} == {"done"}


async def test_a_reply_too_large_for_a_record_fails_the_turn_and_is_bought_once(bench: Bench) -> None:
    brain = PlannedBrain(say("x" * 950_000))
    async with bench.crew({"desk": brain}).up(state=bench.state) as running:
        with pytest.raises(RunFailed, match=r"a record holds \d+,000") as failure:
            await running.ask("go", timeout=20)

    assert failure.value.reason_code == "model.too_large"
    assert len(brain.asked) == 1


async def test_arguments_too_large_to_be_sent_on_come_back_to_the_model(bench: Bench) -> None:
    """The reply fits into a record, and what is made of it need not: in no case is the call tried for ever."""
    ran: list[int] = []

    @tool(effect="write", timeout="5s")
    async def save(text: str) -> str:
        """Save a text."""
        ran.append(len(text))
        return "saved"

    brain = PlannedBrain(calls(("save", f'{{"text": "{"x" * 890_000}"}}')), lambda request: say(request.messages[-1].text[:300]))
    async with bench.crew({"desk": brain}, [save]).up(state=bench.state) as running:
        answer = await running.ask("go", timeout=20)

    assert (answer.text, ran) == ("saved", [890_000]) or "too_large" in answer.text
    assert len(brain.asked) == 2


async def test_a_conversation_that_grows_beyond_a_record_goes_on(bench: Bench) -> None:
    """Its state holds more than any record may: the snapshot grows, and a restart reads it back."""

    @tool(effect="read", timeout="5s")
    async def fetch() -> str:
        """Fetch a page."""
        return "y" * 60_000

    steps = [calls(("fetch", "{}"))] * 18
    brain = PlannedBrain(*steps, lambda request: say(str(sum(len(each.text) for each in request.messages))))
    crew = bench.crew({"desk": brain}, [fetch], max_steps=30)
    async with crew.up(state=bench.state) as running:
        answer = await running.ask("go", conversation="c1", timeout=40)
    async with crew.up(state=bench.state) as running:
        await running.ready()
        again = await running.ask("go", conversation="c1", timeout=40)

    assert int(answer.text) > 1_000_000
    assert int(again.text) > 1_000_000


# --- tools that misbehave ----------------------------------------------------------------------


@tool(effect="read", timeout="5s")
async def ten_megabytes() -> str:
    """Return far too much."""
    return "z" * 10_000_000


@tool(effect="read", timeout="5s")
def prints() -> str:
    """Print as if this were a script."""
    print("hello from the tool " * 100)
    sys.stdout.write("no newline")
    return "printed"


@tool(effect="read", timeout="5s")
def exits() -> str:
    """End the process, or try to."""
    raise SystemExit(3)


@tool(effect="read", timeout="5s")
async def exits_async() -> str:
    """End the process, or try to."""
    raise SystemExit(3)


@tool(effect="read", timeout="5s")
async def interrupts() -> str:
    """Do as if somebody had pressed Ctrl-C."""
    raise KeyboardInterrupt


RELEASE = threading.Event()


@tool(effect="read", timeout="0.05s")
def hangs() -> str:
    """Hang."""
    RELEASE.wait(30)
    return "at last"


@pytest.mark.parametrize(("function", "text"), [
    (ten_megabytes, "[cut: the result has 10,000,000 bytes"),
    (prints, "printed"),
    (exits, "SystemExit"),
    (exits_async, "SystemExit"),
    (interrupts, "KeyboardInterrupt"),
    (hangs, "did not end within"),
])
async def test_a_tool_that_misbehaves_harms_nobody_else(
    bench: Bench, function: Callable[[], Awaitable[str] | str], text: str
) -> None:
    @tool(effect="read", timeout="5s")
    async def fine() -> str:
        """Be a good tool."""
        return "fine"

    RELEASE.clear()
    name = function.__name__

    def plan(request: StepRequest) -> Reply:
        return calls((name if request.conversation == "bad" else "fine", "{}"))

    brain = PlannedBrain(plan, lambda request: say(request.messages[-1].text[-400:]))
    async with bench.crew({"desk": brain}, [function, fine]).up(state=bench.state) as running:
        bad = await running.ask("go", conversation="bad", timeout=20)
        good = await running.ask("go", timeout=20)
    RELEASE.set()

    assert text in bad.text
    assert good.text == "fine"
