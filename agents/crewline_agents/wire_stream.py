"""One reply from raw chunks (or one body), by rules that assume nothing about the endpoint.

The SDK's own assembler joins repeated names, melts calls that share an index and takes a cut stream
for a whole one; so chunks are read here as plain dicts, and what is missing, null or of another type
says nothing. A stream is whole when a finish reason was seen; a body is whole when it parses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crewline.errors import ModelError

from crewline_agents.base import Finish, Note, Reply, TextDelta, Usage
from crewline_agents.wire_calls import CallDrafts
from crewline_agents.wire_errors import error_in, failed, judge, read_json
from crewline_agents.wire_sse import SseEvent
from crewline_agents.wire_text import TextRun, encodable, encodable_json

Piece = TextDelta | Note

_LENGTH = {"length", "max_tokens", "max_output_tokens", "model_length", "max_completion_tokens"}
_CALLS = {"tool_calls", "tool_call", "function_call", "tool_use"}
_FILTERED = {
    "content_filter",
    "content_filtered",
    "safety",
    "prohibited_content",
    "blocklist",
    "recitation",
    "sensitive",
}
_BROKEN = {
    "error", "abort", "aborted", "cancelled", "canceled", "network_error",
    "insufficient_system_resource", "malformed_function_call",
}  # fmt: skip
_REASONING = ("reasoning_content", "reasoning")


class Assembler:
    """Gathers one reply.

    Args:
        names: the tools offered, by the name the model knows.
        seed: what the ids are made from that the wire did not give.
        model: the model asked for, if the endpoint names none.
    """

    def __init__(self, names: Mapping[str, str], *, seed: str, model: str = "", secret: str = "") -> None:
        self._names = names
        self._seed = seed
        self._model = model
        self._secret = secret
        self._text = TextRun()
        self._refusal = TextRun()
        self._reasoning = {name: TextRun() for name in _REASONING}
        self._echo: dict[str, Any] = {}
        self._calls = CallDrafts()
        self._usage: Usage | None = None
        self._finish = ""
        self._events = 0
        self.done = False
        """The end mark was seen: nothing more is waited for."""

    @property
    def whole(self) -> bool:
        """Was a finish reason seen? Then a broken connection takes nothing away."""
        return bool(self._finish)

    def event(self, event: SseEvent) -> tuple[list[Piece], bool]:
        """Take one event; return what can be shown, and whether the model said anything by it.

        An event that says nothing (a ping, an empty delta) is no progress.

        Raises: ModelError: the event is an error, or no JSON.
        """
        data = event.data.strip()
        if data.startswith("[DONE]"):
            self.done = True
            return [], True
        chunk = self._decoded(event)
        if isinstance(chunk, list) and len(chunk) == 1:
            chunk = chunk[0]  # Google wraps its errors in a list
        if event.name == "error":
            raise judge(chunk, secret=self._secret)
        if not isinstance(chunk, dict):
            return [], False
        self._events += 1
        if error_in(chunk):
            raise judge(chunk, secret=self._secret)
        return self._chunk(chunk)

    def body(self, text: str) -> list[Piece]:
        """Take a whole body.

        Raises: ModelError: it is an error, no JSON, or holds no message.
        """
        try:
            body = read_json(text)
        except ValueError:
            raise failed("the body is not whole, or not JSON") from None
        if isinstance(body, list) and len(body) == 1:
            body = body[0]
        if not isinstance(body, dict):
            raise judge(body, secret=self._secret)
        if error_in(body):
            raise judge(body, secret=self._secret)
        choice = _first(body.get("choices"))
        message = choice.get("message") if choice is not None else None
        if choice is None or not isinstance(message, dict):
            raise failed("the reply holds no message")
        pieces, _ = self._message(message, whole=True)
        self._counts(body, choice)
        self._finish = _word(choice.get("finish_reason")) or "stop"
        return pieces

    def reply(self) -> Reply:
        """Return what was said, all of it.

        Raises: ModelError: it is not whole, empty, or stopped by a filter.
        """
        finish = self._finish.lower()
        if not finish:
            if self._calls:
                raise failed("the stream ended inside a tool call")
            raise failed(
                "the stream ended without a finish reason" if self._events else "the stream held no event"
            )
        if finish in _FILTERED:
            raise ModelError("the provider's content filter stopped the answer", retryable=False)
        if finish in _BROKEN:
            raise failed(f"the server broke the answer off ({finish})")
        calls, some_whole = self._calls.finish(self._names, seed=self._seed, cut=finish in _LENGTH)
        text, refusal = self._text.text, self._refusal.text
        if finish in _CALLS and not calls:
            raise failed("the server announced a tool call and gave none")
        if not (text or calls or refusal):
            hint = (
                "raise max_output_tokens: the limit was reached before the answer"
                if finish in _LENGTH
                else None
            )
            raise failed("the reply is empty: no text and no call", hint=hint)
        ends: Finish = "length" if finish in _LENGTH else "stop"
        echo = dict(self._echo)
        if calls:
            # Next to a call reasoning must go back; beside a plain answer some endpoints refuse it.
            echo |= {name: run.text for name, run in self._reasoning.items() if run.text}
        return Reply(
            text=text,
            calls=calls,
            finish="tool_calls" if some_whole else ends,
            usage=self._usage,
            model=self._model,
            refusal=refusal or None,
            echo=encodable_json(echo) or None,
        )

    def rest(self) -> list[Piece]:
        """Return the text held back for the other half of a character that never came."""
        rest = self._text.end()
        return [TextDelta(rest)] if rest else []

    def _decoded(self, event: SseEvent) -> Any:
        lines = [line for line in event.lines if not line.lstrip().startswith(":")]
        for text in (event.data, "\n".join(lines)):
            try:
                return read_json(text)
            except ValueError:
                continue
        if event.name == "error":
            return event.data
        if not any(line.strip() for line in lines):
            return None  # a comment that was wrapped as data
        raise failed("the stream holds data that is not JSON")

    def _chunk(self, chunk: dict[str, Any]) -> tuple[list[Piece], bool]:
        model = chunk.get("model")
        if isinstance(model, str) and model:
            self._model = encodable(model)
        choice = _first(chunk.get("choices"))
        counted = self._counts(chunk, choice or {})
        if choice is None:
            return [], counted
        delta = choice.get("delta")
        pieces, said = self._message(delta) if isinstance(delta, dict) else ([], False)
        finish = _word(choice.get("finish_reason"))
        said |= bool(finish) and finish != self._finish
        self._finish = finish or self._finish
        return pieces, said or counted

    def _message(self, message: dict[str, Any], *, whole: bool = False) -> tuple[list[Piece], bool]:
        pieces: list[Piece] = []
        thought = ""
        for name in _REASONING:
            value = message.get(name)
            if isinstance(value, str) and value:
                shown = self._reasoning[name].add(value)
                if value != thought:  # some servers send both names with the same text
                    pieces.append(Note(shown))
                thought = value
        details = message.get("reasoning_details")
        if isinstance(details, list) and details:
            self._echo.setdefault("reasoning_details", []).extend(details)
        if message.get("extra_content"):
            self._echo["extra_content"] = message["extra_content"]
        text, notes, refusal = _content(message.get("content"))
        pieces += [Note(encodable(note)) for note in notes]
        if isinstance(message.get("refusal"), str):
            refusal += message["refusal"]
        if text:
            shown = self._text.add(text)
            if shown:
                pieces.append(TextDelta(shown))
        if refusal:
            self._refusal.add(refusal)
        called = self._calls.add(message.get("tool_calls"), whole=whole)
        called |= self._calls.add_legacy(message.get("function_call"))
        return pieces, bool(pieces or text or refusal or called or details)

    def _counts(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bool:
        groq = chunk.get("x_groq")
        places = (
            chunk.get("usage"),
            choice.get("usage"),
            groq.get("usage") if isinstance(groq, dict) else None,
        )
        for usage in places:
            if not isinstance(usage, dict):
                continue
            counts = Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
            if counts != Usage() and counts != self._usage:
                self._usage = counts
                return True
        return False


def _content(content: Any) -> tuple[str, list[str], str]:
    """Return text, notes and refusal of a content: a text, or a list of typed parts."""
    if isinstance(content, str):
        return content, [], ""
    text, refusal, notes = "", "", []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text += part
        if not isinstance(part, dict):
            continue
        match part.get("type"):
            case "text" | "output_text" if isinstance(part.get("text"), str):
                text += part["text"]
            case "refusal" if isinstance(part.get("refusal"), str):
                refusal += part["refusal"]
            case "thinking" | "reasoning":
                said, _, _ = _content(part.get("thinking") or part.get("text"))
                notes += [said] if said else []
    return text, notes, refusal


def _first(choices: Any) -> dict[str, Any] | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
