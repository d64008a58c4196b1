"""The `guardrails` of a crew file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crewline.crews.models_base import Strict
from crewline.crews.values import Cel, Duration, Label, Name, Number, Text, ToolName, Whole

Action = Literal["allow", "require_approval", "deny"]
Stage = Literal["input", "tool_call", "tool_result", "output"]
PiiEntity = Literal[
    "credit_card", "email", "iban", "ip_address", "location", "medical_license", "person", "phone", "url",
    "us_bank_number", "us_passport", "us_ssn",
]  # fmt: skip


class Fact(Strict):
    """A value that the guardrail looks up itself, with a tool that only reads."""

    tool: ToolName
    args: dict[str, Cel] = Field(default={})


class Policy(Strict):
    """A rule. Without `tools` or `agents` it covers every one; without `when` it always applies."""

    stage: Stage = "tool_call"
    agents: list[Name] = Field(default=[])
    tools: list[ToolName] = Field(default=[])
    when: Cel | None = None
    action: Action
    reason: Text


class Limit(Strict):
    """A counter over time. Without `key` it is crew-wide, without `sum` it counts calls."""

    tools: list[ToolName] = Field(min_length=1)
    key: Cel | None = None
    sum: Cel | None = None
    max: Number = Field(gt=0)
    window: Duration
    action: Literal["require_approval", "deny"]


class RunBudget(Strict):
    """What a run may use. `wall_time` does not count the time a person is waited for."""

    cost_usd: Number | None = Field(default=None, gt=0)
    tokens: Whole | None = Field(default=None, ge=1)
    tool_calls: Whole = Field(default=50, ge=0)
    wall_time: Duration = 600.0


class DayBudget(Strict):
    """What the crew may use in a day (UTC)."""

    cost_usd: Number | None = Field(default=None, gt=0)
    tokens: Whole | None = Field(default=None, ge=1)
    tool_calls: Whole | None = Field(default=None, ge=0)
    wall_time: Duration | None = None


class Budgets(Strict):
    """Budgets of a run and of a day."""

    run: RunBudget = RunBudget()
    day: DayBudget | None = None


class Approvals(Strict):
    """Who approves what is held (groups of the console). After `timeout` it is denied."""

    approvers: list[Text] = Field(min_length=1)
    timeout: Duration = 3_600.0


class Pii(Strict):
    """Personal data, and where it is masked."""

    entities: list[PiiEntity] = Field(min_length=1)
    mask_in: list[Literal["logs", "memory", "model"]] = Field(min_length=1)


class Guardrails(Strict):
    """What every call is held to. All matching policies count, the strictest wins."""

    mode: Literal["enforce", "shadow"] = "enforce"
    facts: dict[Name, Fact] = Field(default={})
    policies: dict[Label, Policy] = Field(default={})
    limits: dict[Label, Limit] = Field(default={})
    budgets: Budgets = Budgets()
    approvals: Approvals | None = None
    pii: Pii | None = None
