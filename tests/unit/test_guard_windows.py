"""Limits over windows, as the guardrail holds a call to them: what is asked, what comes back, what is given back."""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from crewline import events as ev
from crewline.bus.base import Message, Record
from crewline.conversation.reserved import SETTLED_MAX
from crewline.errors import UsageError
from crewline.guardrail import Approvals, FactRule, LimitKeeper, LimitRule, PolicyRule, PolicySet, judge_once
from crewline.guardrail.counters import Counted, Counter, count
from crewline.roster import Budgets
from guard_kit import START_MS, Desk, codes, make_policies, make_roster

HOUR_MS = 3_600_000
PER_USER = LimitRule("per-user", ("issue_refund",), 200, 30 * 86_400.0, key="user.id", sum="args.amount")
STORM = LimitRule("storm", ("issue_refund",), 2, 3_600.0, action="deny")
FREE = (PolicyRule("free", ("issue_refund",), action="allow", reason="a test"),)


class Till:
    """The counters' keeper, at hand: what the guardrail sends to `<ns>.limits` is counted, and answered."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.keeper = LimitKeeper(desk.roster.topics, scribe=desk.scribe)
        self.counters: dict[str, Counter] = defaultdict(lambda: Counter(""))
        self.offset = 0
        self.asked: list[ev.LimitAsked] = []
        self.settled: list[ev.LimitSettled] = []

    def take(self, message: Message) -> None:
        key = message.key.decode()
        record = Record(message.topic, 0, self.offset, self.desk.now_ms, message.key, message.value, message.headers)
        self.offset += 1
        entry = self.desk.reader.read(record)
        assert entry.sealed_by == "guard"
        assert message.topic == "demo.limits"
        if isinstance(entry.event, ev.LimitAsked):
            self.asked.append(entry.event)
        else:
            assert isinstance(entry.event, ev.LimitSettled)
            self.settled.append(entry.event)
        counter = self.counters[key] if key in self.counters else self.keeper.view.initial(key)
        self.counters[key] = count(counter, entry)

    def answer(self, reservation: str) -> None:
        """Append the keeper's answer to the conversation."""
        for counter in self.counters.values():
            for effect in self.keeper.pending(counter):
                if effect.id == reservation:
                    (message,) = self.keeper.act(effect, counter)  # type: ignore[misc]
                    self.desk.append(message)

    async def run(self) -> None:
        """Do what the guardrail owes until nothing is left of it but people and settling; settle as well."""
        done: set[str] = set()
        while effects := [each for each in self.desk.guard.pending(self.desk.state)
                          if each.id not in done and each.kind != "approval_deadline"]:
            for effect in effects:
                done.add(effect.id)
                acted = self.desk.guard.act(effect, self.desk.state)
                messages = await acted if inspect.isawaitable(acted) else acted
                for message in messages:
                    if message.topic == "demo.limits":
                        self.take(message)
                        if isinstance(self.desk.reader.read(Record("demo.limits", 0, 0, 0, message.key, message.value,
                                                                   message.headers)).event, ev.LimitAsked):
                            self.answer(self.asked[-1].reservation)
                    else:
                        self.desk.append(message)

    def used(self, key: str) -> float:
        counter = self.counters[key]
        return sum(each.amount for each in counter.open) + sum(each.amount for each in counter.past)

    def verdict(self) -> ev.CallJudged:
        return next(e.event for e in reversed(self.desk.entries) if isinstance(e.event, ev.CallJudged))


def desk_with(*limits: LimitRule, **changes: Any) -> tuple[Desk, Till]:
    changes.setdefault("policies", FREE)
    bounds = ev.Limits(deadline_ms=START_MS + 600_000, max_steps=1_000, tool_calls=1_000)
    desk = Desk(policies=make_policies(limits=limits, **changes), limits=bounds)
    return desk, Till(desk)


def refund(amount: float, order: str = "A") -> tuple[str, dict[str, Any]]:
    return "issue_refund", {"order_id": order, "amount": amount}


