"""A secured broker as tests use it: its listeners, its users, and who may do what (scripts/kafka-secure)."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any, Literal

from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.security import tls_context

ROOT = Path(__file__).parents[1]
Listening = Literal["SASL_PLAINTEXT", "SASL_SSL", "SSL", "EXPIRED"]
OFFSETS: dict[Listening, int] = {"SASL_PLAINTEXT": 0, "SASL_SSL": 2, "SSL": 3, "EXPIRED": 4}


class SecuredKafka:
    """The secured broker whose files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        found = re.search(r"^listeners=SASL_PLAINTEXT://127\.0\.0\.1:(\d+)", (directory / "1.properties").read_text(), re.M)
        assert found is not None, f"{directory} holds no secured broker"
        self.port = int(found[1])

    def server(self, listener: Listening = "SASL_PLAINTEXT") -> str:
        """Return HOST:PORT of a listener."""
        return f"127.0.0.1:{self.port + OFFSETS[listener]}"

    def address(self, listener: Listening = "SASL_PLAINTEXT") -> str:
        """Return a listener's address, `kafka://HOST:PORT`."""
        return f"kafka://{self.server(listener)}"

    def file(self, name: str) -> str:
        """Return the path of a file made by openssl: `ca.pem`, `USER.pem`, `USER.key`."""
        return str(self.directory / "tls" / name)

    def password_of(self, user: str) -> str:
        return f"{user}-secret"

    def options(self, user: str, mechanism: str = "SCRAM-SHA-512", *, tls: bool = False, **more: Any) -> KafkaOptions:
        """Return how `user` signs in with a password."""
        return KafkaOptions(
            security="SASL_SSL" if tls else "SASL_PLAINTEXT",
            ssl_context=tls_context(self.file("ca.pem")) if tls else None,
            sasl_mechanism=mechanism,
            username=user,
            **{"password": self.password_of(user)} | more,
        )

    async def acls(self, *commands: str) -> None:
        """Run `kafka-acls …` lines as the administrator, two at a time, with Kafka's own tool."""
        gate = asyncio.Semaphore(2)

        async def run(line: str) -> None:
            name, *words = shlex.split(line)
            assert name == "kafka-acls", line
            arguments = ["--bootstrap-server", self.server(), "--command-config", str(self.directory / "admin.properties")]
            given = iter(words)
            for word in given:
                if word in ("--bootstrap-server", "--command-config"):
                    next(given)
                else:
                    arguments.append(word)
            async with gate:
                process = await asyncio.create_subprocess_exec(
                    "scripts/kafka", "tool", "org.apache.kafka.tools.AclCommand", *arguments,
                    cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )
                said, _ = await process.communicate()
            assert process.returncode == 0, said.decode()
            assert b"Adding ACLs" in said or b"already exists" in said, said.decode()

        await asyncio.gather(*map(run, commands))
