"""Held calls: shown with everything that would run, decided by a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crewline import events as ev
from crewline.cli.arguments import by_line
from crewline.cli.output import Output
from crewline.cli.prompts import ask_line, edited
from crewline.cli.text import clean, duration, pad, paint, width_of
from crewline.errors import CrewlineError, NotFound, UsageError

if TYPE_CHECKING:
    from crewline.cli.background import Background
    from crewline.client import Client
    from crewline.projection import OpenCall

WIDTH = 96
OnHold = Literal["ask", "wait", "deny", "fail"]


@dataclass(frozen=True, slots=True)
class Holds:
    """What to do about held calls. `approve` names tools that are approved without asking; `by` who decides."""

    on_hold: OnHold
    by: str
    approve: frozenset[str] = frozenset()


class Decider:
    """Asks the person at the terminal about held calls, and writes what he says into the log."""

    def __init__(self, client: Client, background: Background, out: Output, by: str) -> None:
        self._client = client
        self._background = background
        self._out = out
        self._by = by

    def decide(self, call: str, decision: Literal["approve", "deny"], note: str = "") -> bool:
        """Approve or deny; return whether it was still open."""
        act = self._client.approve if decision == "approve" else self._client.deny
        try:
            self._background.run(act(call, by=self._by, note=note))
        except NotFound:
            self._out.say("somebody else has decided it already", tone="dim")
            return False
        return True

    def ask(self, call: str, over: Callable[[], bool]) -> bool:
        """Show a held call and ask until it is decided or left for later; return whether it was decided here.

        `over` says that somebody else decided meanwhile. Raises: KeyboardInterrupt on Ctrl-C.
        """
        try:
            held = self._background.run(self._client.find_call(call))
        except NotFound:
            return False
        for line in panel(held, color=self._out.color_err):
            self._out.insist(line)
        while True:
            said = ask_line("[a]pprove  [e]dit  [d]eny  [l]ater › ", over)
            match (said or "l").lower():
                case "a" | "approve":
                    return self.decide(held.id, "approve")
                case "d" | "deny":
                    note = ask_line("reason, for the agent (or Enter) › ", over)
                    return note is not None and self.decide(held.id, "deny", note)
                case "e" | "edit":
                    if self._edit(held):
                        return True
                case "l" | "later":
                    if not over():
                        self._out.say(f"it waits: crewline approvals approve {held.id}", tone="dim")
                    return False
                case _:
                    self._out.insist("a, e, d or l")

    def _edit(self, held: OpenCall) -> bool:
        try:
            arguments = edited(held.arguments)
            if arguments == held.arguments:
                self._out.insist("nothing was changed; `a` approves it as it is")
                return False
            self._background.run(self._client.edit(held.id, checked(arguments), by=self._by))
        except CrewlineError as error:
            self._out.insist(f"{error.message}" + (f"; {error.hint}" if error.hint else ""), tone="red")
            return False
        return True


def checked(arguments: str) -> str:
    """Return edited arguments. Raises: UsageError unless they are one JSON object."""
    from crewline.strict_json import decode_object

    try:
        decode_object(arguments)
    except CrewlineError as error:
        raise UsageError(f"the arguments are no JSON object: {error.message}", hint="write {…}") from None
    return arguments


def panel(held: OpenCall, *, color: bool, width: int = WIDTH) -> list[str]:
    """Return a held call in a frame: who asks, the exact arguments, why it is held, until when."""
    verdict = held.call.verdict
    body = [f"{clean(held.agent)} wants to run  {clean(held.call.name)}"]
    body += [f"  {line}" for line in by_line(held.arguments)]
    body += [f"Held: {clean(reason.say, one_line=True)}" for reason in (verdict.reasons if verdict else ())]
    if verdict is not None and verdict.approval is not None:
        left = (verdict.approval.deadline_ms - held.call.since_ms) / 1000
        who = ", ".join(verdict.approval.approvers)
        body.append(f"Nothing has run. For: {who}. Denied by itself after {duration(left)}.")
    else:
        body.append("Nothing has run.")
    inside = width - 4
    rows = [piece for line in body for piece in _wrapped(line, inside)]
    title = " approval needed "
    top = "╭─" + title + "─" * (width - 3 - len(title)) + "╮"
    bottom = "╰" + "─" * (width - 2) + "╯"
    edge = paint("│", "yellow", on=color)
    return [
        paint(top, "yellow", on=color),
        *(f"{edge} {pad(row, inside)} {edge}" for row in rows),
        paint(bottom, "yellow", on=color),
    ]


def _wrapped(line: str, width: int) -> list[str]:
    """Return a line in pieces of `width` columns: arguments are shown whole, however long."""
    pieces, piece, used = [], "", 0
    for char in line:
        wide = width_of(char)
        if used + wide > width:
            pieces.append(piece)
            piece, used = "    ", 4
        piece += char
        used += wide
    return [*pieces, piece]


def held_by(frame_event: ev.Event | None) -> ev.CallJudged | None:
    """Return the verdict, if an event holds a call."""
    if isinstance(frame_event, ev.CallJudged) and frame_event.decision == "require_approval":
        return frame_event
    return None
