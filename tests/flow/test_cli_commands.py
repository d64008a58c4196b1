"""The command line as a user has it: real processes on a state folder, what they print, how they end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_kit import crewline, lines_of, start, write_crew
from crewline.cli import run_line
from crewline.cli.app import command
from crewline.cli.groups import COMMANDS
from crewline.seal import make_keys

Ran = subprocess.CompletedProcess[str]


class Shop:
    """The crew after some runs, each made by a process: how each ended, and the state folder they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        write_crew(folder)
        # Those that wait for something have folders of their own, so that all can run side by side.
        begun = {
            "failed": start(folder, "--state", "failed", "run", ".", "please fail"),
            "held": start(folder, "--state", "held", "run", ".", "pay alice"),
            "timeout": start(folder, "--state", "timeout", "run", ".", "linger", "--timeout", "500ms"),
            "done": start(folder, "--state", "state", "run", "crew.yaml", "how much?", "--user", "u-1"),
        }
        self.ended: dict[str, Ran] = {}
        for name, process in begun.items():
            out, err = process.communicate(timeout=60)
            self.ended[name] = subprocess.CompletedProcess([name], process.returncode, out, err)

    def run(self, *args: str, **options: Any) -> Ran:
        return crewline(self.folder, "--state", "state", *args, **options)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("till"))


