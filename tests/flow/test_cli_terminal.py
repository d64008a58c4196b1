"""The command line on a terminal: questions, Ctrl-C, the footer. Through a pseudo-terminal of the standard library."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_kit import ENVIRONMENT, crewline, write_crew

WAIT_S = 40.0


class Terminal:
    """A process on a terminal of its own: what it prints, what is typed into it."""

    def __init__(self, folder: Path, *args: str, **environment: str) -> None:
        self.folder = folder
        pid, self._master = pty.fork()
        if pid == 0:
            os.chdir(folder)
            command = [sys.executable, "-m", "crewline.cli", *args]
            os.execve(sys.executable, command, {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100", **environment})
        self.pid = pid
        self.screen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.code: int | None = None

    def until(self, pattern: str) -> str:
        """Read until `pattern` is on the screen; return what came up to it, and forget it."""
        limit = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < limit, f"no {pattern!r} in:\n{self.screen}"
            assert self._read(0.2), f"ended before {pattern!r}:\n{self.screen}"
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def _read(self, seconds: float) -> bool:
        """Read what is there; return False at the end."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # EIO: the last process has closed the terminal
            return False
        self.screen += self._decode(data)
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ends(self) -> int:
        """Read to the end; return the exit code."""
        limit = time.monotonic() + WAIT_S
        while self._read(0.2):
            assert time.monotonic() < limit, f"still running:\n{self.screen}"
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        os.close(self._master)
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    write_crew(tmp_path)
    opened: list[Terminal] = []

    def open_terminal(*args: str, **environment: str) -> Terminal:
        opened.append(Terminal(tmp_path, *args, **environment))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Terminal]]:
    """Runs that wait for a decision, each on its terminal. They start side by side, since starting is what takes time."""
    environments = {
        "approve": {}, "edit": {"EDITOR": "sed -i s/40/25/", "NO_COLOR": "1"}, "deny": {}, "on": {}, "twice": {},
    }  # fmt: skip
    opened = {}
    for name, environment in environments.items():
        folder = tmp_path_factory.mktemp(name)
        write_crew(folder)
        opened[name] = Terminal(folder, "run", ".", "pay alice", **environment)
    yield opened
    for each in opened.values():
        each.close()


def status_of(folder: Path) -> str:
    """Return the status of the only run in the folder's log."""
    listed = crewline(folder, "--json", "runs", "list")
    (run,) = json.loads(listed.stdout)["runs"]
    return str(run["status"])


ASKED = r"\[l\]ater › "


def test_a_held_call_is_shown_and_approved(held: dict[str, Terminal]) -> None:
    run = held["approve"]
    seen = run.until(ASKED)
    assert "clerk wants to run  pay" in seen
    assert "amount = 40" in seen
    assert "Nothing has run" in seen
    assert "\x1b[3" in seen  # colour: it is a terminal
    run.type("what?\n")
    run.until(r"a, e, d or l")
    run.until(ASKED)
    run.type("a\n")
    assert run.ends() == 0
    assert "approved pay" in run.screen
    assert "Paid 40 to alice." in run.screen


def test_a_held_call_is_edited(held: dict[str, Terminal]) -> None:
    run = held["edit"]
    assert "\x1b[3" not in run.until(ASKED)
    run.type("e\n")
    assert run.ends() == 0
    assert "25 to alice." in run.screen


def test_a_held_call_is_denied_with_a_reason(held: dict[str, Terminal]) -> None:
    run = held["deny"]
    run.until(ASKED)
    run.type("d\n")
    run.until("reason")
    run.type("no receipt\n")
    run.until("denied pay: no receipt")


def test_ctrl_c_asks_and_the_run_goes_on_or_is_stopped(held: dict[str, Terminal]) -> None:
    run = held["on"]
    run.until(ASKED)
    run.type("\x03")
    run.until(r"\[y\] stop  \[d\] detach  \[Enter\] go on › ")
    run.type("\n")
    run.until(ASKED)  # the question comes back
    run.type("\x03")
    run.until(r"go on › ")
    run.type("y\n")
    assert run.ends() == 9
    assert "cancelled" in run.screen
    assert status_of(run.folder) == "cancelled"


def test_ctrl_c_twice_leaves_the_run_alive(held: dict[str, Terminal]) -> None:
    run = held["twice"]
    run.until(ASKED)
    run.type("\x03")
    run.until(r"go on › ")
    run.type("\x03")
    assert run.ends() == 130
    assert re.search(r"detached: run \w{16} is kept in the log; go on with it: crewline up", run.screen)
    assert status_of(run.folder) == "needs you"


def test_a_chat_answers_decides_and_leaves(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", ".")
    chat.until("you › ")
    chat.type("how much?\n")
    chat.until("The till holds 12 coins")
    chat.until("you › ")
    chat.type("pay alice\n")
    chat.until(ASKED)
    chat.type("l\n")
    chat.until("it waits")
    chat.type("\x03")
    chat.until(r"go on › ")
    chat.type("d\n")
    chat.until("you › ")
    chat.type("/approve\n")
    chat.until(ASKED)
    chat.type("a\n")
    chat.until("Paid 40 to alice")
    chat.until("you › ")
    chat.type("/quit\n")
    assert chat.ends() == 0
    assert "crewline chat --conv" in chat.screen


def test_up_stops_in_good_order_on_ctrl_c(terminal: Callable[..., Terminal]) -> None:
    up = terminal("up", ".")
    assert "roles    worker, guardrail, tools.main" in up.until("ask it")
    asked = crewline(up.folder, "run", "till", "how much?", "--agent", "clerk")
    assert asked.stdout == "The till holds 12 coins.\n", asked.stderr
    up.until("clerk done turn 1")
    up.type("\x03")
    assert up.ends() == 0
    assert "everything is in the log" in up.screen


def test_the_footer_is_drawn_over_and_gone_at_the_end(terminal: Callable[..., Terminal]) -> None:
    run = terminal("run", ".", "linger", "--timeout", "1s")
    run.until("linger")
    run.until(r"\r\x1b\[2K")
    assert run.ends() == 8
    assert run.screen.rstrip().splitlines()[-1].count("crewline up") == 1
