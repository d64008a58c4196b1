"""Lines of the log as JSON: each says role, conversation and run, whoever wrote it, in whichever thread."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from crewline import tool
from crewline.cli import logs
from crewline.cli.settings import Settings
from crewline.errors import UsageError
from crewline.telemetry import Telemetry
from flow_bench import Bench, PlannedBrain, calls, say


@tool(effect="read", timeout="5s")
def count_stock(secret: str) -> str:
    """Count, in a thread."""
    logging.getLogger("shop.stock").warning("counting %d shelves", 3)
    return "12"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """What stands on stderr, as documents."""
    monkeypatch.setenv("CREWLINE_LOG_FORMAT", "json")
    root = logging.getLogger()
    before = list(root.handlers)
    logs.set_up(Settings(), tracebacks=True)
    yield lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    root.handlers[:] = before


async def test_a_line_of_a_tool_says_whose_call_it_was(bench: Bench, lines: Any) -> None:
    brain = PlannedBrain(calls(("count_stock", '{"secret": "XYZZY"}')), say("12"))
    async with Telemetry() as telemetry, bench.crew({"desk": brain}, [count_stock]).up(state=bench.state) as running:
        telemetry.watch(running.roster, running.bus, running.engines)
        await running.ready()
        handle = await running.client.publish("count", agent="desk", conversation="c1", intent="i1")
        await handle.answer()
    written = lines()

    line = next(each for each in written if each["logger"] == "shop.stock")
    time = line.pop("time")
    assert line == {"level": "warning", "logger": "shop.stock", "message": "counting 3 shelves", "role": "tools.main",
                    "conversation": "c1", "run": "i1"}
    assert time.endswith("Z")
    assert "XYZZY" not in str(written)


async def test_a_line_of_a_brain_says_whose_turn_it_was(bench: Bench, lines: Any) -> None:
    def think(_: Any) -> Any:
        logging.getLogger("shop.brain").error("it hurts", exc_info=ValueError("thinking"))
        return say("hi")

    async with Telemetry() as telemetry, bench.crew({"desk": PlannedBrain(think)}).up(state=bench.state) as running:
        telemetry.watch(running.roster, running.bus, running.engines)
        await running.ask("hi", conversation="c1", timeout=20)

    line = next(each for each in lines() if each["logger"] == "shop.brain")
    assert (line["role"], line["conversation"]) == ("worker", "c1")
    assert line["exception"] == "ValueError: thinking"


async def test_a_line_outside_of_any_conversation_says_whose_task_wrote_it(lines: Any) -> None:
    async def poll() -> None:
        logging.getLogger("crewline.engine").warning("the broker is away")

    await asyncio.create_task(poll(), name="tools.payments")
    logging.getLogger("crewline").warning("no role")

    assert [(line.get("role"), line["message"]) for line in lines()] == [
        ("tools.payments", "the broker is away"), (None, "no role"),
    ]


def test_a_format_that_there_is_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREWLINE_LOG_FORMAT", "xml")
    with pytest.raises(UsageError, match="CREWLINE_LOG_FORMAT=xml is unknown"):
        logs.set_up(Settings(), tracebacks=True)
