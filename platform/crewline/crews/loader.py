"""A crew file, read: YAML, overlays, references; then its shape and everything that holds between its keys.

    read_nodes(path, overlays)   the merged file, every value with its place
    resolve_nodes(root, …)       `${…}` resolved, once
    check_crew, load_crew        all problems; the crew
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from crewline.crews.checker import cross_problems
from crewline.crews.models import CrewConfig
from crewline.crews.overlays import merged, overlay_problems
from crewline.crews.problems import CrewFileError, Path, Problem, dotted, in_order
from crewline.crews.shape import shaped, walk
from crewline.crews.values import BadReference, Referenced, resolve
from crewline.crews.yaml_text import BYTES_MAX, Node, read_yaml

# Fields that are always CEL; `*` is any name.
CEL_PATHS: tuple[tuple[str, ...], ...] = (
    ("tools", "*", "inject", "*"),
    ("mcp_servers", "*", "tools", "*", "inject", "*"),
    ("guardrails", "facts", "*", "args", "*"),
    ("guardrails", "policies", "*", "when"),
    ("guardrails", "limits", "*", "key"),
    ("guardrails", "limits", "*", "sum"),
    *(("triggers", "*", name) for name in ("key", "time", "when", "user", "conversation")),
    ("triggers", "*", "input", "*"),
    ("triggers", "*", "aggregate", "*"),
)
_BAD = "not a reference; write ${NAME}, ${NAME:-default} or ${file:/path}"
_LITERAL: tuple[tuple[str, ...], ...] = (("agents", "*", "instructions"),)


def load_crew(
    path: str | FilePath,
    *,
    overlays: Sequence[str | FilePath] = (),
    offline: bool = False,
    env: Mapping[str, str] = os.environ,
    resolve: bool = True,
) -> CrewConfig:
    """Return the crew that a file declares, checked in full; user code is not imported.

    Args:
        overlays: files that may set `bus`, `models`, `memory` and `console`; later ones win.
        offline: every agent uses the model `offline`; what only other models need is not asked for.
        resolve: look up `${NAME}` in `env` and read `${file:…}`; without it, defaults alone are filled in.

    Raises: CrewFileError with every error of the files; also for a reference that is needed and gives nothing.
    """
    root = read_nodes(path, overlays)
    problems = resolve_nodes(root, env if resolve else None)
    config, shape, waiting = shaped(root)
    problems += shape
    problems += cross_problems(root, FilePath(path).parent, offline=offline)
    if config is None and not shape:
        problems += waiting  # a number that is not there leaves no crew, even if nobody uses it
    if resolve:
        problems += _missing(root, offline=offline)
    errors = [problem for problem in in_order(problems) if problem.severity == "error"]
    if errors:
        raise CrewFileError(errors)
    assert config is not None, "no crew and no error"
    config._file = FilePath(path)
    config._places = {each: node.key for each, node in walk(root)}
    return config


def check_crew(path: str | FilePath, overlays: Sequence[str | FilePath] = ()) -> list[Problem]:
    """Return everything that is wrong with a crew file, errors and warnings, in order of line; never raises for it.

    Looks up no variable and reads no secret, so a check passes where the crew would not start.
    """
    try:
        root = read_nodes(path, overlays)
    except CrewFileError as error:
        return in_order(error.problems)
    problems = resolve_nodes(root, None)
    problems += shaped(root)[1]
    return in_order([*problems, *cross_problems(root, FilePath(path).parent, offline=False)])


def read_nodes(path: str | FilePath, overlays: Sequence[str | FilePath] = ()) -> Node:
    """Return a crew file with its overlays merged in. Raises: CrewFileError."""
    root = _read(path)
    for overlay in overlays:
        over = _read(overlay)
        if problems := overlay_problems(over):
            raise CrewFileError(problems)
        root = Node(merged(root, over).value, root.place, root.key)  # what is missing is missing in the first file
    return root


def resolve_nodes(root: Node, env: Mapping[str, str] | None) -> list[Problem]:
    """Resolve the references in `root` in place; return those that are none. With `env` None: defaults only."""
    problems = []
    for path, node in walk(root):
        if not isinstance(node.value, str) or isinstance(node.value, Referenced) or "${" not in node.value:
            continue
        if _matches(path, _LITERAL):
            continue
        if _matches(path, CEL_PATHS):
            say = "an expression takes no ${…}: what a policy says must not hang on the machine it runs on"
            problems.append(Problem.at(node.place, dotted(path), say))
            continue
        try:
            node.value = resolve(node.value, env)
        except BadReference:
            problems.append(Problem.at(node.place, dotted(path), _BAD))
            node.value = Referenced(node.value, node.value, _BAD)  # what is said once is not judged again
    return problems


def _read(path: str | FilePath) -> Node:
    file = str(path)
    try:
        with FilePath(path).open("rb") as opened:
            raw = opened.read(BYTES_MAX + 1)
    except FileNotFoundError:
        raise CrewFileError([Problem(file, 0, 0, "", "there is no such file")]) from None
    except (OSError, ValueError) as error:
        say = getattr(error, "strerror", None) or str(error)
        raise CrewFileError([Problem(file, 0, 0, "", f"cannot be read: {say}")]) from None
    if len(raw) > BYTES_MAX:
        raise CrewFileError([Problem(file, 0, 0, "", f"larger than {BYTES_MAX:,} bytes")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CrewFileError([Problem(file, line, 1, "", "not UTF-8")]) from None
    return read_yaml(text, file)


def _matches(path: Path, patterns: tuple[tuple[str, ...], ...]) -> bool:
    return any(
        len(path) == len(pattern) and all(want in ("*", part) for want, part in zip(pattern, path, strict=True))
        for pattern in patterns
    )


def _missing(root: Node, *, offline: bool) -> list[Problem]:
    used = _models_used(root, offline=offline)
    problems = []
    for path, node in walk(root):
        if not isinstance(node.value, Referenced) or node.value.missing in (None, _BAD):
            continue
        model = path[1] if path[:1] == ("models",) and len(path) > 1 else None
        if model is not None and model not in used:
            continue
        remedy = "; set it, or run with --offline" if model is not None and not offline else ""
        problems.append(Problem.at(node.place, dotted(path), f"{node.value.missing}{remedy}"))
    return problems


def _models_used(root: Node, *, offline: bool) -> set[Any]:
    top = root.value if isinstance(root.value, dict) else {}
    agents, models = top.get("agents"), top.get("models")
    if offline and models is not None and isinstance(models.value, dict) and "offline" in models.value:
        return {"offline"}
    if agents is None or not isinstance(agents.value, dict):
        return set()
    stated = [each.value.get("model") for each in agents.value.values() if isinstance(each.value, dict)]
    return {"default" if each is None else each.value for each in stated if each is None or isinstance(each.value, str)}
