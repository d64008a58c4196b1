"""What counts as arguments: one JSON object that every parser reads alike."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from crewline.strict_json import StrictJsonError, check_object, decode_object
from hypothesis import given
from hypothesis import strategies as st


def code_of(text: str, **limits: int) -> str:
    with pytest.raises(StrictJsonError) as caught:
        decode_object(text, **limits)
    return caught.value.code


@pytest.mark.parametrize("blank", ["", " ", "\n\t\r "])
def test_blank_text_means_an_empty_object(blank: str) -> None:
    assert decode_object(blank) == {}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a":1', "decode.not_json"),
        ('{"a":1}}', "decode.not_json"),
        ("{'a':1}", "decode.not_json"),
        ('{"a":1,}', "decode.not_json"),
        ('{"a":01}', "decode.not_json"),
        ('{"a":"\n"}', "decode.not_json"),
        ('{"a":"C:\\data"}', "decode.not_json"),
        ('{"a":1} // said', "decode.not_json"),
        ("\u00a0", "decode.not_json"),
        ('\ufeff{"a":1}', "decode.not_json"),
        ('{"a":１}', "decode.not_json"),
        ("null", "decode.not_object"),
        ("[]", "decode.not_object"),
        ("3", "decode.not_object"),
        ('"{}"', "decode.not_object"),
        ('{"a":1,"a":1}', "decode.duplicate_key"),
        ('{"b":[{"a":1,"\\u0061":2}]}', "decode.duplicate_key"),
        ('{"a":NaN}', "decode.number"),
        ('{"a":-Infinity}', "decode.number"),
        ('{"a":1e999}', "decode.number"),
        ('{"a":-' + "7" * 4301 + "}", "decode.number"),
        ('{"a":"\\ud83d"}', "decode.unicode"),
        ('{"\\udc00":1}', "decode.unicode"),
        ('{"a":"\ud83d"}', "decode.unicode"),
        ('{"a":' * 33 + "1" + "}" * 33, "decode.too_deep"),
        ("[" * 100_000, "decode.too_deep"),
        ('{"a":"' + "x" * 262_144 + '"}', "decode.too_large"),
    ],
)
def test_what_parsers_might_read_differently_is_refused(text: str, code: str) -> None:
    assert code_of(text) == code


def test_a_check_takes_what_decoding_takes_and_no_more_however_often_it_is_asked() -> None:
    for _ in range(2):
        check_object('{"a": 1}')
        assert decode_object('{"a": 1}') == {"a": 1}
        with pytest.raises(StrictJsonError, match="given twice"):
            check_object('{"a": 1, "a": 1}')
    decode_object('{"a": [[1]]}', depth_max=3)
    with pytest.raises(StrictJsonError, match="nested deeper"):
        check_object('{"a": ' + "[" * 40 + "]" * 40 + "}")


def test_brackets_in_strings_are_not_nesting() -> None:
    assert decode_object('{"a":"' + '[{\\"' * 500 + '"}')["a"] == '[{"' * 500


def test_the_depth_allowed_is_reached_but_not_passed() -> None:
    assert decode_object('{"a":' * 64 + "1" + "}" * 64, depth_max=64)
    assert code_of('{"a":' * 65 + "1" + "}" * 65, depth_max=64) == "decode.too_deep"


def test_wide_numbers_and_escapes_come_back_exactly() -> None:
    read = decode_object('{"n":-' + "7" * 4300 + ',"s":"a\\u0000b\\ud83d\\ude80","back":"\\\\ud83d"}')
    assert read == {"n": -int("7" * 4300), "s": "a\0b🚀", "back": "\\ud83d"}


def test_quotes_that_never_close_do_not_take_quadratic_time() -> None:
    assert code_of('{"a":"' + '\\"{' * 80_000) == "decode.not_json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_every_object_comes_back_as_it_was_written(value: dict[str, Any], ascii_only: bool) -> None:
    assert decode_object(json.dumps(value, ensure_ascii=ascii_only), depth_max=64) == value


@given(st.text(alphabet='{}[]":,\\u0dD8 1e-\n'))
def test_any_text_is_either_read_or_refused_by_name(text: str) -> None:
    with contextlib.suppress(StrictJsonError):
        assert isinstance(decode_object(text), dict)
