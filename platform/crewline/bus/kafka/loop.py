"""The event loop for a process whose bus is Kafka: uvloop where it is installed, for a third less latency."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop: uvloop's (not on Windows, where it does not exist), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` as `asyncio.run` does, on the loop for Kafka."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)
