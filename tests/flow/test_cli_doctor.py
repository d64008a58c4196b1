"""`crewline doctor`: every look says what it found and what to do; the exit code is the first problem's."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_kit import crewline, write_crew

OVERLAY = """\
bus:
  kind: kafka
  bootstrap_servers: {server}
  plaintext: true
  keys: keys
"""
PROBLEM_CODES = {"crew file": 3, "references": 3, "keys": 2, "log": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_crew(tmp_path / "crew")
    return tmp_path / "crew"


def look(folder: Path, *args: str) -> tuple[int, dict[str, tuple[str, str, str | None]]]:
    """Return the exit code, and each check's (last) verdict, text and hint."""
    process = crewline(folder, "doctor", *args, "--json")
    document: dict[str, Any] = json.loads(process.stdout)
    assert document["ok"] == (process.returncode == 0)
    return process.returncode, {each["check"]: (each["verdict"], each["say"], each["hint"]) for each in document["findings"]}


def test_a_crew_on_the_embedded_log_needs_nothing_more(folder: Path) -> None:
    code, found = look(folder)
    assert code == 0
    assert {check: verdict for check, (verdict, _, _) in found.items()} == dict.fromkeys(
        ("python", "state folder", "crew file", "keys", "log"), "ok"
    )
    assert "made at first start" in found["log"][1]
    assert not (folder / ".crewline").exists(), "it looks, and makes nothing"

    shown = crewline(folder, "doctor")
    assert shown.stdout.splitlines()[0].startswith("✓ python")
    assert "nothing is in the way" in shown.stderr


def test_what_ran_is_looked_at_again(folder: Path) -> None:
    assert crewline(folder, "run", "crew.yaml", "look").returncode == 0
    code, found = look(folder)
    assert code == 0
    assert found["topics"][:2] == ("ok", "6 there, as they must be")
    assert found["store"][0] == "ok"

    (folder / ".crewline" / "keys" / "people.key").chmod(0o644)
    assert look(folder)[1]["keys"][:2] == (
        "warning", ".crewline/keys/people.key can be read by others on this host"
    )  # fmt: skip


def test_a_crew_file_and_what_it_refers_to(folder: Path) -> None:
    file = folder / "crew.yaml"
    sound = file.read_text()
    file.write_text(sound.replace("tools: [look", "tools: [loook"))
    code, found = look(folder)
    assert (code, found["crew file"][0]) == (3, "problem")
    assert "did you mean" in found["crew file"][1]

    file.write_text(sound.replace("models:\n", "models:\n  big: {provider: openai, model: m, api_key: '${NO_SUCH_KEY}'}\n")
                    .replace("tools: [look", "model: big\n    tools: [look"))  # fmt: skip
    code, found = look(folder)
    assert (code, found["references"][0]) == (3, "problem")
    assert "the environment variable NO_SUCH_KEY is not set" in found["references"][1]
    assert "log" not in found, "where it is, is not known"


def test_offline_nothing_of_other_models_is_missed(folder: Path) -> None:
    file = folder / "crew.yaml"
    models = "  big: {provider: openai, model: m}\n  offline: {provider: scripted, script: script.yaml}\n"
    file.write_text(file.read_text().replace("models:\n", "models:\n" + models))
    assert look(folder)[1]["packages"][:2] == ("ok", "openai: openai")
    code, found = look(folder, "--offline")
    assert code == 0
    assert "packages" not in found, "`up --offline` asks no model of them"


def test_kafka_needs_keys_and_a_broker(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        server = f"127.0.0.1:{closed.getsockname()[1]}"
    (folder / "kafka.yaml").write_text(OVERLAY.format(server=server))
    code, found = look(folder, "-f", "kafka.yaml")
    assert (code, found["keys"][0]) == (2, "problem")
    assert "crewline keys init" in found["keys"][1]
    assert found["keys"][2] == "or name another folder: --keys DIR"
    assert found["log"][0] == "problem"
    assert f"{server}: connection refused" in found["log"][1]

    assert crewline(folder, "keys", "init", "all").returncode == 0
    assert crewline(folder, "keys", "role", "guardrail", "keys", "--from", "all").returncode == 0
    code, found = look(folder, "-f", "kafka.yaml")
    assert (code, found["keys"][:2]) == (4, ("ok", "keys: enough for worker, guardrail, triggers, client, tools.*"))


def test_topics_are_compared_and_made_when_asked(folder: Path, kafka_address: str) -> None:
    file = folder / "crew.yaml"
    file.write_text(file.read_text().replace("name: till", f"name: till-{folder.stat().st_ino}"))
    overlay = OVERLAY.format(server=kafka_address.removeprefix("kafka://"))
    (folder / "kafka.yaml").write_text(overlay)
    assert crewline(folder, "keys", "init", "keys").returncode == 0

    code, found = look(folder, "-f", "kafka.yaml")
    assert (code, found["topics"][0]) == (0, "warning"), "the first `up` makes them"
    assert found["clock"][0] == "warning"
    # The market is one for all crews of a broker: somebody may have made it.
    assert re.match(r"[01] there, as they must be; not there: till-", found["topics"][1])
    code, found = look(folder, "-f", "kafka.yaml", "--create-topics")
    assert (code, found["topics"][0]) == (0, "ok"), found
    assert "the broker" in found["clock"][1]

    (folder / "kafka.yaml").write_text(overlay + "  partitions: 5\n")
    code, found = look(folder, "-f", "kafka.yaml")
    assert (code, found["topics"][0]) == (3, "problem")
    assert "partitions is 12, not 5" in found["topics"][1]


def test_acls_are_for_kafka(folder: Path) -> None:
    refused = crewline(folder, "doctor", "--acls")
    assert refused.returncode == 2
    assert "name its overlay" in refused.stderr
    (folder / "kafka.yaml").write_text(OVERLAY.format(server="${SERVERS:-kafka.example:9092}"))
    printed = crewline(folder, "doctor", "-f", "kafka.yaml", "--acls", "--command-config", "me.properties").stdout.splitlines()
    assert printed[0] == "# worker: advances conversations"
    commands = [line for line in printed if not line.startswith("#")]
    assert all(line.startswith("kafka-acls --bootstrap-server kafka.example:9092 --command-config me.properties --add "
                               "--allow-principal User:till-") for line in commands)  # fmt: skip
    assert sum("User:till-tools.main " in line for line in commands) == 2
