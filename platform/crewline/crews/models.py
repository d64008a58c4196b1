"""The crew file `crew/v1` as pydantic models: every key, its type, its default. What holds between keys is in checker.py.

models.py        the crew, its agents, models and tools, memory, console
models_bus.py    the bus: embedded, or Kafka
models_guard.py  guardrails: facts, policies, limits, budgets, approvals
models_flow.py   triggers: windows, aggregates, scatter and gather
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from crewline.crews.models_base import Strict
from crewline.crews.models_bus import Bus, EmbeddedBus
from crewline.crews.models_flow import Trigger
from crewline.crews.models_guard import Guardrails
from crewline.crews.problems import Path, Place
from crewline.crews.values import (
    CapabilityName,
    Cel,
    Duration,
    Label,
    Name,
    Number,
    PythonName,
    Secret,
    SecretText,
    Switch,
    Text,
    ToolName,
    Version,
    Wanted,
    Whole,
)

Effect = Literal["read", "write", "destructive"]


class Prices(Strict):
    """US dollars per million tokens."""

    input: Number = Field(ge=0)
    output: Number = Field(ge=0)


class OpenAIModel(Strict):
    """Any OpenAI-compatible endpoint."""

    provider: Literal["openai"]
    model: Text
    base_url: Text | None = None
    api_key: Secret | None = None
    temperature: Number | None = Field(default=None, ge=0, le=2)
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    timeout: Duration = 60.0
    retries: Whole = Field(default=3, ge=0, le=20)
    usd_per_million_tokens: Prices | None = None


class ScriptedModel(Strict):
    """Answers from a file, in order: for tests and for `--offline`. `script` is relative to the crew file."""

    provider: Literal["scripted"]
    script: Text


Model = Annotated[OpenAIModel | ScriptedModel, Field(discriminator="provider")]


class Capability(Strict):
    """What an agent offers on the marketplace. `input` and `output` name schemas (`package.module:Name`)."""

    description: Text
    input: PythonName | None = None
    output: PythonName | None = None


class AgentMemory(Strict):
    """Where an agent's memory looks, how many turns it repeats verbatim, how many facts it recalls, may it store."""

    scope: Literal["conversation", "user", "agent", "crew"] = "conversation"
    history: Whole = Field(default=20, ge=0, le=1_000)
    recall: Whole = Field(default=0, ge=0, le=100)
    write: Switch = False


class Agent(Strict):
    """A role with a brain. `tools`, `delegates` and `handoffs` are all that it may use."""

    role: Text
    goal: Text
    instructions: str = Field(default="", max_length=100_000)
    model: Label = "default"
    brain: Literal["native", "autogen", "langchain"] = "native"
    factory: PythonName | None = None
    tools: list[ToolName] = Field(default=[])
    delegates: list[Wanted] = Field(default=[])
    handoffs: list[Name] = Field(default=[])
    capabilities: dict[CapabilityName, Capability] = Field(default={})
    memory: AgentMemory = AgentMemory()
    max_steps: Whole = Field(default=10, ge=1, le=1_000)


class ToolTerms(Strict):
    """What holds for a call of a tool. `effect` has no default: the dangerous thing must be said."""

    effect: Effect
    idempotent: Switch = False
    timeout: Duration = 30.0
    retries: Whole = Field(default=0, ge=0, le=20)
    inject: dict[str, Cel] = Field(default={})


class Tool(ToolTerms):
    """A Python function, `package.module:name`. `pool` is which processes run it, with their credentials."""

    python: PythonName
    pool: Label = "main"


class McpServer(Strict):
    """An MCP server, by `command` or by `url`. Only the tools listed exist, each with its own `effect`."""

    command: list[Text] | None = Field(default=None, min_length=1)
    env: dict[str, SecretText] = Field(default={})
    url: Text | None = None
    headers: dict[str, SecretText] = Field(default={})
    tools: dict[Name, ToolTerms] = Field(min_length=1)


class Memory(Strict):
    """The store of the crew's memory."""

    store: Literal["sqlite", "redis"] = "sqlite"
    path: Text | None = None
    url: SecretText | None = None
    retention: Duration | None = None


class Console(Strict):
    """The console. `entry` is the agent that its chat page talks to; without it, the first one."""

    host: Text = "127.0.0.1"
    port: Whole = Field(default=8700, ge=0, le=65_535)
    token: Secret | None = None
    entry: Name | None = None


class CrewConfig(Strict):
    """A crew file, whole. `file` is where it was read from; scripts are relative to its `folder`."""

    schema_: Literal["crew/v1"] = Field(alias="schema")
    name: Label
    version: Version
    description: str = Field(default="", max_length=20_000)
    bus: Bus = EmbeddedBus(kind="embedded")
    models: dict[Label, Model] = Field(min_length=1)
    agents: dict[Name, Agent] = Field(min_length=1)
    tools: dict[Name, Tool] = Field(default={})
    mcp_servers: dict[Name, McpServer] = Field(default={})
    guardrails: Guardrails = Guardrails()
    triggers: dict[Label, Trigger] = Field(default={})
    memory: Memory = Memory()
    console: Console = Console()

    _file: FilePath | None = PrivateAttr(default=None)
    _places: dict[Path, Place] = PrivateAttr(default_factory=dict)

    @property
    def file(self) -> FilePath | None:
        """The crew file, None for a crew built in Python."""
        return self._file

    @property
    def folder(self) -> FilePath:
        """The folder that `script` paths are relative to."""
        return self._file.parent if self._file is not None else FilePath()

    @property
    def entry(self) -> str:
        """The agent that a chat talks to."""
        return self.console.entry or next(iter(self.agents))

    def model_name(self, agent: str, *, offline: bool = False) -> str:
        """Return the name of the model that `agent` uses. Raises KeyError for an unknown agent.

        Offline it is `offline`; or the agent's own, if that is scripted and there is no `offline`.
        """
        own = self.agents[agent].model
        return "offline" if offline and "offline" in self.models else own

    def place(self, *path: str | int) -> Place:
        """Return where a key stands; the nearest one above it if it is not written."""
        for length in range(len(path), -1, -1):
            if (found := self._places.get(path[:length])) is not None:
                return found
        return Place(str(self._file or "crew"))
