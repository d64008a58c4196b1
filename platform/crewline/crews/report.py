"""What a checked crew file amounts to: its policies per tool, its digest, its schema, and what waits for later."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from crewline.crews.models import CrewConfig, Effect
from crewline.crews.models_guard import Limit, Policy
from crewline.crews.problems import Problem, dotted, in_order
from crewline.crews.values import duration_text

_SIGNS = (("<=", "≤"), (">=", "≥"), ("!=", "≠"))
_FRACTION = re.compile(r"(?<![\w.])([0-9]+)\.0(?![\w.])")
_ARGS = re.compile(r"(?<![\w.])args\.")


class PolicyRow(NamedTuple):
    """What holds for a tool: `issue_refund: amount ≤ 50 allow, amount > 50 approval by support-leads`."""

    tool: str
    effect: Effect
    says: str

    def __str__(self) -> str:
        return f"{self.tool}: {self.says}"


def effective_policies(config: CrewConfig) -> list[PolicyRow]:
    """Return one row per tool, in the file's order: the policies and limits that cover it, as text."""
    effects = {name: tool.effect for name, tool in config.tools.items()}
    for server, declared in config.mcp_servers.items():
        effects |= {f"{server}.{name}": terms.effect for name, terms in declared.tools.items()}
    return [PolicyRow(tool, effect, _says(config, tool, effect)) for tool, effect in effects.items()]


def config_digest(config: CrewConfig) -> str:
    """Return the SHA-256 (hex) of what the file says, references resolved, secrets left out.

    It is the version of the crew that runs are pinned to. The order of keys does not matter, except that
    the first agent is the entry of a crew that names none.
    """
    said = config.model_dump(mode="json", by_alias=True)
    text = json.dumps([config.entry, said], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def crew_schema() -> dict[str, Any]:
    """Return the JSON Schema of a crew file, as `crewline schema` writes it."""
    schema = CrewConfig.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "crew/v1"}


def not_yet(config: CrewConfig) -> list[Problem]:
    """Return what the crew declares and this version cannot run, in order of line.

    Such a crew passes `check`; `up` and `run` refuse it rather than leave something out in silence.
    """
    found = [
        Problem.at(config.place(*path), dotted(path), f"{what} cannot be run by this version yet; leave it out, or wait")
        for path, what in _later(config)
    ]
    return in_order(found)


def _later(config: CrewConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    guardrails = config.guardrails
    for name, agent in config.agents.items():
        if agent.brain != "native":
            yield ("agents", name, "brain"), f"'brain: {agent.brain}'"
        if agent.memory.recall > 0:
            yield ("agents", name, "memory", "recall"), "'recall' (long-term memory)"
        if agent.memory.scope != "conversation":
            yield ("agents", name, "memory", "scope"), f"'scope: {agent.memory.scope}' (long-term memory)"
        if agent.memory.write:
            yield ("agents", name, "memory", "write"), "'write' (long-term memory)"
    if config.mcp_servers:
        yield ("mcp_servers",), "'mcp_servers'"
    for name, policy in guardrails.policies.items():
        if policy.stage != "tool_call":
            yield ("guardrails", "policies", name, "stage"), f"'stage: {policy.stage}'"
    if guardrails.pii is not None:
        yield ("guardrails", "pii"), "'pii'"
    for name, trigger in config.triggers.items():
        gathering = trigger.gather.intent if trigger.gather is not None else None
        for asked in (trigger.intent, gathering, *(trigger.scatter or ())):
            if asked is not None and ":" in asked:
                yield ("triggers", name), f"an intent for another crew, {asked!r},"
    for field, value in (("path", config.memory.path), ("retention", config.memory.retention)):
        if value is not None:
            yield ("memory", field), f"'memory.{field}'"
    for field in ("host", "port", "token"):
        if field in config.console.model_fields_set:
            yield ("console", field), f"'console.{field}' (the web console)"


def _says(config: CrewConfig, tool: str, effect: Effect) -> str:
    approvals = config.guardrails.approvals
    by = f"approval by {', '.join(approvals.approvers)}" if approvals is not None else "approval"
    words = {"allow": "allow", "deny": "deny", "require_approval": by}
    said = []
    covered = False
    for policy in config.guardrails.policies.values():
        if policy.stage == "tool_call" and (not policy.tools or tool in policy.tools):
            said.append(f"{_when(policy)}{words[policy.action]}")
            covered = covered or policy.when is None
    for limit in config.guardrails.limits.values():
        if tool in limit.tools:
            action = "approval" if limit.action == "require_approval" else "deny"
            said.append(f"{_counted(limit)} {action}")
    if not covered:
        said.append("otherwise deny" if effect == "destructive" else "otherwise allow" if said else "allow")
    return ", ".join(said)


def _when(policy: Policy) -> str:
    parts = [f"[{', '.join(policy.agents)}]"] if policy.agents else []
    if policy.when is not None:
        parts.append(_readable(policy.when))
    return "".join(f"{part} " for part in parts)


def _counted(limit: Limit) -> str:
    what = f"{_readable(limit.sum)} " if limit.sum is not None else "calls "
    per = f" per {_readable(limit.key)}" if limit.key is not None else ""
    return f"{what}> {limit.max:g}/{duration_text(limit.window)}{per}"


def _readable(expression: str) -> str:
    """Return an expression for people: signs for operators, `50` for `50.0`, no `args.`."""
    text = _FRACTION.sub(r"\1", _ARGS.sub("", " ".join(expression.split())))
    for sign, shown in _SIGNS:
        text = text.replace(sign, shown)
    return text
