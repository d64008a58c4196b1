"""A call's arguments as people read them: numbers to the letter, nothing hidden."""

from __future__ import annotations

import json
from typing import Any

from crewline.cli.text import clean


class _Literal(str):
    """A number or constant exactly as the model wrote it: 89.0 stays 89.0."""


def parsed(arguments: str) -> dict[str, Any] | None:
    """Return the arguments by name, numbers kept to the letter; None if the text is no object."""
    try:
        value = json.loads(arguments, parse_float=_Literal, parse_int=_Literal, parse_constant=_Literal)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def one_line(tool: str, arguments: str) -> str:
    """Return a call as one line: `search_orders(customer='alice', k=3)`."""
    values = parsed(arguments)
    if values is None:
        return clean(f"{tool}({arguments})", one_line=True)
    inside = ", ".join(f"{clean(name, one_line=True)}={show(value)}" for name, value in values.items())
    return f"{clean(tool, one_line=True)}({inside})"


def by_line(arguments: str) -> list[str]:
    """Return one line an argument: `order_id = 1042`; the text itself if it is no object."""
    values = parsed(arguments)
    if values is None:
        return clean(arguments).splitlines() or [""]
    return [f"{clean(name, one_line=True)} = {show(value)}" for name, value in values.items()]


def show(value: Any) -> str:
    """Return a value in short Python-like notation; what cannot be printed is escaped."""
    if isinstance(value, _Literal):
        return str(value)
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {show(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    return {None: "null", True: "true", False: "false"}[value]
