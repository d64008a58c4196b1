"""What a capability promises to answer: its output schema, held when the answer is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from crewline import events as ev
from crewline.errors import UsageError
from crewline.schema_reasons import leaves, pointer
from crewline.schemas import validator_of

PROBLEMS_MAX = 5
_SHOWN_MAX = 200


class AnswerSchema:
    """A capability's output schema, compiled once. Unlike a tool's arguments it is as open as its author wrote it.

    Raises: UsageError if it is no JSON Schema.
    """

    def __init__(self, capability: str, schema: Mapping[str, Any]) -> None:
        self.capability = capability
        try:
            self._validator = validator_of(schema)
        except ValueError as error:
            raise UsageError(f"the output of capability {capability!r}: {error}") from None

    def problem(self, text: str) -> ev.Reason | None:
        """Return why `text` is no answer of this capability, in words for the model that gave it; None if it is one."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as wrong:
            return self._unfit(f"it is not JSON alone ({wrong})")
        if self._validator.is_valid(value):
            return None
        found: list[str] = []
        for error in self._validator.iter_errors(value):
            found += [f"{pointer(list(leaf.instance_path)) or 'the answer'}: {leaf.message[:_SHOWN_MAX]}" for leaf in leaves(error)]
            if len(found) >= PROBLEMS_MAX:
                break
        return self._unfit("; ".join(found[:PROBLEMS_MAX]))

    def _unfit(self, what: str) -> ev.Reason:
        say = f"The answer does not fit what {self.capability} promises: {what}. Answer again with one JSON value that fits, and nothing else."
        return ev.Reason("answer.schema", say)
