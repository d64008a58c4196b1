"""Traces: one a run, whatever processes and crews worked on it, with the same ids whoever draws them."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_kit import crewline, start, write_crew
from crewline import tool
from crewline.bus.base import Message
from crewline.crews.running import Crew, Running
from crewline.events import IntentPublished, encode, header, headers_of
from crewline.guardrail import Approvals, PolicyRule, PolicySet
from crewline.telemetry import Telemetry, export
from crewline.traceparent import span_of, trace_of
from flow_bench import Bench, PlannedBrain, calls, say, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOLD = PolicySet(
    [PolicyRule("large", tools=("pay",), action="require_approval", reason="Payments need a person")],
    approvals=Approvals(("leads",), 3600.0),
)


@tool(effect="read", timeout="5s")
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"{order}: one lamp"


@tool(effect="destructive", timeout="5s")
async def pay(amount: float) -> str:
    """Pay out."""
    return f"paid {amount:g}"


class Drawn:
    """The spans that were drawn in this process."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self.exporter)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, *names: str) -> list[str]:
        found = [span.name for span in self.spans]
        return [name for name in names if name in found]

    def by_name(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.spans}


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def trace_id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent is not None else None


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")  # records bear their context
    return Drawn()


@asynccontextmanager
async def traced(crew: Crew, bench: Bench, drawn: Drawn, **options: Any) -> AsyncIterator[Running]:
    async with Telemetry(spans=drawn.processor) as telemetry, crew.up(state=bench.state, **options) as running:
        telemetry.watch(running.roster, running.bus, running.engines)
        await running.ready()
        yield running


async def test_a_turn_is_a_tree_of_what_it_waited_for(bench: Bench, drawn: Drawn) -> None:
    brain = PlannedBrain(calls(("pay", '{"amount": 60}')), say("done"))
    async with traced(bench.crew({"desk": brain}, [pay], policies=HOLD), bench, drawn) as running:
        await running.client.publish("pay", agent="desk", conversation="c1", intent="i1")
        held = (await until(running.client.open_calls))[0]
        await running.approve(held.id, by="leads/ann")
        await until(lambda: drawn.named("turn desk"))

    spans = drawn.by_name()
    tree = {name: parent_of(span) for name, span in spans.items()}
    turn, call = id_of(spans["turn desk"]), id_of(spans["call pay"])
    assert tree == {
        "turn desk": None, "step desk": turn, "call pay": turn, "judgement pay": call, "wait for a person pay": call,
        "execution pay": call,
    }
    assert {trace_id_of(span) for span in drawn.spans} == {trace_of("i1")}
    assert turn == span_of("c1:t1")
    assert sorted(span.name for span in drawn.spans).count("judgement pay") == 2, "before and after the person"
    for span in drawn.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert spans["turn desk"].start_time <= span.start_time <= span.end_time <= spans["turn desk"].end_time


async def test_a_span_says_who_and_how_but_nothing_that_anybody_wrote(bench: Bench, drawn: Drawn) -> None:
    brain = PlannedBrain(calls(("look_up", '{"order": "SECRET-1"}')), say("SECRET-2"))
    async with traced(bench.crew({"desk": brain}, [look_up]), bench, drawn) as running:
        await running.ask("SECRET-3", user="SECRET-4", timeout=20)
        await until(lambda: drawn.named("turn desk"))

    attributes = drawn.by_name()["turn desk"].attributes or {}
    assert attributes["crewline.outcome"] == "done"
    assert attributes["gen_ai.agent.name"] == "desk"
    assert attributes["gen_ai.usage.input_tokens"] == 20
    assert "SECRET" not in str([span.to_json() for span in drawn.spans])


async def test_what_failed_is_an_error_with_its_code(bench: Bench, drawn: Drawn) -> None:
    brain = PlannedBrain(*[calls(("look_up", '{"order": "A-1"}'))] * 3)
    async with traced(bench.crew({"desk": brain}, [look_up], max_steps=1), bench, drawn) as running:
        await running.client.publish("hi", agent="desk")
        await until(lambda: drawn.named("turn desk"))

    status = drawn.by_name()["turn desk"].status
    assert (status.is_ok, status.description) == (False, "steps.exceeded")


async def test_a_trace_that_an_outside_producer_began_goes_on(bench: Bench, drawn: Drawn) -> None:
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), say("one lamp"))
    async with traced(bench.crew({"desk": brain}, [look_up]), bench, drawn) as running:
        topic = running.roster.topics.conversations
        headers = headers_of("intent.published", "i1", source="shop", subject="c1", at_ms=0, run="", cause="",
                             seal=None, traceparent=THEIRS)
        await running.bus.append([Message(topic, b"c1", encode(IntentPublished("hi", "desk")), headers)])
        await until(lambda: len(drawn.spans) == 6)
        written = [header(record.headers, "traceparent") or "" for record in await _records(running)]

    _, trace, span, _ = THEIRS.split("-")
    assert {trace_id_of(each) for each in drawn.spans} == {trace}
    assert parent_of(drawn.by_name()["turn desk"]) == span
    assert drawn.by_name().keys() == {"turn desk", "step desk", "judgement look_up", "call look_up", "execution look_up"}
    assert {each.split("-")[1] for each in written} == {trace}, "records of every role, on both topics"
    assert len(written) == 7 + 2


