"""How to get into a secured Kafka: TLS from files, and tokens for OAUTHBEARER; and that no secret is logged."""

from __future__ import annotations

import inspect
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from crewline.errors import BusUnavailable, UsageError

TokenCallback = Callable[[], str | Awaitable[str]]
"""Returns a token for OAUTHBEARER; asked again at each connection. A plain function must not block."""


def tls_context(
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    key_password: str | None = None,
) -> ssl.SSLContext:
    """Return what TLS is done with: the broker's name and certificate are always checked.

    Args:
        ca_file: whom to trust (PEM), instead of what the system trusts.
        cert_file: our own certificate and its chain (PEM), where the broker asks for one.
        key_file: its private key (PEM), if it is not in `cert_file`; `key_password` opens it.

    Raises: UsageError naming the file that cannot be used.
    """
    if ca_file is not None:
        _readable(ca_file, "ca_file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise UsageError(f"tls.ca_file {ca_file}: holds no certificate (PEM)") from None
    if cert_file is not None:
        _readable(cert_file, "cert_file")
        if key_file is not None:
            _readable(key_file, "key_file")
        try:
            # A password is always passed: without one OpenSSL asks for it on the terminal.
            context.load_cert_chain(cert_file, key_file, lambda: key_password or "")
        except ssl.SSLError as error:
            raise UsageError(f"tls.cert_file {cert_file}{_with(key_file)}: {_why_no_chain(error, key_file or cert_file)}") from None
    return context


def _readable(name: str, field: str) -> None:
    try:
        with Path(name).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UsageError(f"tls.{field} {name}: cannot be read: {error.strerror}") from None


def _with(key_file: str | None) -> str:
    return f" with key_file {key_file}" if key_file is not None else ""


def _why_no_chain(error: ssl.SSLError, key_file: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if b"ENCRYPTED" in Path(key_file).read_bytes():  # OpenSSL gives no reason
        return "the key is locked, and `key_password` does not open it"
    return "they hold no certificate with its private key (PEM)"


async def token_of(callback: TokenCallback) -> str:
    """Return a token from `callback`. Raises: BusUnavailable, without what the callback said of its secrets."""
    name = getattr(callback, "__qualname__", type(callback).__name__)
    try:
        answer = callback()
        token = await answer if inspect.isawaitable(answer) else answer
    except Exception as error:  # a user's function: whatever it raises, the log cannot be opened
        raise BusUnavailable(
            f"the token function {name} raised {type(error).__name__}", hint="call it by itself to see why"
        ) from None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise BusUnavailable(f"the token function {name} must return a token as text", hint="see docs/security.md")
    return token


def token_provider(callback: TokenCallback) -> Any:
    """Return `callback` in the form that aiokafka takes."""
    from aiokafka.abc import AbstractTokenProvider

    class Provider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
        async def token(self) -> str:
            return await token_of(callback)

    return Provider()


class HideSecrets(logging.Filter):
    """Drops the lines in which aiokafka writes out what it signs in with (level DEBUG)."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else (record.args,)
        return not any(type(each).__name__.startswith("SaslAuthenticate") for each in args)


_filter = HideSecrets()


def hide_secrets_in_logs() -> None:
    """Keep passwords and tokens out of aiokafka's log. Again: no change."""
    logging.getLogger("aiokafka.conn").addFilter(_filter)
