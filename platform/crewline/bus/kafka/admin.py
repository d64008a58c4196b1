"""Topics with the right settings, or each difference by name; and how far every group is behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import (
    CreateTopicsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
    ListGroupsRequest,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.structs import TopicPartition

from crewline.bus.base import RECORD_BYTES_MAX, GroupLag, TopicInfo
from crewline.bus.kafka.options import ms
from crewline.bus.kafka.sizes import log_bytes
from crewline.bus.kafka.wire import Wire
from crewline.errors import BusUnavailable, OffsetOutOfRange, TopicMismatch, UsageError
from crewline.topics import DAY_S, TopicSpec

TOPIC = 2  # DescribeConfigs' name for it
REPLICAS = 3
BATCH_BYTES = RECORD_BYTES_MAX + 100_000  # a record with its key and headers
SEGMENT_S_MAX = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it stands at the brokers."""

    spec: TopicSpec
    replicas: int
    config: Mapping[str, str]


class Admin:
    """Creates and describes topics, and describes groups."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    # --- topics --------------------------------------------------------------------------------

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing. Raises: TopicMismatch with every difference; nothing was created then."""
        for spec in specs:
            if not spec.name or spec.partitions < 1:
                raise UsageError(f"a topic needs a name and at least one partition: {spec}")
        async with self._wire.following([spec.name for spec in specs]):
            await self._create_missing(specs)

    async def _create_missing(self, specs: Sequence[TopicSpec]) -> None:
        await self._wire.retrying("looking for topics", self._refreshed)
        replicas = self._wire.options.replication or min(REPLICAS, len(self._wire.cluster.brokers()))
        missing = await self._missing(specs, replicas)
        if missing:
            for spec in missing:
                self._wire.forget_count(spec.name)
            await self._create(missing, replicas)
            if await self._missing(specs, replicas):
                raise BusUnavailable(f"topics were created, but are not there: {[spec.name for spec in missing]}")

    async def _missing(self, specs: Sequence[TopicSpec], replicas: int) -> list[TopicSpec]:
        there = await self.describe([spec.name for spec in specs if self._wire.known_partitions(spec.name)])
        problems = [text for spec in specs if spec.name in there for text in differences(spec, there[spec.name], replicas)]
        if problems:
            raise TopicMismatch("topics exist with other settings: " + "; ".join(problems))
        return [spec for spec in specs if spec.name not in there]

    async def _create(self, specs: Sequence[TopicSpec], replicas: int) -> None:
        wanted: list[Any] = [
            (spec.name, spec.partitions, replicas, [], list(settings(spec, replicas).items())) for spec in specs
        ]
        request = CreateTopicsRequest(wanted, ms(self._wire.options.request_s_max), False)

        async def ask() -> None:
            answer = await self._wire.client.send(self._node(), request)
            for name, code, message in answer.topic_errors:
                if code not in (0, kafka.TopicAlreadyExistsError.errno):
                    error = kafka.for_code(code)
                    raise error(f"topic {name}: {message or error.__name__}")

        await self._wire.retrying("creating topics", ask)
        await self._wire.retrying("waiting for new topics", lambda: self._led(specs))

    async def _led(self, specs: Sequence[TopicSpec]) -> None:
        """Raise until every partition has a leader and answers."""
        await self._refreshed()
        for spec in specs:
            for number in range(spec.partitions):
                if self._wire.cluster.leader_for_partition(TopicPartition(spec.name, number)) in (None, -1):
                    raise kafka.LeaderNotAvailableError(spec.name)

    async def _refreshed(self) -> None:
        if not await self._wire.refresh():
            raise kafka.KafkaConnectionError("no broker answers")

    async def describe(self, names: Sequence[str], *, seen_alone: bool = False) -> dict[str, Topic]:
        """Return each of `names` with its settings; with `seen_alone`, without those that we may not look at."""
        if not names:
            return {}

        async def ask() -> dict[str, Mapping[str, str]]:
            answer = await self._wire.client.send(self._node(), DescribeConfigsRequest([(TOPIC, name, None) for name in names]))
            configs: dict[str, Mapping[str, str]] = {}
            for code, message, _, name, entries in answer.resources:
                if code == kafka.TopicAuthorizationFailedError.errno and seen_alone:
                    continue
                if code:
                    raise kafka.for_code(code)(message or "")
                configs[name] = {entry[0]: entry[1] for entry in entries}
            return configs

        configs = await self._wire.retrying("asking for the settings of topics", ask)
        return {name: self._topic(name, config) for name, config in configs.items()}

    def _topic(self, name: str, config: Mapping[str, str]) -> Topic:
        partitions = self._wire.cluster._partitions.get(name, {})
        kept = "delete" in config.get("cleanup.policy", "delete")
        retention_ms, size = int(config["retention.ms"]), int(config["retention.bytes"])
        spec = TopicSpec(
            name,
            len(partitions),
            "compact" in config.get("cleanup.policy", ""),
            retention_ms / 1000 if kept and retention_ms >= 0 else None,
            size if kept and size >= 0 else None,
        )
        return Topic(spec, min((len(each.replicas) for each in partitions.values()), default=0), config)

    async def topics(self) -> dict[str, TopicInfo]:
        """Return every topic; its bytes are those on a leader's disk."""
        names = await self._wire.retrying("looking for topics", self._wire.client.all_topics)
        async with self._wire.following(names):
            return await self._topics(names)

    async def _topics(self, names: Sequence[str]) -> dict[str, TopicInfo]:
        there = await self.describe(names, seen_alone=True)
        wanted = [TopicPartition(name, number) for name, topic in there.items() for number in range(topic.spec.partitions)]
        (begins, ends), sizes = await asyncio.gather(self._wire.offsets_of(wanted), log_bytes(self._wire))
        return {
            name: TopicInfo(
                topic.spec,
                {number: begins[TopicPartition(name, number)] for number in range(topic.spec.partitions)},
                {number: ends[TopicPartition(name, number)] for number in range(topic.spec.partitions)},
                sum(sizes.get((name, number), 0) for number in range(topic.spec.partitions)),
            )
            for name, topic in there.items()
        }

    def _node(self) -> Any:
        return self._wire.client.get_random_node()

    # --- groups --------------------------------------------------------------------------------

    async def lags(self) -> list[GroupLag]:
        """Return the lag of every group, on every partition that it has committed or owns."""

        async def ask() -> list[str]:
            nodes = [broker.nodeId for broker in self._wire.cluster.brokers()]
            answers = await asyncio.gather(*(self._wire.client.send(node, ListGroupsRequest()) for node in nodes))
            for answer in answers:
                _raise(answer.error_code)
            return sorted({group for answer in answers for group, kind in answer.groups if kind in ("consumer", "")})

        groups = await self._wire.retrying("listing groups", ask)
        described = await asyncio.gather(
            *(self._wire.retrying(f"asking for group {group}", partial(self._group, group)) for group in groups)
        )
        async with self._wire.following({tp.topic for each in described for places in each for tp in places}):
            found = await asyncio.gather(*(self._lags_of(*each) for each in zip(groups, described, strict=True)))
        return [lag for each in found for lag in each]

    async def _lags_of(self, group: str, described: tuple[dict[Any, int], dict[Any, str]]) -> list[GroupLag]:
        committed, members = described
        wanted = [tp for tp in sorted(committed.keys() | members.keys())
                  if tp.partition < (self._wire.known_partitions(tp.topic) or 0)]  # fmt: skip
        begins, ends = await self._wire.offsets_of(wanted)
        return [
            await self._lag(group, tp, committed.get(tp, begins[tp]), ends[tp], members.get(tp)) for tp in wanted
        ]

    async def _group(self, group: str) -> tuple[dict[Any, int], dict[Any, str]]:
        answer = await self._wire.client.send(self._node(), FindCoordinatorRequest(group, 0))
        _raise(answer.error_code)
        node = answer.coordinator_id
        offsets, described = await asyncio.gather(
            self._wire.client.send(node, OffsetFetchRequest(group, None)),
            self._wire.client.send(node, DescribeGroupsRequest([group])),
        )
        _raise(getattr(offsets, "error_code", 0))
        committed = {
            TopicPartition(topic, number): offset
            for topic, partitions in offsets.topics
            for number, offset, _, code in partitions
            if not code and offset >= 0
        }
        members: dict[Any, str] = {}
        for code, _, _, _, _, each, *_ in described.groups:
            for _, client_id, _, _, assignment in each if not code else ():
                if assignment:
                    for tp in ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions():
                        members[tp] = client_id
        return committed, members

    async def _lag(self, group: str, tp: Any, committed: int, end: int, member: str | None) -> GroupLag:
        lag_s = 0.0
        if committed < end:
            try:
                oldest = (await self._wire.look(tp.topic, tp.partition, committed, 1)).records
                lag_s = max(0.0, time.time() - oldest[0].timestamp_ms / 1000) if oldest else 0.0
            except OffsetOutOfRange:
                pass  # retention has overtaken the group
        return GroupLag(group, tp.topic, tp.partition, committed, end, lag_s, member)


