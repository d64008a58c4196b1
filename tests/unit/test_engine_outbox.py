"""The outbox: one append for a pass of the loop, the same records until they are acknowledged, nobody held up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from crewline.bus.base import Message, Position
from crewline.engine import Effect, EngineOptions
from crewline.engine.outbox import Outbox
from crewline.engine.ownership import Key, Part, tried_again
from crewline.errors import BusUnavailable, UnknownTopic

TOPIC = "demo.conversations"


class Refusing:
    """A bus that refuses as told, one error a call, and notes every call."""

    def __init__(self, *errors: Exception | None, missing: str = "") -> None:
        self.errors = list(errors)
        self.missing = missing
        self.calls: list[list[bytes]] = []

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        self.calls.append([message.value or b"" for message in messages])
        if any(message.topic == self.missing for message in messages):
            raise UnknownTopic(f"there is no topic {self.missing}")
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return [Position(message.topic, 0, 7 + index) for index, message in enumerate(messages)]


class _Role:
    name, topic = "worker", TOPIC


class Bench:
    def __init__(self, bus: Refusing) -> None:
        self.bus = bus
        options = EngineOptions(retry_s_min=0.001, retry_s_max=0.001)
        self.outbox: Outbox[Any] = Outbox(
            cast(Any, _Role()), bus=cast(Any, bus), store=cast(Any, None), reader=cast(Any, None), options=options
        )
        self.part: Part[Any] = Part(0, 0, 0, 0)
        self.outbox._parts[0] = self.part

    def owe(self, name: str, *, topic: str = TOPIC, owed: bool = False) -> Key[Any]:
        """Put the one record of an effect into the outbox, as the engine does; return whose it is."""
        effect, raw = Effect(name, "test", owed=owed), name.encode()
        held: Key[Any] = Key(None)
        held.begun[name] = -1
        self.part.keys[raw] = held
        self.outbox._outbox.append((self.part, raw, effect, [Message(topic, raw, raw)]))
        self.outbox._send_soon()
        return held

    async def calm(self) -> None:
        """Wait until nothing is on its way."""
        await asyncio.sleep(0)
        while self.outbox._sends:
            await asyncio.wait(set(self.outbox._sends))
            await asyncio.sleep(0)


async def test_what_ends_in_one_pass_goes_into_one_append() -> None:
    bench = Bench(Refusing())
    held = [bench.owe(name) for name in ("a", "b", "c")]
    await bench.calm()

    assert bench.bus.calls == [[b"a", b"b", b"c"]]
    assert [each.begun for each in held] == [{"a": 7}, {"b": 8}, {"c": 9}]
    assert list(bench.part.dirty) == [b"a", b"b", b"c"]


async def test_the_same_records_are_appended_until_they_are_acknowledged() -> None:
    away = BusUnavailable("the broker is away")
    bench = Bench(Refusing(away, away))
    held = bench.owe("a")
    await bench.calm()

    assert bench.bus.calls == [[b"a"]] * 3
    assert held.begun == {"a": 7}


async def test_an_outage_is_said_once_and_then_with_a_count(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("crewline.bus.repeated.time", SimpleNamespace(monotonic=lambda: now[0]))  # not the loop's
    [limit] = tried_again.filters
    monkeypatch.setattr(limit, "_seen", {})
    bench = Bench(Refusing(*[BusUnavailable("the broker is away")] * 50))
    bench.owe("a")
    await bench.calm()
    assert [each.getMessage() for each in caplog.records] == ["worker: append failed: the broker is away; trying again"]

    now[0] = 10.0
    bench.bus.errors = [BusUnavailable("the broker is away")]
    bench.owe("b")
    await bench.calm()
    assert caplog.messages[1:] == ["worker: append failed: the broker is away; trying again (49 more like this in between)"]


async def test_an_owed_record_is_acknowledged_and_not_before() -> None:
    bench = Bench(Refusing(BusUnavailable("away")))
    held = bench.owe("a", topic="demo.tools.main", owed=True)
    bench.outbox._send()
    assert not held.acked
    await bench.calm()

    assert held.acked == {"a"}


async def test_a_record_for_a_topic_that_is_none_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(Refusing(missing="nowhere"))
    lost, fine = bench.owe("lost", topic="nowhere"), bench.owe("fine")
    for _ in range(50):
        await asyncio.sleep(0)
    del lost.begun["lost"]  # nobody asks for it any more: it is not tried for ever
    await bench.calm()

    assert fine.begun == {"fine": 7}
    assert "there is no topic nowhere" in caplog.text


async def test_nothing_that_is_owed_is_lost_with_its_partition() -> None:
    """What may be in the log already is appended by its last owner too: whoever comes next may do it again."""
    bench = Bench(Refusing(BusUnavailable("away")))
    bench.owe("a")
    bench.outbox._send()
    bench.outbox._parts.clear()
    await bench.calm()

    assert bench.bus.calls == [[b"a"], [b"a"]]
