"""What is spoken at a port: TLS or not, SASL by which mechanisms. Asked once a way in was refused, to say why."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

from aiokafka import errors as kafka
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.admin import SaslHandShakeRequest

from crewline.bus.kafka.options import ms

LEFT_S_MIN = 0.2
CLOSE_S_MAX = 0.5  # TLS says goodbye and waits for the answer


@dataclass(frozen=True, slots=True)
class Listener:
    """A Kafka broker's listener. `mechanisms` are those of SASL; () without SASL, None if that is not known."""

    tls: bool
    mechanisms: tuple[str, ...] | None
    asks_for_certificate: bool = False


async def look_at(host: str, port: int, until: float) -> Listener | None:
    """Return what listens there, in the clear or over TLS; None if it is not understood by `until` (loop time)."""
    left_s = max(LEFT_S_MIN, until - asyncio.get_running_loop().time())
    plain, over_tls = await asyncio.gather(_look(host, port, None, left_s), _look(host, port, _anybody(), left_s))
    return over_tls or plain


def _anybody() -> ssl.SSLContext:
    """Return TLS that trusts whoever answers: nothing secret is said over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _look(host: str, port: int, context: ssl.SSLContext | None, left_s: float) -> Listener | None:
    conn = AIOKafkaConnection(
        host, port, request_timeout_ms=ms(left_s), ssl_context=context,
        security_protocol="SSL" if context is not None else "PLAINTEXT",
    )
    try:
        async with asyncio.timeout(left_s):
            await conn.connect()
            answer = await conn.send(SaslHandShakeRequest("NONE"))  # it answers which there are
    except Exception as error:  # whatever the client makes of a stranger, he was not understood
        # The second is how Java says it.
        asks = context is not None and _reasons(error) & {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"}
        return Listener(tls=True, mechanisms=None, asks_for_certificate=True) if asks else None
    finally:
        await closed(conn)
    if answer.error_code == kafka.UnsupportedSaslMechanismError.errno:
        return Listener(context is not None, tuple(answer.enabled_mechanisms))
    return Listener(context is not None, ())


async def closed(conn: Any) -> None:
    """Close a connection, and give its socket a moment to be gone; one that never stood has none."""
    ending = conn.close()
    if ending is not None and conn._protocol is not None:
        await asyncio.wait({ending}, timeout=CLOSE_S_MAX)


def _reasons(error: BaseException | None) -> set[str]:
    """Return what OpenSSL calls the errors that led to this one."""
    found = set()
    while error is not None:
        found.add(str(getattr(error, "reason", "")))
        error = error.__cause__
    return found
