"""Who is in the crew, as the roles know it: agents, tools, budgets. Made from the crew file, or by hand in tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from crewline_agents.base import Brain
from crewline_tools.base import ToolSpec, catalogue_hash
from crewline_tools.builtin import delegate_spec, handoff_spec

from crewline.events import Capability
from crewline.topics import CrewTopics

HISTORY = 20  # turns a brain sees, unless its agent says otherwise


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input_usd: float
    output_usd: float


@dataclass(frozen=True)
class Agent:
    """An agent. `system` is its prompt; `tools`, `delegates` and `handoffs` are all it may call."""

    name: str
    brain: Brain
    system: str = ""
    tools: tuple[str, ...] = ()
    delegates: tuple[str, ...] = ()
    handoffs: tuple[str, ...] = ()
    capabilities: Mapping[str, Capability] = field(default_factory=dict)
    max_steps: int = 10
    history: int = HISTORY
    price: Price | None = None
    attempts: int | None = None  # of a step, its model's failures counted; None: the crew's


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a run may use. `wall_s` does not count the time a person is waited for.

    `day`: what the crew may use between midnight and midnight (UTC), all runs together: of `cost_usd`,
    `tokens`, `tool_calls`, `wall_time` (seconds).
    """

    tool_calls: int = 50
    wall_s: float = 600.0
    tokens: int | None = None
    cost_usd: float | None = None
    day: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Roster:
    """A crew. `namespace` is its topics' prefix, `version` what is written into each turn."""

    crew: str
    version: str
    agents: Mapping[str, Agent]
    tools: Mapping[str, ToolSpec] = field(default_factory=dict)
    namespace: str = ""
    budgets: Budgets = Budgets()
    attempts: int = 4
    guard_s: float = 30.0
    entry: str | None = None

    @cached_property
    def topics(self) -> CrewTopics:
        return CrewTopics(self.namespace or self.crew)

    @cached_property
    def pools(self) -> tuple[str, ...]:
        """The tool pools of the crew, in order of name."""
        return tuple(sorted({tool.pool for tool in self.tools.values()}))

    @cached_property
    def capabilities(self) -> dict[str, str]:
        """Which agent of this crew offers each capability (the first one named, if several do)."""
        offered: dict[str, str] = {}
        for agent in self.agents.values():
            for name in agent.capabilities:
                offered.setdefault(name, agent.name)
        return offered

    @cached_property
    def _offers(self) -> dict[str, tuple[ToolSpec, ...]]:
        return {name: self._offers_of(agent) for name, agent in self.agents.items()}

    @cached_property
    def _catalogues(self) -> dict[str, str]:
        return {name: catalogue_hash(offers) for name, offers in self._offers.items()}

    def offers(self, agent: str) -> tuple[ToolSpec, ...]:
        """Return every tool that `agent` is offered, built-in ones included. Raises KeyError."""
        return self._offers[agent]

    def catalogue(self, agent: str) -> str:
        """Return the hash of what `agent` is offered; `model.replied` carries it. Raises KeyError."""
        return self._catalogues[agent]

    def _offers_of(self, agent: Agent) -> tuple[ToolSpec, ...]:
        offers = [self.tools[name] for name in agent.tools]
        if agent.delegates:
            offers.append(delegate_spec(agent.delegates))
        if agent.handoffs:
            offers.append(handoff_spec(agent.handoffs))
        return tuple(offers)
