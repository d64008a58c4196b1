"""A crew from its file: what the file says, with the Python it refers to imported, as the roles take it.

Checking never imports user code; this module does, and only for `up`, `run` and their like.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from crewline_agents.base import Brain
from crewline_agents.scripted import ScriptedBrain, load_script
from crewline_tools.registry import ToolOptions, ToolRegistry

from crewline import events as ev
from crewline.crews.models import Agent as AgentConfig
from crewline.crews.models import Capability, CrewConfig, OpenAIModel, ScriptedModel
from crewline.crews.models_flow import Hopping, Session, Trigger, Tumbling, Window
from crewline.crews.problems import CrewFileError
from crewline.crews.running import Crew
from crewline.errors import UsageError
from crewline.guardrail import Approvals, FactRule, LimitRule, PolicyRule, PolicySet
from crewline.roster import Agent, Budgets, Price, Roster
from crewline.triggers import Gathering, TriggerRule, WindowRule


def crew_from_file(path: Path, *, overlays: Sequence[Path] = (), offline: bool = False) -> Crew:
    """Return the crew that a file declares. See `Crew.load`.

    Raises: CrewFileError with every problem of the file, or what it asks for that does not run yet;
    UsageError if a reference cannot be imported.
    """
    from crewline.crews import load_crew, not_yet

    config = load_crew(path, overlays=overlays, offline=offline)
    later = not_yet(config)
    if later:
        raise CrewFileError(later)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # `python: shop.tools:find` is looked up beside the crew file
    return crew_of(config, offline=offline)


def crew_of(config: CrewConfig, *, offline: bool = False) -> Crew:
    """Return the crew of a checked configuration, its references imported. Raises: UsageError."""
    tools = _tools(config)
    specs = tools.specs()
    run = config.guardrails.budgets.run
    day = config.guardrails.budgets.day.model_dump(exclude_none=True) if config.guardrails.budgets.day else {}
    roster = Roster(
        crew=config.name,
        version=config.version,
        agents=_agents(config, offline=offline),
        tools=specs,
        namespace=config.bus.topic_prefix or config.name,
        budgets=Budgets(run.tool_calls, run.wall_time, run.tokens, run.cost_usd, day),
        entry=config.entry,
    )
    return Crew(roster, tools, _policies(config), config=config, partitions=config.bus.partitions,
                triggers=[_trigger(name, trigger) for name, trigger in config.triggers.items()])


def _tools(config: CrewConfig) -> ToolRegistry:
    registry = ToolRegistry()
    for name, tool in config.tools.items():
        stated = tool.model_fields_set
        options = ToolOptions(
            effect=tool.effect,
            idempotent=tool.idempotent if "idempotent" in stated else None,
            timeout_s=tool.timeout if "timeout" in stated else None,
            retries=tool.retries if "retries" in stated else None,
            pool=tool.pool if "pool" in stated else None,
            inject=tool.inject,
            at=str(config.place("tools", name)),
        )
        registry.load(tool.python, options, name=name)
    return registry


def _agents(config: CrewConfig, *, offline: bool) -> dict[str, Agent]:
    brains: dict[str, Brain] = {}
    agents = {}
    for name, agent in config.agents.items():
        model_name = config.model_name(name, offline=offline)
        if model_name not in brains:
            brains[model_name] = _brain(config, model_name)
        model = config.models[model_name]
        prices = model.usd_per_million_tokens if isinstance(model, OpenAIModel) else None
        offers = {each: _capability(each, capability) for each, capability in agent.capabilities.items()}
        agents[name] = Agent(
            name=name,
            brain=brains[model_name],
            system=_prompt(agent, offers),
            tools=tuple(agent.tools),
            delegates=tuple(agent.delegates),
            handoffs=tuple(agent.handoffs),
            capabilities=offers,
            max_steps=agent.max_steps,
            history=agent.memory.history,
            price=Price(prices.input, prices.output) if prices is not None else None,
            attempts=model.retries + 1 if isinstance(model, OpenAIModel) else None,
        )
    return agents


def _brain(config: CrewConfig, name: str) -> Brain:
    model = config.models[name]
    if isinstance(model, ScriptedModel):
        return ScriptedBrain(load_script(config.folder / model.script))
    from crewline_agents.native import NativeBrain, NativeOptions

    options: dict[str, Any] = {"base_url": model.base_url} if model.base_url is not None else {}
    if model.api_key is not None:
        options["api_key"] = model.api_key.reveal()
    return NativeBrain(
        NativeOptions(
            model=model.model,
            temperature=model.temperature,
            timeout_s=model.timeout,
            max_output_tokens=model.max_output_tokens,
            **options,
        )
    )


def _prompt(agent: AgentConfig, offers: dict[str, ev.Capability]) -> str:
    """Return the agent's system prompt: who it is, what for, how; and the form its answers must have."""
    parts = [f"You are: {agent.role}.", f"Your goal: {agent.goal}."]
    if agent.instructions:
        parts.append(agent.instructions.strip())
    for capability in offers.values():
        if capability.output is not None:
            schema = msgspec.json.encode(capability.output).decode()
            parts.append(f"When you are asked for {capability.name}, answer with one JSON object that fits: {schema}")
    return "\n\n".join(parts)


