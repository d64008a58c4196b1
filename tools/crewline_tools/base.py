"""What a tool is to the platform: its specification. (The `@tool` decorator builds one from a function.)"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

ToolEffect = Literal["read", "write", "destructive"]
BUILTIN_POOL = "builtin"  # run by the worker itself: delegate, handoff


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the guardrail, the worker and its pool know it.

    `parameters` is the closed JSON Schema that the model sees (injected arguments are not in it).
    `effect` is how far it reaches: `read`, `write`, `destructive` (cannot be undone from here).
    `idempotent`: a repeat with the same arguments does nothing more. `inject`: argument name to CEL over
    `user`, `run`, `agent`. `retries`: further attempts of a safe execution after a failure.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: ToolEffect
    idempotent: bool = False
    timeout_s: float = 30.0
    retries: int = 0
    pool: str = "main"
    inject: Mapping[str, str] = field(default_factory=dict)
    auto_amend: bool = False
    on_guard_down: Literal["deny", "allow"] = "deny"

    @property
    def safe(self) -> bool:
        """Whether an execution may be repeated: `read`, or idempotent."""
        return self.effect == "read" or self.idempotent

    def digest(self) -> str:
        """Return the hash under which a catalogue knows this tool: what the model saw and what it may do."""
        seen = [self.name, self.description, self.parameters, self.effect, self.idempotent, self.pool]
        return hashlib.sha256(msgspec.json.encode(seen, order="deterministic")).hexdigest()[:16]


def catalogue_hash(tools: Sequence[ToolSpec]) -> str:
    """Return the hash of a set of tools, whatever its order."""
    digests = sorted(tool.digest() for tool in tools)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
