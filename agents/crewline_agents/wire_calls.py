"""Tool calls from fragments: which piece belongs to which call, and what a whole call is worth.

    fragment            goes to
    with an index       the call in that slot
    without one         the call started last (or the one whose id it repeats)
    with a name         a new call, if the slot's call has another id, or if the fragment has no id and
                        the arguments so far are a whole JSON object; otherwise it repeats or continues the name

Empty and null fields say nothing, and the first id stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crewline.strict_json import StrictJsonError, decode_object

from crewline_agents.base import CallText
from crewline_agents.wire_text import encodable, encodable_json

ARGUMENTS_BYTES_MAX = 8_388_608  # the guardrail's own limit is far lower, and says so to the model
DEPTH_MAX = 64
ECHO_FIELDS = (
    "extra_content",
    "thought_signature",
    "provider_specific_fields",
)  # signatures that must go back


@dataclass
class _Draft:
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    echo: dict[str, Any] = field(default_factory=dict)
    legacy: bool = False

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def is_whole(self) -> bool:
        """Are the arguments so far a whole object? Looked at only when a name comes: mind the cost."""
        arguments = self.arguments
        if not arguments.rstrip().endswith("}"):
            return False
        try:
            decode_object(arguments, bytes_max=ARGUMENTS_BYTES_MAX, depth_max=DEPTH_MAX)
        except StrictJsonError as error:
            return error.code != "decode.not_json"  # an end is an end, even of an object we will refuse
        return True


class CallDrafts:
    """The calls of one reply while they arrive, in the order in which they started."""

    def __init__(self) -> None:
        self._all: list[_Draft] = []
        self._slots: dict[object, _Draft] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, entries: Any, *, whole: bool = False) -> bool:
        """Take `tool_calls` of a delta, or of a message (`whole`: each entry is a call of its own).

        Returns whether anything was said.
        """
        if isinstance(entries, dict):
            entries = [entries]
        if not isinstance(entries, list):
            return False
        said = [self._fragment(entry, whole=whole) for entry in entries if isinstance(entry, dict)]
        return any(said)

    def add_legacy(self, entry: Any) -> bool:
        """Take the old `function_call` field: one call, without an id."""
        if not isinstance(entry, dict):
            return False
        return self._fragment({"index": "legacy", "function": entry}, legacy=True)

    def finish(self, names: Mapping[str, str], *, seed: str, cut: bool) -> tuple[tuple[CallText, ...], bool]:
        """Return the calls, and whether one of them was not cut off.

        Args:
            names: the tools offered, by the name the model knows.
            seed: makes the ids that the wire did not give: the same on a replay.
            cut: the output limit was reached, so the last call may be half a call.
        """
        drafts = self._without_doubles()
        given: set[str] = {encodable(draft.id) for draft in drafts}
        used: set[str] = set()
        calls: list[CallText] = []
        some_whole = False
        for k, draft in enumerate(drafts):
            call_id = encodable(draft.id)
            if not call_id or call_id in used:
                call_id = _made_id(seed, k, given | used)
            used.add(call_id)
            last = k == len(drafts) - 1
            call, whole = _judged(draft, call_id, names, cut=cut and last)
            calls.append(call)
            some_whole |= whole
        return tuple(calls), some_whole

    def _fragment(self, entry: dict[str, Any], *, whole: bool = False, legacy: bool = False) -> bool:
        function = entry.get("function")
        if not isinstance(function, dict):
            function = entry  # some servers leave the wrapping out
        call_id, name = _text(entry.get("id")), _text(function.get("name"))
        arguments = _arguments(function.get("arguments"))
        echo = {key: entry[key] for key in ECHO_FIELDS if entry.get(key)}
        if not (call_id or name or arguments or echo):
            return False
        slot: object = len(self._all) if whole else _index(entry.get("index"))
        draft = self._draft_of(slot, call_id)
        if draft is None or (name and _starts_anew(draft, call_id, arguments)):
            draft = _Draft(legacy=legacy)
            self._all.append(draft)
        if slot is not None:
            self._slots[slot] = draft
        draft.id = draft.id or call_id
        if name != draft.name:
            draft.name += name
        if arguments:
            draft.pieces.append(arguments)
        for key, value in echo.items():
            old = draft.echo.get(key)
            draft.echo[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return True

    def _draft_of(self, slot: object, call_id: str) -> _Draft | None:
        if slot is not None:
            return self._slots.get(slot)
        for draft in reversed(self._all):
            if call_id and draft.id == call_id:
                return draft
        return self._all[-1] if self._all else None

    def _without_doubles(self) -> list[_Draft]:
        """Some servers say one call in both fields, the new and the old."""
        new = {(draft.name, draft.arguments) for draft in self._all if not draft.legacy}
        return [draft for draft in self._all if not (draft.legacy and (draft.name, draft.arguments) in new)]


def _starts_anew(draft: _Draft, call_id: str, arguments: str) -> bool:
    if call_id and draft.id:
        return call_id != draft.id
    # An id that comes late, with nothing else new, names the call that is there.
    return (not call_id or bool(arguments)) and draft.is_whole()


def _judged(draft: _Draft, call_id: str, names: Mapping[str, str], *, cut: bool) -> tuple[CallText, bool]:
    wire_name = encodable(draft.name)
    arguments = encodable(draft.arguments)
    problem: str | None = None
    whole = True
    try:
        decode_object(arguments, bytes_max=ARGUMENTS_BYTES_MAX, depth_max=DEPTH_MAX)
    except StrictJsonError as error:
        problem = f"the arguments are refused: {error.message}"
        if cut and error.code == "decode.not_json":
            problem, whole = "the call was cut off by the output limit", False
    if wire_name not in names:
        problem = problem or f"no tool {wire_name[:80]!r} is offered"
    call = CallText(
        id=call_id,
        name=names.get(wire_name, wire_name),
        arguments=arguments,
        valid=problem is None,
        problem=problem,
        echo=encodable_json(draft.echo) or None,
    )
    return call, whole


def _made_id(seed: str, k: int, taken: set[str]) -> str:
    """Return an id of nine letters and digits, the narrowest form that an endpoint asks for (Mistral)."""
    for salt in range(len(taken) + 1):
        made = hashlib.sha256(f"{seed}\n{k}\n{salt}".encode("utf-8", "replace")).hexdigest()[:9]
        if made not in taken:
            return made
    raise AssertionError("more ids taken than there are")


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """Return the argument text as received; anything but a text is serialised compactly, in wire order."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any) -> object:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else value or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
