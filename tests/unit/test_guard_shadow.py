"""Shadow mode: policies are judged on real calls, and nothing is held or denied for them."""

from __future__ import annotations

from typing import Any

import pytest
from crewline import events as ev
from crewline.guardrail import LimitRule, PolicyRule
from guard_kit import Desk, codes, make_policies


def shadow_desk(**changes: Any) -> Desk:
    return Desk(policies=make_policies(shadow=True, **changes))


@pytest.mark.parametrize(
    ("amount", "would", "code"),
    [(20, "", None), (60, "require_approval", "policy.large-refund"), (90, "deny", "policy.within-order")],
)
async def test_what_would_have_happened_is_in_the_verdict(amount: float, would: str, code: str | None) -> None:
    verdict = await shadow_desk().ask("issue_refund", {"order_id": "A", "amount": amount})

    assert (verdict.decision, verdict.would) == ("allow", would)
    assert codes(verdict)[:1] == ([code] if code else [])
    assert verdict.approval is None


async def test_the_default_that_denies_is_a_policy_too() -> None:
    verdict = await shadow_desk().ask("drop_account", {"id": "7"})
    assert (verdict.decision, verdict.would, codes(verdict)) == ("allow", "deny", ["policy.default"])


async def test_facts_that_are_not_to_be_had_stop_nothing() -> None:
    desk = Desk(policies=make_policies(shadow=True), run_fact=None)
    verdict = await desk.ask("issue_refund", {"order_id": "A", "amount": 20})
    assert (verdict.decision, verdict.would, codes(verdict)) == ("allow", "deny", ["facts.unavailable"])


async def test_a_repeat_is_noted_and_let_pass_again_and_again() -> None:
    desk = shadow_desk()
    for n in range(4):
        verdict = await desk.ask("add_note", {"text": "x"})
        assert (verdict.decision, verdict.would) == ("allow", "deny" if n else "")
        desk.finish("ok")


@pytest.mark.parametrize(
    ("tool", "args", "code"),
    [
        ("add_note", "{", "decode.not_json"), ("add_noet", {}, "tool.unknown"), ("audit_export", {}, "tool.forbidden"),
        ("add_note", {"text": 5}, "schema.type"),
    ],
)
async def test_what_cannot_run_is_denied_as_ever(tool: str, args: Any, code: str) -> None:
    verdict = await shadow_desk().ask(tool, args)
    assert (verdict.decision, verdict.would, codes(verdict)[0]) == ("deny", "", code)


async def test_the_runs_budget_holds_as_ever_also_beside_a_repeat() -> None:
    desk = Desk(policies=make_policies(shadow=True), limits=ev.Limits(tool_calls=1))
    await desk.ask("add_note", {"text": "x"})
    desk.finish("ok")
    verdict = await desk.ask("add_note", {"text": "x"})
    assert (verdict.decision, codes(verdict)) == ("deny", ["budget.tool_calls", "repeat.same_call"])


async def test_a_person_is_never_asked_to_let_a_budget_pass() -> None:
    """A repeat beside a budget that is used up: after two denials no person is asked instead."""
    desk = Desk(limits=ev.Limits(tool_calls=1))
    await desk.ask("add_note", {"text": "x"})
    desk.finish("ok")
    for _ in range(3):
        verdict = await desk.ask("add_note", {"text": "x"})
        assert (verdict.decision, codes(verdict)) == ("deny", ["budget.tool_calls", "repeat.same_call"])


async def test_a_limit_without_room_is_noted_and_takes_nothing() -> None:
    from test_guard_windows import Till

    free = (PolicyRule("free", ("issue_refund",), action="allow", reason="a test"),)
    desk = shadow_desk(policies=free, limits=(LimitRule("purse", ("issue_refund",), 100, 60.0, sum="args.amount"),))
    till = Till(desk)
    for amount, would in ((80, ""), (70, "require_approval"), (20, "")):
        desk.reply(("issue_refund", {"order_id": "A", "amount": amount}))
        await till.run()
        assert (till.verdict().decision, till.verdict().would) == ("allow", would)
        desk.finish("ok")
    await till.run()
    assert till.used("purse") == 100
