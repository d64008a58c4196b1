"""The native brain against a real HTTP server that sends what real endpoints send.

The cases are in tests/wire_cases (see its README): each is played as it stands, and again in other forms
that must lead to the same conclusion. Below them are further cases of the same kinds.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from crewline.errors import ModelError
from crewline.strict_json import decode_object
from crewline_agents.base import ChatMessage, Reply, StepRequest, TextDelta, ToolOffer
from crewline_agents.native import NativeBrain, NativeOptions

pytest.importorskip("openai")

FOLDER = Path(__file__).parent.parent / "wire_cases"
Case = dict[str, Any]


def _serve_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wire_cases_serve", FOLDER / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


serve = _serve_module()
CASES: dict[str, Case] = serve.load(FOLDER / "cases")
TOOLS = {
    "find_parcel": {"parcel_id": "string"},
    "read_note": {"title": "string"},
    "write_note": {"title": "string", "text": "string"},
    "set_lamp": {"room": "string", "on": "boolean", "level": "number"},
    "list_shelves": {},
    "count_items": {"shelf": "string", "item_id": "integer"},
}


def offer(name: str) -> ToolOffer:
    properties = {field: {"type": kind} for field, kind in TOOLS.get(name, {}).items()}
    return ToolOffer(name, f"The tool {name}.", {"type": "object", "properties": properties})


def request(tools: list[str], messages: list[ChatMessage] | None = None) -> StepRequest:
    said = messages or [ChatMessage("user", "Go on.")]
    return StepRequest(
        "c1:t1:s1", "c1", "r1", "clerk", 1, 1, 1, "You are a clerk.", said, [offer(name) for name in tools]
    )


class RecordingReplayer(serve.Replayer):  # type: ignore[misc,name-defined]
    """Plays cases, and keeps the bodies of the requests."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__(cases)
        self.bodies: list[dict[str, Any]] = []

    def pick(self, body: bytes) -> Case:
        self.bodies.append(json.loads(body))
        return super().pick(body)  # type: ignore[no-any-return]


