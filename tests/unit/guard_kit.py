"""A crew with a refund desk, and a conversation folded record by record: what guardrail tests share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from crewline import events as ev
from crewline.bus.base import Message, Record
from crewline.conversation import Call, Conversation, fold, guard_pending
from crewline.engine import Effect
from crewline.guardrail import Approvals, FactRule, Guardrail, PolicyRule, PolicySet
from crewline.records import PEOPLE, Entry, Reader, Scribe
from crewline.roster import Agent, Roster
from crewline.seal import Keyring, key_id
from crewline_agents.base import Brain
from crewline_tools.base import ToolSpec
from nacl.signing import SigningKey

TOPIC = "demo.conversations"
START_MS = 1_700_000_000_000


def object_schema(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


TOOLS = {
    tool.name: tool
    for tool in (
        ToolSpec("find_order", "Finds an order.", object_schema(
            ["order_id"], order_id={"type": "string"}, limit={"type": "integer", "minimum": 1},
            sort={"type": "string", "enum": ["newest", "oldest"]}, full={"type": "boolean"},
        ), "read"),
        ToolSpec("issue_refund", "Pays money back.", object_schema(
            ["order_id", "amount"], order_id={"type": "string"}, amount={"type": "number"},
        ), "destructive", idempotent=True, pool="payments"),
        ToolSpec("add_note", "Writes a note.", object_schema(["text"], text={"type": "string"}), "write"),
        ToolSpec("set_level", "Sets a level.", object_schema(["level"], level={"type": "integer"}), "write", auto_amend=True),
        ToolSpec("drop_account", "Deletes an account.", object_schema(["id"], id={"type": "string"}), "destructive"),
        ToolSpec("audit_export", "For auditors.", object_schema(), "read"),
    )
}
POLICIES = (
    PolicyRule("within-order", ("issue_refund",), when="args.amount <= 0.0 || args.amount > facts.order.total",
               action="deny", reason="A refund is positive and at most the order total."),
    PolicyRule("small-refund", ("issue_refund",), when="args.amount <= 50.0", action="allow", reason="Small."),
    PolicyRule("large-refund", ("issue_refund",), when="args.amount > 50.0", action="require_approval",
               reason="Refunds above 50 USD need a person."),
)
FACTS = (FactRule("order", "find_order", {"order_id": "args.order_id"}),)


def make_roster(**changes: Any) -> Roster:
    brain = cast(Brain, None)  # nobody thinks in these tests
    mine = ("find_order", "issue_refund", "add_note", "set_level", "drop_account")
    agents = {
        "desk": Agent("desk", brain, tools=mine, delegates=("refund.decide",), handoffs=("auditor",)),
        "auditor": Agent("auditor", brain, tools=("audit_export",)),
    }
    return Roster("demo", "1", agents, TOOLS, **changes)


def make_policies(**changes: Any) -> PolicySet:
    given: dict[str, Any] = {"facts": FACTS, "approvals": Approvals(("leads",), 600.0), "epoch": 7, "name": "support"}
    given |= changes
    return PolicySet(given.pop("policies", POLICIES), **given)


async def order_of_80(tool: str, args: dict[str, Any]) -> Any:
    assert tool == "find_order"
    return {"order_id": args["order_id"], "total": 80}


class Desk:
    """One conversation on one partition, with the keys of everybody who writes into it."""

    def __init__(
        self,
        *,
        roster: Roster | None = None,
        policies: PolicySet | None = None,
        run_fact: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = order_of_80,
        user: str | None = "u1",
        limits: ev.Limits | None = None,
        agent: str = "desk",
    ) -> None:
        guard, people = b"g" * 32, b"p" * 32
        halves = {}
        for who, seed in (("guard", guard), ("people", people)):
            public = bytes(SigningKey(seed).verify_key)
            halves[f"{who}-{key_id(public)}"] = public
        self.keyring = Keyring(deployment=b"d" * 32, guard=guard, people=people, public=halves)
        self.now_ms = START_MS
        self.scribe = Scribe(self.keyring, source="demo", now_ms=lambda: self.now_ms)
        self.reader = Reader(self.keyring, partitions=1)
        self.roster = roster if roster is not None else make_roster()
        self.guard = Guardrail(
            self.roster, policies=policies if policies is not None else make_policies(), scribe=self.scribe,
            clock_ms=lambda: self.now_ms, run_fact=run_fact,
        )
        self.state = Conversation("c1")
        self.log: list[Record] = []
        self.entries: list[Entry] = []
        self.agent = agent
        origin = ev.Origin("user") if user else ev.Origin()
        self.write(ev.IntentPublished("Hello", agent=agent, user=user, origin=origin), "i1")
        limits = limits or ev.Limits(deadline_ms=START_MS + 600_000)
        self.write(ev.TurnStarted(1, "i1", agent, "1", 1, limits), "c1:t1")

    # --- writing -------------------------------------------------------------------------------

    def write(self, event: ev.Event, id: str, *, signed_by: str | None = None, seal_as: str | None = None) -> Conversation:
        message = self.scribe.message(TOPIC, "c1", event, id=id, run="i1", signed_by=signed_by, seal_as=seal_as)
        return self.append(message)

    def append(self, message: Message) -> Conversation:
        record = Record(TOPIC, 0, len(self.log), self.now_ms, message.key, message.value, message.headers)
        self.log.append(record)
        entry = self.reader.read(record)
        self.entries.append(entry)
        self.state = fold(self.state, entry)
        return self.state

    def reply(self, *calls: tuple[str, Any], catalogue: str | None = None, valid: bool = True) -> None:
        """The model asks for `calls`: (tool, arguments as text or as a value)."""
        assert self.state.turn is not None
        step = self.state.turn.step
        texts = tuple(
            ev.CallText(f"w{step}-{k}", name, args if isinstance(args, str) else json.dumps(args), valid,
                        None if valid else "cut off")
            for k, (name, args) in enumerate(calls)
        )
        known = self.roster.catalogue(self.agent) if self.agent in self.roster.agents else ""
        self.write(ev.ModelReplied(self.agent, 1, "", texts, catalogue=known if catalogue is None else catalogue),
                   f"c1:t1:s{step}")

    def finish(self, outcome: ev.Outcome = "ok", output: str = "done", *, code: str | None = None, k: int = 0) -> None:
        """The pool reports how call `k` ended."""
        call = self.call(k)
        assert call.verdict is not None
        final = outcome in ("ok", "error")
        self.write(ev.CallCompleted(call.id, call.execution, outcome, output, code),
                   call.execution_id if final else f"{call.execution_id}:{outcome}", seal_as=f"pool/{call.verdict.pool}")

    def decide(self, decision: Any, by: str = "ann", *, arguments: str | None = None, k: int = 0) -> None:
        """A person speaks about the held call `k`."""
        call = self.call(k)
        assert call.verdict is not None
        decided = ev.ApprovalDecided(call.id, call.judgement, call.verdict.args_sha256, decision, by, arguments)
        self.write(decided, f"{call.judgement_id}:decided:{len(self.log)}", signed_by=PEOPLE)

    # --- judging -------------------------------------------------------------------------------

    def call(self, k: int = 0) -> Call:
        assert self.state.turn is not None
        return self.state.turn.calls[k]

    def effects(self) -> list[Effect]:
        return guard_pending(self.state)

    async def run(self, effect: Effect) -> ev.Event:
        """Run an effect of the guardrail; fold its one record, and return its event."""
        acted = self.guard.act(effect, self.state)
        messages = await acted if inspect.isawaitable(acted) else acted
        assert len(messages) == 1
        self.append(messages[0])
        return self.entries[-1].event

    async def judge(self, k: int = 0) -> ev.CallJudged:
        """Judge call `k`; the verdict is folded."""
        (effect,) = [each for each in self.effects() if each.kind == "judge" and each.ref.endswith(f":c{k}")]
        verdict = await self.run(effect)
        assert isinstance(verdict, ev.CallJudged)
        assert self.entries[-1].id == effect.id
        assert self.entries[-1].sealed_by == "guard"
        assert not self.state.rejected
        return verdict

    async def ask(self, tool: str, args: Any, **how: Any) -> ev.CallJudged:
        """The model asks for one call; it is judged."""
        self.reply((tool, args), **how)
        return await self.judge()


def codes(verdict: ev.CallJudged) -> list[str]:
    return [reason.code for reason in verdict.reasons]
