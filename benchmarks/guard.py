"""What a verdict costs: CPU of the whole chain, Ed25519 included, by kind of call; and of the audit chain.

    python benchmarks/guard.py [--rounds 3000]

One process, no log: `Guardrail.act` on a folded conversation, up to the sealed record. Times are CPU
(`time.process_time`), the best of five runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import time
from collections.abc import Callable
from typing import Any, cast

from crewline import events as ev
from crewline.bus.base import Record
from crewline.conversation import Call, Conversation, Turn
from crewline.engine import Effect
from crewline.guardrail import FactRule, Guardrail, Judge, PolicyRule, PolicySet, head_after, judge_with
from crewline.guardrail.policies import Approvals
from crewline.records import Scribe
from crewline.roster import Agent, Roster
from crewline.seal import Keyring
from crewline_agents.base import Brain, ChatMessage
from crewline_tools.base import ToolSpec

ORDER = {
    "type": "object",
    "properties": {
        "order_id": {"type": "string", "pattern": "^[A-Z]-[0-9]+$"},
        "amount": {"type": "number", "minimum": 0},
        "currency": {"type": "string", "enum": ["USD", "EUR"]},
        "note": {"type": "string", "maxLength": 500},
    },
    "required": ["order_id"],
}
CALLS = {
    "read": ("find_order", '{"order_id": "A-1001"}'),
    "read, amended": ("find_order", '{"order_id": "A-1001", "amount": "5", "currency": "usd"}'),
    "write, 3 policies": ("refund", '{"order_id": "A-1001", "amount": 40, "currency": "USD", "note": "arrived broken"}'),
    "write, 3 policies and a fact": ("pay", '{"order_id": "A-1001", "amount": 40, "currency": "USD"}'),
    "held": ("refund", '{"order_id": "A-1001", "amount": 60, "currency": "USD"}'),
    "denied by schema": ("refund", '{"order_id": "1001", "amount": "much", "colour": "red"}'),
    "unknown tool": ("findOrders", '{"order_id": "A-1001"}'),
    "1 KB of text": ("refund", json.dumps({"order_id": "A-1001", "amount": 40, "note": "é" * 400, "currency": "USD"})),
}


def crew() -> tuple[Roster, PolicySet]:
    names = {"find_order": "read", "refund": "write", "pay": "destructive"}
    tools = {name: ToolSpec(name, "", ORDER, cast(Any, effect)) for name, effect in names.items()}
    tools |= {f"other_{n}": ToolSpec(f"other_{n}", "", ORDER, "read") for n in range(7)}
    roster = Roster("bench", "1", {"desk": Agent("desk", cast(Brain, None), tools=tuple(tools))}, tools)
    rules = [
        PolicyRule("positive", ("refund", "pay"), when="args.amount <= 0.0", action="deny", reason="Positive."),
        PolicyRule("small", ("refund", "pay"), when="args.amount <= 50.0 && user.id != ''", action="allow", reason="Small."),
        PolicyRule("large", ("refund",), when="args.amount > 50.0", action="require_approval", reason="Large."),
        PolicyRule("within", ("pay",), when="args.amount > facts.order.total", action="deny", reason="Within."),
    ]
    facts = [FactRule("order", "find_order", {"order_id": "args.order_id"})]
    return roster, PolicySet(rules, facts=facts, approvals=Approvals(("leads",)), epoch=1, name="bench")


async def total(tool: str, args: dict[str, Any]) -> Any:
    return {"total": 80.0}


def conversation(roster: Roster, tool: str, arguments: str) -> Conversation:
    call = Call("c1:t1:s9:c0", "w0", tool, arguments, True, None, "judging", 0)
    said = [ChatMessage("user", "Where is my order? " * 20), *(ChatMessage("tool", "x" * 500, call_id=f"w{n}") for n in range(8))]
    turn = Turn(
        1, "i1", "r1", ev.IntentPublished(user="u1", origin=ev.Origin("user")), "desk", "1", ev.Limits(), 0, step=9,
        calls=(call,), catalogue=roster.catalogue("desk"), messages=tuple(said), spent=ev.Spent(9, 9),
    )
    return Conversation("c1", turns=1, turn=turn)


def best_us(run: Callable[[], object], rounds: int) -> float:
    """Return the CPU of one `run()` in µs: the best of five times `rounds`."""
    found = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(rounds):
            run()
        found.append((time.process_time() - start) / rounds * 1e6)
    return min(found)


async def with_fact(guard: Guardrail, effect: Effect, state: Conversation) -> None:
    acted = guard.act(effect, state)
    if inspect.isawaitable(acted):
        await acted


async def best_with_fact_us(guard: Guardrail, effect: Effect, state: Conversation, rounds: int) -> float:
    found = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(rounds):
            await with_fact(guard, effect, state)
        found.append((time.process_time() - start) / rounds * 1e6)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3_000)
    rounds = parser.parse_args().rounds
    roster, policies = crew()
    keyring = Keyring(deployment=b"d" * 32, guard=b"g" * 32)
    scribe = Scribe(keyring, source="bench", now_ms=lambda: 1_700_000_000_000)
    guard = Guardrail(roster, policies=policies, scribe=scribe, clock_ms=lambda: int(time.time() * 1000), run_fact=total)
    judge = Judge(roster, policies)
    figures: dict[str, float] = {}
    for kind, (tool, arguments) in CALLS.items():
        state = conversation(roster, tool, arguments)
        (effect,) = guard.pending(state)
        whole = asyncio.run(best_with_fact_us(guard, effect, state, rounds))
        judged = best_us(lambda: judge_with(judge, roster, "desk", tool, arguments, facts={"order": {"total": 80.0}}), rounds)  # noqa: B023
        figures[kind] = round(whole, 1)
        print(f"{kind:<30} {whole:7.1f} µs a verdict, of which the checks about {judged:6.1f} µs")
    state = conversation(roster, *CALLS["write, 3 policies"])
    (message,) = cast(Any, guard.act(guard.pending(state)[0], state))
    record = Record("bench.conversations", 3, 12_345, 0, message.key, message.value, message.headers)
    chain = best_us(lambda: head_after(b"h" * 32, record), rounds * 10)
    count = iter(range(10**9))
    sign = best_us(lambda: keyring.sign("guard", "t", b"c1", "call.judged", str(next(count)), message.value), rounds)
    print(f"{'audit chain':<30} {chain:7.1f} µs a record ({len(message.value)} bytes, {len(message.headers)} headers)")
    print(f"{'Ed25519':<30} {sign:7.1f} µs a signature")
    print(json.dumps({"benchmark": "guard", "verdict_us": figures, "chain_us": round(chain, 2), "sign_us": round(sign, 1)}))


if __name__ == "__main__":
    main()
