"""The crew, from rising vibration to the booked work, with a scripted model. Run: pytest"""

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

from plant import office  # noqa: E402


@pytest.fixture(autouse=True)
def own_office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANT_DB", str(tmp_path / "plant.db"))


def readings(machine: str, *, rising: bool) -> Sequence[Message]:
    """Forty readings of a machine's sensors, fifteen seconds apart."""
    return [
        Message("plant.sensors", machine.encode(), json.dumps({
            "machine_id": machine, "vibration_mm_s": 4.0 + n * 0.08 if rising else 2.0, "bearing_temp_c": 61.5,
            "ts": f"2026-11-25T10:{n // 4:02}:{n % 4 * 15:02}Z",
        }).encode())
        for n in range(40)
    ]  # fmt: skip


def test_rising_vibration_leads_to_one_part_and_one_work_order(tmp_path: Path) -> None:
    async def watch() -> None:
        async with Crew.load(HERE / "crew.yaml", offline=True).up(state=tmp_path / "state") as crew:
            await crew.bus.append([*readings("pump-7", rising=False), *readings("pump-4", rising=True)])
            await until(lambda: office.noted("orders"))

    asyncio.run(watch())

    assert office.noted("orders") == [("pump-4", "replace the bearing")]
    assert office.noted("parts") == [("pump-4", "6205-2RS")]
    assert office.noted("stops") == []
