"""A memory of the last things, bounded, for the hot path."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Remembers the last `count` to twice `count` things put in.

    Two generations instead of one order: nothing is evicted item by item, which would cost more than the
    look-up it saves.
    """

    __slots__ = ("_count", "_old", "_young")

    def __init__(self, count: int) -> None:
        self._count = count
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        return found if found is not None else self._old.get(key)

    def put(self, key: K, value: V) -> None:
        young = self._young
        young[key] = value
        if len(young) >= self._count:
            self._old, self._young = young, {}
