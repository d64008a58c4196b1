"""Slots and threads: nothing is lost when a waiter is cancelled or a function hangs."""

import asyncio
import contextvars
import threading

import pytest
from crewline_tools.slots import Slots
from crewline_tools.threads import Threads


async def test_slots_are_given_in_order_of_asking() -> None:
    slots, order = Slots(1), []
    await slots.take()

    async def work(name: int) -> None:
        await slots.take()
        order.append(name)
        slots.free()

    tasks = [asyncio.create_task(work(name)) for name in range(5)]
    await asyncio.sleep(0)
    assert (slots.taken, slots.waiting) == (1, 5)
    slots.free()
    await asyncio.gather(*tasks)

    assert order == [0, 1, 2, 3, 4]
    assert slots.taken == 0


async def test_who_is_cancelled_while_waiting_takes_no_slot_along() -> None:
    slots = Slots(1)
    await slots.take()
    first, second = (asyncio.create_task(slots.take()) for _ in range(2))
    await asyncio.sleep(0)

    slots.free()  # given to the first, who is cancelled before he hears of it
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second

    assert (slots.taken, slots.waiting) == (1, 0)
    third = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    slots.free()
    assert slots.taken == 0


def test_a_pool_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Slots(0)


async def test_threads_are_used_again_and_a_hanging_one_stops_nobody() -> None:
    threads, release = Threads("test"), threading.Event()
    hanging = threads.start(release.wait)

    for number in range(20):
        assert await threads.start(lambda: number) == number  # noqa: B023
    assert threads.made == 2

    release.set()
    assert await hanging is True
    threads.close()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
async def test_whatever_a_function_raises_ends_the_function_alone(error: BaseException) -> None:
    threads = Threads("test")

    def fail() -> None:
        raise error

    raised = await asyncio.gather(_caught(threads.start(fail)))
    assert raised == [error]
    assert await threads.start(lambda: 1) == 1
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.start(lambda: next(iter(())))
    threads.close()


async def _caught(future: "asyncio.Future[None]") -> BaseException | None:
    await asyncio.wait({future})
    return future.exception()


async def test_context_variables_reach_the_thread() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("here")
    threads = Threads("test")

    assert await threads.start(name.get) == "here"
    threads.close()
