"""Judging failures: is another attempt worth it, when, and what should be changed?

Order: a context that is too long and a quota that is used up are fatal under any status; a call that
the server itself refused is a bad sample and retryable; then the number decides (408, 409, 429 and 5xx
retryable, other 4xx fatal). A failure inside a 200 reply that names none of these is retryable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from crewline.errors import ModelError

from crewline_agents.wire_text import encodable
from crewline_agents.wire_waits import wait_in_body, wait_in_headers

WAIT_S_LONG = 300.0  # nobody should sit in a turn for longer
MESSAGE_CHARS_MAX = 500

_CONTEXT_CODES = {
    "context_length_exceeded",
    "context_window_exceeded",
    "model_context_window_exceeded",
    "exceed_context_size_error",
    "prompt_too_long",
}
_QUOTA_CODES = {
    "insufficient_quota",
    "quota_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_credits",
    "insufficient_balance",
    "insufficient_user_quota",
    "payment_required",
}
_CONTEXT_WORDS = re.compile(
    r"(maximum|max) (context|prompt|sequence|model) (length|size|window)"
    r"|context[ _](length|window|size|limit)\b.{0,80}\b(exceed|too (long|large|small)|larg|long|over|limit|maximum)"
    r"|\b(exceed\w*|larger than|longer than|greater than|over|beyond|outside|fit in\w*)\b.{0,60}\bcontext\b"
    r"|\b(prompt|input|conversation|messages?) (is|are) too (long|large)"
    r"|\breduce (the |your )?(length|number|size)? ?(of )?(the |your )?(messages|prompt|input|conversation)"
    r"|\binput (token count|length|tokens?)\b.{0,80}\b(exceed|maximum|limit)"
    r"|\btoo many (input |prompt )?tokens\b",
    re.IGNORECASE | re.DOTALL,
)
_QUOTA_WORDS = re.compile(
    r"exceeded your (current |monthly |daily )?quota"
    r"|quota (is |has been |was )?(exhausted|exceeded|used up|reached)"
    r"|(insufficient|not enough|out of|no) (account )?(balance|credits?|funds|quota)"
    r"|(balance|credits?) (is|are) (too low|insufficient|exhausted|used up)"
    r"|(billing|spending|usage|budget) (hard )?limit (has been |was |is )?(reached|exceeded)",
    re.IGNORECASE,
)
_RATE_WORDS = re.compile(r"per[ -](minute|second|hour|day)\b|\b[TR]P[MDS]\b|rate[ _-]?limit", re.IGNORECASE)
# Where endpoints put words and codes. What the request held may come back too (`input`): that is not their word.
_SAYING = {
    "error", "errors", "message", "msg", "detail", "details", "code", "type", "status", "reason", "raw", "title",
    "description", "error_type", "error_message", "error_msg", "innererror", "metadata", "param", "loc", "cause",
}  # fmt: skip
_NUMBERED = ("code", "status_code", "status", "http_status", "http_code", "statusCode")


def judge(
    body: Any, *, status: int | None = None, headers: Mapping[str, str] | None = None, secret: str = ""
) -> ModelError:
    """Return the failure that an error body says.

    Args:
        body: decoded JSON, or the text if it was none.
        status: of the HTTP reply; None for an error inside a 200 reply, whose own number then counts.
        headers: of the HTTP reply, for the wait that it asks for.
        secret: a text that must not be repeated in the message.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]  # Google wraps its errors in a list
    said = [*_words(body)]
    text = " ".join(said)
    number = status if status is not None else _number_in(body)
    wait_s = wait_in_headers(headers or {})
    if wait_s is None:
        wait_s = wait_in_body(body, text)
    codes = {word.lower() for word in said}
    limited = bool(_RATE_WORDS.search(text))
    shown = _shown(body, number, secret)

    def failure(retryable: bool, hint: str | None) -> ModelError:
        return ModelError(shown, retryable=retryable, retry_after_s=wait_s if retryable else None, hint=hint)

    if codes & _CONTEXT_CODES or (_CONTEXT_WORDS.search(text) and not limited):
        return failure(
            False, "the context is too long: shorten the conversation (memory.history) or the tools' results"
        )
    # Google says "exceeded your current quota" of a limit per minute as well; then it says how long to wait.
    if codes & _QUOTA_CODES or (_QUOTA_WORDS.search(text) and not limited and wait_s is None):
        return failure(
            False, "the account's quota or credit is used up: raise it, or use another key or model"
        )
    if "tool_use_failed" in text or _has_key(body, "failed_generation"):
        return failure(True, "the server refused the model's own call; a new sample may fit")
    if number is None or not 300 <= number <= 599:
        return failure(True, None)
    if number in (408, 409, 429) or number >= 500:
        long = wait_s is not None and wait_s > WAIT_S_LONG
        return failure(True, "the wait is longer than a turn should sit: use another model" if long else None)
    return failure(False, _hint(number, text))


def page_instead(status: int, text: str) -> ModelError:
    """Return the failure of an address that answers with a web page under a status that is no error."""
    return ModelError(
        f"the address answers with a web page, not with this API (HTTP {status}: {_title(text)})",
        retryable=False,
        hint="does base_url end in the API's root, usually /v1?",
    )


