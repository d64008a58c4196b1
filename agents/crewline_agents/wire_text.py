"""Text that can be encoded, whatever escapes and half characters an endpoint sent."""

from __future__ import annotations

import re
from typing import Any

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Return `text` with halves of a surrogate pair joined and lone ones as U+FFFD."""
    if text.isascii() or not _HALF.search(text):
        return text
    joined = _PAIR.sub(lambda pair: pair.group().encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _HALF.sub("\ufffd", joined)


def encodable_json(value: Any) -> Any:
    """Return a JSON value with every string in it made encodable."""
    match value:
        case str():
            return encodable(value)
        case list():
            return [encodable_json(item) for item in value]
        case dict():
            return {encodable(str(key)): encodable_json(item) for key, item in value.items()}
        case _:
            return value


class TextRun:
    """A text that arrives in pieces, where a piece may end between the halves of a pair."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._held = ""

    def add(self, piece: str) -> str:
        """Take a piece; return what may be shown of it now. All that was returned is `text`, in the end."""
        piece = self._held + piece
        self._held = ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            piece, self._held = piece[:-1], piece[-1]
        piece = encodable(piece)
        self._pieces.append(piece)
        return piece

    def end(self) -> str:
        """Return what was held back for another half that never came."""
        rest, self._held = encodable(self._held), ""
        self._pieces.append(rest)
        return rest

    @property
    def text(self) -> str:
        return "".join(self._pieces) + encodable(self._held)
