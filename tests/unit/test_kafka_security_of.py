"""How to get into Kafka, from what a crew file says; and that its secrets stay where they are."""

from __future__ import annotations

import logging
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.security import HideSecrets, tls_context
from crewline.crews.bus_file import load_bus
from crewline.crews.models_bus import KafkaBus
from crewline.crews.security import security_of
from crewline.errors import UsageError

ENVIRONMENT = {"USER_NAME": "ann", "PASSWORD": "geheim-7", "KEY_PASSWORD": "geheim-8"}
PASSWORD = "sasl: {mechanism: %s, username: '${USER_NAME}', password: '${PASSWORD}'}"


def bus(tmp_path: Path, *lines: str) -> KafkaBus:
    """Return the bus of a file with these lines under `bus`."""
    file = tmp_path / "kafka.yaml"
    file.write_text("\n  ".join(["bus:", "kind: kafka", "bootstrap_servers: 'a:1,b:2'", "keys: keys", *lines]) + "\n")
    found = load_bus(file, env=ENVIRONMENT)
    assert isinstance(found, KafkaBus)
    return found


def token_function() -> str:
    return "a-token"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate, and its key under the password geheim-8."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=ann",
         "-passout", "pass:geheim-8", "-keyout", folder / "me.key", "-out", folder / "me.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(folder / "me.pem"), str(folder / "me.key")


@pytest.mark.parametrize(("lines", "protocol"), [
    (["plaintext: true"], "PLAINTEXT"),
    (["tls: {}"], "SSL"),
    (["plaintext: true", PASSWORD % "SCRAM-SHA-256"], "SASL_PLAINTEXT"),
    (["tls: {}", PASSWORD % "PLAIN"], "SASL_SSL"),
])
def test_the_protocol_follows_from_sasl_and_tls(tmp_path: Path, lines: list[str], protocol: str) -> None:
    options = security_of(bus(tmp_path, *lines), client_id="shop.worker")

    assert options.security == protocol
    assert (options.ssl_context is not None) == protocol.endswith("SSL")
    assert (options.servers, options.client_id) == (("a:1", "b:2"), "shop.worker")


def test_a_password_is_used_and_never_shown(tmp_path: Path) -> None:
    said = bus(tmp_path, "plaintext: true", PASSWORD % "SCRAM-SHA-512")
    options = security_of(said)

    assert options.connection()["sasl_plain_password"] == "geheim-7"
    assert (options.sasl_mechanism, options.username) == ("SCRAM-SHA-512", "ann")
    assert options.tried == "SASL_PLAINTEXT with SCRAM-SHA-512 as ann"
    for shown in (repr(options), str(options), repr(said), said.model_dump_json(), options.tried):
        assert "geheim" not in shown


def test_tls_checks_name_and_certificate_always(tmp_path: Path) -> None:
    context = security_of(bus(tmp_path, "tls: {}")).ssl_context

    assert context is not None
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


def test_a_client_certificate_and_its_locked_key(tmp_path: Path, certificate: tuple[str, str]) -> None:
    pem, key = certificate
    options = security_of(bus(tmp_path, f"tls: {{cert_file: {pem}, key_file: {key}, key_password: '${{KEY_PASSWORD}}'}}"))

    assert options.client_certificate
    for password in ("wrong", None):
        with pytest.raises(UsageError, match="the key is locked, and `key_password` does not open it") as told:
            tls_context(None, pem, key, password)
        assert key in str(told.value)


def test_a_token_comes_from_a_function(tmp_path: Path) -> None:
    options = security_of(bus(tmp_path, "tls: {}", f"sasl: {{mechanism: OAUTHBEARER, token: '{__name__}:token_function'}}"))

    assert options.token is token_function
    assert options.tried == "SASL_SSL with OAUTHBEARER"


@pytest.mark.parametrize(("token", "says"), [
    ("no_such_module:f", "'no_such_module:f' cannot be imported"),
    ("json:no_such_function", "cannot be imported"),
    ("json:__name__", "is no function"),
])
def test_a_token_function_that_is_none_is_named(tmp_path: Path, token: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"^bus\.sasl\.token: .*" + says):
        security_of(bus(tmp_path, "tls: {}", f"sasl: {{mechanism: OAUTHBEARER, token: '{token}'}}"))


def test_what_is_signed_in_with_is_kept_out_of_the_log() -> None:
    from aiokafka.protocol.admin import SaslAuthenticateRequest

    def line(*args: Any) -> logging.LogRecord:
        return logging.LogRecord("aiokafka.conn", logging.DEBUG, "conn.py", 1, "Request %s", args, None)

    hide = HideSecrets()
    [version, *_] = (SaslAuthenticateRequest(b"geheim").prepare({36: (0, 1)}),)
    assert not hide.filter(line(version))
    assert hide.filter(line("Metadata"))


def test_options_without_a_secret_show_none() -> None:
    assert "password" not in repr(KafkaOptions(password="geheim"))
