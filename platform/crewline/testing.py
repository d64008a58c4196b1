"""What tests of crews use. (More of it comes with the Python API's issue: a plugin, a scripted model, a clock.)"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

LOOK_S = 0.01


async def until(condition: Callable[[], Any | Awaitable[Any]], *, seconds: float = 20.0) -> Any:
    """Wait until `condition()` (or what it awaits) is true; return that value.

    Args:
        seconds: how long to wait at most.

    Raises: AssertionError if it does not come true in time.
    """
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"the condition did not come true within {seconds:g} s")
        await asyncio.sleep(LOOK_S)
