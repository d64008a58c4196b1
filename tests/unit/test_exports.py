"""What the packages export is what they say they export."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import crewline
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["platform", "agents", "tools", "memory"]
INITS = sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("__init__.py"))


def name_of(init: Path) -> str:
    return ".".join(init.parent.relative_to(ROOT).parts[1:])


@pytest.mark.parametrize("name", crewline.__all__)
def test_a_name_of_the_public_api_resolves(name: str) -> None:
    assert getattr(crewline, name) is not None
    assert name in dir(crewline)


def test_the_public_api_tells_type_checkers_the_same_names() -> None:
    tree = ast.parse(Path(crewline.__file__).read_text())
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {
        alias.asname
        for block in guarded
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    assert sorted(told) == sorted(crewline.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = crewline.no_such_name


@pytest.mark.parametrize("init", INITS, ids=name_of)
def test_a_package_opens_with_a_map_of_files_that_exist(init: Path) -> None:
    """A line of the map is a file or folder, two blanks or more, and what it is for."""
    doc = ast.get_docstring(ast.parse(init.read_text())) or ""
    mapped = re.findall(r"^ *([a-z_0-9]+(?:\.py|/))(?=  )", doc, re.MULTILINE)
    assert [name for name in mapped if not (init.parent / name).exists()] == []


@pytest.mark.parametrize("init", INITS, ids=name_of)
def test_a_package_exports_names_of_its_own_modules(init: Path) -> None:
    package = importlib.import_module(name_of(init))
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{name_of(init)}."):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name}: write `import {alias.name} as {alias.name}`"
                assert hasattr(package, alias.name)
    for name in getattr(package, "__all__", ()):
        assert hasattr(package, name)
