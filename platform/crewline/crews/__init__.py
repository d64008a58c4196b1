"""The crew file, and a crew that runs.

loader.py     reads a file with its overlays: load_crew, check_crew
models.py     every key of crew/v1, its type and default (models_bus, models_guard, models_flow)
values.py     durations, secrets, `${…}` references, names
yaml_text.py  strict YAML with places; shape.py puts the models' findings into words
checker.py    what must hold between keys (checks_agents, checks_guard, checks_flow, checks_where)
report.py     what a checked crew is: not_yet, effective_policies, config_digest, crew_schema
problems.py   Problem, CrewFileError
where.py      where it runs: log, keys, store; bus_file.py: the `bus` of a file alone
running.py    a crew, loaded and running
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewline.crews.loader import check_crew as check_crew
    from crewline.crews.loader import load_crew as load_crew
    from crewline.crews.models import CrewConfig as CrewConfig
    from crewline.crews.problems import CrewFileError as CrewFileError
    from crewline.crews.problems import Problem as Problem
    from crewline.crews.report import PolicyRow as PolicyRow
    from crewline.crews.report import config_digest as config_digest
    from crewline.crews.report import crew_schema as crew_schema
    from crewline.crews.report import effective_policies as effective_policies
    from crewline.crews.report import not_yet as not_yet

# Resolved when first used (PEP 562): the command line's path must not pay for pydantic.
_HOMES = {
    "CrewConfig": "models",
    "CrewFileError": "problems",
    "PolicyRow": "report",
    "Problem": "problems",
    "check_crew": "loader",
    "config_digest": "report",
    "crew_schema": "report",
    "effective_policies": "report",
    "load_crew": "loader",
    "not_yet": "report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'crewline.crews' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crewline.crews.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
