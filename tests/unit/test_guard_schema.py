"""Check 2: the closed schema, its reasons, and what may be put right without asking."""

from __future__ import annotations

from typing import Any

import pytest
from crewline.schemas import PROBLEMS_MAX, ArgumentSchema, closed
from hypothesis import given
from hypothesis import strategies as st


def schema_of(required: tuple[str, ...] = (), **properties: Any) -> ArgumentSchema:
    return ArgumentSchema({"type": "object", "properties": properties, "required": list(required)})


def told(schema: ArgumentSchema, args: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(reason.code, reason.path) for reason in schema.problems(args)]


# --- closing -------------------------------------------------------------------------------------


def test_every_object_level_that_states_properties_is_closed() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": True}
    schema = ArgumentSchema({
        "type": "object",
        "properties": {"one": inner, "many": {"type": "array", "items": inner}, "maybe": {"anyOf": [inner, {"type": "null"}]},
                       "named": {"$ref": "#/$defs/Inner"}, "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                       "free": {"type": "object"}},
        "$defs": {"Inner": inner},
    })
    for args in ({"one": {"y": 1}}, {"many": [{"x": 1, "y": 1}]}, {"maybe": {"y": 1}}, {"named": {"y": 1}}, {"zz": 1}):
        assert [code for code, _ in told(schema, args)] == ["schema.extra"], args
    assert told(schema, {"map": {"any": 1}, "free": {"any": 1}, "maybe": None, "named": {"x": 1}}) == []


def test_a_tool_without_parameters_takes_none() -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        assert told(ArgumentSchema(parameters), {}) == []
        assert told(ArgumentSchema(parameters), {"a": 1}) == [("schema.extra", "/a")]


@pytest.mark.parametrize("parameters", [
    {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}, "additionalProperties": True}]},
    {"properties": {"a": {"type": "integer"}}, "anyOf": [{"properties": {"b": {"type": "integer"}}}, {"required": ["a"]}]},
    {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "oneOf": [{"required": ["a", "b"]}]},
])
def test_branches_that_describe_one_object_are_closed_as_a_whole(parameters: dict[str, Any]) -> None:
    schema = ArgumentSchema({"type": "object", **parameters})
    assert told(schema, {"a": 1, "b": 2}) == []
    assert told(schema, {"a": 1, "b": 2, "c": 3}) == [("schema.extra", "/c")]


def test_one_of_several_shapes_is_closed_each() -> None:
    shape = {"type": "object", "properties": {"a": {"type": "integer"}}}
    other = {"type": "object", "properties": {"b": {"type": "integer"}}}
    schema = schema_of(what={"oneOf": [shape, other]})
    assert told(schema, {"what": {"a": 1}}) == []
    assert told(schema, {"what": {"c": 1}})[0][0] == "schema.extra"


def test_the_authors_schema_is_not_touched() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed(parameters)
    assert parameters == {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("parameters", [
    {"type": "nonsense"},
    {"properties": {"a": {"$ref": "#/$defs/None"}}},
    {"properties": {"a": {"$ref": "https://example.com/schema.json"}}},
])
def test_what_is_no_schema_or_leads_out_of_it_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no usable JSON Schema"):
        ArgumentSchema(parameters)


# --- reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("property", "value", "code", "fix"), [
    ({"type": "integer"}, "x", "schema.type", {"type": "integer"}),
    ({"type": ["integer", "null"]}, [], "schema.type", {"type": ["integer", "null"]}),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x", "schema.type", {"type": "integer"}),
    ({"enum": ["red", "green"]}, "blue", "schema.enum", {"one_of": ["red", "green"]}),
    ({"enum": ["red", "green"]}, "gren", "schema.enum", {"one_of": ["red", "green"], "use": "green"}),
    ({"const": 1}, 2, "schema.enum", {"one_of": [1]}),
    ({"type": "number", "minimum": 1}, 0, "schema.range", {"min": 1}),
    ({"type": "number", "exclusiveMaximum": 5}, 5, "schema.range", {"below": 5}),
    ({"type": "number", "multipleOf": 2}, 3, "schema.range", {"multiple_of": 2}),
    ({"type": "string", "maxLength": 2}, "abc", "schema.length", {"max_length": 2}),
    ({"type": "array", "minItems": 1}, [], "schema.size", {"min_items": 1}),
    ({"type": "string", "pattern": "^A"}, "B", "schema.pattern", {"pattern": "^A"}),
    ({"type": "array", "uniqueItems": True}, [1, 1], "schema.unique", None),
    ({"not": {"type": "string"}}, "x", "schema.invalid", None),
])
def test_each_problem_has_its_code_its_place_and_what_to_do(
    property: dict[str, Any], value: Any, code: str, fix: dict[str, Any] | None
) -> None:
    (reason,) = schema_of(a=property).problems({"a": value})
    assert (reason.code, reason.path, reason.fix) == (code, "/a", fix)
    assert reason.say.endswith(".") or code == "schema.invalid"


def test_all_problems_are_said_at_once() -> None:
    schema = schema_of(("a", "b"), a={"type": "integer"}, b={"type": "string", "enum": ["x"]}, c={"type": "boolean"})
    assert sorted(told(schema, {"a": "x", "c": 1, "d": 1})) == [
        ("schema.extra", "/d"), ("schema.missing", "/b"), ("schema.type", "/a"), ("schema.type", "/c")]
    assert [reason.fix for reason in schema.problems({"a": 1})] == [{"add": "b", "type": "string", "enum": ["x"]}]


