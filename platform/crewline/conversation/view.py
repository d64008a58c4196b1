"""The view of a conversation that an engine is given."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from crewline.bus.base import Record
from crewline.conversation.folding import fold, reject
from crewline.conversation.state import Conversation
from crewline.records import Entry

SNAPSHOT_VERSION = 1
SHARED_MAX = 1_024  # folds that roles of one process share


class ConversationView:
    """The view that the engine is given.

    Roles of one process share one: the fold is pure, so what one has folded is the other's answer as
    well, as long as both came from the very same state by the very same record.
    """

    version = SNAPSHOT_VERSION

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Conversation)
        self._initials: OrderedDict[str, Conversation] = OrderedDict()
        self._folded: OrderedDict[tuple[int, int], tuple[Conversation, Entry, Conversation]] = OrderedDict()

    def initial(self, key: str) -> Conversation:
        state = self._initials.get(key)
        if state is None:
            state = self._initials[key] = Conversation(key)
            if len(self._initials) > SHARED_MAX:
                self._initials.popitem(last=False)
        return state

    def fold(self, state: Conversation, entry: Entry) -> Conversation:
        position = (entry.record.partition, entry.record.offset)
        known = self._folded.get(position)
        if known is not None and known[0] is state and known[1] is entry:
            return known[2]
        after = fold(state, entry)
        self._folded[position] = (state, entry, after)
        if len(self._folded) > SHARED_MAX:
            self._folded.popitem(last=False)
        return after

    def reject(self, state: Conversation, record: Record, code: str, say: str, *, parks: bool) -> Conversation:
        return reject(state, record, code, say, parks=parks)

    def encode(self, state: Conversation) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> Conversation:
        return self._decoder.decode(data)
