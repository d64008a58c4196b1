"""The shape of the tree: four root folders, one wheel, nothing of anybody's machine in it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "crewline": ROOT / "platform" / "crewline",
    "crewline_agents": ROOT / "agents" / "crewline_agents",
    "crewline_tools": ROOT / "tools" / "crewline_tools",
    "crewline_memory": ROOT / "memory" / "crewline_memory",
}
TEMPLATES = ROOT / "configs" / "crews"  # in the wheel: crewline/templates
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Lazily imported by the one module that needs them: the command line's start must not pay for them.
HEAVY = ["aiokafka", "apsw", "autogen", "cel", "jsonschema_rs", "langchain", "nacl", "openai", "pydantic", "redis", "uvicorn"]


def modules() -> list[Path]:
    return sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))


def tracked() -> list[Path]:
    """Return the files of the repository as git knows them; those of an unpacked archive if there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        hidden = {".git", ".venv", "__pycache__"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.relative_to(ROOT).parts)]
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_root_folders_and_tests_are_no_packages() -> None:
    """A package named `platform` would shadow the standard library's, and one named `tests` ours."""
    folders = [package.parent for package in PACKAGES.values()] + [ROOT / "tests", *(ROOT / "tests").glob("*/")]
    assert [name_of(folder) for folder in folders if (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_from_its_folder_and_is_typed(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__file__ is not None
    assert Path(package.__file__).parent == PACKAGES[name]
    assert (PACKAGES[name] / "py.typed").exists()


def test_the_project_file_names_the_four_packages() -> None:
    folders = [package.parent.name for package in PACKAGES.values()]
    tool = PROJECT["tool"]
    wheel = tool["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == [*map(name_of, PACKAGES.values()), name_of(TEMPLATES)]
    assert wheel["sources"] == dict.fromkeys(folders, "") | {name_of(TEMPLATES): "crewline/templates"}
    assert tool["hatch"]["build"]["dev-mode-dirs"] == folders
    assert tool["mypy"]["packages"] == tool["importlinter"]["root_packages"] == list(PACKAGES)
    assert tool["mypy"]["mypy_path"].split(":") == folders


def test_test_files_have_unique_names() -> None:
    """They are imported by their own names alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_is_finished(path: Path) -> None:
    assert re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b", path.read_text()) == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    inside = re.compile(r"/(?:work|farm)/|/roo[t]/|/home/[a-z]|/Users/[A-Za-z]|/opt/wheels")
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in (".png", ".ico", ".woff2"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if inside.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_the_lock_names_the_public_index_and_no_other() -> None:
    lock = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r"https?://([^/\"]+)", lock)) == {"pypi.org", "files.pythonhosted.org"}


def test_what_is_declared_is_pinned() -> None:
    pinned = {
        re.split(r"[=<>! ;]", line)[0].replace("_", "-").lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = PROJECT["project"]
    declared = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    names = {re.split(r"[\[=<>! ;]", each)[0].replace(".", "-").replace("_", "-").lower() for each in declared}
    assert names - pinned == set()


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """hatchling leaves out what .gitignore matches, tracked or not, without a word."""
    from hatchling.builders.wheel import WheelBuilder

    [built] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry_points = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
        licences = [name for name in wheel.namelist() if name.endswith("/LICENSE")]

    expected = {
        path.relative_to(folder.parent).as_posix()
        for path in tracked()
        for folder in PACKAGES.values()
        if path.is_relative_to(folder)
    }
    expected |= {
        f"crewline/templates/{path.relative_to(TEMPLATES).as_posix()}" for path in tracked() if path.is_relative_to(TEMPLATES)
    }
    assert expected - inside == set()
    assert {name for name in inside if name.endswith((".pyc", ".key")) or "/." in name} == set()
    assert "crewline = crewline.cli:main" in entry_points
    assert len(licences) == 1


def loaded_after(statement: str) -> set[str]:
    """Return the top names of the modules that a fresh interpreter has loaded after `statement`."""
    script = f"import sys; {statement}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert loaded_after("import crewline") & {*HEAVY, "msgspec", "rich", "typer"} == set()


def test_the_command_line_starts_without_the_heavy_parts() -> None:
    has_cli = (PACKAGES["crewline"] / "cli" / "__init__.py").exists()
    assert loaded_after("import crewline.cli" if has_cli else "import crewline") & set(HEAVY) == set()


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{name_of(page)}: {target}")
    assert broken == []
