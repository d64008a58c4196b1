"""`--bus FILE.yaml`: the `bus` of a file alone, as a crew file's is read."""

from pathlib import Path

import pytest
from crewline.cli.session import is_name
from crewline.cli.settings import Settings, hoist
from crewline.crews.bus_file import load_bus
from crewline.crews.models_bus import EmbeddedBus, KafkaBus
from crewline.crews.problems import CrewFileError


def written(folder: Path, text: str) -> Path:
    file = folder / "kafka.yaml"
    file.write_text(text)
    return file


def test_the_bus_of_an_overlay_is_read_with_its_references(tmp_path: Path) -> None:
    file = written(tmp_path, "bus: {kind: kafka, bootstrap_servers: '${B}', plaintext: true, keys: k}\nmemory: {store: redis, url: '${R}'}\n")

    bus = load_bus(file, env={"B": "b:9092"})

    assert isinstance(bus, KafkaBus)
    assert (bus.bootstrap_servers, bus.keys) == ("b:9092", "k")


def test_the_rest_of_a_crew_file_is_not_looked_at(tmp_path: Path) -> None:
    file = written(tmp_path, "schema: crew/v9\nagents: {a: {gaol: 1}}\nbus: {kind: embedded, topic_prefix: shop}\n")

    assert load_bus(file) == EmbeddedBus(kind="embedded", topic_prefix="shop")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory: {store: sqlite}\n", "bus: there is no `bus` in this file"),
        ("bus: {kind: nats}\n", "bus.kind"),
        ("bus: {kind: kafka, bootstrap_servers: x, keys: k}\n", "bus: Kafka without TLS sends everything readable"),
        ("bus: {kind: kafka, bootstrap_servers: '${NOT_SET}', plaintext: true, keys: k}\n", "NOT_SET"),
        ("bus: {kind: kafka, plaintext: true, keys: k}\n", "bus: 'bootstrap_servers' is missing"),
        ("bus: {kind: kafka, bootstrap_servers: x, keys: k, sasl: {mechanism: PLAIN, username: u, password: p}, tls: {}}\n", "bus.sasl.password: a secret must be a reference"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)

    with pytest.raises(CrewFileError) as said:
        load_bus(file, env={})

    assert str(said.value).startswith(f"{file}:")
    assert says in str(said.value)


def test_bus_and_keys_may_stand_anywhere() -> None:
    assert hoist(["runs", "list", "-b", "kafka.yaml", "--keys", "k"]) == ["-b", "kafka.yaml", "--keys", "k", "runs", "list"]


@pytest.mark.parametrize(
    ("settings", "address", "file", "options"),
    [
        (Settings(), None, None, ""),
        (Settings(state=Path("s")), None, None, " --state s"),
        (Settings(bus="embedded", state=Path("s")), "embedded:s", None, " --state s --bus embedded"),
        (Settings(bus="kafka://b:1", state=Path("s")), "kafka://b:1", None, " --bus kafka://b:1"),
        (Settings(bus="k.yaml", keys=Path("k")), None, Path("k.yaml"), " --bus k.yaml --keys k"),
    ],
)
def test_another_command_reaches_the_same_log(settings: Settings, address: str | None, file: Path | None, options: str) -> None:
    assert (settings.bus_address, settings.bus_file, settings.as_options) == (address, file, options)


@pytest.mark.parametrize(
    ("crew", "is_a_name"),
    [("till", True), ("bare", True), ("whole", False), (".", False), ("x/y", False), ("gone.yaml", False), ("file", False)],
)
def test_a_crew_is_named_where_no_crew_file_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crew: str, is_a_name: bool
) -> None:
    """Beside a crew `hello` there often is a folder `hello`, with its tools."""
    monkeypatch.chdir(tmp_path)
    for folder in ("bare", "whole"):
        (tmp_path / folder).mkdir()
    (tmp_path / "whole" / "crew.yaml").touch()
    (tmp_path / "file").touch()

    assert is_name(crew) is is_a_name
