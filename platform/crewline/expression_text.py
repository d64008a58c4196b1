"""The text of a CEL expression, read before the engine sees it: its names, and what makes it too deep.

The engine (Rust) recurses over its input and a stack overflow ends the process, so nothing reaches it
that is not bounded here. It also lists the variables of macros (`x` in `all(x, …)`) among an expression's
names without saying where they hold; the scan below knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

CHARS_MAX = 2_000
# Measured: with a stack of 512 kB (a thread's on macOS) the engine stands 71 brackets, or 768 operators.
BRACKETS_MAX = 24
OPERATORS_MAX = 200
MACROS_MAX = 2  # comprehensions inside each other: n² steps over an argument's list, not n³

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<string>(?:[rR][bB]?|[bB][rR])(?:\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|\"[^\"\n]*\"|'[^'\n]*')
      |[bB]?(?:\"{3}(?:\\[\s\S]|[^\\])*?\"{3}|'{3}(?:\\[\s\S]|[^\\])*?'{3}
      |\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'))
  | (?P<double>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|\.[0-9]+(?:[eE][+-]?[0-9]+)?)
  | (?P<int>0x[0-9a-fA-F]+[uU]?|[0-9]+[uU]?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign>&&|\|\||[<>=!]=|[-+*/%<>!?:.,()\[\]{}])
  | (?P<other>[\s\S])
    """,
    re.VERBOSE,
)
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_ARITHMETIC = frozenset("+-*/%")
_MACROS = frozenset({"all", "exists", "exists_one", "map", "filter"})
_WORDS = frozenset({"true", "false", "null", "in"})


class Token(NamedTuple):
    """A piece of the text. `kind`: string, double, int, name, sign or other; `start` counts from 0."""

    kind: str
    text: str
    start: int


class Name(NamedTuple):
    """A root name and the field that is read of it, if one is named: `args.amount`."""

    root: str
    field: str | None
    start: int


class Scope(NamedTuple):
    """A comprehension: its variable, and the tokens between which it holds."""

    variable: str
    first: int
    last: int


class Oddity(Exception):
    """Something that this reading refuses. `start` is where, counted from 0."""

    def __init__(self, message: str, start: int) -> None:
        super().__init__(message)
        self.message, self.start = message, start


def read(text: str) -> list[Token]:
    """Return the tokens of `text`, spaces and comments left out.

    Raises: Oddity for text that the engine must not see: too long, too deep, or not CEL's characters.
    """
    if len(text) > CHARS_MAX:
        raise Oddity(f"an expression of {len(text):,} characters; at most {CHARS_MAX:,} are taken", 0)
    tokens = []
    depth = operators = 0
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or "other"
        if kind == "space":
            continue
        token = Token(kind, found.group(), found.start())
        tokens.append(token)
        if kind == "other":
            raise Oddity("", token.start)
        if kind != "sign":
            continue
        operators += token.text not in _CLOSE
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if depth > BRACKETS_MAX:
            raise Oddity(f"more than {BRACKETS_MAX} brackets inside each other", token.start)
        if operators > OPERATORS_MAX:
            raise Oddity(f"more than {OPERATORS_MAX} operators", token.start)
    return tokens


def names(tokens: list[Token]) -> list[Name]:
    """Return every root name that is read, macro variables left out, in order.

    Raises: Oddity for comprehensions more than `MACROS_MAX` deep.
    """
    scopes = list(_scopes(tokens))
    for scope in scopes:
        if sum(other.first <= scope.first and scope.last <= other.last for other in scopes) > MACROS_MAX:
            raise Oddity(f"more than {MACROS_MAX} loops inside each other", tokens[scope.first].start)
    found = []
    for at, token in enumerate(tokens):
        if token.kind != "name" or token.text in _WORDS or _sign(tokens, at - 1) == "." or _sign(tokens, at + 1) == "(":
            continue
        if not any(scope.variable == token.text and scope.first <= at <= scope.last for scope in scopes):
            field = tokens[at + 2].text if _sign(tokens, at + 1) == "." and _kind(tokens, at + 2) == "name" else None
            if field is not None and _sign(tokens, at + 3) == "(":
                field = None  # a method of the root itself
            found.append(Name(token.text, field, token.start))
    return found


def mixed(tokens: list[Token], roots: frozenset[str]) -> Token | None:
    """Return the whole number that is reckoned with a value of one of `roots`, or None.

    Every number of the values is a double and CEL adds no int to a double: `args.amount * 2` always fails.
    """
    for at, token in enumerate(tokens):
        if token.kind != "int":
            continue
        if _sign(tokens, at - 1) in _ARITHMETIC and _path_ends(tokens, at - 2, roots):
            return token
        if _sign(tokens, at + 1) in _ARITHMETIC and _path_starts(tokens, at + 2, roots):
            return token
    return None


def _scopes(tokens: list[Token]) -> Iterator[Scope]:
    for at, token in enumerate(tokens):
        if (
            token.kind == "name" and token.text in _MACROS and _sign(tokens, at - 1) == "."
            and _sign(tokens, at + 1) == "(" and _kind(tokens, at + 2) == "name" and _sign(tokens, at + 3) == ","
        ):  # fmt: skip
            depth = 0
            for last in range(at + 1, len(tokens)):
                sign = _sign(tokens, last)
                depth += (sign in _OPEN) - (sign in _CLOSE)
                if depth == 0:
                    yield Scope(tokens[at + 2].text, at + 2, last)
                    break


def _path_ends(tokens: list[Token], at: int, roots: frozenset[str]) -> bool:
    while _kind(tokens, at) == "name" and _sign(tokens, at - 1) == ".":
        at -= 2
    return _kind(tokens, at) == "name" and tokens[at].text in roots


def _path_starts(tokens: list[Token], at: int, roots: frozenset[str]) -> bool:
    if _kind(tokens, at) != "name" or tokens[at].text not in roots:
        return False
    while _sign(tokens, at + 1) == "." and _kind(tokens, at + 2) == "name":
        at += 2
    return _sign(tokens, at + 1) not in ("(", "[")


def _sign(tokens: list[Token], at: int) -> str:
    return tokens[at].text if _kind(tokens, at) == "sign" else ""


def _kind(tokens: list[Token], at: int) -> str:
    return tokens[at].kind if 0 <= at < len(tokens) else ""
