"""Trace context: made from ids, the same everywhere; what an outside producer began goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from crewline import events as ev
from crewline.conversation import Conversation, take
from crewline.records import Scribe
from crewline.seal import load_keys, make_keys
from crewline.traceparent import (
    Context,
    context_of,
    from_outside,
    outside,
    parse,
    part_of,
    span_of,
    trace_of,
    wanted,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from entries import Talk

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ("c1:t2", "c1:t2"),
        ("c1:t2:end", "c1:t2"),
        ("c1:t2:deadline:0", "c1:t2"),
        ("c1:t2:s1", "c1:t2:s1"),
        ("c1:t2:s1:a2", "c1:t2:s1:a2"),
        ("c1:t2:s1:c0:j1", "c1:t2:s1:c0:j1"),
        ("c1:t2:s1:c0:j1:by:ann", "c1:t2:s1:c0:j1"),
        ("c1:t2:s1:c0:x3:requested", "c1:t2:s1:c0:x3"),
        ("c1:t2:s1:c0:x3:unknown:report", "c1:t2:s1:c0:x3"),
        ("a:t9:s9:t2:end", "a:t9:s9:t2"),  # a conversation may be called anything
        ("line\nbreak:t1:end", "line\nbreak:t1"),
        ("an-intent", "an-intent"),
    ],
)
def test_a_record_belongs_to_the_innermost_part_that_its_id_names(record: str, part: str) -> None:
    assert part_of(record) == part


def test_the_ids_of_a_run_never_change() -> None:
    """They stand in logs and trace stores: another version must not make up others."""
    assert str(context_of("run-1", "c1:t1:end")) == "00-e2ba1bdb06855efedf18114c2499ce6f-570b84cf755aaed9-01"


@pytest.mark.parametrize(
    "header",
    [
        None, "", "00", THEIRS + "-more", THEIRS.upper(), "ff" + THEIRS[2:], THEIRS.replace("b7ad6b7169203331", "0" * 16),
        THEIRS.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
    ],
)
def test_what_is_no_trace_context_is_left_alone(header: str | None) -> None:
    assert parse(header) is None
    assert from_outside(header, "run", "i1") == ""


def test_flags_say_whether_the_trace_is_kept() -> None:
    assert parse(THEIRS) == Context("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    unsampled = parse(THEIRS[:-2] + "00")
    assert unsampled is not None
    assert not unsampled.sampled
    assert str(unsampled).endswith("-00")


def test_our_own_header_begins_nothing_outside() -> None:
    assert from_outside(str(context_of("i1", "i1")), "i1", "i1") == ""
    assert from_outside(THEIRS, "i1", "i1") == THEIRS


def test_a_turn_keeps_the_trace_of_its_intent() -> None:
    talk = Talk()
    entry = talk.entry(ev.IntentPublished("hi", "desk"), "i1", run="i1")
    headers = (("traceparent", THEIRS.encode()),)
    state = take(Conversation("c1"), entry._replace(record=entry.record._replace(headers=headers))).state
    assert state.queue[0].trace == THEIRS
    talk.state = state
    assert talk.started()
    assert talk.turn.trace == THEIRS


@pytest.fixture
def scribe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scribe:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    make_keys(tmp_path)
    return Scribe(load_keys(tmp_path), source="demo", now_ms=lambda: 0)


def test_every_record_of_a_run_bears_its_context(scribe: Scribe) -> None:
    message = scribe.message("demo.conversations", "c1", ev.CancelRequested(turn=1), id="c1:t1:cancel", run="i1")
    assert ev.header(message.headers, "traceparent") == f"00-{trace_of('i1')}-{span_of('c1:t1')}-01"

    token = outside.set(parse(THEIRS))
    try:
        message = scribe.message("demo.conversations", "c1", ev.CancelRequested(turn=1), id="c1:t1:cancel", run="i1")
    finally:
        outside.reset(token)
    assert ev.header(message.headers, "traceparent") == f"00-0af7651916cd43dd8448eb211c80319c-{span_of('c1:t1')}-01"


def test_nothing_is_written_until_traces_go_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    assert not wanted()
    make_keys(tmp_path)
    scribe = Scribe(load_keys(tmp_path), source="demo", now_ms=lambda: 0)
    message = scribe.message("demo.conversations", "c1", ev.CancelRequested(turn=1), id="c1:t1:cancel", run="i1")
    assert ev.header(message.headers, "traceparent") is None

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/v1/traces")
    assert wanted()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wanted()
