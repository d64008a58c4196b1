"""Check 0: the arguments are one JSON object that everybody reads alike, and identifiers are what they look like."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from crewline import events as ev
from crewline.strict_json import StrictJsonError, decode_object

# Zero-width and joining characters, soft hyphen, bidi marks and overrides, tag characters.
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f"
_HIDDEN = re.compile(f"[{_INVISIBLE}]")
# What is left when they are taken out: an address, an id, a path, a code. Only ASCII: in Persian or Hindi
# words, and in emoji, joiners are part of the spelling.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.+@:/\\#?&=%~,;$*()\[\]{}<>|!'\"^`-]{1,2000}")
_SIGNS_MAX = 10


def decode(text: str) -> tuple[dict[str, Any] | None, list[ev.Reason]]:
    """Return (arguments, reasons to deny): None and one reason if `text` is no strict JSON object.

    Blank text means no arguments. Reasons are `decode.*`.
    """
    try:
        args = decode_object(text)
    except StrictJsonError as error:
        say = f"The arguments cannot be read: {error.message}. Send one JSON object."
        return None, [ev.Reason(error.code, say, "", {"send": "one JSON object"})]
    # Nothing hidden can be in plain ASCII without an escape: nearly every call ends here.
    if text.isascii() and "\\u" not in text:
        return args, []
    reasons: list[ev.Reason] = []
    _look(args, "", reasons)
    return args, reasons[:_SIGNS_MAX]


def hidden_in(value: str) -> str | None:
    """Return the first invisible character in `value` if it reads like an identifier without it."""
    found = _HIDDEN.search(value)
    if found is None or not _IDENTIFIER.fullmatch(_HIDDEN.sub("", value.strip())):
        return None
    return found.group()


def _look(value: Any, path: str, reasons: list[ev.Reason]) -> None:
    if isinstance(value, str):
        if (sign := hidden_in(value)) is not None:
            reasons.append(_reason(sign, path, _HIDDEN.sub("", value)))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _look(each, f"{path}/{index}", reasons)
    elif isinstance(value, dict):
        for key, each in value.items():
            at = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if (sign := hidden_in(key)) is not None:
                reasons.append(_reason(sign, at, None))
            _look(each, at, reasons)


def _reason(sign: str, path: str, clean: str | None) -> ev.Reason:
    name = unicodedata.name(sign, "a character without a name").lower()
    say = f"This value holds a character that cannot be seen: U+{ord(sign):04X} ({name})."
    return ev.Reason("decode.invisible", say, path, {"use": clean[:500]} if clean else None)
