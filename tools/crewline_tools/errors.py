"""What a tool says when it did not do what it was asked to."""

from __future__ import annotations

from typing import Any

from crewline.errors import CrewlineError


class ToolError(CrewlineError):
    """A tool's own account of what went wrong. The model reads `say`; it ends the execution as an error.

    Args:
        say: one or two sentences for the model: what happened, and what it could do instead.
        retryable: the same call may succeed in a moment; a safe tool is run again, up to its `retries`.
        fix: facts for the model in machine-readable form, for example `{"max": 100}`.
        ran: False says that nothing happened outside. (A ToolError always counts as the tool's word;
            any other exception of a tool that is neither `read` nor idempotent leaves the call unknown.)
    """

    code = "tool"

    def __init__(
        self, say: str, *, retryable: bool = False, fix: dict[str, Any] | None = None, ran: bool | None = None
    ) -> None:
        super().__init__(say)
        self.say = say
        self.retryable = retryable
        self.fix = fix
        self.ran = ran
