"""What can go wrong, as a tree. Every error has a stable `code`, and says what to do next.

CrewlineError
├── CrewFileError        the crew file has problems (all of them, each with its place)
├── UsageError           a command, a call of the API or an option is wrong
├── NotFound             no run, call, tool or topic of that name
├── BusError
│   ├── BusUnavailable   the log did not answer; the record may or may not be in it
│   │   └── NotAllowed   the broker answers, and an ACL is missing
│   ├── UnknownTopic     nothing was written
│   ├── TopicMismatch    the topic exists with other settings
│   ├── RecordTooLarge   nothing was written
│   ├── OffsetOutOfRange the records asked for are no longer (or not yet) there
│   └── LogDamaged       the file of the embedded log is broken
├── RecordInvalid        a record is no event of ours (undecodable, unsealed, wrong partition)
├── UnknownEvent         an event type or fold version this process does not know
├── SealError            a seal or a signature does not hold
├── StoreError           the memory store did not answer
├── ModelError           a model attempt failed
├── ToolError            a tool says what happened (see crewline_tools.base)
└── RunFailed            a run ended without an answer
"""

from __future__ import annotations

from typing import Any


class CrewlineError(Exception):
    """Base of all errors that users meet.

    `code` is stable: the log, the command line and HTTP show it. `exit_code` is what the command
    line ends with (console-and-cli: 1 failed, 2 usage, 3 config, 4 log or store, 5 not found, 6 denied,
    7 held, 8 timeout, 9 cancelled).
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CrewlineError):
    """A command, an option or a call of the Python API is wrong."""

    code = "usage"
    exit_code = 2


class NotFound(CrewlineError):
    """There is no run, call, tool, topic or capability of that name."""

    code = "not_found"
    exit_code = 5


class BusError(CrewlineError):
    """The log refused or failed."""

    code = "bus"
    exit_code = 4


class BusUnavailable(BusError):
    """No answer in time. The record may or may not be in the log: read, then decide."""

    code = "bus.unavailable"


class NotAllowed(BusUnavailable):
    """A right is missing at the broker (an ACL). It may be given while we wait: to others it is as if nobody answered."""

    code = "bus.not_allowed"


class UnknownTopic(BusError):
    """The topic does not exist; nothing was written."""

    code = "bus.unknown_topic"


class TopicMismatch(BusError):
    """A topic exists with settings other than those asked for."""

    code = "bus.topic_mismatch"
    exit_code = 3


class RecordTooLarge(BusError):
    """A record is larger than the bus takes (900 kB); nothing was written."""

    code = "bus.record_too_large"


class OffsetOutOfRange(BusError):
    """The offset asked for is below the log's start or above its end."""

    code = "bus.offset_out_of_range"


class LogDamaged(BusError):
    """The file of the embedded log is broken. The message names file and remedy."""

    code = "bus.damaged"


class RecordInvalid(CrewlineError):
    """A record cannot be taken as an event: undecodable, unsealed, or on a wrong partition."""

    code = "record.invalid"


class UnknownEvent(CrewlineError):
    """An event type or fold version that this process does not know; a newer one may."""

    code = "record.unknown"


class SealError(RecordInvalid):
    """A seal or signature does not hold, or its key may not write this record."""

    code = "record.seal"


class StoreError(CrewlineError):
    """The memory store did not answer or refused."""

    code = "store"
    exit_code = 4


class ModelError(CrewlineError):
    """One attempt to get a reply from a model failed.

    Args:
        kind: `retryable` (another attempt may succeed) or `fatal` (the same request fails again).
        retry_after_s: what the server asked for, in seconds.
        hint: what to change.
    """

    code = "model"

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class RunFailed(CrewlineError):
    """A run ended without an answer.

    `reason_code` is the log's own code (for example `steps.exceeded`); `run` names the run.
    """

    code = "run.failed"

    def __init__(self, message: str, *, reason_code: str, run: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason_code = reason_code
        self.run = run


def as_json(error: CrewlineError) -> dict[str, Any]:
    """Return the error as the command line's `--json` and HTTP show it."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
