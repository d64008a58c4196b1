"""The built-in tools, run by the worker itself: `delegate` and `handoff`."""

from __future__ import annotations

from collections.abc import Sequence

from crewline_tools.base import BUILTIN_POOL, ToolSpec

DELEGATE = "delegate"
HANDOFF = "handoff"


def delegate_spec(capabilities: Sequence[str]) -> ToolSpec:
    """Return `delegate(capability, input)`, closed over the capabilities that an agent may ask for."""
    return ToolSpec(
        name=DELEGATE,
        description="Ask another agent to do a piece of work and wait for its answer.",
        parameters={
            "type": "object",
            "properties": {
                "capability": {"type": "string", "enum": list(capabilities)},
                "input": {"description": "What the other agent needs to know; it sees nothing else."},
            },
            "required": ["capability", "input"],
            "additionalProperties": False,
        },
        # A repeat is the same intent: its id comes from the execution's.
        effect="write",
        idempotent=True,
        pool=BUILTIN_POOL,
    )


def handoff_spec(agents: Sequence[str]) -> ToolSpec:
    """Return `handoff(agent)`, closed over the agents that may take the conversation over."""
    return ToolSpec(
        name=HANDOFF,
        description="Hand the whole conversation over to another agent, who goes on with it.",
        parameters={
            "type": "object",
            "properties": {
                "agent": {"type": "string", "enum": list(agents)},
                "reason": {"type": "string"},
            },
            "required": ["agent"],
            "additionalProperties": False,
        },
        effect="read",
        pool=BUILTIN_POOL,
    )
