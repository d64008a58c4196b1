"""A tool pool at work: one process or two, killed, late, cut off; tools that fail in every way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from crewline.bus.base import Message, Position
from crewline.events import CallDone, CallStarted, IntentPublished, header
from crewline.testing import until
from crewline.topics import TopicSpec
from crewline_tools.context import ToolContext
from crewline_tools.errors import ToolError
from crewline_tools.functions import make
from crewline_tools.pool import PoolOptions
from crewline_tools.reconcile import Settled, UncertainCall
from crewline_tools.registry import ToolOptions, merge
from pool_bench import PARTITIONS, TOOLS_TOPIC, TOPICS, MemoryBus, PoolBench, now_ms

CALL = "c1:t1:s1:c0"
X1 = f"{CALL}:x1"


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PoolBench]:
    if request.param == "memory":
        made = PoolBench(MemoryBus())
        yield made
        await _stop(made)
        return
    sqlite = pytest.importorskip("crewline.bus.sqlite")
    bus = await sqlite.open_bus(tmp_path / "log")
    await bus.create_topics([TopicSpec(name, PARTITIONS) for name in (TOPICS.conversations, TOOLS_TOPIC, TOPICS.tokens)])
    made = PoolBench(bus)
    yield made
    await _stop(made)
    await bus.close()


@pytest.fixture
async def memory() -> AsyncIterator[PoolBench]:
    """On the log in memory: with faults that a real one cannot be asked for."""
    made = PoolBench(MemoryBus())
    yield made
    await _stop(made)


async def _stop(bench: PoolBench) -> None:
    for process in bench.processes:
        if not process.task.done():
            await process.stop()


class Counter:
    """A tool's effect on the world: how often, and with which keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __len__(self) -> int:
        return len(self.keys)


def add(bench: PoolBench, function: Callable[..., Any], **said: Any) -> None:
    made = make(function, **{"effect": "destructive", "timeout": "10s", **said})
    bench.tools[made.spec.name] = made


def add_counting(bench: PoolBench, counter: Counter, *, blocking: bool = False, **said: Any) -> None:
    """Add `work`, which counts its runs and says "done"."""

    async def work(ctx: ToolContext) -> str:
        counter.keys.append(ctx.idempotency_key)
        return "done"

    def work_in_thread(ctx: ToolContext) -> str:
        counter.keys.append(ctx.idempotency_key)
        return "done"

    add(bench, work_in_thread if blocking else work, name="work", **said)


# --- what is run, and how it ends --------------------------------------------------------------


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_safe_tool_is_run_without_a_claim_and_reported(bench: PoolBench, blocking: bool) -> None:
    counter = Counter()
    add_counting(bench, counter, blocking=blocking, effect="read")
    await bench.start()

    id, completed = await bench.outcome(bench.request("work"))

    assert (id, completed.outcome, completed.output) == (X1, "ok", "done")
    await until(lambda: bench.processes[0].pool.slots.taken == 0)
    await until(lambda: _is(bench.kinds(), ["call.requested", "call.done"]))
    assert len(counter) == 1


@pytest.mark.parametrize("blocking", [False, True])
async def test_an_unsafe_tool_is_claimed_run_once_and_reported_whole(bench: PoolBench, blocking: bool) -> None:
    counter = Counter()
    add_counting(bench, counter, blocking=blocking)
    await bench.start()

    id, completed = await bench.outcome(bench.request("work"))

    assert (id, completed.outcome, completed.output, completed.code) == (X1, "ok", "done", None)
    assert await bench.kinds() == ["call.requested", "call.started", "call.done"]
    assert len(counter) == 1
    assert bench.processes[0].pool.slots.taken == 0


async def _is(found: Any, expected: Any) -> bool:
    return bool(await found == expected)