@asynccontextmanager
async def serving(*cases: Case) -> AsyncIterator[tuple[str, RecordingReplayer]]:
    replayer = RecordingReplayer({case["id"]: case for case in cases})
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(replayer.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", replayer
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def a_brain(url: str, model: str, **options: Any) -> AsyncIterator[NativeBrain]:
    limits = {"timeout_s": 5.0, "silence_s": 0.6} | options
    brain = NativeBrain(NativeOptions(model=model, base_url=url, api_key="sk-test-1", **limits))
    try:
        yield brain
    finally:
        await brain.close()


async def play(case: Case, **options: Any) -> dict[str, Any]:
    """Return the brain's conclusion about one case, in the form of its `expect`."""
    async with serving(case) as (url, _), a_brain(url, case["id"], stream=case["stream"], **options) as brain:
        return await conclusion_of(brain, request(case["tools"]))


async def conclusion_of(brain: NativeBrain, asked: StepRequest) -> dict[str, Any]:
    items = []
    try:
        async for item in brain.step(asked):
            items.append(item)
    except ModelError as error:
        concluded: dict[str, Any] = {"kind": "retryable" if error.retryable else "fatal"}
        if error.retry_after_s is not None:
            concluded["retry_after_s"] = error.retry_after_s
        return {"text": None, "calls": [], "finish": None, "usage": None, "error": concluded}
    reply = items[-1]
    assert isinstance(reply, Reply)
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == reply.text
    return outcome_of(reply)


def outcome_of(reply: Reply) -> dict[str, Any]:
    usage = reply.usage
    outcome: dict[str, Any] = {
        "text": reply.text,
        "calls": [],
        "finish": reply.finish,
        "usage": usage and {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens},
        "error": None if all(call.valid for call in reply.calls) else {"kind": "malformed_call"},
    }
    assert len({call.id for call in reply.calls} - {""}) == len(reply.calls)
    for call in reply.calls:
        said: dict[str, Any] = {
            "id": call.id,
            "name": call.name,
            "arguments_raw": call.arguments,
            "valid": call.valid,
        }
        if call.valid:
            said["args"] = decode_object(call.arguments, bytes_max=10**7, depth_max=64)
        if call.echo:
            said["echo"] = call.echo
        assert (call.problem is None) == call.valid
        outcome["calls"].append(said)
    if reply.refusal:
        outcome["refusal"] = reply.refusal
    if reply.echo:
        outcome["echo"] = reply.echo
    return outcome


def agrees(outcome: dict[str, Any], expect: dict[str, Any]) -> bool:
    return comparable(outcome, expect) == comparable(expect, expect)


def comparable(outcome: dict[str, Any], expect: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of an outcome: without reasons in words, made ids, and what the case does not say."""
    left = json.loads(json.dumps(outcome))
    for call, wanted in zip(left["calls"], expect["calls"], strict=False):
        if wanted["id"] is None:
            call["id"] = None
        if "args" not in wanted:
            call.pop("args", None)
    if left["usage"]:
        left["usage"].pop("total_tokens", None)
    if left["error"]:
        left["error"] = {
            key: value for key, value in left["error"].items() if key in ("kind", "retry_after_s")
        }
    return left  # type: ignore[no-any-return]


def conclusions(case: Case) -> list[dict[str, Any]]:
    expect = {key: value for key, value in case["expect"].items() if key != "alt"}
    return [expect, *([case["expect"]["alt"]] if "alt" in case["expect"] else [])]


async def check(case: Case, **options: Any) -> None:
    outcome = await play(case, **options)
    assert any(agrees(outcome, wanted) for wanted in conclusions(case)), outcome


@pytest.mark.parametrize("name", sorted(CASES))
async def test_a_case_as_it_stands_leads_to_its_conclusion(name: str) -> None:
    await check(CASES[name])


# The same cases in other forms ------------------------------------------------------------------


def body_of(case: Case) -> bytes:
    return b"".join(serve.piece(item) for item in case["chunks"] if isinstance(item, str) or "raw" in item)


def resplit(case: Case, body: bytes, seed: int) -> Case:
    """The same bytes in other HTTP chunks, cut anywhere, even inside a character."""
    chance = random.Random(seed)
    ends = [item for item in case["chunks"] if isinstance(item, dict) and "cut" in item]
    cuts = sorted({0, len(body), *(chance.randrange(len(body) + 1) for _ in range(min(60, len(body) // 3)))})
    pieces = [body[a:b] for a, b in itertools.pairwise(cuts)]
    return case | {"chunks": [{"raw": piece.decode("latin-1")} for piece in pieces] + ends}


STREAMS = sorted(name for name, case in CASES.items() if "chunks" in case)


FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "split": lambda body: body,
    "crlf": lambda body: body.replace(b"\n", b"\r\n"),
    "cr": lambda body: body.replace(b"\n", b"\r"),
    "bom": lambda body: b"\xef\xbb\xbf" + body,
    "no-space": lambda body: body.replace(b"data: ", b"data:"),
    "pings": lambda body: body.replace(
        b"\n\n", b'\n\n: ping\n\nevent: ping\ndata: {"type": "ping"}\n\nid: 7\n\n'
    ),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_means_the_same_however_it_is_framed(name: str) -> None:
    case = CASES[name]
    forms = [
        resplit(case, frame(body_of(case)), seed) | {"id": id}
        for seed, (id, frame) in enumerate(FRAMINGS.items())
    ]
    # The server plays the cases that the model names one after the other, so one client does for all.
    async with serving(*forms) as (url, _), a_brain(url, ",".join(FRAMINGS)) as brain:
        for form in FRAMINGS:
            outcome = await conclusion_of(brain, request(case["tools"]))
            assert any(agrees(outcome, wanted) for wanted in conclusions(case)), (form, outcome)


# Further cases of the same kinds ----------------------------------------------------------------


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more)


def call_delta(**fields: Any) -> dict[str, Any]:
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return {"tool_calls": [fields | {"function": function}]}


def stream(*chunks: Any, tools: tuple[str, ...] = ("find_parcel", "read_note")) -> Case:
    headers = {"content-type": "text/event-stream"}
    return {
        "id": "own",
        "stream": True,
        "tools": [*tools],
        "status": 200,
        "headers": headers,
        "chunks": [*chunks],
    }


def http(status: int, body: Any, *, streamed: bool = True, **headers: str) -> Case:
    text = body if isinstance(body, str) else json.dumps(body)
    named = {"content-type": "application/json"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    return {"id": "own", "stream": streamed, "tools": [], "status": status, "headers": named, "body": text}


RETRYABLE = {"kind": "retryable"}
FATAL = {"kind": "fatal"}


@pytest.mark.parametrize(
    ("case", "error"),
    [
        (http(429, {"error": {"message": "slow down", "code": "insufficient_quota"}}), FATAL),
        (http(429, {"error": {"message": "You exceeded your current quota, please check your plan"}}), FATAL),
        (http(500, {"error": {"message": "Insufficient Balance"}}), FATAL),
        (http(402, {"error": {"message": "pay first"}}), FATAL),
        (http(500, {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}), FATAL),
        (http(503, {"detail": "This model's maximum context length is 4096 tokens"}), FATAL),
        (
            http(500, {"error": {"code": 500, "message": "the request exceeds the available context size"}}),
            FATAL,
        ),
        (
            http(429, {"error": {"message": "Rate limit reached: tokens per minute (TPM): Limit 6000"}}),
            RETRYABLE,
        ),
        (http(408, ""), RETRYABLE),
        (http(409, {"error": "conflict"}), RETRYABLE),
        (http(500, "null"), RETRYABLE),
        (http(529, {"type": "error", "error": {"type": "overloaded_error"}}), RETRYABLE),
        (http(403, "<html><h1>Forbidden</h1></html>", content_type="text/html"), FATAL),
        (http(413, {"error": {"message": "too large"}}), FATAL),
        (http(404, "404 page not found", content_type="text/plain"), FATAL),
        (http(400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}]), FATAL),
        (http(400, {"error": {"message": "x", "failed_generation": "{"}}), RETRYABLE),
        (http(400, {"error": {"message": {"odd": ["shape"]}, "code": {}}}), FATAL),
        (http(429, {}, retry_after="2.5"), RETRYABLE | {"retry_after_s": 2.5}),
        (http(429, {}, retry_after_ms="1500", retry_after="9"), RETRYABLE | {"retry_after_s": 1.5}),
        (http(503, {}, retry_after="nan"), RETRYABLE),
        (http(503, {}, retry_after="-3"), RETRYABLE),
        (
            http(429, {}, date="Wed, 25 Nov 2026 08:00:00 GMT", retry_after="Wed, 25 Nov 2026 08:00:30 GMT"),
            RETRYABLE | {"retry_after_s": 30.0},
        ),
        (
            http(429, {"error": {"message": "Please try again in 1m30.5s."}}),
            RETRYABLE | {"retry_after_s": 90.5},
        ),
        (
            http(429, {"error": {"message": "Please retry after 20 seconds"}}),
            RETRYABLE | {"retry_after_s": 20.0},
        ),
        (http(429, {"error": {"message": "try again in 450ms"}}), RETRYABLE | {"retry_after_s": 0.45}),
        (
            http(
                429,
                [
                    {
                        "error": {
                            "message": "You exceeded your current quota",
                            "details": [{"retryDelay": "41s"}],
                        }
                    }
                ],
            ),
            RETRYABLE | {"retry_after_s": 41.0},
        ),
        (http(200, "", streamed=False), RETRYABLE),
        (http(200, "null", streamed=False), RETRYABLE),
        (http(200, '{"choices":[{"message":{"content":""}}]}', streamed=False), RETRYABLE),
        (http(200, {"error": {"message": "no", "code": "429"}}, streamed=False), RETRYABLE),
        (http(200, {"error": {"message": "no", "code": 401}}, streamed=False), FATAL),
        (http(200, {"detail": "Not authenticated", "status": 401}), FATAL),
        (http(200, "  \n<!DOCTYPE html><title>x</title>", content_type="application/json"), FATAL),
        (http(200, {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}), FATAL),
        (stream(chunk({"content": "Half"}), chunk({}, "content_filter"), "[DONE]"), FATAL),
        (stream(chunk({"content": "Half"}), "[DONE]"), RETRYABLE),
        (stream(chunk({"content": "Half"}), {"raw": f"data: {chunk({}, 'stop')}\n"}), RETRYABLE),
        (stream(chunk({"content": "Half"}), "{not json"), RETRYABLE),
        (stream({"raw": "event: error\ndata: upstream is gone\n\n"}), RETRYABLE),
        (stream({"raw": 'event: error\ndata: {"message":"no","code":400}\n\n'}), FATAL),
        (stream('{"object":"error","message":"bad request","code":400}'), FATAL),
        (stream('{"message":"forbidden","status_code":"403"}'), FATAL),
        (
            stream(chunk({"content": "x"}), '{"choices":[{"error":{"code":502,"message":"x"},"delta":{}}]}'),
            RETRYABLE,
        ),
        (stream('{"error":{"message":"quota is exhausted"}}'), FATAL),
        (stream(chunk({"content": "x"}, "error"), "[DONE]"), RETRYABLE),
        (stream(chunk({"content": "x"}), {"cut": "hang"}), RETRYABLE),
        (stream({"cut": "hang"}), RETRYABLE),
        (stream(chunk({"reasoning": "hm"}), chunk({}, "stop"), "[DONE]"), RETRYABLE),
    ],
)
async def test_a_failure_is_judged_by_what_it_says(case: Case, error: dict[str, Any]) -> None:
    outcome = await play(case)
    assert outcome["error"] == error, outcome


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (stream(chunk({"content": "A "}), chunk({"content": "b."}, "stop")), "A b."),
        (stream(chunk({"content": "A"}, "stop"), {"cut": "drop"}), "A"),
        (stream(chunk({"content": "A"}, "stop"), {"cut": "hang"}), "A"),
        (stream("null", "[]", "7", chunk(None), '{"choices":[null]}', chunk({"content": "A"}, "stop")), "A"),
        (stream(chunk({"content": "A"}), chunk(None, "stop"), "[DONE]"), "A"),
        (stream(chunk({"content": "A"}), chunk({"content": "B"}, "stop", error=None), "[DONE]"), "AB"),
        (stream(chunk({"content": "\ud83d"}), chunk({"content": "\ude80!"}, "stop"), "[DONE]"), "🚀!"),
        (stream(chunk({"content": "a\ud83d"}, "stop"), "[DONE]"), "a\ufffd"),
        (stream(chunk({"content": {"type": "text", "text": "A"}}, "end_turn"), "[DONE]"), "A"),
        (
            http(
                200, '\n \n{"choices":[{"message":{"content":[{"type":"text","text":"A"}]}}]}', streamed=False
            ),
            "A",
        ),
        (http(200, '{"choices":[{"message":{"content":"A"}}]}', streamed=False, content_length="900"), "A"),
        (http(200, '{"choices":[{"message":{"content":"A"}}]}', content_type="text/event-stream"), "A"),
    ],
)
async def test_an_answer_is_read_from_whatever_holds_it(case: Case, text: str) -> None:
    outcome = await play(case)
    assert outcome["error"] is None
    assert outcome["text"] == text


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        # Fragments without an index go to the call started last.
        (
            [
                call_delta(id="a", name="find_parcel", arguments='{"parcel_id":'),
                call_delta(arguments='"1"}'),
                call_delta(id="b", name="read_note", arguments='{"title":'),
                call_delta(arguments='"2"}'),
            ],
            [("a", "find_parcel", '{"parcel_id":"1"}'), ("b", "read_note", '{"title":"2"}')],
        ),
        # A name in pieces, an id that comes late.
        (
            [
                call_delta(index=0, name="find_"),
                call_delta(index=0, name="parcel"),
                call_delta(index=0, id="late", arguments="{}"),
            ],
            [("late", "find_parcel", "{}")],
        ),
        # Three interleaved calls, with gaps in the numbers.
        (
            [
                call_delta(index=2, id="a", name="find_parcel"),
                call_delta(index=7, id="b", name="find_parcel"),
                call_delta(index=4, id="c", name="find_parcel"),
                call_delta(index=7, arguments='{"parcel_id"'),
                call_delta(index=2, arguments='{"parcel_id"'),
                call_delta(index=4, arguments="{}"),
                call_delta(index=7, arguments=':"b"}'),
                call_delta(index=2, arguments=':"a"}'),
            ],
            [
                ("a", "find_parcel", '{"parcel_id":"a"}'),
                ("b", "find_parcel", '{"parcel_id":"b"}'),
                ("c", "find_parcel", "{}"),
            ],
        ),
        # Names and no ids, in one slot, over fragments.
        (
            [
                call_delta(index=0, name="read_note", arguments='{"ti'),
                call_delta(index=0, name="read_note", arguments='tle":"1"}'),
                call_delta(index=0, name="read_note", arguments='{"title":"2"}'),
            ],
            [(None, "read_note", '{"title":"1"}'), (None, "read_note", '{"title":"2"}')],
        ),
        # Ids that are numbers, an index that is a text.
        (
            [call_delta(index="0", id=17, name="read_note"), call_delta(index="0", arguments="{}")],
            [("17", "read_note", "{}")],
        ),
        # One call in both fields, the old and the new.
        (
            [
                call_delta(index=0, id="a", name="read_note", arguments="{}")
                | {"function_call": {"name": "read_note", "arguments": "{}"}}
            ],
            [("a", "read_note", "{}")],
        ),
    ],
)
async def test_fragments_find_their_call(deltas: list[dict[str, Any]], calls: list[tuple[Any, ...]]) -> None:
    outcome = await play(stream(*(chunk(delta) for delta in deltas), chunk({}, "tool_calls"), "[DONE]"))
    assert outcome["error"] is None
    assert outcome["finish"] == "tool_calls"
    found = [(call["id"], call["name"], call["arguments_raw"]) for call in outcome["calls"]]
    wanted = [
        (made if given is None else given, *rest)
        for (given, *rest), (made, *_) in zip(calls, found, strict=True)
    ]
    assert found == wanted


async def test_two_hundred_interleaved_calls_are_all_there() -> None:
    starts = [chunk(call_delta(index=k, id=f"c{k}", name="find_parcel", arguments="")) for k in range(200)]
    halves = [
        chunk(call_delta(index=k, arguments=text))
        for text in ('{"parcel_id":', '"P"}')
        for k in reversed(range(200))
    ]
    outcome = await play(stream(*starts, *halves, chunk({}, "tool_calls"), "[DONE]"))
    assert [call["id"] for call in outcome["calls"]] == [f"c{k}" for k in range(200)]
    assert all(call["valid"] for call in outcome["calls"])


async def test_huge_arguments_arrive_whole() -> None:
    text = "ä🚀" * 150_000
    raw = json.dumps({"title": text}, ensure_ascii=False)
    pieces = [raw[at : at + 4000] for at in range(0, len(raw), 4000)]
    first = chunk(call_delta(index=0, id="a", name="read_note"))
    outcome = await play(
        stream(first, *(chunk(call_delta(index=0, arguments=p)) for p in pieces), chunk({}, "stop"), "[DONE]")
    )
    assert outcome["calls"][0]["args"] == {"title": text}


@pytest.mark.parametrize(
    ("raw", "valid"),
    [
        ("{" + '"a":{' * 62 + "}" * 63, True),
        ("{" + '"a":{' * 64 + "}" * 65, False),
        ('{"a":1e400}', False),
        ('{"a":-Infinity}', False),
        ('{"a":{"b":1,"b":2}}', False),
        ('{"a":1} {"a":2}', False),
        ('```json\n{"a":1}\n```', False),
        ("  \n", True),
        ('{"a":' + "7" * 40 + "}", True),
    ],
)
async def test_arguments_are_one_object_or_refused(raw: str, valid: bool) -> None:
    outcome = await play(
        stream(
            chunk(call_delta(index=0, id="a", name="read_note", arguments=raw)),
            chunk({}, "tool_calls"),
            "[DONE]",
        )
    )
    assert outcome["calls"][0]["arguments_raw"] == raw
    assert outcome["calls"][0]["valid"] is valid


async def test_a_limit_cuts_the_last_call_and_leaves_the_others() -> None:
    outcome = await play(
        stream(
            chunk(call_delta(index=0, id="a", name="find_parcel", arguments='{"parcel_id":"1"}')),
            chunk(call_delta(index=1, id="b", name="read_note", arguments='{"title":"ha')),
            chunk({}, "length"),
            "[DONE]",
        )
    )
    assert outcome["finish"] == "tool_calls"
    assert [call["valid"] for call in outcome["calls"]] == [True, False]


async def test_keepalives_without_an_end_are_silence() -> None:
    pings: list[Any] = [{"raw": ": still here\n\n"}, chunk({}), '{"choices":[]}', {"wait_ms": 50}]
    outcome = await play(stream(*(pings * 60)))
    assert outcome["error"] == RETRYABLE


async def test_an_attempt_ends_at_its_limit_though_the_model_goes_on() -> None:
    outcome = await play(stream(*([chunk({"content": "a"}), {"wait_ms": 50}] * 60)), timeout_s=0.5)
    assert outcome["error"] == RETRYABLE


async def test_the_answer_does_not_wait_for_the_end_of_the_body() -> None:
    started = asyncio.get_running_loop().time()
    await check(CASES["done-then-socket-stays-open"], silence_s=5.0)
    assert asyncio.get_running_loop().time() - started < 2.0


# What is sent -----------------------------------------------------------------------------------

ANSWER = http(200, {"choices": [{"message": {"content": "Yes."}}]})


async def sent(*, tools: list[str], messages: list[ChatMessage], **options: Any) -> dict[str, Any]:
    async with serving(ANSWER) as (url, server), a_brain(url, "own", **options) as brain:
        async for _ in brain.step(request(tools, messages)):
            pass
    return server.bodies[-1]


async def reply_to(case: Case) -> Reply:
    async with serving(case) as (url, _), a_brain(url, case["id"], stream=case["stream"]) as brain:
        items = [item async for item in brain.step(request(case["tools"]))]
    reply = items[-1]
    assert isinstance(reply, Reply)
    return reply


@pytest.mark.parametrize("name", ["reasoning-must-come-back", "extra-content-must-come-back"])
async def test_what_must_come_back_goes_back_with_the_call(name: str) -> None:
    reply = await reply_to(CASES[name])
    said = ChatMessage("assistant", reply.text, reply.calls, echo=reply.echo)
    result = ChatMessage("tool", "here", call_id=reply.calls[0].id)
    body = await sent(tools=["find_parcel"], messages=[ChatMessage("user", "Go"), said, result])

    again = body["messages"][2]
    for key, value in CASES[name]["expect"].get("echo", {}).items():
        assert again[key] == value
    for key, value in CASES[name]["expect"]["calls"][0].get("echo", {}).items():
        assert again["tool_calls"][0][key] == value
    assert body["messages"][3]["tool_call_id"] == again["tool_calls"][0]["id"]


async def test_without_tools_nothing_about_tools_is_sent() -> None:
    extra = {"parallel_tool_calls": False, "tool_choice": "auto", "top_p": 0.5}
    body = await sent(tools=[], messages=[ChatMessage("user", "Go")], extra=extra)
    assert body.keys() == {"model", "messages", "stream", "stream_options", "top_p"}


async def test_names_that_no_endpoint_takes_are_sent_in_another_form_and_come_back_in_ours() -> None:
    case = stream(chunk(call_delta(index=0, id="a", name="kb__search", arguments="{}")), chunk({}, "stop"))
    reply = await reply_to(case | {"tools": ["kb.search"]})
    assert reply.calls[0].name == "kb.search"
    assert reply.calls[0].valid


@pytest.mark.parametrize(
    ("name", "words"), [("stream_options", "extra_forbidden"), ("max_tokens", "unsupported")]
)
async def test_a_parameter_that_a_server_does_not_know_is_left_out_at_once(name: str, words: str) -> None:
    refusal = http(400, {"error": {"message": f"{words}: {name}"}}) | {"id": "no"}
    async with (
        serving(refusal, ANSWER | {"id": "yes"}) as (url, server),
        a_brain(url, "no,yes", max_output_tokens=50) as brain,
    ):
        items = [item async for item in brain.step(request([]))]
    assert isinstance(items[-1], Reply)
    assert name in server.bodies[0]
    assert name not in server.bodies[1]


async def test_the_key_is_never_shown() -> None:
    options = NativeOptions(model="m", api_key="sk-test-1")
    assert "sk-test-1" not in repr(options)
    case = http(401, {"error": {"message": "Incorrect API key provided: sk-test-1"}})
    async with serving(case) as (url, _), a_brain(url, "own") as brain:
        with pytest.raises(ModelError) as caught:
            async for _ in brain.step(request([])):
                pass
    assert "sk-test-1" not in caught.value.message


async def test_nobody_listening_is_a_failure_that_may_pass() -> None:
    async with serving(ANSWER) as (url, _):
        pass
    async with a_brain(url, "own") as brain:
        with pytest.raises(ModelError) as caught:
            async for _ in brain.step(request([])):
                pass
    assert caught.value.retryable
