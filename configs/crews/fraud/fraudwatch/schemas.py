"""What the agents find."""

from pydantic import BaseModel, Field


class Score(BaseModel):
    """How likely it is fraud, from 0 to 1, and why."""

    score: float = Field(ge=0, le=1)
    reasons: list[str]


class Trend(BaseModel):
    """Whether the activity is unusual, and how many times the normal it is."""

    unusual: bool
    times_normal: float


class Screening(BaseModel):
    """Whether a party is on a sanctions list, and which."""

    listed: bool
    lists: list[str] = []
