"""Bugs that were made in designs like this one, planted by name: the simulation must find each of them.

    with planted("last_claim_wins"):
        Simulation(seed).run()
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import crewline_tools.pool as pool
from crewline import events as ev
from crewline.bus.base import Record
from crewline.conversation import calls, folding, reserved
from crewline.conversation.calls import call_of
from crewline.engine import Engine, ownership
from crewline.errors import StoreError
from crewline.guardrail.judge import Judge
from crewline.records import Reader
from crewline_memory.base import Mark, Snapshot
from crewline_tools import pool_view
from crewline_tools.pool import ToolPool
from crewline_tools.verify import Verifier
from msgspec.structs import replace as changed
from sim_bus import SimConsumer
from sim_store import SimStore, _Stored


class Patch:
    """Replaces attributes and items, and puts them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, target: Any, name: str, value: Any) -> Any:
        """Replace an attribute where it is defined (in a base class, it may be); return what it was."""
        target = next((each for each in getattr(target, "__mro__", ()) if name in each.__dict__), target)
        before = target.__dict__[name]
        self._undo.append(lambda: setattr(target, name, before))
        setattr(target, name, value)
        return before

    def item(self, target: Any, key: Any, value: Any) -> Any:
        before = target[key]
        self._undo.append(lambda: target.__setitem__(key, before))
        target[key] = value
        return before

    def undo(self) -> None:
        for put_back in reversed(self._undo):
            put_back()


# --- the engine --------------------------------------------------------------------------------


def own_append_counts_at_once(patch: Patch) -> None:
    """A state is changed by what its owner wrote, before it stands (somebody else's may stand first)."""

    def append(self: Any, outbox: Any) -> None:
        for part, raw, effect, messages in outbox:
            held = part.keys.get(raw) if part is not None else None
            if held is None or effect is None or self.role.name == "tools.main":
                continue
            for message in messages:
                if message.topic == self.role.topic and message.key == raw:
                    record = Record(message.topic, part.partition, part.next_offset, self._clock_ms(), raw, message.value,
                                    message.headers)
                    held.state = self.role.view.fold(held.state, Reader.check(self._reader, record))
                    part.dirty[raw] = None
        real(self, outbox)

    real = patch.set(Engine, "_append", append)


def effects_before_catching_up(patch: Patch) -> None:
    patch.set(ownership.Part, "caught_up", property(lambda self: True))


def effects_in_mid_batch(patch: Patch) -> None:
    def fold_record(self: Any, part: Any, record: Record) -> None:
        real(self, part, record)
        self._derive()
        self._send()

    real = patch.set(Engine, "_fold_record", fold_record)


def owed_is_done_once_sent(patch: Patch) -> None:
    """A record owed to another topic is forgotten when it is handed to the bus, not when it is acknowledged."""

    def send(self: Any) -> None:
        for part, raw, effect, _ in self._outbox:
            held = part.keys.get(raw)
            if held is not None and effect.owed:
                held.acked.add(effect.id)
                held.pending = any(other.id not in held.acked for other in self.role.pending(held.state))
                part.changed[raw] = None
        real(self)

    real = patch.set(Engine, "_send", send)


def every_effect_is_done_once_acknowledged(patch: Patch) -> None:
    """Acknowledged is remembered of every effect, although a record may stand and yet not count."""

    def appended(self: Any, outbox: Any, positions: Any) -> None:
        real(self, outbox, positions)
        for part, raw, effect, messages in outbox:
            held = part.keys.get(raw) if part is not None else None
            if held is not None and effect is not None and messages:
                held.acked.add(effect.id)

    real = patch.set(Engine, "_appended", appended)


def snapshots_forget_what_is_pending(patch: Patch) -> None:
    def snapshot(state: bytes, pending: bool, acked: Any = (), frozen_at: Any = None) -> Snapshot:
        return Snapshot(state, False, acked, frozen_at)

    patch.set(ownership, "Snapshot", snapshot)


def a_failing_store_costs_a_batch(patch: Patch) -> None:
    async def take(self: Any, batch: Any) -> bool:
        part = self._parts.get(batch.partition)
        if part is not None and not part.whole:
            try:
                await self._bring(part, [record.key for record in batch.records if record.key not in part.keys])
            except StoreError:
                return True
        return bool(await real(self, batch))

    real = patch.set(Engine, "_take", take)


def any_mark_will_do(patch: Patch) -> None:
    """States are taken from the store whatever offset they are of."""

    async def bring(self: Any, part: Any, keys: Any) -> None:
        for raw, snapshot in (await self._store.snapshots(self.role.name, part.partition, keys)).items():
            self._restore(part, raw, snapshot)

    patch.set(Engine, "_bring", bring)


