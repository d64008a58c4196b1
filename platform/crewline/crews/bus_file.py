"""The `bus` of an overlay or a crew file, for commands that reach a log and know no crew."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from crewline.crews.checker import cross_problems
from crewline.crews.loader import read_nodes, resolve_nodes
from crewline.crews.models_bus import EmbeddedBus, KafkaBus
from crewline.crews.problems import CrewFileError, Problem, dotted, in_order
from crewline.crews.shape import shaped, walk
from crewline.crews.values import Referenced
from crewline.crews.yaml_text import Node, read_yaml

# A crew with nothing in it, so that a `bus` alone has somewhere to be checked.
_EMPTY = "{schema: crew/v1, name: none, version: '0', models: {default: {provider: scripted, script: none}}, agents: {none: {role: none, goal: none}}}"


def load_bus(path: str | Path, *, env: Mapping[str, str] = os.environ) -> EmbeddedBus | KafkaBus:
    """Return what a file says under `bus`; the rest of it is not looked at.

    Raises: CrewFileError with every problem of it; also for a reference that gives nothing.
    """
    file = read_nodes(path)
    bus = file.value.get("bus") if isinstance(file.value, dict) else None
    if bus is None:
        raise CrewFileError([Problem.at(file.place, "bus", "there is no `bus` in this file; it says where the log is")])
    empty = read_yaml(_EMPTY, str(path))
    root = Node({**empty.value, "bus": bus}, file.place, file.key)
    problems = resolve_nodes(root, env)
    config, shape, waiting = shaped(root)
    problems += shape
    problems += [each for each in cross_problems(root, Path(path).parent, offline=False) if each.path.startswith("bus")]
    missing = [
        Problem.at(node.place, dotted(path), node.value.missing)
        for path, node in walk(root) if isinstance(node.value, Referenced) and node.value.missing
    ]
    problems += missing or waiting
    errors = [problem for problem in in_order(problems) if problem.severity == "error"]
    if errors:
        raise CrewFileError(errors)
    assert config is not None, "no bus and no error"
    return config.bus
