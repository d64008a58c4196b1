"""What the README shows works: its commands as processes, its crew, tools and snippets for real."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crewline import ToolContext, ToolError
from crewline_tools.functions import tool_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("CREWLINE_", "SHOP_"))},
    "PYTHONIOENCODING": "utf-8",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def one(language: str, holds: str) -> str:
    """Return the README's one block in this language with `holds` in it."""
    (found,) = [block for block in blocks(language) if holds in block]
    return found


def run(*arguments: str, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=60,
        stdin=subprocess.DEVNULL, check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def crewline(*arguments: str, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "crewline.cli", *arguments, folder=folder, status=status)


def shape(line: str) -> str:
    """Return a live line without its time and duration; results are cut where the duration leaves room."""
    return line[5:75].split("…")[0].rstrip()


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo was killed on its way, as the README says."""
    folder = tmp_path_factory.mktemp("tried")
    done = crewline("demo", "--kill", "--yes", folder=folder)
    (folder / ".crewline" / "said").write_text(done.stdout + done.stderr)
    return folder


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    done = crewline("demo", folder=tmp_path)
    shown = one("text", "[Y/n]")

    live = [shape(line) for line in shown.splitlines() if re.match(r"\d\d\.\d ", line)]
    assert [shape(line) for line in done.stderr.splitlines() if re.match(r"\d\d\.\d ", line)] == live
    assert done.stdout.strip() in shown
    assert [path.name for path in tmp_path.iterdir()] == [".crewline"]


def test_the_killed_demo_pays_once(tried: Path) -> None:
    said = (tried / ".crewline" / "said").read_text()

    assert re.search(r"payment under way \(1 started, 0 made\): kill -9 \d+", said)
    assert "the shop's ledger: the payment was started 2 times, with one key, and made 1 time(s)" in said
    assert "Your refund of 80.00 USD is on its way." in said


def test_two_replays_are_the_same(tried: Path) -> None:
    first, second = (crewline("replay", "last", folder=tried) for _ in range(2))

    assert first.stdout + first.stderr == second.stdout + second.stderr
    assert "issue_refund held: Refunds above 50 USD need a person" in first.stdout + first.stderr


def test_a_crew_that_init_writes_passes_its_tests_and_holds_its_refund(tmp_path: Path) -> None:
    crewline("init", "my-crew", folder=tmp_path)
    folder = tmp_path / "my-crew"

    assert "3 passed" in run(sys.executable, "-m", "pytest", folder=folder).stdout
    asked = crewline("run", ".", "My lamp arrived broken, order A-1001", "--user", "u-7", "--offline", folder=folder, status=7)

    assert "issue_refund held" in asked.stderr
    listed = json.loads(crewline("approvals", "list", "--json", folder=folder).stdout)
    assert "issue_refund" in json.dumps(listed)


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """The README's smallest crew, as a reader would write it."""
    (tmp_path / "crew.yaml").write_text(one("yaml", "schema: crew/v1"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "hello.yaml").write_text(one("yaml", "greeter:\n  - call"))
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "__init__.py").touch()
    (tmp_path / "hello" / "tools.py").write_text(one("python", "def weather"))
    return tmp_path


def test_the_smallest_crew_answers(hello: Path) -> None:
    assert crewline("check", "--strict", folder=hello).returncode == 0
    assert crewline("run", ".", "hello", folder=hello).stdout.strip() == "Hello! It is 21 degrees and sunny in Lisbon."


def test_the_python_snippet_answers(hello: Path) -> None:
    done = run(sys.executable, "-c", one("python", "Crew.load"), folder=hello)

    assert done.stdout.strip() == "Hello! It is 21 degrees and sunny in Lisbon."


def test_the_tool_that_pays_is_an_ordinary_function() -> None:
    defined: dict[str, Any] = {"__name__": "readme"}
    exec(compile(one("python", "def issue_refund"), "README.md", "exec"), defined)
    refund = defined["issue_refund"]

    assert refund("A-1001", 80.0, ToolContext()) == {"paid": 80.0}
    with pytest.raises(ToolError, match="closed"):
        refund("A-1", 80.0, ToolContext())
    made = tool_of(refund)
    assert made is not None
    assert (made.spec.effect, made.spec.safe, made.spec.retries) == ("destructive", True, 3)


def test_the_example_decides_a_held_call(tmp_path: Path) -> None:
    crewline("init", "my-crew", folder=tmp_path)

    done = run(sys.executable, str(ROOT / "examples" / "approve_in_code.py"), "my-crew/crew.yaml", folder=tmp_path)

    assert 'refunds wants issue_refund({"order_id":"A-1001","amount":80}) for u-7' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("turn.finished")