def settings(spec: TopicSpec, replicas: int) -> dict[str, str]:
    """Return what a topic is created with, as Kafka names it."""
    kept_whole = spec.retention_s is None and spec.retention_bytes is None
    policy = ("compact" if kept_whole else "compact,delete") if spec.compacted else "delete"
    wanted = {
        "cleanup.policy": policy,
        "retention.ms": str(ms(spec.retention_s)) if spec.retention_s is not None else "-1",
        "retention.bytes": str(spec.retention_bytes) if spec.retention_bytes is not None else "-1",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(2 if replicas >= REPLICAS else 1),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(1 << 20),
    }
    if spec.retention_s is not None and spec.retention_s < SEGMENT_S_MAX:
        wanted["segment.ms"] = str(ms(spec.retention_s))  # only closed segments are deleted
    return wanted


def differences(spec: TopicSpec, there: Topic, replicas: int) -> list[str]:
    """Return what is otherwise than `spec` and our rules ask, one text each."""
    found = []
    for field in ("partitions", "compacted", "retention_s", "retention_bytes"):
        has, asked = getattr(there.spec, field), getattr(spec, field)
        if has != asked:
            found.append(f"{spec.name}: {field} is {has}, not {asked}")
    wanted = settings(spec, replicas)
    for name in ("message.timestamp.type", "unclean.leader.election.enable"):
        if there.config.get(name) != wanted[name]:
            found.append(f"{spec.name}: {name} is {there.config.get(name)}, not {wanted[name]}")
    for name, least in (("min.insync.replicas", int(wanted["min.insync.replicas"])), ("max.message.bytes", BATCH_BYTES)):
        if int(there.config.get(name, 0)) < least:
            found.append(f"{spec.name}: {name} is {there.config.get(name)}, at least {least} is needed")
    if there.replicas < replicas:
        found.append(f"{spec.name}: it has {there.replicas} replicas, not {replicas}")
    return found


def _raise(code: int) -> None:
    error = kafka.for_code(code)
    if error is not kafka.NoError:
        raise error()


