"""The shape of a crew file: what the models say about it, in a crew file's words and with its places."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from crewline.crews.models import CrewConfig
from crewline.crews.problems import Path, Problem, did_you_mean, dotted
from crewline.crews.values import Referenced
from crewline.crews.yaml_text import Node, plain

_TAGS = frozenset({
    "openai", "scripted", "embedded", "kafka", "tumbling", "hopping", "session",
    "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER",
})  # fmt: skip
_VARIABLES = {"api_key": "OPENAI_API_KEY", "password": "KAFKA_PASSWORD", "token": "CONSOLE_TOKEN", "url": "REDIS_URL"}
_NAME = "lower-case letters, digits and '_', a letter first"
_PATTERNS = {
    "^[a-z][a-z0-9_]*$": _NAME,
    "^[a-z][a-z0-9_-]*$": "lower-case letters, digits, '_' and '-', a letter first",
    r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$": f"a tool's name ({_NAME}), or server.tool",
    r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$": "a dotted name such as refund.decide",
    r"^([a-z][a-z0-9_-]*:)?[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$": "a dotted name such as refund.decide, or crew:refund.decide",
    r"^[A-Za-z0-9._-]+$": "letters, digits, '.', '_' and '-'",
    r"^[0-9]+(\.[0-9]+){0,2}([-+][0-9A-Za-z.+-]+)?$": "a version such as 1.0.0",
}
_PYTHON = "a Python name such as package.module:name"
_KINDS = {
    "string": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "list": "a list such as [a, b]", "dict": "a map", "model": "a map",
}  # fmt: skip
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def shaped(root: Node) -> tuple[CrewConfig | None, list[Problem], list[Problem]]:
    """Return the crew in `root`; or None, what is wrong with its shape, and what its shape waits for.

    The last are references that gave nothing, where the shape hangs on what they give: no error in a check.
    """
    if not isinstance(root.value, dict):
        return None, [Problem.at(root.place, "", "a crew file is a map that starts with 'schema: crew/v1'")], []
    try:
        return CrewConfig.model_validate(plain(root)), [], []
    except ValidationError as error:
        found: list[Problem] = []
        waiting: list[Problem] = []
        for each in error.errors(include_url=False):
            _note(root, each, found, waiting)
        return None, found, waiting


def walk(root: Node) -> Iterable[tuple[Path, Node]]:
    """Yield every value below `root` with its path."""
    waiting: list[tuple[Path, Node]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        if isinstance(node.value, dict):
            waiting += [((*path, key), each) for key, each in node.value.items()]
        elif isinstance(node.value, list):
            waiting += [((*path, index), each) for index, each in enumerate(node.value)]


def _note(root: Node, error: Any, found: list[Problem], waiting: list[Problem]) -> None:
    kind: str = error["type"]
    path, node = _found(root, error["loc"])
    context = error.get("ctx", {})
    if kind == "missing":
        found.append(Problem.at(node.key, dotted(path[:-1]), f"{path[-1]!r} is missing{_usual(path)}"))
        return
    if kind == "union_tag_not_found":
        found.append(Problem.at(node.key, dotted(path), f"{context['discriminator']} is missing"))
        return
    if kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        path, node = (*path, name), node.value[name]
    if isinstance(node.value, Referenced) and node.value.missing and error["loc"][-1] != "[key]":
        waiting.append(Problem.at(node.place, dotted(path), node.value.missing))
    else:
        found.append(Problem.at(node.key, dotted(path), _say(kind, path, node, context, error["msg"])))


def _found(root: Node, location: tuple[str | int, ...]) -> tuple[Path, Node]:
    """Follow pydantic's location, which also names variants (`openai`) and marks keys (`[key]`)."""
    path: list[str | int] = []
    node = root
    for part in location:
        below = _below(node, part)
        if below is not None:
            node = below
            path.append(part)
        elif part != "[key]" and part not in _TAGS:
            path.append(part)
    return tuple(path), node


def _below(node: Node, part: str | int) -> Node | None:
    if isinstance(node.value, dict) and isinstance(part, str):
        return typing.cast("Node | None", node.value.get(part))
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return typing.cast("Node", node.value[part])
    return None


