"""The request: a history that no endpoint refuses, and names that every endpoint takes.

A history may have been cut anywhere (a window, a turn that failed), so here each call gets exactly
one result, directly after its message, and a result without its call is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from crewline_agents.base import CallText, ChatMessage, StepRequest, ToolOffer
from crewline_agents.wire_text import encodable, encodable_json

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_RESULT = "No result of this call was recorded."


class WireNames:
    """The tools' names as endpoints take them: letters, digits, `_` and `-`, at most 64 of them.

    `ours` maps the model's names to those of the offers. The mapping depends on the offers alone, so a
    replay has the same names.
    """

    def __init__(self, offers: Sequence[ToolOffer]) -> None:
        self.ours: dict[str, str] = {
            offer.name: offer.name for offer in offers if _NAME.fullmatch(offer.name)
        }
        for offer in offers:
            if not _NAME.fullmatch(offer.name) and offer.name not in self.ours.values():
                self.ours[self._fitted(offer.name)] = offer.name
        self._wire = {ours: wire for wire, ours in self.ours.items()}

    def wire(self, name: str) -> str:
        """Return the model's name of a tool. One that is no longer offered only has to fit the form."""
        return self._wire.get(name) or _fit(name) or "unknown"

    def _fitted(self, name: str) -> str:
        fitted, n = _fit(name), 2
        while fitted in self.ours or not fitted:
            fitted, n = f"{_fit(name)[:60]}_{n}", n + 1
        return fitted


def _fit(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name.replace(".", "__"))[:64]


def tools_for(offers: Sequence[ToolOffer], names: WireNames) -> list[dict[str, Any]]:
    """Return the `tools` of a request."""
    return [
        {
            "type": "function",
            "function": {
                "name": names.wire(offer.name),
                "description": encodable(offer.description),
                "parameters": encodable_json(dict(offer.parameters)),
            },
        }
        for offer in offers
    ]


def messages_for(request: StepRequest, names: WireNames) -> list[dict[str, Any]]:
    """Return the `messages` of a request."""
    sent: list[dict[str, Any]] = []
    if request.system:
        sent.append({"role": "system", "content": encodable(request.system)})
    messages = list(request.messages)
    for at, message in enumerate(messages):
        match message.role:
            case "user":
                sent.append({"role": "user", "content": encodable(message.text)})
            case "assistant":
                sent.append(_assistant(message, names))
                sent += _results(message.calls, _following(messages, at + 1))
            case "tool":
                continue  # sent with its call, or it has none
    return sent


def _assistant(message: ChatMessage, names: WireNames) -> dict[str, Any]:
    text = encodable(message.text)
    sent: dict[str, Any] = {**encodable_json(message.echo or {}), "role": "assistant"}
    sent["content"] = text if text or not message.calls else None
    if message.calls:
        sent["tool_calls"] = [_call(call, names) for call in message.calls]
    return sent


def _call(call: CallText, names: WireNames) -> dict[str, Any]:
    function = {"name": names.wire(call.name), "arguments": _arguments(call)}
    return {
        **encodable_json(call.echo or {}),
        "id": encodable(call.id),
        "type": "function",
        "function": function,
    }


def _arguments(call: CallText) -> str:
    """Return arguments that a chat template can parse: many servers fail on their model's own bad JSON."""
    text = encodable(call.arguments)
    if not text.strip():
        return "{}"
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict) and (call.valid or "NaN" not in text):
        return text
    return json.dumps({"_malformed": text[:2000]}, ensure_ascii=False)


def _following(messages: Sequence[ChatMessage], start: int) -> Mapping[str, str]:
    """Return the results that follow directly, the first of each call."""
    results: dict[str, str] = {}
    for message in messages[start:]:
        if message.role != "tool":
            break
        results.setdefault(message.call_id or "", encodable(message.text))
    return results


def _results(calls: Sequence[CallText], results: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": encodable(call.id), "content": results.get(call.id, NO_RESULT)}
        for call in calls
    ]
