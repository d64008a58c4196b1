"""What was taken of each limit, reckoned a second time, by rules of its own: nothing here uses the platform's counters.

A reservation counts from its ask on, for a window; it is over when it is settled as not run, or replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crewline import events as ev


@dataclass
class Reservation:
    """One ask, the first of its id."""

    asked: ev.LimitAsked
    key: str
    at_ms: int
    granted: bool
    settled: ev.LimitSettled | None = None
    replaced: bool = False

    @property
    def counts(self) -> bool:
        given_back = self.replaced or (self.settled is not None and not self.settled.ran)
        return self.granted and self.asked.take != "look" and not given_back


@dataclass
class Purses:
    """Every reservation by its id, and what turns spent of the day by theirs."""

    taken: dict[str, Reservation] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    def asked(self, key: str, asked: ev.LimitAsked, at_ms: int) -> None:
        if asked.reservation in self.taken or asked.reservation in self.spent:
            return
        for replaced in asked.replaces:
            other = self.taken.get(replaced)
            if other is not None and other.settled is None:
                other.replaced = True
        since_ms = at_ms - int(asked.window_s * 1000)
        used = sum(
            each.asked.amount for each in self.taken.values() if each.key == key and each.counts and each.at_ms > since_ms
        )
        granted = not asked.call or asked.take == "over" or used + asked.amount <= asked.max
        self.taken[asked.reservation] = Reservation(asked, key, at_ms, granted)

    def settled(self, settled: ev.LimitSettled) -> None:
        if settled.spent:
            self.spent.setdefault(settled.reservation, settled.amount)
        known = self.taken.get(settled.reservation)
        if known is not None and known.settled is None:
            known.settled = settled

    def open(self) -> list[str]:
        """Return the reservations of which nobody has said what became of them."""
        return [id for id, each in self.taken.items() if each.settled is None and not each.replaced]
