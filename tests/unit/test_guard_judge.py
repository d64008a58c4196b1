"""Every way that a judgement can end, as the log sees it: sealed, folded, and standing."""

from __future__ import annotations

import asyncio
import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
from crewline import events as ev
from crewline.conversation import sha256_of
from crewline.errors import SealError, UsageError
from crewline.guardrail import Approvals, FactRule, Judge, PolicyRule, judge_once, judge_with
from crewline_tools.base import ToolSpec
from guard_kit import START_MS, TOPIC, Desk, codes, make_policies, make_roster
from hypothesis import given
from hypothesis import strategies as st

# --- the verdict itself --------------------------------------------------------------------------


async def test_a_read_is_allowed_at_once_and_the_verdict_says_everything() -> None:
    desk = Desk()
    desk.reply(("find_order", '{"order_id": "A-1"}'))
    (effect,) = desk.effects()

    acted = desk.guard.act(effect, desk.state)

    assert not inspect.isawaitable(acted), "no fact is needed, so nothing is waited for"
    desk.append(acted[0])
    verdict = desk.entries[-1].event
    spec = desk.roster.tools["find_order"]
    assert verdict == ev.CallJudged(
        call="c1:t1:s1:c0", judgement=1, execution=1, conversation="c1", agent="desk", tool="find_order",
        pool="main", safe=True, decision="allow", args_sha256=sha256_of('{"order_id": "A-1"}'),
        checks=("decode", "catalogue", "schema", "limits", "policies"), policy_set="support", epoch=7, effect="read",
        catalogue=spec.digest(), by="guard", issued_ms=START_MS, expires_ms=START_MS + 60_000,
    )
    assert desk.entries[-1].sealed_by == "guard"
    assert desk.call().status == "granted"


async def test_a_verdict_that_was_touched_is_no_verdict() -> None:
    desk = Desk()
    await desk.ask("find_order", {"order_id": "A-1"})
    record = desk.log[-1]
    seal = dict(record.headers)["seal"].decode()
    changed = (record.value or b"").replace(b"find_order", b"fine_order")

    with pytest.raises(SealError):
        desk.keyring.check(seal, TOPIC, b"c1", "call.judged", "c1:t1:s1:c0:j1", changed)


async def test_an_unsafe_tool_is_called_unsafe() -> None:
    verdict = await Desk().ask("add_note", {"text": "x"})
    assert (verdict.decision, verdict.safe) == ("allow", False)


# --- checks 0 to 2 -------------------------------------------------------------------------------


@pytest.mark.parametrize(("tool", "args", "code"), [
    ("find_order", '{"order_id": "A', "decode.not_json"),
    ("find_order", '{"order_id": "A", "order_id": "B"}', "decode.duplicate_key"),
    ("find_order", '{"order_id": "A\u200b-1"}', "decode.invisible"),
    ("find_ordr", {"order_id": "A"}, "tool.unknown"),
    ("audit_export", {}, "tool.forbidden"),
    ("find_order", {"order_id": "A", "extra": 1}, "schema.extra"),
    ("add_note", {"text": 5}, "schema.type"),
    ("issue_refund", {"order_id": "A", "amount": "5"}, "schema.type"),
    ("delegate", {"capability": "other", "input": 1}, "delegation.forbidden"),
    ("handoff", {"agent": "nobody"}, "handoff.forbidden"),
    ("drop_account", {"id": "1"}, "policy.default"),
])
async def test_what_is_wrong_is_denied_with_its_code_and_refused_in_the_log(tool: str, args: Any, code: str) -> None:
    desk = Desk()
    verdict = await desk.ask(tool, args)

    assert (verdict.decision, codes(verdict)[0]) == ("deny", code)
    assert desk.state.turn is not None
    assert desk.state.turn.step == 2, "the call is closed, and the model goes on"
    assert desk.state.turn.denials == (code,)


async def test_arguments_that_the_brain_calls_incomplete_are_denied_even_if_they_parse() -> None:
    verdict = await Desk().ask("find_order", '{"order_id": "A"}', valid=False)
    assert codes(verdict) == ["decode.not_json"]


async def test_a_catalogue_other_than_the_one_the_model_saw_denies() -> None:
    verdict = await Desk().ask("find_order", {"order_id": "A"}, catalogue="0123456789abcdef")
    assert codes(verdict) == ["tool.changed"]


