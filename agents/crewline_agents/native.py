"""The native brain: one step is one attempt at an OpenAI-compatible `/chat/completions`.

wire_request.py  what is sent
wire_sse.py      bytes to events
wire_stream.py   events to a reply, with wire_calls.py for its tool calls
wire_errors.py   what a failure means, with wire_waits.py for how long to wait

Nothing is tried twice here: the worker does that, from the log. The one exception is a server that
refuses the name of a parameter; then the request goes out once more without it, since nothing was done.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from crewline.errors import ModelError, UsageError

from crewline_agents.base import StepItem, StepRequest, TextDelta
from crewline_agents.wire_errors import failed, judge, judge_exception, page_instead, read_json
from crewline_agents.wire_request import WireNames, messages_for, tools_for
from crewline_agents.wire_sse import SseDecoder
from crewline_agents.wire_stream import Assembler, Piece

TAIL_S_MAX = 5.0  # after the finish reason only usage and the end mark are still to come
BODY_BYTES_MAX = 33_554_432
_UNKNOWN_WORDS = re.compile(
    r"unsupported|not supported|does not (support|take|accept)|unknown|unrecogni[sz]ed|unexpected|not allowed"
    r"|not permitted|extra_forbidden|extra fields|max_completion_tokens",
    re.IGNORECASE,
)
_BLANK = b" \t\r\n\xef\xbb\xbf"


@dataclass(frozen=True)
class NativeOptions:
    """How to reach a model.

    timeout_s: the whole attempt, connecting included. silence_s: the longest wait for the model to say
    something more (keep-alives do not count); it begins when the request is sent, and applies to streams.
    extra: further fields of the request, as the endpoint names them.

    Raises: UsageError: a value cannot be used.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key: str = field(default="", repr=False)
    temperature: float | None = None
    timeout_s: float = 300.0
    silence_s: float = 60.0
    max_output_tokens: int | None = None
    stream: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise UsageError("base_url must begin with http:// or https://", hint=f"got {self.base_url!r}")
        if self.timeout_s <= 0 or self.silence_s <= 0:
            raise UsageError("timeout_s and silence_s must be above 0")
        if not (self.api_key.isascii() and self.api_key.isprintable()) or " " in self.api_key:
            raise UsageError(
                "api_key holds a character that a header cannot carry", hint="is there a line break in it?"
            )


