"""The smallest crew, with its scripted model. Run: pytest"""

import asyncio
import sys
from pathlib import Path

from crewline import Answer, Crew

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from hello.tools import weather  # noqa: E402


def test_a_tool_is_an_ordinary_function() -> None:
    assert weather("Lisbon") == "21 degrees and sunny in Lisbon"


def test_the_greeter_says_hello(tmp_path: Path) -> None:
    async def hello() -> Answer:
        async with Crew.load(HERE / "crew.yaml").up(state=tmp_path / "state") as crew:
            return await crew.ask("hi there", timeout=20)

    assert "Lisbon" in asyncio.run(hello()).text
