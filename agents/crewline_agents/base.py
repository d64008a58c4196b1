"""What every brain promises: one step in, one reply out. A step never runs a tool.

A brain is stateless between steps: the request holds all it may use, the reply all it says. What it
yields on the way is shown to people and then forgotten; only the `Reply` is recorded, and the
conversation goes on with the one that stands in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from crewline.events import CallText as CallText
from crewline.events import Usage as Usage

Role = Literal["user", "assistant", "tool"]
OURS = "crewline"
Finish = Literal["stop", "tool_calls", "length"]


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a brain said in one step: text, calls, or both; or a refusal."""

    text: str = ""
    calls: tuple[CallText, ...] = ()
    finish: Finish = "stop"
    usage: Usage | None = None
    model: str = ""
    refusal: str | None = None
    echo: dict[str, Any] | None = None


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One message of the history that a brain sees.

    role user: `text`; named `OURS`, if it is not the user's but says what is wrong with an answer. role assistant: `text`, `calls`, `echo`. role tool: `call_id` and `text` (the
    result or the reason why there is none).
    """

    role: Role
    text: str = ""
    calls: tuple[CallText, ...] = ()
    call_id: str | None = None
    name: str | None = None
    echo: dict[str, Any] | None = None


class ToolOffer(msgspec.Struct, frozen=True):
    """A tool as the model sees it: name, description, closed JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class StepRequest(msgspec.Struct, frozen=True):
    """All a brain may use for one step.

    `step` counts from 1 in the turn, `attempt` from 1 in the step; `id` is the step's effect id and
    names the work, whoever does it. `system` is the agent's prompt (role, goal, instructions).
    """

    id: str
    conversation: str
    run: str
    agent: str
    turn: int
    step: int
    attempt: int
    system: str
    messages: Sequence[ChatMessage]
    tools: Sequence[ToolOffer]
    user: str | None = None


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of the answer, as it is written."""

    text: str


class Note(msgspec.Struct, frozen=True):
    """Something worth showing while the brain works (reasoning, a retry); never part of the answer."""

    text: str


StepItem = TextDelta | Note | Reply


class Brain(Protocol):
    """How an agent thinks. Every brain passes tests/contract/test_brain.py."""

    def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        """Yield what is worth showing, then exactly one `Reply`, the last item.

        Closing the iterator (or cancelling its task) stops the work. The brain sets its own limits
        for silence and progress: no step hangs.

        Raises: ModelError: this attempt failed; it says whether another may succeed.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
