"""The scripted brain: which entry answers follows from the request alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from crewline.errors import ModelError
from crewline_agents.base import ChatMessage, Reply, StepRequest, TextDelta
from crewline_agents.script import Script, ScriptError, load_script
from crewline_agents.scripted import ScriptedBrain


def request(*messages: ChatMessage, agent: str = "clerk", turn: int = 1, attempt: int = 1) -> StepRequest:
    return StepRequest(
        "c:t1:s1", "c", "r", agent, turn, len(messages), attempt, "You are a clerk.", messages, []
    )


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def said(text: str = "", agent: str = "clerk") -> ChatMessage:
    return ChatMessage("assistant", text, name=agent)


def result(tool: str, value: Any) -> ChatMessage:
    return ChatMessage("tool", value if isinstance(value, str) else json.dumps(value), call_id="x", name=tool)


async def answer(script: Any, asked: StepRequest) -> Reply:
    brain = ScriptedBrain(Script.of(script))
    items = [item async for item in brain.step(asked)]
    reply = items[-1]
    assert isinstance(reply, Reply)
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == reply.text
    return reply


async def failure(script: Any, asked: StepRequest) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await answer(script, asked)
    return caught.value


TWO = {"clerk": [{"call": "find", "args": {"id": "A"}}, {"say": "Here it is."}], "boss": [{"say": "No."}]}


async def test_an_agent_goes_on_where_its_own_replies_of_this_turn_end() -> None:
    past = [user("old"), said("x"), said("y"), said("z")]
    first = await answer(TWO, request(*past, user("go")))
    assert [(call.name, call.arguments, call.valid) for call in first.calls] == [("find", '{"id":"A"}', True)]
    assert first.finish == "tool_calls"

    second = await answer(TWO, request(user("go"), said(), result("find", "…")))
    assert (second.text, second.finish) == ("Here it is.", "stop")

    after_a_handoff = request(user("go"), said(), result("handoff", "ok"), agent="boss")
    assert (await answer(TWO, after_a_handoff)).text == "No."


async def test_the_same_request_has_the_same_reply() -> None:
    asked = request(user("go"))
    assert await answer(TWO, asked) == await answer(TWO, asked)


async def test_a_script_that_is_used_up_says_so() -> None:
    error = await failure(TWO, request(user("go"), said(), result("find", "…"), said("Here"), agent="clerk"))
    assert not error.retryable
    assert "script of agent 'clerk' has 2 entries" in error.message


async def test_an_agent_without_a_script_says_so() -> None:
    assert "nothing for agent 'cook'" in (await failure(TWO, request(user("go"), agent="cook"))).message


async def test_what_is_expected_and_missing_is_shown_with_the_end_of_the_prompt() -> None:
    script = {"clerk": [{"expect": "A-1001", "say": "ok"}]}
    assert (await answer(script, request(user("order A-1001")))).text == "ok"
    error = await failure(script, request(user("order B-7" + "!" * 300)))
    assert "'A-1001'" in error.message
    assert error.message.endswith("!" * 200 + "'")
    assert not error.retryable


async def test_calls_together_delegation_and_handoff() -> None:
    script = {
        "clerk": [
            {
                "say": "Both.",
                "calls": [{"call": "find", "args": {"id": 1}}, {"call": "read", "raw_arguments": '{"a": '}],
            },
            {"delegate": "refund.decide", "args": {"id": "A", "why": "broken"}},
            {"handoff": "boss"},
        ]
    }
    both = await answer(script, request(user("go")))
    assert [(call.name, call.valid) for call in both.calls] == [("find", True), ("read", False)]
    assert both.calls[1].arguments == '{"a": '
    assert len({call.id for call in both.calls}) == 2

    delegated = await answer(script, request(user("go"), said()))
    assert delegated.calls[0].name == "delegate"
    assert json.loads(delegated.calls[0].arguments) == {
        "capability": "refund.decide",
        "input": {"id": "A", "why": "broken"},
    }
    handed = await answer(script, request(user("go"), said(), said()))
    assert (handed.calls[0].name, handed.calls[0].arguments) == ("handoff", '{"agent":"boss"}')


async def test_a_failure_is_played_for_as_many_attempts_as_it_says() -> None:
    always = {"clerk": [{"fail": {"retryable": True, "say": "overloaded"}}]}
    error = await failure(always, request(user("go"), attempt=7))
    assert (error.retryable, error.message) == (True, "overloaded")

    twice = {"clerk": [{"fail": {"attempts": 2}, "say": "now"}]}
    await failure(twice, request(user("go"), attempt=2))
    assert (await answer(twice, request(user("go"), attempt=3))).text == "now"
    assert not (await failure({"clerk": [{"fail": {"retryable": False}}]}, request(user("go")))).retryable


async def test_a_delay_is_slept_on_the_clock_that_was_given() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    brain = ScriptedBrain(Script.of({"clerk": [{"delay": "50ms", "say": "a"}]}), sleep=sleep)
    assert [item async for item in brain.step(request(user("go")))]
    assert slept == [0.05]


async def test_turns_are_chosen_by_the_users_words_or_take_turns() -> None:
    script = {
        "clerk": {
            "turns": [
                {"when": "broken", "steps": [{"say": "sorry"}]},
                {"match": r"order (?P<order>A-\d+)", "steps": [{"say": "order {match.order}"}]},
                [{"say": "one"}],
                [{"say": "two"}],
            ]
        }
    }
    assert (await answer(script, request(user("it is broken")))).text == "sorry"
    assert (await answer(script, request(user("my order A-12")))).text == "order A-12"
    assert [(await answer(script, request(user("hi"), turn=n))).text for n in (1, 2, 3)] == [
        "one",
        "two",
        "one",
    ]


async def test_places_are_filled_with_results_and_keep_their_kind() -> None:
    found = result("kb.search", {"hits": [{"id": "A", "total": 80.5}]})
    args = {"total": "{result.kb.search.hits.0.total}", "note": "id {result.kb.search.hits.0.id}", "n": 3}
    reply = await answer(
        {"clerk": [{"say": ""}, {"call": "pay", "args": args}]}, request(user("go"), said(), found)
    )
    assert json.loads(reply.calls[0].arguments) == {"total": 80.5, "note": "id A", "n": 3}

    edited = result("find", 'A reviewer (ann) changed your call: {"id":"B"}\n{"id":"B"}')
    script = {"clerk": [{"say": ""}, {"say": '{"reply": "{result.find.id}"}'}]}
    assert (await answer(script, request(user("go"), said(), edited))).text == '{"reply": "B"}'


@pytest.mark.parametrize(
    "place", ["{result.find.nope}", "{result.read}", "{match.nope}", "{result.find.id.0.x}"]
)
async def test_a_place_that_cannot_be_filled_fails_by_name(place: str) -> None:
    script = {"clerk": [{"say": ""}, {"say": place}]}
    error = await failure(script, request(user("go"), said(), result("find", {"id": 5})))
    assert place.strip("{}") in error.message
    assert not error.retryable


FILE = """\
# a script
clerk:
  - expect: A-1001
    call: find
    args: {id: A-1001, amount: 80, at: 2026-01-02, ok: yes, deep: [1, {b: null}]}
  - say: >-
      done,
      all of it
