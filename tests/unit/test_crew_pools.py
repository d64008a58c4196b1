"""`pool:` in a crew file: which processes run a tool."""

from __future__ import annotations

from pathlib import Path

import pytest
from crewline.crews.problems import CrewFileError
from crewline.crews.running import Crew, topics_of
from crewline.errors import UsageError

CREW = """\
schema: crew/v1
name: till
version: 1.0.0
models: {default: {provider: scripted, script: s.yaml}}
agents: {clerk: {role: Clerk, goal: Pay, tools: [look, pay]}}
tools:
  look: {python: "pool_tools:look", effect: read}
  pay: {python: "pool_tools:pay", effect: destructive, pool: payments}
guardrails:
  policies: {fine: {tools: [pay], action: allow, reason: a test}}
"""
TOOLS = '''\
from crewline import tool

@tool(effect="read")
def look() -> str:
    """Look."""
    return "12"

@tool(effect="destructive")
def pay() -> str:
    """Pay."""
    return "paid"
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text("clerk: [{say: hello}]\n")
    (tmp_path / "pool_tools.py").write_text(TOOLS)
    path = tmp_path / "crew.yaml"
    path.write_text(CREW)
    return path


def test_a_tool_runs_in_the_pool_that_its_crew_file_names(file: Path) -> None:
    crew = Crew.load(file)

    assert crew.roster.pools == ("main", "payments")
    assert {name: tool.pool for name, tool in crew.roster.tools.items()} == {"look": "main", "pay": "payments"}
    assert list(crew.tools.of_pool("payments")) == ["pay"]


def test_each_pool_is_a_role_and_tools_stands_for_all(file: Path) -> None:
    crew = Crew.load(file)

    assert crew.up(only=["tools.payments"]).roles == ["tools.payments"]
    assert crew.up(only=["tools"]).roles == ["tools.main", "tools.payments"]
    with pytest.raises(UsageError, match=r"there is no role .tools\.pay.; this crew has: .*tools.main, tools.payments"):
        crew.up(only=["tools.pay"])


def test_a_role_asks_for_no_topic_that_it_does_not_touch(file: Path) -> None:
    roster = Crew.load(file).roster

    assert topics_of(roster, ["tools.payments"]) == {"till.conversations", "till.tools.payments"}
    assert {"till.tools.main", "till.tools.payments", "till.tokens", "crewline.market"} <= topics_of(roster, ["worker"])
    assert topics_of(roster, ()) == {"till.conversations", "till.tokens"}


@pytest.mark.parametrize("pool", ["Payments", "tools.payments", "''"])
def test_a_pool_must_be_a_name_that_a_topic_can_bear(file: Path, pool: str) -> None:
    file.write_text(CREW.replace("pool: payments", f"pool: {pool}"))

    with pytest.raises(CrewFileError, match=r"tools\.pay\.pool"):
        Crew.load(file)