async def test_a_call_takes_what_it_needs_and_the_verdict_says_what_is_left() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    await till.run()

    verdict = till.verdict()
    assert verdict.decision == "allow"
    (use,) = verdict.limits
    assert (use.limit, use.amount, use.used, use.max, use.left, use.over) == ("per-user", 80, 0, 200, 120, False)
    assert till.asked[0].window_s == 30 * 86_400
    assert till.asked[0].reservation.startswith("c1:t1:s1:c0:j1:per-user:")
    assert till.used('per-user/"u1"') == 80
    assert verdict.call == "c1:t1:s1:c0"
    assert not till.settled
    desk.finish("ok")
    await till.run()
    assert [(each.ran, each.amount) for each in till.settled] == [(True, 80)]
    assert till.used('per-user/"u1"') == 80


async def test_a_call_without_room_is_held_and_says_which_limit() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(150))
    await till.run()
    desk.finish("ok")
    desk.reply(refund(80, "B"))
    await till.run()

    verdict = till.verdict()
    assert (verdict.decision, codes(verdict)) == ("require_approval", ["limit.per-user"])
    reason = verdict.reasons[0]
    assert reason.say == "150 of 200 are used within 30 days (per-user); this call needs 80, 50 is left."
    assert reason.fix == {"left": 50.0, "max": {"/amount": 50.0}, "retry_at": "2023-12-14T22:13:20.000Z"}
    assert till.used('per-user/"u1"') == 150, "what is held takes nothing yet"


async def test_an_approval_counts_and_passes_the_limit() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(150))
    await till.run()
    desk.finish("ok")
    desk.reply(refund(80, "B"))
    await till.run()
    desk.decide("approve")
    await till.run()

    verdict = till.verdict()
    assert (verdict.decision, verdict.by) == ("allow", "person:ann")
    (use,) = verdict.limits
    assert (use.over, use.used, use.left) == (True, 150, 0)
    assert till.used('per-user/"u1"') == 230
    # The pool came too late: what a person let pass stays so, and is taken once.
    desk.finish("abandoned")
    await till.run()
    assert till.verdict().by == "person:ann"
    assert till.verdict().execution == 2
    assert till.verdict().limits[0].over
    assert till.used('per-user/"u1"') == 230


async def test_who_approves_for_another_reason_sees_the_limit_too() -> None:
    large = (PolicyRule("large", ("issue_refund",), action="require_approval", reason="A person decides."),)
    desk, till = desk_with(PER_USER, policies=large)
    desk.reply(refund(150))
    await till.run()
    assert codes(till.verdict()) == ["policy.large"]
    assert till.asked[-1].take == "look"
    assert till.used('per-user/"u1"') == 0, "a look takes nothing"
    desk.decide("approve")
    await till.run()
    assert (till.verdict().decision, till.asked[-1].take) == ("allow", "reserve")
    desk.finish("ok")
    desk.reply(refund(80, "B"))
    await till.run()
    assert codes(till.verdict()) == ["policy.large", "limit.per-user"]
    desk.decide("approve")
    await till.run()
    assert (till.verdict().decision, till.asked[-1].take) == ("allow", "over")


async def test_no_approval_passes_a_limit_that_denies() -> None:
    large = (PolicyRule("large", ("issue_refund",), action="require_approval", reason="A person decides."),)
    desk, till = desk_with(LimitRule("once", ("issue_refund",), 1, 60.0, action="deny"), policies=large)
    desk.reply(refund(1), refund(2))
    await till.run()
    assert [call.status for call in desk.state.turn.calls] == ["held", "held"]  # type: ignore[union-attr]
    desk.decide("approve", k=0)
    desk.decide("approve", k=1)
    await till.run()
    decisions = [e.event.decision for e in desk.entries if isinstance(e.event, ev.CallJudged) and e.event.judgement == 2]
    assert decisions == ["allow", "deny"]
    assert codes(till.verdict()) == ["limit.once"]


async def test_two_limits_are_asked_one_after_the_other_and_the_first_is_given_back() -> None:
    desk, till = desk_with(PER_USER, STORM)
    for n in range(2):
        desk.reply(refund(10, f"O{n}"))
        await till.run()
        assert [use.limit for use in till.verdict().limits] == ["per-user", "storm"]
        desk.finish("ok")
    desk.reply(refund(10, "O3"))
    await till.run()
    assert (till.verdict().decision, codes(till.verdict())) == ("deny", ["limit.storm"])
    assert till.used('per-user/"u1"') == 20
    assert till.used("storm") == 2
    desk.now_ms += HOUR_MS
    desk.reply(refund(10, "O4"))
    await till.run()
    assert till.verdict().decision == "allow"
    assert till.verdict().limits[1].used == 0


