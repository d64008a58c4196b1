"""Check 6: policies. All that match count, the strictest action wins, and what fails denies.

    PolicyRule FactRule Approvals   as declared (crew file, or by hand); limits: windows.py
    PolicySet                       compiled: `covering` names what may match, `decide` says what does

Nothing in a policy's expression or in other people's data reaches a model: a reason says the policy's
name and its `reason` alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from crewline import events as ev
from crewline.errors import CrewlineError, UsageError
from crewline.expressions import Expression
from crewline.guardrail.windows import LimitRule, WindowLimit

log = logging.getLogger("crewline.guardrail")

Action = Literal["allow", "require_approval", "deny"]
NAMES = ("args", "facts", "user", "run", "agent", "tool", "effect", "origins", "untrusted_seen")
FACT_NAMES = ("args", "user", "run")
INJECT_NAMES = ("user", "run", "agent")
_ORDER: Mapping[Action, int] = {"allow": 0, "require_approval": 1, "deny": 2}


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A policy as declared. No `tools` or `agents` means every one; no `when` means always.

    `reason` is one sentence for the model, the approver and the audit.
    """

    name: str
    tools: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    when: str | None = None
    action: Action = "deny"
    reason: str = ""
    stage: str = "tool_call"


@dataclass(frozen=True, slots=True)
class FactRule:
    """A value that the guardrail looks up itself with a read tool; `args` are CEL over args, user, run."""

    name: str
    tool: str
    args: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Approvals:
    """Who may approve a held call, and for how long it is held."""

    approvers: tuple[str, ...]
    timeout_s: float = 3_600.0


class Decided(NamedTuple):
    """What the policies say about a call."""

    action: Action
    reasons: tuple[ev.Reason, ...]


class _Policy:
    """A policy, compiled. `facts` are the names of the facts its expression reads."""

    __slots__ = ("expression", "facts", "rule")

    def __init__(self, rule: PolicyRule, known: frozenset[str]) -> None:
        if rule.stage != "tool_call":
            raise UsageError(f"policy {rule.name!r}: stage {rule.stage!r} is not enforced yet; use `tool_call`")
        if rule.action not in _ORDER:
            raise UsageError(f"policy {rule.name!r}: action {rule.action!r} is none of {', '.join(_ORDER)}")
        self.rule = rule
        self.expression = None if rule.when is None else compiled(f"policy {rule.name!r}", rule.when, NAMES)
        read = frozenset() if self.expression is None else self.expression.fields("facts")
        self.facts: frozenset[str] = known if read is None else read
        if unknown := self.facts - known:
            there = ", ".join(sorted(known)) or "none"
            raise UsageError(f"policy {rule.name!r}: no fact {sorted(unknown)[0]!r} is declared; there is: {there}")

    def covers(self, tool: str, agent: str) -> bool:
        rule = self.rule
        return (not rule.tools or tool in rule.tools) and (not rule.agents or agent in rule.agents)


class _Fact(NamedTuple):
    rule: FactRule
    args: Mapping[str, Expression]


class Covering(NamedTuple):
    """What may match calls of one tool by one agent, and the facts that takes; `limit_facts`: the limits alone."""

    policies: tuple[_Policy, ...]
    limits: tuple[WindowLimit, ...]
    facts: tuple[str, ...]
    limit_facts: tuple[str, ...]


class PolicySet:
    """Policies, facts and approvals in force together; compiled once, swapped whole.

    Args:
        name, epoch: what verdicts call this set. A newer set has a higher epoch.
        approvals: None if nobody can approve; then what needs a person is denied.
        limits: what calls may take within windows of time.
        shadow: policies, limits and repeats are judged, and what they would have done is in the verdict; nothing is
            held or denied for them.

    Raises: UsageError naming the policy, limit or fact with an unknown name, a broken expression or a double name.
    """

    def __init__(
        self,
        policies: Sequence[PolicyRule] = (),
        *,
        facts: Sequence[FactRule] = (),
        approvals: Approvals | None = None,
        epoch: int = 0,
        name: str = "",
        limits: Sequence[LimitRule] = (),
        shadow: bool = False,
    ) -> None:
        self.approvals = approvals if approvals is not None and approvals.approvers else None
        self.shadow = shadow
        self.epoch = epoch
        self.name = name
        _unique("policy", [rule.name for rule in policies])
        _unique("fact", [rule.name for rule in facts])
        self.facts: dict[str, _Fact] = {
            rule.name: _Fact(
                rule,
                {arg: compiled(f"fact {rule.name!r}, argument {arg!r}", text, FACT_NAMES)
                 for arg, text in rule.args.items()},
            )
            for rule in facts
        }
        known = frozenset(self.facts)
        self._policies = tuple(_Policy(rule, known) for rule in policies)
        _unique("limit", [rule.name for rule in limits])
        self.limits = tuple(WindowLimit(rule, NAMES, known) for rule in limits)
        self._covering: dict[tuple[str, str], Covering] = {}

    def covering(self, tool: str, agent: str) -> Covering:
        """Return the policies that may match, and the names of the facts to be looked up for them."""
        found = self._covering.get((tool, agent))
        if found is None:
            policies = tuple(policy for policy in self._policies if policy.covers(tool, agent))
            limits = tuple(limit for limit in self.limits if tool in limit.rule.tools)
            limit_facts = {name for limit in limits for name in limit.facts}
            facts = limit_facts.union(*(policy.facts for policy in policies))
            # Asked only about tools and agents of the catalogue, so this cannot grow without bound.
            found = self._covering[tool, agent] = Covering(
                policies, limits, tuple(sorted(facts)), tuple(sorted(limit_facts))
            )
        return found


    def decide(self, tool: str, agent: str, effect: str, values: Mapping[str, Any]) -> Decided:
        """Return what all matching policies say together. `values` holds every name of `NAMES`.

        Nothing matches: `read` and `write` are allowed, `destructive` is denied (`policy.default`). An
        expression that fails, or is neither true nor false, denies (`policy.error`).
        """
        action: Action = "allow"
        matched = False
        found: list[tuple[Action, ev.Reason]] = []
        for policy in self.covering(tool, agent).policies:
            rule = policy.rule
            says = rule.action
            try:
                if policy.expression is not None and policy.expression.truth(values) is not True:
                    continue
                reason = ev.Reason(f"policy.{rule.name}", rule.reason or f"The policy {rule.name!r} applies.")
            except Exception as error:  # whatever it is, nobody knows whether the policy matches
                log.warning("policy %r failed on a call of %r: %s", rule.name, tool, error)
                says = "deny"
                reason = ev.Reason("policy.error", f"The policy {rule.name!r} cannot be decided for this call.")
            matched = True
            found.append((says, reason))
            if _ORDER[says] > _ORDER[action]:
                action = says
        if not matched and effect not in ("read", "write"):
            say = f"No policy allows {tool!r}, and what it does cannot be undone."
            return Decided("deny", (ev.Reason("policy.default", say),))
        if action == "allow":
            return Decided("allow", ())
        # The strictest first; what a person would have to settle follows, so that all is said at once.
        found.sort(key=lambda each: -_ORDER[each[0]])
        return Decided(action, tuple(reason for says, reason in found if says != "allow"))


def _unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name!r} is declared twice")


def compiled(where: str, text: str, names: Sequence[str]) -> Expression:
    """Return the expression. Raises: UsageError that says `where` it stands."""
    try:
        return Expression.compile(text, names=names)
    except CrewlineError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None
