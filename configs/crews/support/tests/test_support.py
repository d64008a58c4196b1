"""The crew, from the customer's question to the paid refund, with a scripted model. Run: pytest"""

import asyncio
import sys
from pathlib import Path

import pytest
from crewline import Answer, Crew
from crewline.testing import until

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from support import shop  # noqa: E402
from support.tools import find_order  # noqa: E402


@pytest.fixture(autouse=True)
def own_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DB", str(tmp_path / "shop.db"))


def test_a_tool_is_an_ordinary_function() -> None:
    assert find_order("A-1001")["total"] == 80.0


def test_a_large_refund_waits_for_a_person_and_is_paid_once(tmp_path: Path) -> None:
    async def refund() -> Answer:
        async with Crew.load(HERE / "crew.yaml", offline=True).up(state=tmp_path / "state") as crew:
            asked = asyncio.create_task(crew.ask("My lamp arrived broken, order A-1001", user="u-7"))
            held = (await until(crew.client.open_calls))[0]
            assert shop.ledger() == (0, 0), "nothing is paid before a person has approved"
            await crew.approve(held.id, by="lead@shop")
            return await asked

    answer = asyncio.run(refund())

    assert "80.00 USD" in answer.text
    assert shop.ledger() == (1, 1)


def test_a_denied_refund_is_not_paid(tmp_path: Path) -> None:
    async def deny() -> None:
        async with Crew.load(HERE / "crew.yaml", offline=True).up(state=tmp_path / "state") as crew:
            asked = asyncio.create_task(crew.ask("My lamp arrived broken, order A-1001", user="u-7"))
            held = (await until(crew.client.open_calls))[0]
            await crew.deny(held.id, by="lead@shop", note="the photo shows another lamp")
            await asked

    asyncio.run(deny())

    assert shop.ledger() == (0, 0)
