"""`crewline approvals`: what waits for a person, and what he decides."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app
from crewline.errors import NotFound, UsageError

if TYPE_CHECKING:
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings
    from crewline.client import Client
    from crewline.projection import Frame, OpenCall

app = new_app("What waits for a person: held calls (approve, edit, deny) and unknown ones (resolve).")

Call = Annotated[str, typer.Argument(help="The call's id or its start, or that of its conversation.")]
By = Annotated[str | None, typer.Option(help="Who decides; default: the operating system's user.")]
Decision = Literal["approve", "edit", "deny"]


@app.command("list")
def list_calls(context: typer.Context) -> None:
    """List what waits, oldest first.

    Example: crewline approvals list
    """
    asyncio.run(_list(globals_.of(context)))


async def _list(settings: Settings) -> None:
    from crewline.cli.arguments import one_line
    from crewline.cli.output import Output
    from crewline.cli.state import open_client, read_log
    from crewline.cli.text import ago, cut

    out = Output(settings)
    async with open_client(settings) as client:
        waiting = (await read_log(client, out)).projection.open_calls()
    now_ms = int(time.time() * 1000)
    if settings.json:
        out.document({"approvals": [document(each) for each in waiting]})
    elif not waiting:
        out.say("nothing waits for a person; crewline runs list shows what was asked")
    else:
        rows = [
            [each.id, each.call.status, each.agent, cut(one_line(each.call.name, each.arguments), 60), each.user or "",
             ago(each.call.since_ms, now_ms)]
            for each in waiting
        ]
        out.table(("call", "status", "agent", "wants", "user", "since"), rows)
        out.say(f"decide: crewline approvals show {waiting[0].id}{settings.as_options}", tone="dim")


def document(each: OpenCall) -> dict[str, Any]:
    """Return a waiting call for programs. `arguments` is the exact text."""
    verdict = each.call.verdict
    return {
        "call": each.id, "status": each.call.status, "conversation": each.conversation, "run": each.run,
        "agent": each.agent, "user": each.user, "tool": each.call.name, "arguments": each.arguments,
        "args_sha256": verdict.args_sha256 if verdict else None, "reasons": verdict.reasons if verdict else (),
        "approval": verdict.approval if verdict else None, "since_ms": each.call.since_ms,
        "execution": each.call.execution,
    }


@app.command("show")
def show(context: typer.Context, call: Call) -> None:
    """Show a waiting call: who asks, the exact arguments, why it waits.

    Example: crewline approvals show 7h2k
    """
    asyncio.run(_show(globals_.of(context), call))


async def _show(settings: Settings, prefix: str) -> None:
    from crewline.cli.decide import panel
    from crewline.cli.output import Output
    from crewline.cli.state import open_client

    out = Output(settings)
    async with open_client(settings) as client:
        found = await client.find_call(prefix)
    if settings.json:
        out.document(document(found))
        return
    for line in panel(found, color=out.color_out):
        out.put(line)
    if found.call.status == "held":
        out.say(f"crewline approvals approve {found.id}{settings.as_options}   (or edit, deny)", tone="dim")
    else:
        out.say("It was started, and nobody knows whether it ran. Look at the other side, then:", tone="yellow")
        out.say(f"crewline approvals resolve {found.id} ran|not-run|give-up{settings.as_options}", tone="dim")


@app.command("approve")
def approve(
    context: typer.Context, call: Call, by: By = None,
    note: Annotated[str, typer.Option(help="Kept in the log.")] = "",
) -> None:
    """Approve a held call, for exactly the bytes it shows.

    Example: crewline approvals approve 7h2k --by lead@shop
    """
    asyncio.run(_decide(globals_.of(context), call, "approve", by, note))


@app.command("deny")
def deny(
    context: typer.Context, call: Call, by: By = None,
    note: Annotated[str, typer.Option("--note", "--reason", help="Why; the agent reads it.")] = "",
) -> None:
    """Deny a held call; the agent is told, and why.

    Example: crewline approvals deny 7h2k --reason "ask for a photo first"
    """
    asyncio.run(_decide(globals_.of(context), call, "deny", by, note))


@app.command("edit")
def edit(
    context: typer.Context, call: Call, by: By = None,
    args: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="The new arguments; default: $EDITOR.")] = None,
    note: Annotated[str, typer.Option(help="Kept in the log.")] = "",
) -> None:
    """Approve a held call with other arguments; they are judged again.

    Example: crewline approvals edit 7h2k --args '{"order_id": "A-1001", "amount": 40}'
    """
    asyncio.run(_decide(globals_.of(context), call, "edit", by, note, given=args))


async def _decide(
    settings: Settings, prefix: str, decision: Decision, by: str | None, note: str, *, given: str | None = None
) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_client, user_name

    out, by = Output(settings), by or user_name()
    async with open_client(settings) as client:
        try:
            found = await client.find_call(prefix)
        except NotFound:
            if (earlier := await _decided(client, out, prefix)) is None:
                raise
            _say_decided(out, earlier)
            return
        if decision == "approve":
            await client.approve(found.id, by=by, note=note)
        elif decision == "deny":
            await client.deny(found.id, by=by, note=note)
        else:
            await client.edit(found.id, _arguments(found, given, interactive=settings.interactive), by=by, note=note)
        counts = await _decided(client, out, found.id, found.call.judgement)
    _say(out, found, decision, by, counts)


def _arguments(found: OpenCall, given: str | None, *, interactive: bool) -> str:
    from crewline.cli.decide import checked
    from crewline.cli.prompts import edited

    if given is None and not interactive:
        raise UsageError("nobody is here to edit", hint="--args '{…}', or --args @file.json")
    if given is None:
        return checked(edited(found.arguments))
    if not given.startswith("@"):
        return checked(given)
    try:
        return checked(Path(given[1:]).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--args {given}: cannot be read: {error}", hint="name a file after @") from None


async def _decided(client: Client, out: Output, prefix: str, judgement: int | None = None) -> Frame | None:
    """Return the decision that counts (the first in the log) on a call, of one judgement or of the last."""
    from crewline.cli.state import read_log
    from crewline.events import ApprovalDecided

    found = [
        frame for frame in (await read_log(client, out, lambda run: True)).frames
        if frame.stands and isinstance(frame.event, ApprovalDecided) and frame.event.call.startswith(prefix)
        and judgement in (None, frame.event.judgement)
    ]
    return found[-1] if found else None


_WORDS = {"approve": "approved", "edit": "changed and approved", "deny": "denied"}


def _say(out: Output, found: OpenCall, decision: Decision, by: str, counts: Frame | None) -> None:
    event: Any = counts.event if counts is not None else None
    ours = event is not None and (event.by, event.decision) == (by, decision)
    if not ours and counts is not None:
        _say_decided(out, counts)
    elif out.settings.json:
        out.document({"call": found.id, "decision": decision, "by": by, "counts": ours, "run": found.run})
    elif ours:
        watch = f"crewline runs watch {found.run}{out.settings.as_options}"
        out.say(f"{_WORDS[decision]}: {found.call.name}, by {by}; see it go on: {watch}")
    else:
        out.say("the call is closed already: the decision does not count", tone="yellow")


def _say_decided(out: Output, counts: Frame) -> None:
    """Say that somebody was first. A normal thing, no error."""
    from crewline.cli.text import clock

    event: Any = counts.event
    if out.settings.json:
        out.document({"call": event.call, "decision": event.decision, "by": event.by, "counts": False,
                      "at_ms": counts.at_ms, "run": counts.run})
    else:
        out.say(f"already {_WORDS[event.decision]} by {event.by} at {clock(counts.at_ms)[:19]}: the first decision counts",
                tone="yellow")


@app.command("resolve")
def resolve(
    context: typer.Context, call: Call,
    what: Annotated[Literal["ran", "not-run", "give-up"], typer.Argument(help="What became of it.")],
    by: By = None,
    output: Annotated[str, typer.Option(help="What it returned, if it ran; the agent reads it.")] = "",
) -> None:
    """Say what became of a call of which nobody knows whether it ran.

    `ran` closes it with --output, `not-run` lets it run again, `give-up` closes it as failed.

    Example: crewline approvals resolve 7h2k ran --output '{"refund_id": "rf_77"}'
    """
    if output and what != "ran":
        raise UsageError("--output goes with `ran` alone", hint=f"crewline approvals resolve {call} {what}")
    asyncio.run(_resolve(globals_.of(context), call, what, by, output))


_RESOLUTIONS: dict[str, Literal["ran", "not_run", "give_up"]] = {
    "ran": "ran", "not-run": "not_run", "give-up": "give_up",
}


async def _resolve(settings: Settings, prefix: str, what: str, by: str | None, output: str) -> None:
    from crewline.cli.output import Output
    from crewline.cli.state import open_client, user_name

    out, by = Output(settings), by or user_name()
    async with open_client(settings) as client:
        found = await client.find_call(prefix)
        if found.call.status != "unknown":
            raise UsageError(f"call {found.id} is held, not unknown", hint=f"crewline approvals approve {found.id}")
        await client.resolve(found.id, _RESOLUTIONS[what], by=by, output=output)
    if settings.json:
        out.document({"call": found.id, "resolution": _RESOLUTIONS[what], "by": by, "run": found.run})
    else:
        out.say(f"{what}: {found.call.name}, says {by}; see it go on: crewline runs watch {found.run}{settings.as_options}")
