"""Check 6: all matching policies count, the strictest wins, and whatever fails denies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from crewline.errors import UsageError
from crewline.guardrail import FactRule, PolicyRule, PolicySet
from crewline.guardrail.policies import NAMES

VALUES: dict[str, Any] = {
    "args": {"amount": 60, "to": "ann"}, "facts": {"order": {"total": 80}}, "user": {"id": "u1"},
    "run": {"id": "r1", "gathered": []}, "agent": "desk", "tool": "pay", "effect": "write", "origins": {},
    "untrusted_seen": False,
}
ORDER = FactRule("order", "find_order", {"id": "args.id"})


def rule(name: str, when: str | None = None, action: Any = "deny", **more: Any) -> PolicyRule:
    return PolicyRule(name, when=when, action=action, reason=f"{name} says so.", **more)


def decide(*rules: PolicyRule, tool: str = "pay", agent: str = "desk", effect: str = "write", **values: Any) -> tuple[str, list[str]]:
    decided = PolicySet(rules, facts=[ORDER]).decide(tool, agent, effect, {**VALUES, **values})
    return decided.action, [reason.code for reason in decided.reasons]


def test_all_names_are_in_scope() -> None:
    assert set(VALUES) == set(NAMES)
    assert decide(rule("all", " && ".join(f"type({name}) != int" for name in NAMES))) == ("deny", ["policy.all"])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_strictest_wins_whatever_the_order(order: tuple[int, ...]) -> None:
    rules = [rule("a", action="allow"), rule("b", action="require_approval"), rule("c")]
    assert decide(*(rules[k] for k in order)) == ("deny", ["policy.c", "policy.b"])
    two = [rules[k] for k in order if k != 2]
    assert decide(*two) == ("require_approval", ["policy.b"])


@pytest.mark.parametrize(("effect", "expected"), [
    ("read", ("allow", [])), ("write", ("allow", [])), ("destructive", ("deny", ["policy.default"])),
    ("something new", ("deny", ["policy.default"])),
])
def test_where_nothing_matches_what_cannot_be_undone_is_denied(effect: str, expected: tuple[str, list[str]]) -> None:
    assert decide(effect=effect) == expected
    assert decide(rule("no", "args.amount > 100.0", "allow"), effect=effect) == expected


def test_an_allowing_policy_lets_a_destructive_call_pass() -> None:
    assert decide(rule("ok", "args.amount < 100.0", "allow"), effect="destructive") == ("allow", [])


@pytest.mark.parametrize("action", ["allow", "require_approval", "deny"])
@pytest.mark.parametrize("when", ["args.missing > 1.0", "args.amount", "args.to > 5.0", "facts.order.nothing == 1.0", "args.to[9] == 'x'"])
def test_an_expression_that_fails_or_is_no_boolean_denies(when: str, action: Any) -> None:
    assert decide(rule("odd", when, action)) == ("deny", ["policy.error"])


def test_a_failing_expression_says_its_policys_name_and_nothing_else() -> None:
    decided = PolicySet([rule("secret", "args.to == 5.0 || args.hidden")]).decide("pay", "desk", "write", VALUES)
    assert [reason.say for reason in decided.reasons] == ["The policy 'secret' cannot be decided for this call."]


def test_a_policy_counts_for_its_tools_and_agents_only() -> None:
    assert decide(rule("x", tools=("other",))) == ("allow", [])
    assert decide(rule("x", agents=("other",))) == ("allow", [])
    assert decide(rule("x", tools=("pay", "other"), agents=("desk",))) == ("deny", ["policy.x"])


def test_whole_numbers_compare_with_doubles() -> None:
    assert decide(rule("x", "args.amount > 50.0 && args.amount > 50 && args.amount == 60"))[0] == "deny"


def test_only_facts_that_a_covering_policy_reads_are_needed() -> None:
    facts = [FactRule(name, "find_order", {}) for name in ("order", "customer", "stock")]
    policies = PolicySet([
        rule("a", "facts.order.total > 1.0", tools=("pay",)),
        rule("b", "facts.customer.vip", tools=("pay",), agents=("other",)),
        rule("c", "args.note == 'facts.stock'", tools=("pay",)),
        rule("d", "size(facts) > 1", tools=("bulk",)),
    ], facts=facts)
    assert policies.covering("pay", "desk").facts == ("order",)
    assert policies.covering("pay", "other").facts == ("customer", "order")
    assert policies.covering("bulk", "desk").facts == ("customer", "order", "stock")
    assert policies.covering("read", "desk").facts == ()


@pytest.mark.parametrize(("policies", "facts", "match"), [
    ([rule("typo", "arg.amount > 1.0")], [], "typo"),
    ([rule("broken", "args.amount >")], [], "broken"),
    ([rule("gone", "facts.nobody.x == 1.0")], [], "nobody"),
    ([rule("two"), rule("two")], [], "twice"),
    ([rule("late", stage="output")], [], "stage"),
    ([rule("odd", action="maybe")], [], "maybe"),
    ([], [FactRule("order", "find", {"id": "facts.other"})], "order"),
    ([], [ORDER, ORDER], "twice"),
])
def test_what_is_wrong_is_refused_at_load_with_its_name(policies: Any, facts: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        PolicySet(policies, facts=facts)
