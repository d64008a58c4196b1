"""A run as a tree with its waterfall: turns, steps, calls, and when each was at work.

    Refund order A-1001                                        done   7.2 s
    └─ frontdesk                                               ▐████████████▌  7.2 s
       ├─ step 1                                               ▐██          ▌  0.8 s
       │  └─ search_orders(customer='alice')  ✓ 1 order        ▐  █         ▌  412 ms
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crewline import events as ev
from crewline.cli.arguments import one_line
from crewline.cli.text import clean, cut, duration, pad, paint, tone_of, width_of
from crewline.projection import Frame

COLUMNS = ("at", "offset", "type", "agent", "counts", "data")
NAME_WIDTH = 62
BAR_WIDTH = 24
_DATA_WIDTH = 80


@dataclass(slots=True)
class Node:
    """A part of a run: when it began and ended (Unix ms; None: still open), what is below it."""

    id: str
    title: str
    agent: str
    begin_ms: int
    end_ms: int | None = None
    note: str = ""
    held: list[tuple[int, int | None]] = field(default_factory=list)
    below: list[Node] = field(default_factory=list)


def tree(run: dict[str, Any], frames: Sequence[Frame], *, color: bool = False) -> list[str]:
    """Return the run as lines: a heading, the tree with bars, and what it came to."""
    roots = nodes_of(frames)
    begin = frames[0].at_ms
    end = max(frame.at_ms for frame in frames)
    asked = run["asked"] if isinstance(run["asked"], str) else msgspec.json.encode(run["asked"]).decode()
    lines = [paint(cut(clean(asked, one_line=True), 100), "bold", on=color)]
    facts = [f"run {run['run']}", run["status"]]
    if run["took_s"] is not None:
        facts.append(duration(run["took_s"]))
    if run["tokens"]:
        facts.append(f"{run['tokens']:,} tokens")
    if run["cost_usd"]:
        facts.append(f"${run['cost_usd']:.4f}")
    if run["user"]:
        facts.append(f"for {clean(run['user'], one_line=True)}")
    lines += [paint(" · ".join(facts), "dim", on=color), ""]
    for root in roots:
        lines += _branch(root, "", "", begin, end, color)
    if run["reason"] is not None:
        lines += ["", f"{run['reason'].code}: {clean(run['reason'].say, one_line=True)}"]
    elif run["answer"] is not None:
        answer = run["answer"] if isinstance(run["answer"], str) else msgspec.json.encode(run["answer"]).decode()
        lines += ["", clean(answer)]
    elif run["status"] == "needs you":
        lines += ["", "a call waits for a person: crewline approvals list"]
    return lines


def nodes_of(frames: Sequence[Frame]) -> list[Node]:
    """Return the turns of a run, steps and calls below them, delegated turns below their call."""
    maker = _Maker()
    for frame in frames:
        if frame.stands is not False and frame.event is not None:
            maker.take(frame, frame.event)
    return maker.roots


class _Maker:
    def __init__(self) -> None:
        self.roots: list[Node] = []
        self._nodes: dict[str, Node] = {}
        self._turns: dict[str, Node] = {}  # the open turn of each conversation
        self._open_step: dict[str, tuple[str, int]] = {}  # conversation: (agent, since)
        self._children: dict[str, Node] = {}  # child conversation: the call that delegated

    def take(self, frame: Frame, event: ev.Event) -> None:
        key = frame.conversation
        match event:
            case ev.TurnStarted():
                node = Node(frame.event_id, event.agent, event.agent, frame.at_ms)
                above = self._children.get(key)
                (above.below if above is not None else self.roots).append(node)
                self._turns[key] = self._nodes[frame.event_id] = node
                self._open_step[key] = (event.agent, frame.at_ms)
            case ev.ModelReplied():
                self._step(frame, event)
            case ev.ModelFailed():
                since = self._open_step.get(key, ("", frame.at_ms))[1]
                note = f"✗ {event.code}: {event.say}"
                self._add(key, Node(frame.event_id, f"attempt {event.attempt}", "", since, frame.at_ms, note))
                self._open_step[key] = (self._open_step.get(key, ("", 0))[0], frame.at_ms)
            case ev.CallJudged() if (call := self._nodes.get(event.call)) is not None:
                if event.decision == "require_approval":
                    call.held.append((frame.at_ms, None))
                    call.note = "⏸ held: " + "; ".join(reason.say for reason in event.reasons)
                elif event.decision == "deny":
                    call.end_ms, call.note = frame.at_ms, "✗ denied: " + "; ".join(reason.say for reason in event.reasons)
                    self._open_step[key] = (event.agent, frame.at_ms)
                elif event.arguments is not None:
                    call.title = one_line(event.tool, event.arguments)
            case ev.ApprovalDecided() if (call := self._nodes.get(event.call)) is not None:
                if call.held:
                    call.held[-1] = (call.held[-1][0], frame.at_ms)
                word = {"approve": "✓ approved", "edit": "✓ changed and approved", "deny": "✗ denied"}[event.decision]
                call.note = f"{word} by {event.by}" + (f": {event.note}" if event.note else "")
                if event.decision == "deny":
                    call.end_ms = frame.at_ms
                    self._open_step[key] = (call.agent, frame.at_ms)
            case ev.CallCompleted() if (call := self._nodes.get(event.call)) is not None:
                self._completed(frame, event, call)
            case ev.CallResolved() if (call := self._nodes.get(event.call)) is not None:
                call.note = f"{event.resolution.replace('_', ' ')}, says {event.by}"
                call.end_ms = None if event.resolution == "not_run" else frame.at_ms
                self._open_step[key] = (call.agent, frame.at_ms)
            case ev.DelegationChosen() if (call := self._nodes.get(event.call)) is not None:
                call.note = f"→ {event.agent}"
                self._children[event.child] = call
            case ev.IntentAnswered() if (call := self._nodes.get(frame.event_id.rpartition(":x")[0])) is not None:
                call.end_ms = frame.at_ms
                self._open_step[key] = (call.agent, frame.at_ms)
            case ev.TurnFinished() if (turn := self._turns.get(key)) is not None and turn.end_ms is None:
                turn.end_ms = frame.at_ms
                turn.note = event.status if event.reason is None else f"{event.status}: {event.reason.say}"

    def _step(self, frame: Frame, event: ev.ModelReplied) -> None:
        key = frame.conversation
        since = self._open_step.get(key, ("", frame.at_ms))[1]
        number = frame.event_id.rpartition(":s")[2]
        said = " ".join(event.text.split())
        step = Node(frame.event_id, f"step {number}", event.agent, since, frame.at_ms, f"“{said}”" if said else "")
        self._add(key, step)
        for k, call in enumerate(event.calls):
            node = Node(f"{frame.event_id}:c{k}", one_line(call.name, call.arguments), event.agent, frame.at_ms)
            self._nodes[node.id] = node
            self._add(key, node)

    def _completed(self, frame: Frame, event: ev.CallCompleted, call: Node) -> None:
        said = " ".join((event.output or event.code or event.outcome).split())
        call.note = {"ok": f"✓ {said}", "unknown": "⏸ unknown whether it ran"}.get(event.outcome, f"✗ {said}")
        call.end_ms = None if event.outcome == "unknown" else frame.at_ms
        self._open_step[frame.conversation] = (call.agent, frame.at_ms)

    def _add(self, conversation: str, node: Node) -> None:
        turn = self._turns.get(conversation)
        (turn.below if turn is not None else self.roots).append(node)


def _branch(node: Node, lead: str, below: str, begin: int, end: int, color: bool) -> list[str]:
    title = f"{node.title}  {node.note}" if node.note else node.title
    text = pad(cut(clean(title, one_line=True), NAME_WIDTH - width_of(lead)), NAME_WIDTH - width_of(lead))
    took = duration(((node.end_ms if node.end_ms is not None else end) - node.begin_ms) / 1000)
    bar = paint(_bar(node, begin, end), tone_of(node.agent), on=color)
    open_ = "" if node.end_ms is not None else " …"
    lines = [f"{paint(lead, 'dim', on=color)}{text} ▐{bar}▌ {took:>8}{open_}"]
    for each, last in _with_last(node.below):
        lines += _branch(each, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), begin, end, color)
    return lines


def _bar(node: Node, begin: int, end: int) -> str:
    """Return where a node was at work, in the run's whole time; waiting for a person is hatched."""
    whole = max(1, end - begin)

    def place(at_ms: int | None) -> float:
        return ((end if at_ms is None else at_ms) - begin) / whole * BAR_WIDTH

    first = min(BAR_WIDTH - 1, int(place(node.begin_ms)))
    after = max(first + 1, min(BAR_WIDTH, round(place(node.end_ms))))
    cells = [" "] * first + ["█"] * (after - first) + [" "] * (BAR_WIDTH - after)
    for since, until in node.held:
        for cell in range(int(place(since)), min(after, round(place(until)))):
            cells[cell] = "░"
    return "".join(cells)


def _with_last(nodes: Sequence[Node]) -> Iterator[tuple[Node, bool]]:
    for index, node in enumerate(nodes):
        yield node, index == len(nodes) - 1


def row(frame: Frame, begin_ms: int) -> list[str]:
    """Return a frame as a row of the table of a run."""
    counts = {True: "yes", False: "no", None: "?"}[frame.stands]
    data = frame.data.decode("utf-8", "replace")
    return [f"{(frame.at_ms - begin_ms) / 1000:.3f}", frame.id, frame.type, frame.agent, counts, cut(data, _DATA_WIDTH)]
