"""CEL expressions: what is refused when compiled, what they say, and what they do with numbers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import Any

import pytest
from crewline.expressions import Aggregate, Expression, ExpressionError
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ("args", "facts", "run", "user")
VALUES: dict[str, Any] = {
    "args": {"amount": 60, "price": 2.5, "items": [1, 2], "text": "lamp", "none": None, "yes": True, "id": 2**53 + 1},
    "facts": {"order": {"total": 80}},
    "run": {"gathered": [{"a": 1}]},
    "user": {"id": "u-7"},
}


def truth(text: str) -> bool:
    return Expression.compile(text, names=NAMES).truth(VALUES)


def value(text: str) -> Any:
    return Expression.compile(text, names=NAMES).evaluate(VALUES)


def refused(text: str) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        Expression.compile(text, names=NAMES)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "args.amount > 50", "args.amount > 50.0", "50 < args.amount", "50.0 < args.amount",
        "args.amount >= 60", "args.amount >= 60.0", "args.amount <= 60", "60.0 <= args.amount",
        "args.amount < 61", "args.amount == 60", "args.amount == 60.0", "60 == args.amount",
        "args.amount != 61", "args.amount in [60, 70]", "args.amount in [60.0]", "!(args.amount in [1])",
        "size(run.gathered) < 2", "size(run.gathered) < 2.0", "size(run.gathered) == 1.0", "args.items == [1, 2]",
        "args.amount + 1.0 == 61", "args.amount - 0.5 < 60", "args.amount * args.price == 150",
        "args.amount / 2.0 == 30", "-args.amount < 0", "args.amount > 10 * 5", "size(args.items) + 1 == 3",
        "args.items[0] == 1", "args.items.all(item, item > 0)", "args.amount > facts.order.total - 21.0",
        "args.text.startsWith('la') && args.text.matches('^l.*p$')", "has(args.text) && !has(args.absent)",
        "args.none == null", "args.yes", "args.amount > 50 ? args.yes : false", "'lamp' == args['text']",
    ],
)  # fmt: skip
def test_whole_numbers_and_fractions_compare(text: str) -> None:
    assert truth(text) is True


@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "%"])
def test_a_value_reckoned_with_a_whole_number_is_refused_since_it_would_always_fail(sign: str) -> None:
    for text in (f"args.amount {sign} 2 > 5", f"5 < 2 {sign} args.amount"):
        assert "write 2.0" in str(refused(text))


def test_a_side_that_fails_does_not_matter_if_the_other_decides() -> None:
    assert truth("args.absent > 5 || args.amount > 50") is True
    assert truth("args.absent > 5 && args.amount > 100") is False


@pytest.mark.parametrize(
    "text",
    ["args.absent > 5", "args.absent.deeper", "args.text > 5", "args.amount", "args.text", "args.items[9] > 1",
     "1 / 0 > 1", "args.text.matches('(')", "args.none > 1", "args.items[args.amount] > 0", "!args.text",
     "args.text && true", "duration('x') > duration('1s')"],
)  # fmt: skip
def test_what_fails_or_is_no_boolean_raises(text: str) -> None:
    with pytest.raises(ExpressionError):
        truth(text)


def test_a_name_that_is_not_given_raises() -> None:
    with pytest.raises(ExpressionError):
        Expression.compile("args.a", names=NAMES).evaluate({})
    with pytest.raises(ExpressionError):
        Expression.compile("args.a > 1", names=NAMES).truth({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("args.id", 2**53 + 1), ("args.amount", 60), ("args.items", [1, 2]), ("user.id", "u-7"),
     ("args.text + '!'", "lamp!"), ("size(args.items)", 2), ("[args.amount, args.price]", [60, 2.5]),
     ("{'a': args.amount}", {"a": 60}), ("args.none", None)],
)  # fmt: skip
def test_values_come_back_as_json(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_a_value_that_json_cannot_hold_raises() -> None:
    with pytest.raises(ExpressionError, match="string"):
        value("timestamp('2026-01-01T00:00:00Z')")


@pytest.mark.parametrize(
    ("text", "column"),
    [("args.amount <=", 13), ("args.amount <= ", 13), ("args.a b", 8), ("args.a # b", 8), ("'abc", 1), ("", 1),
     ("args.a = 5", 8), ("args.a and args.b", 8), ("(args.a", 7)],
)  # fmt: skip
def test_a_syntax_error_says_its_column(text: str, column: int) -> None:
    error = refused(text)
    assert str(error).startswith(f"not a valid CEL expression near column {column}:")
    assert (error.line, error.column) == (1, column)


def test_a_syntax_error_in_a_block_says_its_line() -> None:
    assert "near line 2, column 10" in str(refused("args.a >\n 1 && x. || 2"))


def test_an_unknown_name_says_what_was_probably_meant() -> None:
    error = refused("args.amount > 5 && arg.amount > 50")
    assert str(error) == "unknown name 'arg' in expression; did you mean 'args'? (known: args, facts, run, user)"
    assert error.column == 20


def test_an_unknown_function_says_what_was_probably_meant() -> None:
    assert str(refused("args.text.startWith('x')")) == (
        "unknown function 'startWith' in expression; did you mean 'startsWith'?"
    )


def test_a_loop_variable_holds_in_its_loop_alone() -> None:
    assert truth("args.items.exists(x, args.items.all(y, y <= x))") is True
    assert "unknown name 'x'" in str(refused("x > 1 && args.items.all(x, x > 0)"))


def test_names_in_strings_and_fields_are_no_names() -> None:
    assert truth("args.text != 'arg' || args.order") is True


@pytest.mark.parametrize(
    "text",
    ["(" * 999 + "1" + ")" * 999, "[" * 999, "+".join(["1"] * 999), "a" + ".a" * 900, "1<" * 900 + "1",
     "size(" * 300 + "'a'" + ")" * 300, "{'a':" * 300 + "1" + "}" * 300, "args.a" + " " * 2000,
     "args.a.map(x, args.a.map(y, args.a.map(z, z)))", "'" + "(" * 1900, "r'\\'" + "(" * 1900, "//\n" + "(" * 1900],
)  # fmt: skip
def test_what_would_exhaust_the_stack_or_the_clock_is_refused(text: str) -> None:
    refused(text)


@pytest.mark.parametrize(
    "text",
    ["(" * 24 + "+".join(["1"] * 170) + ")" * 24, "!(" * 24 + "true" + ")" * 24, "!" * 170 + "true",
     "args.items.map(x, args.items.map(y, " + "(" * 22 + "y" + ")" * 22 + "))", "args" + ".a" * 199],
)  # fmt: skip
def test_the_largest_that_is_taken_fits_a_small_stack(text: str) -> None:
    def compile_it() -> None:
        done.append(Expression.compile(text, names=NAMES))

    done: list[Expression] = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=compile_it)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert done


def test_the_fields_of_a_root_are_known() -> None:
    expression = Expression.compile("facts.order.total > 1 && facts.user == 'x'", names=NAMES)
    assert expression.roots == {"facts"}
    assert expression.fields("facts") == {"order", "user"}
    assert expression.fields("args") == frozenset()
    assert Expression.compile("size(facts) > 1", names=NAMES).fields("facts") is None


@pytest.mark.parametrize("text", ["count()", "sum(event.amount)", "distinct(event.a.b)", "avg(event.a * 2.0)", " max( event.a ) "])
def test_an_aggregate_is_one_function_over_the_event(text: str) -> None:
    assert Aggregate.compile(text).function == text.strip().partition("(")[0]


@pytest.mark.parametrize(
    ("text", "say"),
    [("sums(event.a)", "did you mean 'sum'?"), ("sum()", "of what?"), ("count(event.a)", "takes nothing"),
     ("event.a", "one call"), ("sum(event.a) + 1", "one call"), ("sum(evnt.a)", "did you mean 'event'?"),
     ("sum(event.a) + sum(event.b)", "not a valid"), ("", "one call"), ("sum(event.)", "not a valid")],
)  # fmt: skip
def test_anything_else_is_no_aggregate(text: str, say: str) -> None:
    with pytest.raises(ExpressionError, match=".*" + say.replace("?", r"\?")):
        Aggregate.compile(text)


@given(st.text(alphabet="ars.g()[]{}+-*/<>=!&|?:,'\"\\ 01\n#", max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_does_more_than_raise_our_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        Expression.compile(text, names=NAMES).evaluate(VALUES)


def test_the_engine_is_loaded_when_first_used_and_without_its_command_line() -> None:
    script = (
        "import sys; from crewline.expressions import Expression\n"
        "assert not any(name.startswith('cel') for name in sys.modules)\n"
        "assert Expression.compile('a > 1', names=['a']).truth({'a': 2})\n"
        "assert 'prompt_toolkit' not in sys.modules\n"
        "import cel; assert cel.evaluate('1 + 1') == 2\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