async def _records(running: Running) -> list[Any]:
    found = []
    for topic in (running.roster.topics.conversations, running.roster.topics.tools("main")):
        begins, ends = await running.bus.offsets(topic)
        for partition, end in ends.items():
            if end > begins[partition]:
                found += (await running.bus.read(topic, partition, begins[partition])).records
    return found


async def test_what_whoever_began_a_trace_does_not_keep_is_not_drawn(bench: Bench, drawn: Drawn) -> None:
    async with traced(bench.crew({"desk": PlannedBrain(say("hi"))}), bench, drawn) as running:
        topic = running.roster.topics.conversations
        headers = headers_of("intent.published", "i1", source="shop", subject="c1", at_ms=0, run="", cause="",
                             seal=None, traceparent=THEIRS[:-2] + "00")
        await running.bus.append([Message(topic, b"c1", encode(IntentPublished("hi", "desk")), headers)])
        await until(lambda: _answered(running))
        await running.ask("hi", conversation="c1-own", timeout=20)
        await until(lambda: drawn.named("turn desk"))

    assert {trace_id_of(span) for span in drawn.spans}.isdisjoint({THEIRS.split("-")[1]})


async def _answered(running: Running) -> bool:
    projection = await running.client.projection()
    return any(turn.finished_ms is not None for turn in projection.turns.values())


async def test_a_sampled_run_is_drawn_whole_by_every_role_or_not_at_all(
    bench: Bench, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), say("one lamp"))
    runs = [f"i{n}" for n in range(8)]
    kept = {run for run in runs if int(trace_of(run)[16:], 16) < 2**63}  # the sampler looks at the lower 64 bits
    async with traced(bench.crew({"desk": brain}, [look_up]), bench, drawn) as running:
        handles = [await running.client.publish("hi", agent="desk", intent=run) for run in runs]
        await asyncio.gather(*(handle.answer(20) for handle in handles))
        await until(lambda: len(drawn.spans) >= 6 * len(kept))

    per_run = Counter((span.attributes or {})["crewline.run"] for span in drawn.spans)
    assert per_run == dict.fromkeys(kept, 6)
    assert 0 < len(kept) < len(runs)


async def test_delegated_work_hangs_below_the_call_that_delegated_it(bench: Bench, drawn: Drawn) -> None:
    desk = PlannedBrain(calls(("delegate", '{"capability": "refund.decide", "input": "please"}')), say("done"))
    crew = bench.crew({"desk": desk, "clerk": PlannedBrain(say("yes"))}, delegates=["refund.decide"],
                      capabilities={"clerk": ["refund.decide"]}, policies=PolicySet([
                          PolicyRule("fine", tools=("delegate",), action="allow", reason="a test")]))
    async with traced(crew, bench, drawn) as running:
        await running.client.publish("refund", agent="desk", intent="i1")
        await until(lambda: drawn.named("turn desk"))

    spans = drawn.by_name()
    assert parent_of(spans["turn clerk"]) == id_of(spans["delegation refund.decide"])
    assert parent_of(spans["delegation refund.decide"]) == id_of(spans["call delegate"])
    assert {trace_id_of(span) for span in drawn.spans} == {trace_of("i1")}


async def test_another_crew_goes_on_with_the_trace_of_whoever_asked_it(bench: Bench, drawn: Drawn) -> None:
    desk = PlannedBrain(calls(("delegate", '{"capability": "refund.decide", "input": "please"}')), say("done"))
    allow = PolicySet([PolicyRule("fine", tools=("delegate",), action="allow", reason="a test")])
    shop = bench.crew({"desk": desk}, delegates=["refund.decide"], policies=allow, name="shop")
    bank = bench.crew({"clerk": PlannedBrain(say("yes"))}, capabilities={"clerk": ["refund.decide"]}, name="bank")
    async with traced(shop, bench, drawn) as running, traced(bank, bench, drawn):
        headers = headers_of("intent.published", "i1", source="till", subject="c1", at_ms=0, run="", cause="",
                             seal=None, traceparent=THEIRS)
        topic = running.roster.topics.conversations
        await running.bus.append([Message(topic, b"c1", encode(IntentPublished("hi", "desk")), headers)])
        await until(lambda: drawn.named("turn desk"))

    spans = drawn.by_name()
    services = {name: span.resource.attributes["service.name"] for name, span in spans.items()}
    assert (services["turn desk"], services["turn clerk"]) == ("shop.worker", "bank.worker")
    assert parent_of(spans["turn clerk"]) == id_of(spans["delegation refund.decide"])
    assert {trace_id_of(span) for span in drawn.spans} == {THEIRS.split("-")[1]}