def _capability(name: str, capability: Capability) -> ev.Capability:
    return ev.Capability(
        name=name,
        description=capability.description,
        input=_schema(capability.input) if capability.input else None,
        output=_schema(capability.output) if capability.output else None,
    )


def _schema(reference: str) -> dict[str, Any]:
    """Return the JSON Schema of the pydantic model (or other annotated type) at `package.module:Name`."""
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"schema {reference!r} cannot be imported: {error}") from error
    from pydantic import PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(found).json_schema()
    except PydanticUserError as error:
        raise UsageError(f"schema {reference!r} is no type with a JSON Schema: {error.message}") from error


def _policies(config: CrewConfig) -> PolicySet:
    guard = config.guardrails
    rules = [
        PolicyRule(name, tuple(policy.tools), tuple(policy.agents), policy.when, policy.action, policy.reason,
                   policy.stage)
        for name, policy in guard.policies.items()
    ]
    facts = [FactRule(name, fact.tool, fact.args) for name, fact in guard.facts.items()]
    approvals = Approvals(tuple(guard.approvals.approvers), guard.approvals.timeout) if guard.approvals else None
    limits = [
        LimitRule(name, tuple(limit.tools), limit.max, limit.window, limit.key, limit.sum, limit.action)
        for name, limit in guard.limits.items()
    ]
    name = f"{config.name}@{config.version}"
    return PolicySet(rules, facts=facts, approvals=approvals, name=name, limits=limits, shadow=guard.mode == "shadow")


def _trigger(name: str, trigger: Trigger) -> TriggerRule:
    gather = trigger.gather
    asks = trigger.scatter if trigger.scatter is not None else [trigger.intent or ""]
    return TriggerRule(
        name,
        topic=trigger.topic,
        key=trigger.key,
        asks=asks,
        time=trigger.time,
        window=_window(trigger.window) if trigger.window is not None else None,
        aggregates=trigger.aggregate,
        when=trigger.when,
        cooldown_ms=_ms(trigger.cooldown),
        gather=Gathering(gather.intent, gather.wait_for, _ms(gather.timeout)) if gather is not None else None,
        input=trigger.input,
        user=trigger.user,
        conversation=trigger.conversation,
        concurrency=trigger.concurrency,
        on_error=trigger.on_error,
    )


def _window(window: Window) -> WindowRule:
    match window:
        case Session(gap=gap):
            return WindowRule("session", gap_ms=_ms(gap), grace_ms=_ms(window.grace))
        case Hopping(size=size, advance=advance):
            return WindowRule("hopping", _ms(size), _ms(advance), grace_ms=_ms(window.grace))
        case Tumbling(size=size):
            return WindowRule("tumbling", _ms(size), _ms(size), grace_ms=_ms(window.grace))


def _ms(seconds: float | None) -> int:
    return round((seconds or 0.0) * 1000)
