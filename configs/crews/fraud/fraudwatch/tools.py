"""The tools of the fraud crew."""

from typing import Annotated, Any

from crewline import ToolContext, ToolError, Verbatim, tool
from pydantic import Field

from fraudwatch import bank

CardId = Annotated[str, Verbatim(), Field(pattern=r"^c-\d+$")]


def _card(card_id: str) -> dict[str, Any]:
    found = bank.card(card_id)
    if found is None:
        raise ToolError(f"there is no card {card_id}", retryable=False)
    return found


@tool(effect="read", timeout="3s", retries=2)
def card_history(card_id: CardId) -> dict[str, Any]:
    """Look up how a card is used in general.

    Args:
        card_id: the card, such as c-17.
    """
    return _card(card_id)


@tool(effect="read", timeout="3s")
def device_lookup(card_id: CardId) -> dict[str, Any]:
    """Look up the devices that paid with a card today.

    Args:
        card_id: the card, such as c-17.
    """
    _card(card_id)
    return {"devices": [{"id": "d-4411", "first_seen": "today"}]}


@tool(effect="read", timeout="3s")
def merchant_baseline(card_id: CardId) -> dict[str, Any]:
    """Compare a card's merchants with what they usually take.

    Args:
        card_id: the card, such as c-17.
    """
    return {"usual_amount": _card(card_id)["usual_amount"], "merchants": ["electronics"], "times_normal": 14}


@tool(effect="read", timeout="10s", retries=1)
def sanctions_search(card_id: CardId) -> dict[str, Any]:
    """Search the sanctions lists for the parties of a card's payments.

    Args:
        card_id: the card, such as c-17.
    """
    return {"customer": _card(card_id)["customer"], "hits": []}


@tool(effect="read", timeout="3s")
def customer_segment(card_id: CardId) -> dict[str, Any]:
    """Look up the segment of a card's customer.

    Args:
        card_id: the card, such as c-17.
    """
    return {"segment": _card(card_id)["segment"]}


@tool(effect="write", idempotent=True, retries=3)
def open_case(card_id: CardId, reason: str, ctx: ToolContext) -> str:
    """Open a case about a card.

    Args:
        card_id: the card, such as c-17.
        reason: what speaks for fraud.
    """
    _card(card_id)
    return f"case {bank.note('cases', ctx.idempotency_key, card_id, reason)}"


@tool(effect="destructive", idempotent=True, retries=3)
def block_card(card_id: CardId, ctx: ToolContext) -> str:
    """Block a card.

    Args:
        card_id: the card, such as c-17.
    """
    _card(card_id)
    bank.note("blocks", ctx.idempotency_key, card_id)
    return f"{card_id} is blocked"