def a_lost_store_is_written_over(patch: Patch) -> None:
    """A new mark is set over what a lost store lacks, and a restart believes it."""

    async def write(self: Any, part: Any) -> None:
        part.stored = 0
        await real(self, part)

    async def belongs(self: Any, mark: Mark, partition: int, begin: int, end: int) -> bool:
        return await really(self, replace(mark, carry=mark.snapshots.to_bytes(8, "big")), partition, begin, end)

    real = patch.set(Engine, "_write_snapshot", write)
    really = patch.set(Engine, "_belongs", belongs)


def put_if_newer_per_key(patch: Patch) -> None:
    """The store checks no mark: a zombie's older states replace newer ones, key by key."""

    async def write(
        self: Any, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        await self._network()
        stored: _Stored = self._server.part(role, partition)
        stored.snapshots.update(snapshots)
        newest = mark if stored.mark is None or stored.mark.next_offset < mark.next_offset else stored.mark
        stored.mark = replace(newest, snapshots=len(stored.snapshots))
        return True

    patch.set(SimStore, "write", write)


def reset_across_a_gap(patch: Patch) -> None:
    """A consumer that does not know where it was goes on at the end of the log."""

    async def learn(self: Any) -> bool:
        before = set(self.owned)
        again = await real(self)
        for partition in set(self.owned) - before:
            if self.position[partition] > 0:
                self.position[partition] = self.assigned_end[partition]
        return bool(again)

    real = patch.set(SimConsumer, "_learn_once", learn)


def a_slot_is_lost_by_a_cancelled_effect(patch: Patch) -> None:
    def ended(self: Any, held: Any, effect: Any, work: Any, task: Any) -> None:
        if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            work.close()
            held.tasks.pop(effect.id, None)
            return
        real(self, held, effect, work, task)

    real = patch.set(Engine, "_ended", ended)


# --- the conversation --------------------------------------------------------------------------


def last_result_wins(patch: Patch) -> None:
    def replied(state: Any, entry: Any, event: Any) -> Any:
        turn = state.turn
        if turn is not None and turn.calls and all(call.status == "judging" for call in turn.calls):
            state = changed(state, turn=changed(turn, calls=(), messages=turn.messages[:-1]))
        return real(state, entry, event)

    real = patch.item(folding._FOLDS, ev.ModelReplied, replied)


def a_repeated_intent_is_a_new_turn(patch: Patch) -> None:
    def intent(state: Any, entry: Any, event: Any) -> Any:
        after = real(changed(state, finished=()), entry, event)
        return None if after is None else changed(after, finished=state.finished)

    real = patch.item(folding._FOLDS, ev.IntentPublished, intent)


def a_deadline_closes_unsafe_calls(patch: Patch) -> None:
    def dropped(call: Any, turn: Any) -> Any:
        after = real(changed(call, verdict=None), turn)
        return changed(after, verdict=call.verdict)

    real = patch.set(calls, "_dropped", dropped)


def an_approval_is_for_any_bytes(patch: Patch) -> None:
    def decided(state: Any, entry: Any, event: Any) -> Any:
        call = call_of(state, event.call)
        if call is not None and call.verdict is not None:
            event = changed(event, args_sha256=call.verdict.args_sha256)
        return real(state, entry, event)

    real = patch.item(folding._FOLDS, ev.ApprovalDecided, decided)


def a_refusal_after_the_verdict_counts(patch: Patch) -> None:
    patch.set(folding, "_overtaken", lambda *of: False)


def a_verdict_names_no_execution(patch: Patch) -> None:
    """The verdict of the first execution is used for the next one, and the pool does not mind."""

    def next_execution(call: Any, at_ms: int, expiries: int) -> Any:
        return changed(call, execution=call.execution + 1, expiries=expiries, since_ms=at_ms, outcome=None, status="granted")

    def names(self: Any, key: str, request: Any, verdict: Any) -> Any:
        return real(self, key, request, changed(verdict, execution=request.execution))

    patch.set(folding, "_next_execution", next_execution)
    real = patch.set(Verifier, "_names", names)


# --- the pool ----------------------------------------------------------------------------------


def a_nonce_survives_a_restart(patch: Patch) -> None:
    def run(self: Any, key: str, each: Any) -> Any:
        if each.id not in self._claims and each.id not in self._running:
            expiry = asyncio.get_running_loop().call_later(pool.CLAIM_S, self._expire, each.id, each.nonce)
            self._claims[each.id] = pool._Claim(each.nonce, self._uptime_s(), expiry)
        return real(self, key, each)

    patch.set(pool, "secrets", SimpleNamespace(token_hex=lambda size: "of this pool"))
    real = patch.set(ToolPool, "_run", run)


def last_claim_wins(patch: Patch) -> None:
    """A zombie's claim is taken after somebody else's."""

    def started(known: Any, entry: Any, event: Any) -> Any:
        if known.ended is not None:
            return known
        return changed(known, claim="started", nonce=event.nonce, started_ms=entry.at_ms)

    def run(self: Any, key: str, each: Any) -> Any:
        claim = self._claims.get(each.id)
        return () if claim is not None and claim.nonce != each.nonce else real(self, key, each)

    patch.item(pool_view._FOLDS, ev.CallStarted, started)
    real = patch.set(ToolPool, "_run", run)


def a_refusal_is_no_claim(patch: Patch) -> None:
    """Refusing is done outside of the claims: it ends what another process has started."""

    def refused(known: Any, entry: Any, event: Any) -> Any:
        return known if known.ended is not None else real(changed(known, claim=""), entry, event)

    real = patch.item(pool_view._FOLDS, ev.CallRefused, refused)


def an_old_claim_is_used(patch: Patch) -> None:
    """A process that was stopped after its claim goes on as if no time had passed."""
    patch.set(pool, "CLAIM_S", 1e6)


def a_claim_is_not_read_back(patch: Patch) -> None:
    """Whoever has appended a claim runs, without looking whose claim came first."""

    def run(self: Any, key: str, each: Any) -> Any:
        if (claim := self._claims.get(each.id)) is not None:
            each = changed(each, nonce=claim.nonce)
        return real(self, key, each)

    real = patch.set(ToolPool, "_run", run)


def a_lost_run_is_run_again(patch: Patch) -> None:
    """A call that was started and has not ended is started once more, instead of asking a person."""

    def lost(self: Any, key: str, each: Any) -> Any:
        expiry = asyncio.get_running_loop().call_later(pool.CLAIM_S, self._expire, each.id, each.nonce)
        self._claims[each.id] = pool._Claim(each.nonce, self._uptime_s(), expiry)
        return self._run(key, each)

    patch.set(ToolPool, "_settle_lost", lost)


# --- limits over windows -----------------------------------------------------------------------


def each_guardrail_counts_alone(patch: Patch) -> None:
    """A call under a limit is let pass without asking the counter's owner: others do the same at that moment."""
    patch.set(Judge, "_count", lambda self, judged, facts, missing: None)


def an_unknown_call_is_given_back(patch: Patch) -> None:
    """Of what nobody knows it is taken that it did not run."""

    def end_of(answer: Any, before: Any, after: Any, entry: Any) -> Any:
        call = call_of(after, answer.call)
        return ("not_run", 0.0) if call is not None and call.status == "unknown" else real(answer, before, after, entry)

    real = patch.set(reserved, "_end_of", end_of)


def a_call_that_never_ran_keeps_its_room(patch: Patch) -> None:
    patch.set(reserved, "_may_have_run", lambda answer, before, entry: True)


def settling_is_forgotten_with_its_turn(patch: Patch) -> None:
    def settle(before: Any, after: Any, entry: Any) -> Any:
        settled = real(before, after, entry)
        return changed(settled, reserved=()) if settled.turn is None else settled

    real = patch.set(folding, "settle_reserved", settle)


BUGS: Mapping[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {
    plant.__name__: (plant, trouble)
    for plant, trouble in (
        (own_append_counts_at_once, ("rebalance",)),
        (effects_before_catching_up, ("crash", "restart")),
        (effects_in_mid_batch, ("rebalance", "pause", "network")),
        (owed_is_done_once_sent, ("crash", "restart", "network")),
        (every_effect_is_done_once_acknowledged, ("rebalance", "repeat", "restart")),
        (snapshots_forget_what_is_pending, ("crash", "restart")),
        (a_failing_store_costs_a_batch, ("store", "restart")),
        (any_mark_will_do, ("store", "rebalance", "pause")),
        (a_lost_store_is_written_over, ("store", "restart")),
        (put_if_newer_per_key, ("rebalance", "pause")),
        (reset_across_a_gap, ("rebalance", "restart")),
        (a_slot_is_lost_by_a_cancelled_effect, ("cancel", "rebalance")),
        (last_result_wins, ("rebalance",)),
        (a_repeated_intent_is_a_new_turn, ("repeat",)),
        (a_deadline_closes_unsafe_calls, ("cancel",)),
        (an_approval_is_for_any_bytes, ()),
        (a_refusal_after_the_verdict_counts, ("clock", "rebalance")),
        (a_verdict_names_no_execution, ("clock", "pause")),
        (a_nonce_survives_a_restart, ("crash", "pause")),
        (last_claim_wins, ("rebalance",)),
        (a_refusal_is_no_claim, ("rebalance", "clock")),
        (an_old_claim_is_used, ("pause", "rebalance", "network")),
        (a_claim_is_not_read_back, ("rebalance",)),
        (a_lost_run_is_run_again, ("crash",)),
        (each_guardrail_counts_alone, ()),
        (an_unknown_call_is_given_back, ("crash", "pause")),
        (a_call_that_never_ran_keeps_its_room, ("cancel", "clock")),
        (settling_is_forgotten_with_its_turn, ("cancel",)),
    )
}
"""By name: how it is planted, and the kinds of trouble that bring it out soonest."""


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run with the bug of that name in the code; None: with the code as it is."""
    patch = Patch()
    try:
        if name is not None:
            BUGS[name][0](patch)
        yield
    finally:
        patch.undo()
