"""Check 3: what a run may still use, and whether the same thing was done already.

Reads only the turn, so it costs the same however long the conversation is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from crewline_agents.base import ChatMessage
from crewline_tools.base import ToolSpec

from crewline import events as ev
from crewline.conversation import Call, Turn, sha256_of

FAILED_MAX = 2  # the same side-effect call may fail this often in a turn; then it is not tried again
_RESULT_MAX = 200  # characters of an earlier result that are repeated


class Limited(NamedTuple):
    """A finding of this check. `person`: somebody may let the call pass all the same."""

    action: Literal["require_approval", "deny"]
    reason: ev.Reason
    person: bool


def limits(turn: Turn, call: Call, tool: ToolSpec, args: dict[str, Any], sha256: str) -> list[Limited]:
    """Return what speaks against the call: `budget.*`, `repeat.*`. `args` and `sha256` are its arguments now."""
    found = [] if (over := _over_budget(turn, call)) is None else [Limited("deny", over, False)]
    if tool.effect != "read" and (again := _again(turn, call, args, sha256)) is not None:
        found.append(again)
    return found


def _over_budget(turn: Turn, call: Call) -> ev.Reason | None:
    # `spent` counts every call of this reply already: of those, the first ones have the budget's rest.
    k = next((index for index, other in enumerate(turn.calls) if other.id == call.id), len(turn.calls) - 1)
    granted = sum(
        other.chosen.grant.tool_calls or 0
        for other in turn.calls
        if other.chosen is not None and other.status == "granted"  # settled by its answer, once that is there
    )
    used = turn.spent.tool_calls - len(turn.calls) + k + 1
    allowed = turn.limits.tool_calls - granted
    if used <= allowed:
        return None
    say = f"This run may make {max(0, allowed)} tool calls, and all of them are used; answer with what you have."
    return ev.Reason("budget.tool_calls", say, fix={"answer": True})


def _again(turn: Turn, call: Call, args: dict[str, Any], sha256: str) -> Limited | None:
    """Return why the same side-effect call should not be made again in this turn, or None."""
    for other in turn.calls:
        if other.id == call.id:
            break
        if other.name == call.name and (sha256_of(_now(other)) == sha256 or _same(_now(other), args)):
            say = f"This reply calls {call.name!r} twice with the same arguments; once is enough."
            return Limited("deny", ev.Reason("repeat.same_call", say, fix={"drop": True}), True)
    done = [each for each in turn.done_calls if each.tool == call.name]
    if not done:
        return None
    # The log's bytes may differ in spaces or order of keys from what is asked now.
    earlier = list(_earlier(turn, call.name, args))
    same = {sha256, *(sha256_of(arguments) for arguments, _ in earlier)}
    done = [each for each in done if each.args_sha256 in same]
    result = next((result for _, result in reversed(earlier) if result), "")
    if any(each.outcome == "ok" for each in done):
        was = f" Its result was: {result[:_RESULT_MAX]}" if result else ""
        say = f"{call.name!r} was already done with these arguments in this turn.{was}"
        return Limited("deny", ev.Reason("repeat.same_call", say, fix={"use": "the earlier result"}), True)
    if done and any(_code(result) == "call.unknown" for _, result in earlier):
        say = f"Nobody knows whether {call.name!r} ran before with these arguments; a person must say."
        return Limited("require_approval", ev.Reason("repeat.unknown", say), True)
    if len(done) >= FAILED_MAX:
        say = f"{call.name!r} failed {len(done)} times with these arguments; change them, or try in a later turn."
        return Limited("deny", ev.Reason("repeat.failed", say, fix={"retry": "next turn"}), True)
    return None


def _now(call: Call) -> str:
    return call.edited if call.edited is not None else call.arguments


def _same(text: str, args: dict[str, Any]) -> bool:
    try:
        return bool(msgspec.json.decode(text or "{}") == args)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _earlier(turn: Turn, tool: str, args: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (arguments, result) of this turn's earlier calls of `tool` with the same meaning."""
    results: dict[str | None, ChatMessage] = {each.call_id: each for each in turn.messages if each.role == "tool"}
    for message in turn.messages:
        for said in message.calls:
            if said.name == tool and said.id in results and _same(said.arguments, args):
                yield said.arguments, results[said.id].text


def _code(result: str) -> str | None:
    try:
        error = msgspec.json.decode(result)["error"]
        return error["code"] if isinstance(error["code"], str) else None
    except (msgspec.DecodeError, LookupError, TypeError):
        return None
