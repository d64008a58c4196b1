"""Where a crew runs: what the caller says, else the crew file, else the state folder."""

from pathlib import Path

import pytest
from crewline.crews import load_crew
from crewline.crews.where import where
from crewline.errors import UsageError

STATE = Path("state")
CREW = """\
schema: crew/v1
name: hello
version: 1.0.0
models: {default: {provider: scripted, script: s.yaml}}
agents: {greeter: {role: Greeter, goal: Greet}}
"""


def crew_with(folder: Path, more: str):  # type: ignore[no-untyped-def]  # the model is pydantic's
    file = folder / "crew.yaml"
    file.write_text(CREW + more)
    (folder / "s.yaml").write_text("greeter: [{say: hello}]\n")
    return load_crew(file, env={"REDIS_URL": "redis://:s3cret@cache:6379/1"})


def said_by(config):  # type: ignore[no-untyped-def]
    return {"said": config.bus, "memory": config.memory}


def test_a_crew_that_says_nothing_runs_in_the_state_folder() -> None:
    found = where(state=STATE)

    assert (found.bus, found.keys, found.store) == ("embedded:state", STATE / "keys", "sqlite:state")
    assert found.embedded


def test_the_keys_of_an_embedded_log_lie_beside_it() -> None:
    assert where(state=STATE, bus="embedded:other").keys == Path("other/keys")


def test_a_crew_file_names_brokers_and_keys(tmp_path: Path) -> None:
    config = crew_with(tmp_path, "bus: {kind: kafka, bootstrap_servers: 'a:1,b:2', plaintext: true, keys: /etc/keys}\n")

    found = where(**said_by(config), state=STATE)

    assert (found.bus, found.keys, found.store) == ("kafka://a:1,b:2", Path("/etc/keys"), "sqlite:state")
    assert not found.embedded


def test_what_the_caller_says_counts_first(tmp_path: Path) -> None:
    config = crew_with(tmp_path, "bus: {kind: kafka, bootstrap_servers: 'a:1', plaintext: true, keys: /etc/keys}\n")

    found = where(**said_by(config), state=STATE, bus="kafka://c:3", keys=Path("k"), store="sqlite:elsewhere")

    assert (found.bus, found.keys, found.store) == ("kafka://c:3", Path("k"), "sqlite:elsewhere")
    assert where(**said_by(config), state=STATE, bus="embedded:here").keys == Path("here/keys")


def test_the_store_of_a_crew_file_is_used_and_its_password_not_shown(tmp_path: Path) -> None:
    config = crew_with(tmp_path, "memory: {store: redis, url: '${REDIS_URL}'}\n")

    found = where(**said_by(config), state=STATE)

    assert found.store == "redis://:s3cret@cache:6379/1"
    assert found.store_kind == "redis"
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize("bus", ["embedded", "embedded:", "nats://x:1", "localhost:9092", "kafka:x:1"])
def test_an_address_that_is_none_says_what_is_expected(bus: str) -> None:
    with pytest.raises(UsageError, match="expected embedded:DIR or kafka://HOST:PORT"):
        where(state=STATE, bus=bus)


@pytest.mark.parametrize("store", ["sqlite:", "postgres://u:s3cret@h/d"])
def test_a_store_address_that_is_none_is_refused_without_its_password(store: str) -> None:
    with pytest.raises(UsageError, match="expected sqlite:DIR or redis://") as said:
        where(state=STATE, store=store)
    assert "s3cret" not in str(said.value)
