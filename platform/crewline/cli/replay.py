"""`crewline replay`: a run once more, from the log alone. No model is asked, no tool runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_

if TYPE_CHECKING:
    from crewline.cli.settings import Settings


def replay(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="The run's id, its start, or `last`.")] = "last",
) -> None:
    """Print a run again from the log, folded afresh. Two replays are the same, byte for byte.

    Nothing is asked and nothing runs: model replies, results, decisions and times are the log's. The last line
    is the digest of the conversations' states; equal logs give equal digests.

    Example: crewline replay last
    """
    asyncio.run(_replay(globals_.of(context), run))


async def _replay(settings: Settings, prefix: str) -> None:
    import hashlib

    from crewline.cli.live import LiveView, format_line, summary
    from crewline.cli.output import Output, to_json
    from crewline.cli.state import frames_of, open_client
    from crewline.conversation import ConversationView
    from crewline.events import TurnFinished

    out = Output(settings)
    async with open_client(settings) as client:
        turn, frames, reading = await frames_of(client, out, prefix)
    view, digest, encode = LiveView(verbose=settings.verbose), hashlib.sha256(), ConversationView().encode
    for conversation in sorted({frame.conversation for frame in frames}):
        digest.update(encode(reading.projection.states[conversation]))
    for frame in frames:
        lines = view.take(frame)
        if settings.json:
            out.document(frame.as_json())
        else:
            for line in lines:
                out.put(format_line(line, color=out.color_out))
    event = view.finished.event if view.finished is not None else None
    if settings.json:
        out.document({"type": "result", "run": turn.run, "status": turn.status, "digest": digest.hexdigest(),
                      "answer": event.answer if isinstance(event, TurnFinished) else None})
        return
    if isinstance(event, TurnFinished) and event.status == "done":
        out.put("")
        out.put(event.answer if isinstance(event.answer, str) else to_json(event.answer))
        out.put("")
    out.put(summary(view) or f"run {turn.run}  {turn.status}")
    out.put(f"state  sha256:{digest.hexdigest()}")
