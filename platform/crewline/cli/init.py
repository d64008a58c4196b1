"""`crewline init`: a crew of one's own to change, with tests that pass."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from crewline.cli.demo import templates
from crewline.errors import NotFound, UsageError

_LEFT_OUT = {"__pycache__", ".crewline", ".pytest_cache"}
_IGNORED = ".crewline/\n.env\n__pycache__/\n"
_ENVIRONMENT = """\
# Copy to .env and fill in; crewline reads the environment only: set -a; . ./.env; set +a
OPENAI_API_KEY=
# Any OpenAI-compatible endpoint:
# OPENAI_BASE_URL=http://127.0.0.1:8080/v1
"""


def names() -> list[str]:
    """Return the templates there are."""
    return sorted(path.parent.name for path in templates().glob("*/crew.yaml") if (path.parent / "tests").is_dir())


def init(directory: Path, *, template: str = "support") -> Iterator[Path]:
    """Make a project from a template; yield each file as it is written.

    Nothing that exists is overwritten. Raises: NotFound if there is no such template; UsageError if the
    folder holds something already.
    """
    if template not in names():
        raise NotFound(f"there is no template {template!r}", hint=f"templates: {', '.join(names())}")
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="name a new folder")
    source = templates() / template
    for path in sorted(source.rglob("*")):
        if path.is_file() and not _LEFT_OUT & set(path.parts):
            target = directory / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            yield target
    yield _write(directory / ".gitignore", _IGNORED)
    yield _write(directory / ".env.example", _ENVIRONMENT)
    yield _write_schema(directory)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _write_schema(directory: Path) -> Path:
    """Write the schema that the crew file's first line names, so that editors complete it."""
    import json

    from crewline.crews import crew_schema

    folder = directory / ".crewline"
    folder.mkdir(exist_ok=True)
    return _write(folder / "crew.schema.json", json.dumps(crew_schema(), indent=1) + "\n")
