"""What may come in either order: cancel and claim, decision and deadline, a late outcome and a person's word, repeats."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from crewline import RunFailed, ToolContext, tool
from crewline import events as ev
from crewline.bus.base import Message
from crewline.crews.running import Running
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.records import GUARD, PEOPLE, Scribe
from crewline.seal import load_keys
from flow_bench import Bench, PlannedBrain, calls, say, until

PAY = calls(("pay", '{"amount": 60}'))
HOLD = PolicySet(
    [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")],
    approvals=Approvals(("leads",), 3600.0),
)


class Till:
    """A payment that takes until it is let go; a plain function, which nobody can stop."""

    def __init__(self) -> None:
        self.paid: list[float] = []
        self.cancelled = False
        self.began = asyncio.Event()
        self.release = threading.Event()
        loop = asyncio.get_running_loop()

        @tool(effect="destructive", timeout="0.3s")
        def pay(amount: float, ctx: ToolContext) -> str:
            """Pay out."""
            self.paid.append(amount)
            loop.call_soon_threadsafe(self.began.set)
            self.release.wait(20)
            self.cancelled = ctx.cancelled
            return f"paid {amount:g}"

        self.pay = pay


def told() -> PlannedBrain:
    return PlannedBrain(PAY, lambda request: say(request.messages[-1].text))


def scribe_of(running: Running) -> Scribe:
    return Scribe(load_keys(running.state / "keys"), source="demo", now_ms=lambda: 0)


async def kinds(running: Running, topic: str, key: str) -> list[str]:
    """Return the types of a conversation's records on a topic, in order."""
    found = []
    begins, ends = await running.bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await running.bus.read(topic, partition, offset)
            found += [ev.header(record.headers, "ce_type") or "" for record in batch.records if record.key.decode() == key]
            offset = batch.next_offset
    return found


# --- cancel and claim --------------------------------------------------------------------------


async def test_a_cancel_before_the_claim_calls_the_call_back(bench: Bench) -> None:
    till = Till()
    till.release.set()
    crew = bench.crew({"desk": told()}, [till.pay])
    async with crew.up(state=bench.state, only=["worker", "guardrail"]) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        topic = running.roster.topics.tools("main")
        await until(lambda: kinds(running, topic, "i-1"))
        await running.client.cancel("i-1", by="u-1")
        await until(lambda: _revoked(running, topic))
        async with crew.up(state=bench.state, only=["tools"]):
            with pytest.raises(RunFailed) as failure:
                await handle.answer(20)

    assert failure.value.reason_code == "cancelled"
    assert till.paid == []


async def _revoked(running: Running, topic: str) -> bool:
    return "call.revoked" in await kinds(running, topic, "i-1")


async def test_a_cancel_after_the_claim_waits_for_the_outcome(bench: Bench) -> None:
    till = Till()
    async with bench.crew({"desk": told()}, [till.pay]).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await till.began.wait()
        await running.client.cancel("i-1", by="u-1")
        await until(lambda: _revoked(running, running.roster.topics.tools("main")))
        assert (await running.client.projection()).turns["i-1:t1"].finished_ms is None, "what was begun may have happened"
        till.release.set()
        with pytest.raises(RunFailed) as failure:
            await handle.answer(20)
        completed = [turn.tools for turn in (await running.client.projection()).turns.values()]

    assert failure.value.reason_code == "cancelled"
    assert till.paid == [60]
    assert completed == [["pay"]]


# --- decision and deadline ---------------------------------------------------------------------


@pytest.mark.parametrize("first", ["person", "deadline"])
async def test_of_a_decision_and_a_deadline_the_first_in_the_log_counts(bench: Bench, first: str) -> None:
    till = Till()
    till.release.set()
    async with bench.crew({"desk": told()}, [till.pay], policies=HOLD).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        held = (await until(running.client.open_calls))[0].call
        deadline = ev.ApprovalDecided(held.id, 1, held.verdict.args_sha256, "deny", "deadline")
        approval = ev.ApprovalDecided(held.id, 1, held.verdict.args_sha256, "approve", "lead")
        messages = [
            _signed(running, approval, PEOPLE, "by-lead"), _signed(running, deadline, GUARD, f"{held.id}:j1:deadline"),
        ]
        await running.bus.append(messages if first == "person" else messages[::-1])
        answer = await handle.answer(20)

    assert (answer.text, till.paid) == (("paid 60", [60]) if first == "person" else (answer.text, []))
    assert first == "person" or "approval.expired" in answer.text