"""


async def test_a_file_says_the_same_as_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(FILE)
    brain = ScriptedBrain(load_script(path))
    *_, reply = [item async for item in brain.step(request(user("A-1001")))]
    assert isinstance(reply, Reply)
    assert json.loads(reply.calls[0].arguments) == {
        "id": "A-1001",
        "amount": 80,
        "at": "2026-01-02",
        "ok": "yes",
        "deep": [1, {"b": None}],
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("clerk:\n  - say: a\n    sya: b\n", 3, "no key 'sya'"),
        ("clerk:\n  - say: a\n  - call: x\n    delegate: y\n", 3, "one of"),
        ("clerk:\n  - say: a\n  - args: {}\n", 3, "needs"),
        ("clerk:\n  - say: a\n    args: {}\n", 2, "belong to a call"),
        ("clerk:\n  - call: x\n    args: [1]\n", 3, "must be a mapping"),
        ("clerk:\n  - call: x\n    args: {}\n    raw_arguments: ''\n", 2, "not both"),
        ("clerk:\n  - calls: []\n", 2, "must be a list"),
        ("clerk:\n  - calls:\n      - call: x\n        arg: {}\n", 4, "no key 'arg'"),
        ("clerk:\n  - say: a\n    delay: 50\n", 3, "duration"),
        ("clerk:\n  - fail: {retryable: maybe}\n", 2, "true or false"),
        ("clerk:\n  - match: '('\n    say: a\n", 2, "regular expression"),
        ("clerk: hello\n", 1, "list of entries"),
        ("a: [{say: x}]\nclerk:\n  turns: []\n", 3, "must be a list"),
        ("clerk:\n  turns:\n    - when: a\n      step: []\n", 4, "no key 'step'"),
        ("- say: a\n", 1, "maps agents"),
        ("clerk:\n  - say: a\n    say: b\n", 3, "duplicate"),
        ("clerk: [\n", 2, ""),
        ("clerk:\n  - say: [a]\n", 2, "must be a text"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ScriptError) as caught:
        load_script(path)
    assert caught.value.message.startswith(f"{path}:{line}: "), caught.value.message
    assert words in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("script.invalid", 3)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"nowhere\.yaml"):
        load_script(tmp_path / "nowhere.yaml")
