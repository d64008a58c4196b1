"""What every line of the log is about: role, conversation, run. Set where an effect is run, read by the formatter."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import NamedTuple

from crewline.errors import UsageError

VARIABLE = "CREWLINE_LOG_FORMAT"


class Fields(NamedTuple):
    """Whose work a line was written at; "" where there is none."""

    role: str = ""
    conversation: str = ""
    run: str = ""


NOBODY = Fields()
fields: ContextVar[Fields] = ContextVar("fields", default=NOBODY)


def structured() -> bool:
    """Return whether lines are JSON objects. Raises: UsageError if the variable says neither `json` nor `text`."""
    said = os.environ.get(VARIABLE, "") or "text"
    if said not in ("json", "text"):
        raise UsageError(f"{VARIABLE}={said} is unknown", hint="json or text")
    return said == "json"
