"""`crewline keys`: a deployment's keys. What is secret is never printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

app = new_app("A deployment's keys: who may write what. Secrets stay in their files (0600).")

Folder = Annotated[Path | None, typer.Argument(metavar="DIR", help="The keys folder; default: keys in the state folder.")]


@app.command("init")
def init(context: typer.Context, folder: Folder = None) -> None:
    """Make a deployment's keys; those that exist are kept.

    Example: crewline keys init /etc/crewline/keys
    """
    from crewline.cli.output import Output
    from crewline.seal import load_keys, make_keys

    settings = globals_.of(context)
    out = Output(settings)
    where = folder or settings.keys or settings.state / "keys"
    make_keys(where)
    held = load_keys(where).holds()
    if settings.json:
        out.document({"folder": str(where), "keys": held})
    else:
        out.say(f"{where} holds {', '.join(held)}", tone="green")
        out.say(f"each role gets its own folder: crewline keys role ROLE --from {where}", tone="dim")


@app.command("show")
def show(context: typer.Context, folder: Folder = None) -> None:
    """Show which keys a folder holds, by name.

    Example: crewline keys show
    """
    from crewline.cli.output import Output
    from crewline.seal import load_keys

    settings = globals_.of(context)
    out = Output(settings)
    where = folder or settings.keys or settings.state / "keys"
    held = load_keys(where).holds()
    means = {
        "deployment": "seals what workers and clients write", "pool": "seals what that tool pool writes",
        "guard": "signs verdicts", "people": "signs decisions",
    }
    if settings.json:
        out.document({"folder": str(where), "keys": held})
    elif not held:
        out.say(f"{where} holds no keys: crewline keys init {where}")
    else:
        rows = []
        for name in held:
            kind = name.partition("/")[0].partition("-")[0]
            public = "-" in name and kind in ("guard", "people")
            rows.append([name, "public" if public else "secret", f"checks what {kind} signs" if public else means.get(kind, "")])
        out.table(("key", "kind", "what it does"), rows)


Source = Annotated[
    Path | None, typer.Option("--from", metavar="DIR", help="The deployment's keys; default: in the state folder.")
]


@app.command("role")
def role(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ROLE", help="worker, guardrail, triggers, client, console, tools.NAME.")],
    target: Annotated[Path | None, typer.Argument(metavar="DIR", help="The role's own folder; default: keys-ROLE.")] = None,
    source: Source = None,
) -> None:
    """Make the keys folder of a role: what it signs with and the public halves, nothing that it could forge with.

    Example: crewline keys role guardrail /etc/guardrail/keys --from /secure/keys
    """
    _write(context, name, target or Path(f"keys-{name}"), source)


@app.command("pool")
def pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The tool pool.")],
    target: Annotated[Path | None, typer.Argument(metavar="DIR", help="The pool's own folder; default: keys-NAME.")] = None,
    source: Source = None,
) -> None:
    """Make the keys folder of a tool pool, as `keys role tools.NAME` does.

    Example: crewline keys pool payments /etc/payments/keys
    """
    _write(context, f"tools.{name}", target or Path(f"keys-{name}"), source)


def _write(context: typer.Context, role: str, target: Path, source: Path | None) -> None:
    from crewline.cli.output import Output
    from crewline.seal import write_role_keys

    settings = globals_.of(context)
    out = Output(settings)
    files = write_role_keys(source or settings.keys or settings.state / "keys", role, target)
    secret = [file.name for file in files if file.suffix == ".key"]
    if settings.json:
        out.document({"folder": str(target), "role": role, "files": [str(file) for file in files]})
    else:
        out.say(f"wrote {', '.join(str(file) for file in files)}", tone="green")
        out.say(f"secret among them: {', '.join(secret)}; start the role with --keys {target}", tone="dim")
