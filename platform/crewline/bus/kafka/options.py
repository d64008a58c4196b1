"""Every setting of the Kafka bus, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Literal

from crewline.bus.kafka.security import TokenCallback, token_provider
from crewline.errors import UsageError

PREFIX = "kafka://"
Security = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to reach the brokers, and how long to wait for what. Times are in seconds."""

    servers: tuple[str, ...] = ()
    client_id: str = "crewline"
    security: Security = "PLAINTEXT"
    ssl_context: SSLContext | None = None
    client_certificate: bool = False  # whether `ssl_context` has one
    sasl_mechanism: str = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: TokenCallback | None = field(default=None, repr=False)  # for OAUTHBEARER

    connect_s_max: float = 2.5  # whoever asks hears within 3 s that nobody answers
    request_s_max: float = 10.0
    retry_s: float = 0.1
    metadata_s_max: float = 30.0  # a moved leader is noticed by an error; a new broker only by this
    stop_s_max: float = 3.0

    # Appending. A killed broker's partitions have another leader after 9 s (`broker.session.timeout.ms`).
    append_s_max: float = 20.0
    waiting_bytes_max: int = 256 << 20  # of appends that are not acknowledged
    batch_bytes_max: int = 256 << 10
    compression: Literal["lz4", "none"] = "lz4"

    # Reading. The session bounds a take-over after SIGKILL. A member hears by its heartbeat that another has left, and
    # until then nobody owns what that one did; each costs 0.6 ms of CPU.
    session_s: float = 10.0
    heartbeat_s: float = 0.5
    rebalance_s_max: float = 30.0
    poll_gap_s_max: float = 300.0  # Kafka drops a member that polls less often
    member_request_s_max: float = 15.0
    fetch_wait_s_max: float = 0.1  # how long a broker holds a fetch that finds nothing
    silent_s_max: float = 5.0  # a broker that does not answer for longer is asked on a new connection
    fetch_bytes_max: int = 8 << 20
    partition_bytes_max: int = 1 << 20  # a record has at most 900 kB
    join_s_max: float = 2.5  # how long `consumer` waits for the first assignment; `poll` waits on
    commit_s_max: float = 2.0

    replication: int | None = None  # of topics made here; None: 3, or the number of brokers if there are fewer

    @property
    def tried(self) -> str:
        """Return what was tried to get in, for messages: never a password."""
        if not self.security.startswith("SASL"):
            return self.security
        who = f" as {self.username}" if self.username else ""
        return f"{self.security} with {self.sasl_mechanism}{who}"

    @property
    def signs_in_by_token(self) -> bool:
        """Return whether a broker is shown a token, not a password."""
        return self.security.startswith("SASL") and self.sasl_mechanism == "OAUTHBEARER"

    def connection(self) -> dict[str, Any]:
        """Return what every aiokafka object takes."""
        return {
            "client_id": self.client_id,
            "security_protocol": self.security,
            "ssl_context": self.ssl_context,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
            "sasl_oauth_token_provider": token_provider(self.token) if self.token is not None else None,
        }

    def client(self) -> dict[str, Any]:
        """Return what a client, a producer or a consumer of aiokafka takes."""
        return self.connection() | {
            "bootstrap_servers": list(self.servers),
            "metadata_max_age_ms": ms(self.metadata_s_max),
            "retry_backoff_ms": ms(self.retry_s),
        }


def ms(seconds: float) -> int:
    """Return whole milliseconds."""
    return int(seconds * 1000)


def parse_address(address: str) -> tuple[str, ...]:
    """Return the servers in `kafka://HOST:PORT[,HOST:PORT]`. Raises: UsageError."""
    servers = tuple(server.strip() for server in address.removeprefix(PREFIX).rstrip("/").split(","))
    if not address.startswith(PREFIX) or not all(_is_server(server) for server in servers):
        raise UsageError(f"bus address {address!r}: expected kafka://HOST:PORT[,HOST:PORT]")
    return servers


def _is_server(server: str) -> bool:
    host, colon, port = server.rpartition(":")
    return bool(host and colon) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
