"""Scripts: what a scripted model answers, per agent, as data.

    frontdesk:                              # entries, played from the first in every turn
      - expect: A-1001                      # fails the run if the prompt does not contain it
        call: find_order
        args: {order_id: A-1001}
      - calls:                              # several calls in one reply
          - {call: find_order, args: {order_id: A-1}}
          - {call: find_order, raw_arguments: '{"order_id": '}    # malformed on purpose
      - delegate: refund.decide             # the built-in tools, by their meaning
        args: {order_id: A-1001}
      - handoff: specialist
      - fail: {retryable: true, say: "overloaded", attempts: 1}
        delay: 50ms
        say: "Order {result.find_order.id} costs {result.find_order.total} USD."
    refunds:
      turns:                                # another play per turn
        - when: broken                      # the user's message contains it; the first that fits
          steps: [{say: "I am sorry."}]
        - match: 'order (?P<order>A-\\d+)'   # or fits a regular expression
          steps: [{call: find_order, args: {order_id: "{match.order}"}}, {say: done}]
        - [{say: "Hello."}]                 # the rest take turns: turn 1 the first of them, turn 2 the second, …

An entry has `say`, calls (`call`, `calls`, `delegate` or `handoff`; also beside `say`), or `fail`.
`fail` alone always fails; with something to say beside it the first `attempts` (1) attempts fail.

In `say` and in strings of `args`, `{result.TOOL.path}` is a value of the tool's latest result in this
turn and `{match.NAME}` a named group of the turn's or the entry's `match`. A string that is nothing but
one of these becomes the value itself, a number for example. Other braces are left alone.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from crewline.errors import CrewlineError


class ScriptError(CrewlineError):
    """A script does not follow the format. The message names file and line."""

    code = "script.invalid"
    exit_code = 3


@dataclass(frozen=True)
class ScriptedCall:
    """One call to make. `raw` stands for the argument text as it is; otherwise `args` is written as JSON."""

    name: str
    args: Any = field(default_factory=dict)
    raw: str | None = None


@dataclass(frozen=True)
class Failure:
    """A failure to play. `attempts`: how many attempts of the step fail; None for all."""

    say: str = "the script says so"
    retryable: bool = True
    attempts: int | None = None


@dataclass(frozen=True)
class Entry:
    """What the model answers in one step."""

    say: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    expect: tuple[str, ...] = ()
    match: re.Pattern[str] | None = None
    fail: Failure | None = None
    delay_s: float = 0.0


@dataclass(frozen=True)
class Play:
    """The entries of one turn, and which user's messages they are for."""

    entries: tuple[Entry, ...]
    when: str | None = None
    match: re.Pattern[str] | None = None

    @property
    def chosen_by_text(self) -> bool:
        return self.when is not None or self.match is not None

    def fits(self, said: str) -> bool:
        return (self.when is None or self.when in said) and (
            self.match is None or bool(self.match.search(said))
        )


@dataclass(frozen=True)
class Script:
    """Plays by agent. Lookups are pure: the same question always has the same answer."""

    agents: Mapping[str, tuple[Play, ...]]

    @classmethod
    def of(cls, agents: Mapping[str, Any], *, source: str = "script") -> Script:
        """Return the script that plain dicts and lists say.

        Raises: ScriptError: they do not follow the format.
        """
        return cls(dict(_Reader(source).agents(agents)))

    def play(self, agent: str, *, turn: int, said: str) -> Play | None:
        """Return what `agent` plays in a turn (counts from 1) that begins with the user's words `said`."""
        plays = self.agents.get(agent, ())
        for play in plays:
            if play.chosen_by_text and play.fits(said):
                return play
        others = [play for play in plays if not play.chosen_by_text]
        return others[(turn - 1) % len(others)] if others else None


