"""The JSON Schema of a tool's arguments: closed, compiled once, its errors as reasons a model can act on.

    closed(parameters)  the schema that is enforced: what is not declared is not allowed
    ArgumentSchema      .fits(args), .problems(args), .coerce(args)

What is wrong is put into words in `schema_reasons.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crewline import events as ev
from crewline.schema_reasons import leaves, pointer, reason_of

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

PROBLEMS_MAX = 20  # a model reads no more than this in one go
COERCIONS_MAX = 64
_ROUNDS_MAX = 3  # a coerced value can uncover one more problem below it
_IN_PLACE = ("anyOf", "oneOf", "allOf", "if", "then", "else", "not", "dependentSchemas", "$ref")
_ALTERNATIVES = ("anyOf", "oneOf")
_BELOW_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_BELOW = ("items", "additionalItems", "contains", "unevaluatedItems")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{1,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,3})?")


def closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return `parameters` with `additionalProperties: false` at every object level that states properties.

    The top level is closed even if it states none. An `additionalProperties` that is itself a schema (a
    map of values) stays. Where branches (`allOf`, `anyOf` beside properties…) describe the same object,
    closing each would forbid them all: `unevaluatedProperties: false` closes the whole instead.
    """
    top: dict[str, Any] = _closed(parameters)
    top.setdefault("type", "object")
    if not any(key in top for key in ("additionalProperties", "unevaluatedProperties", *_IN_PLACE)):
        # With no `properties` at all the engine would speak of a false schema, and name no argument.
        top |= {"properties": {}, "additionalProperties": False}
    return top


