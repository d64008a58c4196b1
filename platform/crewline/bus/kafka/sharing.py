"""Who gets which partition: sticky, and a partition is given only after its owner has let go.

Kafka's classic protocol lets the group's leader decide. Each member says in its join what it owns; a
partition that is to move is given to nobody as long as its owner claims it. The owner, finding it
gone from its share, lets go and joins again; then it is free. So a rebalance that moves partitions
takes two rounds; every member is told that a second one comes, so that it asks for it often: what moves
is nobody's until then. Those that stay are read on in between (KIP-429's idea; aiokafka's own sticky
assignor revokes everything in each rebalance, and gives to the new owner while the old one still works).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

NAME = "crewline.sticky"
MORE = b"more"  # said with a share: something is withheld until its owner lets go, and another share comes


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What a member owns when it joins, and since which generation of the group it knows that."""

    generation: int = -1
    owned: tuple[int, ...] = ()


def share(claims: Mapping[str, Claim], partitions: Sequence[int]) -> dict[str, list[int]]:
    """Return each member's partitions: sizes differ by at most 1 in the end, and what is claimed stays or is withheld.

    Of two claims on one partition the newer generation's counts. Pure: every leader decides alike.
    """
    owners: dict[int, str] = {}
    for member in sorted(claims, key=lambda id: (-claims[id].generation, id)):
        for partition in claims[member].owned:
            if partition in partitions:
                owners.setdefault(partition, member)
    owned: dict[str, list[int]] = {member: [] for member in claims}
    for partition in sorted(owners):
        owned[owners[partition]].append(partition)

    least, larger = divmod(len(partitions), len(claims)) if claims else (0, 0)
    by_size = sorted(claims, key=lambda id: (-len(owned[id]), id))
    quota = {member: least + (rank < larger) for rank, member in enumerate(by_size)}
    shares = {member: owned[member][: quota[member]] for member in by_size}
    free = [partition for partition in partitions if partition not in owners]
    for member in by_size:
        # What is still missing here is somebody's surplus, and comes in the next round.
        wanted = quota[member] - len(shares[member])
        shares[member] += free[:wanted]
        del free[:wanted]
    assert not free or not claims, "quotas cover every partition"
    return {member: sorted(shares[member]) for member in claims}


class Assignor:
    """What aiokafka asks: one per consumer (its own ones keep their state on the class).

    Args:
        claim: returns what this member owns; called at each join.
        given: called with this member's share, and whether another one comes at once, in the same step of the loop
            in which aiokafka takes it up.
    """

    name = NAME

    def __init__(self, claim: Callable[[], Claim], given: Callable[[Sequence[int], bool], None]) -> None:
        self._claim = claim
        self._given = given

    def metadata(self, topics: Iterable[str]) -> Any:
        return ConsumerProtocolMemberMetadata(0, sorted(topics), msgspec.json.encode(self._claim()))

    def assign(self, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        topics = sorted({topic for metadata in members.values() for topic in metadata.subscription})
        shares: dict[str, list[tuple[str, list[int]]]] = {member: [] for member in members}
        more = False
        for topic in topics:  # one, unless somebody else's consumer is in the group
            claims = {member: _claim_of(metadata) for member, metadata in members.items() if topic in metadata.subscription}
            partitions = sorted(cluster.partitions_for_topic(topic) or ())
            given = share(claims, partitions)
            for member, numbers in given.items():
                shares[member].append((topic, numbers))
            more = more or sum(map(len, given.values())) < len(partitions)
        said = MORE if more else b""
        return {member: ConsumerProtocolMemberAssignment(0, each, said) for member, each in shares.items()}

    def on_assignment(self, assignment: Any) -> None:
        self._given([tp.partition for tp in assignment.partitions()], assignment.user_data == MORE)


def _claim_of(metadata: Any) -> Claim:
    try:
        return msgspec.json.decode(metadata.user_data or b"[]", type=Claim)
    except msgspec.DecodeError:
        return Claim()
