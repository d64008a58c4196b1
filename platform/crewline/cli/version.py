"""`crewline version` and `crewline completion`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from crewline.cli import settings as globals_

PARTS = (
    "apsw", "msgspec", "pydantic", "typer", "rich", "openai", "jsonschema-rs", "common-expression-language", "pynacl",
    "ruamel.yaml",
)


def version(context: typer.Context) -> None:
    """Show the version; with --verbose also Python's and those of the parts.

    Example: crewline version --verbose
    """
    from crewline import __version__
    from crewline.cli.output import Output

    settings = globals_.of(context)
    out = Output(settings)
    known: dict[str, str] = {"crewline": __version__}
    if settings.verbose or settings.json:
        known |= _parts()
    if settings.json:
        out.document(known)
    else:
        for name, which in known.items():
            out.put(f"{name} {which}" if name == "crewline" else f"{name:<28} {which}")


def _parts() -> dict[str, str]:
    import platform
    from importlib import metadata

    import apsw

    parts = {"python": platform.python_version(), "platform": platform.platform(), "sqlite": apsw.sqlite_lib_version()}
    for part in PARTS:
        try:
            parts[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            parts[part] = "not installed"
    return parts


def completion(
    context: typer.Context,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")] = "bash",
) -> None:
    """Print the completion script of a shell.

    Example: crewline completion bash > ~/.local/share/bash-completion/completions/crewline
    """
    from typer._completion_shared import get_completion_script

    from crewline.cli.output import Output

    Output(globals_.of(context)).put(
        get_completion_script(prog_name="crewline", complete_var="_CREWLINE_COMPLETE", shell=shell)
    )
