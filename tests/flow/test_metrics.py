"""The metrics page: what a crew did is on it once, with the labels that dashboards ask for."""

from __future__ import annotations

import asyncio
import secrets
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from crewline import RunFailed, tool
from crewline.crews.running import Crew, Running
from crewline.engine import EngineOptions
from crewline.errors import ModelError, StoreError, UsageError
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.seal import make_keys
from crewline.telemetry import Telemetry
from crewline.telemetry import page as page_module
from crewline.telemetry.page import LOOPBACK
from flow_bench import Bench, PlannedBrain, calls, say, until
from prometheus_client.parser import text_string_to_metric_families


@tool(effect="read", timeout="5s")
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order}: one lamp"


@tool(effect="destructive", timeout="5s")
async def pay(amount: float) -> str:
    """Pay out."""
    raise RuntimeError("the line went dead")


HOLD = PolicySet(
    [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")],
    approvals=Approvals(("leads",), 3600.0),
)


class Page:
    """What the page says, read anew at each question."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    async def text(self, query: str = "") -> str:
        def get() -> str:
            with urllib.request.urlopen(f"{self.telemetry.page}{query}", timeout=10) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(get)

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(await self.text())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples
        }

    async def value(self, name: str, **labels: str) -> float | None:
        """The one sample with these labels and whatever others; None if there is none."""
        found = [value for (sample, its), value in (await self.samples()).items()
                 if sample == name and set(labels.items()) <= its]
        assert len(found) <= 1, f"{name} {labels} is {len(found)} series"
        return found[0] if found else None


@asynccontextmanager
async def shown(crew: Crew, bench: Bench, **options: Any) -> AsyncIterator[tuple[Running, Page]]:
    """A crew that runs, and its page."""
    async with Telemetry(metrics=":0") as telemetry, crew.up(state=bench.state, **options) as running:
        telemetry.watch(running.roster, running.bus, running.engines)
        await running.ready()
        yield running, Page(telemetry)


async def test_a_turn_with_a_call_is_counted_once(bench: Bench) -> None:
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), say("one lamp"))
    async with shown(bench.crew({"desk": brain}, [look_up]), bench) as (running, page):
        await running.ask("Where is A-1?", timeout=20)
        await until(lambda: page.value("crewline_turns_total", crew="demo", agent="desk", outcome="done"))
        assert await page.value("crewline_turns_total") == 1
        assert await page.value("crewline_steps_total", agent="desk", outcome="replied") == 2
        assert await page.value("crewline_calls_total", tool="look_up", outcome="ok") == 1
        assert await page.value("crewline_verdicts_total", decision="allow") == 1
        assert await page.value("crewline_tokens_total", agent="desk", direction="input") == 20
        assert await page.value("crewline_tokens_total", agent="desk", direction="output") == 10
        assert await page.value("crewline_turn_seconds_count", outcome="done") == 1
        for effect, times in {"queue": 1, "model": 2, "judgement": 1, "call": 1}.items():
            assert await page.value("crewline_effect_seconds_count", effect=effect) == times


async def test_a_restart_counts_nothing_again(bench: Bench) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("hi"))})
    async with crew.up(state=bench.state) as running:
        await running.ask("one", timeout=20)
    async with shown(crew, bench) as (running, page):
        await running.ask("two", timeout=20)
        await until(lambda: page.value("crewline_turns_total", outcome="done"))
        assert await page.value("crewline_turns_total") == 1, "the turn before belongs to the owner before"


async def test_two_workers_of_one_crew_count_every_turn_once(bench: Bench) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("hi"))})
    async with shown(crew, bench) as (one, page_one), shown(crew, bench, only=["worker"]) as (_, page_two):
        await asyncio.gather(*(one.ask("hi", conversation=f"c{n}", timeout=20) for n in range(24)))

        async def counted() -> list[float]:
            return [await page.value("crewline_turns_total", outcome="done") or 0 for page in (page_one, page_two)]

        await until(lambda: _sums_to(counted, 24))
        assert all(await counted()), "both had a share"


async def _sums_to(counted: Any, wanted: float) -> bool:
    return bool(sum(await counted()) >= wanted)


async def test_failed_attempts_and_turns_have_outcomes_of_their_own(bench: Bench) -> None:
    def fail(_: Any) -> Any:
        raise ModelError("no", retryable=False)

    async with shown(bench.crew({"desk": PlannedBrain(fail)}), bench) as (running, page):
        with pytest.raises(RunFailed):
            await running.ask("hi", timeout=20)
        await until(lambda: page.value("crewline_turns_total", outcome="failed"))
        assert await page.value("crewline_steps_total", agent="desk", outcome="failed") == 1


async def test_whoever_waits_for_a_person_is_seen_and_unknown_calls_are_counted(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), say("done"))
    async with shown(bench.crew({"desk": brain}, [pay], policies=HOLD), bench) as (running, page):
        await running.client.publish("pay", agent="desk")
        held = (await until(running.client.open_calls))[0]
        await until(lambda: page.value("crewline_turns_open", status="needs you"))
        await running.approve(held.id, by="leads/ann")
        await until(lambda: page.value("crewline_calls_unknown_total", tool="pay"))
        assert await page.value("crewline_decisions_total", decision="approve") == 1
        assert await page.value("crewline_turns_open", status="needs you") == 1
        await running.client.resolve(held.id, "give_up", by="ann")
        await until(lambda: page.value("crewline_turns_total", outcome="done"))
        assert await page.value("crewline_turns_open", status="needs you") == 0
        assert await page.value("crewline_decisions_total", decision="give_up") == 1
        assert await page.value("crewline_calls_total", tool="pay", outcome="unknown") == 1


async def test_after_a_restart_a_held_call_is_still_seen(bench: Bench) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), say("done"))
    crew = bench.crew({"desk": brain}, [pay], policies=HOLD)
    async with crew.up(state=bench.state) as running:
        await running.client.publish("pay", agent="desk")
        await until(running.client.open_calls)
    async with shown(crew, bench) as (running, page):
        assert await page.value("crewline_calls_held", crew="demo") == 1
        await running.deny((await running.client.open_calls())[0].id, by="leads/ann")
        await until(lambda: page.value("crewline_turns_total", outcome="done"))
        assert await page.value("crewline_calls_held", crew="demo") == 0


async def test_names_that_a_model_makes_up_are_one_series(bench: Bench) -> None:
    brain = PlannedBrain(calls(("made_up", "{}"), ("invented", "{}")), say("sorry"))
    async with shown(bench.crew({"desk": brain}, [look_up]), bench) as (running, page):
        await running.ask("hi", timeout=20)
        await until(lambda: page.value("crewline_turns_total"))
        assert await page.value("crewline_calls_total", tool="other", outcome="refused") == 2


async def test_lag_is_that_of_the_partitions_owned_and_falls_to_zero(bench: Bench) -> None:
    async with shown(bench.crew({"desk": PlannedBrain(say("hi"))}, [look_up]), bench) as (running, page):
        await running.ask("hi", timeout=20)

        async def caught_up() -> bool:
            lags = {key: value for key, value in (await page.samples()).items() if key[0] == "crewline_lag_records"}
            assert {dict(labels)["group"] for _, labels in lags} == {"demo.worker", "demo.guardrail", "demo.tools.main"}
            assert len(lags) == 3 * 12
            return not any(lags.values())

        await until(caught_up)
        assert await page.value("crewline_lag_seconds", group="demo.worker", partition="0") == 0
        assert await page.value("crewline_bus_up", crew="demo") == 1


async def test_a_role_that_does_not_keep_up_shows_records_and_seconds(bench: Bench) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("hi"))})
    async with shown(crew, bench, only=["worker"]) as (running, page):
        engine, go_on = running.engines["worker"], asyncio.Event()
        poll = engine._poll

        async def late(consumer: Any) -> Any:
            await go_on.wait()
            return await poll(consumer)

        engine._poll = late  # type: ignore[method-assign]
        try:
            await until(lambda: engine._polling is None)
            await running.client.publish("hi", agent="desk", conversation="c1")
            await until(lambda: _behind(page))
        finally:
            go_on.set()


async def _behind(page: Page) -> bool:
    samples = await page.samples()
    behind = [dict(labels)["partition"] for (name, labels), value in samples.items()
              if name == "crewline_lag_records" and value == 1]
    return len(behind) == 1 and bool(await page.value("crewline_lag_seconds", partition=behind[0]))


async def test_a_store_that_fails_is_counted_and_the_turn_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("hi"))}, options=EngineOptions(snapshot_s=0.1, poll_s=0.2))
    async with shown(crew, bench) as (running, page):
        assert await page.value("crewline_store_errors_total", role="worker") == 0, "there from the start"
        store = running.engines["worker"]._store

        async def broken(*_: Any, **__: Any) -> bool:
            raise StoreError("the disk is full")

        monkeypatch.setattr(store, "write", broken)
        await running.ask("hi", timeout=20)
        await until(lambda: page.value("crewline_store_errors_total", role="worker"))


async def test_a_log_that_does_not_answer_leaves_the_lag_out_and_the_rest_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LOOK_S_MAX", 0.2)
    async with shown(bench.crew({"desk": PlannedBrain(say("hi"))}, [look_up]), bench) as (running, page):
        assert await page.value("crewline_lag_records", group="demo.worker", partition="0") == 0

        async def never(_: str) -> Any:
            await asyncio.Event().wait()

        with monkeypatch.context() as away:
            away.setattr(running.bus, "offsets", never)
            names = {name for name, _ in await page.samples()}
            assert await page.value("crewline_bus_up", crew="demo") == 0
        assert names >= {"crewline_bus_up", "crewline_turns_open", "crewline_effects_running"}
        assert not names & {"crewline_lag_records", "crewline_lag_seconds"}
        assert await page.value("crewline_bus_up", crew="demo") == 1


async def test_some_metrics_alone_may_be_asked_for(bench: Bench) -> None:
    async with shown(bench.crew({"desk": PlannedBrain(say("hi"))}), bench) as (_, page):
        text = await page.text("?name[]=crewline_bus_up")
        assert "crewline_bus_up" in text
        assert "crewline_lag_records" not in text


async def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"metrics cannot be served at http://127.0.0.1:{port}/metrics"):
            async with Telemetry(metrics=f":{port}"):
                pass


async def test_on_kafka_the_lag_is_the_brokers_and_batches_sent_again_are_counted(
    bench: Bench, kafka_address: str, tmp_path: Path
) -> None:
    name = f"metrics-{secrets.token_hex(4)}"
    make_keys(tmp_path / "keys")
    crew = bench.crew({"desk": PlannedBrain(say("hi"))}, name=name)
    async with shown(crew, bench, bus=kafka_address, keys=tmp_path / "keys") as (running, page):
        await running.ask("hi", timeout=30)
        await until(lambda: page.value("crewline_turns_total", outcome="done"))

        async def caught_up() -> bool:
            lags = [value for (series, _), value in (await page.samples()).items() if series == "crewline_lag_records"]
            return len(lags) == 2 * 12 and not any(lags)

        await until(caught_up)
        assert await page.value("crewline_batches_resent_total", crew=name) == 0
        running.bus._producer._sender.resent += 3  # type: ignore[attr-defined]
        assert await page.value("crewline_batches_resent_total", crew=name) == 3
        assert await page.value("crewline_batches_resent_total", crew=name) == 3, "once, not at each look"
