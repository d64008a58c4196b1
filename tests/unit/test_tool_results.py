"""What a tool returns becomes text, whatever it is, and never more than 64 KB."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from crewline_tools.results import FIX_BYTES_MAX, RESULT_BYTES_MAX, cut, describe, fix_of, render
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel


class Model(BaseModel):
    a: int
    when: datetime = datetime(2026, 11, 25, tzinfo=UTC)


@dataclasses.dataclass
class Plain:
    a: int
    inner: Any = None


class Struct(msgspec.Struct):
    a: int


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(("value", "text"), [
    ("as it is", "as it is"),
    ("", ""),
    ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
    (Model(a=1), '{"a":1,"when":"2026-11-25T00:00:00Z"}'),
    ([Model(a=1).a, Struct(2)], '[1,{"a":2}]'),
    (Plain(1, Struct(2)), '{"a":1,"inner":{"a":2}}'),
    (Plain(1, Model(a=3)), '{"a":1,"inner":{"a":3,"when":"2026-11-25T00:00:00Z"}}'),
    (True, "true"),
    (None, "Done; the tool returned nothing."),
])
def test_results_become_text(value: Any, text: str) -> None:
    assert render(value) == (text, None)


def circle() -> list[Any]:
    around: list[Any] = []
    around.append(around)
    return around


@pytest.mark.parametrize("value", [object(), {"a": {1j}}, circle(), Hostile(), lambda: 1])
def test_what_cannot_be_written_is_shown_as_it_is_and_named(value: Any) -> None:
    rendered = render(value)

    assert rendered.problem is not None
    assert type(value).__name__ in rendered.problem
    assert rendered.text


def test_a_large_result_is_cut_with_its_size() -> None:
    text = render("x" * 10_485_760).text

    assert text.startswith("x" * RESULT_BYTES_MAX + "\n[cut: the result has 10,485,760 bytes")
    assert len(text) < RESULT_BYTES_MAX + 200


def test_a_cut_never_splits_a_character() -> None:
    text = render(["€" * 40_000]).text

    assert text.split("\n[cut")[0] == '["' + "€" * ((RESULT_BYTES_MAX - 2) // 3)


def test_half_surrogates_do_not_reach_the_log() -> None:
    assert render("a\ud800b").text == "a?b"


@given(st.text(), st.integers(0, 50))
def test_cut_keeps_a_prefix_within_its_bound(text: str, bytes_max: int) -> None:
    kept = cut(text, bytes_max=bytes_max)

    if len(text.encode()) <= bytes_max:
        assert kept == text
    else:
        prefix = kept[: kept.rindex("\n[cut: ")]
        assert text.startswith(prefix)
        assert bytes_max - 4 < len(prefix.encode()) <= bytes_max


@pytest.mark.parametrize("fix", [[1], object(), {"a": object()}, {"a": "x" * FIX_BYTES_MAX}, "text", None])
def test_a_fix_that_is_no_small_json_object_is_left_out(fix: Any) -> None:
    assert fix_of(fix) is None


def test_a_fix_is_kept_as_plain_data() -> None:
    assert fix_of({"max": 3, "of": Model(a=1)}) == {"max": 3, "of": {"a": 1, "when": "2026-11-25T00:00:00Z"}}


def test_an_exception_is_described_even_if_it_cannot_say_anything() -> None:
    assert (describe(ValueError("x")), describe(ValueError()), describe(Mute())) == ("ValueError: x", "ValueError", "Mute")