@pytest.fixture
def here(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, which is quicker; return (code, stdout, stderr)."""
    monkeypatch.chdir(shop.folder)
    for name in ("CREWLINE_STATE", "NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, state: str = "state") -> tuple[int, str, str]:
        code = run_line(["--state", state, *args])
        return code, *capsys.readouterr()

    return run


# --- a run -------------------------------------------------------------------------------------


def test_the_answer_alone_is_on_stdout(shop: Shop) -> None:
    ran = shop.ended["done"]
    assert (ran.returncode, ran.stdout) == (0, "The till holds 12 coins.\n"), ran.stderr
    assert "u-1       › how much?" in ran.stderr
    assert "clerk     ⚙ look(what='till')" in ran.stderr
    assert "done in" in ran.stderr
    assert "\x1b" not in ran.stderr


def test_a_failed_run_says_why_and_what_to_do(shop: Shop) -> None:
    ran = shop.ended["failed"]
    assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr
    assert "the model is out of order" in ran.stderr
    assert "→ crewline runs show" in ran.stderr


def test_a_held_call_without_anybody_to_ask_stays_held(shop: Shop) -> None:
    ran = shop.ended["held"]
    assert (ran.returncode, ran.stdout) == (7, ""), ran.stderr
    assert "pay held: Over 10 needs a person" in ran.stderr
    (hint,) = re.findall(r"→ crewline approvals approve (.*)   then: crewline up", ran.stderr)
    shown = crewline(shop.folder, "approvals", "show", *hint.split())
    assert shown.returncode == 0, "what is to be typed reaches the same log: " + shown.stderr
    assert hint in shown.stderr, "and so does what it says in turn"


def test_out_of_time_is_not_out_of_the_log(shop: Shop, here: Any) -> None:
    ran = shop.ended["timeout"]
    assert (ran.returncode, ran.stdout) == (8, ""), ran.stderr
    assert "crewline up" in ran.stderr
    code, out, _ = here("runs", "list", "--json", state="timeout")
    assert code == 0
    assert json.loads(out)["runs"][0]["status"] in ("queued", "working")


def test_approved_then_run_to_its_end(shop: Shop, here: Any) -> None:
    code, out, _ = here("approvals", "list", "--json", state="held")
    (held,) = json.loads(out)["approvals"]
    assert json.loads(held["arguments"]) == {"to": "alice", "amount": 40}

    code, _, err = here("approvals", "edit", held["call"][:6], "--args", "{", state="held")
    assert code == 2
    code, out, _ = here("--json", "approvals", "edit", held["call"][:6], "--args", '{"to":"alice","amount":20}', "--by",
                        "kim", state="held")
    assert code == 0
    assert json.loads(out)["counts"] is True
    code, _, err = here("approvals", "approve", held["call"], state="held")
    assert code == 0, err
    assert "already changed and approved by kim at " in err

    up = start(shop.folder, "--state", "held", "up", ".")
    try:
        watched = crewline(shop.folder, "--state", "held", "--json", "runs", "watch", held["run"])
    finally:
        up.send_signal(signal.SIGTERM)
        _, said = up.communicate(timeout=30)
    frames = lines_of(watched.stdout)
    assert watched.returncode == 0, watched.stderr
    assert frames[-1]["type"] == "result"
    assert frames[-1]["answer"].endswith("20 to alice.")
    assert up.returncode == 0, said
    assert "ask it" in said
    assert "stopped" in said


def test_a_crew_that_runs_elsewhere_is_asked_by_name(shop: Shop, here: Any) -> None:
    up = start(shop.folder, "--state", "state", "up", ".")
    try:
        ran = shop.run("--json", "run", "till", "how much?")
        frames = lines_of(ran.stdout)
        assert ran.returncode == 0, ran.stderr
        assert {"id", "type", "stands", "ts", "conv", "run", "agent", "cause", "ce_id", "data"} <= set(frames[0])
        assert frames[0]["type"] == "intent.published"
        assert frames[-1] | {"run": "", "conversation": "", "spent": {}} == {
            "type": "result", "status": "done", "run": "", "conversation": "", "agent": "clerk",
            "answer": "The till holds 12 coins.", "reason": None, "spent": {}, "exit_code": 0,
        }
        _, out, _ = here("market", "list", "--json")
        assert json.loads(out)["offers"][0]["capability"]["name"] == "till.pay"
        _, out, _ = here("topics", "lag", "--json")
        assert {group["group"] for group in json.loads(out)["groups"]} >= {"till.worker", "till.guardrail"}

        detached = shop.run("run", "till", "linger", "--detach")
        run = detached.stdout.strip()
        assert detached.returncode == 0
        code, _, err = here("runs", "cancel", run[:8])
        assert (code, "asked to stop" in err) == (0, True)
        watched = shop.run("runs", "watch", run)
        assert watched.returncode == 9, watched.stderr
    finally:
        up.terminate()
        up.communicate(timeout=30)


def test_a_chat_without_a_terminal_answers_each_line(shop: Shop) -> None:
    ran = crewline(shop.folder, "--state", "chat", "chat", ".", input="how much?\n\n/nope\nand now?\n")
    assert ran.stdout == "The till holds 12 coins.\nThe till holds 12 coins.\n", ran.stderr
    assert "there is no /nope" in ran.stderr
    assert ran.returncode == 0


# --- looking -----------------------------------------------------------------------------------


def test_replays_are_the_same_to_the_byte(here: Any) -> None:
    code, first, _ = here("replay", "last")
    assert code == 0
    assert "⚙" in first
    assert "state  sha256:" in first
    assert here("replay", "last")[1] == first
    assert here("--json", "replay")[1] == here("replay", "--json")[1]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["runs", "list"], "runs"), (["approvals", "list"], "approvals"), (["topics", "list"], "topics"),
        (["topics", "lag"], "groups"), (["market", "list"], "offers"), (["guard", "audit", "verify"], "breaks"),
        (["guard", "audit", "list"], "checkpoints"), (["keys", "show"], "keys"), (["tools", "list"], "tools"),
        (["tools", "show", "pay"], "parameters"), (["check"], "problems"), (["version"], "python"),
        (["runs", "show", "last"], "events"), (["schema", "crew"], "properties"), (["schema", "events"], "events"),
        (["help", "exit-codes"], "141"), (["guard", "test", "--call", "look({})"], "decision"),
        (["tools", "call", "look", '{"what":"till"}'], "output"),
    ],
)  # fmt: skip
def test_json_is_one_document(here: Any, words: list[str], key: str) -> None:
    _, out, err = here("--json", *words)
    assert key in json.loads(out), err


def test_runs_are_listed_and_shown(here: Any) -> None:
    code, out, _ = here("runs", "list", "--status", "done", "--since", "1h")
    assert code == 0
    assert out.splitlines()[0].startswith("run ")
    assert "how much?" in out
    code, out, _ = here("runs", "show", "last", "--format", "table")
    assert "intent.published" in out
    code, out, _ = here("topics", "tail", "--type", "model.*", "--from", "start")
    assert code == 0
    assert all(" model.replied " in line for line in out.splitlines())
    lines = lines_of(here("--json", "topics", "tail", "till.conversations")[1])
    assert lines[-1]["type"] == "result"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["runs", "list", "--status", "bad"], 2),
        (["run", "."], 2),
        (["run", ".", "x", "--timeout", "soon"], 2),
        (["--bus", "localhost:9092", "runs", "list"], 2),
        (["--bus", "kafka://localhost", "runs", "list"], 2),
        (["nonsense"], 2),
        (["up", ".", "--only", "nonsense"], 2),
        (["run", ".", "x", "--on-hold", "never"], 2),
        (["--state", "/proc/nope", "run", ".", "x"], 2),
        (["--state", "damaged", "runs", "list"], 4),
        (["--bus", "kafka://127.0.0.1:1", "runs", "list"], 4),
        (["--bus", "kafka://127.0.0.1:1", "--keys", "keys", "up", "."], 4),
        (["--bus", "nobus.yaml", "runs", "list"], 3),
        (["check", "broken.yaml"], 3),
        (["up", "broken.yaml"], 3),
        (["runs", "show", "zzzz"], 5),
        (["approvals", "approve", "zzzz"], 5),
        (["tools", "show", "payy"], 5),
        (["topics", "tail", "nothing"], 5),
        (["--crew", "other", "runs", "list"], 5),
        (["--state", "empty", "runs", "list"], 5),
        (["up", "nowhere.yaml"], 5),
        (["help", "nonsense"], 5),
        (["tools", "call", "pay", '{"to":"a","amount":400}'], 6),
        (["guard", "test", "--call", 'pay({"to":"a","amount":400})'], 6),
        (["tools", "call", "pay", '{"to":"a","amount":40}'], 7),
        (["guard", "test", "--call", 'pay({"to":"a","amount":40})'], 7),
        (["tools", "call", "pay", '{"to":"a","amount":4}'], 0),
    ],
)  # fmt: skip
def test_exit_codes(shop: Shop, here: Any, words: list[str], code: int) -> None:
    (shop.folder / "broken.yaml").write_text("schema: crew/v1\nname: x\nagents: {a: {gaol: 1}}\n")
    make_keys(shop.folder / "keys")
    (shop.folder / "nobus.yaml").write_text("memory: {store: sqlite}\n")
    (shop.folder / "damaged").mkdir(exist_ok=True)
    (shop.folder / "damaged" / "log.db").write_bytes(b"no log at all" * 1_000)
    ended, _, err = here(*words)
    assert ended == code, err
    if code and "test" not in words and words[0] != "check":
        assert "error:" in err
        assert "→" in err
    assert "Traceback" not in err


def test_the_checker_speaks_github(here: Any, shop: Shop) -> None:
    (shop.folder / "broken.yaml").write_text("schema: crew/v1\nname: x\nagents: {a: {gaol: 1}}\n")
    code, out, _ = here("check", "broken.yaml", "--format", "github")
    assert code == 3
    assert out.startswith("::error file=broken.yaml,line=")


# --- the frame ---------------------------------------------------------------------------------


def test_a_typo_gets_a_suggestion(here: Any) -> None:
    _, _, err = here("rnus")
    assert "Did you mean" in err
    assert "runs" in err


def _commands() -> list[tuple[str, ...]]:
    found = []
    for name in COMMANDS:
        one = command().get_command(None, name)
        below = getattr(one, "commands", {})
        for sub, each in below.items():
            found += [(name, sub, deeper) for deeper in getattr(each, "commands", {})] or [(name, sub)]
        if not below:
            found.append((name,))
    return found


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_a_help_text_with_an_example(here: Any, words: tuple[str, ...]) -> None:
    code, out, _ = here(*words, "--help")
    assert code == 0
    assert "Example: crewline " + words[0] in out.replace("\n", " ").replace("  ", " ")


def test_a_shell_completes_commands(shop: Shop) -> None:
    asks = {"_CREWLINE_COMPLETE": "complete_bash", "COMP_WORDS": "crewline runs wa", "COMP_CWORD": "2"}
    assert crewline(shop.folder, environment=asks).stdout.split() == ["watch"]


def test_a_closed_pipe_ends_quietly(shop: Shop) -> None:
    process = start(shop.folder, "--state", "state", "topics", "tail", "--from", "start")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_colour_when_forced_and_never_with_no_color(shop: Shop) -> None:
    forced = shop.run("help", "nonsense", environment={"FORCE_COLOR": "1"})
    assert "\x1b[31merror:" in forced.stderr
    silent = shop.run("help", "nonsense", environment={"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "\x1b" not in silent.stdout + silent.stderr


def test_a_fault_of_ours_is_a_line_and_with_verbose_a_traceback(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> typer.Typer:
        raise RuntimeError("boom")

    monkeypatch.setattr("crewline.cli.app.command", broken)
    code, _, err = here("version")
    assert (code, "Traceback" in err) == (1, False)
    assert "RuntimeError: boom" in err
    code, _, err = here("version", "--verbose")
    assert "Traceback" in err


def test_help_is_quick_because_nothing_heavy_is_imported(shop: Shop) -> None:
    heavy = ("rich", "pydantic", "msgspec", "apsw", "nacl", "jsonschema_rs", "asyncio", "crewline.events")
    code = f"import sys; sys.argv=['crewline','--help']\nfrom crewline.cli import run_line\nrun_line(['--help'])\n" \
           f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    import sys

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=shop.folder)
    assert ran.stderr.strip() == "[]"
