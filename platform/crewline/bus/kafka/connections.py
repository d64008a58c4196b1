"""aiokafka's client, with four of its habits mended.

- It connects to one broker at a time: one that is frozen, not dead, holds up the way to all others for as long as a
  request may take. Here each connection has its own lock, and a connect its own, short deadline.
- It asks one broker after the other for metadata, each for as long as a request may take; a moved leader would not
  be heard of for that long. Here each is given `connect_s_max`.
- It knows the brokers it has heard of, and asks those for ever. Here the bootstrap servers are asked again when
  none of them answers: all of them may have moved.
- It asks for every topic of the cluster, or lets the broker make those it asks for. Here it asks for the topics
  followed, and makes none: 500 topics are a third of a second of decoding, in which nothing else happens.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from crewline.bus.kafka.options import KafkaOptions, ms

log = logging.getLogger(__name__)


class BrokerClient(AIOKafkaClient):  # type: ignore[misc]  # aiokafka has no types
    """Connections to brokers, one to each for each `group` of requests; and what is known of brokers and topics."""

    def __init__(self, options: KafkaOptions, *, client_id: str = "", request_s_max: float | None = None) -> None:
        named = {"client_id": client_id} if client_id else {}
        super().__init__(**options.client() | named, request_timeout_ms=ms(request_s_max or options.request_s_max))
        self._options = options
        self._how = options.connection() | named
        self._locks: dict[tuple[Any, Any], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._followed: Counter[str] = Counter()
        self._closing = False
        self._away: set[Any] = set()  # the brokers that a connection could not be made to, until one is
        self.knows_topics = False  # only brokers, if any: no topic is known to be missing then
        self.heard_at = 0.0  # when a broker answered last, by the loop's clock

    async def send(self, node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        answer = await super().send(node_id, request, group=group)
        self.heard_at = self._loop.time()
        return answer

    def follow(self, topics: Collection[str]) -> None:
        """Keep what is known of `topics` up to date, from the next update on."""
        self._followed.update(topics)

    def unfollow(self, topics: Collection[str]) -> None:
        """Undo one `follow`."""
        self._followed.subtract(topics)
        self._followed += Counter()  # forgets those at 0

    async def ask(self, node: Any, request: Any, *, within_s: float, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """Return the answer to what is answered at once, or within a time that the request names.

        A broker that does not is frozen or out of reach: the connection goes, and whatever else waits on it fails.
        Raises: KafkaError.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self.send(node, request, group=group)
        except TimeoutError:
            conn = self._conns.pop((node, group), None)
            if conn is not None:
                conn.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise kafka.RequestTimedOutError(f"broker {node} says nothing") from None

    async def all_topics(self) -> list[str]:
        """Return the name of every topic that we may see. Raises: KafkaError."""
        answer = await self.send(self.get_random_node(), MetadataRequest(None, allow_auto_topic_creation=False))
        return sorted(topic for code, topic, *_ in answer.topics if not code)

    async def _get_conn(self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        place = (node_id, group)
        conn = self._conns.get(place)
        if conn is not None and conn.connected():
            return conn
        async with self._locks[place]:
            conn = self._conns.get(place)
            if conn is not None and conn.connected():
                return conn
            self._conns.pop(place, None)
            try:
                conn = await self._connect(node_id)
            except (OSError, TimeoutError, kafka.KafkaError) as error:
                log.error("connecting to broker %s: %s", node_id, str(error) or type(error).__name__)
                self._away.add(node_id)
                self.force_metadata_update()
                return None
            if self._closing:  # while it was being made
                conn.close()
                return None
            self._conns[place] = conn
            if node_id in self._away:
                self._away.discard(node_id)
                log.warning("broker %s is there again", node_id)
            return conn

    async def close(self) -> None:
        self._closing = True
        await super().close()

    async def _connect(self, node_id: Any) -> Any:
        broker = self.cluster.broker_metadata(node_id)
        if broker is None:
            raise kafka.StaleMetadata(f"broker {node_id} is not known (any more)")
        async with asyncio.timeout(self._options.connect_s_max):
            return await create_conn(
                broker.host,
                broker.port,
                request_timeout_ms=self._request_timeout_ms,
                on_close=self._on_connection_closed,
                max_idle_ms=self._connections_max_idle_ms,
                **self._how,
            )

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        if await self._ask_brokers(cluster_metadata, topics):
            return True
        self.knows_topics = False
        try:
            async with asyncio.timeout(self._request_timeout_ms / 1000):
                await self.bootstrap()
        except (kafka.KafkaError, TimeoutError):
            cluster_metadata.failed_update(None)
            return False
        return await self._ask_brokers(cluster_metadata, topics)  # a bootstrap tells of brokers alone

    async def _ask_brokers(self, cluster_metadata: Any, topics: Any) -> bool:
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes:
            request = MetadataRequest(sorted(set(topics or ()) | self._followed.keys()), allow_auto_topic_creation=False)
            try:
                answer = await self.ask(node, request, within_s=self._options.connect_s_max)
            except kafka.KafkaError as error:
                log.warning("asking broker %s for metadata: %s", node, str(error) or type(error).__name__)
                continue
            if answer.brokers:
                # Whoever asked for a topic that is not there says so; aiokafka would say it at each update.
                answer.topics = [each for each in answer.topics if each[0] != kafka.UnknownTopicOrPartitionError.errno]
                cluster_metadata.update_metadata(answer)
                self.knows_topics = True
                return True
        return False
