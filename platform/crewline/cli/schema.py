"""`crewline schema`: the JSON Schema of crew files (for editors), or of the events (for other programs)."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from crewline.cli import settings as globals_

FOLDER = ".crewline"  # where the first line of a crew file looks, whatever --state says


def schema(
    context: typer.Context,
    what: Annotated[Literal["crew", "events"], typer.Argument(help="Of crew files, or of the events.")] = "crew",
    to: Annotated[str | None, typer.Argument(metavar="[FILE|-]", help="Where to; - is stdout.")] = None,
) -> None:
    """Write the JSON Schema of crew files to .crewline/crew.schema.json, or of the events.

    Example: crewline schema events -
    """
    import json
    from pathlib import Path

    from crewline.cli.output import Output
    from crewline.errors import UsageError

    settings = globals_.of(context)
    out = Output(settings)
    if what == "crew":
        from crewline.crews import crew_schema

        document = crew_schema()
    else:
        from crewline.events import json_schemas

        document = json_schemas()
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if to == "-" or (settings.json and to is None):
        out.put(text)
        return
    path = Path(to) if to is not None else Path(FOLDER) / f"{what}.schema.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}", hint=f"crewline schema {what} -") from None
    out.say(f"wrote {path}", tone="green")
    if what == "crew":
        out.say("a crew file's first line: # yaml-language-server: $schema=./.crewline/crew.schema.json", tone="dim")
