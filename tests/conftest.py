"""What all tests share: the real servers. Started when the first selected test asks, ended with the tests.

A server that is not there is an error, not a reason to skip. `-m "not servers"` leaves out the tests that need one.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from crewline.testing import until
from secured import SecuredKafka
from servers import KafkaServer, RedisServer, ServerAbsent

Server = TypeVar("Server", KafkaServer, RedisServer)

# A test that asks for one of these gets the marker `servers`. One that asks by `getfixturevalue` bears it itself.
FIXTURES = {"kafka_address", "secured_kafka", "redis_url", "redis_server"}


def pytest_configure() -> None:
    """Take Ctrl-C, whoever started us: a shell's background job is made to ignore it, and its children with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and FIXTURES & set(item.fixturenames):
            item.add_marker("servers")


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Kafka broker, `kafka://HOST:PORT`: use topics of your own.

    $CREWLINE_TEST_KAFKA names one that runs already (HOST:PORT).
    """
    if running := os.environ.get("CREWLINE_TEST_KAFKA"):
        yield f"kafka://{running}"
        return
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    try:
        yield _started(server).address
    finally:
        server.stop()


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A Kafka broker with SASL, TLS and ACLs: use topics, groups and rights of your own prefix.

    $CREWLINE_TEST_SECURED_KAFKA names the folder of one that runs already (`scripts/kafka start --secure --dir`).
    """
    if running := os.environ.get("CREWLINE_TEST_SECURED_KAFKA"):
        yield SecuredKafka(Path(running))
        return
    server = KafkaServer(tmp_path_factory.mktemp("secured-kafka"), secure=True)
    try:
        yield SecuredKafka(_started(server).directory)
    finally:
        server.stop()


@pytest.fixture
async def sockets_closed() -> AsyncIterator[None]:
    """Let connections end before the loop does: TLS says goodbye and waits for the answer."""
    yield
    transports = getattr(asyncio.get_running_loop(), "_transports", {})  # of asyncio's own loop
    await until(lambda: all(each._sock is None for each in list(transports.values())))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a redis-server that keeps nothing on disk: use a namespace of your own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield _started(server).url
    finally:
        server.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of the test's own, to stop, kill and start again."""
    server = RedisServer(tmp_path / "redis")
    try:
        yield _started(server)
    finally:
        server.kill()


def _started(server: Server) -> Server:
    try:
        return server.start()
    except ServerAbsent as error:
        absent = str(error)
    pytest.fail(absent, pytrace=False)
