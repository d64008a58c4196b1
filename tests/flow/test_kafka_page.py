"""What docs/kafka.md shows works: each role in a process of its own by the page's commands, on a real broker."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crewline.testing import until

PAGE = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text()
NAME = "customer-support"
NO_BROKER = 4


def lines(holds: str) -> list[list[str]]:
    """Return the commands of the page's one shell block with `holds` in it, as words."""
    (block,) = [each for each in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if holds in each]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


class Place:
    """A folder with a crew of a name of its own, since topics stay on the broker, and its processes."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.name = f"k-{secrets.token_hex(4)}"
        self.running: dict[Path, subprocess.Popen[str]] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CREWLINE_", "SHOP_"))}
        self.environment = {**clean, "KAFKA_BOOTSTRAP_SERVERS": address.removeprefix("kafka://")}

    def start(self, words: list[str], output: Path) -> None:
        with output.open("w") as file:
            self.running[output] = subprocess.Popen(
                self._command(words), cwd=self.folder, env=self.environment, text=True, stdout=file, stderr=file,
                stdin=subprocess.DEVNULL,
            )

    async def up(self, words: list[str], output: Path) -> None:
        """Start a process and wait until it is up; again, as a supervisor would, if no broker answered within 3 s."""
        self.start(words, output)

        def is_up() -> bool:
            if self.running[output].poll() == NO_BROKER:
                self.start(words, output)
            return "ask it" in output.read_text()

        await until(is_up, seconds=60)

    def run(self, words: list[str]) -> str:
        done = subprocess.run(
            self._command(words), cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=60,
            stdin=subprocess.DEVNULL, check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def _command(self, words: list[str]) -> list[str]:
        assert words[0] == "crewline"
        return [sys.executable, "-m", "crewline.cli", *map(self.named, words[1:])]

    def named(self, word: str) -> str:
        return self.name if word == NAME else word


@pytest.fixture
def place(tmp_path: Path, kafka_address: str) -> Iterator[Place]:
    place = Place(tmp_path / "my-crew", kafka_address)
    place.folder.mkdir()
    place.run(["crewline", "init", "."])
    crew = place.folder / "crew.yaml"
    crew.write_text(crew.read_text().replace(f"name: {NAME}", f"name: {place.name}"))
    yield place
    for process in place.running.values():
        if process.poll() is None:
            process.kill()
            process.wait()


async def test_every_role_in_a_process_of_its_own_as_the_page_says(place: Place, tmp_path: Path) -> None:
    (keys,) = [words for words in lines("crewline keys init   ") if words[:2] == ["crewline", "keys"]]
    place.run(keys)
    roles = lines("--only guardrail")
    await asyncio.gather(*(place.up(words, tmp_path / f"{number}.log") for number, words in enumerate(roles)))

    export, ask, *look = lines("export CREWLINE_BUS")
    assert export[0] == "export"
    place.environment |= {name: place.named(value) for name, _, value in (word.partition("=") for word in export[1:])}
    assert "Your refund of 80.00 USD is on its way." in place.run(ask)
    shown = {" ".join(words[1:3]): place.run(words) for words in look}

    assert "done" in shown["runs list"]
    assert "issue_refund" in shown["runs show"]
    assert len(re.findall(r"refund\.decide +\S+ +refunds .* alive", shown["market list"])) == 2, "two workers offer it"
    assert "hold against" in shown["guard audit"]
    for process in place.running.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in place.running.values()] == [0] * 4
    said = [output.read_text() for output in place.running]
    assert all("stopped; everything is in the log" in each for each in said)
    assert not any("Traceback" in each for each in said)
