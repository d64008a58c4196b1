"""What every brain promises, asked of each of them. The native one talks to a real HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from crewline.errors import ModelError
from crewline_agents.base import Brain, ChatMessage, Note, Reply, StepItem, StepRequest, TextDelta, ToolOffer
from crewline_agents.native import NativeBrain, NativeOptions
from crewline_agents.script import Script
from crewline_agents.scripted import ScriptedBrain

REQUEST = StepRequest(
    "c1:t1:s1",
    "c1",
    "r1",
    "clerk",
    1,
    1,
    1,
    "You are a clerk.",
    [ChatMessage("user", "Find A and B.")],
    [ToolOffer("find", "Finds.", {"type": "object"})],
)


@dataclass(frozen=True)
class Says:
    """What the model behind a brain does in one step."""

    text: str = ""
    calls: Sequence[str] = ()
    fails: bool | None = None  # retryable or not
    hangs: bool = False


MakeBrain = Callable[[Says], Awaitable[Brain]]


def scripted(says: Says) -> Brain:
    entry: dict[str, Any] = {"say": says.text}
    if says.calls:
        entry["calls"] = [{"call": "find", "raw_arguments": arguments} for arguments in says.calls]
    if says.fails is not None:
        entry = {"fail": {"retryable": says.fails}}
    if says.hangs:
        entry["delay"] = "60m"
    return ScriptedBrain(Script.of({"clerk": [entry]}))


def wire(says: Says) -> bytes:
    calls = [
        {"index": k, "function": {"name": "find", "arguments": each}} for k, each in enumerate(says.calls)
    ]
    deltas = [{"content": piece} for piece in says.text.partition(" ") if piece]
    chunks = [{"choices": [{"delta": delta}]} for delta in [*deltas, {"tool_calls": calls}]]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )


class Endpoint:
    """A server that says one thing to everybody; `left` is set when a client leaves before the end."""

    def __init__(self, says: Says) -> None:
        self._says = says
        self.left = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = {None: "200 OK", True: "503 No", False: "401 No"}[self._says.fails]
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".encode()
        )
        if self._says.hangs:
            while await reader.read(1000):
                pass
            self.left.set()
        elif self._says.fails is None:
            writer.write(wire(self._says))
        writer.close()


@pytest.fixture(params=["native", "scripted"])
async def make_brain(request: pytest.FixtureRequest) -> AsyncIterator[MakeBrain]:
    brains: list[Brain] = []
    servers: list[asyncio.Server] = []

    async def make(says: Says) -> Brain:
        if request.param == "scripted":
            brains.append(scripted(says))
        else:
            pytest.importorskip("openai")
            server = await asyncio.start_server(Endpoint(says).handle, "127.0.0.1", 0)
            servers.append(server)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            brains.append(NativeBrain(NativeOptions(model="m", base_url=url, timeout_s=5, silence_s=5)))
        return brains[-1]

    yield make
    for brain in brains:
        await brain.close()
    for server in servers:
        server.close()


async def items_of(brain: Brain, request: StepRequest = REQUEST) -> list[StepItem]:
    return [item async for item in brain.step(request)]


async def test_the_last_item_is_the_only_reply(make_brain: MakeBrain) -> None:
    items = await items_of(await make_brain(Says("All is well.")))
    assert isinstance(items[-1], Reply)
    assert all(isinstance(item, TextDelta | Note) for item in items[:-1])


async def test_the_pieces_add_up_to_the_text(make_brain: MakeBrain) -> None:
    *pieces, reply = await items_of(await make_brain(Says("All is well, 🚀.")))
    assert isinstance(reply, Reply)
    assert reply.text == "All is well, 🚀."
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == reply.text


async def test_ids_are_unique_not_empty_and_the_same_on_a_replay(make_brain: MakeBrain) -> None:
    brain = await make_brain(Says(calls=["{}"] * 5))
    first, again = [(await items_of(brain))[-1] for _ in range(2)]
    assert isinstance(first, Reply)
    assert first == again
    assert len({call.id for call in first.calls}) == 5
    assert all(call.id for call in first.calls)
    assert first.finish == "tool_calls"


async def test_arguments_are_the_models_text_and_marked_if_they_are_no_object(make_brain: MakeBrain) -> None:
    texts = ['{ "a":1.0 }', '{"a":', "[]", '{"a":NaN}', '{"a":1,"a":2}', '{"a":"\\ud83d"}']
    reply = (await items_of(await make_brain(Says(calls=texts))))[-1]
    assert isinstance(reply, Reply)
    assert [call.arguments for call in reply.calls] == texts
    assert [call.valid for call in reply.calls] == [True, False, False, False, False, False]
    assert all((call.problem is None) == call.valid for call in reply.calls)


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_failure_is_a_model_error_that_says_whether_to_try_again(
    make_brain: MakeBrain, retryable: bool
) -> None:
    brain = await make_brain(Says(fails=retryable))
    with pytest.raises(ModelError) as caught:
        await items_of(brain)
    assert caught.value.retryable is retryable


async def test_a_cancelled_step_stops_at_once(make_brain: MakeBrain) -> None:
    brain = await make_brain(Says("Later.", hangs=True))
    task = asyncio.create_task(items_of(brain))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)


async def test_a_closed_step_can_be_followed_by_another(make_brain: MakeBrain) -> None:
    brain = await make_brain(Says("All is well."))
    step: Any = brain.step(REQUEST)
    async with aclosing(step):
        assert await anext(step)
    assert isinstance((await items_of(brain))[-1], Reply)


async def test_closing_twice_does_nothing_more(make_brain: MakeBrain) -> None:
    brain = await make_brain(Says("a"))
    await items_of(brain)
    await brain.close()
    await brain.close()


async def test_steps_side_by_side_do_not_mix(make_brain: MakeBrain) -> None:
    brain = await make_brain(Says("One two three.", calls=["{}"]))
    requests = [replace_id(REQUEST, f"c{k}:t1:s1") for k in range(8)]
    replies = [items[-1] for items in await asyncio.gather(*(items_of(brain, each) for each in requests))]
    assert {reply.text for reply in replies if isinstance(reply, Reply)} == {"One two three."}


def replace_id(request: StepRequest, id: str) -> StepRequest:
    return msgspec.structs.replace(request, id=id)


async def test_the_endpoint_learns_that_a_step_was_cancelled() -> None:
    pytest.importorskip("openai")
    endpoint = Endpoint(Says(hangs=True))
    server = await asyncio.start_server(endpoint.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    brain = NativeBrain(NativeOptions(model="m", base_url=url, timeout_s=0.3))
    with pytest.raises(ModelError):
        await items_of(brain)
    await asyncio.wait_for(endpoint.left.wait(), 2)
    await brain.close()
    server.close()