@pytest.mark.parametrize(
    ("outcome", "code", "counts"),
    [
        ("ok", None, True), ("error", "tool.error", True), ("unknown", None, True),
        ("error", "tool.not_run", False), ("refused", "verdict.forged", False), ("revoked", None, False),
    ],
)
async def test_what_did_not_run_is_given_back_and_what_may_have_run_counts(
    outcome: ev.Outcome, code: str | None, counts: bool
) -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    await till.run()
    call = desk.call()
    assert call.verdict is not None
    final = outcome != "unknown"
    desk.write(ev.CallCompleted(call.id, 1, outcome, "", code), call.execution_id if final else f"{call.execution_id}:unknown",
               seal_as="pool/payments")
    await till.run()
    assert till.used('per-user/"u1"') == (80 if counts else 0)


@pytest.mark.parametrize(("resolution", "used"), [("ran", 80), ("give_up", 80), ("not_run", 80)])
async def test_an_unknown_call_counts_until_a_person_has_spoken(resolution: Any, used: float) -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    await till.run()
    desk.finish("unknown")
    await till.run()
    assert not till.settled
    desk.write(ev.CallResolved("c1:t1:s1:c0", 1, resolution, "ann"), "c1:resolved", signed_by="people")
    await till.run()
    # `not_run` opens the next execution: the first reservation is replaced by another, at the same time.
    assert till.used('per-user/"u1"') == used
    assert len(till.asked) == (2 if resolution == "not_run" else 1)
    if resolution == "not_run":
        assert till.asked[1].replaces == (till.asked[0].reservation,)
        assert till.verdict().execution == 2


async def test_an_expired_verdict_does_not_stand_in_its_own_way() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(150))
    await till.run()
    call = desk.call()
    desk.write(ev.CallCompleted(call.id, 1, "refused", "late", "verdict.expired"), f"{call.execution_id}:refused",
               seal_as="pool/payments")
    await till.run()
    assert till.verdict().decision == "allow"
    assert till.used('per-user/"u1"') == 150


async def test_a_cancelled_turn_gives_back_what_was_not_granted_yet() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    (effect,) = desk.guard.pending(desk.state)
    (message,) = desk.guard.act(effect, desk.state)  # type: ignore[misc]
    till.take(message)
    assert till.used('per-user/"u1"') == 80
    desk.write(ev.CancelRequested(turn=1, by="ann"), "cancel-1")
    till.answer(till.asked[0].reservation)
    await till.run()
    assert [each.ran for each in till.settled] == [False]
    assert till.used('per-user/"u1"') == 0


async def test_an_answer_that_comes_after_the_guardrail_was_given_up_on_is_given_back() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    (effect,) = desk.guard.pending(desk.state)
    (message,) = desk.guard.act(effect, desk.state)  # type: ignore[misc]
    till.take(message)
    desk.now_ms += 60_000
    desk.write(ev.CallCompleted("c1:t1:s1:c0", 1, "refused", "away", "guard.unavailable", {"judgement": 1}), "c1:t1:s1:c0:x1")
    assert desk.state.turn is not None
    assert desk.state.turn.step == 2
    till.answer(till.asked[0].reservation)
    await till.run()
    assert till.used('per-user/"u1"') == 0


async def test_an_answer_stands_once() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    (effect,) = desk.guard.pending(desk.state)
    (message,) = desk.guard.act(effect, desk.state)  # type: ignore[misc]
    till.take(message)
    till.take(message)
    till.answer(till.asked[0].reservation)
    before = desk.state
    till.answer(till.asked[0].reservation)
    assert desk.state is before
    assert till.used('per-user/"u1"') == 80


async def test_a_repeated_judgement_asks_for_the_same_reservation() -> None:
    desk, _ = desk_with(PER_USER)
    desk.reply(refund(80))
    (effect,) = desk.guard.pending(desk.state)
    first = desk.guard.act(effect, desk.state)
    again = desk.guard.act(effect, desk.state)
    assert [message.value for message in first] == [message.value for message in again]  # type: ignore[union-attr]