def _say(kind: str, path: Path, node: Node, context: dict[str, Any], message: str) -> str:
    name = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        fields = _fields(path[:-1])
        if name in fields:  # of another variant: another `kind`, `provider`, `mechanism`
            return f"field {name!r} does not go with what the others here say"
        return f"unknown field {name!r}{did_you_mean(name, fields)}"
    if kind == "union_tag_invalid":
        return _expected(node, [tag.strip(" '") for tag in context["expected_tags"].split(",")])
    if kind == "literal_error":
        return _expected(node, _listed(context["expected"]))
    if kind == "secret_literal":
        example = _VARIABLES.get(name) or name.upper().replace("-", "_")
        return (
            f"a secret must be a reference such as ${{{example}}} or ${{file:/run/secrets/x}}, never the value itself"
        )
    if kind == "duration":
        return f"got {shown(node)}, expected a duration such as 30s, 10m, 24h or 90d"
    if kind == "string_type" and node.plain and not isinstance(node.value, dict | list | type(None)):
        what = {bool: "a boolean", int: "an integer", float: "a float"}[type(node.value)]
        return f"YAML reads {node.text} here as {what}; put it in quotes"
    if kind.endswith("_type") and (wanted := _KINDS.get(kind.removesuffix("_type"))):
        return f"got {shown(node)}, expected {wanted}"
    if kind == "string_pattern_mismatch":
        # A bad key is said by its name, a bad value by its text.
        text = repr(name) if isinstance(node.value, dict) else shown(node)
        return f"got {text}, expected {_PATTERNS.get(context['pattern'], _PYTHON)}"
    if kind in _BOUNDS:
        (bound,) = context.values()
        return f"got {shown(node)}, expected a number {_BOUNDS[kind]} {bound:g}"
    if kind == "finite_number":
        return f"got {shown(node)}, expected a number"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind == "string_too_long":
        return f"longer than {context['max_length']:,} characters"
    return message[:1].lower() + message[1:]


def _expected(node: Node, expected: list[str]) -> str:
    *most, last = [repr(each) for each in expected]
    listed = f"{', '.join(most)} or {last}" if most else last
    meant = did_you_mean(node.value, expected) if isinstance(node.value, str) else ""
    return f"got {shown(node)}, expected {listed}{meant}"


def _listed(expected: str) -> list[str]:
    """Read pydantic's "'a', 'b' or 'c'"."""
    return [each.strip(" '") for each in expected.replace(" or ", ",").split(",")]


def shown(node: Node) -> str:
    """Return a value as a message may show it: as written, since what a reference gives may be secret."""
    if isinstance(node.value, dict):
        return "a map"
    if isinstance(node.value, list):
        return "a list"
    if node.value is None:
        return "nothing"
    text = node.value.raw if isinstance(node.value, Referenced) else node.text or ""
    text = text if len(text) <= 60 else text[:59] + "…"
    return repr(text) if isinstance(node.value, str) else text


def _usual(path: Path) -> str:
    """Say what a missing field is for, where its name alone may not."""
    if path[-1] == "effect":
        return "; say 'read', 'write' or 'destructive' (cannot be undone from here)"
    return "; set 'schema: crew/v1'" if path == ("schema",) else ""


def _fields(path: Path) -> list[str]:
    """Return the names of the fields of the model (or of all its variants) at `path`."""
    at: Any = CrewConfig
    for part in path:
        at = _step(at, part)
    return [field.alias or name for model in _models(at) for name, field in model.model_fields.items()]


def _step(at: Any, part: str | int) -> Any:
    for model in _models(at):
        for name, field in model.model_fields.items():
            if (field.alias or name) == part:
                return field.annotation
    return next((args[-1] for each in _options(at) if (args := typing.get_args(each)) and typing.get_origin(each) in (dict, list)), None)


def _options(at: Any) -> list[Any]:
    if typing.get_origin(at) is typing.Annotated:
        return _options(typing.get_args(at)[0])
    if typing.get_origin(at) in (typing.Union, types.UnionType):
        return [option for each in typing.get_args(at) for option in _options(each)]
    return [at]


def _models(at: Any) -> list[type[BaseModel]]:
    return [each for each in _options(at) if isinstance(each, type) and issubclass(each, BaseModel)]
