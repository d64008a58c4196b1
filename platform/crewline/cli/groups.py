"""Every command by name, with the line that `--help` shows; its module is imported when it is called."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class Command(NamedTuple):
    """Where a command is: a Typer app (a group) or a function, in a module."""

    module: str
    attribute: str
    help: str


SECTIONS: dict[str, dict[str, Command]] = {
    "Start": {
        "demo": Command("start", "demo", "Run the support crew offline, from a question to a paid refund."),
        "init": Command("start", "init", "Write a new crew: crew.yaml, tools, scripts, tests."),
        "check": Command("check", "check", "Check crew files; every problem with its line."),
        "doctor": Command("doctor", "doctor", "Look whether a crew could run, and print its rights at Kafka."),
        "up": Command("up", "up", "Run crews until Ctrl-C."),
    },
    "Ask": {
        "run": Command("run", "run", "Ask a crew once: live view on stderr, the answer on stdout."),
        "chat": Command("chat", "chat", "Talk with a crew."),
    },
    "Look and decide": {
        "runs": Command("runs", "app", "List, show, watch and cancel runs."),
        "approvals": Command("approvals", "app", "Decide what waits for a person."),
        "replay": Command("replay", "replay", "Print a run again from the log: no model, no tool is called."),
        "market": Command("market", "app", "Who offers which capability."),
        "topics": Command("topics", "app", "The log: topics, records, lag."),
    },
    "Tools and rules": {
        "tools": Command("tools", "app", "List, show and call the tools of a crew."),
        "guard": Command("guard", "app", "Try a call against the policies; verify the audit chain."),
        "keys": Command("keys", "app", "Make and show a deployment's keys."),
    },
    "More": {
        "schema": Command("schema", "schema", "Write the JSON Schema of crew files, or of the events."),
        "version": Command("version", "version", "Show the version."),
        "completion": Command("version", "completion", "Print the completion script of a shell."),
        "help": Command("help", "show_help", "Explain a command, or the exit codes."),
    },
}
COMMANDS = {name: command for section in SECTIONS.values() for name, command in section.items()}


def new_app(help: str) -> typer.Typer:
    """Return an empty group with our settings: plain help, no tracebacks of Typer's, no completion options."""
    return typer.Typer(
        help=help, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


class LazyGroup(TyperGroup):
    """The top of the command line: knows its commands by name, loads one when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # the names; `get_command` has the rest

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the command's module and return the command."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        offered = getattr(importlib.import_module(f"crewline.cli.{found.module}"), found.attribute)
        if not isinstance(offered, typer.Typer):
            single = new_app("")
            single.command(cmd_name)(offered)
            offered = single
        command = typer.main.get_command(offered)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and their lines, by section, without importing a command."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, command.help) for name, command in commands.items()])
