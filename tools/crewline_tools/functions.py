"""`@tool`: a function says what it does to the world; its signature and docstring say the rest.

    @tool(effect="read", timeout="5s")
    def find_order(order_id: Annotated[str, Verbatim()]) -> dict[str, Any]:
        \"\"\"Look an order up.

        Args:
            order_id: as the customer gave it.
        \"\"\"

The function stays what it was. What crewline knows of it hangs on it as `__crewline_tool__`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from crewline.errors import UsageError
from crewline.strict_json import check_object

from crewline_tools.base import ToolEffect, ToolSpec
from crewline_tools.context import ToolContext
from crewline_tools.hints import Derived as Derived
from crewline_tools.hints import Free as Free
from crewline_tools.hints import Sink as Sink
from crewline_tools.hints import Verbatim as Verbatim
from crewline_tools.reconcile import UncertainCall
from crewline_tools.signature import Signature, signature_of

F = TypeVar("F", bound=Callable[..., Any])
Reconcile = Callable[[UncertainCall], Any]  # returns Settled, or a coroutine of it

ATTRIBUTE = "__crewline_tool__"
TIMEOUT_S = 30.0
_EFFECTS = get_args(ToolEffect)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(frozen=True)
class ToolFunction:
    """A Python function as a tool: its specification, and how to call it with a model's arguments.

    `stated_idempotent` is what the author said (None: nothing, so a crew file may). `place` is where the
    function stands, for messages. `reconcile` settles a call whose outcome is lost.
    """

    spec: ToolSpec
    function: Callable[..., Any]
    signature: Signature
    place: str
    reconcile: Reconcile | None = None
    stated_idempotent: bool | None = None

    @property
    def blocking(self) -> bool:
        """Whether the function runs in a thread (a plain one) or in the event loop (an async one)."""
        return not self.signature.is_async

    def arguments(self, text: str, injected: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the keyword arguments that a model's argument text and the runtime's values make.

        Raises: CrewlineError (StrictJsonError, UsageError) that says what does not fit.
        """
        check_object(text)  # what the guardrail read, or nothing: no second reading of the same bytes
        return self.signature.arguments(text, injected or {}, self.spec.inject)

    def bind(self, text: str, injected: Mapping[str, Any] | None, context: ToolContext) -> Callable[[], Any]:
        """Return the call, ready to be made. Raises: CrewlineError if the arguments do not fit."""
        arguments = self.arguments(text, injected)
        if self.signature.context is not None:
            arguments[self.signature.context] = context
        function = self.function
        return lambda: function(**arguments)


def tool(
    *misused: Any,
    effect: ToolEffect | None = None,
    idempotent: bool | None = None,
    timeout: str | None = None,
    retries: int = 0,
    name: str | None = None,
    reconcile: Callable[[UncertainCall], Any] | None = None,
    auto_amend: bool = False,
) -> Callable[[F], F]:
    """Make a function a tool.

    Args:
        effect: `read`, `write`, or `destructive` (cannot be undone from here). Has no default.
        idempotent: a repeat with the same arguments (or the same `ctx.idempotency_key`) does nothing more.
        timeout: "500ms", "20s", "2m". Default 30s.
        retries: further attempts after a failure; only for tools that are `read` or idempotent.
        name: what models call it; default: the function's name.
        reconcile: settles a call of which nobody knows whether it ran: takes an `UncertainCall`, returns
            `call.ran(output)`, `call.not_run()` or `call.cannot_say()`.
        auto_amend: the guardrail may put small faults of the arguments right instead of denying.

    Raises: UsageError where the function is defined, naming it and what is wrong with it.
    """
    if misused or effect is None:
        where = f"tool {place_of(misused[0])}" if misused and callable(misused[0]) else "@tool"
        raise UsageError(
            f'{where}: say what it does to the world: @tool(effect="read"), "write" or "destructive"',
            hint="read changes nothing; write can be undone; destructive cannot (a payment, a message sent)",
        )

    def decorate(function: F) -> F:
        made = make(
            function, effect=effect, idempotent=idempotent, timeout=timeout, retries=retries, name=name,
            reconcile=reconcile, auto_amend=auto_amend,
        )
        setattr(function, ATTRIBUTE, made)
        return function

    return decorate


def make(
    function: Callable[..., Any],
    *,
    effect: ToolEffect,
    idempotent: bool | None = None,
    timeout: str | None = None,
    retries: int = 0,
    name: str | None = None,
    reconcile: Reconcile | None = None,
    auto_amend: bool = False,
) -> ToolFunction:
    """Return the tool that a function is, leaving the function alone. Raises: UsageError."""
    place = place_of(function)
    said_name = name or str(getattr(function, "__name__", ""))
    if not _NAME.fullmatch(said_name):
        raise UsageError(f"tool {place}: its name {said_name!r} must match [a-z][a-z0-9_]*, up to 64 characters; "
                         'give it one: @tool(name="…")')
    if effect not in _EFFECTS:
        raise UsageError(f"tool {place}: effect={effect!r} is unknown; it is one of {', '.join(_EFFECTS)}")
    signature = signature_of(function, place)
    spec = ToolSpec(
        name=said_name,
        description=signature.description,
        parameters=signature.schema(()),
        effect=effect,
        idempotent=bool(idempotent),
        timeout_s=TIMEOUT_S if timeout is None else seconds(timeout, f"tool {place}: timeout"),
        retries=retries,
        auto_amend=auto_amend,
    )
    made = ToolFunction(spec, function, signature, place, reconcile, idempotent)
    # Whether it is idempotent may still be said by a crew file; then the same question is asked again.
    check_retries(replace(spec, idempotent=idempotent is not False), place)
    return made


def check_retries(spec: ToolSpec, place: str) -> None:
    """Raise UsageError if `spec` asks for attempts that cannot be, or must not be, made."""
    if spec.retries < 0:
        raise UsageError(f"tool {place}: retries={spec.retries} is below 0")
    if spec.retries and not spec.safe:
        raise UsageError(
            f"tool {place}: retries={spec.retries}, but a {spec.effect} tool that is not idempotent is never run twice; "
            "leave retries away, or say idempotent=True if a repeat does nothing more"
        )


def tool_of(function: object) -> ToolFunction | None:
    """Return what `@tool` made of `function`, or None."""
    made = getattr(function, ATTRIBUTE, None)
    return made if isinstance(made, ToolFunction) else None


def seconds(duration: object, what: str) -> float:
    """Return the seconds of "500ms", "20s", "2m", "24h", "90d". Raises: UsageError naming `what`."""
    found = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{what}: {duration!r} is no duration; write a number and its unit, like \"20s\" or \"2m\"")
    return float(found[1]) * _UNIT_S[found[2]]


def place_of(function: Any) -> str:
    """Return where a function stands: `shop.tools:issue_refund`."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', '?')}:{name}"

