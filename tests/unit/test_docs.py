"""README and docs agree with the code: crew files pass, commands exist, links lead somewhere, Python compiles."""

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crewline.cli.app import command
from crewline.cli.groups import COMMANDS
from crewline.crews import CrewConfig, check_crew
from crewline_agents.scripted import load_script
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Fragments of crew files are laid over this one: it has the tools, facts and agents they speak of.
WHOLE = ROOT / "configs" / "crews" / "support-full" / "crew.yaml"
CREW_KEYS = {field.alias or name for name, field in CrewConfig.model_fields.items()}


class Block(NamedTuple):
    """A fenced block. `where` is its page and first line."""

    where: str
    language: str
    text: str


def blocks(*languages: str) -> list[Any]:
    """Return the pages' blocks in these languages, each named by its place."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            where = f"{page.name}:{line}"
            if match[1] in languages:
                found.append(pytest.param(Block(where, match[1], match[2]), id=where))
    return found


# --- YAML ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("yaml"))
def test_crew_files_pass_check_and_scripts_load(block: Block, tmp_path: Path) -> None:
    said = YAML(typ="safe", pure=True).load(block.text)
    file = tmp_path / "crew.yaml"
    if not set(said) <= CREW_KEYS:
        file.write_text(block.text)
        load_script(file)
        return
    if "schema" in said:
        file.write_text(block.text)
    else:
        whole = YAML(typ="safe", pure=True).load(WHOLE.read_text())
        file.write_text(json.dumps(laid_over(whole, said)))  # JSON is YAML

    assert [str(each) for each in check_crew(file) if each.severity == "error"] == []


def laid_over(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: laid_over(base.get(key), value) for key, value in over.items()}


def test_the_crew_file_page_names_every_key() -> None:
    page = (ROOT / "docs" / "crew-file.md").read_text()
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", page))))
    schema = CrewConfig.model_json_schema(by_alias=True)
    keys = {key for each in (schema, *schema["$defs"].values()) for key in each.get("properties", {})}

    # Kafka's settings and a trigger's windows do nothing yet, and get their page with them.
    later = {"mechanism", "username", "ca_file", "cert_file", "key_file", "wait_for", "size", "advance", "grace", "gap"}

    assert keys - named - later == set()


# --- commands --------------------------------------------------------------------------------------


def shown() -> Iterator[Any]:
    """Yield every `crewline …` of the shell blocks, whole; of code within a line, its command alone."""
    for page in PAGES:
        text = page.read_text()
        fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [(part, True) for block in fenced for line in block.splitlines() for part in line.split("&&")]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        lines += [(part, False) for part in re.findall(r"`(crewline [a-z][^`]*)`", prose)]
        for line, whole in lines:
            found = re.match(r"\s*(?:\S*/)?crewline (.*)", line)
            if found is not None:
                yield pytest.param(found[1], whole, id=f"{page.name}: {found[1][:70]}")


def arguments_of(text: str) -> list[str]:
    """Return a command line's arguments; comments, pipes and redirections are the shell's."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    arguments = []
    for token in lexer:
        if set(token) <= set("|<>"):
            break
        arguments.append(token)
    return arguments


@pytest.mark.parametrize(("line", "whole"), list(shown()))
def test_commands_exist_with_these_options(line: str, whole: bool) -> None:
    """Each is parsed as the command line does it, and not run."""
    root: Any = command()
    arguments = without_global_options(root, arguments_of(line))
    if arguments[-1:] in (["…"], ["COMMAND"]):
        return  # speaks of commands in general
    context = root.make_context("crewline", ["version"])  # any command: it is the parent of the one in question
    current = root
    while hasattr(current, "get_command"):
        if not arguments or arguments == ["--help"]:
            return  # a group alone lists its commands
        name = arguments.pop(0)
        found = current.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        current = found
    if whole and "--help" not in arguments:
        current.make_context(current.name, arguments, parent=context)


def without_global_options(root: Any, arguments: list[str]) -> list[str]:
    """Return the arguments without the global options, which may stand anywhere before `--`."""
    flags = {flag: each.is_flag for each in root.params for flag in each.opts if flag not in ("--help", "-h")}
    left, rest = [], iter(arguments)
    for each in rest:
        if each not in flags:
            left.append(each)
        elif not flags[each]:
            next(rest)
    return left


def test_the_command_line_page_names_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    missing = [name for name in COMMANDS if not re.search(rf"\bcrewline {name}\b", page)]

    assert missing == []


# --- links, Python ---------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.strip().lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (fragment and fragment not in anchors_of(there)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:tests|benchmarks|configs|examples|crewline\w*)/[\w/.*-]+)`", page.read_text())
    missing = [each for each in named if not list(ROOT.glob(each)) and not list(ROOT.glob(f"*/{each}"))]

    assert [each for each in missing if each != "crewline/templates"] == []  # that one is in the wheel alone


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.where, "exec")


def test_the_map_names_every_page() -> None:
    page = (ROOT / "docs" / "README.md").read_text()

    assert [each.name for each in PAGES[2:] if each.name != "README.md" and f"({each.name})" not in page] == []


def test_the_python_page_names_what_crewline_exports() -> None:
    import crewline

    pages = "".join((ROOT / "docs" / name).read_text() for name in ("python-api.md", "tools.md"))
    missing = [name for name in crewline.__all__ if not re.search(rf"\b{name}\b", pages)]

    assert missing == []


@pytest.mark.parametrize(("name", "methods"), [
    ("Crew", ["load", "up", "ask_sync"]),
    ("Running", ["ask", "stream", "publish", "approve", "edit", "deny", "ready", "serve", "stop"]),
    ("Client", ["ask", "stream", "publish", "open_calls", "find_call", "approve", "edit", "deny", "resolve", "cancel", "projection"]),
    ("Handle", ["answer", "frames", "close"]),
])  # fmt: skip
def test_the_python_page_names_every_method(name: str, methods: list[str]) -> None:
    import crewline

    found = getattr(crewline, name)
    public = [
        each for each, value in vars(found).items()
        if not each.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
    ]
    own = {"close", "give", "fail"} if name != "Handle" else {"give"}  # for crewline itself, or said by `async with`

    assert sorted(set(public) - own) == sorted(methods)
