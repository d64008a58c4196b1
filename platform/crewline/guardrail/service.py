"""The guardrail's role: it judges every call of a conversation, ends approvals, and keeps the audit chain.

    Engine(Guardrail(...)) on <ns>.conversations: reads model.replied and approval.decided, writes call.judged

A call under a limit over a window takes one hop more for each: `limit.asked` to `<ns>.limits`, and the
judgement is made again when `limit.answered` is in the conversation (keeper.py).

Fail closed: whatever goes wrong inside a judgement, the verdict is `deny`; if even that cannot be
written there is none, and nothing runs without one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from crewline import events as ev
from crewline.bus.base import Message, Record
from crewline.conversation import Call, Conversation, ConversationView, guard_pending, sha256_of, step_id
from crewline.conversation.calls import call_of
from crewline.engine import Acted, Effect, View
from crewline.errors import RecordInvalid, RecordTooLarge
from crewline.guardrail import days
from crewline.guardrail.audit import AuditTrail
from crewline.guardrail.facts import FactFinder, RunFact, unavailable
from crewline.guardrail.judge import Decision, Judge, Judgement
from crewline.guardrail.policies import PolicySet
from crewline.guardrail.windows import Ask
from crewline.records import GUARD, Scribe
from crewline.roster import Roster

log = logging.getLogger("crewline.guardrail")

VERDICT_MS = 60_000  # how long a verdict is good for
FACTS_MAX = 1_024  # judgements waiting for a counter whose facts are kept, so that they are looked up once a call


class Guardrail:
    """The guardrail's role. Give it to an `Engine` on `<ns>.conversations`.

    Args:
        roster: the crew as it is now.
        policies: the policies in force.
        scribe: holds the guardrail's Ed25519 key.
        clock_ms: wall clock.
        run_fact: runs a read tool for a fact; None: policies that need facts deny.
        view: shared with other roles of this process that fold the same log.
        audit: where checkpoints of the hash chain go; None: the chain is kept, no checkpoint is written.

    Raises: UsageError if crew and policies do not fit together.
    """

    name = "guardrail"

    def __init__(
        self,
        roster: Roster,
        *,
        policies: PolicySet,
        scribe: Scribe,
        clock_ms: Callable[[], int],
        run_fact: RunFact | None = None,
        audit: AuditTrail | None = None,
        view: ConversationView | None = None,
    ) -> None:
        self.topic = roster.topics.conversations
        self._limits_topic = roster.topics.limits
        self._crew = roster.crew
        self._day = roster.budgets.day
        self.view: View[Conversation] = view or ConversationView()
        self._scribe = scribe
        self._clock_ms = clock_ms
        self._finder = FactFinder(run_fact) if run_fact is not None else None
        self._audit = audit if audit is not None else AuditTrail(scribe, clock_ms=clock_ms)
        self._judge = Judge(roster, policies)
        self._looked_up: OrderedDict[str, tuple[dict[str, Any], list[ev.Reason]]] = OrderedDict()

    @property
    def policies(self) -> PolicySet:
        """The policies in force."""
        return self._judge.policies

    def use(self, roster: Roster, policies: PolicySet) -> None:
        """Put a crew and policies into force, at once and whole. Raises: UsageError; then nothing changes."""
        self._judge = Judge(roster, policies)
        self._day = roster.budgets.day

    # --- the engine's side ---------------------------------------------------------------------

    def pending(self, state: Conversation) -> Sequence[Effect]:
        effects = guard_pending(state)
        return days.pending(state, effects, self._day, self._crew) if self._day else effects

    def observe(self, carry: bytes, record: Record) -> bytes:
        return self._audit.observe(carry, record)

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        return self._audit.checkpoint(self.topic, partition, next_offset, carry)

    def act(self, effect: Effect, state: Conversation) -> Acted:
        if effect.kind == "settle":
            return self._settle(effect, state)
        if effect.kind == days.ASK:
            return self._ask_for_turn(effect, state)
        if effect.kind == days.STOP:
            return self._stop_turn(effect, state)
        call = call_of(state, effect.ref)
        if call is None:
            return ()
        if effect.kind == "approval_deadline":
            return self._end_approval(effect, state, call)
        judge = self._judge  # one set for the whole judgement, whatever is put into force meanwhile
        try:
            judged = judge.begin(state, call)
            if judged.facts and not judged.denied:
                return self._with_facts(effect, state, judge, judged)
            return self._decided(effect, state, call, judge, judge.end(judged, {}, []))
        except Exception:  # fail closed: whatever went wrong, the call is denied
            return self._failed(effect, state, call, judge)

    async def _with_facts(
        self, effect: Effect, state: Conversation, judge: Judge, judged: Judgement
    ) -> Sequence[Message]:
        judgement_id = judged.call.judgement_id
        try:
            known = self._looked_up.pop(judgement_id, None)
            if known is not None and set(judged.facts) <= known[0].keys():
                facts, missing = known
            elif self._finder is None:
                facts, missing = {}, [unavailable(name) for name in judged.facts]
            else:
                facts, missing = await self._finder.look_up(judge.policies, judged.facts, judged.values, judge.injects)
            decision = judge.end(judged, facts, missing)
            if decision.ask is not None:
                self._looked_up[judgement_id] = (facts, missing)
                if len(self._looked_up) > FACTS_MAX:
                    self._looked_up.popitem(last=False)
            return self._decided(effect, state, judged.call, judge, decision)
        except Exception:  # fail closed: whatever went wrong, the call is denied
            return self._failed(effect, state, judged.call, judge)

    # --- limits over windows -------------------------------------------------------------------

    def _decided(
        self, effect: Effect, state: Conversation, call: Call, judge: Judge, decision: Decision
    ) -> Sequence[Message]:
        """Return the verdict; or, if a counter has to be asked first, the ask."""
        if decision.ask is None:
            return self._verdict(effect, state, call, judge, decision)
        asked = decision.ask
        # What this call has taken of the same counter before is given back by the same record: it must not
        # stand in its own way. (After an expired verdict, say.) Not what was taken for this very judgement: another
        # owner, with other facts or another crew file, may be writing the verdict that rests on it.
        replaces = tuple(
            each.answer.reservation
            for each in state.reserved
            if each.answer.call == call.id and each.answer.key == asked.key and each.ended != "ran"
            and each.answer.judgement < call.judgement
        )
        return [self._asked(state, asked, call=call.id, judgement=call.judgement, replaces=replaces)]

    def _asked(
        self, state: Conversation, asked: Ask, *, call: str = "", judgement: int = 0, day: bool = False,
        replaces: tuple[str, ...] = (),
    ) -> Message:
        assert state.turn is not None
        event = ev.LimitAsked(
            asked.reservation, state.id, state.turn.number, asked.limit, asked.amount, asked.max, asked.window_s, day,
            call, judgement, asked.take, replaces,
        )
        return self._to_limits(asked.key, event, f"{asked.reservation}:asked", state.turn.run, call)

    def _settle(self, effect: Effect, state: Conversation) -> Sequence[Message]:
        known = next((each for each in state.reserved if each.answer.reservation == effect.ref), None)
        if known is None:
            return ()
        settled = ev.LimitSettled(
            effect.ref, known.ended == "ran", known.amount, not known.answer.call, known.ended_ms
        )
        return [self._to_limits(known.answer.key, settled, effect.id, state.id, known.answer.call)]

    def _to_limits(self, key: str, event: ev.Event, id: str, run: str, cause: str) -> Message:
        return self._scribe.message(self._limits_topic, key, event, id=id, run=run, cause=cause, signed_by=GUARD)

    def _ask_for_turn(self, effect: Effect, state: Conversation) -> Sequence[Message]:
        most = self._day.get(effect.ref)
        if most is None or state.turn is None:
            return ()
        return [self._asked(state, days.ask(effect.id, effect.ref, most), day=True)]

    def _stop_turn(self, effect: Effect, state: Conversation) -> Sequence[Message]:
        assert state.turn is not None
        stop = ev.CancelRequested(turn=state.turn.number, by=days.told(state, state.turn))
        cause = step_id(state.id, state.turn)
        return [self._scribe.message(self.topic, state.id, stop, id=effect.id, run=state.turn.run, cause=cause)]

    # --- verdicts ------------------------------------------------------------------------------

    def _verdict(
        self, effect: Effect, state: Conversation, call: Call, judge: Judge, decision: Decision
    ) -> Sequence[Message]:
        """Return the decision as a signed record; a smaller denial if it does not fit into one."""
        assert state.turn is not None
        now_ms, spec, policies = self._clock_ms(), decision.tool, judge.policies
        verdict = ev.CallJudged(
            call=call.id,
            judgement=call.judgement,
            execution=call.execution,
            conversation=state.id,
            agent=state.turn.agent,
            tool=call.name,
            pool=spec.pool if spec is not None else "",
            safe=spec.safe if spec is not None else False,
            decision=decision.action,
            args_sha256=decision.args_sha256,
            arguments=decision.arguments,
            replaces_sha256=decision.replaces_sha256,
            reasons=decision.reasons,
            facts=decision.facts,
            checks=decision.checks,
            policy_set=policies.name,
            epoch=policies.epoch,
            catalogue=decision.catalogue,
            effect=spec.effect if spec is not None else "",
            approval=self._approval(call, policies, decision, now_ms) if decision.action == "require_approval" else None,
            by=f"person:{decision.person}" if decision.person is not None else GUARD,
            issued_ms=now_ms,
            expires_ms=now_ms + VERDICT_MS,
            limits=decision.limits,
            would=decision.would,
        )
        try:
            return [self._signed(call.judgement_id, state, verdict)]
        except (RecordTooLarge, RecordInvalid) as error:  # too much, too deep, a number beyond 64 bits
            say = "The verdict on this call does not fit into one record; send smaller arguments."
            log.warning("%s: %s", effect.id, error.message)
            return self._denied(effect, state, call, judge, ev.Reason("verdict.too_large", say))

    def _approval(self, call: Call, policies: PolicySet, decision: Decision, now_ms: int) -> ev.ApprovalAsked:
        approvals = policies.approvals
        assert approvals is not None, "the judge holds a call only if somebody can approve it"
        deadline_ms = now_ms + int(approvals.timeout_s * 1000)
        before = call.verdict.approval if call.verdict is not None else None
        if before is not None and any(reason.code == "approval.self" for reason in decision.reasons):
            # Held once more, after a decision that did not count: nobody wins time by that.
            deadline_ms = min(deadline_ms, before.deadline_ms)
        return ev.ApprovalAsked(approvals.approvers, deadline_ms)

    def _failed(self, effect: Effect, state: Conversation, call: Call, judge: Judge) -> Sequence[Message]:
        log.exception("%s: the judgement failed; the call is denied", effect.id)
        say = "The guardrail could not judge this call, so it was not run."
        return self._denied(effect, state, call, judge, ev.Reason("guard.error", say))

    def _denied(
        self, effect: Effect, state: Conversation, call: Call, judge: Judge, reason: ev.Reason
    ) -> Sequence[Message]:
        assert state.turn is not None
        now_ms = self._clock_ms()
        text = call.edited if call.edited is not None else call.arguments
        verdict = ev.CallJudged(
            call=call.id, judgement=call.judgement, execution=call.execution, conversation=state.id,
            agent=state.turn.agent, tool=call.name, pool="", safe=False, decision="deny",
            args_sha256=sha256_of(text), reasons=(reason,), policy_set=judge.policies.name,
            epoch=judge.policies.epoch, issued_ms=now_ms, expires_ms=now_ms + VERDICT_MS,
        )
        return [self._signed(call.judgement_id, state, verdict)]

    def _end_approval(self, effect: Effect, state: Conversation, call: Call) -> Sequence[Message]:
        assert call.verdict is not None
        decided = ev.ApprovalDecided(call.id, call.judgement, call.verdict.args_sha256, "deny", "deadline")
        return [self._signed(effect.id, state, decided)]

    def _signed(self, id: str, state: Conversation, event: ev.Event) -> Message:
        assert state.turn is not None
        cause = step_id(state.id, state.turn)
        return self._scribe.message(
            self.topic, state.id, event, id=id, run=state.turn.run, cause=cause, signed_by=GUARD
        )
