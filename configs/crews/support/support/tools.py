"""The tools of the support crew."""

from typing import Annotated, Any

from crewline import Sink, ToolContext, ToolError, Verbatim, tool
from pydantic import BaseModel, Field

from support import shop


class Refund(BaseModel):
    """A refund that was paid."""

    refund_id: str
    paid: float


@tool(effect="read", timeout="5s", retries=2)
def find_order(
    order_id: Annotated[str, Verbatim(), Field(pattern=r"^A-\d+$")],
    customer_id: str | None = None,
) -> dict[str, Any]:
    """Find an order.

    Args:
        order_id: the order's id, as the customer gave it, such as A-1001.
        customer_id: whose order it must be.
    """
    found = shop.order(order_id)
    if found is None or customer_id not in (None, found["customer"]):
        raise ToolError(f"there is no order {order_id} of this customer", retryable=False)
    return found


@tool(effect="destructive", idempotent=True, timeout="20s", retries=3)
def issue_refund(
    order_id: Annotated[str, Verbatim(), Field(pattern=r"^A-\d+$")],
    amount: Annotated[float, Sink("amount"), Field(gt=0, le=10_000)],
    ctx: ToolContext,
) -> Refund:
    """Pay a refund for an order.

    Args:
        order_id: the order's id, as the customer gave it.
        amount: in US dollars.
    """
    if shop.order(order_id) is None:
        raise ToolError(f"there is no order {order_id}", retryable=False)
    refund_id, paid = shop.pay(order_id, amount, key=ctx.idempotency_key)
    return Refund(refund_id=refund_id, paid=paid)
