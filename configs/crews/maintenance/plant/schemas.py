"""What the agents find."""

from pydantic import BaseModel


class Diagnosis(BaseModel):
    """The likely fault, and what speaks for it."""

    fault: str
    evidence: list[str] = []
