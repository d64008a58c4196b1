"""The live view: what a crew does, one line a happening, appended and never redrawn.

    00.8   triage    ⚙ search_orders(customer='alice')
    01.2   triage    ✓ 1 order                                    412 ms

`LiveView` turns frames into lines and knows no terminal; `printer.py` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from crewline import events as ev
from crewline.cli.arguments import one_line
from crewline.cli.text import clean, count, cut, duration, pad, paint, tone_of, width_of
from crewline.projection import Frame

WIDTH = 100
NAME_WIDTH = 9  # of "guardrail"
ASK, CALL, GOOD, BAD, HAND, HOLD = "›", "⚙", "✓", "✗", "→", "⏸"
_TONES = {GOOD: "green", BAD: "red", HOLD: "yellow"}


class Line(NamedTuple):
    """Something that happened, `at_s` seconds after the run began. `right` is a duration."""

    at_s: float
    who: str
    symbol: str
    text: str
    right: str = ""


@dataclass(slots=True)
class Seen:
    """A call as far as the view has seen it."""

    agent: str
    tool: str
    asked_ms: int


class LiveView:
    """Frames of one run, in order, to lines. Pure: the times are the log's.

    `run` names the run, where frames of an earlier one in the same conversation may come in between.
    `tools`, `agents`, `holds` count what was seen; `finished` is the run's end, once it is there.
    """

    def __init__(self, *, run: str | None = None, begin_ms: int | None = None, verbose: bool = False) -> None:
        self.run = run
        self.begin_ms = begin_ms
        self.agents: list[str] = []
        self.tools = 0
        self.holds = 0
        self.finished: Frame | None = None
        self.last_ms = 0
        self.streamed = ""
        self.busy = ""
        self._calls: dict[str, Seen] = {}
        self._verbose = verbose

    def take(self, frame: Frame) -> list[Line]:
        """Return the lines that a frame adds; none for what does not stand."""
        if self.begin_ms is None:
            self.begin_ms = frame.at_ms
        self.last_ms = max(self.last_ms, frame.at_ms)
        event = frame.event
        if event is None or frame.stands is False:
            say = "a record that does not count" if event is None else f"{frame.type} does not stand"
            return [self._line(frame, "log", BAD, f"{say} ({frame.id})")] if self._verbose else []
        match event:
            case ev.IntentPublished(reply_to=None):
                return [self._line(frame, event.user or "you", ASK, _text(event.input))]
            case ev.TurnStarted():
                self._meet(event.agent)
                self.busy = f"{event.agent} begins"
                return [self._line(frame, event.agent, ASK, f"turn {event.turn}")] if self._verbose else []
            case ev.ModelReplied():
                return self._replied(frame, event)
            case ev.ModelFailed():
                again = "" if event.retry_at_ms is None else f"; tried again in {_until(event.retry_at_ms, frame)}"
                return [self._line(frame, frame.agent or self._speaking, BAD, f"{event.code}: {event.say}{again}")]
            case ev.CallJudged():
                return self._judged(frame, event)
            case ev.ApprovalDecided():
                return [self._decided(frame, event)]
            case ev.CallCompleted():
                return self._completed(frame, event)
            case ev.CallResolved():
                words = {"ran": "says it ran", "not_run": "says it did not run", "give_up": "gave up on it"}
                tool = self._call(event.call).tool
                return [self._line(frame, event.by, GOOD, f"{words[event.resolution]}: {tool}")]
            case ev.DelegationChosen():
                self._meet(event.agent)
                why = event.candidates[0].why if event.candidates else ""
                said = f"{event.agent}  takes {event.capability}" + (f": {why}" if why else "")
                return [self._line(frame, self._call(event.call).agent, HAND, said)]
            case ev.CancelRequested():
                return [self._line(frame, event.by or "somebody", BAD, "asked to stop the turn")]
            case ev.RecordRejected():
                return [self._line(frame, "log", BAD, f"record rejected: {event.code}: {event.say}")]
            case ev.TurnFinished():
                return self._ended(frame, event)
            case ev.TokensStreamed(note=False):
                self.streamed += event.text
                self.busy = f"{event.agent} writes: {' '.join(self.streamed.split())[-60:]}"
                return []
            case ev.CallProgressed():
                share = f"{event.done:g}" + (f" of {event.total:g}" if event.total is not None else "")
                self.busy = f"{self._call(event.call).tool}: {share} {event.say}".rstrip()
                return []
        return []

    # --- what each event says ------------------------------------------------------------------

    def _replied(self, frame: Frame, event: ev.ModelReplied) -> list[Line]:
        self._meet(event.agent)
        self.streamed = ""
        lines = []
        if event.text.strip() and event.calls:
            lines.append(self._line(frame, event.agent, ASK, event.text))
        for k, call in enumerate(event.calls):
            self._calls[f"{frame.event_id}:c{k}"] = Seen(event.agent, call.name, frame.at_ms)
            self.tools += 1
            if call.name not in ("delegate", "handoff") or self._verbose:
                lines.append(self._line(frame, event.agent, CALL, one_line(call.name, call.arguments)))
        self.busy = f"{event.calls[0].name} is checked" if event.calls else f"{event.agent} is done"
        return lines

    def _judged(self, frame: Frame, event: ev.CallJudged) -> list[Line]:
        self._calls.setdefault(event.call, Seen(event.agent, event.tool, frame.at_ms))
        why = "; ".join(reason.say for reason in event.reasons)
        said = f": {why}" if why else ""
        self.busy = f"{event.tool} runs"
        if event.decision == "require_approval":
            self.holds += 1
            self.busy = f"{event.tool} waits for a person"
            return [self._line(frame, "guardrail", HOLD, f"{event.tool} held{said}")]
        if event.decision == "deny":
            return [self._line(frame, "guardrail", BAD, f"{event.tool} denied{said}")]
        if event.would:
            word = "denied" if event.would == "deny" else "held"
            return [self._line(frame, "guardrail", HOLD, f"{event.tool} allowed; not in shadow mode it would be {word}{said}")]
        if event.decision == "amend":
            now = one_line(event.tool, event.arguments or "")
            return [self._line(frame, "guardrail", GOOD, f"{now} (amended{said})")]
        return [self._line(frame, "guardrail", GOOD, f"{event.tool} allowed")] if self._verbose else []

    def _decided(self, frame: Frame, event: ev.ApprovalDecided) -> Line:
        note = f": {event.note}" if event.note else ""
        tool = self._call(event.call).tool
        if event.decision == "deny":
            return self._line(frame, event.by, BAD, f"denied {tool}{note}")
        if event.decision == "edit":
            return self._line(frame, event.by, GOOD, f"approved with changes: {one_line(tool, event.arguments or '')}{note}")
        return self._line(frame, event.by, GOOD, f"approved {tool}{note}")

    def _completed(self, frame: Frame, event: ev.CallCompleted) -> list[Line]:
        call = self._call(event.call)
        took = duration(event.duration_s) if event.duration_s else duration((frame.at_ms - call.asked_ms) / 1000)
        self.busy = f"{call.agent} thinks"
        if event.outcome == "ok" and call.tool == "handoff":
            return [self._line(frame, call.agent, HAND, event.output or "handed over")]
        if event.outcome == "ok":
            return [self._line(frame, call.agent, GOOD, event.output or "done", took)]
        if event.outcome == "unknown":
            said = f"nobody knows whether {call.tool} ran; crewline approvals resolve"
            return [self._line(frame, call.agent, HOLD, said, took)]
        if event.outcome == "abandoned":
            return []
        return [self._line(frame, call.agent, BAD, f"{call.tool}: {event.output or event.code or event.outcome}", took)]

    def _ended(self, frame: Frame, event: ev.TurnFinished) -> list[Line]:
        if event.intent == (self.run or frame.run):
            self.finished = frame
            return []
        if event.status == "done":
            return [self._line(frame, event.agent, GOOD, _text(event.answer))]
        why = event.reason.say if event.reason else event.status
        return [self._line(frame, event.agent, BAD, f"{event.status}: {why}")]

    def _line(self, frame: Frame, who: str, symbol: str, text: str, right: str = "") -> Line:
        at_s = max(0, frame.at_ms - (self.begin_ms or 0)) / 1000
        return Line(at_s, clean(who, one_line=True), symbol, clean(text, one_line=True), right)

    def _meet(self, agent: str) -> None:
        if agent and agent not in self.agents:
            self.agents.append(agent)

    @property
    def _speaking(self) -> str:
        return self.agents[-1] if self.agents else "agent"

    def _call(self, call: str) -> Seen:
        return self._calls.get(call) or Seen(self._speaking, "call", self.last_ms)


def summary(view: LiveView) -> str:
    """Return the line that ends a run: how it ended, how long it took, what it used."""
    frame = view.finished
    if frame is None or not isinstance(frame.event, ev.TurnFinished):
        return ""
    spent = frame.event.spent
    took = duration(max(0, frame.at_ms - (view.begin_ms or frame.at_ms)) / 1000)
    parts = [f"{frame.event.status} in {took}", count(len(view.agents), "agent"), count(view.tools, "call")]
    if view.holds:
        parts.append(count(view.holds, "approval"))
    if tokens := spent.input_tokens + spent.output_tokens:
        parts.append(count(tokens, "token"))
    if spent.cost_usd:
        parts.append(f"${spent.cost_usd:.4f}")
    return f"run {frame.run}  " + " · ".join(parts)


def format_line(line: Line, *, width: int = WIDTH, name_width: int = NAME_WIDTH, color: bool = False) -> str:
    """Return a line in `width` columns, its duration at the right edge."""
    head = f"{line.at_s:04.1f}   "
    who = pad(line.who, name_width)
    room = width - len(head) - width_of(who) - 3
    text = cut(line.text, room - (len(line.right) + 2 if line.right else 0))
    if line.right:
        text = pad(text, room - len(line.right)) + paint(line.right, "dim", on=color)
    name = paint(who, "bold" if line.symbol == ASK else tone_of(line.who), on=color)
    symbol = paint(line.symbol, _TONES.get(line.symbol, "dim"), on=color)
    return f"{paint(head, 'dim', on=color)}{name} {symbol} {text}"


def _text(value: object) -> str:
    from crewline.cli.output import to_json

    return value if isinstance(value, str) else to_json(value)


def _until(at_ms: int, frame: Frame) -> str:
    return duration(max(0, at_ms - frame.at_ms) / 1000)
