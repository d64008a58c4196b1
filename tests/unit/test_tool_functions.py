"""`@tool`: what is read from a signature and a docstring, and what is refused at import."""

import enum
import threading
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from crewline.errors import CrewlineError, UsageError
from crewline.strict_json import StrictJsonError
from crewline_tools.base import ToolSpec
from crewline_tools.context import ToolContext, idempotency_key
from crewline_tools.errors import ToolError
from crewline_tools.functions import ToolFunction, make, seconds, tool, tool_of
from crewline_tools.hints import Derived, Free, Sink, Verbatim
from crewline_tools.reconcile import Settled, UncertainCall
from pydantic import BaseModel, Field


class Address(BaseModel):
    street: str
    title: str = ""


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


@tool(effect="destructive", idempotent=True, timeout="20s", retries=3)
async def issue_refund(
    order_id: Annotated[str, Verbatim(), Field(pattern=r"^A-\d+$")],
    amount: Annotated[float, Sink("amount"), Field(gt=0, le=10_000)],
    ctx: ToolContext,
) -> str:
    """Pay a refund for an order.

    Money goes back the way it came.

    Args:
        order_id: the order's id, as the customer
            gave it.
        amount: in US dollars.

    Raises:
        ToolError: the order is closed.
    """
    return f"{order_id} {amount} {ctx.call_id}"


def of(function: Callable[..., Any]) -> ToolFunction:
    made = tool_of(function)
    assert made is not None
    return made


def spec_of(function: Callable[..., Any]) -> ToolSpec:
    return make(function, effect="read").spec


def test_the_specification_comes_from_signature_docstring_and_decorator() -> None:
    spec = of(issue_refund).spec

    assert (spec.name, spec.effect, spec.idempotent, spec.timeout_s, spec.retries) == (
        "issue_refund", "destructive", True, 20.0, 3)
    assert spec.description == "Pay a refund for an order.\n\nMoney goes back the way it came."
    assert spec.parameters == {
        "type": "object",
        "properties": {
            "order_id": {
                "type": "string",
                "pattern": r"^A-\d+$",
                "x-ground": "verbatim",
                "description": "the order's id, as the customer gave it.",
            },
            "amount": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 10_000,
                "x-sink": "amount",
                "description": "in US dollars.",
            },
        },
        "required": ["order_id", "amount"],
        "additionalProperties": False,
    }


async def test_a_tool_stays_an_ordinary_function() -> None:
    assert await issue_refund("A-1", 5.0, ToolContext(call_id="c1")) == "A-1 5.0 c1"


def test_every_object_of_the_schema_is_closed_and_has_no_made_up_title() -> None:
    def ship(to: Address, also: list[Address], by: dict[str, Address], extra: dict[str, int]) -> None: ...

    parameters = spec_of(ship).parameters

    assert parameters["additionalProperties"] is False
    assert parameters["$defs"]["Address"]["additionalProperties"] is False
    assert set(parameters["$defs"]["Address"]["properties"]) == {"street", "title"}
    assert "title" not in parameters
    assert "title" not in parameters["$defs"]["Address"]
    assert parameters["properties"]["extra"] == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_a_tool_without_arguments_has_a_closed_empty_schema() -> None:
    def ping() -> None: ...

    assert spec_of(ping).parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def test_marks_of_the_guardrail_stand_in_the_schema() -> None:
    def note(a: Annotated[str, Free()], b: Annotated[date, Derived()], c: Annotated[Address, Sink("contact")]) -> None: ...

    properties = spec_of(note).parameters["properties"]

    assert properties["a"]["x-ground"] == "free"
    assert properties["b"] == {"type": "string", "format": "date", "x-ground": "derived"}
    assert properties["c"] == {"$ref": "#/$defs/Address", "x-sink": "contact"}


def test_an_unknown_sink_is_refused() -> None:
    with pytest.raises(ValueError, match="contact, amount, url, secret, destroy"):
        Sink("email")  # type: ignore[arg-type]


def test_arguments_become_the_types_of_the_signature() -> None:
    def ship(to: Address, on: date, colour: Colour, size: Literal["s", "l"] = "s", schema: int = 7) -> None: ...

    made = make(ship, effect="read")
    text = '{"to": {"street": "Main"}, "on": "2026-11-25", "colour": "red"}'

    arguments = made.arguments(text, None)

    # `size` and `schema` were not given: the function has its own defaults.
    assert arguments == {"to": Address(street="Main"), "on": date(2026, 11, 25), "colour": Colour.red}


@pytest.mark.parametrize("text", [
    '{"order_id": "B-1", "amount": 5}',
    '{"order_id": "A-1", "amount": "five"}',
    '{"order_id": "A-1"}',
    '{"order_id": "A-1", "amount": 5, "ctx": {}}',
    '{"order_id": "A-1", "amount": 5, "more": 1}',
])
def test_arguments_that_do_not_fit_are_refused_with_their_place(text: str) -> None:
    with pytest.raises(CrewlineError, match=r"^/(order_id|amount|ctx|more): ") as raised:
        of(issue_refund).arguments(text, None)

    assert raised.value.code == "tool.arguments"


