"""The topics of a crew, their settings, and which partition a key belongs to."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

PARTITIONS = 12  # fixed at creation
MARKET = "crewline.market"
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must be like.

    `retention_s` and `retention_bytes` (of each partition) bound what is kept (None: kept whole). `compacted` keeps
    the newest record of each key; a record without a value (a tombstone) removes the key.
    """

    name: str
    partitions: int = PARTITIONS
    compacted: bool = False
    retention_s: float | None = None
    retention_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CrewTopics:
    """The names of one crew's topics under its namespace (`bus.topic_prefix`)."""

    namespace: str

    @property
    def conversations(self) -> str:
        return f"{self.namespace}.conversations"

    @property
    def tokens(self) -> str:
        return f"{self.namespace}.tokens"

    @property
    def memory(self) -> str:
        return f"{self.namespace}.memory"

    @property
    def audit(self) -> str:
        return f"{self.namespace}.audit"

    @property
    def limits(self) -> str:
        return f"{self.namespace}.limits"

    @property
    def triggers(self) -> str:
        """What was taken from outside topics, and what became of it; keyed by trigger and key."""
        return f"{self.namespace}.triggers"

    @property
    def dead_letters(self) -> str:
        """Outside records that no trigger could take."""
        return f"{self.namespace}.dead-letters"

    def tools(self, pool: str) -> str:
        return f"{self.namespace}.tools.{pool}"

    def trigger_specs(self, *, partitions: int = PARTITIONS) -> list[TopicSpec]:
        """Return the topics of a crew that has triggers, beside `specs`."""
        return [
            TopicSpec(self.triggers, partitions, retention_s=30 * DAY_S),
            TopicSpec(self.dead_letters, 1, retention_s=30 * DAY_S),
        ]

    def specs(self, pools: tuple[str, ...], *, partitions: int = PARTITIONS) -> list[TopicSpec]:
        """Return every topic the crew needs, the market's included; see also `trigger_specs`."""
        return [
            TopicSpec(self.conversations, partitions),
            *(TopicSpec(self.tools(pool), partitions, retention_s=30 * DAY_S) for pool in pools),
            TopicSpec(self.tokens, partitions, retention_s=600.0),
            TopicSpec(self.audit, 1),
            TopicSpec(self.limits, partitions),
            TopicSpec(MARKET, 1, compacted=True),
        ]


@lru_cache(maxsize=8_192)  # a conversation's key comes back with every record: 8 µs, or 0.15
def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash (unsigned) that Kafka's Java client uses, seed 0x9747b28c."""
    length = len(data)
    h = 0x9747B28C ^ length
    for k in struct.unpack_from(f"<{length >> 2}I", data):
        k = k * 0x5BD1E995 & 0xFFFFFFFF
        h = h * 0x5BD1E995 & 0xFFFFFFFF ^ (k ^ k >> 24) * 0x5BD1E995 & 0xFFFFFFFF
    rest = length & 3
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition p, 0 <= p < `partitions`, that holds every record of `key`.

    Raises: ValueError if `partitions` < 1.
    Source: Apache Kafka's default partitioner (`Utils.murmur2`, sign bit cleared); librdkafka calls
    it `murmur2_random`.
    """
    if partitions < 1:
        raise ValueError(f"a topic has at least one partition, not {partitions}")
    # Only keys that can be a conversation's are remembered: others may be of any size.
    hashed = murmur2(key) if len(key) <= 512 else murmur2.__wrapped__(key)
    return (hashed & 0x7FFFFFFF) % partitions