async def test_arguments_and_context_reach_the_tool(bench: PoolBench) -> None:
    def look(order: str, customer: str, ctx: ToolContext) -> dict[str, Any]:
        return {"order": order, "customer": customer, "who": [ctx.user, ctx.agent, ctx.run, ctx.conversation, ctx.call_id]}

    add(bench, look, effect="read")
    tool = bench.tools["look"]
    bench.tools["look"] = _injecting(tool, customer="user.id")
    await bench.start()

    _, completed = await bench.outcome(
        bench.request("look", '{"order": "A-1"}', asked={"injected": {"customer": "u1"}}))

    assert completed.output == (
        '{"order":"A-1","customer":"u1","who":["u1","desk","r1","c1","c1:t1:s1:c0"]}')


def _injecting(tool: Any, **inject: str) -> Any:
    return merge(tool, ToolOptions(inject=inject))


async def test_a_safe_tool_is_tried_again_with_the_same_key(bench: PoolBench) -> None:
    counter = Counter()
    attempts: list[int] = []

    async def flaky(ctx: ToolContext) -> str:
        counter.keys.append(ctx.idempotency_key)
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError("reset")
        if ctx.attempt == 2:
            raise ToolError("busy", retryable=True)
        return "there"

    add(bench, flaky, effect="write", idempotent=True, retries=3)
    await bench.start()

    _, completed = await bench.outcome(bench.request("flaky"))

    assert completed.output == "there"
    assert attempts == [1, 2, 3]
    assert len(set(counter.keys)) == 1


@pytest.mark.parametrize(("error", "code", "say"), [
    (ToolError("closed", fix={"max": 3}), "tool", "closed"),
    (ToolError("closed", ran=False), "tool.not_run", "closed"),
    (ValueError("odd"), "tool.raised", "ValueError: odd"),
    (SystemExit(3), "tool.raised", "SystemExit: 3"),
])
@pytest.mark.parametrize("blocking", [False, True])
async def test_a_safe_tool_that_fails_is_an_error_for_the_model(
    memory: PoolBench, error: BaseException, code: str, say: str, blocking: bool
) -> None:
    _add_raising(memory, error, blocking, effect="read")
    await memory.start()

    id, completed = await memory.outcome(memory.request("fail"))

    assert (id, completed.outcome, completed.code, completed.output) == (X1, "error", code, say)
    assert completed.fix == ({"max": 3} if isinstance(error, ToolError) and error.fix else None)


def _add_raising(bench: PoolBench, error: BaseException, blocking: bool, **said: Any) -> None:
    async def fail() -> None:
        raise error

    def fail_in_thread() -> None:
        raise error

    add(bench, fail_in_thread if blocking else fail, name="fail", **said)


@pytest.mark.parametrize(("error", "outcome", "id"), [
    (ToolError("closed"), "error", X1),
    (ToolError("no connection", ran=False), "error", X1),
    (ConnectionError("reset"), "unknown", f"{X1}:unknown"),
    (SystemExit(3), "unknown", f"{X1}:unknown"),
    (KeyboardInterrupt(), "unknown", f"{X1}:unknown"),
    (asyncio.CancelledError(), "unknown", f"{X1}:unknown"),
])
@pytest.mark.parametrize("blocking", [False, True])
async def test_an_unsafe_tool_that_raises_anything_but_its_own_word_is_unknown(
    memory: PoolBench, error: BaseException, outcome: str, id: str, blocking: bool
) -> None:
    counter = Counter()
    _add_raising(memory, error, blocking)
    add_counting(memory, counter)
    await memory.start()

    found, completed = await memory.outcome(memory.request("fail"))

    assert (found, completed.outcome) == (id, outcome)
    await memory.outcome(memory.request("work", key="c2"))  # and the pool goes on
    assert len(counter) == 1