def failed(why: str, *, hint: str | None = None) -> ModelError:
    """Return a failed attempt that another one may mend."""
    return ModelError(why, retryable=True, hint=hint)


_TRANSPORTS = ("httpx", "httpcore", "openai", "h11", "h2", "anyio", "ssl", "zlib")
_UNFIT = {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"}


def judge_exception(error: Exception) -> ModelError:
    """Return the failure behind whatever the transport or the SDK raised.

    Its words are left out: an exception about a header holds the header, and so the key.
    """
    name = type(error).__name__
    inner: BaseException | None = error
    while inner is not None:
        if type(inner).__name__ in _UNFIT:
            return ModelError(
                f"the request cannot be sent ({type(inner).__name__})",
                retryable=False,
                hint="check base_url and api_key",
            )
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, OSError | EOFError) or type(error).__module__.startswith(_TRANSPORTS):
        return failed(f"the connection to the model failed ({name})")
    return ModelError(
        f"the brain failed on this request: {name}: {error}"[:MESSAGE_CHARS_MAX], retryable=False
    )


def error_in(data: Mapping[str, Any], event: str = "") -> bool:
    """Is this object of a 200 reply an error? `event` is the name of the event that brought it."""
    if event == "error" or data.get("object") == "error" or data.get("type") == "error":
        return True
    if _is_error(data.get("error")):
        return True
    choices = data.get("choices")
    if (
        isinstance(choices, list)
        and choices
        and isinstance(choices[0], dict)
        and _is_error(choices[0].get("error"))
    ):
        return True
    return "choices" not in data and any(data.get(key) for key in ("message", "detail", "errors"))


def read_json(text: str) -> Any:
    """Return the JSON value that `text` holds.

    Raises: ValueError: it is none that can be read (too many digits and too much nesting included).
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_error(error: Any) -> bool:
    """An error object whose fields are all empty is how some endpoints say that there is none."""
    return any(error.values()) if isinstance(error, dict) else bool(error)


def _words(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield what an error says: words and codes, wherever endpoints put them."""
    match value:
        case str():
            yield value[:4000]
        case list() if depth < 6:
            for item in value[:20]:
                yield from _words(item, depth + 1)
        case dict() if depth < 6:
            for key, item in value.items():
                if key in _SAYING:
                    yield from _words(item, depth + 1)


def _number_in(body: Any) -> int | None:
    """Return the HTTP status that an error inside a 200 reply names, wherever it does."""
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for place in (body.get("error"), first.get("error") if isinstance(first, dict) else None, body):
        if not isinstance(place, dict):
            continue
        for key in _NUMBERED:
            number = place.get(key)
            if isinstance(number, str) and number.isascii() and number.isdecimal():
                number = int(number[:9])
            if isinstance(number, int) and not isinstance(number, bool) and 300 <= number <= 599:
                return number
    return None


def _has_key(body: Any, key: str) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(body, dict) and (key in body or (isinstance(error, dict) and key in error))


def _shown(body: Any, number: int | None, secret: str) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error if isinstance(error, str) else ""
    if isinstance(error, dict):
        text = next(
            (str(error[key]) for key in ("message", "msg", "detail", "error", "code") if error.get(key)), ""
        )
    if not text and isinstance(body, dict):
        text = next((str(body[key]) for key in ("message", "detail", "code") if body.get(key)), "")
    if text.lstrip().startswith("<"):
        text = _title(text)
    text = " ".join(encodable(text).split())
    if secret:
        text = text.replace(secret, "***")
    where = (
        f"the model's server answered {number}"
        if number is not None
        else "the model's server reported an error"
    )
    return f"{where}: {text[:MESSAGE_CHARS_MAX]}" if text else where


def _title(page: str) -> str:
    found = re.search(r"<(title|h1)[^>]*>([^<]{1,200})", page[:20_000], re.IGNORECASE)
    return found.group(2).strip() if found else "no title"


def _hint(number: int, text: str) -> str | None:
    for words, hint in _HINTS:
        if words in text:
            return hint
    return _HINTS_BY_STATUS.get(number)


_HINTS = (
    ("stream_options", "this server refuses stream_options; ask without streaming (stream: false)"),
    ("parallel_tool_calls", "leave out parallel_tool_calls when no tool is offered"),
    ("max_tokens", "send max_completion_tokens instead of max_tokens"),
    ("max_completion_tokens", "send max_tokens instead of max_completion_tokens"),
    ("array_above_max_length", "offer fewer tools to this agent"),
    ("invalid_function_parameters", "strict mode wants every property required and no further ones"),
    ("tool choice", "the server runs without tool support; start it with a tool parser"),
    ("temperature", "this model does not take that temperature; leave it out"),
    ("content_filter", "the provider's content filter stopped the prompt"),
)
_HINTS_BY_STATUS = {
    401: "check api_key",
    402: "the account has no credit",
    403: "this key may not use this model",
    404: "check the model's name, and that base_url ends in the API's root, usually /v1",
    413: "the request is too large: shorten the conversation",
}
