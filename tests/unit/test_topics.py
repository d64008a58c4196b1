"""The partitioner is that of Kafka's Java client, whatever the length of a key."""

from __future__ import annotations

import pytest
from crewline.topics import CrewTopics, TopicSpec, murmur2, partition_of

# Apache Kafka, clients: UtilsTest.testMurmur2 (signed there).
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "java"), JAVA.items())
def test_murmur2_is_that_of_the_java_client(key: bytes, java: int) -> None:
    assert murmur2(key) == java & 0xFFFFFFFF


def slowly(data: bytes) -> int:
    """MurmurHash2 written out byte by byte from its definition, to compare with."""
    h, m, mask = 0x9747B28C ^ len(data), 0x5BD1E995, 0xFFFFFFFF
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = sum(data[at + i] << (8 * i) for i in range(4)) * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    for i in reversed(range(len(data) - whole)):
        h ^= data[whole + i] << (8 * i)
    if len(data) > whole:
        h = h * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def test_murmur2_of_every_length_up_to_a_hundred() -> None:
    for length in range(101):
        data = bytes((length * 7 + i * 31) % 256 for i in range(length))
        assert murmur2(data) == slowly(data), length


def test_the_partition_clears_the_sign_bit_first() -> None:
    assert partition_of(b"21", 12) == (-973932308 & 0x7FFFFFFF) % 12
    assert {partition_of(b"k%d" % number, 3) for number in range(100)} == {0, 1, 2}


def test_one_partition_holds_every_key_and_none_is_refused() -> None:
    assert partition_of(b"", 1) == 0
    with pytest.raises(ValueError, match="at least one"):
        partition_of(b"k", 0)


def test_a_crew_has_conversations_kept_whole_and_a_topic_for_each_pool() -> None:
    specs = {spec.name: spec for spec in CrewTopics("demo").specs(("default", "payments"))}

    assert specs["demo.conversations"] == TopicSpec("demo.conversations")
    assert {"demo.tools.default", "demo.tools.payments", "demo.audit", "demo.tokens"} < specs.keys()
