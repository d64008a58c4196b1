"""The page on tools: every example on it runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from crewline_tools.functions import tool_of

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the examples define, run one after the other as a reader would."""
    defined: dict[str, Any] = {"__name__": "docs_tools"}
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), defined)
    return defined


def test_the_examples_define_tools(names: dict[str, Any]) -> None:
    tools = {name: made for name, each in names.items() if (made := tool_of(each)) is not None}

    assert {name: (made.spec.effect, made.spec.safe) for name, made in tools.items()} == {
        "find_order": ("read", True),
        "issue_refund": ("destructive", True),
        "book_room": ("write", True),
        "pay": ("destructive", False),
    }
    assert tools["pay"].reconcile is names["find_payment"]


def test_the_table_names_what_the_decorator_takes() -> None:
    from inspect import signature

    from crewline_tools.functions import tool

    told = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().split("## What must be said")[1].split("## ")[0], re.MULTILINE)

    assert told == [name for name in signature(tool).parameters if name != "misused"]
