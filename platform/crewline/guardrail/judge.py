"""The judgement: every check in its order, pure but for the facts that are looked up between two halves.

    begin   checks 0 to 3: decode, catalogue, schema, limits; says which facts the policies need
    end     check 6: policies; then a person's word, repeated denials; limits over windows; the decision

Limits over windows come last, since a reservation is taken for what would run: the judgement stops to
ask each counter (`Decision.ask`), and is made again with the answer.

A check that denies ends the judgement, so that no later one sees what the earlier did not accept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from crewline_tools.base import ToolSpec
from crewline_tools.builtin import DELEGATE, HANDOFF

from crewline import events as ev
from crewline.conversation import Call, Conversation, Turn, answers_of, sha256_of
from crewline.errors import UsageError
from crewline.expressions import Expression, ExpressionError
from crewline.guardrail.catalogue import Catalogue, Offer
from crewline.guardrail.decode import decode
from crewline.guardrail.limits import limits
from crewline.guardrail.policies import INJECT_NAMES, PolicySet, compiled
from crewline.guardrail.windows import Ask, WindowLimit, told, use_of
from crewline.roster import Roster

log = logging.getLogger("crewline.guardrail")

_FORBIDDEN = {(DELEGATE, "/capability"): "delegation.forbidden", (HANDOFF, "/agent"): "handoff.forbidden"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a call's judgement comes to.

    `arguments` are the bytes it is about, if they are not the model's own (amended, or edited by a
    person); `args_sha256` is their hash in any case. `person`: who let it pass, if a person did.
    `ask`: there is no decision yet, this counter is to be asked first; `limits`: what those asked gave.
    `would`: what the decision would have been, had the policies not been in shadow mode.
    """

    action: Literal["allow", "amend", "require_approval", "deny"]
    args_sha256: str
    reasons: tuple[ev.Reason, ...] = ()
    arguments: str | None = None
    replaces_sha256: str | None = None
    facts: dict[str, Any] | None = None
    checks: tuple[str, ...] = ()
    tool: ToolSpec | None = None
    catalogue: str = ""
    person: str | None = None
    ask: Ask | None = None
    limits: tuple[ev.LimitUse, ...] = ()
    would: Literal["", "require_approval", "deny"] = ""


@dataclass(slots=True)
class Judgement:
    """A judgement under way. `facts` are the names to be looked up before `end`; `values` what expressions see.

    `answers` are what counters have said in this judgement, by reservation.
    """

    call: Call
    turn: Turn
    # The bytes that count, and their hash: amended ones replace those that were asked for.
    text: str
    sha256: str
    asked_sha256: str
    offer: Offer | None = None
    args: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    amended: bool = False
    person: str | None = None
    facts: tuple[str, ...] = ()
    checks: list[str] = field(default_factory=list)
    notes: list[ev.Reason] = field(default_factory=list)
    held: list[ev.Reason] = field(default_factory=list)
    denied: list[ev.Reason] = field(default_factory=list)
    # Whether a person may let pass what denied it: checks 3 (repeats) and 6, never 0 to 2.
    overridable: bool = False
    answers: Mapping[str, ev.LimitAnswered] = field(default_factory=dict)
    limits: list[ev.LimitUse] = field(default_factory=list)


