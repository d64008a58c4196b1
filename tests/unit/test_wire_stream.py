"""Reading a reply: bytes to events, events to text and calls, failures to verdicts. No network."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from crewline.errors import ModelError
from crewline_agents.base import CallText, ChatMessage, Note, Reply, StepRequest, TextDelta, ToolOffer, Usage
from crewline_agents.wire_errors import judge, judge_exception
from crewline_agents.wire_request import NO_RESULT, WireNames, messages_for
from crewline_agents.wire_sse import SseDecoder, SseEvent
from crewline_agents.wire_stream import Assembler
from crewline_agents.wire_text import TextRun, encodable
from hypothesis import given
from hypothesis import strategies as st

BODY = "\ufeff: hi\r\nevent: a\rdata: één\r\ndata:two\n\nretry: 3\n\ndata\n\n: x\ndata: 🚀\r\rdata: lost\n".encode()
EVENTS = [SseEvent("a", ("één", "two")), SseEvent("", ("🚀",))]


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_events_do_not_depend_on_how_the_network_cuts_the_bytes(cuts: list[int]) -> None:
    decoder = SseDecoder()
    places = sorted({0, len(BODY), *cuts})
    found = [event for a, b in itertools.pairwise(places) for event in decoder.feed(BODY[a:b])]
    assert found == EVENTS


def test_a_long_line_in_many_pieces_is_one_event() -> None:
    decoder = SseDecoder()
    found = [event for _ in range(20_000) for event in decoder.feed(b"x" * 20)]
    assert found == []
    assert decoder.feed(b"\ndata: y\n\n") == [SseEvent("", ("y",))]


@given(st.text(st.characters(codec=None) | st.sampled_from("\ud83d\ude80a"), max_size=20), st.integers(1, 4))
def test_pieces_of_text_add_up_to_the_text_and_can_be_encoded(text: str, size: int) -> None:
    run = TextRun()
    shown = [run.add(text[at : at + size]) for at in range(0, len(text), size)]
    shown.append(run.end())
    assert "".join(shown) == run.text == encodable(text)
    assert run.text.encode().decode() == run.text


def test_halves_of_a_pair_are_joined_and_lone_ones_replaced() -> None:
    assert encodable("a\ud83d\ude80b\ude80\ud83dc") == "a🚀b\ufffd\ufffdc"


def reply_of(*chunks: dict[str, Any], names: tuple[str, ...] = ("find", "read")) -> tuple[Reply, list[Any]]:
    assembler = Assembler({name: name for name in names}, seed="s")
    pieces = []
    for chunk in chunks:
        said, _ = assembler.event(SseEvent("", (json.dumps(chunk),)))
        pieces += said
    return assembler.reply(), pieces


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def call(**fields: Any) -> dict[str, Any]:
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return delta(tool_calls=[fields | {"function": function}])


def test_reasoning_is_a_note_and_goes_back_only_next_to_a_call() -> None:
    thinking = delta(reasoning_content="Hm.", reasoning="Hm.")
    plain, pieces = reply_of(thinking, delta("stop", content="Yes."))
    assert pieces == [Note("Hm."), TextDelta("Yes.")]
    assert plain.echo is None

    called, _ = reply_of(thinking, call(index=0, id="a", name="find", arguments="{}"), delta("tool_calls"))
    assert called.echo == {"reasoning_content": "Hm.", "reasoning": "Hm."}


def test_made_ids_are_unique_and_the_same_on_a_replay() -> None:
    chunks = [call(index=k, id=id, name="find", arguments="{}") for k, id in enumerate(["a", None, "a", ""])]
    first, _ = reply_of(*chunks, delta("stop"))
    again, _ = reply_of(*chunks, delta("stop"))
    assert first == again
    assert len({made.id for made in first.calls}) == 4
    assert all(made.id for made in first.calls)


def test_a_later_call_keeps_the_id_that_the_wire_gave() -> None:
    made, _ = reply_of(
        call(index=0, name="find", arguments="{}"), call(index=1, id="b", name="read"), delta("stop")
    )
    taken = made.calls[0].id
    reply, _ = reply_of(
        call(index=0, name="find", arguments="{}"), call(index=1, id=taken, name="read"), delta("stop")
    )
    assert reply.calls[1].id == taken
    assert reply.calls[0].id not in ("", taken)


def test_an_event_that_says_nothing_is_no_progress() -> None:
    assembler = Assembler({}, seed="s")
    for quiet in ({}, {"choices": []}, delta(), delta(content=""), delta(tool_calls=[]), {"type": "ping"}):
        assert assembler.event(SseEvent("", (json.dumps(quiet),))) == ([], False)
    assert assembler.event(SseEvent("", (json.dumps(delta(content="a")),)))[1]


def test_usage_is_what_was_reported_last_and_unknown_is_not_zero() -> None:
    reply, _ = reply_of(
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}},
        delta("stop", content="a"),
        {"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": 3}},
        {"choices": [], "usage": None},
    )
    assert reply.usage == Usage(None, 3)


@pytest.mark.parametrize(
    "body", [None, 7, "x", [], {}, {"error": []}, {"error": {"message": ["a", {"b": 1}]}}, [[[]]]]
)
@pytest.mark.parametrize("status", [None, 200, 302, 400, 418, 500, 599])
def test_any_error_body_is_judged(body: Any, status: int | None) -> None:
    error = judge(body, status=status)
    assert error.retryable is (status in (None, 200, 500, 599))


def test_an_exception_with_the_key_in_it_is_not_repeated() -> None:
    class LocalProtocolError(Exception):
        pass

    error = judge_exception(LocalProtocolError("Illegal header value b'Bearer sk-1\\n'"))
    assert not error.retryable
    assert "sk-1" not in str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
    ["choices", "delta", "message", "content", "tool_calls", "function", "index", "id", "name", "arguments", "finish_reason",
     "usage", "error", "code", "function_call", "refusal", "reasoning", "extra_content", "model", "type", "text"]
), inner, max_size=5), max_leaves=30), st.booleans())  # fmt: skip
def test_whatever_arrives_ends_in_a_reply_or_a_model_error(value: Any, whole: bool) -> None:
    assembler = Assembler({"find": "find"}, seed="s")
    shaped = {"choices": [{"message" if whole else "delta": value, "finish_reason": "stop"}]}
    with contextlib.suppress(ModelError):
        for said in (value, shaped):
            if whole:
                assembler.body(json.dumps(said))
            else:
                assembler.event(SseEvent("", (json.dumps(said),)))
        assert isinstance(assembler.reply(), Reply)


# The request ------------------------------------------------------------------------------------


def sent(*messages: ChatMessage, tools: tuple[str, ...] = ("find",)) -> list[dict[str, Any]]:
    offers = [ToolOffer(name, "", {}) for name in tools]
    request = StepRequest("c:t1:s1", "c", "r", "a", 1, 1, 1, "", messages, offers)
    return messages_for(request, WireNames(offers))


CALLS = (CallText("a", "find", "{}"), CallText("b", "find", '{"x":', valid=False, problem="cut"))


def test_each_call_has_one_result_directly_after_it() -> None:
    said = sent(
        ChatMessage("tool", "of a turn that was cut off", call_id="z"),
        ChatMessage("user", "go"),
        ChatMessage("assistant", "", CALLS),
        ChatMessage("tool", "2", call_id="b"),
        ChatMessage("tool", "3", call_id="b"),
        ChatMessage("tool", "nobody's", call_id="q"),
        ChatMessage("user", "next"),
        ChatMessage("tool", "too late", call_id="a"),
    )
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool", "user"]
    assert [(message["tool_call_id"], message["content"]) for message in said[2:4]] == [
        ("a", NO_RESULT),
        ("b", "2"),
    ]


def test_arguments_that_are_no_json_are_sent_as_json() -> None:
    calls = sent(ChatMessage("assistant", "", CALLS))[0]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{}, {"_malformed": '{"x":'}]


def test_names_are_told_apart_and_fit_every_endpoint() -> None:
    offers = [
        ToolOffer(name, "", {}) for name in ("kb.search", "kb__search", "kb:search", "x" * 80, "x" * 81, "ü")
    ]
    names = WireNames(offers)
    wires = [names.wire(offer.name) for offer in offers]
    assert len(set(wires)) == len(offers)
    assert all(
        wire.replace("_", "").isalnum() and wire.isascii() is True and len(wire) <= 64
        for wire in wires
        if wire != "_"
    )
    assert [names.ours[wire] for wire in wires] == [offer.name for offer in offers]


def test_halves_of_characters_never_reach_the_wire() -> None:
    bad = "\ud83d"
    call = CallText(bad, bad, bad, echo={"extra_content": {"s": bad}})
    said = sent(ChatMessage("user", bad), ChatMessage("assistant", bad, (call,), echo={"reasoning": bad}))
    assert json.dumps(said, ensure_ascii=False).encode()