async def test_an_agent_that_left_the_crew_is_denied() -> None:
    verdict = await Desk(agent="gone").ask("find_order", {"order_id": "A"})
    assert codes(verdict) == ["agent.unknown"]


async def test_a_read_is_amended_and_the_new_bytes_are_the_ones_that_are_granted() -> None:
    desk = Desk()
    verdict = await desk.ask("find_order", '{"order_id": "Ä-1", "limit": "5", "sort": "NEWEST", "full": "True"}')

    assert verdict.decision == "amend"
    assert verdict.arguments == '{"order_id":"Ä-1","limit":5,"sort":"newest","full":true}'
    assert verdict.args_sha256 == sha256_of(verdict.arguments)
    assert verdict.replaces_sha256 == sha256_of('{"order_id": "Ä-1", "limit": "5", "sort": "NEWEST", "full": "True"}')
    assert codes(verdict) == ["amend.coerced"] * 3
    assert desk.call().arguments == verdict.arguments


async def test_a_write_is_amended_only_if_the_tool_says_so() -> None:
    assert (await Desk().ask("set_level", {"level": "5"})).arguments == '{"level":5}'
    verdict = await Desk().ask("add_note", {"text": True})
    assert (verdict.decision, verdict.arguments) == ("deny", None)


async def test_a_read_with_one_more_problem_is_not_amended_at_all() -> None:
    verdict = await Desk().ask("find_order", {"order_id": "A", "limit": "5", "colour": 1})
    assert (verdict.decision, verdict.arguments) == ("deny", None)
    assert sorted(codes(verdict)) == ["schema.extra", "schema.type"]
    assert next(reason for reason in verdict.reasons if reason.code == "schema.type").fix == {"type": "integer", "use": 5}


# --- check 3 -------------------------------------------------------------------------------------


async def test_the_calls_over_the_budget_are_denied_the_first_ones_run() -> None:
    desk = Desk(limits=ev.Limits(tool_calls=2))
    desk.reply(*[("find_order", {"order_id": f"A-{k}"}) for k in range(3)])

    assert [(await desk.judge(k)).decision for k in (1, 0, 2)] == ["allow", "allow", "deny"]


async def test_the_same_side_effect_call_is_denied_with_its_earlier_result() -> None:
    desk = Desk()
    await desk.ask("add_note", '{"text": "x"}')
    desk.finish(output="note 17")

    verdict = await desk.ask("add_note", '{ "text" : "x" }')

    assert codes(verdict) == ["repeat.same_call"], "other spaces do not make another call"
    assert "note 17" in verdict.reasons[0].say


async def test_an_idempotent_payment_is_a_repeat_too() -> None:
    desk = Desk()
    await desk.ask("issue_refund", {"order_id": "A", "amount": 5})
    desk.finish()
    assert codes(await desk.ask("issue_refund", {"amount": 5, "order_id": "A"})) == ["repeat.same_call"]


async def test_the_same_side_effect_twice_in_one_reply_is_done_once() -> None:
    desk = Desk()
    desk.reply(("add_note", '{"text": "x"}'), ("add_note", '{"text":"x"}'), ("add_note", '{"text": "y"}'))
    verdicts = [await desk.judge(k) for k in (0, 1, 2)]
    assert [verdict.decision for verdict in verdicts] == ["allow", "deny", "allow"]
    assert codes(verdicts[1]) == ["repeat.same_call"]


async def test_a_read_may_be_repeated() -> None:
    desk = Desk()
    await desk.ask("find_order", {"order_id": "A"})
    desk.finish()
    assert (await desk.ask("find_order", {"order_id": "A"})).decision == "allow"


async def test_a_failed_side_effect_may_be_tried_once_more() -> None:
    desk = Desk()
    for expected in ("allow", "allow"):
        assert (await desk.ask("add_note", {"text": "x"})).decision == expected
        desk.finish("error", "the disk is full", code="tool.error")
    verdict = await desk.ask("add_note", {"text": "x"})
    assert codes(verdict) == ["repeat.failed"]
    assert (await desk.ask("add_note", {"text": "shorter"})).decision == "allow"


async def test_after_an_unknown_outcome_a_person_is_asked_before_it_is_done_again() -> None:
    desk = Desk()
    await desk.ask("add_note", {"text": "x"})
    call = desk.call()
    desk.finish("unknown", "it timed out")
    desk.write(ev.CallResolved(call.id, 1, "give_up", "ann"), "resolved", signed_by="people")

    verdict = await desk.ask("add_note", {"text": "x"})

    assert (verdict.decision, codes(verdict)) == ("require_approval", ["repeat.unknown"])