async def test_an_owner_that_asks_otherwise_does_not_give_back_what_the_other_ones_verdict_rests_on() -> None:
    desk, till = desk_with(PER_USER)
    desk.reply(refund(80))
    (ask,) = act(desk)
    till.take(ask)
    till.answer(till.asked[0].reservation)
    (verdict,) = act(desk)  # on its way, while another owner comes with another crew file

    desk.guard.use(desk.roster, make_policies(limits=(replace(PER_USER, max=300),), policies=FREE))
    (ask,) = act(desk)
    till.take(ask)
    desk.append(verdict)
    till.answer(till.asked[1].reservation)
    await till.run()

    assert [each.ran for each in till.settled] == [False], "the second reservation, on which nothing rests"
    assert till.used('per-user/"u1"') == 80
    desk.finish("ok")
    await till.run()
    assert till.used('per-user/"u1"') == 80


def act(desk: Desk) -> Sequence[Message]:
    (effect,) = desk.guard.pending(desk.state)
    return desk.guard.act(effect, desk.state)  # type: ignore[return-value]


async def test_the_facts_of_a_judgement_are_looked_up_once() -> None:
    looked_up = 0

    async def order(tool: str, args: dict[str, Any]) -> Any:
        nonlocal looked_up
        looked_up += 1
        return {"total": 80}

    desk = Desk(policies=make_policies(limits=(PER_USER, STORM)), run_fact=order)
    till = Till(desk)
    desk.reply(refund(20))
    await till.run()
    assert till.verdict().decision == "allow"
    assert len(till.verdict().limits) == 2
    assert looked_up == 1


@pytest.mark.parametrize("amount", [-5, 1e16, "much", None])
async def test_what_cannot_be_counted_is_denied(amount: Any) -> None:
    roster = make_roster()
    limit = LimitRule("any", ("add_note",), 5, 60.0, sum="facts.order.total", action="deny")

    async def order(tool: str, args: dict[str, Any]) -> Any:
        return {"total": amount}

    policies = PolicySet((), facts=(FactRule("order", "find_order", {"order_id": "args.text"}),),
                         approvals=Approvals(("leads",)), limits=(limit,))
    desk = Desk(roster=roster, policies=policies, run_fact=order)
    till = Till(desk)
    desk.reply(("add_note", {"text": "x"}))
    await till.run()
    assert (till.verdict().decision, codes(till.verdict())) == ("deny", ["limit.error"])
    assert not till.asked


async def test_nobodys_calls_share_one_counter_and_values_of_two_kinds_do_not() -> None:
    nobody = Desk(policies=make_policies(limits=(PER_USER,), policies=FREE), user=None)
    till = Till(nobody)
    nobody.reply(refund(80))
    await till.run()
    assert till.used("per-user/null") == 80
    seven = judge_key("7"), judge_key(7), judge_key(7.0), judge_key("x" * 500)
    assert seven[:3] == ('by/"7"', "by/7", "by/7")
    assert seven[3].startswith("by/sha256:")


def judge_key(value: Any) -> str:
    policies = PolicySet((), limits=(LimitRule("by", ("t",), 1, 1.0, key="args.x"),))
    return policies.limits[0].ask("j", {"args": {"x": value}}, "reserve").key


def test_a_limit_that_cannot_be_kept_is_refused_at_load() -> None:
    for rule, says in (
        (LimitRule("a", ("t",), 0, 1.0), "above 0"),
        (LimitRule("a", ("t",), 1, 0.0), "above 0"),
        (LimitRule("a", ("t",), 1, 1.0, key="arg.x"), "did you mean 'args'"),
        (LimitRule("a", ("t",), 1, 1.0, sum="facts.order.total"), "no fact 'order'"),
    ):
        with pytest.raises(UsageError, match=says):
            PolicySet((), limits=(rule,))
    with pytest.raises(UsageError, match="declared twice"):
        PolicySet((), limits=(STORM, STORM))


async def test_a_counter_that_lost_part_of_its_log_grants_nothing() -> None:
    desk, till = desk_with(PER_USER)
    key = 'per-user/"u1"'
    record = Record("demo.limits", 0, 3, START_MS, key.encode(), None, ())
    till.counters[key] = till.keeper.view.reject(Counter(key), record, "log.gap", "records 0 to 2 are gone", parks=True)
    desk.reply(refund(1))
    await till.run()
    assert (till.verdict().decision, codes(till.verdict())) == ("deny", ["limit.per-user"])
    assert "not known any more" in till.verdict().reasons[0].say


