"""Crews of LLM agents over a Kafka log. Everything a user writes imports from here.

Names are resolved when first used (PEP 562), so that `import crewline` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewline_tools.context import ToolContext as ToolContext
    from crewline_tools.errors import ToolError as ToolError
    from crewline_tools.functions import Derived as Derived
    from crewline_tools.functions import Free as Free
    from crewline_tools.functions import Sink as Sink
    from crewline_tools.functions import Verbatim as Verbatim
    from crewline_tools.functions import tool as tool
    from crewline_tools.reconcile import Settled as Settled
    from crewline_tools.reconcile import UncertainCall as UncertainCall
    from crewline_tools.registry import ToolRegistry as ToolRegistry

    from crewline.client import Answer as Answer
    from crewline.client import Client as Client
    from crewline.client import Handle as Handle
    from crewline.client import TimedOut as TimedOut
    from crewline.crews.problems import CrewFileError as CrewFileError
    from crewline.crews.running import Crew as Crew
    from crewline.crews.running import Running as Running
    from crewline.errors import CrewlineError as CrewlineError
    from crewline.errors import RunFailed as RunFailed
    from crewline.projection import Frame as Frame

__version__ = "0.1.0"

_HOMES = {
    "Answer": "crewline.client",
    "Client": "crewline.client",
    "Crew": "crewline.crews.running",
    "CrewFileError": "crewline.crews.problems",
    "CrewlineError": "crewline.errors",
    "Derived": "crewline_tools.functions",
    "Frame": "crewline.projection",
    "Free": "crewline_tools.functions",
    "Handle": "crewline.client",
    "RunFailed": "crewline.errors",
    "Running": "crewline.crews.running",
    "Settled": "crewline_tools.reconcile",
    "Sink": "crewline_tools.functions",
    "TimedOut": "crewline.client",
    "ToolContext": "crewline_tools.context",
    "ToolError": "crewline_tools.errors",
    "ToolRegistry": "crewline_tools.registry",
    "UncertainCall": "crewline_tools.reconcile",
    "Verbatim": "crewline_tools.functions",
    "tool": "crewline_tools.functions",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'crewline' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
