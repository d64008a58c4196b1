"""One JSON object, strictly by RFC 8259: what a model's arguments must be before anybody reads them.

Brain and guardrail ask this one function, so that what is checked is what is run. Nothing is
repaired: text that two parsers could read in two ways is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal, NoReturn

from crewline.errors import CrewlineError
from crewline.recent import Recent

StrictJsonCode = Literal[
    "decode.too_large",
    "decode.too_deep",
    "decode.duplicate_key",
    "decode.not_json",
    "decode.not_object",
    "decode.number",
    "decode.unicode",
]

BYTES_MAX = 262_144
DEPTH_MAX = 32
_REMEMBERED_BYTES_MAX = 4_096
_strict: Recent[str, bool] = Recent(256)  # texts that were found to be strict: guardrail and pool read the same
DIGITS_MAX = 4300  # Python's own limit for int(str); more would be a plain ValueError far from here


class StrictJsonError(CrewlineError):
    """A text is not one JSON object that every parser reads alike. `code` says which way."""

    def __init__(self, code: StrictJsonCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_object(text: str) -> None:
    """Raise StrictJsonError unless `decode_object` takes `text`. Who has just decoded it need not do so again."""
    if not _strict.get(text):
        decode_object(text)


def decode_object(text: str, *, bytes_max: int = BYTES_MAX, depth_max: int = DEPTH_MAX) -> dict[str, Any]:
    """Return the one JSON object that `text` holds; blank text means `{}`.

    Sizes are UTF-8 bytes; the object itself has depth 1. Integers come back exact and may be wider
    than 64 bits; no float is infinite or NaN; every string can be encoded as UTF-8.

    Raises: StrictJsonError: with the code of the first rule that is broken. Nothing else.
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise StrictJsonError("decode.unicode", "the text holds half of a surrogate pair") from None
    if size > bytes_max:
        raise StrictJsonError("decode.too_large", f"the text has {size} bytes; {bytes_max} are allowed")
    if not text.strip(_WHITESPACE):
        return {}
    # Counting brackets is an upper bound of the depth and nearly free; the exact depth is for the rare rest.
    if text.count("{") + text.count("[") > depth_max and _depth_of(text) > depth_max:
        raise StrictJsonError("decode.too_deep", f"the text is nested deeper than {depth_max} levels")
    value = _parse(text)
    if not isinstance(value, dict):
        raise StrictJsonError("decode.not_object", f"the text is {_kind_of(value)}, not an object")
    if "\\u" in text:
        _check_escapes(value)
    if bytes_max == BYTES_MAX and depth_max == DEPTH_MAX and size <= _REMEMBERED_BYTES_MAX:
        _strict.put(text, True)
    return value


_WHITESPACE = " \t\n\r"  # RFC 8259, section 2; str.strip() alone would also take U+00A0 and others

# A string that never closes runs to the end of the text: going back to try its tail again would be quadratic.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def _depth_of(text: str) -> int:
    """Return how deep brackets outside strings are nested; exact for every text that is JSON."""
    depth = deepest = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        match found.group()[0]:
            case "{" | "[":
                depth += 1
                deepest = max(deepest, depth)
            case "}" | "]":
                depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise StrictJsonError("decode.duplicate_key", f"the key {ascii(twice)[:80]} is given twice")
    return found


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise StrictJsonError("decode.number", f"the number {digits[:40]} overflows")
    return value


def _constant(name: str) -> NoReturn:
    raise StrictJsonError("decode.number", f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX and len(digits.lstrip("-")) > DIGITS_MAX:
        raise StrictJsonError("decode.number", f"a number has {len(digits)} digits; {DIGITS_MAX} are allowed")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_integer, parse_constant=_constant
)


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = f"not JSON at character {error.pos}: {error.msg[:120]}"
        raise StrictJsonError("decode.not_json", message) from None
    except RecursionError:  # only text that is no JSON gets past the depth check
        raise StrictJsonError("decode.too_deep", "the text is nested too deeply to be read") from None
    except ValueError:  # the process may run with a lower sys.set_int_max_str_digits
        raise StrictJsonError("decode.number", "a number is too long to read") from None


def _check_escapes(value: dict[str, Any]) -> None:
    """Refuse a lone surrogate written as an escape: it decodes, and fails at the next `.encode()`."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise StrictJsonError("decode.unicode", "a string holds half of a surrogate pair") from None


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a number"
