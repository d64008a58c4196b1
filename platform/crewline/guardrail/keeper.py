"""The keeper of the counters: an engine's role over `<ns>.limits`, beside the guardrail and with its key.

    guardrail ── limit.asked ──▶ <ns>.limits ──▶ keeper ── limit.answered ──▶ <ns>.conversations ──▶ guardrail

A role of its own, and not a part of the guardrail's: a counter spans conversations, hence partitions, so
the partition of its key must have an owner, a fold and a snapshot of its own; that is what an engine
gives. It runs where the guardrail runs, since it takes the same key and as much trust.
"""

from __future__ import annotations

from collections.abc import Sequence

from crewline.bus.base import Message, Record
from crewline.engine import Acted, Effect
from crewline.guardrail.counters import Counter, CounterView
from crewline.records import GUARD, Scribe
from crewline.topics import CrewTopics


class LimitKeeper:
    """Answers asks for room in a counter. Give it to an `Engine` on `<ns>.limits`.

    Args: scribe: holds the guardrail's Ed25519 key.
    """

    name = "limits"

    def __init__(self, topics: CrewTopics, *, scribe: Scribe) -> None:
        self.topic = topics.limits
        self.view = CounterView()
        self._conversations = topics.conversations
        self._scribe = scribe

    def pending(self, state: Counter) -> Sequence[Effect]:
        # Owed until acknowledged; a repeat has the same id and says the same, so the conversation takes one.
        return [
            Effect(each.answer.reservation, "answer", each.answer.reservation, owed=True) for each in state.open
        ]

    def act(self, effect: Effect, state: Counter) -> Acted:
        for each in state.open:
            if each.answer.reservation == effect.ref:
                return [self._scribe.message(
                    self._conversations, each.conversation, each.answer, id=effect.ref, run=each.run,
                    cause=f"{effect.ref}:asked", signed_by=GUARD,
                )]
        return ()

    def observe(self, carry: bytes, record: Record) -> bytes:
        return carry

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        return ()
