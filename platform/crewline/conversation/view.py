"""The view of a conversation that an engine is given."""

from __future__ import annotations

import msgspec

from crewline.bus.base import Record
from crewline.conversation.folding import fold, reject
from crewline.conversation.state import Conversation
from crewline.recent import Recent
from crewline.records import Entry

SNAPSHOT_VERSION = 1
SHARED = 512  # folds that roles of one process share, at least


class ConversationView:
    """The view that the engine is given.

    Roles of one process share one: the fold is pure, so what one has folded is the other's answer as
    well, as long as both came from the very same state by the very same record.
    """

    version = SNAPSHOT_VERSION

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Conversation)
        self._initials: Recent[str, Conversation] = Recent(SHARED)
        self._folded: Recent[tuple[int, int], tuple[Conversation, Entry, Conversation]] = Recent(SHARED)

    def initial(self, key: str) -> Conversation:
        state = self._initials.get(key)
        if state is None:
            state = Conversation(key)
            self._initials.put(key, state)
        return state

    def fold(self, state: Conversation, entry: Entry) -> Conversation:
        position = entry.record[1:3]
        known = self._folded.get(position)
        if known is not None and known[0] is state and known[1] is entry:
            return known[2]
        after = fold(state, entry)
        self._folded.put(position, (state, entry, after))
        return after

    def reject(self, state: Conversation, record: Record, code: str, say: str, *, parks: bool) -> Conversation:
        return reject(state, record, code, say, parks=parks)

    def encode(self, state: Conversation) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes) -> Conversation:
        return self._decoder.decode(data)
