"""The view of a trigger's keys that an engine is given, and what their states ask for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from crewline.bus.base import Record
from crewline.engine import Effect
from crewline.records import Entry
from crewline.triggers import windows
from crewline.triggers.folding import fold
from crewline.triggers.rules import TriggerRule
from crewline.triggers.state import KeyState

log = logging.getLogger("crewline.triggers")

SNAPSHOT_VERSION = 2
_COUNTED = ("late", "held_back", "full")


class TriggersView:
    """How records of `<ns>.triggers` become the states of keys.

    `counts` is what this process has seen, by (trigger, what): events that were `late`, firings `held_back` by
    a cooldown, firings lost because a key was `full`.
    """

    version = SNAPSHOT_VERSION

    def __init__(self, rules: Mapping[str, TriggerRule]) -> None:
        self.rules = rules
        self.counts: Counter[tuple[str, str]] = Counter()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(KeyState)

    def initial(self, key: str) -> KeyState:
        return KeyState(key)

    def fold(self, state: KeyState, entry: Entry) -> KeyState:
        after = fold(state, entry, self.rules)
        if after is not state:
            for what in _COUNTED:
                if (more := getattr(after, what) - getattr(state, what)) > 0:
                    self.counts[state.trigger, what] += more
        return after

    def reject(self, state: KeyState, record: Record, code: str, say: str, *, parks: bool) -> KeyState:
        """A record that counts as absent is left out. A gap loses what was in it: windows go on with the rest."""
        log.warning("%s partition %d offset %d: %s: %s", record.topic, record.partition, record.offset, code, say)
        return state

    def encode(self, state: KeyState) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> KeyState:
        return self._decoder.decode(data)


def pending(state: KeyState, rules: Mapping[str, TriggerRule]) -> Sequence[Effect]:
    """Return what a key's state asks for. Pure: reads only `state`.

    `place`: hold a place of the trigger while a firing is open. `publish`: its intents. `give_up`: its stage is
    over in any case. `silence`: a window closes unless something arrives. `letter`: write a dead letter.
    """
    rule = rules.get(state.trigger)
    if rule is None:
        return ()
    effects = [Effect(letter.id, "letter", letter.id) for letter in state.letters]
    for firing in state.firings:
        effects.append(Effect(f"{firing.id}:place", "place", firing.id))
        if firing.started_ms is not None:
            effects += [
                Effect(asked.id, "publish", firing.id, owed=True) for asked in firing.asked if asked.answered is None
            ]
            effects.append(Effect(f"{firing.id}:{firing.stage}:end", "give_up", firing.id, firing.deadline_ms))
    due_ms = windows.due_ms(rule, state) if state.rule == rule.digest else None
    if due_ms is not None:
        effects.append(Effect(f"{state.id}:{due_ms}", "silence", str(due_ms), due_ms))
    return effects
