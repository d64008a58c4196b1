"""`crewline run`: one request, a live view on stderr, the answer on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crewline.cli import settings as globals_
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.cli.asking import Ended
    from crewline.cli.output import Output

OnHoldOption = Literal["ask", "wait", "deny", "fail"]


def run(
    context: typer.Context,
    crew: Annotated[str, typer.Argument(help="A crew file, its folder, or the name of a crew that `up` runs.")],
    text: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="Read what to ask from a file; - is stdin.")] = None,
    conv: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this conversation.")] = None,
    user: Annotated[str | None, typer.Option(help="On whose behalf.")] = None,
    agent: Annotated[str | None, typer.Option(help="Whom to ask; default: the crew's entry agent.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Publish the request, print its id, leave.")] = False,
    timeout: Annotated[str | None, typer.Option(metavar="5m", help="Leave after this long; the run goes on.")] = None,
    on_hold: Annotated[
        OnHoldOption | None, typer.Option(help="What to do when a call is held; default: ask, or fail without a terminal.")
    ] = None,
    approve: Annotated[list[str] | None, typer.Option(metavar="TOOL", help="Approve calls of this tool.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the scripted model named `offline`.")] = False,
) -> None:
    """Ask a crew once, and wait for the answer.

    The answer alone goes to stdout, everything else to stderr. Ctrl-C asks whether to stop the run; Ctrl-C
    twice leaves it.

    Example: crewline run crew.yaml "Refund order A-1001" --user u-7
    """
    from crewline.cli import logs
    from crewline.cli.decide import Holds
    from crewline.cli.output import Output
    from crewline.cli.prompts import terminating
    from crewline.cli.session import open_session
    from crewline.cli.state import user_name
    from crewline.cli.text import seconds_of

    settings = globals_.of(context)
    out = Output(settings)
    logs.set_up(settings, tracebacks=False)
    asked = _text(text, file)
    timeout_s = None if timeout is None else seconds_of(timeout, "--timeout")
    holds = Holds(on_hold or ("ask" if settings.interactive else "fail"), user_name(), frozenset(approve or ()))
    with terminating(), open_session(
        settings, crew, overlays=overlay or (), offline=offline, roles=not detach, agent=agent
    ) as session:
        handle = session.background.run(
            session.client.publish(asked, agent=session.at.agent, user=user, conversation=conv)
        )
        if detach:
            out.say(session.goes_on(handle.intent))
            if settings.json:
                out.document({"run": handle.intent, "conversation": handle.conversation})
            else:
                out.put(handle.intent)
            return
        from crewline.cli.asking import Asking

        asking = Asking(session, out, holds, timeout_s=timeout_s)
        ended = asking.follow(handle)
        if settings.json:
            out.document(_result(ended, handle.intent, handle.conversation))
        elif ended.event is not None:
            _finish(out, ended, asking.closing(ended), session.reach)
        session.code = ended.code
    raise typer.Exit(ended.code)


def _text(text: str | None, file: str | None) -> str:
    if (text is None) == (file is None):
        raise UsageError("say what to ask: in quotes, or with --file", hint='crewline run crew.yaml "hello"')
    if text is not None:
        if not text.strip():
            raise UsageError("there is nothing to ask", hint='crewline run crew.yaml "hello"')
        return text
    assert file is not None
    try:
        read = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {file}: cannot be read: {error}", hint="name a text file, or - for stdin") from None
    if not read.strip():
        raise UsageError(f"--file {file} is empty", hint="write what to ask into it")
    return read


def _result(ended: Ended, run: str, conversation: str) -> dict[str, object]:
    event = ended.event
    result: dict[str, object] = {"type": "result", "status": ended.status, "run": run, "conversation": conversation}
    if event is not None:
        result |= {"agent": event.agent, "answer": event.answer, "reason": event.reason, "spent": event.spent}
    return result | {"exit_code": ended.code}


def _finish(out: Output, ended: Ended, closing: str, reach: str) -> None:
    event = ended.event
    assert event is not None
    assert ended.frame is not None
    if event.status == "done":
        out.say("")
        out.answer(ended.answer)
        out.say("")
    out.say(closing, tone="dim")
    show = f"crewline runs show {ended.frame.run}{reach}"
    if event.status == "done":
        out.say(f"trace:  {show}", tone="dim")
    else:
        reason = event.reason
        said = f"{reason.code}: {reason.say}" if reason is not None else f"the run {event.status}"
        out.say_error(reason.code if reason is not None else event.status, said, show)

