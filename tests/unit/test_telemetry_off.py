"""What telemetry costs who does not ask for it, and what is said to who asks wrongly."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from crewline.errors import UsageError
from crewline.telemetry import Telemetry
from crewline.telemetry.page import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        (":9464", Address("127.0.0.1", 9464), "http://127.0.0.1:9464/metrics"),
        ("0.0.0.0:80", Address("0.0.0.0", 80), "http://0.0.0.0:80/metrics"),
        ("metrics.local:9464", Address("metrics.local", 9464), "http://metrics.local:9464/metrics"),
        ("[::1]:9464", Address("::1", 9464), "http://[::1]:9464/metrics"),
    ],
)
def test_an_address_is_this_machines_unless_a_host_is_said(text: str, address: Address, shown: str) -> None:
    assert parse_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize("text", ["", ":", "9464", "host", "host:", ":http", ":99999", ":-1", "::1:9464", ":٩٤٦٤"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        parse_address(text)


async def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith(("prometheus_client", "opentelemetry")):
            raise ModuleNotFoundError(name)
        return find(name, *rest)

    monkeypatch.setattr("crewline.telemetry.process.find_spec", absent)
    with pytest.raises(UsageError, match="--metrics needs packages") as raised:
        await Telemetry(metrics=":0").__aenter__()
    assert raised.value.hint == "pip install 'crewline[telemetry]'"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_ENDPOINT needs packages"):
        await Telemetry().__aenter__()


def test_who_does_not_ask_for_it_imports_none_of_it() -> None:
    code = (
        "import sys, crewline.cli.up, crewline.crews.running, crewline.client, crewline.telemetry;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'prometheus_client', 'opentelemetry', 'requests'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


async def test_nobody_watches_an_engine_unless_somebody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "CREWLINE_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)

    class Unwatched:
        @property
        def observer(self) -> None:
            return None

    async with Telemetry() as telemetry:
        from crewline.roster import Roster

        telemetry.watch(Roster("demo", "1", {}), None, {"worker": Unwatched()})  # type: ignore[arg-type, dict-item]
        assert telemetry.page is None
