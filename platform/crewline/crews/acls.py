"""Who needs which rights at Kafka: the ACLs of each role of a crew, as `kafka-acls` takes them. No more than it uses.

An idempotent producer needs no right on the cluster (Kafka ≥ 2.8): to write to a topic is enough. Read and Write
imply Describe. Where ACLs end, at the topic, seals go on (docs/security.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crewline.crews.models import CrewConfig
from crewline.topics import MARKET, CrewTopics


@dataclass(frozen=True, slots=True)
class Rights:
    """What one role may do. `creates` are topics it may create; `looks` are groups whose lag it may ask for.

    Names that end in `*` stand for every name that starts so.
    """

    role: str
    does: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    creates: tuple[str, ...] = ()


def rights_of(config: CrewConfig) -> list[Rights]:
    """Return the rights of every role of a crew, of those who ask and decide, and of whoever creates its topics."""
    topics = CrewTopics(config.bus.topic_prefix or config.name)
    namespace = topics.namespace
    pools = sorted({tool.pool for tool in config.tools.values()})
    tools = tuple(topics.tools(pool) for pool in pools)
    others = tuple(f"{crew}.conversations" for crew in _asked(config))
    rights = [
        Rights(
            "worker", "advances conversations",
            reads=(topics.conversations, MARKET),
            writes=(topics.conversations, *tools, topics.tokens, MARKET, *((topics.triggers,) if config.triggers else ()), *others),
            groups=(f"{namespace}.worker",),
        ),
        Rights(
            "guardrail", "judges calls, keeps counters and the audit chain",
            reads=(topics.conversations, topics.limits),
            writes=(topics.conversations, topics.limits, topics.audit),
            groups=(f"{namespace}.guardrail", f"{namespace}.limits"),
        ),
        *(
            Rights(
                f"tools.{pool}", "runs tools with their credentials",
                reads=(topics.tools(pool),), writes=(topics.tools(pool), topics.conversations, topics.tokens),
                groups=(f"{namespace}.tools.{pool}",),
            )
            for pool in pools
        ),
    ]
    if config.triggers:
        rights.append(
            Rights(
                "triggers", "turns records of other topics into intents",
                reads=(topics.triggers, *sorted({trigger.topic for trigger in config.triggers.values()})),
                writes=(topics.triggers, topics.dead_letters, topics.conversations),
                groups=(f"{namespace}.triggers", *(f"{namespace}.triggers.{name}" for name in sorted(config.triggers))),
            )
        )  # fmt: skip
    return [
        *rights,
        Rights(
            "client", "a program that asks and reads answers",
            reads=(topics.conversations, topics.tokens), writes=(topics.conversations,),
        ),
        Rights(
            "console", "people: they ask, decide, look at everything (console and command line)",
            reads=(topics.conversations, topics.tokens, topics.audit, topics.limits, *tools, MARKET),
            writes=(topics.conversations,),
            looks=(f"{namespace}.*",),
        ),
        Rights(
            "deploy", "creates the topics (crewline doctor --create-topics)",
            creates=(f"{namespace}.*", MARKET), writes=(topics.tokens,),
        ),
    ]  # fmt: skip


def _asked(config: CrewConfig) -> list[str]:
    """Return the other crews that this one delegates to, by their names: their namespace unless they say otherwise."""
    wanted = [each for agent in config.agents.values() for each in agent.delegates]
    return sorted({each.partition(":")[0] for each in wanted if ":" in each})


def acl_commands(
    rights: Sequence[Rights], *, servers: str, principal_prefix: str, command_config: str = "admin.properties"
) -> Iterator[str]:
    """Yield the `kafka-acls` commands that give each role its rights; a line that begins with `#` is a comment.

    Args:
        servers: HOST:PORT[,…], where the commands are sent.
        principal_prefix: role `worker` is the principal `User:<prefix>worker`.
        command_config: the file with which an administrator signs in, in Kafka's words.
    """
    start = ["kafka-acls", "--bootstrap-server", servers, "--command-config", command_config, "--add", "--allow-principal"]
    for each in rights:
        principal = f"User:{principal_prefix}{each.role}"
        yield f"# {each.role}: {each.does}"
        for words in _grants(each):
            yield shlex.join([*start, principal, *words])


def _grants(rights: Rights) -> Iterator[list[str]]:
    """Yield the operations and resources of one role, in as few commands as that takes.

    Whoever starts compares the settings of the topics it touches with what they must be: DescribeConfigs.
    """
    unwritten = [topic for topic in rights.reads if topic not in rights.writes]
    if rights.groups:
        yield [*_operations("Read"), *_named("--topic", rights.reads), *_named("--group", rights.groups)]
        if unwritten:
            yield [*_operations("DescribeConfigs"), *_named("--topic", unwritten)]
    elif rights.reads:
        yield [*_operations("Read", "DescribeConfigs"), *_named("--topic", rights.reads)]
    if rights.writes:
        yield [*_operations("Write", "DescribeConfigs"), *_named("--topic", rights.writes)]
    for group in rights.looks:
        yield [*_operations("Describe"), *_pattern("--group", group)]
    for topic in rights.creates:
        yield [*_operations("Create", "Describe", "DescribeConfigs"), *_pattern("--topic", topic)]


def _operations(*names: str) -> list[str]:
    return [word for name in names for word in ("--operation", name)]


def _named(option: str, names: Sequence[str]) -> list[str]:
    return [word for name in names for word in (option, name)]


def _pattern(option: str, name: str) -> list[str]:
    if name.endswith("*"):
        return [option, name[:-1], "--resource-pattern-type", "prefixed"]
    return [option, name]
