"""The registry: references, entry points, and what a crew file may change."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from crewline.errors import NotFound, UsageError
from crewline_tools.functions import make, tool
from crewline_tools.registry import ToolOptions, ToolRegistry, merge, resolve

SHOP = """
from crewline_tools.functions import tool

@tool(effect="read", timeout="5s")
def find_order(order_id: str, customer_id: str = "") -> str:
    return order_id + customer_id

class desk:
    @staticmethod
    @tool(effect="write")
    def note(text: str) -> str:
        return text

def bare(text: str) -> str:
    return text

number = 7
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_for_test.py").write_text(SHOP)
    (tmp_path / "broken_for_test.py").write_text("1 / 0")
    (tmp_path / "lacking_for_test.py").write_text("import no_such_package_here")
    (tmp_path / "wrong_for_test.py").write_text("from crewline_tools.functions import tool\n@tool()\ndef f(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("shop_for_test", "broken_for_test", "lacking_for_test", "wrong_for_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def pay(amount: float) -> None: ...


@pytest.mark.usefixtures("shop")
def test_a_reference_names_a_function_with_its_decorator() -> None:
    assert resolve("shop_for_test:find_order").spec.timeout_s == 5.0
    assert resolve("shop_for_test:desk.note").spec.effect == "write"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("reference", "says"), [
    ("shop_for_test", "no reference; write package.module:function"),
    ("shop for test:x", "no reference"),
    ("nowhere_at_all:x", "there is no module 'nowhere_at_all'"),
    ("shop_for_test.more:x", "there is no module 'shop_for_test.more'|not a package"),
    ("lacking_for_test:x", "it needs 'no_such_package_here'"),
    ("broken_for_test:x", "ZeroDivisionError"),
    ("wrong_for_test:f", "what it does to the world"),
    ("shop_for_test:find_ordr", "has no 'find_ordr'; its tools: find_order"),
    ("shop_for_test:number", "is int, not a function"),
    ("shop_for_test:bare", "has no @tool"),
])
def test_a_reference_that_leads_nowhere_says_where_it_broke(reference: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(reference)


@pytest.mark.usefixtures("shop")
def test_a_function_without_decorator_takes_its_effect_from_the_crew_file() -> None:
    registry = ToolRegistry()

    made = registry.load("shop_for_test:bare", ToolOptions(effect="write", idempotent=True, retries=2), name="say")

    assert (made.spec.name, made.spec.effect, made.spec.idempotent, made.spec.retries) == ("say", "write", True, 2)
    assert registry["say"] is made


def test_functions_one_does_not_own_are_added_by_hand() -> None:
    registry = ToolRegistry()
    registry.add(pay, effect="destructive", name="pay_now", timeout="3s")

    assert registry.specs()["pay_now"].timeout_s == 3.0
    assert not hasattr(pay, "__crewline_tool__")
    with pytest.raises(UsageError, match="no @tool"):
        registry.add(pay)
    with pytest.raises(NotFound, match="registered are: pay_now"):
        registry["pay"]


def test_two_functions_of_one_name_are_refused_with_both_places() -> None:
    def other(amount: float) -> None: ...

    registry = ToolRegistry()
    registry.add(pay, effect="write")
    registry.add(pay, effect="write")

    with pytest.raises(UsageError, match=r"two tools are called 'pay': .*:pay and .*other"):
        registry.add(other, effect="write", name="pay")


def test_a_crew_file_states_pool_timeout_retries_and_injected_arguments() -> None:
    def find(order_id: str, customer_id: str) -> str:
        return f"{order_id}/{customer_id}"

    options = ToolOptions(timeout_s=2.0, retries=4, pool="orders", inject={"customer_id": "user.id"})
    made = merge(make(find, effect="read"), options)

    assert (made.spec.timeout_s, made.spec.retries, made.spec.pool) == (2.0, 4, "orders")
    assert list(made.spec.parameters["properties"]) == ["order_id"]
    assert made.arguments('{"order_id": "A"}', {"customer_id": "u1"}) == {"order_id": "A", "customer_id": "u1"}
    with pytest.raises(Exception, match="/customer_id"):
        made.arguments('{"order_id": "A", "customer_id": "u2"}', {"customer_id": "u1"})
    with pytest.raises(UsageError, match="no argument 'user' to inject"):
        merge(make(find, effect="read"), ToolOptions(inject={"user": "user.id"}))


@pytest.mark.parametrize(("author", "file", "expected"), [
    ({"effect": "read"}, {"effect": "write"}, ("write", False)),
    ({"effect": "write"}, {"effect": "write", "idempotent": True}, ("write", True)),
    ({"effect": "write", "idempotent": True}, {"idempotent": False}, ("write", False)),
    ({"effect": "write", "idempotent": True}, {}, ("write", True)),
])
def test_a_crew_file_may_raise_the_level(author: Any, file: Any, expected: tuple[str, bool]) -> None:
    spec = merge(make(pay, **author), ToolOptions(**file)).spec

    assert (spec.effect, spec.idempotent) == expected


@pytest.mark.parametrize(("author", "file", "says"), [
    ({"effect": "destructive"}, {"effect": "read"}, "may only raise it"),
    ({"effect": "write", "idempotent": False}, {"idempotent": True}, "only the function's author"),
    ({"effect": "write"}, {"retries": 1}, "never run twice"),
    ({"effect": "read", "retries": 1}, {"effect": "write"}, "never run twice"),
    ({"effect": "write"}, {"on_guard_down": "allow"}, "only a read tool"),
])
def test_a_crew_file_may_not_lower_it(author: Any, file: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        merge(make(pay, **author), ToolOptions(**file, at="crew.yaml:12"))

    assert "crew.yaml:12" in raised.value.message


def test_the_catalogue_knows_a_tool_by_what_the_model_sees_and_what_it_may_do() -> None:
    made = make(pay, effect="write")

    assert made.spec.digest() == merge(made, ToolOptions(timeout_s=1.0)).spec.digest()
    assert made.spec.digest() != merge(made, ToolOptions(idempotent=True)).spec.digest()
    assert made.spec.digest() != merge(made, ToolOptions(pool="other")).spec.digest()


def test_tools_of_a_pool() -> None:
    registry = ToolRegistry()
    registry.put(merge(make(pay, effect="write"), ToolOptions(pool="payments")))
    registry.add(tool(effect="read")(lambda_free))

    assert list(registry.of_pool("payments")) == ["pay"]
    assert list(registry.of_pool("main")) == ["lambda_free"]
    assert list(registry) == ["lambda_free", "pay"]


def lambda_free() -> None: ...


@pytest.mark.usefixtures("shop")
def test_entry_points_offer_functions_and_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("shop", "shop_for_test", "crewline.tools"),
              EntryPoint("note", "shop_for_test:desk.note", "crewline.tools")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    registry = ToolRegistry()

    assert registry.load_entry_points() == ["find_order", "note"]

    points.append(EntryPoint("bad", "shop_for_test:number", "crewline.tools"))
    with pytest.raises(UsageError, match=r"entry point 'bad' .* is no function with @tool"):
        registry.load_entry_points()
    points[-1] = EntryPoint("bad", "broken_for_test", "crewline.tools")
    with pytest.raises(UsageError, match="cannot be loaded: ZeroDivisionError"):
        registry.load_entry_points()