def _signed(running: Running, event: ev.Event, by: str, id: str) -> Message:
    return scribe_of(running).message(running.roster.topics.conversations, "i-1", event, id=id, run="i-1", signed_by=by)


# --- unknown, and what comes late --------------------------------------------------------------


async def unknown_call(running: Running) -> str:
    found = await until(running.client.open_calls)
    assert found[0].call.status == "unknown"
    return found[0].id


async def test_a_tool_that_hangs_is_unknown_and_its_late_outcome_closes_it(bench: Bench) -> None:
    till = Till()
    async with bench.crew({"desk": told()}, [till.pay]).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await unknown_call(running)
        till.release.set()
        answer = await handle.answer(20)

    assert answer.text == "paid 60"
    assert (till.paid, till.cancelled) == ([60], True)


@pytest.mark.parametrize(("resolution", "text"), [("ran", "the bank says so"), ("give_up", "call.unknown")])
async def test_a_persons_word_on_an_unknown_call_stands_against_what_comes_later(
    bench: Bench, resolution: str, text: str
) -> None:
    till = Till()
    async with bench.crew({"desk": told()}, [till.pay]).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await running.client.resolve(await unknown_call(running), resolution, by="lead", output="the bank says so")  # type: ignore[arg-type]
        answer = await handle.answer(20)
        till.release.set()
        await until(lambda: _kinds(running, "call.completed", 2))
        state = (await running.client.projection()).states["i-1"]

    assert text in answer.text
    assert (state.turn, state.parked, state.rejected) == (None, None, ())
    assert till.paid == [60]


async def _kinds(running: Running, kind: str, count: int) -> bool:
    return (await kinds(running, running.roster.topics.conversations, "i-1")).count(kind) >= count


async def test_a_call_that_did_not_run_is_judged_and_run_once_more(bench: Bench) -> None:
    broken: list[float] = []

    @tool(effect="destructive", timeout="5s")
    async def pay(amount: float) -> str:
        """Fail once before anything happened, without being able to say so."""
        broken.append(amount)
        if len(broken) == 1:
            raise OSError("no route to the bank")
        return "paid"

    async with bench.crew({"desk": told()}, [pay]).up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        await running.client.resolve(await unknown_call(running), "not_run", by="lead")
        answer = await handle.answer(20)

    assert answer.text == "paid"
    assert broken == [60, 60]


# --- repeats -----------------------------------------------------------------------------------


async def test_a_call_dispatched_again_runs_once(bench: Bench) -> None:
    """A worker that dies before it knows that its request is in the log sends it again: so may a zombie, later."""
    till = Till()
    till.release.set()
    crew = bench.crew({"desk": told()}, [till.pay])
    async with crew.up(state=bench.state) as running:
        handle = await running.client.publish("pay", agent="desk", intent="i-1")
        topic = running.roster.topics.tools("main")
        await until(lambda: kinds(running, topic, "i-1"))
        await _again(running, topic, ["call.requested"] * 2)
        answer = await handle.answer(20)
        await _again(running, topic, ["call.requested", "call.started", "call.done"])
    async with crew.up(state=bench.state) as running:
        await running.ready()
        after = await running.ask("pay", timeout=20)

    assert answer.text == after.text == "paid 60"
    assert till.paid == [60, 60], "one each"


async def _again(running: Running, topic: str, wanted: Sequence[str]) -> None:
    """Append copies of a conversation's records once more."""
    begins, ends = await running.bus.offsets(topic)
    found: dict[str, Message] = {}
    for partition, end in ends.items():
        if begins[partition] < end:
            batch = await running.bus.read(topic, partition, begins[partition])
            for record in batch.records:
                found[ev.header(record.headers, "ce_type") or ""] = Message(topic, record.key, record.value, record.headers)
    await running.bus.append([found[kind] for kind in wanted])
