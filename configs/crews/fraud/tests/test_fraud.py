"""The crew, from six payments to the blocked card, with a scripted model. Run: pytest"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from crewline import Crew
from crewline.bus import Message
from crewline.testing import until

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from fraudwatch import bank  # noqa: E402


@pytest.fixture(autouse=True)
def own_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_DB", str(tmp_path / "bank.db"))


def burst(card: str, *, payments: int = 6) -> Sequence[Message]:
    """Payments of one card, half a minute apart."""
    return [
        Message("payments.transactions", card.encode(), json.dumps({
            "card_id": card, "customer_id": "u-7", "amount": 120.0, "country": "NL",
            "created_at": f"2026-11-25T10:0{n // 2}:{n % 2 * 30:02}Z",
        }).encode())
        for n in range(payments)
    ]  # fmt: skip


def test_a_burst_is_looked_at_by_three_and_the_card_is_blocked_once(tmp_path: Path) -> None:
    async def watch() -> None:
        async with Crew.load(HERE / "crew.yaml", offline=True).up(state=tmp_path / "state") as crew:
            await crew.bus.append(burst("c-17"))
            await until(lambda: bank.noted("blocks"))
            await crew.bus.append(burst("c-18", payments=4))  # four are no burst

    asyncio.run(watch())

    assert bank.noted("blocks") == ["c-17"]
    assert bank.noted("cases") == ["c-17"]


def test_for_a_private_banking_customer_a_person_decides(tmp_path: Path) -> None:
    async def watch() -> None:
        async with Crew.load(HERE / "crew.yaml", offline=True).up(state=tmp_path / "state") as crew:
            await crew.bus.append(burst("c-99"))
            held = (await until(crew.client.open_calls))[0]
            assert bank.noted("blocks") == [], "nothing is blocked before a person has approved"
            await crew.approve(held.id, by="desk@bank")
            await until(lambda: bank.noted("blocks"))

    asyncio.run(watch())

    assert bank.noted("blocks") == ["c-99"]