async def test_after_two_denials_of_one_code_a_person_is_asked() -> None:
    desk = Desk()
    for _ in range(2):
        assert (await desk.ask("drop_account", {"id": "1"})).decision == "deny"
    verdict = await desk.ask("drop_account", {"id": "1"})
    assert (verdict.decision, codes(verdict)) == ("require_approval", ["denied.twice", "policy.default"])

    desk.decide("approve")
    verdict = await desk.judge()
    assert (verdict.decision, verdict.by) == ("allow", "person:ann")


async def test_checks_0_to_2_and_budgets_are_never_handed_to_a_person() -> None:
    desk = Desk(limits=ev.Limits(tool_calls=3))
    for _ in range(3):
        assert codes(await desk.ask("no_such", {"id": "1"}))[0] == "tool.unknown"
    for _ in range(3):
        assert codes(await desk.ask("find_order", {"order_id": "1"})) == ["budget.tool_calls"]


# --- check 6 and facts ---------------------------------------------------------------------------


async def test_policies_see_facts_that_the_guardrail_looked_up_itself() -> None:
    desk = Desk()
    verdict = await desk.ask("issue_refund", {"order_id": "A", "amount": 5})
    assert (verdict.decision, verdict.facts) == ("allow", {"order": {"order_id": "A", "total": 80}})

    verdict = await Desk().ask("issue_refund", {"order_id": "A", "amount": 500})
    assert (verdict.decision, codes(verdict)) == ("deny", ["policy.within-order", "policy.large-refund"])


async def test_a_fact_that_fails_denies_and_is_named() -> None:
    async def broken(tool: str, args: dict[str, Any]) -> Any:
        raise RuntimeError("no database")

    verdict = await Desk(run_fact=broken).ask("issue_refund", {"order_id": "A", "amount": 5})
    assert codes(verdict) == ["facts.unavailable"]
    assert "'order'" in verdict.reasons[0].say
    assert "database" not in verdict.reasons[0].say


async def test_without_anybody_to_look_facts_up_their_policies_deny() -> None:
    verdict = await Desk(run_fact=None).ask("issue_refund", {"order_id": "A", "amount": 5})
    assert codes(verdict) == ["facts.unavailable"]


