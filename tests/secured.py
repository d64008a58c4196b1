"""A secured broker as tests use it: its listeners, its users, and who may do what (scripts/kafka-secure)."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest
from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.security import tls_context
from crewline.testing import until

ROOT = Path(__file__).parents[1]
Listening = Literal["SASL_PLAINTEXT", "SASL_SSL", "SSL", "EXPIRED"]
OFFSETS: dict[Listening, int] = {"SASL_PLAINTEXT": 0, "SASL_SSL": 2, "SSL": 3, "EXPIRED": 4}


# Kafka's numbers for resources, patterns, operations and permissions.
ANY, TOPIC, GROUP, ALLOW = 1, 2, 3, 3
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}


class Acl(NamedTuple):
    """One right: an operation on a resource (its kind, name and pattern), allowed to a principal from every host."""

    resource: tuple[int, str, int]
    principal: str
    operation: int


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

    async def acls(self, *lines: str) -> None:
        """Give the rights of `kafka-acls …` lines, as the administrator; return when the broker goes by them.

        The lines are read here, since Kafka's own tool takes seconds for each: `acls_by_kafkas_tool` shows that it
        makes the same of them.
        """
        wanted = {acl for line in lines for acl in acls_of(line)}
        async with self._administrator() as client:
            for acl in sorted(wanted):
                request = CreateAclsRequest(*acl.resource, acl.principal, "*", acl.operation, ALLOW)
                answer = await client.send(client.get_random_node(), request)
                assert [code for code, _ in answer.creation_responses] == [0], answer
            await until(lambda: self._given(client, wanted))

    async def acls_by_kafkas_tool(self, *lines: str) -> None:
        """Run `kafka-acls …` lines as they are, as the administrator, with Kafka's own tool."""

        async def run(line: str) -> None:
            name, *words = shlex.split(line)
            assert name == "kafka-acls", line
            process = await asyncio.create_subprocess_exec(
                "scripts/kafka", "tool", "org.apache.kafka.tools.AclCommand", *words,
                cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            said, _ = await process.communicate()
            assert process.returncode == 0, said.decode()
            assert b"Adding ACLs" in said, said.decode()

        await asyncio.gather(*map(run, lines))

    async def rights_of(self, principal: str) -> set[Acl]:
        """Return what the broker lets a principal do."""
        async with self._administrator() as client:
            return await self._rights(client, principal)

    async def _given(self, client: Any, wanted: set[Acl]) -> bool:
        there = [await self._rights(client, principal) for principal in {acl.principal for acl in wanted}]
        return wanted <= set().union(*there)

    async def _rights(self, client: Any, principal: str) -> set[Acl]:
        request = DescribeAclsRequest(ANY, None, ANY, principal, None, ANY, ANY)  # type: ignore[arg-type]  # null: every
        answer = await client.send(client.get_random_node(), request)
        assert answer.error_code == 0, answer
        return {
            Acl((kind, name, pattern), who, operation)
            for kind, name, pattern, acls in answer.resources
            for who, host, operation, permission in acls
            if (host, permission) == ("*", ALLOW)
        }

    @asynccontextmanager
    async def _administrator(self) -> AsyncIterator[Any]:
        options = replace(self.options("admin", "PLAIN"), servers=(self.server(),))
        client = AIOKafkaClient(**options.client())
        await client.bootstrap()
        try:
            yield client
        finally:
            await client.close()


def acls_of(line: str) -> set[Acl]:
    """Return what a `kafka-acls --add` line gives: each operation on each resource. Other options are an error."""
    parser = argparse.ArgumentParser("kafka-acls", exit_on_error=False)
    for name in ("--bootstrap-server", "--command-config", "--allow-principal"):
        parser.add_argument(name, required=name == "--allow-principal")
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--resource-pattern-type", choices=PATTERNS, default="literal")
    for name in ("--operation", "--topic", "--group"):
        parser.add_argument(name, action="append", default=[])
    given = parser.parse_args(shlex.split(line)[1:])
    resources = [(kind, name, PATTERNS[given.resource_pattern_type])
                 for kind, names in ((TOPIC, given.topic), (GROUP, given.group)) for name in names]  # fmt: skip
    return {Acl(resource, given.allow_principal, OPERATIONS[each]) for resource in resources for each in given.operation}
