"""`crewline demo` and `crewline init`: from an installed package to a first answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crewline.cli import settings as globals_

# What the templates' scripts have an answer to. Those that are not here are asked by triggers.
_QUESTIONS = {"support": "My lamp arrived broken, order A-1001. Can I have my money back?", "hello": "hello"}


def demo(
    context: typer.Context,
    kill: Annotated[bool, typer.Option("--kill", help="Kill the crew's process in mid-payment, and start it again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve the refund without asking.")] = False,
) -> None:
    """Run the support crew offline: a question, a delegation, two tools, an approval, a refund.

    No key, no server, nothing outside the state folder.

    Example: crewline demo --kill --yes
    """
    from crewline.cli import demo as lead
    from crewline.cli import logs
    from crewline.cli.live import LiveView, summary
    from crewline.cli.output import Output
    from crewline.cli.printer import Printer
    from crewline.projection import Frame

    settings = globals_.of(context)
    out = Output(settings)
    logs.set_up(settings, tracebacks=False)
    view, printer = LiveView(verbose=settings.verbose), Printer(out)

    def show(frame: Frame) -> None:
        if settings.json:
            out.document(frame.as_json())
        view_lines = view.take(frame)
        if not settings.json:
            printer.show(view_lines)

    answer = lead.demo(state=settings.state, kill=kill, yes=yes or not settings.interactive, show=show, say=out.say)
    if settings.json:
        out.document({"type": "result", "status": "done", "answer": answer})
        return
    out.say("")
    out.answer(answer)
    out.say("")
    out.say(summary(view), tone="dim")
    out.say("make it yours: crewline init my-crew", tone="dim")


def init(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder.")],
    template: Annotated[str, typer.Option(help="Which crew to start from.")] = "support",
) -> None:
    """Write a new crew into a folder: crew.yaml, tools, scripts, tests.

    Example: crewline init my-crew
    """
    from crewline.cli import init as lead
    from crewline.cli.output import Output

    settings = globals_.of(context)
    out = Output(settings)
    written = []
    for path in lead.init(directory, template=template):
        written.append(str(path))
        out.say(str(path))
    if settings.json:
        out.document({"directory": str(directory), "files": written})
    else:
        question = _QUESTIONS.get(template)
        asked = f'run . "{question}" --offline --user u-7' if question else "up . --offline"
        out.say(f"\nnext: cd {directory} && crewline {asked}", tone="dim")
