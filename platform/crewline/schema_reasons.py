"""What a schema's error means, in words: `{code, path, say, fix}` for a model and a person."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crewline import events as ev

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

_OPTIONS_MAX = 20
_SHOWN_MAX = 60
_CODES = {
    "type": "type", "required": "missing", "additionalProperties": "extra", "unevaluatedProperties": "extra",
    "falseSchema": "extra", "enum": "enum", "const": "enum", "minimum": "range", "maximum": "range",
    "exclusiveMinimum": "range", "exclusiveMaximum": "range", "multipleOf": "range", "minLength": "length",
    "maxLength": "length", "minItems": "size", "maxItems": "size", "minProperties": "size",
    "maxProperties": "size", "contains": "size", "uniqueItems": "unique", "pattern": "pattern",
    "format": "format", "propertyNames": "name",
}
_BOUNDS = {
    "minimum": ("at least", "min"), "maximum": ("at most", "max"), "exclusiveMinimum": ("more than", "above"),
    "exclusiveMaximum": ("less than", "below"), "multipleOf": ("a multiple of", "multiple_of"),
    "minLength": ("at least this many characters:", "min_length"),
    "maxLength": ("at most this many characters:", "max_length"),
    "minItems": ("at least this many items:", "min_items"), "maxItems": ("at most this many items:", "max_items"),
    "minProperties": ("at least this many keys:", "min_keys"),
    "maxProperties": ("at most this many keys:", "max_keys"),
}


def pointer(path: list[str | int]) -> str:
    """Return a JSON pointer (RFC 6901); "" is the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def leaves(error: ValidationError) -> list[ValidationError]:
    """Return what is really wrong behind `error`: that of the branch which fits best, for a choice of schemas.

    The best branch is the one whose errors lie deepest (its shape fits), then the one with the fewest.
    """
    if error.kind.name not in ("anyOf", "oneOf"):
        return [error]
    branches = [branch for branch in error.kind.as_dict().get("context", ()) if branch]
    if not branches:
        return [error]
    here = len(error.instance_path)

    def fit(branch: list[ValidationError]) -> tuple[int, int]:
        wrong_shape = any(len(each.instance_path) == here and each.kind.name == "type" for each in branch)
        return (1 if wrong_shape else 0, len(branch))

    fitting = sorted(branches, key=fit)
    if fit(fitting[0])[0]:
        # No branch has the shape: a coercible one is the likeliest, so null (nothing to coerce) goes last.
        fitting.sort(key=lambda branch: branch[0].kind.as_dict().get("types") == ["null"])
    return [leaf for each in fitting[0] for leaf in leaves(each)]


def reason_of(error: ValidationError, schema: Mapping[str, Any]) -> list[ev.Reason]:
    """Return `error` as reasons: one, or one for each argument that is not declared."""
    kind, facts, path = error.kind.name, error.kind.as_dict(), list(error.instance_path)
    code = "schema." + _CODES.get(kind, "invalid")
    if kind == "falseSchema" and path:
        return [_extra(path[:-1], str(path[-1]), error, schema)]
    if code == "schema.extra":
        return [_extra(path, name, error, schema) for name in facts.get("unexpected", ["?"])]
    where = pointer(path)
    what = repr(where) if where else "the arguments"
    got = _shown(error.instance)
    if kind == "required":
        name = facts["property"]
        declared = _declared(schema, path).get(name)
        fix: dict[str, Any] = {"add": name}
        if isinstance(declared, Mapping):
            fix |= {key: declared[key] for key in ("type", "enum") if key in declared}
        return [ev.Reason(code, f"The argument {name!r} is missing.", pointer([*path, name]), fix)]
    if kind == "type":
        types = sorted(facts["types"], key=lambda name: (name == "null", name))
        say = f"{what} must be {_a(types)}, not {_kind(error.instance)} ({got})."
        return [ev.Reason(code, say, where, {"type": types[0] if len(types) == 1 else types})]
    if kind in ("enum", "const"):
        options = list(facts.get("options", [facts.get("expected_value")]))
        fix = {"one_of": options[:_OPTIONS_MAX]}
        near = _nearest(error.instance, [option for option in options if isinstance(option, str)])
        if near is not None:
            fix["use"] = near
        shown = ", ".join(_shown(option) for option in options[:_OPTIONS_MAX])
        return [ev.Reason(code, f"{what} must be one of {shown}, not {got}.", where, fix)]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        limit = facts.get("limit", facts.get("multiple_of"))
        limit = limit if isinstance(limit, int | float) else str(limit)
        return [ev.Reason(code, f"{what} must be {words} {limit}, not {got}.", where, {name: limit})]
    if kind == "pattern":
        pattern = facts["pattern"]
        return [ev.Reason(code, f"{what} must match {pattern}, not {got}.", where, {"pattern": pattern})]
    if kind == "uniqueItems":
        return [ev.Reason(code, f"{what} must not have an item twice.", where)]
    return [ev.Reason(code, f"{what} does not fit the tool's schema: {error.message[:200]}", where)]


def _extra(path: list[str | int], name: str, error: ValidationError, schema: Mapping[str, Any]) -> ev.Reason:
    known = list(_declared(schema, path))
    given = error.instance if isinstance(error.instance, Mapping) else {}
    near = _nearest(name, [each for each in known if each not in given] or known)
    say = f"The tool has no argument {name[:_SHOWN_MAX]!r}"
    at = pointer([*path, name])
    if near is not None and near not in given:
        return ev.Reason("schema.extra", f"{say}; {near!r} is the nearest.", at, {"use": near})
    there = ", ".join(repr(each) for each in known[:_OPTIONS_MAX]) or "none"
    return ev.Reason("schema.extra", f"{say}; it has: {there}.", at, {"remove": name})


def _declared(schema: Mapping[str, Any], path: list[str | int]) -> Mapping[str, Any]:
    """Return the properties declared at `path`, as far as they can be followed without evaluating branches."""
    here: Any = schema
    for part in path:
        here = _resolved(here, schema)
        here = here.get("items") if isinstance(part, int) else (here.get("properties") or {}).get(part)
        if not isinstance(here, Mapping):
            return {}
    properties = _resolved(here, schema).get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _resolved(schema: Any, top: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(8):  # a chain of references is short, or a circle
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = top
        for part in reference[2:].split("/"):
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
    return {}


def _nearest(wanted: Any, options: list[str]) -> str | None:
    if not isinstance(wanted, str):
        return None
    folded = {option.casefold().replace("_", "").replace("-", ""): option for option in options[:200]}
    near = difflib.get_close_matches(
        wanted.casefold().replace("_", "").replace("-", "")[:100], list(folded), n=1, cutoff=0.7
    )
    return folded[near[0]] if near else None


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _json(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def _json(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _kind(value: Any) -> str:
    names: dict[type, str] = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _a(types: list[str]) -> str:
    names = [("an " if name[0] in "aeio" else "a ") + name if name != "null" else "null" for name in types]
    return " or ".join(names)
