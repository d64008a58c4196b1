"""Strict YAML 1.2: plain values, and the line and column of every key and value.

Built on the parser's events, not on its documents: an alias bomb is counted before it is unfolded, nesting
is bounded, and a key that is given twice can say where it was first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from crewline.crews.problems import CrewFileError, Path, Place, Problem, dotted

BYTES_MAX = 1_000_000
DEPTH_MAX = 32
VALUES_MAX = 50_000  # after aliases; the largest crew file seen has 600
_MERGE = "<<"
_NULL = re.compile(r"(?:null|Null|NULL|~|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(slots=True)
class Node:
    """A value and where it stands. `value` is plain data: for a map {key: Node}, for a list [Node, …].

    `key` is where its key (or, in a list, the item) stands; `text` is a scalar as written; `plain` means
    that it was written without quotes.
    """

    value: Any
    place: Place
    key: Place
    text: str | None = None
    plain: bool = False


@dataclass(slots=True)
class _Building:
    """A document on its way."""

    file: str
    anchors: dict[str, Node] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    values: int = 0
    problems: list[Problem] = field(default_factory=list)


def read_yaml(text: str, file: str) -> Node:
    """Return the one document in `text` as nodes. `file` is what places call it.

    Raises: CrewFileError for a syntax error (the first one) or keys given twice (all of them), with places.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLStreamError

    building = _Building(file)
    try:
        events = YAML(typ="safe", pure=True).parse(text)
        root = _document(events, building)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file)
        raise CrewFileError([Problem.at(place, "", _say(error))]) from None
    except (YAMLError, YAMLStreamError, ValueError) as error:  # a character that YAML does not allow, a bad directive
        raise CrewFileError([_unreadable(text, file, error)]) from None
    if building.problems:
        raise CrewFileError(building.problems)
    return root


def scalar(text: str) -> Any:
    """Return what YAML 1.2 (core schema) reads in `text`, written without quotes."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def plain(node: Node) -> Any:
    """Return the value of a node without its places."""
    if isinstance(node.value, dict):
        return {key: plain(each) for key, each in node.value.items()}
    return [plain(each) for each in node.value] if isinstance(node.value, list) else node.value


def _document(events: Iterator[Any], building: _Building) -> Node:
    from ruamel.yaml.events import DocumentStartEvent, NodeEvent, StreamStartEvent

    first = next(events)
    while isinstance(first, StreamStartEvent | DocumentStartEvent):
        if isinstance(first, DocumentStartEvent) and (first.version or first.tags):
            _fail(building, _place(building, first), (), "a crew file takes no %YAML or %TAG line")
        first = next(events)
    if not isinstance(first, NodeEvent):  # the end of the stream
        raise CrewFileError([Problem(building.file, 1, 1, "", "the file is empty")])
    root = _node(first, events, building, (), _place(building, first))
    for event in events:
        if isinstance(event, DocumentStartEvent):
            _fail(building, _place(building, event), (), "a second document; a crew file is one")
    return root


def _node(event: Any, events: Iterator[Any], building: _Building, path: Path, key: Place) -> Node:
    from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent

    place = _place(building, event)
    _count(building, place, path, 1)
    if isinstance(event, AliasEvent):
        named = building.anchors.get(event.anchor)
        if named is None:
            _fail(building, place, path, f"nothing is named '&{event.anchor}' above")
        _count(building, place, path, building.sizes[id(named)])
        return Node(named.value, place, key, named.text, named.plain)
    if len(path) > DEPTH_MAX:
        _fail(building, place, (), f"more than {DEPTH_MAX} levels inside each other")
    if (tag := _tag(event)) is not None:
        _fail(building, place, path, f"a crew file takes no tags such as {tag!r}")
    before = building.values
    if isinstance(event, ScalarEvent):
        bare = event.style is None
        node = Node(scalar(event.value) if bare else event.value, place, key, event.value, bare)
    elif isinstance(event, MappingStartEvent):
        node = Node(_map(events, building, path), place, key)
    else:
        node = Node(_list(events, building, path), place, key)
    # Named when complete: an alias inside its own anchor finds nothing.
    if event.anchor is not None:
        building.anchors[event.anchor] = node
        building.sizes[id(node)] = building.values - before + 1
    return node


def _map(events: Iterator[Any], building: _Building, path: Path) -> dict[str, Node]:
    from ruamel.yaml.events import AliasEvent, MappingEndEvent, ScalarEvent

    own: dict[str, Node] = {}
    merged: list[Node] = []
    while not isinstance(event := next(events), MappingEndEvent):
        place = _place(building, event)
        if not isinstance(event, ScalarEvent) or isinstance(event, AliasEvent):
            _fail(building, place, path, "a key must be a name")
        _count(building, place, path, 1)
        name: str = event.value
        node = _node(next(events), events, building, (*path, name), place)
        if name == _MERGE and event.style is None:
            merged += _merged(node, building, path)
        elif name in own:
            line = own[name].key.line
            say = f"{name!r} is given twice (first at line {line})"
            building.problems.append(Problem.at(place, dotted(path), say))
        else:
            own[name] = node
    for each in merged:
        for name, node in each.value.items():
            own.setdefault(name, node)
    return own


def _merged(node: Node, building: _Building, path: Path) -> list[Node]:
    every: list[Node] = node.value if isinstance(node.value, list) else [node]
    for each in every:
        if not isinstance(each.value, dict):
            _fail(building, node.place, path, "'<<' merges maps")
    return every


def _list(events: Iterator[Any], building: _Building, path: Path) -> list[Node]:
    from ruamel.yaml.events import SequenceEndEvent

    found: list[Node] = []
    while not isinstance(event := next(events), SequenceEndEvent):
        found.append(_node(event, events, building, (*path, len(found)), _place(building, event)))
    return found


def _tag(event: Any) -> str | None:
    tag = getattr(event, "ctag", None) or getattr(event, "tag", None)
    return None if tag is None or str(tag) == "None" else str(tag)


def _count(building: _Building, place: Place, path: Path, values: int) -> None:
    building.values += values
    if building.values > VALUES_MAX:
        _fail(building, place, path, f"more than {VALUES_MAX:,} values, aliases unfolded")


def _place(building: _Building, event: Any) -> Place:
    mark = event.start_mark
    return Place(building.file, mark.line + 1, mark.column + 1)


def _fail(building: _Building, place: Place, path: Path, message: str) -> NoReturn:
    raise CrewFileError([*building.problems, Problem.at(place, dotted(path), message)])


def _say(error: Any) -> str:
    say = str(error.problem or error.context or "not YAML").strip()
    if "'\\t'" in say:
        return "a tab; YAML is indented with spaces"
    return say if error.context is None or "mapping values" in say else f"{say} ({error.context.strip()})"


def _unreadable(text: str, file: str, error: Exception) -> Problem:
    at = getattr(error, "position", None)
    if isinstance(at, int):
        line = text.count("\n", 0, at)
        column = at - text.rfind("\n", 0, at)
        return Problem(file, line + 1, column, "", f"a character that YAML does not allow: {text[at]!r}")
    return Problem(file, 1, 1, "", f"not YAML: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}")
