"""The `triggers` of a crew file: records of an external topic that become intents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crewline.crews.models_base import Strict
from crewline.crews.values import Cel, Duration, Name, TopicName, Wanted, Whole


class Tumbling(Strict):
    """Windows of one size, side by side."""

    kind: Literal["tumbling"]
    size: Duration
    grace: Duration | None = None


class Hopping(Strict):
    """Windows of one size that start every `advance`, and overlap."""

    kind: Literal["hopping"]
    size: Duration
    advance: Duration
    grace: Duration | None = None


class Session(Strict):
    """A window that closes when a key has been silent for `gap`."""

    kind: Literal["session"]
    gap: Duration
    grace: Duration | None = None


Window = Annotated[Tumbling | Hopping | Session, Field(discriminator="kind")]


class Gather(Strict):
    """The intent that takes the answers of a scatter, and how long it waits for them."""

    intent: Wanted
    wait_for: Literal["all", "any", "majority"] = "all"
    timeout: Duration


class Trigger(Strict):
    """Events in, intents out. `cooldown`: one firing per key in that time."""

    topic: TopicName
    key: Cel
    time: Cel | None = None
    window: Window | None = None
    aggregate: dict[Name, Cel] = Field(default={})
    when: Cel | None = None
    cooldown: Duration | None = None
    intent: Wanted | None = None
    scatter: list[Wanted] | None = Field(default=None, min_length=1)
    gather: Gather | None = None
    input: dict[str, Cel] = Field(default={})
    user: Cel | None = None
    conversation: Cel | None = None
    concurrency: Whole = Field(default=1, ge=1, le=1_000)
    on_error: Literal["dead_letter", "skip", "stop"] = "dead_letter"
