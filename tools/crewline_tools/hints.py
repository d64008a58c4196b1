"""What an argument may hold: marks for `Annotated`, which the guardrail finds in the schema.

    order_id: Annotated[str, Verbatim()]      amount: Annotated[float, Sink("amount")]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

SinkKind = Literal["contact", "amount", "url", "secret", "destroy"]
SINKS = ("contact", "amount", "url", "secret", "destroy")


class _Ground:
    ground: ClassVar[str]

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(core_schema), "x-ground": self.ground}


@dataclass(frozen=True, slots=True)
class Verbatim(_Ground):
    """The value stands in the conversation as it is: an order number the customer gave."""

    ground: ClassVar[str] = "verbatim"


@dataclass(frozen=True, slots=True)
class Derived(_Ground):
    """The value follows from what stands in the conversation: "ten percent", "next Friday"."""

    ground: ClassVar[str] = "derived"


@dataclass(frozen=True, slots=True)
class Free(_Ground):
    """The model may make the value up: a greeting, a search query."""

    ground: ClassVar[str] = "free"


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the value goes, if that place is worth guarding: contact, amount, url, secret, destroy."""

    kind: SinkKind

    def __post_init__(self) -> None:
        if self.kind not in SINKS:
            raise ValueError(f"Sink({self.kind!r}): a sink is one of {', '.join(SINKS)}")

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(core_schema), "x-sink": self.kind}
