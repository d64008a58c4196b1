"""Check 1: whose tool it is, whether it changed, and which one was meant."""

from __future__ import annotations

from typing import Any

import pytest
from crewline.guardrail.catalogue import Catalogue, Offer, nearest, words_of
from crewline_tools.base import ToolSpec
from guard_kit import make_roster, object_schema
from hypothesis import given
from hypothesis import strategies as st

ROSTER = make_roster()
CATALOGUE = Catalogue(ROSTER)
SEEN = ROSTER.catalogue("desk")


def told(tool: str, args: dict[str, Any] | None = None, *, agent: str = "desk", seen: str = SEEN) -> list[tuple[str, Any]]:
    return [(reason.code, reason.fix) for reason in CATALOGUE.problems(agent, tool, seen, args)]


def test_an_offered_tool_is_found_with_its_schema() -> None:
    assert told("find_order") == []
    offer = CATALOGUE.find("desk", "find_order")
    assert offer is not None
    assert offer.digest == ROSTER.tools["find_order"].digest()
    assert CATALOGUE.find("desk", "audit_export") is None
    assert CATALOGUE.find("nobody", "find_order") is None


def test_a_tool_of_others_is_forbidden_and_says_whose_it_is() -> None:
    assert told("audit_export") == [("tool.forbidden", {"agents": ["auditor"]})]


def test_built_in_tools_have_codes_of_their_own() -> None:
    seen = ROSTER.catalogue("auditor")
    assert told("delegate", agent="auditor", seen=seen) == [("delegation.forbidden", None)]
    assert told("handoff", agent="auditor", seen=seen) == [("handoff.forbidden", None)]


def test_delegates_of_one_agent_are_not_those_of_another() -> None:
    roster = make_roster()
    desk = roster.agents["desk"]
    other = type(desk)("other", desk.brain, delegates=("fraud.score",))
    catalogue = Catalogue(type(roster)("demo", "1", {"desk": desk, "other": other}, roster.tools))
    mine, theirs = catalogue.find("desk", "delegate"), catalogue.find("other", "delegate")
    assert mine is not None
    assert theirs is not None
    assert mine.schema.problems({"capability": "refund.decide", "input": 1}) == []
    assert theirs.schema.problems({"capability": "refund.decide", "input": 1}) != []


def test_another_catalogue_than_the_one_seen_says_so() -> None:
    assert told("find_order", seen="")[0][0] == "tool.changed"
    assert told("find_order", agent="gone")[0][0] == "agent.unknown"


@pytest.mark.parametrize(("asked", "args"), [
    ("find_ordr", {"order_id": "A"}), ("findOrder", {"order_id": "A"}), ("order.find", None), ("FIND-ORDER", {}),
    ("get_order", {"order_id": "A"}), ("orders_find", {"order_id": "A", "limit": 5}),
    ("lookup", {"order_id": "A", "sort": "newest"}),
])
def test_the_nearest_tool_is_named_by_spelling_by_parts_and_by_arguments(asked: str, args: dict[str, Any] | None) -> None:
    assert told(asked, args) == [("tool.unknown", {"use": "find_order"})]


def test_arguments_tell_tools_with_equal_names_apart() -> None:
    offers = [Offer(ToolSpec(name, "", object_schema([arg], **{arg: {"type": "string"}}), "read"))
              for name, arg in (("send_mail", "recipient"), ("send_text", "phone"))]
    assert nearest("send", {"phone": "1"}, offers) == "send_text"
    assert nearest("send", {"recipient": "a"}, offers) == "send_mail"


def test_nothing_is_suggested_if_nothing_is_near() -> None:
    ((code, fix),) = told("zzz", {"qqq": 1})
    assert code == "tool.unknown"
    assert fix["one_of"] == sorted(tool.name for tool in ROSTER.offers("desk"))


def test_names_are_taken_apart_at_case_digits_and_signs() -> None:
    assert words_of("HNA_NEWS.searchAll2x") == {"hna", "news", "search", "all", "2", "x"}
    assert words_of("HTTPServer") == {"http", "server"}


@given(st.text(), st.none() | st.dictionaries(st.text(), st.none() | st.integers() | st.text()))
def test_no_name_crashes_and_only_tools_of_the_agent_are_suggested(tool: str, args: dict[str, Any] | None) -> None:
    offered = {spec.name for spec in ROSTER.offers("desk")}
    for code, fix in told(tool, args):
        assert code in ("tool.unknown", "tool.forbidden", "handoff.forbidden", "delegation.forbidden")
        if code == "tool.unknown" and "use" in fix:
            assert fix["use"] in offered
