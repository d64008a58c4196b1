"""Every process of a crew on Kafka restarted under load, one after the other: nothing lost, doubled or left for a person.

How long turns take meanwhile is measured by the same program, benchmarks/rolling.py, and not asserted here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLLING = Path(__file__).parents[2] / "benchmarks" / "rolling.py"


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_nothing(kafka_address: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROLLING), "--bus", kafka_address, "--rate", "4", "--quiet", "2", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert {name: said[name] for name in ("failed", "lost", "unknown", "doubled", "ended_badly")} == dict.fromkeys(
        ("failed", "lost", "unknown", "doubled", "ended_badly"), 0
    )
    assert said["restarts"] == 6
    assert said["payments"] == said["turns"]
