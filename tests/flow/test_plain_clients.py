"""Clients that know nothing of crewline take part on Kafka: confluent-kafka, and the broker's own console tools."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from crewline.crews.running import Crew, Running
from crewline.seal import make_keys
from crewline.testing import until
from crewline.topics import TopicSpec, partition_of
from flow_bench import Bench, PlannedBrain, say

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "examples" / "plain_client.py"
CONSOLE = "org.apache.kafka.tools"


@dataclass
class Desk:
    """A crew that runs on Kafka, and where."""

    servers: str
    name: str
    brain: PlannedBrain
    running: Running


@pytest.fixture
async def desk(tmp_path: Path, kafka_address: str) -> AsyncIterator[Desk]:
    brain = PlannedBrain(say("It is on its way."))
    crew: Crew = Bench(tmp_path).crew({"desk": brain}, capabilities={"desk": ["desk.answer"]}, name=f"plain-{uuid.uuid4().hex[:8]}")
    make_keys(tmp_path / "keys")
    async with crew.up(state=tmp_path / "state", bus=kafka_address, keys=tmp_path / "keys") as running:
        await running.ready()
        yield Desk(kafka_address.removeprefix("kafka://"), crew.name, brain, running)


async def run(*command: str, stdin: str = "") -> str:
    """Run a program to its end; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_plain_client_asks_and_gets_the_answer(desk: Desk) -> None:
    said = await run(sys.executable, str(PLAIN), "ask", desk.servers, desk.name, "desk.answer", '{"message": "Where is it?"}')

    assert said == "It is on its way.\n"
    (asked,) = desk.brain.asked
    assert json.loads(asked.messages[-1].text) == {"message": "Where is it?"}
    assert asked.user is None


async def test_a_plain_consumer_reads_the_events_of_a_turn(desk: Desk) -> None:
    await desk.running.ask("Where is it?", user="u-7", conversation="c-1")
    watching = await asyncio.create_subprocess_exec(
        sys.executable, str(PLAIN), "watch", desk.servers, desk.name, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert watching.stdout is not None
    lines = [(await watching.stdout.readline()).decode().split(" ", 3) for _ in range(4)]
    watching.terminate()
    await watching.wait()

    assert [line[1] for line in lines] == ["intent.published", "turn.started", "model.replied", "turn.finished"]
    assert {line[2] for line in lines} == {"c-1"}
    assert [line[0] for line in lines[1:]] == ["c-1:t1", "c-1:t1:s1", "c-1:t1:end"]
    assert json.loads(lines[0][3]) == {"input": "Where is it?", "agent": "desk", "user": "u-7", "origin": {"kind": "user"}}
    assert json.loads(lines[3][3])["answer"] == "It is on its way."


async def test_the_brokers_own_tools_publish_an_intent_and_read_the_answer(desk: Desk) -> None:
    topic = f"{desk.name}.conversations"
    attributes = "ce_id:i-1,ce_type:intent.published,ce_source:console,ce_specversion:1.0,content-type:application/json"
    value = json.dumps({"capability": "desk.answer", "input": "Where is it?"})
    await run(
        "scripts/kafka", "tool", f"{CONSOLE}.ConsoleProducer", "--bootstrap-server", desk.servers, "--topic", topic,
        "--reader-property", "parse.key=true", "--reader-property", "parse.headers=true",
        stdin=f"{attributes}\tconsole-1\t{value}\n",
    )
    await until(lambda: desk.brain.asked)
    printed = await run(
        "scripts/kafka", "tool", f"{CONSOLE}.consumer.ConsoleConsumer", "--bootstrap-server", desk.servers, "--topic", topic,
        "--partition", str(partition_of(b"console-1", 12)), "--offset", "earliest", "--max-messages", "4", "--timeout-ms", "30000",
        "--formatter-property", "print.key=true", "--formatter-property", "print.headers=true",
    )

    records = [line.split("\t") for line in printed.splitlines()]
    assert [header(record[0], "ce_type") for record in records] == [
        "intent.published", "turn.started", "model.replied", "turn.finished"
    ]  # fmt: skip
    assert {record[1] for record in records} == {"console-1"}
    finished: dict[str, Any] = json.loads(records[3][2])
    assert (finished["intent"], finished["answer"]) == ("unsealed:i-1", "It is on its way.")


def header(printed: str, name: str) -> str:
    return dict(each.split(":", 1) for each in printed.split(",") if ":" in each)[name]


async def test_clients_held_back_by_a_quota_are_slower_and_lose_nothing(desk: Desk) -> None:
    """The recipe of docs/plain-clients.md: a quota for a client id, here the crew's own, which a plain producer uses up."""
    topic, throttled = f"{desk.name}.flood", list[float]()
    await desk.running.bus.create_topics([TopicSpec(topic, 1)])
    quota = [
        "scripts/kafka", "tool", "kafka.admin.ConfigCommand", "--bootstrap-server", desk.servers, "--alter",
        "--entity-type", "clients", "--entity-name", desk.name,
    ]  # fmt: skip
    producer = Producer({
        "bootstrap.servers": desk.servers, "client.id": desk.name, "enable.idempotence": True, "batch.num.messages": 1,
        "throttle_cb": lambda event: throttled.append(event.throttle_time),
    })  # fmt: skip

    def flood() -> None:
        for n in range(14):
            producer.produce(topic, value=bytes(5_000), key=str(n))
            producer.flush(60)

    await run(*quota, "--add-config", "producer_byte_rate=5000")
    try:
        flooding = asyncio.create_task(asyncio.to_thread(flood))
        await until(lambda: throttled or flooding.done(), seconds=30)
        answer = await desk.running.ask("Where is it?", timeout=60)
        await flooding
    finally:
        await run(*quota, "--delete-config", "producer_byte_rate")
    _, ends = await desk.running.bus.offsets(topic)

    assert throttled, "the broker held nothing back"
    assert (answer.text, ends[0]) == ("It is on its way.", 14)
