"""Check 0: what is no strict JSON object, and what is not what it looks like."""

from __future__ import annotations

import json

import pytest
from crewline.guardrail.decode import decode, hidden_in
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_blank_means_no_arguments(text: str) -> None:
    assert decode(text) == ({}, [])


@pytest.mark.parametrize(("text", "code"), [
    ('{"a": 1', "decode.not_json"),
    ("[1]", "decode.not_object"),
    ('{"a": 1, "a": 2}', "decode.duplicate_key"),
    ('{"a": NaN}', "decode.number"),
    ('{"a": 1e999}', "decode.number"),
    ('{"a": "\\ud800"}', "decode.unicode"),
    ('{"a":' * 40 + "1" + "}" * 40, "decode.too_deep"),
    ('{"a": "' + "x" * 300_000 + '"}', "decode.too_large"),
])
def test_what_is_no_strict_object_is_denied_with_one_reason(text: str, code: str) -> None:
    args, reasons = decode(text)
    assert args is None
    assert [reason.code for reason in reasons] == [code]
    assert len(reasons[0].say) < 400


@pytest.mark.parametrize("value", [
    "ann@exam\u200bple.com", "https://exa\u00admple.com/pay", "A-10\u206001", "\ufeffDE89370400440532013000",
    "\u202egpj.exe", "user\u200e_1", "pay\U000e0041load",
])
@pytest.mark.parametrize("escaped", [True, False])
def test_hidden_characters_in_identifiers_are_denied_and_the_clean_value_is_offered(value: str, escaped: bool) -> None:
    args, reasons = decode(json.dumps({"list": [{"to": value}]}, ensure_ascii=escaped))
    assert args == {"list": [{"to": value}]}
    assert [(reason.code, reason.path) for reason in reasons] == [("decode.invisible", "/list/0/to")]
    assert reasons[0].fix is not None
    assert str(reasons[0].fix["use"]).isascii()


def test_hidden_characters_in_names_of_arguments_are_denied() -> None:
    _, reasons = decode('{"am\u200bount": 5}')
    assert [reason.code for reason in reasons] == ["decode.invisible"]


@pytest.mark.parametrize("value", [
    "می‌خواهم", "क्‍ष", "👩‍👩‍👧", "شما‌ها سلام", "Straße", "naïve café", "a note\u200b with spaces",
    "\u200fשלום", "日本語", "co\u00adop\u00ader\u00ada\u00adtion is nice", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "",
])
def test_joiners_that_belong_to_the_spelling_are_left_alone(value: str) -> None:
    assert hidden_in(value) is None
    assert decode(json.dumps({"text": value}, ensure_ascii=False))[1] == []


@given(st.text())
def test_no_text_crashes(text: str) -> None:
    args, reasons = decode(text)
    assert (args is None) <= bool(reasons)


VISIBLE = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"], exclude_characters="\u115f\u1160"))


@given(st.dictionaries(VISIBLE, VISIBLE))
def test_nothing_is_said_about_what_can_be_seen(args: dict[str, str]) -> None:
    assert decode(json.dumps(args)) == (args, [])