async def test_a_fact_that_hangs_is_cut_off() -> None:
    from crewline.guardrail.facts import FactFinder

    async def hangs(tool: str, args: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    found, missing = await FactFinder(hangs, timeout_s=0.0).look_up(
        make_policies(), ["order"], {"args": {"order_id": "A"}, "user": {}, "run": {}}, {})
    assert (found, [reason.code for reason in missing]) == ({}, ["facts.unavailable"])


async def test_whole_numbers_reach_the_tool_of_a_fact_as_integers() -> None:
    seen: list[dict[str, Any]] = []

    async def look(tool: str, args: dict[str, Any]) -> Any:
        seen.append(args)
        return {"total": 80}

    desk = Desk(run_fact=look, policies=make_policies(facts=(FactRule("order", "find_order", {"n": "args.amount"}),)))
    await desk.ask("issue_refund", {"order_id": "A", "amount": 5})
    assert json.dumps(seen) == '[{"n": 5}]'


async def test_a_fact_gets_what_its_tool_is_given_by_us() -> None:
    seen: list[Any] = []

    async def look(*given: Any) -> Any:
        seen.append(given)
        return {"total": 80}

    roster = make_roster()
    tools = {**roster.tools, "find_order": replace(roster.tools["find_order"], inject={"customer": "user.id"})}
    desk = Desk(roster=replace(roster, tools=tools), run_fact=look)
    assert (await desk.ask("issue_refund", {"order_id": "A", "amount": 5})).decision == "allow"
    assert seen == [("find_order", {"order_id": "A"}, {"customer": "u1"})]


@pytest.mark.parametrize("tool", ["issue_refund", "nowhere"])
def test_a_fact_comes_from_a_read_tool_or_the_crew_does_not_start(tool: str) -> None:
    with pytest.raises(UsageError, match="order"):
        Judge(make_roster(), make_policies(facts=(FactRule("order", tool, {}),)))


# --- people --------------------------------------------------------------------------------------


async def held() -> Desk:
    desk = Desk()
    verdict = await desk.ask("issue_refund", '{"order_id": "A", "amount": 60}')
    assert verdict.decision == "require_approval"
    assert verdict.approval == ev.ApprovalAsked(("leads",), START_MS + 600_000)
    assert desk.call().status == "held"
    return desk


async def test_an_approval_leads_to_a_fresh_verdict_by_the_person() -> None:
    desk = await held()
    desk.decide("approve")
    verdict = await desk.judge()

    assert (verdict.decision, verdict.by, verdict.judgement, verdict.execution) == ("allow", "person:ann", 2, 1)
    assert verdict.args_sha256 == sha256_of('{"order_id": "A", "amount": 60}')
    assert "policies" not in verdict.checks
    assert desk.call().status == "granted"


async def test_the_requester_cannot_approve_and_wins_no_time_by_it() -> None:
    desk = await held()
    desk.now_ms += 1_000
    desk.decide("approve", by="u1")
    verdict = await desk.judge()

    assert (verdict.decision, codes(verdict)) == ("require_approval", ["approval.self", "policy.large-refund"])
    assert verdict.approval == ev.ApprovalAsked(("leads",), START_MS + 600_000)
    desk.decide("approve", by="ann")
    assert (await desk.judge()).by == "person:ann"


async def test_the_requester_cannot_edit_past_a_policy() -> None:
    desk = await held()
    desk.decide("edit", by="u1", arguments='{"order_id": "A", "amount": 5000}')
    assert codes(await desk.judge())[0] == "policy.within-order"


async def test_an_edit_is_checked_and_its_bytes_are_granted() -> None:
    desk = await held()
    edited = '{"order_id": "A", "amount": 55}'
    desk.decide("edit", arguments=edited)
    verdict = await desk.judge()

    assert (verdict.decision, verdict.by) == ("allow", "person:ann")
    assert (verdict.arguments, verdict.args_sha256) == (edited, sha256_of(edited))
    assert verdict.replaces_sha256 == sha256_of('{"order_id": "A", "amount": 60}')
    assert desk.call().arguments == edited


@pytest.mark.parametrize(("edited", "code"), [
    ('{"order_id": "A"', "decode.not_json"),
    ('{"order_id": "A", "amount": "55"}', "schema.type"),
    ('{"order_id": "A", "amount": 55, "to": "me"}', "schema.extra"),
])
async def test_a_person_cannot_edit_past_checks_0_to_2(edited: str, code: str) -> None:
    desk = await held()
    desk.decide("edit", arguments=edited)
    verdict = await desk.judge()
    assert (verdict.decision, verdict.by, codes(verdict)) == ("deny", "guard", [code])


async def test_an_approval_outlives_an_expired_verdict() -> None:
    desk = await held()
    desk.decide("approve")
    await desk.judge()
    desk.finish("refused", "too late", code="verdict.expired")
    verdict = await desk.judge()
    assert (verdict.decision, verdict.by, verdict.judgement, verdict.execution) == ("allow", "person:ann", 3, 2)


@pytest.mark.parametrize("newer", [{"epoch": 8}, {"name": "support@2"}])
async def test_an_approval_ends_with_the_policies_it_was_given_under(newer: dict[str, Any]) -> None:
    desk = await held()
    desk.decide("approve")
    desk.guard.use(desk.roster, make_policies(**newer))
    verdict = await desk.judge()
    assert (verdict.decision, codes(verdict)) == ("require_approval", ["policy.large-refund"])


async def test_an_edit_ends_with_the_policies_it_was_made_under() -> None:
    desk = await held()
    desk.decide("edit", arguments='{"order_id": "A", "amount": 20}')
    desk.guard.use(desk.roster, make_policies(epoch=8))
    verdict = await desk.judge()
    assert (verdict.decision, verdict.by) == ("allow", "guard"), "small enough to need nobody"


async def test_what_needs_a_person_is_denied_if_nobody_can_approve() -> None:
    desk = Desk(policies=make_policies(approvals=None))
    verdict = await desk.ask("issue_refund", {"order_id": "A", "amount": 60})
    assert (verdict.decision, codes(verdict)) == ("deny", ["policy.large-refund", "approval.nobody"])
    assert make_policies(approvals=Approvals(())).approvals is None


async def test_at_the_deadline_the_guardrail_denies() -> None:
    desk = await held()
    (effect,) = desk.effects()
    assert (effect.kind, effect.due_ms) == ("approval_deadline", START_MS + 600_000)

    decided = await desk.run(effect)

    assert isinstance(decided, ev.ApprovalDecided)
    assert (decided.decision, decided.by, desk.entries[-1].id) == ("deny", "deadline", "c1:t1:s1:c0:j1:deadline")
    assert desk.entries[-1].sealed_by == "guard"
    assert not desk.state.rejected
    assert desk.effects() == []


async def test_a_held_amendment_is_what_the_person_approves() -> None:
    policies = make_policies(policies=[PolicyRule("ask", ("set_level",), action="require_approval", reason="Ask.")])
    desk = Desk(policies=policies)
    verdict = await desk.ask("set_level", {"level": "5"})
    assert (verdict.decision, verdict.arguments) == ("require_approval", '{"level":5}')
    desk.decide("approve")
    verdict = await desk.judge()
    assert (verdict.decision, verdict.by, desk.call().arguments) == ("allow", "person:ann", '{"level":5}')


# --- fail closed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["begin", "end"])
async def test_whatever_fails_inside_denies(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Judge, half, broken)
    for tool, args in (("find_order", {"order_id": "A"}), ("issue_refund", {"order_id": "A", "amount": 1})):
        verdict = await Desk().ask(tool, args)
        assert (verdict.decision, codes(verdict)) == ("deny", ["guard.error"])


async def test_a_verdict_too_large_for_a_record_is_a_small_denial() -> None:
    async def large(tool: str, args: dict[str, Any]) -> Any:
        return {"total": 80, "text": "x" * 1_000_000}

    desk = Desk(run_fact=large)
    verdict = await desk.ask("issue_refund", {"order_id": "A", "amount": 5})
    assert codes(verdict) == ["verdict.too_large"]
    assert len(desk.log[-1].value or b"") < 2_000


async def test_a_fact_that_no_record_can_hold_denies() -> None:
    async def huge(tool: str, args: dict[str, Any]) -> Any:
        return {"total": 80, "number": 10**40}

    assert codes(await Desk(run_fact=huge).ask("issue_refund", {"order_id": "A", "amount": 5})) == ["verdict.too_large"]


async def test_an_effect_of_a_call_that_is_gone_does_nothing() -> None:
    desk = Desk()
    desk.reply(("find_order", {"order_id": "A"}))
    (effect,) = desk.effects()
    assert desk.guard.act(effect, Desk().state) == ()


def test_a_tool_without_a_usable_schema_stops_the_start_and_is_named() -> None:
    broken = ToolSpec("odd", "", {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, "read")
    roster = make_roster()
    desk = roster.agents["desk"]
    other = type(roster)("demo", "1", {"desk": type(desk)("desk", desk.brain, tools=("odd",))}, {"odd": broken})
    with pytest.raises(UsageError, match="odd"):
        Judge(other, make_policies(facts=(), policies=()))


# --- without a log -------------------------------------------------------------------------------


def test_a_dry_run_decides_without_a_log() -> None:
    roster, policies = make_roster(), make_policies()
    args = '{"order_id": "A", "amount": 60}'
    facts = {"order": {"total": 80}}
    assert judge_once(roster, policies, "desk", "issue_refund", args, facts=facts).action == "require_approval"
    assert judge_once(roster, policies, "desk", "issue_refund", args).reasons[0].code == "facts.unavailable"
    assert judge_once(roster, policies, "nobody", "issue_refund", args).reasons[0].code == "agent.unknown"
    assert judge_once(roster, policies, "desk", "find_order", '{"order_id": "A"}', user="u").action == "allow"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)
JUDGE = Judge(make_roster(), make_policies())
ROSTER = make_roster()


@given(tool=st.sampled_from([*ROSTER.tools, "delegate", "handoff", "find_ordr"]) | st.text(),
       args=st.text() | JSON.map(json.dumps)
       | st.dictionaries(st.sampled_from(["order_id", "amount", "text", "level", "id", "limit"]), JSON).map(json.dumps))
def test_no_call_crashes_and_what_is_granted_fits_the_schema(tool: str, args: str) -> None:
    decision = judge_with(JUDGE, ROSTER, "desk", tool, args, facts={"order": {"total": 80}})

    if decision.action == "deny":
        assert decision.reasons
        return
    offer = JUDGE.catalogue.find("desk", tool)
    assert offer is not None
    given = json.loads(decision.arguments or args or "{}")
    assert offer.schema.problems(given) == []
    assert decision.args_sha256 == sha256_of(decision.arguments or args)
    if offer.spec.effect != "read" and not offer.spec.auto_amend:
        assert decision.arguments is None, "writes are never changed silently"


