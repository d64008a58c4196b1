"""`crewline runs`: what was asked, what became of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app

if TYPE_CHECKING:
    from crewline.cli.output import Output
    from crewline.cli.settings import Settings
    from crewline.conversation import Conversation
    from crewline.projection import Projection, TurnSummary

app = new_app("What was asked, and what became of it. Ids may be shortened to their first characters.")

STATUSES = ("queued", "working", "needs you", "retrying", "done", "failed", "cancelled", "stalled")
STALLED_MS = 60_000  # without a record, while work is open
COLUMNS = ("run", "status", "agent", "started", "took", "calls", "holds", "tokens", "cost", "asked")


@app.command("list")
def list_runs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help=f"Only these: {', '.join(STATUSES)}.")] = None,
    since: Annotated[str | None, typer.Option(metavar="1h", help="Started since: a duration or a time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
) -> None:
    """List runs, newest first.

    Example: crewline runs list --status failed --since 1h
    """
    from crewline.cli.output import Output
    from crewline.cli.text import moment_of
    from crewline.errors import UsageError

    if status is not None and status not in STATUSES:
        raise UsageError(f"--status {status!r} is unknown", hint=f"one of: {', '.join(STATUSES)}")
    settings = globals_.of(context)
    since_ms = 0 if since is None else moment_of(since, "--since")
    asyncio.run(_list(settings, Output(settings), status, since_ms, limit))


async def _list(settings: Settings, out: Output, status: str | None, since_ms: int, limit: int) -> None:
    from crewline.cli.state import open_client, read_log

    async with open_client(settings) as client:
        projection = (await read_log(client, out)).projection
    found = [run for run in runs_of(projection) if run["started_ms"] >= since_ms and status in (None, run["status"])]
    shown = found[:limit]
    if settings.json:
        out.document({"runs": shown})
    elif not shown:
        filtered = status is not None or since_ms
        out.say("no run fits; crewline runs list shows all" if filtered else 'no runs yet; ask: crewline run crew.yaml "hello"')
    else:
        out.table(COLUMNS, [_row(run) for run in shown], right=("took", "calls", "holds", "tokens", "cost"))
        if len(found) > limit:
            out.say(f"{len(found) - limit} older ones: --limit {len(found)}", tone="dim")


def runs_of(projection: Projection) -> list[dict[str, Any]]:
    """Return every run as a document, newest first; intents that wait for their turn among them."""
    from crewline.projection import is_part

    now_ms = int(time.time() * 1000)
    tops = [turn for turn in projection.turns.values() if not turn.delegated]
    parts: dict[str, list[TurnSummary]] = {}
    for turn in projection.turns.values():
        parts.setdefault(turn.run, []).append(turn)
    runs = [_run(turn, parts[turn.run], projection.states[turn.conversation], now_ms) for turn in tops]
    for state, intent in projection.queued():
        queued = next(each for each in state.queue if each.id == intent)
        if not is_part(queued):
            asked = queued.intent
            runs.append({
                "run": queued.run, "conversation": state.id, "turn": None, "status": "queued",
                "agent": asked.agent or asked.capability or "", "started_ms": queued.at_ms, "took_s": None, "calls": 0,
                "holds": 0, "tokens": 0, "cost_usd": 0.0, "user": asked.user, "asked": asked.input, "answer": None,
                "reason": None, "agents": [],
            })
    return sorted(runs, key=lambda run: (run["started_ms"], run["run"]), reverse=True)


def _run(turn: TurnSummary, parts: list[TurnSummary], state: Conversation, now_ms: int) -> dict[str, Any]:
    status = turn.status
    if status in ("working", "retrying") and now_ms - state.last_ms > STALLED_MS:
        status = "stalled"
    if status == "working" and any(part.status == "needs you" for part in parts):
        status = "needs you"
    took_s = None if turn.finished_ms is None else (turn.finished_ms - turn.started_ms) / 1000
    return {
        "run": turn.run, "conversation": turn.conversation, "turn": turn.turn, "status": status, "agent": turn.agent,
        "started_ms": turn.started_ms, "took_s": took_s, "calls": sum(len(part.tools) for part in parts),
        "holds": sum(part.holds for part in parts), "tokens": turn.spent.input_tokens + turn.spent.output_tokens,
        "cost_usd": turn.spent.cost_usd, "user": turn.user, "asked": turn.text, "answer": turn.answer,
        "reason": turn.reason, "agents": list(dict.fromkeys(agent for part in parts for agent in part.agents)),
    }


def _row(run: dict[str, Any]) -> list[str]:
    from crewline.cli.output import to_json
    from crewline.cli.text import clock, cut, duration

    asked = run["asked"] if isinstance(run["asked"], str) else to_json(run["asked"])
    return [
        run["run"], run["status"], run["agent"], clock(run["started_ms"])[:19],
        "" if run["took_s"] is None else duration(run["took_s"]), str(run["calls"]), str(run["holds"]),
        f"{run['tokens']:,}", f"${run['cost_usd']:.4f}" if run["cost_usd"] else "", cut(" ".join(asked.split()), 40),
    ]


@app.command("show")
def show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="The run's id, its start, or `last`.")],
    format: Annotated[Literal["tree", "table", "json"], typer.Option(help="How to show it.")] = "tree",
) -> None:
    """Show a run: who did what, in which order, for how long.

    Example: crewline runs show last
    """
    from crewline.cli.output import Output

    settings = globals_.of(context)
    asyncio.run(_show(settings, Output(settings), run, "json" if settings.json else format))


async def _show(settings: Settings, out: Output, prefix: str, format: str) -> None:
    from crewline.cli import runs_view
    from crewline.cli.state import frames_of, open_client

    async with open_client(settings) as client:
        turn, frames, reading = await frames_of(client, out, prefix)
    document = next(run for run in runs_of(reading.projection) if run["run"] == turn.run)
    if format == "json":
        out.document(document | {"events": [frame.as_json() for frame in frames]})
    elif format == "table":
        out.table(runs_view.COLUMNS, [runs_view.row(frame, frames[0].at_ms) for frame in frames], right=("at",))
    else:
        for line in runs_view.tree(document, frames, color=out.color_out):
            out.put(line)


@app.command("watch")
def watch(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="The run's id, its start, or `last`.")],
) -> None:
    """Watch a run from its beginning to its end; the answer goes to stdout.

    Example: crewline runs watch 7h2k
    """
    from crewline.cli.output import Output

    settings = globals_.of(context)
    raise typer.Exit(asyncio.run(_watch(settings, Output(settings), run)))


async def _watch(settings: Settings, out: Output, prefix: str) -> int:
    from crewline.cli import output as codes
    from crewline.cli.live import LiveView, summary
    from crewline.cli.output import to_json
    from crewline.cli.printer import Printer
    from crewline.cli.state import follow_run, open_client
    from crewline.events import TurnFinished

    view, printer = LiveView(verbose=settings.verbose), Printer(out)
    async with open_client(settings) as client:
        async for frame in follow_run(client, out, prefix):
            if frame is None:
                printer.footer(view.busy or "waiting")
                continue
            if settings.json:
                out.document(frame.as_json())
            lines = view.take(frame)
            if lines and not settings.json:
                printer.show(lines)
            if view.finished is not None:
                break
    printer.clear()
    event = view.finished.event if view.finished is not None else None
    assert isinstance(event, TurnFinished)
    code = {"done": codes.OK, "failed": codes.FAILED, "cancelled": codes.CANCELLED}[event.status]
    if settings.json:
        out.document({"type": "result", "status": event.status, "run": view.finished.run if view.finished else "",
                      "answer": event.answer, "reason": event.reason, "spent": event.spent, "exit_code": code})
        return code
    if event.status == "done":
        out.say("")
        out.answer(event.answer if isinstance(event.answer, str) else to_json(event.answer))
        out.say("")
    out.say(summary(view), tone="dim")
    if event.status != "done":
        out.say_error(event.reason.code if event.reason else event.status, event.reason.say if event.reason else event.status,
                      f"crewline runs show {view.finished.run if view.finished else ''}")
    return code


@app.command("cancel")
def cancel(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="The run's id, its start, or `last`.")],
    by: Annotated[str | None, typer.Option(help="Who stops it; default: the operating system's user.")] = None,
) -> None:
    """Ask for a run to be stopped. Running tools end first; the log says who asked.

    Example: crewline runs cancel 7h2k
    """
    from crewline.cli.output import Output
    from crewline.cli.state import user_name

    settings = globals_.of(context)
    asyncio.run(_cancel(settings, Output(settings), run, by or user_name()))


async def _cancel(settings: Settings, out: Output, prefix: str, by: str) -> None:
    from crewline.cli.state import open_client, read_log
    from crewline.errors import NotFound, UsageError

    async with open_client(settings) as client:
        found = [run for run in runs_of((await read_log(client, out)).projection)
                 if run["run"].startswith(prefix) or prefix == "last"]
        if not found:
            raise NotFound(f"no run has an id that starts with {prefix!r}", hint="crewline runs list")
        if len({run["run"] for run in found}) > 1 and prefix != "last":
            raise UsageError(f"{prefix!r} fits {len(found)} runs", hint="give more characters of the id")
        run = found[0]
        asked = run["status"] not in ("done", "failed", "cancelled")
        if asked:
            await client.cancel(run["conversation"], by=by, intent=run["run"])
    if settings.json:
        out.document({"run": run["run"], "status": run["status"], "asked": asked, "by": by})
    elif asked:
        out.say(f"asked to stop run {run['run']}; see it end: crewline runs watch {run['run']}")
    else:
        out.say(f"run {run['run']} is {run['status']} already: crewline runs show {run['run']}")