def load_script(path: str | Path) -> Script:
    """Read a script from a YAML file.

    Raises: ScriptError: the file cannot be read, is not YAML, or does not follow the format.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: cannot be read: {error}") from None
    try:
        # Round-trip loading knows the lines, and like safe loading makes no objects of others.
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ScriptError(f"{path}:{line}: {error.problem or error.context or 'not YAML'}") from None
    except (YAMLError, ValueError) as error:
        raise ScriptError(f"{path}:1: not YAML: {error}") from None
    return Script.of(data if data is not None else {}, source=str(path))


_CALL_KEYS = {"call", "args", "raw_arguments"}
_SAYS = {"call", "calls", "delegate", "handoff"}
_ENTRY_KEYS = {*_CALL_KEYS, *_SAYS, "say", "expect", "match", "fail", "delay"}
_PLAY_KEYS = {"when", "match", "steps"}
_FAIL_KEYS = {"say", "retryable", "attempts"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0}


class _Reader:
    """Reads plain data into a script; knows where it stands, for the messages."""

    def __init__(self, source: str) -> None:
        self._source = source

    def agents(self, data: Any) -> Iterator[tuple[str, tuple[Play, ...]]]:
        if not isinstance(data, Mapping):
            self._fail(data, "a script maps agents to lists of entries")
        for agent, said in data.items():
            if isinstance(said, Mapping):
                self._keys(said, {"turns"}, f"agent {agent}")
                turns = said.get("turns")
                if not _is_list(turns) or not turns:
                    self._fail(said, f"agent {agent}: 'turns' must be a list")
                yield str(agent), tuple(self._play(turn, turns, i) for i, turn in enumerate(turns))
            else:
                yield str(agent), (Play(self._entries(said, data, agent)),)

    def _play(self, turn: Any, turns: Any, at: int) -> Play:
        if not isinstance(turn, Mapping):
            return Play(self._entries(turn, turns, at))
        self._keys(turn, _PLAY_KEYS, "a turn")
        when = turn.get("when")
        if when is not None and not isinstance(when, str):
            self._fail(turn, "'when' must be a text", key="when")
        return Play(self._entries(turn.get("steps"), turn, "steps"), when=when, match=self._pattern(turn))

    def _entries(self, entries: Any, parent: Any, key: Any) -> tuple[Entry, ...]:
        if not _is_list(entries):
            self._fail(parent, "a list of entries is expected here", key=key)
        return tuple(self._entry(entry, entries, at) for at, entry in enumerate(entries))

    def _entry(self, entry: Any, entries: Any, at: int) -> Entry:
        if not isinstance(entry, Mapping):
            self._fail(
                entries, "an entry maps what to do: say, call, calls, delegate, handoff or fail", key=at
            )
        self._keys(entry, _ENTRY_KEYS, "an entry")
        if len(_SAYS & set(entry)) > 1:
            self._fail(
                entry, "an entry has one of call, calls, delegate and handoff; use 'calls' for several"
            )
        if not ({*_SAYS, "say", "fail"} & set(entry)):
            self._fail(entry, "an entry needs say, call, calls, delegate, handoff or fail")
        if not ({"call", "delegate"} & set(entry)) and {"args", "raw_arguments"} & set(entry):
            self._fail(entry, "'args' and 'raw_arguments' belong to a call")
        expect = entry.get("expect", [])
        expected = [expect] if not _is_list(expect) else expect
        return Entry(
            say=self._text(entry, "say"),
            calls=tuple(self._calls(entry)),
            expect=tuple(str(part) for part in expected),
            match=self._pattern(entry),
            fail=self._failure(entry),
            delay_s=self._duration(entry),
        )

    def _calls(self, entry: Any) -> Iterator[ScriptedCall]:
        if "call" in entry:
            yield self._call(entry)
        if "delegate" in entry:
            args = {"capability": self._text(entry, "delegate"), "input": _plain(entry.get("args", {}))}
            yield ScriptedCall("delegate", args, self._raw(entry))
        if "handoff" in entry:
            yield ScriptedCall("handoff", {"agent": self._text(entry, "handoff")})
        if "calls" in entry:
            calls = entry["calls"]
            if not _is_list(calls) or not calls:
                self._fail(entry, "'calls' must be a list", key="calls")
            for at, call in enumerate(calls):
                if not isinstance(call, Mapping):
                    self._fail(calls, "a call maps 'call' and 'args'", key=at)
                self._keys(call, _CALL_KEYS, "a call")
                yield self._call(call)

    def _call(self, call: Any) -> ScriptedCall:
        name = self._text(call, "call")
        if not name:
            self._fail(call, "'call' must name a tool")
        args = _plain(call.get("args", {}))
        if not isinstance(args, dict):
            self._fail(call, "'args' must be a mapping; use 'raw_arguments' for anything else", key="args")
        return ScriptedCall(name, args, self._raw(call))

    def _raw(self, call: Any) -> str | None:
        if "raw_arguments" not in call:
            return None
        if "args" in call:
            self._fail(call, "give 'args' or 'raw_arguments', not both")
        return self._text(call, "raw_arguments")

    def _failure(self, entry: Any) -> Failure | None:
        if "fail" not in entry:
            return None
        said = entry["fail"]
        if isinstance(said, str):
            said = {"say": said}
        if not isinstance(said, Mapping):
            self._fail(entry, "'fail' maps 'retryable', 'say' and 'attempts'", key="fail")
        self._keys(said, _FAIL_KEYS, "'fail'")
        retryable = said.get("retryable", True)
        attempts = said.get("attempts", 1 if {*_SAYS, "say"} & set(entry) else None)
        if not isinstance(retryable, bool):
            self._fail(said, "'retryable' must be true or false", key="retryable")
        if attempts is not None and (
            not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1
        ):
            self._fail(said, "'attempts' must be a whole number from 1 up", key="attempts")
        return Failure(self._text(said, "say") or Failure.say, retryable, attempts)

    def _duration(self, entry: Any) -> float:
        if "delay" not in entry:
            return 0.0
        found = _DURATION.fullmatch(str(entry["delay"]))
        if found is None:
            self._fail(entry, "'delay' must be a duration such as 50ms, 2s or 1m", key="delay")
        return float(found.group(1)) * _UNIT_S[found.group(2)]

    def _pattern(self, place: Any) -> re.Pattern[str] | None:
        if "match" not in place:
            return None
        try:
            return re.compile(self._text(place, "match"))
        except re.error as error:
            self._fail(place, f"'match' is not a regular expression: {error}", key="match")

    def _text(self, place: Any, key: str) -> str:
        value = place.get(key, "")
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            self._fail(place, f"'{key}' must be a text", key=key)
        return str(value)

    def _keys(self, place: Any, known: set[str], what: str) -> None:
        for key in place:
            if key not in known:
                self._fail(
                    place, f"{what} has no key {key!r}; it may have: {', '.join(sorted(known))}", key=key
                )

    def _fail(self, place: Any, message: str, *, key: Any = None) -> NoReturn:
        line = _line_of(place, key)
        raise ScriptError(f"{self._source}{f':{line}' if line else ''}: {message}")


def _line_of(place: Any, key: Any) -> int | None:
    """Return the line (from 1) of a place in a YAML file; None for plain dicts and lists."""
    mark = getattr(place, "lc", None)
    if mark is None:
        return None
    try:
        line = mark.key(key)[0] if isinstance(place, Mapping) else mark.item(key)[0]
    except (KeyError, TypeError, IndexError, AttributeError):
        line = mark.line
    return int(line) + 1


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _plain(value: Any) -> Any:
    """Return a value without what the YAML reader adds to it (marks, quotes, number forms)."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case bool() | None:
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case datetime.date():
            return value.isoformat()
        case _ if _is_list(value):
            return [_plain(item) for item in value]
        case _:
            return str(value)
