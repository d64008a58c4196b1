"""The wire: what stands in logs today must be readable for ever, so a change to it must be seen.

`golden/events.json` holds one full example of every event as sealed bytes, and the JSON Schemas. If a
test here fails, the wire has changed: a log written yesterday may not be read today. Only if that is
meant (a new event, a new field with a default), write the file anew and read its diff:

    CREWLINE_GOLDEN=write pytest tests/unit/test_events_wire.py      (or: make golden)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crewline import conversation, events
from crewline.bus.base import Message, Record
from crewline.errors import RecordInvalid, UnknownEvent
from crewline.events import EVENTS, Event, Headers
from crewline.records import GUARD, PEOPLE, UNSEALED, WRITERS, Reader, Scribe
from crewline.seal import DEPLOYMENT, Keyring
from crewline.topics import partition_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_examples import anything, full

GOLDEN = Path(__file__).parent / "golden" / "events.json"
TOPIC, KEY, AT_MS = "golden.conversations", "c-1", 1_795_641_851_123
TYPES = sorted(EVENTS)


def golden_keys() -> Keyring:
    from crewline.seal import key_id
    from nacl.signing import SigningKey

    seeds = {GUARD: b"g" * 32, PEOPLE: b"p" * 32}
    halves = {who: bytes(SigningKey(seed).verify_key) for who, seed in seeds.items()}
    public = {f"{who}-{key_id(half)}": half for who, half in halves.items()}
    return Keyring(deployment=b"d" * 32, guard=seeds[GUARD], people=seeds[PEOPLE], public=public)


def golden_message(event: Event) -> Message:
    """Return the record of `event`, sealed by the first of those who may write it."""
    writer = next(each for each in (DEPLOYMENT, "pool", PEOPLE, GUARD) if each in WRITERS[event.TYPE])
    scribe = Scribe(golden_keys(), source="golden", now_ms=lambda: AT_MS)
    return scribe.message(
        TOPIC,
        KEY,
        event,
        id="c-1:t1:s2",
        run="c-1",
        cause="c-1:t1",
        signed_by=writer if writer in (PEOPLE, GUARD) else None,
        seal_as="pool/payments" if writer == "pool" else None,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def wire_of_today() -> dict[str, Any]:
    records: dict[str, Any] = {}
    for name in TYPES:
        message = golden_message(full(EVENTS[name]))
        assert message.value is not None
        records[name] = {
            "headers": [[key, value.decode()] for key, value in message.headers],
            "value": message.value.decode(),
        }
    return {"records": records, "schemas": without_prose(events.json_schemas())}


def without_prose(schema: Any) -> Any:
    """Return a JSON Schema as JSON would hand it back, without the docstrings in it."""
    match schema:
        case dict():
            prose = ("description",) if isinstance(schema.get("description"), str) else ()
            return {name: without_prose(inner) for name, inner in schema.items() if name not in prose}
        case list() | tuple():
            return [without_prose(inner) for inner in schema]
        case _:
            return schema


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if os.environ.get("CREWLINE_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(wire_of_today(), indent=1, ensure_ascii=False) + "\n")
    loaded: dict[str, Any] = json.loads(GOLDEN.read_text())
    return loaded


def headers_of(event_type: str, **changed: bytes | None) -> Headers:
    """Return good headers, with some changed or (None) left out."""
    headers: dict[str, bytes | None] = {
        "ce_id": b"i-1", "ce_type": event_type.encode(), "ce_source": b"demo", "ce_subject": b"c-1", "ce_time":
        b"2026-11-25T08:00:00.000Z", "ce_specversion": b"1.0", "ce_correlationid": b"r-1", "ce_causationid": b"",
    }
    headers |= changed
    return tuple((name, value) for name, value in headers.items() if value is not None)


# --- the golden file ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_an_event_is_written_as_it_always_was(golden: dict[str, Any], name: str) -> None:
    assert wire_of_today()["records"][name] == golden["records"][name]


@pytest.mark.parametrize("name", TYPES)
def test_a_record_of_an_old_log_is_read_and_its_seal_holds(golden: dict[str, Any], name: str) -> None:
    old = golden["records"][name]
    headers = tuple((key, value.encode()) for key, value in old["headers"])
    partition = partition_of(KEY.encode(), 12)

    entry = Reader(golden_keys(), partitions=12).read(
        Record(TOPIC, partition, 7, AT_MS, KEY.encode(), old["value"].encode(), headers)
    )

    assert entry.event == full(EVENTS[name])
    assert (entry.id, entry.run, entry.cause) == ("c-1:t1:s2", "c-1", "c-1:t1")
    assert entry.sealed_by != UNSEALED


def test_the_golden_file_holds_every_event_and_no_other(golden: dict[str, Any]) -> None:
    assert sorted(golden["records"]) == TYPES == sorted(WRITERS)


def test_the_schemas_are_as_they_always_were(golden: dict[str, Any]) -> None:
    assert without_prose(events.json_schemas()) == golden["schemas"]


@pytest.mark.parametrize("name", TYPES)
def test_the_example_sets_every_field(name: str) -> None:
    written = json.loads(events.encode(full(EVENTS[name])))
    assert list(written) == list(EVENTS[name].__struct_fields__)


@pytest.mark.parametrize("name", TYPES)
def test_the_schema_of_an_event_takes_its_example(name: str) -> None:
    import jsonschema_rs

    schemas = events.json_schemas()
    schema = {**schemas["events"][name], "$defs": schemas["$defs"]}

    jsonschema_rs.validator_for(schema).validate(json.loads(events.encode(full(EVENTS[name]))))


@pytest.mark.parametrize("name", TYPES)
def test_an_event_says_what_it_is(name: str) -> None:
    kind = EVENTS[name]
    assert kind.__doc__
    assert name == kind.TYPE
    assert re.fullmatch(r"[a-z]+\.[a-z]+", name)


# --- headers -----------------------------------------------------------------------------------


def test_headers_are_cloudevents_in_binary_mode() -> None:
    message = golden_message(full(events.TurnStarted))

    assert [name for name, _ in message.headers] == [
        "ce_id", "ce_type", "ce_source", "ce_subject", "ce_time", "ce_specversion", "ce_correlationid",
        "ce_causationid", "content-type", "traceparent", "seal",
    ]  # fmt: skip
    assert dict(message.headers)["ce_time"] == b"2026-11-25T21:24:11.123Z"
    assert dict(message.headers)["content-type"] == b"application/json"


@pytest.mark.parametrize("missing", ["ce_id", "ce_type"])
def test_a_record_without_cloudevents_headers_is_no_event(missing: str) -> None:
    with pytest.raises(RecordInvalid, match="CloudEvent"):
        events.decode(headers_of("cancel.requested", **{missing: None}), b"{}")


@pytest.mark.parametrize("broken", ["ce_id", "ce_type", "ce_correlationid", "ce_causationid", "seal", "traceparent"])
def test_a_header_that_is_no_text_is_no_event(broken: str) -> None:
    with pytest.raises(RecordInvalid):
        events.decode(headers_of("cancel.requested", **{broken: b"\xff"}), b"{}")


def test_an_empty_id_is_no_event() -> None:
    with pytest.raises(RecordInvalid, match="ce_id"):
        events.decode(headers_of("cancel.requested", ce_id=b""), b"{}")


def test_of_two_headers_of_one_name_the_first_counts_everywhere() -> None:
    headers = (*headers_of("cancel.requested"), ("ce_id", b"other"), ("ce_type", b"turn.finished"))

    envelope = events.decode(headers, b"{}")

    assert (envelope.id, envelope.type) == ("i-1", "cancel.requested")
    assert events.header(headers, "ce_id") == envelope.id


def test_a_header_that_is_absent_or_no_text_reads_as_none() -> None:
    assert events.header((("ce_id", b"\xff"),), "ce_id") is None
    assert events.header((), "ce_id") is None


# --- values ------------------------------------------------------------------------------------


def test_an_unknown_type_is_left_to_a_newer_process() -> None:
    with pytest.raises(UnknownEvent, match="moon\\.landed"):
        events.decode(headers_of("moon.landed"), b"{}")


def test_a_tombstone_is_no_event() -> None:
    with pytest.raises(RecordInvalid, match="no value"):
        events.decode(headers_of("cancel.requested"), None)


@pytest.mark.parametrize("name", TYPES)
def test_fields_of_a_newer_version_are_ignored_and_stay_in_the_record(name: str) -> None:
    known = full(EVENTS[name])
    newer = events.encode(known)[:-1] + b',"later":{"x":[1]}}'
    headers = headers_of(name)
    record = Record(TOPIC, partition_of(KEY.encode(), 12), 7, AT_MS, KEY.encode(), newer, headers)

    assert events.decode(record.headers, record.value).event == known
    if UNSEALED in WRITERS[name]:
        entry = Reader(Keyring(), partitions=12).read(record)
        assert entry.record.value == newer  # copied as bytes, never written again from `event`


@pytest.mark.parametrize(
    "value",
    [
        b"", b" ", b"null", b"[]", b'"x"', b"{", b'{"turn":1', b"\xef\xbb\xbf{}", b'{"by":"\xff"}', b'{"by":"\\ud800"}',
        b'{"by":1}', b'{"turn":"1"}', b'{"turn":1.5}', b'{"turn":NaN}', b'{"turn":1e999}',
        b'{"turn":' + b"9" * 5_000 + b"}", b'{"later":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda value: repr(value[:24]),
)  # fmt: skip
def test_data_that_the_type_does_not_allow_is_named_invalid(value: bytes) -> None:
    with pytest.raises(RecordInvalid, match=r"cancel\.requested"):
        events.decode(headers_of("cancel.requested"), value)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_integers_beyond_64_bits_are_refused_both_ways(number: int) -> None:
    """No snapshot could hold them: one such record would stop its partition for good."""
    with pytest.raises(RecordInvalid):
        events.decode(headers_of("intent.published"), b'{"input":{"n":%d}}' % number)
    with pytest.raises(RecordInvalid):
        events.encode(events.IntentPublished(input={"n": number}))


def nested(levels: int) -> bytes:
    return b'{"input":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_what_is_nested_too_deep_is_refused_both_ways() -> None:
    at_most, too_deep = nested(events.LEVELS_MAX), nested(events.LEVELS_MAX + 1)

    assert events.encode(events.decode(headers_of("intent.published"), at_most).event) == at_most
    with pytest.raises(RecordInvalid, match="levels"):
        events.decode(headers_of("intent.published"), too_deep)
    with pytest.raises(RecordInvalid, match="levels"):
        events.encode(events.IntentPublished(input=json.loads(too_deep)["input"]))


def test_brackets_in_texts_are_no_levels() -> None:
    event = events.IntentPublished(input='"[{\\' * 500)
    assert events.decode(headers_of("intent.published"), events.encode(event)).event == event


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    with pytest.raises(RecordInvalid):
        events.encode(events.IntentPublished(input="\ud800"))


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_event_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    event = data.draw(anything(EVENTS[name]))

    envelope = events.decode(headers_of(name), events.encode(event))

    assert envelope.event == event
    assert events.encode(envelope.event) == events.encode(event)
    msgspec.msgpack.encode(envelope.event)  # what was read fits into a snapshot


@settings(max_examples=300)
@given(name=st.sampled_from(TYPES), value=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_record_invalid(name: str, value: bytes) -> None:
    with contextlib.suppress(RecordInvalid):
        events.decode(headers_of(name), value)


# --- ids ---------------------------------------------------------------------------------------

EFFECT_ID = re.compile(r"c-1:t\d+(:s\d+(:a\d+|:c\d+(:j\d+|:x\d+)?)?)?")


def test_ids_of_effects_follow_the_grammar() -> None:
    turn = msgspec.structs.replace(full(conversation.Turn), number=2, step=3)
    step = conversation.step_id("c-1", turn)
    call = msgspec.structs.replace(full(conversation.Call), id=f"{step}:c4", execution=5, judgement=6)

    ids = [conversation.turn_id("c-1", 2), step, call.id, call.execution_id, call.judgement_id]

    assert ids == ["c-1:t2", "c-1:t2:s3", "c-1:t2:s3:c4", "c-1:t2:s3:c4:x5", "c-1:t2:s3:c4:j6"]
    assert all(EFFECT_ID.fullmatch(id) for id in ids)