class NativeBrain:
    """A brain over the openai SDK, for any endpoint that speaks its protocol.

    Text is shown as it comes, reasoning as notes. A step ends with the reply, a `ModelError`, or its
    cancellation, and always within `timeout_s`.

    Raises: UsageError: the openai package is not installed.
    """

    def __init__(self, options: NativeOptions) -> None:
        # Imported here and not in the first step: it takes a second, in which no event of a worker would be served.
        try:
            import openai
        except ImportError:
            hint = "pip install 'crewline[openai]'"
            raise UsageError("the native brain needs the openai package", hint=hint) from None
        self._sdk: Any = openai
        self._options = options
        self._client: Any = None
        self._refused: frozenset[str] = frozenset()  # parameters that this server does not take

    async def step(self, request: StepRequest) -> AsyncIterator[StepItem]:
        """See `Brain.step`."""
        try:
            async with aclosing(self._attempt(request)) as items:
                async for item in items:
                    yield item
        except ModelError:
            raise
        except Exception as error:
            # Not chained: an exception of the transport can hold the header with the key.
            raise judge_exception(error) from None

    async def close(self) -> None:
        """Release connections. A later step opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _attempt(self, request: StepRequest) -> AsyncGenerator[StepItem, None]:
        options = self._options
        names = WireNames(request.tools)
        client = self._connected()  # before the clock starts: the first one reads certificates
        clock = asyncio.get_running_loop().time
        until = clock() + options.timeout_s
        seed = f"{request.id}:{request.step}"
        reply = Assembler(names.ours, seed=seed, model=options.model, secret=options.api_key)
        async with AsyncExitStack() as stack:
            response = await self._open(client, request, names, stack, until)
            source = aiter(response.iter_bytes())
            body, mode, size = b"", "", 0
            decoder = SseDecoder()
            spoke_at = clock()
            while not reply.done:
                silence_s = min(options.silence_s, TAIL_S_MAX) if reply.whole else options.silence_s
                limit = until if not options.stream or mode == "json" else min(until, spoke_at + silence_s)
                try:
                    data = await _read(source, limit)
                except Exception as error:
                    if mode == "json" and _is_whole(body):
                        break
                    if reply.whole:
                        break  # what was said stands, whatever became of the connection
                    raise self._broken(error, clock() >= until) from None
                if data is None:
                    break
                size += len(data)
                if size > BODY_BYTES_MAX:
                    raise failed(f"the reply passed {BODY_BYTES_MAX} bytes without an end")
                if mode != "sse":
                    body += data
                    mode = mode or _mode_of(body, response.headers.get("content-type", ""))
                    data = body
                if mode == "page":
                    raise page_instead(response.status_code, body.decode("utf-8", "replace"))
                if mode != "sse":
                    continue
                body = b""
                for event in decoder.feed(data):
                    pieces, said = reply.event(event)
                    for piece in pieces:
                        yield piece
                    if said:
                        spoke_at = clock()
                    if reply.done:
                        break
            for piece in _last(reply, mode, body):
                yield piece
        yield reply.reply()

    def _connected(self) -> Any:
        if self._client is None:
            options = self._options
            # Our own limits end a step; the SDK's stand behind them.
            self._client = self._sdk.AsyncOpenAI(
                api_key=options.api_key or "none",
                base_url=options.base_url,
                timeout=options.timeout_s + 5,
                max_retries=0,
            )
        return self._client

    async def _open(
        self, client: Any, request: StepRequest, names: WireNames, stack: AsyncExitStack, until: float
    ) -> Any:
        """Send the request; return the open response. An HTTP error is judged here."""
        clock = asyncio.get_running_loop().time
        while True:
            body = self._body(request, names)
            limit = min(until, clock() + self._options.silence_s) if self._options.stream else until
            try:
                async with asyncio.timeout_at(limit):
                    create = client.chat.completions.with_streaming_response.create
                    return await stack.enter_async_context(create(**body))
            except TimeoutError as error:
                raise self._broken(error, clock() >= until) from None
            except self._sdk.APIStatusError as error:
                text = _error_text(error)
                refused = _parameter_refused(error.status_code, text, body, self._refused)
                if refused is None:
                    said = _json_or_text(text)
                    headers = error.response.headers
                    raise judge(
                        said, status=error.status_code, headers=headers, secret=self._options.api_key
                    ) from None
                self._refused |= {refused}

    def _body(self, request: StepRequest, names: WireNames) -> dict[str, Any]:
        options = self._options
        extra = dict(options.extra)
        body: dict[str, Any] = {"model": options.model, "messages": messages_for(request, names)}
        if options.stream:
            body["stream"] = True
            if "stream_options" not in self._refused:
                body["stream_options"] = {"include_usage": True}
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.max_output_tokens is not None:
            renamed = "max_tokens" in self._refused
            body["max_completion_tokens" if renamed else "max_tokens"] = options.max_output_tokens
        if request.tools:
            body["tools"] = tools_for(request.tools, names)
        else:
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                extra.pop(name, None)  # refused without tools
        if extra:
            body["extra_body"] = extra
        return body

    def _broken(self, error: Exception, too_late: bool) -> ModelError:
        if not isinstance(error, TimeoutError):
            return judge_exception(error)
        options = self._options
        if too_late:
            return failed(
                f"the model did not finish within {options.timeout_s:g} s", hint="raise the model's timeout"
            )
        return failed(f"the model said nothing for {options.silence_s:g} s")


async def _read(source: AsyncIterator[bytes], until: float) -> bytes | None:
    """Return the next bytes, None at the end. Raises: TimeoutError: none came before `until`."""
    async with asyncio.timeout_at(until):
        try:
            return await anext(source)
        except StopAsyncIteration:
            return None


def _mode_of(head: bytes, content_type: str) -> str:
    """Return what a body is, "" while nothing can be said. How it begins counts more than its header."""
    start = head.lstrip(_BLANK)[:1]
    if not start:
        return ""
    if start == b"<":
        return "page"
    if start in b"{[":
        return "json"
    is_stream = "event-stream" in content_type or start in b":deir"  # data, event, id, retry, or a comment
    return "sse" if is_stream else "json"


def _is_whole(body: bytes) -> bool:
    try:
        read_json(_text(body))
    except ValueError:
        return False
    return True


def _text(body: bytes) -> str:
    return body.decode("utf-8-sig", "replace")


def _last(reply: Assembler, mode: str, body: bytes) -> list[Piece]:
    if mode != "json":
        return reply.rest()
    return [*reply.body(_text(body)), *(piece for piece in reply.rest() if isinstance(piece, TextDelta))]


def _error_text(error: Any) -> str:
    try:
        return str(error.response.text)
    except Exception:  # the body of the error did not arrive whole; its status is enough
        return ""


def _json_or_text(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return text


def _parameter_refused(status: int, text: str, body: dict[str, Any], known: frozenset[str]) -> str | None:
    """Return the parameter of `body` that this error refuses, if we can do without it and did not know."""
    if status not in (400, 422):
        return None
    for name in ("stream_options", "max_tokens"):
        if name in body and name in text and name not in known and _UNKNOWN_WORDS.search(text):
            return name
    return None