async def test_a_result_that_cannot_be_shown_is_an_error_only_where_nothing_happened(memory: PoolBench) -> None:
    def odd() -> object:
        return threading.Event()

    add(memory, odd, name="read_odd", effect="read")
    add(memory, odd, name="pay_odd")
    await memory.start()

    _, read = await memory.outcome(memory.request("read_odd"))
    _, paid = await memory.outcome(memory.request("pay_odd", key="c2"))

    assert (read.outcome, read.code) == ("error", "tool.result")
    assert (paid.outcome, paid.code) == ("ok", None)
    assert "threading.Event" in paid.output


async def test_ten_megabytes_are_cut(bench: PoolBench) -> None:
    async def much() -> str:
        return "\x00" * 10_000_000

    add(bench, much)
    await bench.start()

    _, completed = await bench.outcome(bench.request("much"))

    assert completed.outcome == "ok"
    assert "[cut: the result has 10,000,000 bytes" in completed.output


async def test_arguments_that_do_not_fit_call_nothing(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter)
    await memory.start()

    id, completed = await memory.outcome(memory.request("work", '{"x": 1}'))

    assert (id, completed.outcome, completed.code) == (X1, "error", "tool.arguments")
    assert len(counter) == 0


# --- time --------------------------------------------------------------------------------------


async def test_a_safe_tool_that_takes_too_long_is_cancelled_and_is_an_error(memory: PoolBench) -> None:
    cancelled = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    add(memory, slow, effect="read", timeout="20ms", retries=1)
    await memory.start()

    _, completed = await memory.outcome(memory.request("slow"))

    assert (completed.outcome, completed.code) == ("error", "tool.timeout")
    assert cancelled.is_set()


async def test_an_unsafe_tool_that_takes_too_long_is_unknown_unless_it_says_otherwise(memory: PoolBench) -> None:
    async def silent() -> None:
        await asyncio.Event().wait()

    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ToolError("not sent yet", ran=False) from None

    add(memory, silent, timeout="20ms")
    add(memory, careful, timeout="20ms")
    await memory.start()

    assert (await memory.outcome(memory.request("silent")))[1].outcome == "unknown"
    _, completed = await memory.outcome(memory.request("careful", key="c2"))
    assert (completed.outcome, completed.code) == ("error", "tool.not_run")


async def test_a_thread_that_hangs_is_given_up_others_go_on_and_its_late_outcome_counts(memory: PoolBench) -> None:
    release = threading.Event()
    told: list[bool] = []
    counter = Counter()

    def hang(ctx: ToolContext) -> str:
        release.wait(20)
        told.append(ctx.cancelled)
        return "paid after all"

    add(memory, hang, timeout="20ms")
    add_counting(memory, counter, blocking=True)
    process = await memory.start(options=PoolOptions(slots=1))
    id, completed = await memory.outcome(memory.request("hang"))
    assert (id, completed.outcome) == (f"{X1}:unknown", "unknown")
    assert process.pool.runner.given_up == 1

    await memory.outcome(memory.request("work", key="c2"))  # with the one slot there is
    assert len(counter) == 1

    release.set()
    late = dict(await memory.told(count=2, key="c1"))
    assert (late[X1].outcome, late[X1].output) == ("ok", "paid after all")
    assert told == [True]
    await until(lambda: process.pool.runner.given_up == 0)


async def test_a_claim_that_is_too_old_when_it_is_read_back_is_abandoned(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter)
    uptime = iter(range(0, 1_000_000, 6))
    await memory.start(uptime_s=lambda: float(next(uptime)))

    id, completed = await memory.outcome(memory.request("work"))

    assert (id, completed.outcome) == (f"{X1}:abandoned", "abandoned")
    assert len(counter) == 0
    assert memory.processes[0].pool.slots.taken == 0