class Judge:
    """Everything a judgement needs, compiled. Replaced whole when the crew or the policies change.

    Raises: UsageError if a tool's parameters are no JSON Schema, or a fact is no read tool of the crew.
    """

    def __init__(self, roster: Roster, policies: PolicySet) -> None:
        self.policies = policies
        self.injects: dict[str, dict[str, Expression]] = {}  # of the tools that facts are looked up with
        try:
            self.catalogue = Catalogue(roster)
        except ValueError as error:
            raise UsageError(str(error)) from None
        for name, fact in policies.facts.items():
            tool = roster.tools.get(fact.rule.tool)
            if tool is None or tool.effect != "read":
                what = "is not declared" if tool is None else f"has effect {tool.effect!r}"
                raise UsageError(f"fact {name!r}: tool {fact.rule.tool!r} {what}; facts come from `effect: read` tools")
            if tool.inject:
                self.injects[tool.name] = {
                    arg: compiled(f"tool {tool.name!r}, inject {arg!r}", text, INJECT_NAMES) for arg, text in tool.inject.items()
                }

    def begin(self, state: Conversation, call: Call) -> Judgement:
        """Return the judgement of `call` after checks 0 to 3. It is decided if `denied` holds something."""
        assert state.turn is not None
        turn = state.turn
        text = call.edited if call.edited is not None else call.arguments
        sha256 = sha256_of(text)
        judged = Judgement(call, turn, text, sha256, sha256)
        if not self._decode(judged) or not self._catalogue(judged) or not self._schema(judged):
            return judged
        assert judged.offer is not None
        judged.person = self._approved_by(judged)
        if judged.person is not None and judged.person == turn.asked.user:
            say = f"{judged.person} asked for this and cannot approve it; another person must."
            judged.held.append(ev.Reason("approval.self", say))
            judged.person = None  # so the policies are asked again, as if nobody had spoken
        judged.checks.append("limits")
        judged.overridable = True
        for found in limits(turn, call, judged.offer.spec, judged.args, judged.sha256):
            if found.person and judged.person is not None:
                continue
            (judged.denied if found.action == "deny" else judged.held).append(found.reason)
            judged.overridable = judged.overridable and found.person
        if not judged.denied:
            covering = self.policies.covering(judged.offer.spec.name, turn.agent)
            if judged.person is None or covering.limits:
                judged.values = self._values(state, judged)
                judged.facts = covering.facts if judged.person is None else covering.limit_facts
                judged.answers = answers_of(state, call) if state.reserved else {}
        return judged

    def end(self, judged: Judgement, facts: Mapping[str, Any], missing: list[ev.Reason]) -> Decision:
        """Return the decision. `facts` are those looked up, `missing` the reasons for those that were not."""
        if not judged.denied and judged.person is None and judged.offer is not None:
            self._decide_policies(judged, facts, missing)
        if judged.denied and judged.overridable and not self.policies.shadow:
            self._ask_instead(judged)
        if not judged.denied and judged.offer is not None and judged.values:
            asked = self._count(judged, facts, missing)
            if asked is not None:
                return replace(self._decision(judged, "deny", [], facts), ask=asked)
        if self.policies.shadow and judged.overridable and (judged.denied or judged.held):
            would: Literal["deny", "require_approval"] = "deny" if judged.denied else "require_approval"
            reasons = [*judged.denied, *judged.held, *judged.notes]
            return replace(self._decision(judged, "amend" if judged.amended else "allow", reasons, facts), would=would)
        if judged.denied:
            return self._decision(judged, "deny", judged.denied, facts)
        if judged.held:
            if self.policies.approvals is None:
                nobody = ev.Reason("approval.nobody", "A person would have to approve this call, and nobody can.")
                return self._decision(judged, "deny", [*judged.held, nobody], facts)
            return self._decision(judged, "require_approval", judged.held, facts)
        return self._decision(judged, "amend" if judged.amended else "allow", judged.notes, facts)

    # --- checks --------------------------------------------------------------------------------

    def _decode(self, judged: Judgement) -> bool:
        judged.checks.append("decode")
        args, judged.denied = decode(judged.text)
        if not judged.denied and not judged.call.valid and judged.call.edited is None:
            # The brain saw more than the text (it was cut off, say), and never takes a doubt back.
            say = f"The arguments are not complete: {(judged.call.problem or 'the reply was cut off')[:200]}."
            judged.denied = [ev.Reason("decode.not_json", say, "", {"send": "one JSON object"})]
        judged.args = args or {}
        return not judged.denied

    def _catalogue(self, judged: Judgement) -> bool:
        judged.checks.append("catalogue")
        turn, name = judged.turn, judged.call.name
        judged.offer = self.catalogue.find(turn.agent, name)
        judged.denied = self.catalogue.problems(turn.agent, name, turn.catalogue, judged.args)
        return not judged.denied

    def _schema(self, judged: Judgement) -> bool:
        judged.checks.append("schema")
        offer = judged.offer
        assert offer is not None
        if offer.schema.fits(judged.args):
            return True
        better, notes = offer.schema.coerce(judged.args)
        if (offer.spec.effect == "read" or offer.spec.auto_amend) and notes and offer.schema.fits(better):
            judged.args, judged.notes, judged.amended = better, notes, True
            judged.text = json.dumps(better, ensure_ascii=False, separators=(",", ":"))
            judged.sha256 = sha256_of(judged.text)
            return True
        judged.denied = [_told(offer.spec.name, problem, notes) for problem in offer.schema.problems(judged.args)]
        return False

    def _decide_policies(self, judged: Judgement, facts: Mapping[str, Any], missing: list[ev.Reason]) -> None:
        assert judged.offer is not None
        spec = judged.offer.spec
        judged.checks.append("policies")
        judged.overridable = True
        if missing:
            judged.denied += missing
            return
        judged.values["facts"] = dict(facts)
        decided = self.policies.decide(spec.name, judged.turn.agent, spec.effect, judged.values)
        if decided.action == "deny":
            judged.denied += decided.reasons
        elif decided.action == "require_approval":
            judged.held += decided.reasons

    def _count(self, judged: Judgement, facts: Mapping[str, Any], missing: list[ev.Reason]) -> Ask | None:
        """Hold the call to every limit over a window; return what is to be asked of a counter before."""
        assert judged.offer is not None
        limits = self.policies.covering(judged.offer.spec.name, judged.turn.agent).limits
        if not limits:
            return None
        judged.checks.append("windows")
        judged.values["facts"] = dict(facts)
        for limit in limits:
            if missing and limit.facts:
                judged.denied += missing
                return None
            try:
                asked = limit.ask(judged.call.judgement_id, judged.values, self._take(judged, limit))
            except ExpressionError as error:
                log.warning("limit %r failed on a call of %r: %s", limit.rule.name, judged.call.name, error.message)
                say = f"The limit {limit.rule.name!r} cannot be counted for this call."
                judged.denied.append(ev.Reason("limit.error", say))
                return None
            answer = judged.answers.get(asked.reservation)
            if answer is None:
                return asked
            if not answer.granted:
                held = limit.rule.action == "require_approval" and answer.problem is None
                (judged.held if held else judged.denied).append(told(limit, answer))
            elif answer.take != "look":
                judged.limits.append(use_of(answer))
        return None

    def _take(self, judged: Judgement, limit: WindowLimit) -> ev.Take:
        """A call that waits for a person takes nothing yet; one that a person let pass beyond a limit takes
        what it needs, if that was said when the person was asked."""
        if (judged.denied or judged.held) and not self.policies.shadow:
            return "look"
        before = judged.call.verdict
        if judged.person is None or before is None or limit.rule.action != "require_approval":
            return "reserve"
        asked = any(reason.code == f"limit.{limit.rule.name}" for reason in before.reasons)
        passed = any(use.over and use.limit == limit.rule.name for use in before.limits)
        return "over" if asked or passed else "reserve"

    def _ask_instead(self, judged: Judgement) -> None:
        """After two denials of the same code in a row a person is asked, instead of a third try."""
        code = judged.denied[0].code
        if self.policies.approvals is not None and judged.turn.denials[-2:] == (code, code):
            asked = ev.Reason("denied.twice", "This was denied twice already; a person decides now.")
            judged.held = [asked, *judged.denied, *judged.held]
            judged.denied = []

    # --- what is known -------------------------------------------------------------------------

    def _approved_by(self, judged: Judgement) -> str | None:
        """Return who approved these very bytes under the policies in force, or None.

        An approval outlives a new judgement (the verdict expired, the pool came too late) as long as the
        verdict before was the one that was approved, or one given on its strength.
        """
        call, before = judged.call, judged.call.verdict
        if call.approved_by is None or before is None or call.approved_sha256 != judged.asked_sha256:
            return None
        given = before.decision == "require_approval" or before.by.startswith("person:")
        same = (before.epoch, before.policy_set) == (self.policies.epoch, self.policies.name)
        return call.approved_by if given and same else None

    def _values(self, state: Conversation, judged: Judgement) -> dict[str, Any]:
        turn = judged.turn
        assert judged.offer is not None
        origins = (turn.asked.origin.kind, *(past.origin for past in state.history))
        untrusted = any(origin != "user" for origin in origins) or any(
            message.role == "tool" for messages in (turn.messages, *(past.messages for past in state.history))
            for message in messages
        )
        return {
            "args": judged.args,
            "facts": {},
            "user": {"id": turn.asked.user},
            "run": {"id": turn.run, "gathered": [{"capability": each.capability} for each in turn.asked.gathered]},
            "agent": turn.agent,
            "tool": judged.call.name,
            "effect": judged.offer.spec.effect,
            "origins": {},
            "untrusted_seen": untrusted,
        }

    def _decision(
        self, judged: Judgement, action: Literal["allow", "amend", "require_approval", "deny"],
        reasons: list[ev.Reason], facts: Mapping[str, Any],
    ) -> Decision:
        other = judged.amended or judged.call.edited is not None
        return Decision(
            action=action,
            args_sha256=judged.sha256,
            reasons=tuple(reasons),
            arguments=judged.text if other else None,
            replaces_sha256=sha256_of(judged.call.arguments) if other else None,
            facts=dict(facts) or None,
            checks=tuple(judged.checks),
            tool=judged.offer.spec if judged.offer is not None else None,
            catalogue=judged.offer.digest if judged.offer is not None else "",
            person=judged.person,
            limits=tuple(judged.limits) if action in ("allow", "amend") else (),
        )


def _told(tool: str, problem: ev.Reason, notes: list[ev.Reason]) -> ev.Reason:
    """Return a schema's reason under its better code, with the value that was surely meant, if one is."""
    code = _FORBIDDEN.get((tool, problem.path or ""), problem.code) if problem.code == "schema.enum" else problem.code
    note = next((note for note in notes if note.path == problem.path and note.fix), None)
    fix = problem.fix if note is None or note.fix is None else {**(problem.fix or {}), "use": note.fix["value"]}
    return ev.Reason(code, problem.say, problem.path, fix)
