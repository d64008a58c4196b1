"""What a tool returned, as text for the model: never an exception, never more than 64 KB."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

RESULT_BYTES_MAX = 65_536
FIX_LEVELS_MAX = 60  # an event holds 100 levels
FIX_BYTES_MAX = 4_096
NOTHING = "Done; the tool returned nothing."


class Rendered(NamedTuple):
    """`text` for the model; `problem` says why the value itself could not be shown (None: it could)."""

    text: str
    problem: str | None = None


def render(value: Any) -> Rendered:
    """Return `value` as text: text as it is, everything else as JSON.

    Takes pydantic models, dataclasses, msgspec structs, and values that JSON can hold, nested as they
    like. Anything else comes back as its `repr`, with the problem named.
    """
    if isinstance(value, str):
        return Rendered(cut(value))
    if value is None:
        return Rendered(NOTHING)
    try:
        return Rendered(cut_bytes(msgspec.json.encode(value, enc_hook=_plain)))
    except Exception as error:  # whatever a foreign object raises while it is looked at
        problem = f"a result of type {type(value).__name__} cannot be written as JSON ({describe(error)[:300]})"
        return Rendered(cut(_repr(value)), problem)


def cut(text: str, *, bytes_max: int = RESULT_BYTES_MAX) -> str:
    """Return `text` if it has at most `bytes_max` bytes of UTF-8, else its beginning and a notice that says so.

    Half surrogates, which UTF-8 has no bytes for, become "?".
    """
    if len(text) * 4 <= bytes_max and text.isascii():
        return text
    return cut_bytes(text.encode("utf-8", "replace"), bytes_max=bytes_max)


def cut_bytes(data: bytes, *, bytes_max: int = RESULT_BYTES_MAX) -> str:
    """Return UTF-8 `data` as text, cut at a character's border like `cut`."""
    if len(data) <= bytes_max:
        return data.decode()
    kept = data[:bytes_max].decode("utf-8", "ignore")
    return f"{kept}\n[cut: the result has {len(data):,} bytes, and only the first {bytes_max:,} are shown; ask for less]"


def fix_of(fix: Any) -> dict[str, Any] | None:
    """Return `fix` as plain JSON data, or None if it is none, no object, or over 4 KB."""
    if fix is None:
        return None
    try:
        data = msgspec.json.encode(fix, enc_hook=_plain)
        plain = msgspec.json.decode(data)
    except Exception:  # a foreign object may raise anything when it is looked at
        return None
    flat = data.count(b"[") + data.count(b"{") <= FIX_LEVELS_MAX
    return plain if isinstance(plain, dict) and len(data) <= FIX_BYTES_MAX and flat else None


def describe(error: BaseException) -> str:
    """Return an exception's type and message, even if its `__str__` fails."""
    try:
        message = str(error)
    except Exception:  # its `__str__` is foreign code too
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _plain(value: Any) -> Any:
    """Return what msgspec can write instead of `value`. (No import of pydantic: whoever has a model has it.)"""
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json")
    raise TypeError(f"objects of type {type(value).__name__} cannot be written as JSON")


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # its `__repr__` is foreign code too
        return f"<{type(value).__name__}>"
