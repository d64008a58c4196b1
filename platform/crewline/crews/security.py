"""`security_of`: the `bus` of a crew file as the options of a Kafka bus, its secrets revealed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from crewline.crews.models_bus import KafkaBus, PasswordSasl, TokenSasl
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.bus.kafka.options import KafkaOptions, Security
    from crewline.bus.kafka.security import TokenCallback


def security_of(config: KafkaBus, *, client_id: str = "crewline") -> KafkaOptions:
    """Return servers and security as the crew file says them; `security.protocol` follows from `sasl` and `tls`.

    Files are looked up from the working directory. A token function is imported (beside the crew file too, if
    its folder is on the path already).

    Raises: UsageError for a file that cannot be used, a function that cannot be imported, a malformed server.
    """
    from crewline.bus.kafka.options import PREFIX, KafkaOptions, parse_address
    from crewline.bus.kafka.security import tls_context

    tls, sasl = config.tls, config.sasl
    context = None
    if tls is not None:
        password = tls.key_password.reveal() if tls.key_password is not None else None
        context = tls_context(tls.ca_file, tls.cert_file, tls.key_file, password)
    known = sasl if isinstance(sasl, PasswordSasl) else None
    return KafkaOptions(
        servers=parse_address(PREFIX + config.bootstrap_servers),
        client_id=client_id,
        security=_protocol(config),
        ssl_context=context,
        client_certificate=tls is not None and tls.cert_file is not None,
        sasl_mechanism=sasl.mechanism if sasl is not None else "PLAIN",
        username=known.username if known is not None else None,
        password=known.password.reveal() if known is not None else None,
        token=_token(sasl.token) if isinstance(sasl, TokenSasl) else None,
    )


def _protocol(config: KafkaBus) -> Security:
    if config.sasl is not None:
        return "SASL_SSL" if config.tls is not None else "SASL_PLAINTEXT"
    return "SSL" if config.tls is not None else "PLAINTEXT"


def _token(reference: str) -> TokenCallback:
    module, _, path = reference.partition(":")
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"bus.sasl.token: {reference!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"bus.sasl.token: {reference!r} is no function")
    return found
