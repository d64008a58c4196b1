"""What the refund desk takes and gives."""

from typing import Literal

from pydantic import BaseModel


class RefundRequest(BaseModel):
    """A request for a refund."""

    order_id: str
    reason: str


class RefundDecision(BaseModel):
    """What was decided, and what was paid (US dollars)."""

    decision: Literal["approved", "denied"]
    amount: float = 0.0
    refund_id: str | None = None
    reason: str = ""
