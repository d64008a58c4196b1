"""compose.yaml and the Dockerfile are true: each command is one that exists, each role has its keys, each file is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from crewline.cli import run_line
from crewline.cli.app import command
from crewline.cli.text import seconds_of
from crewline.crews import check_crew
from crewline.crews.running import Crew
from crewline.seal import load_keys
from crewline_tools.pool import PoolOptions
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: Any = YAML(typ="safe", pure=True).load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
ROLES = {name: each for name, each in SERVICES.items() if "--only" in each.get("command", ())}
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
CREW = ROOT / "configs" / "crews" / "support"  # what the image has in its working directory


def parsed(words: list[str]) -> dict[str, Any]:
    """Return a command's options as the command line parses them. Raises: what Typer raises for a wrong one."""
    current: Any = command()
    context = current.make_context("crewline", ["version"])  # any command: it is the parent of the one in question
    words = list(words)
    while hasattr(current, "get_command"):
        name = words.pop(0)
        current = current.get_command(context, name)
        assert current is not None, f"there is no command {name!r}"
    options: dict[str, Any] = current.make_context(current.name, words, parent=context).params
    return options


def keys_commands() -> list[list[str]]:
    (script,) = SERVICES["keys"]["command"]
    return [shlex.split(line) for line in script.splitlines()]


def test_every_role_of_the_crew_has_a_service() -> None:
    wanted = [role for each in ROLES.values() for role in parsed(each["command"])["only"].split(",")]

    assert sorted(wanted) == sorted(Crew.load(CREW / "crew.yaml", offline=True).up().roles)


@pytest.mark.parametrize("service", ROLES)
def test_a_service_runs_a_crew_that_passes_with_its_overlays(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CREW)
    for name, value in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, value)
    options = parsed(SERVICES[service]["command"])

    assert [str(each) for each in check_crew(CREW / "crew.yaml", options["overlay"])] == []
    crew = Crew.load(CREW / "crew.yaml", overlays=options["overlay"], offline=options["offline"])
    running = crew.up(only=options["only"].split(","), keys=Path("/keys"))
    assert (running.where.bus, running.where.store) == ("kafka://kafka:9092", "redis://redis:6379/0")


def test_each_role_gets_its_own_keys_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *lines, chown = keys_commands()
    assert chown[0] == "chown"
    for words in lines:
        assert run_line([word.replace("/keys", str(tmp_path)) for word in words[1:]]) == 0, capsys.readouterr().err
    crew = Crew.load(CREW / "crew.yaml", offline=True)
    for service, each in {**ROLES, "ask": SERVICES["ask"]}.items():
        (volume,) = [mount.split(":")[0] for mount in each["volumes"] if ":/keys" in mount]
        (folder,) = [Path(mount.split(":")[1]).name for mount in SERVICES["keys"]["volumes"] if mount.startswith(f"{volume}:")]
        assert f"/keys/{folder}" in chown, "the roles' user must be able to read them"
        held = load_keys(tmp_path / folder)
        crew.up(only=parsed(each["command"])["only"].split(",") if service in ROLES else ())._check_keys(held)
        secret = {name for name in held.holds() if "-" not in name}
        assert secret == {"worker": {"deployment"}, "guardrail": {"deployment", "guard"}, "tools": {"pool/main"},
                          "ask": {"deployment", "people"}}[service]  # fmt: skip


@pytest.mark.parametrize("line", [*re.findall(r"^#   docker compose run --rm ask (.*)$", TEXT, re.MULTILINE), "runs list"])
def test_what_can_be_asked_is_a_command(line: str) -> None:
    parsed(shlex.split(line))


def test_what_the_services_refer_to_is_there() -> None:
    mounted = {mount.split(":")[0] for each in SERVICES.values() for mount in each.get("volumes", ())}
    needed = {name for each in SERVICES.values() for name in each.get("depends_on", ())}

    assert mounted == set(COMPOSE["volumes"])
    assert needed <= set(SERVICES)
    assert all("healthcheck" in SERVICES[name] for name in ("kafka", "redis"))
    assert (CREW / SERVICES["ask"]["environment"]["CREWLINE_BUS"]).is_file()
    options = {option.envvar for option in command().params}
    own = {name for each in SERVICES.values() for name in each.get("environment", ()) if name.startswith("CREWLINE_")}
    assert own <= options


def test_containers_are_given_the_time_that_stopping_takes() -> None:
    for service, each in ROLES.items():
        drain_s = seconds_of(parsed(each["command"])["drain"], "--drain")
        assert seconds_of(each["stop_grace_period"], service) > drain_s + PoolOptions().close_s


def test_the_broker_is_the_one_that_the_tests_run_on() -> None:
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>(.*?)</version>", (ROOT / "scripts" / "kafka-pom.xml").read_text())
    assert version is not None
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_the_image_is_made_of_what_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    let_in = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))

    assert set(sources) == let_in
    assert all((ROOT / source).exists() for source in sources)
    (extras,) = re.findall(r"pip install .*-c constraints\.txt '\.\[(.*)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert int(python) >= int(project["requires-python"].removeprefix(">=3."))
    assert "configs/crews/support/." in DOCKERFILE


def test_the_image_runs_the_command_line() -> None:
    said = {name: json.loads(words) for name, words in re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.MULTILINE)}

    assert said["ENTRYPOINT"] == ["crewline"]
    assert parsed(said["CMD"])["offline"]
    assert all("entrypoint" not in each for each in ROLES.values())
