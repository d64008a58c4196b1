"""How large topics are on the brokers' disks. aiokafka has no DescribeLogDirs, so its form stands here.

    request v1   topics: null (all)
    response v1  throttle_ms:i32, [error:i16, dir:str, [topic:str, [partition:i32, bytes:i64, lag:i64, future:bool]]]
"""

from __future__ import annotations

import asyncio

from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Int64, Schema, String

from crewline.bus.kafka.wire import Wire


class DescribeLogDirsResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("log_dir", String("utf-8")),
                (
                    "topics",
                    Array(
                        ("name", String("utf-8")),
                        (
                            "partitions",
                            Array(("partition", Int32), ("size", Int64), ("lag", Int64), ("is_future", Boolean)),
                        ),
                    ),
                ),
            ),
        ),
    )


class DescribeLogDirsRequestV1(RequestStruct):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = DescribeLogDirsResponse
    SCHEMA = Schema(("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))))


class DescribeLogDirs(Request[DescribeLogDirsRequestV1]):  # type: ignore[misc]
    API_KEY = 35

    def build(self, request_struct_class: type[DescribeLogDirsRequestV1]) -> DescribeLogDirsRequestV1:
        return request_struct_class(None)


async def log_bytes(wire: Wire) -> dict[tuple[str, int], int]:
    """Return the size of each (topic, partition) on one replica's disk; {} where that may not be asked."""
    nodes = [broker.nodeId for broker in wire.cluster.brokers()]
    answers = await asyncio.gather(*(wire.client.send(node, DescribeLogDirs()) for node in nodes), return_exceptions=True)
    sizes: dict[tuple[str, int], int] = {}
    for answer in answers:
        if isinstance(answer, KafkaError):
            continue
        if isinstance(answer, BaseException):
            raise answer
        for _, _, topics in answer.results:
            for name, partitions in topics:
                for number, size, _, is_future in partitions:
                    if not is_future:
                        sizes[name, number] = max(size, sizes.get((name, number), 0))
    return sizes
