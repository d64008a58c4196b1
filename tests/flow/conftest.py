"""Fixtures of the flow tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from flow_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state")
