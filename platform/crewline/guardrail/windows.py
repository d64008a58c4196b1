"""Limits over windows: which of them a call is under, what it would take, and what their counters said.

    LimitRule       as declared (crew file, or by hand)
    WindowLimit     compiled: `ask` says what a call would take of which counter
    told            why a counter has no room, for a model and a person

The counters themselves, and who owns them: counters.py, keeper.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from crewline import events as ev
from crewline.errors import UsageError
from crewline.events import time_of
from crewline.expressions import Expression, ExpressionError

AMOUNT_MAX = 1e15
_KEY_BYTES_MAX = 256  # of a counter's key; a longer one is known by its hash
_ARGUMENT = re.compile(r"\s*args\.([A-Za-z_]\w*)\s*")
_SPANS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))


@dataclass(frozen=True, slots=True)
class LimitRule:
    """A limit as declared: `tools` together may take `max` within `window_s` seconds.

    `key`: CEL; a counter of its own for each value (None: one for the crew). `sum`: CEL; what a call
    takes (None: 1, so calls are counted). `action`: what happens to a call that has no room.
    """

    name: str
    tools: tuple[str, ...]
    max: float
    window_s: float
    key: str | None = None
    sum: str | None = None
    action: Literal["require_approval", "deny"] = "require_approval"


class Ask(NamedTuple):
    """What is asked of a counter: everything of `limit.asked` that is the limit's."""

    reservation: str
    key: str
    limit: str
    amount: float
    max: float
    window_s: float
    take: ev.Take


class WindowLimit:
    """A limit, compiled. `facts` are the names of the facts its expressions read."""

    __slots__ = ("facts", "key", "rule", "sum")

    def __init__(self, rule: LimitRule, names: tuple[str, ...], known: frozenset[str]) -> None:
        self.rule = rule
        if not (math.isfinite(rule.max) and rule.max > 0 and rule.window_s > 0):
            raise UsageError(f"limit {rule.name!r}: `max` and `window` must be above 0")
        self.key = self._compiled("key", rule.key, names)
        self.sum = self._compiled("sum", rule.sum, names)
        self.facts: frozenset[str] = frozenset()
        for expression in (self.key, self.sum):
            read = frozenset() if expression is None else expression.fields("facts")
            self.facts |= known if read is None else read
        if unknown := self.facts - known:
            there = ", ".join(sorted(known)) or "none"
            raise UsageError(f"limit {rule.name!r}: no fact {min(unknown)!r} is declared; there is: {there}")

    def _compiled(self, what: str, text: str | None, names: tuple[str, ...]) -> Expression | None:
        try:
            return None if text is None else Expression.compile(text, names=names)
        except ExpressionError as error:
            raise UsageError(f"limit {self.rule.name!r}, `{what}`: {error.message}") from None

    def ask(self, judgement_id: str, values: Mapping[str, Any], take: ev.Take) -> Ask:
        """Return what a call would take. Raises: ExpressionError if its key or its amount cannot be told.

        The reservation's id names the judgement and all that is asked for: asked again it is the same one.
        """
        rule = self.rule
        key = rule.name if self.key is None else _counter_key(rule.name, self.key.evaluate(values))
        amount = 1.0 if self.sum is None else _amount(self.sum.evaluate(values))
        most, window_s = float(rule.max), float(rule.window_s)
        asked = f"{key}\n{amount!r}\n{most!r}\n{window_s!r}\n{take}"
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return Ask(f"{judgement_id}:{rule.name}:{digest}", key, rule.name, amount, most, window_s, take)


def told(limit: WindowLimit, answer: ev.LimitAnswered) -> ev.Reason:
    """Return the reason for a call that a limit has no room for."""
    rule = limit.rule
    if answer.problem is not None:
        say = f"What was used of the limit {rule.name!r} is not known any more, so nothing is granted."
        return ev.Reason(f"limit.{rule.name}", say)
    left = max(0.0, answer.max - answer.used)
    say = (
        f"{_number(answer.used)} of {_number(answer.max)} are used within {_span(rule.window_s)} ({rule.name}); "
        f"this call needs {_number(answer.amount)}, {_number(left)} is left."
    )
    fix: dict[str, Any] = {"left": left}
    if rule.sum is not None and (argument := _ARGUMENT.fullmatch(rule.sum)) and left > 0:
        fix["max"] = {f"/{argument.group(1)}": left}
    if answer.again_ms is not None:
        fix["retry_at"] = time_of(answer.again_ms)
    return ev.Reason(f"limit.{rule.name}", say, fix=fix)


def use_of(answer: ev.LimitAnswered) -> ev.LimitUse:
    """Return what the verdict says of a reservation it rests on."""
    after = answer.used + answer.amount
    return ev.LimitUse(
        answer.limit, answer.reservation, answer.amount, answer.used, answer.max, max(0.0, answer.max - after),
        answer.take == "over",
    )


def _counter_key(limit: str, value: Any) -> str:
    """Return the counter's key: the limit's name and the value as JSON, so that `"7"` and 7 are two."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ExpressionError(f"the key of limit {limit!r} is {type(value).__name__}, not text, a number or null")
    key = f"{limit}/{json.dumps(value)}"
    return key if len(key) <= _KEY_BYTES_MAX else f"{limit}/sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= AMOUNT_MAX:
        raise ExpressionError("what a call takes of a limit must be a number from 0 to 1e15")
    return float(value)


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def _span(seconds: float) -> str:
    for unit_s, unit in _SPANS:
        if seconds >= unit_s and seconds % unit_s == 0:
            count = int(seconds // unit_s)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds:g} seconds"
