"""The `bus` of a crew file: the log, embedded or on Kafka."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crewline.crews.models_base import Strict
from crewline.crews.values import PythonName, Secret, Switch, Text, TopicName, Whole


class EmbeddedBus(Strict):
    """The log as one SQLite file, no server. Its keys are made at first start, in the state folder."""

    kind: Literal["embedded"]
    topic_prefix: TopicName | None = None
    partitions: Whole = Field(default=12, ge=1, le=1_000)


class PasswordSasl(Strict):
    """Signing in to Kafka with a password; the mechanism is in Kafka's own words."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    username: Text
    password: Secret


class TokenSasl(Strict):
    """Signing in to Kafka with a token, which a function of yours returns at each connection."""

    mechanism: Literal["OAUTHBEARER"]
    token: PythonName


Sasl = Annotated[PasswordSasl | TokenSasl, Field(discriminator="mechanism")]


class Tls(Strict):
    """TLS to Kafka. `{}` trusts what the system trusts."""

    ca_file: Text | None = None
    cert_file: Text | None = None
    key_file: Text | None = None
    key_password: Secret | None = None


class KafkaBus(Strict):
    """Kafka. `security.protocol` follows from `sasl` and `tls`; no TLS must be said: `plaintext: true`."""

    kind: Literal["kafka"]
    bootstrap_servers: Text
    topic_prefix: TopicName | None = None
    sasl: Sasl | None = None
    tls: Tls | None = None
    plaintext: Switch = False
    keys: Text | None = None
    partitions: Whole = Field(default=12, ge=1, le=1_000)


Bus = Annotated[EmbeddedBus | KafkaBus, Field(discriminator="kind")]
