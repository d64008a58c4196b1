"""Output, global options, text: what goes where, and how it is written."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from crewline.cli import output as codes
from crewline.cli.check import as_github
from crewline.cli.dry import call_of, facts_of
from crewline.cli.groups import COMMANDS
from crewline.cli.output import EXIT_CODES, Output
from crewline.cli.settings import Settings, early, hoist
from crewline.cli.text import ago, clean, cut, duration, moment_of, seconds_of, size, width_of
from crewline.crews.problems import Problem
from crewline.errors import NotFound, UsageError

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (["runs", "list", "--json"], ["--json", "runs", "list"]),
        (["run", "x", "--state", "d", "hi"], ["--state", "d", "run", "x", "hi"]),
        (["run", "x", "--state=d"], ["--state=d", "run", "x"]),
        (["run", "x", "--", "--json"], ["run", "x", "--", "--json"]),
        (["up", "-q"], ["-q", "up"]),
        (["up", "--state"], ["--state", "up"]),
    ],
)
def test_global_options_may_stand_anywhere(given: list[str], first: list[str]) -> None:
    assert hoist(given) == first


def test_errors_know_json_before_the_command_line_is_parsed() -> None:
    assert early(["--json", "bogus"]).json
    assert not early(["run", "--", "--json"]).json


def test_no_color_wins_over_force_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().colored(Terminal())
    assert not Settings().colored(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Settings().colored(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Settings().colored(Terminal())


def test_a_build_server_gets_no_colour_and_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert Settings().interactive
    assert not Settings(no_input=True).interactive
    assert not Settings(json=True).interactive
    monkeypatch.setenv("CI", "true")
    assert not Settings().interactive
    assert not Settings().colored(Terminal())


def test_an_error_is_a_line_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    code = Output(Settings()).fail(NotFound("no run is called x", hint="crewline runs list"))
    assert code == codes.NOT_FOUND
    assert capsys.readouterr() == ("", "error: no run is called x\n  → crewline runs list\n")


def test_every_error_has_a_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Settings()).fail(UsageError("wrong"))
    assert "→ crewline" in capsys.readouterr().err


def test_an_error_for_programs_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Settings(json=True)).fail(NotFound("none", hint="look"))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": {"code": "not_found", "message": "none", "hint": "look"}}


def test_quiet_keeps_answers_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(Settings(quiet=True))
    out.say("chatter")
    out.insist("a warning")
    out.answer("42")
    assert capsys.readouterr() == ("42\n", "a warning\n")


def test_an_answer_is_piped_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Settings()).answer("# Title\n\x1b[1mraw")
    assert capsys.readouterr().out == "# Title\n\x1b[1mraw\n"


def test_a_table_fits_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Settings()).table(("name", "count"), [["a", "1"], ["案内", "1,000"]], right=("count",))
    assert capsys.readouterr().out.splitlines() == ["name  count", "a         1", "案内  1,000"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.4124, "412 ms"), (7.24, "7.2 s"), (59.96, "1 min 00 s"), (245, "4 min 05 s"),
     (12_000, "3 h 20 min"), (183_600, "2 d 3 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_and_limits() -> None:
    assert seconds_of("5m", "--timeout") == 300
    assert ago(0, 90_000) == "1 min 30 s ago"
    assert moment_of("2026-11-25T09:30+00:00", "--since") == 1_795_599_000_000
    with pytest.raises(UsageError, match="no duration"):
        seconds_of("5 apples", "--timeout")
    with pytest.raises(UsageError, match="neither"):
        moment_of("yesterday", "--since")


def test_widths_count_columns() -> None:
    assert width_of("案内a") == 5
    assert cut("案内案内", 5) == "案内…"
    assert cut("short", 5) == "short"
    assert clean("a\x07\u2066b\nc") == "aU+0007U+2066b\nc"
    assert clean("a\n\tb", one_line=True) == "a b"
    assert size(999) == "999 B"
    assert size(4_096) == "4.1 kB"


def test_calls_are_read_from_the_command_line() -> None:
    assert call_of(' pay({"a": "x)"}) ') == ("pay", '{"a": "x)"}')
    assert call_of("pay()") == ("pay", "{}")
    with pytest.raises(UsageError, match="no call"):
        call_of("pay")
    assert facts_of(['order={"total": 80}']) == {"order": {"total": 80}}
    with pytest.raises(UsageError, match="no fact"):
        facts_of(["order"])


def test_github_marks_the_line() -> None:
    problem = Problem("crew.yaml", 31, 17, "agents.a", "50% wrong\nhere", "warning")
    assert as_github(problem) == "::warning file=crew.yaml,line=31,col=17::agents.a: 50%25 wrong%0Ahere"


def test_every_command_and_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"crewline {name}" not in page] == []
    assert [code for code in EXIT_CODES if f"| {code} |" not in page] == []
