"""Questions on a terminal that go away by themselves when there is nothing left to ask."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from crewline.errors import UsageError

LOOK_S = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM: leave at once, asking nothing."""


def ask_line(prompt: str, over: Callable[[], bool] = lambda: False) -> str | None:
    """Ask on stderr and return the line typed, without blanks around it.

    None: the input has ended, or `over` says that the question has become pointless. What was typed before
    the question was there does not answer it. Raises: KeyboardInterrupt on Ctrl-C.
    """
    if sys.stdin.isatty():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if ready:
            line = sys.stdin.readline()
            return line.strip() if line else None
        if over():
            sys.stderr.write("\n")
            return None


def edited(text: str) -> str:
    """Return `text` as $VISUAL or $EDITOR leaves it. Raises: UsageError if there is none, or it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("no editor is set", hint="export EDITOR=vi, or give the arguments: --args '{…}' or --args @file")
    with tempfile.TemporaryDirectory(prefix="crewline-") as folder:
        file = Path(folder) / "arguments.json"
        file.write_text(text + "\n", encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the editor {editor!r} failed: {error}", hint="use --args '{…}' or --args @file") from None
        return file.read_text(encoding="utf-8").strip()


@contextmanager
def terminating() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
