"""Who gets which partition on Kafka: balanced, sticky, and never two owners at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocol
from crewline.bus.kafka.sharing import Assignor, Claim, share


def settle(claims: dict[str, Claim], partitions: int) -> list[dict[str, list[int]]]:
    """Return round after round until nothing moves: each member claims what it was given."""
    rounds = [share(claims, range(partitions))]
    for generation in range(2, 10):
        claims = {member: Claim(generation, tuple(owned)) for member, owned in rounds[-1].items()}
        rounds.append(share(claims, range(partitions)))
        if rounds[-1] == rounds[-2]:
            return rounds
    raise AssertionError("it never settles")


def test_a_lone_member_gets_everything_at_once() -> None:
    assert share({"a": Claim()}, range(4)) == {"a": [0, 1, 2, 3]}


def test_a_partition_that_moves_is_given_to_nobody_while_its_owner_claims_it() -> None:
    first, second, *_ = settle({"a": Claim(1, (0, 1, 2, 3)), "b": Claim()}, 4)

    assert first == {"a": [0, 1], "b": []}
    assert second == {"a": [0, 1], "b": [2, 3]}


def test_what_a_leaver_owned_goes_round_at_once() -> None:
    assert share({"a": Claim(3, (0, 1)), "c": Claim(3, (2,))}, range(5)) == {"a": [0, 1, 3], "c": [2, 4]}


def test_of_two_claims_the_newer_generation_counts() -> None:
    assert share({"zombie": Claim(3, (0, 1)), "owner": Claim(7, (0, 1))}, range(2))["zombie"] == []


def test_a_claim_on_what_is_not_there_is_nothing() -> None:
    assert share({"a": Claim(1, (0, 9))}, range(1)) == {"a": [0]}


def test_nobody_gets_nothing() -> None:
    assert share({}, range(3)) == {}


class Partitions:
    """What an assignor asks of a cluster."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1, 2, 3}


def test_every_member_is_told_whether_another_share_comes_at_once() -> None:
    given: list[tuple[list[int], bool]] = []

    def take_up(partitions: Sequence[int], more: bool) -> None:
        given.append((list(partitions), more))

    owned: dict[str, Claim] = {"a": Claim(1, (0, 1, 2, 3)), "b": Claim()}
    for _ in range(2):
        assignors = {member: Assignor(partial(owned.__getitem__, member), take_up) for member in owned}
        joins = {member: each.metadata(["t"]) for member, each in assignors.items()}
        for member, answer in assignors["a"].assign(Partitions(), joins).items():
            assignors[member].on_assignment(ConsumerProtocol.ASSIGNMENT.decode(answer.encode()))
        owned = {"a": Claim(2, (0, 1)), "b": Claim(2)}

    assert given == [([0, 1], True), ([], True), ([0, 1], False), ([2, 3], False)]


@pytest.mark.parametrize("seed", range(50))
def test_comings_and_goings_leave_a_balance_and_move_no_more_than_they_must(seed: int) -> None:
    chance = random.Random(seed)
    partitions = chance.randint(1, 24)
    owned: dict[str, list[int]] = {}
    for step in range(12):
        before = {partition: member for member, numbers in owned.items() for partition in numbers}
        if owned and chance.random() < 0.4:
            del owned[chance.choice(sorted(owned))]
        if not owned or chance.random() < 0.7:
            owned[f"m{step}"] = []
        claims = {member: Claim(step + 1, tuple(numbers)) for member, numbers in owned.items()}
        claimed = {number: member for member, claim in claims.items() for number in claim.owned}
        first, *_, owned = settle(claims, partitions)
        for member, numbers in first.items():
            assert all(claimed.get(number, member) == member for number in numbers), f"again: SEED={seed}"
        sizes = [len(numbers) for numbers in owned.values()]
        assert sum(sizes) == partitions, f"again: SEED={seed}"
        assert max(sizes) - min(sizes) <= 1
        stayed = sum(before.get(number) == member for member, numbers in owned.items() for number in numbers)
        could_stay = sum(
            min(len([number for number, owner in before.items() if owner == member]), -(-partitions // len(owned)))
            for member in owned
        )
        assert stayed >= could_stay - len(owned)
