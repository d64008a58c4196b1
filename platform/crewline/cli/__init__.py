"""The command line. `crewline --help` imports nothing but Typer: each command is a module, loaded when called.

  settings.py  the global options            output.py     stdout, stderr, JSON, tables, exit codes; logs.py
  groups.py    commands by name, lazily      text.py       durations, widths, what is safe on a terminal
  state.py     the log in the state folder   live.py, printer.py: the live view, frames to lines to stderr
  background.py, session.py, asking.py, streaming.py, decide.py, prompts.py: one request followed, Ctrl-C
  arguments.py, runs_view.py, tailing.py, dry.py: a call, a run, a topic, a judgement, for people

Then one file per command (group): check up run chat runs approvals topics tools guard market keys schema
replay version help. `demo` and `init` stand in start.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code (`crewline help exit-codes`)."""
    code = run_line(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _broken_pipe()
    sys.exit(code)


def run_line(argv: list[str]) -> int:
    """Run one command line; return its exit code. No error of the user's shows a traceback."""
    from crewline.cli.output import INTERRUPTED, Output, ReaderGone
    from crewline.cli.settings import early, hoist

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = hoist(argv)
    out = Output(early(args))
    try:
        return _invoke(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, ReaderGone):
        return _broken_pipe()
    except Exception as error:
        return _failed(error, out)


def _invoke(args: list[str]) -> int:
    from crewline.cli.app import command

    result: Any = command().main(args, prog_name="crewline", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _failed(error: Exception, out: Any) -> int:
    """Say in one line what went wrong and what to do; return the exit code."""
    import typer

    from crewline.cli.output import INTERRUPTED, USAGE
    from crewline.errors import CrewlineError

    if isinstance(error, CrewlineError):
        return int(out.fail(error))
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if hasattr(error, "format_message"):  # Typer's own: the command line is wrong
        context = getattr(error, "ctx", None)
        if not error.format_message():  # "no command": its help was asked for, in effect
            return USAGE
        path = context.command_path if context is not None else "crewline"
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        out.say_error("usage", message, f"{path} --help")
        return USAGE
    if isinstance(error, OSError) and error.filename is not None:  # a folder that is not ours to write, a full disk
        out.say_error("os", f"{error.filename}: {error.strerror}", "name another folder: --state DIR")
        return USAGE
    if out.settings.verbose:
        import traceback

        traceback.print_exception(error)
    name = type(error).__name__
    hint = "this is a fault of crewline; report it with the traceback above" if out.settings.verbose else (
        "the same command with --verbose shows the traceback"
    )
    out.say_error("internal", f"{name}: {error}" if str(error) else name, hint)
    return 1


def _broken_pipe() -> int:
    """Whoever read our output has gone (`| head`): end quietly, as other tools do."""
    from crewline.cli.output import BROKEN_PIPE

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return BROKEN_PIPE
