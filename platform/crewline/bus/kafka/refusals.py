"""Why there was no way into Kafka, in a line, and what to do."""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple

from aiokafka import errors as kafka

from crewline.bus.kafka.options import KafkaOptions
from crewline.errors import BusUnavailable, NotAllowed

if TYPE_CHECKING:
    from crewline.bus.kafka.listeners import Listener


MISSING = {
    kafka.TopicAuthorizationFailedError: "for a topic",
    kafka.GroupAuthorizationFailedError: "for the consumer group",
    kafka.ClusterAuthorizationFailedError: "for the cluster, or to write to any topic",
    kafka.TransactionalIdAuthorizationFailed: "for the transactional id",
}
NOT_ALLOWED = tuple(MISSING)


class Refusal(NamedTuple):
    """What was met at one server, and what to do about it."""

    say: str
    hint: str


def refusal(error: BaseException, options: KafkaOptions, listener: Listener | None) -> Refusal:
    """Return why `error` came. `listener` is what was found there, where something was understood."""
    if isinstance(error, BusUnavailable):
        return Refusal(error.message, error.hint or "")
    if listener is not None and (mismatch := _mismatch(options, listener)) is not None:
        return mismatch
    cause = _innermost(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _untrusted(cause)
    if isinstance(cause, ssl.SSLError):
        return _no_tls(cause, options)
    if isinstance(cause, kafka.SaslAuthenticationFailed):
        return _not_signed_in(options)
    if isinstance(cause, socket.gaierror):
        return Refusal("there is no host of that name", "check the host name")
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return Refusal(os.strerror(cause.errno).lower(), "is the broker running, and is this its port?")
    if listener is None:
        said = "no answer" if isinstance(cause, TimeoutError) else "what answers does not speak Kafka's protocol"
        return Refusal(said, "is it running, is this its listener, and is that the listener's security?")
    if options.security.startswith("SASL"):  # a refused token only closes the connection
        return _not_signed_in(options)
    return Refusal(str(cause) or type(cause).__name__, "see the broker's log")


def not_allowed(error: BaseException, options: KafkaOptions, doing: str) -> NotAllowed:
    """Return the error that says which right is missing for `doing`. `error` is one of `NOT_ALLOWED`."""
    missing = next(text for kind, text in MISSING.items() if isinstance(error, kind))
    who = f"user {options.username}" if options.username else "whoever we signed in as"
    detail = f" ({error.args[0]})" if error.args and isinstance(error.args[0], str) else ""
    return NotAllowed(
        f"{doing}: not allowed by Kafka at {', '.join(options.servers)} ({options.tried}): "
        f"{who} lacks an ACL {missing}{detail}",
        hint="crewline doctor --acls prints the ACLs that each role needs",
    )


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error


def _mismatch(options: KafkaOptions, listener: Listener) -> Refusal | None:
    """Return in which way the listener is of another kind than the one that was tried."""
    tls, sasl = options.security.endswith("SSL"), options.security.startswith("SASL")
    if listener.tls and not tls:
        return Refusal("this listener speaks TLS", "set `bus.tls`, or name a listener without TLS")
    if tls and not listener.tls:
        return Refusal("this listener does not speak TLS", "name a listener with TLS; without: leave `bus.tls` out")
    if listener.asks_for_certificate:
        hint = "set `cert_file` and `key_file` under `bus.tls`"
        return None if options.client_certificate else Refusal("this listener asks for a client certificate", hint)
    if listener.mechanisms is None:
        return None
    offered = ", ".join(listener.mechanisms)
    if not sasl:
        return Refusal(f"this listener wants SASL ({offered})", "set `bus.sasl`") if offered else None
    if not offered:
        return Refusal("this listener does without SASL", "leave `bus.sasl` out, or name a listener with SASL")
    if options.sasl_mechanism not in listener.mechanisms:
        return Refusal(f"this listener offers {offered}, not {options.sasl_mechanism}", "set `bus.sasl.mechanism`")
    return None


def _untrusted(error: ssl.SSLCertVerificationError) -> Refusal:
    why = error.verify_message
    if "expired" in why:
        return Refusal("the broker's certificate has expired", "it needs a new one; is this host's clock right?")
    if "mismatch" in why:
        return Refusal(f"the broker's certificate is for another host: {why.rstrip('.')}",
                       "name the host that its certificate names, or have the certificate name this one")  # fmt: skip
    return Refusal(f"the broker's certificate is not trusted: {why}",
                   "set `bus.tls.ca_file` to the certificate of the CA that signed it")  # fmt: skip


def _no_tls(error: ssl.SSLError, options: KafkaOptions) -> Refusal:
    why = (error.reason or "unknown").lower().replace("_", " ")
    if options.client_certificate and "certificate" in why:
        return Refusal(f"the broker does not take our client certificate ({why})",
                       "is `bus.tls.cert_file` signed by a CA that the broker trusts, and in date?")  # fmt: skip
    return Refusal(f"TLS failed: {why}", "see the broker's log")


def _not_signed_in(options: KafkaOptions) -> Refusal:
    if options.sasl_mechanism == "OAUTHBEARER":
        return Refusal("the broker did not take the token", "has it expired, and is it for this broker?")
    return Refusal(f"user {options.username} with this password is not known for {options.sasl_mechanism}",
                   "check `username` and `password` under `bus.sasl`")  # fmt: skip
