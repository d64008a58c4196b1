"""A client without crewline: it asks a crew over Kafka and reads its events, by CloudEvents' rules alone.

    python plain_client.py ask   127.0.0.1:9092 customer-support support.answer '{"message": "Where is A-1001?"}'
    python plain_client.py watch 127.0.0.1:9092 customer-support

What it must get right: the key of a record is its conversation, and the partitioner is Kafka's own (murmur2),
which librdkafka calls `murmur2_random`. What it writes bears no seal, so it counts without a user and as untrusted.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

WAIT_S = 60.0


def headers_of(message: Message) -> dict[str, str]:
    """Return the headers of a record: in CloudEvents' binary mode they are the event's attributes."""
    return {name: value.decode() for name, value in message.headers() or [] if isinstance(value, bytes)}


def publish(servers: str, crew: str, capability: str, input: Any) -> Message:
    """Publish an intent; return the record as it was delivered: its key, partition and offset."""
    id = str(uuid.uuid4())
    attributes = {
        "ce_specversion": "1.0", "ce_id": id, "ce_type": "intent.published", "ce_source": "plain-client",
        "content-type": "application/json",
    }  # fmt: skip
    delivered: list[Message] = []

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        delivered.append(message)

    producer = Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random", "enable.idempotence": True})
    producer.produce(
        f"{crew}.conversations", key=id, value=json.dumps({"capability": capability, "input": input}),
        headers=[(name, value.encode()) for name, value in attributes.items()], on_delivery=on_delivery,
    )
    producer.flush(WAIT_S)
    if not delivered:
        raise TimeoutError("the broker did not take the intent in time")
    return delivered[0]


def records(servers: str, starts: list[TopicPartition]) -> Iterator[Message]:
    """Yield the records from `starts` on, as they come, without joining a group. Raises: TimeoutError after a minute of nothing."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "plain-client", "enable.auto.commit": False})
    consumer.assign(starts)
    try:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if (error := message.error()) is not None:
                raise KafkaException(error)
            until = time.monotonic() + WAIT_S
            yield message
        raise TimeoutError(f"nothing came for {WAIT_S:g} s")
    finally:
        consumer.close()


def ask(servers: str, crew: str, capability: str, input: Any) -> dict[str, Any]:
    """Publish an intent and return the data of its `turn.finished`."""
    sent = publish(servers, crew, capability, input)
    for message in records(servers, [TopicPartition(sent.topic(), sent.partition(), sent.offset())]):
        if message.key() == sent.key() and headers_of(message).get("ce_type") == "turn.finished":
            return dict(json.loads(message.value() or b"{}"))
    raise AssertionError("unreachable: records end by an error")


def watch(servers: str, crew: str) -> None:
    """Print each event of a crew's conversations on a line, from the beginning."""
    topic = f"{crew}.conversations"
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "plain-client"})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.close()
    for message in records(servers, [TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions]):
        attributes, key = headers_of(message), (message.key() or b"").decode()
        print(attributes.get("ce_id"), attributes.get("ce_type"), key, (message.value() or b"").decode(), flush=True)


def main() -> None:
    match sys.argv[1:]:
        case ["ask", servers, crew, capability, input]:
            finished = ask(servers, crew, capability, json.loads(input))
            print(finished.get("answer") if finished["status"] == "done" else finished)
        case ["watch", servers, crew]:
            watch(servers, crew)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