async def test_a_claim_that_a_stopping_process_cannot_use_is_given_up_so_that_nobody_is_asked(memory: PoolBench) -> None:
    """A deploy must leave no unknown call behind: what was claimed and has not begun is said not to have run."""
    counter = Counter()
    add_counting(memory, counter)
    process = await memory.start()
    append = process.cable.append

    def stop_at_the_claim(messages: Sequence[Message]) -> Awaitable[list[Position]]:
        if any(header(message.headers, "ce_type") == CallStarted.TYPE for message in messages):
            process.engine.stop(drain_s=1.0)
        return append(messages)

    process.cable.append = stop_at_the_claim  # type: ignore[method-assign]
    await memory.bus.append([memory.request("work")])
    await process.task
    await process.pool.close()
    assert await memory.kinds() == ["call.requested", "call.started", "call.abandoned"]

    await memory.start()
    id, completed = (await memory.told())[0]
    assert (id, completed.outcome, len(counter)) == (f"{X1}:abandoned", "abandoned", 0)
    assert process.pool.slots.taken == 0


async def test_a_claim_that_never_comes_back_is_given_up_in_its_time(
    memory: PoolBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partition went to another member in between: that one hears that it did not run."""
    monkeypatch.setattr("crewline_tools.pool.CLAIM_S", 0.05)
    counter = Counter()
    add_counting(memory, counter)
    process = await memory.start()
    append = process.cable.append

    def let_go_at_the_claim(messages: Sequence[Message]) -> Awaitable[list[Position]]:
        if any(header(message.headers, "ce_type") == CallStarted.TYPE for message in messages):
            process.engine.stop()
        return append(messages)

    process.cable.append = let_go_at_the_claim  # type: ignore[method-assign]
    await memory.bus.append([memory.request("work")])
    await process.task

    async def given_up() -> bool:
        return await memory.kinds() == ["call.requested", "call.started", "call.abandoned"]

    await until(given_up)
    assert (len(counter), process.pool.slots.taken) == (0, 0)
    await process.pool.close()


# --- two processes, and processes that die -----------------------------------------------------


async def test_two_owners_of_one_partition_run_an_unsafe_tool_once(bench: PoolBench) -> None:
    counter = Counter()
    add_counting(bench, counter)
    first, second = await bench.start(group="one"), await bench.start(group="two")

    await bench.bus.append([bench.request("work", key=f"c{n}") for n in range(40)])
    told = await bench.told(count=40)

    assert {completed.outcome for _, completed in told} == {"ok"}
    assert len(told) == 40
    assert len(counter) == len(set(counter.keys)) == 40
    await until(lambda: first.pool.slots.taken == second.pool.slots.taken == 0)


async def test_a_started_execution_whose_process_is_gone_becomes_unknown(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter, timeout="20ms")
    await _started_by_a_lost_process(memory, memory.request("work"))
    await memory.start()

    (id, completed), = await memory.told()

    assert (id, completed.outcome, completed.code) == (f"{X1}:unknown", "unknown", "call.lost")
    assert len(counter) == 0

    await memory.bus.append([memory.message("c1", CallDone(CALL, 1, "ok", "it had run"), f"{X1}:done")])
    late = dict(await memory.told(count=2))
    assert (late[X1].outcome, late[X1].output) == ("ok", "it had run")


async def _started_by_a_lost_process(bench: PoolBench, request: Message) -> None:
    """Append a request and a claim, ten seconds ago."""
    bench.bus.behind_ms = 10_000
    await bench.bus.append([request, bench.message("c1", CallStarted(CALL, 1, "lost"), f"{X1}:claim")])
    bench.bus.behind_ms = 0


async def test_a_clock_that_is_ahead_settles_nothing_while_the_call_still_runs(memory: PoolBench) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    pauses: list[float] = []

    async def pay() -> str:
        began.set()
        await go_on.wait()
        return "paid"

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.Event().wait()

    add(memory, pay, reconcile=lambda call: call.not_run())
    await memory.start(group="one")
    await memory.bus.append([memory.request("pay")])
    await began.wait()
    await memory.start(group="two", clock_ms=lambda: now_ms() + 600_000, sleep=pause)
    await until(lambda: pauses)
    go_on.set()

    assert [(id, completed.outcome) for id, completed in await memory.told()] == [(X1, "ok")]
    assert 14 < pauses[0] <= 15  # claim and timeout, by the broker's time


@pytest.mark.parametrize(("settle", "id", "outcome"), [
    (lambda call: call.ran({"id": 7}), X1, "ok"),
    (lambda call: call.not_run(), f"{X1}:abandoned", "abandoned"),
    (lambda call: call.cannot_say(), f"{X1}:unknown", "unknown"),
    (lambda call: None, f"{X1}:unknown", "unknown"),
    (lambda call: 1 / 0, f"{X1}:unknown", "unknown"),
])
async def test_a_lost_execution_is_settled_by_its_reconcile_function(
    memory: PoolBench, settle: Callable[[UncertainCall], Any], id: str, outcome: str
) -> None:
    asked: list[UncertainCall] = []

    def find(call: UncertainCall) -> Any:
        asked.append(call)
        return settle(call)

    def pay(amount: float) -> None: ...

    add(memory, pay, timeout="20ms", reconcile=find)
    await _started_by_a_lost_process(memory, memory.request("pay", '{"amount": 5}'))
    await memory.start()

    (found, completed), = await memory.told()

    assert (found, completed.outcome) == (id, outcome)
    assert asked[0].arguments == {"amount": 5.0}
    assert asked[0].call_id == CALL


@pytest.mark.parametrize(("settle", "outcome", "code"), [
    (lambda call: call.ran("found it"), "ok", None),
    (lambda call: call.not_run(), "error", "tool.not_run"),
    (lambda call: call.cannot_say(), "unknown", "tool.raised"),
])
async def test_a_tool_that_raised_is_asked_what_it_did(
    memory: PoolBench, settle: Callable[[UncertainCall], Settled], outcome: str, code: str | None
) -> None:
    async def find(call: UncertainCall) -> Settled:
        return settle(call)

    _add_raising(memory, ConnectionError("reset"), False, reconcile=find)
    await memory.start()

    _, completed = await memory.outcome(memory.request("fail"))

    assert (completed.outcome, completed.code) == (outcome, code)


async def test_not_run_is_not_believed_of_a_call_that_still_goes_on(memory: PoolBench) -> None:
    release = threading.Event()

    def hang() -> str:
        release.wait(20)
        return "paid"

    add(memory, hang, timeout="20ms", reconcile=lambda call: call.not_run())
    await memory.start()

    assert (await memory.outcome(memory.request("hang")))[1].outcome == "unknown"
    release.set()
    assert dict(await memory.told(count=2))[X1].outcome == "ok"


async def test_a_process_killed_in_mid_run_leaves_an_unknown_and_no_second_run(memory: PoolBench) -> None:
    began = asyncio.Event()
    counter = Counter()

    async def pay(ctx: ToolContext) -> None:
        counter.keys.append(ctx.idempotency_key)
        began.set()
        await asyncio.Event().wait()

    add(memory, pay, timeout="1s")
    memory.bus.behind_ms = 10_000
    first = await memory.start(group="one")
    await memory.bus.append([memory.request("pay")])
    await began.wait()
    await first.kill()
    memory.bus.behind_ms = 0

    await memory.start(group="two")
    (id, completed), = await memory.told()

    assert (id, completed.outcome) == (f"{X1}:unknown", "unknown")
    assert len(counter) == 1


async def test_a_safe_execution_is_run_again_after_a_kill_with_the_same_key(memory: PoolBench) -> None:
    counter = Counter()
    began = asyncio.Event()

    async def look(ctx: ToolContext) -> str:
        counter.keys.append(ctx.idempotency_key)
        began.set()
        if len(counter) == 1:
            await asyncio.Event().wait()
        return "there"

    add(memory, look, effect="read")
    first = await memory.start(group="one")
    await memory.bus.append([memory.request("look")])
    await began.wait()
    await first.kill()
    await memory.start(group="two")

    (_, completed), = await memory.told()

    assert completed.output == "there"
    assert len(counter) == 2
    assert len(set(counter.keys)) == 1


async def test_after_a_restart_nothing_that_is_over_runs_again(bench: PoolBench) -> None:
    counter = Counter()
    add_counting(bench, counter)
    bench.tools["read"] = make(bench.tools["work"].function, effect="read", name="read")
    first = await bench.start()
    await bench.bus.append([bench.request("work"), bench.request("read", key="c2")])
    await bench.told(count=2)
    await until(lambda: _is(bench.kinds("c2"), ["call.requested", "call.done"]))
    await first.stop()

    await bench.bus.append([bench.request("work"), bench.request("read", key="c2")])  # late repeats
    await bench.start()
    await bench.outcome(bench.request("work", key="c3"))

    assert len(counter) == 3


async def test_a_pool_that_is_stopped_in_mid_run_waits_for_the_outcome(bench: PoolBench) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def pay() -> str:
        began.set()
        await go_on.wait()
        return "paid"

    add(bench, pay)
    first = await bench.start()
    await bench.bus.append([bench.request("pay")])
    await began.wait()
    first.engine.stop()
    await first.task  # its partitions are somebody else's now
    asyncio.get_running_loop().call_later(0.01, go_on.set)
    await first.pool.close()

    assert await bench.kinds() == ["call.requested", "call.started", "call.done"]
    await bench.start()
    assert (await bench.told())[0][1].output == "paid"


async def test_answers_of_the_bus_that_get_lost_cost_repeats_and_no_second_run(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter)
    await memory.start()
    await memory.bus.append([memory.request("work")])
    memory.bus.fail_appends = 3

    (id, completed), = await memory.told()

    assert (id, completed.outcome) == (X1, "ok")
    assert len(counter) == 1


# --- refusals and revocations ------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["read", "destructive"])
@pytest.mark.parametrize(("judged", "id", "code"), [
    ({"expires_ms": 1}, f"{X1}:refused", "verdict.expired"),
    ({"tool": "other"}, X1, "verdict.tool"),
    ({"decision": "deny"}, X1, "verdict.decision"),
    ({"catalogue": "other"}, X1, "verdict.catalogue"),
])
async def test_a_call_whose_verdict_does_not_hold_is_refused(
    bench: PoolBench, effect: str, judged: dict[str, Any], id: str, code: str
) -> None:
    counter = Counter()
    add_counting(bench, counter, effect=effect)
    await bench.start()

    found, completed = await bench.outcome(bench.request("work", **judged))

    assert (found, completed.outcome, completed.code) == (id, "refused", code)
    assert await bench.kinds() == ["call.requested", "call.refused"]
    assert len(counter) == 0


async def test_the_next_execution_runs_after_an_expiry(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter)
    await memory.start()
    await memory.outcome(memory.request("work", expires_ms=1))
    await memory.bus.append([memory.request("work", execution=2), memory.request("work")])

    told = dict(await memory.told(count=2))

    assert told[f"{CALL}:x2"].outcome == "ok"
    assert len(counter) == 1


async def test_a_call_revoked_before_it_is_asked_for_never_runs(bench: PoolBench) -> None:
    counter = Counter()
    add_counting(bench, counter)
    await bench.start()

    id, completed = await bench.outcome(bench.revoke())
    await bench.bus.append([bench.request("work")])
    await bench.outcome(bench.request("work", key="c3"))

    assert (id, completed.outcome) == (X1, "revoked")
    assert len(counter) == 1


async def test_a_revoked_call_that_may_be_changing_something_is_run_to_its_end(memory: PoolBench) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def pay() -> str:
        began.set()
        await go_on.wait()
        return "paid"

    add(memory, pay, effect="destructive", idempotent=True)
    await memory.start()
    await memory.bus.append([memory.request("pay")])
    await began.wait()
    await memory.bus.append([memory.revoke()])
    go_on.set()

    _, completed = (await memory.told())[0]

    assert (completed.outcome, completed.output) == ("ok", "paid"), "nobody is told that it did not run"


async def test_a_revoked_safe_call_is_cancelled(memory: PoolBench) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def look() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    add(memory, look, effect="read")
    process = await memory.start()
    await memory.bus.append([memory.request("look")])
    await began.wait()

    _, completed = await memory.outcome(memory.revoke())

    assert completed.outcome == "revoked"
    await cancelled.wait()
    await until(lambda: process.pool.slots.taken == 0)


async def test_an_unsafe_call_that_runs_is_told_and_its_outcome_counts(memory: PoolBench) -> None:
    began, go_on = threading.Event(), threading.Event()
    seen: list[ToolContext] = []

    def pay(ctx: ToolContext) -> str:
        seen.append(ctx)
        began.set()
        go_on.wait(20)
        return "paid"

    add(memory, pay)
    await memory.start()
    await memory.bus.append([memory.request("pay")])
    await until(began.is_set)
    assert not seen[0].cancelled
    await memory.bus.append([memory.revoke()])
    await until(lambda: seen[0].cancelled)
    go_on.set()

    (id, completed), = await memory.told()

    assert (id, completed.outcome, completed.output) == (X1, "ok", "paid")


# --- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["read", "destructive"])
async def test_many_open_executions_run_some_at_a_time(bench: PoolBench, effect: str) -> None:
    now = peak = 0

    async def work() -> str:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0)
        now -= 1
        return "done"

    add(bench, work, effect=effect)
    process = await bench.start(options=PoolOptions(slots=3))

    await bench.bus.append([bench.request("work", key=f"c{n % 7}", k=n) for n in range(100)])
    told = await bench.told(count=100)

    assert {completed.outcome for _, completed in told} == {"ok"}
    assert peak == 3
    await until(lambda: process.pool.slots.taken == 0)


async def test_waiting_for_a_slot_does_not_use_up_a_claim(memory: PoolBench) -> None:
    go_on = asyncio.Event()
    order: list[str] = []

    async def work(name: str) -> str:
        order.append(name)
        await go_on.wait()
        return name

    add(memory, work)
    await memory.start(options=PoolOptions(slots=1))
    await memory.bus.append([memory.request("work", f'{{"name": "{n}"}}', k=n) for n in range(3)])
    await until(lambda: order)
    assert (await memory.kinds()).count("call.started") == 1

    go_on.set()
    await memory.told(count=3)
    assert order == ["0", "1", "2"]


async def test_progress_is_shown_in_passing(bench: PoolBench) -> None:
    def work(ctx: ToolContext) -> str:
        ctx.progress(1, 3, "one of three")
        ctx.progress(2, 3)  # at once after it: not shown
        return "done"

    async def odd(ctx: ToolContext) -> str:
        await ctx.progress("x", say="no number")  # type: ignore[arg-type]
        return "done"

    add(bench, work)
    add(bench, odd)
    await bench.start()
    await bench.outcome(bench.request("work"))
    _, completed = await bench.outcome(bench.request("odd", key="c2"))

    shown = await until(lambda: bench.records(TOPICS.tokens))
    assert [(event.call, event.done, event.total, event.say) for _, event in shown] == [(CALL, 1.0, 3.0, "one of three")]
    assert completed.outcome == "ok"


async def test_records_that_are_none_of_the_pools_change_nothing(memory: PoolBench) -> None:
    counter = Counter()
    add_counting(memory, counter)
    await memory.start()
    request = memory.request("work")
    unsealed = [header for header in request.headers if header[0] != "seal"]
    await memory.bus.append([
        request._replace(headers=tuple(unsealed)),
        memory.scribe.message(TOOLS_TOPIC, "c1", IntentPublished(agent="desk"), id="i1", run="i1"),
        request._replace(value=None),
    ])
    await memory.outcome(memory.request("work", key="c2"))

    assert len(counter) == 1
