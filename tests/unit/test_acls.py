"""Who may do what at Kafka: each role what it uses, and every topic of a crew has somebody who writes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from crewline.crews import load_crew
from crewline.crews.acls import acl_commands, rights_of
from crewline.crews.doctor import topics_of_crew
from crewline.crews.models import CrewConfig
from crewline.topics import MARKET

CREWS = Path(__file__).parents[2] / "configs" / "crews"


def crew(name: str) -> CrewConfig:
    return load_crew(CREWS / name / "crew.yaml", resolve=False)


@pytest.mark.parametrize("name", ["support", "fraud", "maintenance"])
def test_every_topic_of_a_crew_is_written_by_somebody_and_created_by_deploy(name: str) -> None:
    config = crew(name)
    rights = {each.role: each for each in rights_of(config)}
    written = {topic for role, each in rights.items() if role != "deploy" for topic in each.writes}
    namespace = config.bus.topic_prefix or config.name

    assert {spec.name for spec in topics_of_crew(config)} <= written
    assert rights["deploy"].creates == (f"{namespace}.*", MARKET)
    assert not any(each.creates for role, each in rights.items() if role != "deploy")


def test_a_pool_sees_its_own_topic_and_writes_results_and_progress() -> None:
    [pool] = [each for each in rights_of(crew("support")) if each.role == "tools.main"]

    assert pool.reads == ("customer-support.tools.main",)
    assert pool.writes == ("customer-support.tools.main", "customer-support.conversations", "customer-support.tokens")
    assert pool.groups == ("customer-support.tools.main",)


def test_triggers_read_their_outside_topics() -> None:
    config = crew("fraud")
    rights = {each.role: each for each in rights_of(config)}
    outside = {trigger.topic for trigger in config.triggers.values()}

    assert outside < set(rights["triggers"].reads)
    assert not outside & set(rights["worker"].reads)
    assert {f"{config.name}.triggers.{name}" for name in config.triggers} < set(rights["triggers"].groups)


def test_names_are_quoted_for_a_shell() -> None:
    [line] = [line for line in acl_commands(rights_of(crew("support")), servers="h:1", principal_prefix="CN=a b,")
              if "deploy" in line and MARKET in line and not line.startswith("#")]  # fmt: skip

    words = shlex.split(line)
    assert words[words.index("--allow-principal") + 1] == "User:CN=a b,deploy"
    assert words[-1] == MARKET