async def test_whoever_takes_over_draws_the_same_spans(bench: Bench, drawn: Drawn) -> None:
    """A worker that was killed has not written its mark: the next one folds the records again."""
    brain = PlannedBrain(calls(("look_up", '{"order": "A-1"}')), say("one lamp"))
    crew = bench.crew({"desk": brain}, [look_up])
    async with traced(crew, bench, drawn) as running:
        await running.ask("Where is A-1?", timeout=20)
        await until(lambda: len(drawn.spans) == 6)  # the pool may see the end of its execution after the turn's
    first = {id_of(span): span for span in drawn.spans}
    drawn.exporter.clear()
    for file in bench.state.glob("store.db*"):
        file.unlink()
    async with traced(crew, bench, drawn):
        await until(lambda: len(drawn.spans) >= len(first))

    again = {id_of(span): span for span in drawn.spans}
    assert again.keys() == first.keys()
    for id, span in again.items():
        assert (span.name, parent_of(span), span.end_time) == (first[id].name, parent_of(first[id]), first[id].end_time)


async def test_a_process_ends_though_nobody_takes_its_spans(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(export, "CLOSE_S_MAX", 0.1)
        async with Telemetry() as telemetry, bench.crew({"desk": PlannedBrain(say("hi"))}).up(state=bench.state) as running:
            telemetry.watch(running.roster, running.bus, running.engines)
            await running.ask("hi", timeout=20)
        sending = [thread for thread in threading.enumerate() if thread.name == "last spans"]
    assert sending, "it still waits for an answer, and was not waited for"


# --- roles in processes of their own -----------------------------------------------------------


class Collector:
    """An OpenTelemetry collector, as far as a test needs one: (service, span) as they were sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest()
                request.ParseFromString(body)
                for resource in request.resource_spans:
                    service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
                    collector.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def environment(self) -> Mapping[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def _read_until_ready(process: Any) -> str:
    """Read what a role says until it is up; return the address of its metrics."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("ask it"):
            return next(line.split()[1] for line in said if line.startswith("metrics"))
    raise AssertionError("".join(said))


def _turns_on(page: str) -> list[str]:
    with urllib.request.urlopen(page, timeout=10) as answer:
        return [line.split()[-1] for line in answer.read().decode().splitlines() if line.startswith("crewline_turns_total")]


async def test_roles_in_processes_of_their_own_draw_one_trace(
    tmp_path: Path, collector: Collector, kafka_address: str
) -> None:
    """`runs show` draws the same tree in the terminal, from the same records; the worker's page has the turn."""
    name = f"traces-{uuid.uuid4().hex[:8]}"
    file = write_crew(tmp_path)
    file.write_text(file.read_text().replace("name: till", f"name: {name}"))
    assert crewline(tmp_path, "keys", "init", "keys").returncode == 0
    place = ("--bus", kafka_address, "--keys", "keys")
    roles = [start(tmp_path, "up", "--only", role, "--metrics", ":0", *place, "--state", role,
                   environment=collector.environment) for role in ("worker", "guardrail", "tools")]
    try:
        pages = [await asyncio.to_thread(_read_until_ready, role) for role in roles]
        asked = await asyncio.to_thread(crewline, tmp_path, *place, "run", name, "what is there?", "--agent", "clerk")
        assert asked.returncode == 0, asked.stderr
        shown = await asyncio.to_thread(crewline, tmp_path, *place, "--crew", name, "runs", "show", "last")
        assert shown.returncode == 0, shown.stderr
        await until(lambda: "turn clerk" in {span.name for _, span in collector.spans}, seconds=30)
        await until(lambda: len(collector.spans) >= 6, seconds=30)
        counted = [await asyncio.to_thread(_turns_on, page) for page in pages]
    finally:
        for role in roles:
            role.terminate()
        for role in roles:
            await asyncio.to_thread(role.communicate, timeout=20)

    assert sorted((service, span.name) for service, span in collector.spans) == [
        (f"{name}.guardrail", "judgement look"),
        (f"{name}.tools.main", "execution look"),
        (f"{name}.worker", "call look"),
        (f"{name}.worker", "step clerk"),
        (f"{name}.worker", "step clerk"),
        (f"{name}.worker", "turn clerk"),
    ]
    assert counted == [["1.0"], [], []], "the worker counts it, and nobody else"
    assert len({span.trace_id for _, span in collector.spans}) == 1
    ids = {span.span_id for _, span in collector.spans}
    assert [span.name for _, span in collector.spans if span.parent_span_id not in ids] == ["turn clerk"]
    tree = [line.split("▐")[0].rstrip() for line in shown.stdout.splitlines() if "▐" in line]
    assert tree == [
        "clerk done", "├─ step 1", "├─ look(what='till') ✓ 12 coins", "└─ step 2 “The till holds 12 coins.”",
    ]
