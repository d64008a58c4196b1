"""Python's logging on the command line: one line a message on stderr, for people or (JSON) for machines."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import UTC, datetime

import msgspec

from crewline.cli.settings import Settings
from crewline.cli.text import clean

ROLES = ("worker", "guardrail", "limits", "triggers", "market")


def set_up(settings: Settings, *, tracebacks: bool) -> None:
    """Show warnings (with --verbose everything of ours, with --quiet errors alone).

    Args:
        tracebacks: show those of tools that raise, as `up` does; without it, their last line.

    Raises: UsageError if $CREWLINE_LOG_FORMAT says something unknown.
    """
    from crewline.telemetry.fields import structured

    handler = _Handler()
    handler.setFormatter(_JsonFormatter() if structured() else _Formatter(tracebacks=tracebacks or settings.verbose))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    level = logging.DEBUG if settings.verbose else logging.ERROR if settings.quiet else logging.WARNING
    for name in ("crewline", "crewline_agents", "crewline_tools", "crewline_memory"):
        logging.getLogger(name).setLevel(level)


class _Handler(logging.Handler):
    """Writes to what stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # as in logging's own handlers: a log line must not end the command
            self.handleError(record)


class _Formatter(logging.Formatter):
    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if self._tracebacks or not record.exc_info:
            return clean(super().format(record))
        error = record.exc_info[1]
        said = f"{record.levelname} {record.name}: {record.getMessage()}: {type(error).__name__}: {error}"
        return clean(f"{said} (--verbose shows the traceback)", one_line=True)


class _JsonFormatter(logging.Formatter):
    """A line is an object: time, level, logger, message; role, conversation and run where they are known; exception."""

    def format(self, record: logging.LogRecord) -> str:
        from crewline.telemetry.fields import fields

        role, conversation, run = fields.get()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "role": role or _role_of_task(),
            "conversation": conversation,
            "run": run,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return msgspec.json.encode({name: value for name, value in line.items() if value}).decode()


def _role_of_task() -> str:
    """Return whose line it is outside of any effect: each role runs in a task that bears its name."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop in this thread
        return ""
    name = task.get_name() if task is not None else ""
    return name if name in ROLES or name.startswith("tools.") else ""