def test_a_misspelt_argument_is_told_the_right_name() -> None:
    schema = schema_of(order_id={"type": "string"}, amount={"type": "number"})
    assert [reason.fix for reason in schema.problems({"orderId": "A"})] == [{"use": "order_id"}]
    assert [reason.fix for reason in schema.problems({"wholly_other": "A"})] == [{"remove": "wholly_other"}]


def test_pointers_are_escaped_and_reach_into_lists() -> None:
    items = {"type": "object", "properties": {"~": {"type": "integer"}}}
    schema = ArgumentSchema({"type": "object", "properties": {"a/b": {"type": "array", "items": items}}})
    assert told(schema, {"a/b": [{"~": 1}, {"~": "x"}]}) == [("schema.type", "/a~1b/1/~0")]


def test_the_number_of_reasons_and_their_length_are_bounded() -> None:
    schema = schema_of(a={"type": "array", "items": {"type": "integer"}})
    reasons = schema.problems({"a": ["x" * 10_000] * 500})
    assert len(reasons) == PROBLEMS_MAX
    assert max(len(reason.say) for reason in reasons) < 300


def test_integers_of_any_size_are_read() -> None:
    assert told(schema_of(a={"type": "integer", "maximum": 5}), {"a": 10**400}) == [("schema.range", "/a")]


# --- coercion ------------------------------------------------------------------------------------

COERCIBLE = [
    ({"type": "integer"}, "5", 5),
    ({"type": "integer"}, " -5 ", -5),
    ({"type": "integer"}, "5.0", 5),
    ({"type": "number"}, "5.25", 5.25),
    ({"type": "number"}, "5", 5),
    ({"type": "boolean"}, "True", True),
    ({"type": "boolean"}, "false", False),
    ({"type": "array", "items": {"type": "string"}}, '["a", "b"]', ["a", "b"]),
    ({"type": "string", "enum": ["Red", "Green"]}, " red ", "Red"),
    ({"enum": ["in_transit"]}, "In Transit", "in_transit"),
    ({"type": ["integer", "null"]}, "5", 5),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
    ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "5", 5),
    ({"type": "integer", "minimum": 1}, "5", 5),
]


@pytest.mark.parametrize(("property", "value", "expected"), COERCIBLE)
def test_what_is_certain_is_put_right_with_a_note(property: dict[str, Any], value: Any, expected: Any) -> None:
    schema = schema_of(a=property, b={"type": "object", "properties": {"c": {"type": "array", "items": property}}})
    args = {"a": value, "b": {"c": [value]}}
    after, notes = schema.coerce(args)

    assert after == {"a": expected, "b": {"c": [expected]}}
    assert type(after["a"]) is type(expected)
    assert sorted((note.code, note.path) for note in notes) == [("amend.coerced", "/a"), ("amend.coerced", "/b/c/0")]
    assert schema.problems(after) == []
    assert args == {"a": value, "b": {"c": [value]}}, "what was given is untouched"


@pytest.mark.parametrize(("property", "value"), [
    ({"type": "integer"}, "five"), ({"type": "integer"}, "5.5"), ({"type": "integer"}, 5.5), ({"type": "integer"}, True),
    ({"type": "integer"}, ""), ({"type": "integer"}, "0x10"), ({"type": "integer"}, "1_000"), ({"type": "integer"}, "٥"),
    ({"type": "integer"}, "9" * 30), ({"type": "number"}, "NaN"), ({"type": "number"}, "1e999"), ({"type": "number"}, None),
    ({"type": "boolean"}, "yes"), ({"type": "boolean"}, 1), ({"type": "string"}, 5),
    ({"type": "array", "items": {"type": "string"}}, "a, b"), ({"type": "array"}, '[{"a":1,"a":2}]'),
    ({"enum": ["a b", "A_B"]}, "A B"), ({"enum": ["red"]}, "rouge"),
])
def test_what_is_a_guess_is_left_alone(property: dict[str, Any], value: Any) -> None:
    schema = schema_of(a=property)
    after, notes = schema.coerce({"a": value})
    assert notes == []
    assert repr(after) == repr({"a": value})
    assert schema.problems(after) != []


def test_valid_arguments_are_never_changed() -> None:
    schema = schema_of(a={"type": "integer"}, b={"type": "string"})
    assert schema.coerce({"a": 5.0, "b": "5"}) == ({"a": 5.0, "b": "5"}, [])


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)
SCHEMA = schema_of(("a",), a={"type": "integer"}, b={"type": "array", "items": {"enum": ["x", "Y"]}},
                   c={"anyOf": [{"type": "object", "properties": {"d": {"type": "boolean"}}}, {"type": "null"}]})


@given(st.dictionaries(st.sampled_from("abcde"), JSON | st.sampled_from(["5", "true", ["X"], {"d": "true"}])))
def test_coercion_never_adds_a_problem_and_every_invalid_call_has_a_reason(args: dict[str, Any]) -> None:
    before = SCHEMA.problems(args)
    after, notes = SCHEMA.coerce(args)

    assert len(SCHEMA.problems(after)) <= max(len(before), 1)
    assert not (notes and not before)
    assert bool(before) == (not SCHEMA.fits(args))
