"""The scripted brain: answers from a script (`script.py` documents the format), for tests, demos and --offline.

It keeps nothing between steps. Which entry answers follows from the request alone: the entries of an
agent are played from the first in every turn, and the next one is found by counting the agent's own
replies since the user's message. So a restart, or two owners at once, give the same reply.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from crewline.errors import ModelError
from crewline.strict_json import StrictJsonError, decode_object

from crewline_agents.base import OURS, CallText, ChatMessage, Reply, StepItem, StepRequest, TextDelta, Usage
from crewline_agents.script import Entry, Script, ScriptedCall
from crewline_agents.script import ScriptError as ScriptError
from crewline_agents.script import load_script as load_script

DELTAS_MAX = 8
_PLACE = re.compile(r"\{(result|match)\.([A-Za-z0-9_.\-]+)\}")


class ScriptedBrain:
    """Plays a script. All failures are `ModelError`s; only those of `fail: {retryable: true}` are retryable.

    `sleep` waits for `delay:`; tests with a clock of their own pass theirs.
    """

    def __init__(
        self, script: Script, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._script = script
        self._sleep = sleep

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        """See `Brain.step`."""
        entry, groups = self._entry_for(request)
        if entry.delay_s:
            await self._sleep(entry.delay_s)
        fail = entry.fail
        if fail is not None and (fail.attempts is None or request.attempt <= fail.attempts):
            raise ModelError(fail.say, retryable=fail.retryable)
        values = _Values(_turn_of(request), groups)
        said = _as_text(values.fill_text(entry.say))
        for piece in _pieces(said):
            yield TextDelta(piece)
        calls = tuple(_call(call, values, request, k) for k, call in enumerate(entry.calls))
        yield Reply(
            text=said,
            calls=calls,
            finish="tool_calls" if calls else "stop",
            usage=Usage(
                _words(_prompt_of(request)), _words(" ".join([said, *(call.arguments for call in calls)]))
            ),
            model="scripted",
        )

    async def close(self) -> None:
        """Nothing is held."""

    def _entry_for(self, request: StepRequest) -> tuple[Entry, Mapping[str, str]]:
        agent, turn = request.agent, _turn_of(request)
        said = turn[0].text if turn and turn[0].role == "user" else ""
        play = self._script.play(agent, turn=request.turn, said=said)
        if play is None:
            raise _wrong(f"the script has nothing for agent {agent!r} to answer to {said[:100]!r}")
        at = sum(1 for message in turn if message.role == "assistant" and message.name == agent)
        if at >= len(play.entries):
            count = len(play.entries)
            raise _wrong(
                f"the script of agent {agent!r} has {count} {'entry' if count == 1 else 'entries'} for a turn, and this "
                f"is step {at + 1} of the agent; add an entry"
            )
        entry = play.entries[at]
        prompt = _prompt_of(request)
        for expected in entry.expect:
            if expected not in prompt:
                raise _wrong(
                    f"agent {agent!r} expected {expected!r} in its prompt, which ends with: {prompt[-200:]!r}"
                )
        groups: dict[str, str] = {}
        for pattern in (play.match, entry.match):
            found = pattern.search(said) if pattern is not None else None
            if pattern is not None and found is None:
                raise _wrong(
                    f"agent {agent!r} expected the user's message to match {pattern.pattern!r}: {said[-200:]!r}"
                )
            groups |= {name: text or "" for name, text in (found.groupdict() if found else {}).items()}
        return entry, groups


class _Values:
    """What the places in a script's texts stand for."""

    def __init__(self, turn: list[ChatMessage], groups: Mapping[str, str]) -> None:
        self._groups = groups
        self._results = {message.name or "": message.text for message in turn if message.role == "tool"}

    def fill(self, value: Any) -> Any:
        """Return `value` with the places in all its strings filled."""
        match value:
            case str():
                return self.fill_text(value)
            case dict():
                return {key: self.fill(item) for key, item in value.items()}
            case list():
                return [self.fill(item) for item in value]
            case _:
                return value

    def fill_text(self, text: str) -> Any:
        """Return `text` with its places filled; the bare value, if the text is one place and nothing else."""
        only = _PLACE.fullmatch(text)
        if only is not None:
            return self._value(*only.groups())
        return _PLACE.sub(lambda place: _as_text(self._value(*place.groups())), text)

    def _value(self, kind: str, path: str) -> Any:
        if kind == "match":
            if path not in self._groups:
                raise _wrong(
                    f"the script asks for {{match.{path}}}, and no 'match' of this turn has that group"
                )
            return self._groups[path]
        tools = [tool for tool in self._results if tool and (path == tool or path.startswith(f"{tool}."))]
        if not tools:
            known = ", ".join(sorted(self._results)) or "none"
            raise _wrong(f"the script asks for {{result.{path}}}; results in this turn: {known}")
        tool = max(tools, key=len)  # names of tools may have dots
        value = _read(self._results[tool])
        for part in path.removeprefix(tool).split(".")[1:]:
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise _wrong(
                    f"the script asks for {{result.{path}}}; the result of {tool} is: {self._results[tool][:200]}"
                ) from None
        return value


def _turn_of(request: StepRequest) -> list[ChatMessage]:
    """Return the messages from the user's last one on: those of this turn."""
    messages = list(request.messages)
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user" and messages[at].name != OURS:
            return messages[at:]
    return messages


def _prompt_of(request: StepRequest) -> str:
    return "\n".join([request.system, *(message.text for message in request.messages)])


def _read(text: str) -> Any:
    """Return a result's value. A reviewer's edit is told in a line before it."""
    for part in (text, text.partition("\n")[2]):
        try:
            return json.loads(part)
        except (ValueError, RecursionError):
            continue
    return text


def _call(call: ScriptedCall, values: _Values, request: StepRequest, k: int) -> CallText:
    arguments = call.raw
    if arguments is None:
        arguments = json.dumps(values.fill(call.args), ensure_ascii=False, separators=(",", ":"))
    problem: str | None = None
    try:
        decode_object(arguments, depth_max=64)
    except StrictJsonError as error:
        problem = f"the arguments are refused: {error.message}"
    call_id = f"call_t{request.turn}s{request.step}c{k}"
    return CallText(id=call_id, name=call.name, arguments=arguments, valid=problem is None, problem=problem)


def _pieces(text: str) -> Iterator[str]:
    """Yield the text in a few pieces, cut between words, as a model streams it."""
    words = re.findall(r"\s*\S+|\s+$", text)
    size = max(1, -(-len(words) // DELTAS_MAX))
    for at in range(0, len(words), size):
        yield "".join(words[at : at + size])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(text: str) -> int:
    return len(text.split())


def _wrong(message: str) -> ModelError:
    return ModelError(message, retryable=False, hint="the script and the run do not fit together")