def _closed(schema: Any, *, branch: bool = False) -> Any:
    """`branch`: the schema describes an object that somebody above it closes."""
    if isinstance(schema, list):
        return [_closed(each, branch=branch) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts = [key for key in _IN_PLACE if key in schema]
    alone = "properties" not in schema and len(parts) == 1 and (
        parts[0] in (*_ALTERNATIVES, "$ref") or (parts[0] == "allOf" and len(schema["allOf"]) == 1)
    )
    inside = branch or (bool(parts) and not alone)
    after: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BELOW_MAPS and isinstance(value, Mapping):
            after[key] = {name: _closed(each) for name, each in value.items()}
        elif key in _BELOW or key == "prefixItems" or (key == "additionalProperties" and isinstance(value, Mapping)):
            after[key] = _closed(value)
        elif key in _IN_PLACE and key != "$ref":
            after[key] = _map(value, inside) if key == "dependentSchemas" else _closed(value, branch=inside)
        else:
            after[key] = value
    if not branch and (parts and not alone) and ("properties" in schema or "allOf" in parts):
        after.pop("additionalProperties", None)
        after["unevaluatedProperties"] = False
    elif not branch and "properties" in schema and not isinstance(schema.get("additionalProperties"), Mapping):
        after["additionalProperties"] = False
    elif branch and schema.get("additionalProperties") is True:
        del after["additionalProperties"]  # it would make everything "evaluated", and open the whole
    return after


def _map(schemas: Mapping[str, Any], inside: bool) -> dict[str, Any]:
    return {name: _closed(each, branch=inside) for name, each in schemas.items()}


def _out_of_reach(uri: str) -> Any:
    """A schema never sends us to the network or to a file."""
    raise ValueError(f"{uri} is outside the schema")


def validator_of(schema: Mapping[str, Any]) -> Validator:
    """Return the schema, compiled. Raises: ValueError if it is no JSON Schema, or refers to something outside."""
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(dict(schema), retriever=_out_of_reach)
    except Exception as error:  # it raises several kinds; all mean the same to us
        raise ValueError(f"no usable JSON Schema: {error}") from None


class ArgumentSchema:
    """A tool's argument schema, compiled once.

    Args:
        parameters: the tool's JSON Schema, as open as its author wrote it.

    Raises: ValueError if it is no JSON Schema (also a `$ref` that leads nowhere, or out of the schema).
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters
        self.enforced = closed(parameters)
        self._validator = validator_of(self.enforced)
        properties = parameters.get("properties")
        self.properties: tuple[str, ...] = tuple(properties) if isinstance(properties, Mapping) else ()
        required = parameters.get("required")
        self.required: frozenset[str] = frozenset(required) if isinstance(required, list | tuple) else frozenset()

    def fits(self, args: Mapping[str, Any]) -> bool:
        """Return whether `args` are valid."""
        return self._validator.is_valid(args)

    def problems(self, args: Mapping[str, Any]) -> list[ev.Reason]:
        """Return everything that is wrong with `args`, at most `PROBLEMS_MAX` reasons; [] if nothing is."""
        if self.fits(args):
            return []
        reasons = []
        for error in self._errors(args):
            reasons += reason_of(error, self.enforced)
            if len(reasons) >= PROBLEMS_MAX:
                break
        return reasons[:PROBLEMS_MAX] or [ev.Reason("schema.invalid", "The arguments do not fit the tool's schema.")]

    def coerce(self, args: Mapping[str, Any]) -> tuple[dict[str, Any], list[ev.Reason]]:
        """Return `args` with what is certain put right, and a note (code `amend.*`) for each change.

        Certain are: "5" for 5, 5.0 for 5, "true" for true, a list written as JSON text, and an enum's
        case, spaces and word joiners, if one option alone fits. `args` is untouched; other problems stay.
        """
        after: dict[str, Any] = _copy(args)
        notes: list[ev.Reason] = []
        for _ in range(_ROUNDS_MAX):
            changed = False
            for error in [] if self.fits(after) else self._errors(after):
                path = error.instance_path
                if not path or len(notes) >= COERCIONS_MAX:
                    continue
                found = _certain(error)
                if found is not None:
                    notes.append(_put(after, path, found[0], error.instance))
                    changed = True
            if not changed:
                break
        return after, notes

    def _errors(self, args: Mapping[str, Any]) -> list[ValidationError]:
        found = []
        for error in self._validator.iter_errors(args):
            found += leaves(error)
            if len(found) >= PROBLEMS_MAX * 4:
                break
        return found


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _put(args: Any, path: list[str | int], value: Any, before: Any) -> ev.Reason:
    holder = args
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    say = f"{pointer(path)} was {str(before)[:60]!r}; it is taken as {str(value)[:60]!r}."
    return ev.Reason("amend.coerced", say, pointer(path), {"value": value})


def _certain(error: ValidationError) -> tuple[Any] | None:
    """Return the one value that is surely meant, in a tuple, or None."""
    kind, value = error.kind.as_dict(), error.instance
    if error.kind.name == "type":
        types = kind["types"]
        return _as_type(value, types[0]) if len(types) == 1 else _as_nullable(value, types)
    if error.kind.name == "enum" and isinstance(value, str):
        wanted = _folded(value)
        options = [option for option in kind["options"] if isinstance(option, str) and _folded(option) == wanted]
        return (options[0],) if len(options) == 1 else None
    return None


def _as_nullable(value: Any, types: list[str]) -> tuple[Any] | None:
    others = [name for name in types if name != "null"]
    return _as_type(value, others[0]) if len(others) == 1 else None


def _as_type(value: Any, wanted: str) -> tuple[Any] | None:
    if isinstance(value, bool):
        return None  # true for 1 is a guess
    if wanted == "integer" and isinstance(value, float):
        return (int(value),) if math.isfinite(value) and value.is_integer() else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if wanted == "integer":
        if _INTEGER.fullmatch(text):
            return (int(text),)
        if _NUMBER.fullmatch(text) and abs(number := float(text)) < 2**53 and number.is_integer():
            return (int(number),)
    elif wanted == "number" and _NUMBER.fullmatch(text):
        if _INTEGER.fullmatch(text):
            return (int(text),)
        return (number,) if math.isfinite(number := float(text)) else None
    elif wanted == "boolean" and text.lower() in ("true", "false"):
        return (text.lower() == "true",)
    elif wanted == "array" and text.startswith("[") and text.endswith("]"):
        return _list_in(text)
    return None


def _list_in(text: str) -> tuple[Any] | None:
    """Return the list that `text` is as strict JSON; of two readings none is certain."""
    try:
        return (_LIST.decode(text),)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is no number of JSON")
    return number


_LIST = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)


def _folded(text: str) -> str:
    return re.sub(r"[\s_\-]+", " ", text.strip().casefold())