@pytest.mark.parametrize("text", ['{"amount": 1, "amount": 2}', "[1]", '{"a": NaN}', "{"])
def test_text_that_two_parsers_could_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(StrictJsonError):
        of(issue_refund).arguments(text, None)


def test_the_context_is_passed_under_its_own_name() -> None:
    def whoami(c: ToolContext | None = None) -> str:
        return c.call_id if c else "nobody"

    made = make(whoami, effect="read")

    assert made.bind("{}", None, ToolContext(call_id="c7"))() == "c7"
    assert made.bind("", None, ToolContext(call_id="c7"))() == "c7"
    assert made.spec.parameters["properties"] == {}


def no_annotation(order_id) -> None: ...  # type: ignore[no-untyped-def]
def many(*orders: str) -> None: ...
def named(**orders: str) -> None: ...
def positional(order: str, /) -> None: ...
def odd_default(lock: Any = threading.Lock()) -> None: ...  # noqa: B008
def field_default(order: str = Field(max_length=3)) -> None: ...
def odd_type(lock: threading.Event) -> None: ...
def missing_type(order: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


def wrong_docstring(order: str) -> None:
    """Do it.

    Args:
        oder: the order.
    """


def yielding(order: str) -> Any:
    yield order


@pytest.mark.parametrize(("function", "says"), [
    (no_annotation, "'order_id' has no annotation"),
    (many, r"\*orders cannot be described"),
    (named, r"\*\*orders cannot be described"),
    (positional, "'order' is positional-only"),
    (odd_default, "default of argument 'lock'"),
    (field_default, r"Annotated\[TYPE, Field"),
    (odd_type, "argument 'lock' has a type"),
    (missing_type, "annotations cannot be read"),
    (wrong_docstring, "describes 'oder'"),
    (yielding, "it yields"),
    (lambda: None, "its name '<lambda>'"),
])
def test_a_function_that_cannot_be_a_tool_is_refused_where_it_is_defined(
    function: Callable[..., Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        tool(effect="read")(function)

    assert f"test_tool_functions:{function.__qualname__}" in raised.value.message


def test_an_effect_has_to_be_said() -> None:
    def pay() -> None: ...

    with pytest.raises(UsageError, match=r"pay.*what it does to the world"):
        tool(pay)
    with pytest.raises(UsageError, match="what it does to the world"):
        tool()
    with pytest.raises(UsageError, match="'delete' is unknown"):
        tool(effect="delete")(pay)  # type: ignore[arg-type]


def test_retries_are_refused_for_a_tool_that_must_not_run_twice() -> None:
    def pay() -> None: ...

    with pytest.raises(UsageError, match="never run twice"):
        tool(effect="write", idempotent=False, retries=2)(pay)
    with pytest.raises(UsageError, match="below 0"):
        tool(effect="read", retries=-1)(pay)


@pytest.mark.parametrize(("text", "expected"), [("500ms", 0.5), ("20s", 20.0), ("1.5m", 90.0), ("2h", 7_200.0)])
def test_durations_have_a_unit(text: str, expected: float) -> None:
    assert seconds(text, "timeout") == expected


@pytest.mark.parametrize("text", ["20", 20, "", "-1s", "0s", "1 s", None])
def test_a_number_without_its_unit_is_no_duration(text: Any) -> None:
    with pytest.raises(UsageError, match="timeout"):
        seconds(text, "timeout")


def test_an_idempotency_key_is_stable_and_belongs_to_one_call() -> None:
    key = idempotency_key("demo", "r1", "c:t1:s1:c0")

    assert key == idempotency_key("demo", "r1", "c:t1:s1:c0")
    assert len({key, idempotency_key("demo", "r1", "c:t1:s1:c1"), idempotency_key("demo", "r2", "c:t1:s1:c0")}) == 3


async def test_progress_can_be_awaited_or_just_called_and_is_bounded() -> None:
    said: list[tuple[float, float | None, str]] = []
    context = ToolContext(report=lambda *what: said.append(what))

    await context.progress(1, 10, "first")
    context.progress(2, 10, "at once after it")

    assert said == [(1, 10, "first")]


def test_a_tool_error_is_a_crewline_error_with_a_stable_code() -> None:
    error = ToolError("the order is closed", fix={"max": 3}, ran=False)

    assert (error.code, str(error), error.retryable, error.ran) == ("tool", "the order is closed", False, False)


def test_an_uncertain_call_is_settled_in_one_of_three_ways() -> None:
    call = UncertainCall("c1", "key", {}, None, "c", "r", "a")

    assert [call.ran(1), call.not_run(), call.cannot_say()] == [
        Settled("ran", 1), Settled("not_run"), Settled("cannot_say")]