def test_a_dry_run_starts_with_nothing_used() -> None:
    policies = make_policies(policies=FREE, limits=(PER_USER,))
    for amount, action in ((200, "allow"), (201, "require_approval")):
        decision = judge_once(make_roster(), policies, "desk", "issue_refund", json.dumps(refund(amount)[1]), user="u1",
                              facts={"order": {"total": 999}})
        assert decision.action == action


# --- budgets for the day -----------------------------------------------------------------------


def day_desk(**day: float) -> tuple[Desk, Till]:
    desk = Desk(roster=make_roster(budgets=Budgets(day=day)), policies=make_policies(policies=FREE),
                limits=ev.Limits(deadline_ms=START_MS + 600_000, day=tuple(day)))
    return desk, Till(desk)


async def test_no_call_of_a_turn_is_judged_before_the_day_has_room() -> None:
    desk, till = day_desk(cost_usd=1.0, tokens=100.0)
    desk.reply(refund(1))
    kinds = [effect.kind for effect in desk.guard.pending(desk.state)]
    assert kinds == ["day_asked", "day_asked"]
    await till.run()
    assert till.verdict().decision == "allow"
    assert {each.limit for each in till.asked} == {"budgets.day.cost_usd", "budgets.day.tokens"}
    assert all(each.day and not each.call for each in till.asked)


async def test_a_turn_of_a_crew_that_has_used_its_day_is_stopped_and_no_call_judged() -> None:
    desk, till = day_desk(tokens=100.0)
    till.counters["budgets.day.tokens"] = Counter("budgets.day.tokens", past=(Counted(START_MS, 120.0),))
    desk.reply(refund(1))
    await till.run()
    assert desk.state.turn is not None
    assert desk.state.turn.cancelled_by == "The crew's budget for the day (tokens: 120 of 100 used)"
    assert not any(isinstance(entry.event, ev.CallJudged) for entry in desk.entries)


@pytest.mark.parametrize("asked_first", [True, False])
async def test_what_a_turn_spent_is_said_when_it_ends(asked_first: bool) -> None:
    """Also of a turn that ended before it was answered, or before anybody asked."""
    desk, till = day_desk(tokens=100.0, cost_usd=9.0, tool_calls=9.0, wall_time=60.0)
    if asked_first:
        await till.run()
    usage = ev.Usage(30, 12)
    desk.write(ev.ModelReplied("desk", 1, "done", usage=usage, cost_usd=0.5), "c1:t1:s1")
    desk.now_ms += 4_000
    desk.write(ev.TurnFinished(1, "i1", "done", "done"), "c1:t1:end")
    await till.run()
    assert {each.limit: till.used(each.limit) for each in till.asked} == ({
        "budgets.day.tokens": 42, "budgets.day.cost_usd": 0.5, "budgets.day.tool_calls": 0, "budgets.day.wall_time": 4,
    } if asked_first else {})
    assert [till.used(f"budgets.day.{what}") for what in ("tokens", "cost_usd", "tool_calls", "wall_time")] == [42, 0.5, 0, 4]


async def test_settled_reservations_are_kept_in_bounds_and_old_answers_are_not_given_back() -> None:
    desk, till = desk_with(LimitRule("many", ("add_note",), 1e6, 60.0, action="deny"))
    first = ""
    for n in range(SETTLED_MAX + 5):
        desk.reply(("add_note", {"text": f"note {n}"}))
        await till.run()
        first = first or till.asked[0].reservation
        desk.finish("ok")
    await till.run()
    assert len(desk.state.reserved) == SETTLED_MAX
    assert desk.state.forgotten == 1
    assert not any(each.answer.reservation == first for each in desk.state.reserved)
    # The keeper repeats the first answer (it went back to an old snapshot): the call ran, so it counts.
    again = ev.LimitAnswered(first, "many", "many", 1, True, "reserve", 1.0, 0.0, 1e6, "c1:t1:s1:c0", 1)
    desk.write(again, first, signed_by="guard")
    assert desk.state.reserved[-1].ended == "ran"
