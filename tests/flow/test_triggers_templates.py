"""The templates with triggers, as a reader would use them: `init`, their own tests, events from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from crewline.bus import Bus, Message
from crewline.bus.opening import open_address
from crewline.cli import run_line
from crewline.crews.running import Crew
from crewline.events import Event, IntentPublished, TurnFinished, decode
from crewline.seal import make_keys
from crewline.testing import until
from crewline.topics import TopicSpec

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "configs" / "crews"


@pytest.mark.parametrize("template", ["fraud", "maintenance"])
def test_a_template_passes_its_check_and_its_tests(tmp_path: Path, template: str) -> None:
    command = [sys.executable, "-m", "crewline.cli"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    for args in (["init", "mine", "--template", template], ["check", "mine/crew.yaml", "-f", "mine/kafka.yaml"]):
        done = subprocess.run([*command, *args], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        if args[0] == "init":
            assert "next: cd mine && crewline up . --offline" in done.stderr, "it is asked by events, not by a person"
    tests = [sys.executable, "-m", "pytest", "-q"]
    done = subprocess.run(tests, cwd=tmp_path / "mine", capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
async def payments(kafka_address: str) -> AsyncIterator[str]:
    """A topic of payments on Kafka, which is there before the crew."""
    topic = f"payments-{uuid.uuid4().hex[:8]}"
    bus = await open_address(kafka_address)
    await bus.create_topics([TopicSpec(topic, 2)])
    yield topic
    await bus.close()


async def test_the_fraud_crew_watches_a_topic_of_kafka(
    tmp_path: Path, kafka_address: str, payments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_DB", str(tmp_path / "bank.db"))
    folder = tmp_path / "fraud"
    text = (TEMPLATES / "fraud" / "crew.yaml").read_text().replace("payments.transactions", payments)
    folder.mkdir()
    (folder / "crew.yaml").write_text(text.replace("name: fraud-watch", f"name: {payments.replace('payments', 'fraud')}"))
    for part in ("fraudwatch", "scripts"):
        (folder / part).symlink_to(TEMPLATES / "fraud" / part)
    make_keys(tmp_path / "keys")
    crew = Crew.load(folder / "crew.yaml", offline=True)
    burst = [
        {"card_id": "c-17", "customer_id": "u-7", "amount": 500.0, "country": "NL", "created_at": f"2026-11-25T10:0{n}:00Z"}
        for n in range(6)
    ]

    async with crew.up(state=tmp_path / "state", bus=kafka_address, keys=tmp_path / "keys") as running:
        await running.bus.append([Message(payments, b"c-17", json.dumps(each).encode()) for each in burst])
        from fraudwatch import bank  # type: ignore[import-not-found]

        await until(lambda: bank.noted("blocks"), seconds=40.0)

        async def ended() -> list[TurnFinished]:
            events = [event async for event in events_of(running.bus, crew.roster.topics.conversations)]
            found = [event for event in events if isinstance(event, TurnFinished)]
            return found if len(found) == 4 else []

        finished = await until(ended)
        asked = [event async for event in events_of(running.bus, crew.roster.topics.conversations)
                 if isinstance(event, IntentPublished)]

    assert bank.noted("blocks") == ["c-17"]
    assert {event.status for event in finished} == {"done"}
    assert sorted(each.capability or "" for each in asked) == ["case.decide", "compliance.screen", "fraud.score", "trend.compare"]


async def events_of(bus: Bus, topic: str) -> AsyncIterator[Event]:
    begins, ends = await bus.offsets(topic)
    for partition, end in ends.items():
        offset = begins[partition]
        while offset < end:
            batch = await bus.read(topic, partition, offset)
            for record in batch.records:
                yield decode(record.headers, record.value).event
            offset = batch.next_offset


def test_records_are_published_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def topics() -> None:
        bus = await open_address(f"embedded:{tmp_path}")
        await bus.create_topics([TopicSpec("cards.paid", 2)])
        await bus.close()

    async def values() -> list[tuple[bytes, bytes | None]]:
        bus = await open_address(f"embedded:{tmp_path}")
        try:
            return [(record.key, record.value) for partition in (0, 1) for record in (await bus.read("cards.paid", partition, 0)).records]
        finally:
            await bus.close()

    asyncio.run(topics())
    publish = ["--state", str(tmp_path), "topics", "publish", "cards.paid"]
    assert run_line([*publish, "--key", "c-1", '{"card": "c-1"}']) == 0
    monkeypatch.setattr(sys, "stdin", iter(['{"n": 1}\n', "\n", '{"n": 2}\n']))
    assert run_line([*publish, "--key", "c-1", "-"]) == 0
    assert run_line([*publish, "{card"]) == 2
    assert run_line(["--state", str(tmp_path), "topics", "publish", "no.such", "1"]) != 0
    said = capsys.readouterr()

    assert asyncio.run(values()) == [(b"c-1", b'{"card": "c-1"}'), (b"c-1", b'{"n": 1}'), (b"c-1", b'{"n": 2}')]
    assert "line 1 is not JSON" in said.err
    assert "there is no topic 'no.such'" in said.err
