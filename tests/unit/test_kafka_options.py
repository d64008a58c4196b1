"""The Kafka bus before it meets a broker: its address, its messages, what a topic is asked to be."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
from aiokafka import errors as kafka
from aiokafka.consumer.group_coordinator import GroupCoordinator
from crewline.bus.kafka import open_bus
from crewline.bus.kafka.admin import Topic, differences, settings
from crewline.bus.kafka.logs import limit_logs
from crewline.bus.kafka.membership import retrieved
from crewline.bus.kafka.options import KafkaOptions, Security, parse_address
from crewline.bus.kafka.probe import probe
from crewline.bus.repeated import OnceInAWhile
from crewline.errors import BusUnavailable, UsageError
from crewline.topics import TopicSpec


def test_an_address_names_one_server_or_several() -> None:
    assert parse_address("kafka://a:9092") == ("a:9092",)
    assert parse_address("kafka://a:9092, b.example:9093,[::1]:9094") == ("a:9092", "b.example:9093", "[::1]:9094")


@pytest.mark.parametrize("address", ["kafka://", "kafka://a", "kafka://a:", "kafka://a:x", "kafka://a:0", "kafka://a:1,", "a:9092"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="expected kafka://HOST:PORT"):
        parse_address(address)


async def test_nobody_at_the_address_is_said_at_once_with_host_port_and_security() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BusUnavailable, match=rf"PLAINTEXT.*127\.0\.0\.1:{port}: .*refused"):
        await open_bus(f"kafka://127.0.0.1:{port}")


async def test_somebody_who_says_nothing_is_given_up_within_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        options = KafkaOptions(security="SASL_PLAINTEXT", username="ann", password="geheim")
        started = time.monotonic()
        with pytest.raises(BusUnavailable) as told:
            await open_bus(f"kafka://127.0.0.1:{port}", options)
    assert time.monotonic() - started < 3.0
    assert f"SASL_PLAINTEXT with PLAIN as ann): 127.0.0.1:{port}" in str(told.value)
    assert "geheim" not in str(told.value)


def test_a_topic_kept_whole_asks_for_no_retention_and_the_brokers_time() -> None:
    asked = settings(TopicSpec("t"), replicas=3)

    assert asked["retention.ms"] == asked["retention.bytes"] == "-1"
    assert asked["message.timestamp.type"] == "LogAppendTime"
    assert (asked["min.insync.replicas"], asked["unclean.leader.election.enable"]) == ("2", "false")
    assert settings(TopicSpec("t"), replicas=1)["min.insync.replicas"] == "1"
    assert settings(TopicSpec("t", compacted=True), replicas=1)["cleanup.policy"] == "compact"
    assert settings(TopicSpec("t", retention_s=600.0), replicas=1)["segment.ms"] == "600000"


def test_every_difference_of_a_topic_is_named() -> None:
    spec = TopicSpec("t", 12)
    there = Topic(spec, 3, settings(spec, 3))
    assert differences(spec, there, 3) == []

    other = replace(there, replicas=1, config={**there.config, "message.timestamp.type": "CreateTime",
                                               "min.insync.replicas": "1", "max.message.bytes": "1000"})  # fmt: skip
    found = "; ".join(differences(TopicSpec("t", 4, compacted=True, retention_s=5.0), other, 3))
    for name in ("partitions is 12, not 4", "compacted", "retention_s", "message.timestamp.type is CreateTime",
                 "min.insync.replicas is 1", "max.message.bytes is 1000", "1 replicas, not 3"):  # fmt: skip
        assert name in found


def test_a_line_of_the_log_that_repeats_itself_is_counted_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("crewline.bus.repeated.time.monotonic", lambda: now[0])
    limit = OnceInAWhile(30.0)

    def line() -> logging.LogRecord:
        return logging.LogRecord("aiokafka.conn", logging.ERROR, "conn.py", 7, "no %s", ("broker",), None)

    assert [bool(limit.filter(line())) for _ in range(4)] == [True, False, False, False]
    now[0] = 31.0
    last = line()
    assert limit.filter(last)
    assert last.getMessage() == "no broker (3 more like this in between)"


async def test_aiokafka_says_of_an_ordinary_rebalance_only_to_whoever_looks_for_bugs(caplog: pytest.LogCaptureFixture) -> None:
    class Coordinator:  # as little of one as a heartbeat takes
        group_id, generation, member_id = "g", 3, "m"

        async def _send_req(self, _: object) -> object:
            return SimpleNamespace(error_code=kafka.RebalanceInProgressError.errno)

        def request_rejoin(self) -> None: ...

    log = logging.getLogger("aiokafka.consumer.group_coordinator")
    limit_logs()
    try:
        caplog.set_level(logging.INFO, log.name)
        assert await GroupCoordinator._do_heartbeat(Coordinator())
        assert caplog.records == []
        caplog.set_level(logging.DEBUG, log.name)
        await GroupCoordinator._do_heartbeat(Coordinator())
        assert {each.levelname for each in caplog.records} == {"DEBUG"}
        assert "rebalancing" in caplog.text
    finally:
        for each in list(log.filters):
            log.removeFilter(each)


async def test_a_commit_that_fails_after_nobody_waits_for_it_is_not_the_loops_to_report() -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    go = asyncio.Event()

    async def commit() -> None:
        await go.wait()
        raise kafka.RequestTimedOutError

    start = retrieved(commit)
    task = start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.shield(task)  # as aiokafka does
    go.set()
    await asyncio.wait({task})
    del task
    gc.collect()
    assert reported == []


class Fenced:
    """A connection to a broker that names no broker in its first answers."""

    answers: ClassVar[list[list[tuple[int, str, int, str]]]]
    _protocol = None

    def __init__(self, *_: object, **__: object) -> None: ...

    async def connect(self) -> None: ...

    async def send(self, _: object) -> object:
        return SimpleNamespace(brokers=self.answers.pop(0) if self.answers else [])

    def close(self) -> None: ...


async def no_listener(*_: object) -> None: ...


FENCED = KafkaOptions(("broker:9092",), connect_s_max=0.05, retry_s=0.001)


@pytest.fixture
def fenced(monkeypatch: pytest.MonkeyPatch) -> type[Fenced]:
    monkeypatch.setattr("crewline.bus.kafka.probe.AIOKafkaConnection", Fenced)
    monkeypatch.setattr("crewline.bus.kafka.probe.look_at", no_listener)
    Fenced.answers = []
    return Fenced


async def test_a_broker_that_is_starting_is_asked_again(fenced: type[Fenced]) -> None:
    fenced.answers = [[], [], [(1, "broker", 9092, "")]]
    await probe(replace(FENCED, connect_s_max=10.0))
    assert fenced.answers == []


@pytest.mark.parametrize("security", ["PLAINTEXT", "SASL_PLAINTEXT"])
async def test_a_broker_that_names_none_is_starting_or_fenced(security: Security, fenced: type[Fenced]) -> None:
    with pytest.raises(BusUnavailable, match="broker:9092: the broker is starting, or fenced: it names no broker"):
        await probe(replace(FENCED, security=security, username="u", password="p"))


async def test_after_a_token_no_broker_means_that_it_was_not_taken(fenced: type[Fenced]) -> None:
    with pytest.raises(BusUnavailable, match="did not take the token"):
        await probe(replace(FENCED, security="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER"))
