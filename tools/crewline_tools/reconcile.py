"""How a tool settles a call of which nobody knows whether it ran.

    def find_payment(call: UncertainCall) -> Settled:
        payment = bank.find(call.idempotency_key)
        return call.ran(payment) if payment else call.not_run()

    @tool(effect="destructive", reconcile=find_payment)
    def pay(...): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the call. Made by `UncertainCall.ran`, `.not_run` or `.cannot_say`."""

    what: Literal["ran", "not_run", "cannot_say"]
    output: Any = None


@dataclass(frozen=True, slots=True)
class UncertainCall:
    """A call that was started, and whose outcome is lost.

    `arguments` are those the function was, or would have been, called with (without its context).
    """

    call_id: str
    idempotency_key: str
    arguments: Mapping[str, Any]
    user: str | None
    conversation: str
    run: str
    agent: str

    def ran(self, output: Any = None) -> Settled:
        """It happened, once; `output` is what the tool would have returned."""
        return Settled("ran", output)

    def not_run(self) -> Settled:
        """It did not happen and cannot happen any more: the call may be judged and run again."""
        return Settled("not_run")

    def cannot_say(self) -> Settled:
        """A person has to look."""
        return Settled("cannot_say")
