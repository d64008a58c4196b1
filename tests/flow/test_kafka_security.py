"""A secured Kafka: every way in, every way to be refused, each said in one line with what to do; no secret shown."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence

import pytest
from crewline.bus.base import Message
from crewline.bus.kafka import KafkaOptions, open_bus
from crewline.bus.kafka.security import tls_context
from crewline.errors import BusUnavailable, NotAllowed, UsageError
from crewline.topics import TopicSpec
from secured import Listening, SecuredKafka

pytestmark = pytest.mark.usefixtures("sockets_closed")
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
WRONG = "Pw-geheim-9"


def unsigned_token(user: str = "worker", *, lives_s: float = 600.0) -> str:
    """Return a token that the test broker takes: a JWT without a signature."""
    now = time.time()
    parts: list[dict[str, object]] = [{"alg": "none"}, {"sub": user, "iat": now - 5, "exp": now + lives_s}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


async def refused(address: str, options: KafkaOptions) -> BusUnavailable:
    """Return how opening the bus is refused; it is one line, and says what was tried and what to do."""
    with pytest.raises(BusUnavailable) as told:
        await open_bus(address, options)
    assert "\n" not in str(told.value)
    assert address.removeprefix("kafka://") in str(told.value)
    assert f"(tried {options.tried})" in str(told.value)
    assert told.value.hint
    return told.value


# --- in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("tls", [False, True])
async def test_a_password_gets_in(secured_kafka: SecuredKafka, mechanism: str, tls: bool) -> None:
    address = secured_kafka.address("SASL_SSL" if tls else "SASL_PLAINTEXT")
    async with await open_bus(address, secured_kafka.options("admin", mechanism, tls=tls)
                              if mechanism == "PLAIN" else secured_kafka.options("worker", mechanism, tls=tls)) as bus:  # fmt: skip
        assert bus.address == address


async def test_a_token_gets_in_and_is_asked_for_anew_at_each_connection(secured_kafka: SecuredKafka) -> None:
    asked = []

    async def token() -> str:
        asked.append(time.monotonic())
        return unsigned_token("admin")

    options = KafkaOptions(
        security="SASL_SSL", ssl_context=tls_context(secured_kafka.file("ca.pem")), sasl_mechanism="OAUTHBEARER", token=token
    )
    topic = f"token-{secrets.token_hex(3)}"
    async with await open_bus(secured_kafka.address("SASL_SSL"), options) as bus:
        await bus.create_topics([TopicSpec(topic, 1)])
        [position] = await bus.append([Message(topic, b"k", b"{}", ())])

    assert position.offset == 0
    assert len(asked) > 2, "the probe, the bus, the producer"


async def test_a_client_certificate_gets_in(secured_kafka: SecuredKafka) -> None:
    context = tls_context(*(secured_kafka.file(name) for name in ("ca.pem", "admin.pem", "admin.key")))
    topic = f"cert-{secrets.token_hex(3)}"
    options = KafkaOptions(security="SSL", ssl_context=context, client_certificate=True)
    async with await open_bus(secured_kafka.address("SSL"), options) as bus:
        await bus.create_topics([TopicSpec(topic, 1)])
        assert await bus.partitions(topic) == 1


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password_is_said_and_not_shown(
    secured_kafka: SecuredKafka, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = secured_kafka.options("worker", mechanism, password=WRONG)
    error = await refused(secured_kafka.address(), options)

    assert f"user worker with this password is not known for {mechanism}" in str(error)
    assert error.hint == "check `username` and `password` under `bus.sasl`"
    assert WRONG not in f"{error} {error.hint} {options!r} {caplog.text}"
    assert "SaslHandShakeRequest" in caplog.text, "aiokafka's requests were logged, but for this one"


@pytest.mark.parametrize(("token", "says"), [
    (lambda: unsigned_token(lives_s=-60.0), "the broker did not take the token"),
    (lambda: "geheim", "the broker did not take the token"),
    (lambda: 1 // 0, "the token function <lambda> raised ZeroDivisionError"),
    (lambda: None, "the token function <lambda> must return a token as text"),
    (lambda: "geheim\nauth=other", "the token function <lambda> must return a token as text"),
])
async def test_a_token_that_is_not_taken_is_said_and_not_shown(
    secured_kafka: SecuredKafka, token: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = KafkaOptions(security="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", token=token)  # type: ignore[arg-type]
    error = await refused(secured_kafka.address(), options)

    assert says in str(error)
    assert "geheim" not in f"{error} {options!r} {caplog.text}"


async def test_a_mechanism_that_is_not_offered_is_named_beside_those_that_are(secured_kafka: SecuredKafka) -> None:
    options = secured_kafka.options("admin", "SCRAM-SHA-512")
    controller = f"kafka://127.0.0.1:{secured_kafka.port + 1}"  # a listener with PLAIN alone
    error = await refused(controller, options)

    assert "this listener offers PLAIN, not SCRAM-SHA-512" in str(error)


@pytest.mark.parametrize(("listener", "security", "says", "hint"), [
    ("SASL_PLAINTEXT", "PLAINTEXT", "this listener wants SASL (", "set `bus.sasl`"),
    ("SASL_PLAINTEXT", "SASL_SSL", "this listener does not speak TLS", "leave `bus.tls` out"),
    ("SASL_PLAINTEXT", "SSL", "this listener does not speak TLS", "leave `bus.tls` out"),
    ("SASL_SSL", "SASL_PLAINTEXT", "this listener speaks TLS", "set `bus.tls`"),
    ("SASL_SSL", "PLAINTEXT", "this listener speaks TLS", "set `bus.tls`"),
    ("SASL_SSL", "SSL", "this listener wants SASL (", "set `bus.sasl`"),
    ("SSL", "PLAINTEXT", "this listener speaks TLS", "set `bus.tls`"),
    ("SSL", "SSL", "this listener asks for a client certificate", "`cert_file` and `key_file`"),
    ("EXPIRED", "SSL", "the broker's certificate has expired", "is this host's clock right?"),
    ("EXPIRED", "SASL_SSL", "this listener does without SASL", "leave `bus.sasl` out"),
])
async def test_the_wrong_kind_of_listener_is_named(
    secured_kafka: SecuredKafka, listener: Listening, security: str, says: str, hint: str
) -> None:
    options = KafkaOptions(
        security=security, ssl_context=tls_context(secured_kafka.file("ca.pem")) if security.endswith("SSL") else None,  # type: ignore[arg-type]
        username="worker", password=secured_kafka.password_of("worker"),
    )  # fmt: skip
    error = await refused(secured_kafka.address(listener), options)

    assert says in str(error)
    assert hint in (error.hint or "")


async def test_a_certificate_of_another_ca_is_not_trusted(secured_kafka: SecuredKafka) -> None:
    stranger = tls_context(secured_kafka.file("expired.pem"))
    options = KafkaOptions(security="SASL_SSL", ssl_context=stranger, username="worker", password=WRONG)
    error = await refused(secured_kafka.address("SASL_SSL"), options)

    assert "the broker's certificate is not trusted" in str(error)
    assert "bus.tls.ca_file" in (error.hint or "")


async def test_a_certificate_for_another_host_is_not_trusted(secured_kafka: SecuredKafka) -> None:
    address = secured_kafka.address("SASL_SSL").replace("127.0.0.1", "localhost")
    error = await refused(address, secured_kafka.options("worker", tls=True))

    assert "the broker's certificate is for another host" in str(error)
    assert "'localhost'" in str(error)


async def test_a_client_certificate_that_the_broker_does_not_take_is_said(secured_kafka: SecuredKafka) -> None:
    context = tls_context(*(secured_kafka.file(name) for name in ("ca.pem", "expired.pem", "expired.key")))
    options = KafkaOptions(security="SSL", ssl_context=context, client_certificate=True)
    error = await refused(secured_kafka.address("SSL"), options)

    assert "the broker does not take our client certificate" in str(error)


async def test_a_host_that_there_is_not_is_said(secured_kafka: SecuredKafka) -> None:
    error = await refused("kafka://nobody.invalid:9092", secured_kafka.options("worker"))

    assert "nobody.invalid:9092: there is no host of that name" in str(error)


# --- files ---------------------------------------------------------------------------------------


def test_a_file_that_tls_cannot_use_is_named(secured_kafka: SecuredKafka) -> None:
    ca, pem, key = (secured_kafka.file(name) for name in ("ca.pem", "worker.pem", "worker.key"))
    for arguments, says in [
        (("/nowhere/ca.pem",), "tls.ca_file /nowhere/ca.pem: cannot be read: No such file"),
        ((key,), f"tls.ca_file {key}: holds no certificate"),
        ((ca, "/nowhere/me.pem"), "tls.cert_file /nowhere/me.pem: cannot be read"),
        ((ca, pem, secured_kafka.file("client.key")), "the key does not belong to the certificate"),
        ((ca, pem), f"tls.cert_file {pem}: they hold no certificate with its private key"),
    ]:
        with pytest.raises(UsageError, match=r"^tls") as told:
            tls_context(*arguments)
        assert says in str(told.value)


# --- rights --------------------------------------------------------------------------------------


async def nothing(_: Sequence[int]) -> None:
    """Nothing to let go."""


async def from_zero(partitions: Sequence[int]) -> Mapping[int, int]:
    return dict.fromkeys(partitions, 0)


def allow(user: str, operation: str, topic: str) -> str:
    return f"kafka-acls --add --allow-principal User:{user} --operation {operation} --topic {topic}"


async def test_a_missing_right_is_said_for_each_thing_that_a_bus_does(secured_kafka: SecuredKafka) -> None:
    hidden, seen, read = (f"acl-{name}-{secrets.token_hex(3)}" for name in ("hidden", "seen", "read"))
    async with await open_bus(secured_kafka.address(), secured_kafka.options("admin", "PLAIN")) as admin:
        await admin.create_topics([TopicSpec(name, 1) for name in (hidden, seen, read)])
    await secured_kafka.acls(
        allow("triggers", "Describe", seen), allow("triggers", "Read", read), allow("triggers", "Write", read)
    )
    async with await open_bus(secured_kafka.address(), secured_kafka.options("triggers")) as bus:
        for doing, what, lacks in [
            (lambda: bus.create_topics([TopicSpec(f"{hidden}-new", 1)]), "creating topics", "for a topic"),
            (lambda: bus.create_topics([TopicSpec(read, 1)]), "asking for the settings of topics", "for a topic"),
            (lambda: bus.append([Message(hidden, b"k", b"{}")]), f"looking for topic '{hidden}'", "for a topic"),
            (lambda: bus.append([Message(seen, b"k", b"{}")]), f"appending to {seen}", "for a topic"),
            (lambda: bus.read(seen, 0, 0), f"reading {seen}", "for a topic"),
            (lambda: bus.consumer(read, "acl-group", assigned=from_zero, revoked=nothing), read, "for the consumer group"),
        ]:
            with pytest.raises(NotAllowed) as told:
                await doing()
            said = str(told.value)
            assert what in said
            assert f"user triggers lacks an ACL {lacks}" in said
            assert secured_kafka.server() in said
            assert "crewline doctor --acls" in (told.value.hint or "")
        [position] = await bus.append([Message(read, b"k", b"{}")])
        assert hidden not in await bus.topics()
    assert position.offset == 0, "what is allowed works beside what is not"


async def test_who_may_write_to_no_topic_is_told_so_at_once(secured_kafka: SecuredKafka) -> None:
    topic = f"acl-nothing-{secrets.token_hex(3)}"
    async with await open_bus(secured_kafka.address(), secured_kafka.options("admin", "PLAIN")) as admin:
        await admin.create_topics([TopicSpec(topic, 1)])
    await secured_kafka.acls(allow("nobody", "Describe", topic))
    async with await open_bus(secured_kafka.address(), secured_kafka.options("nobody")) as bus:
        with pytest.raises(NotAllowed, match="user nobody lacks an ACL for the cluster, or to write to any topic"):
            await bus.append([Message(topic, b"k", b"{}")])
