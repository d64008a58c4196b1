"""`crewline demo`: the support crew, offline, from the first question to the paid refund; and killed on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crewline.bus.opening import open_address
from crewline.client import Client, answer_of
from crewline.crews.running import Crew
from crewline.errors import CrewlineError, NotFound, RunFailed
from crewline.events import CallJudged
from crewline.projection import Frame

QUESTION = "My lamp arrived broken, order A-1001. Can I have my money back?"
USER = "u-7"
BANK_S = 1.5  # how long the bank takes in --kill, so that there is time to kill in
WAIT_S = 60.0


def templates() -> Path:
    """Return the folder of the crews that come with crewline. Raises: NotFound if the install lacks it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "templates", package.parents[1] / "configs" / "crews"):
        if (folder / "support" / "crew.yaml").is_file():
            return folder
    raise NotFound("the support crew is not in this install", hint="install crewline again")


def demo(*, state: Path, kill: bool, yes: bool, show: Callable[[Frame], None], say: Callable[[str], None]) -> str:
    """Run the demo; return the answer.

    Args:
        state: where it keeps its log and its shop; nothing is written elsewhere.
        kill: kill the crew's process after the payment was started, and start it again.
        yes: approve the refund without asking.
        show: prints a record of the run; say: prints a line.

    Raises: RunFailed if the crew does not answer; CrewlineError if the payment was not made once.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["SHOP_DB"] = str(state / "shop.db")
    if kill:
        os.environ["SHOP_BANK_S"] = str(BANK_S)
        return asyncio.run(_killed(state, yes=yes, show=show, say=say))
    return asyncio.run(_in_process(state, yes=yes, show=show))


async def _in_process(folder: Path, *, yes: bool, show: Callable[[Frame], None]) -> str:
    crew = Crew.load(templates() / "support" / "crew.yaml", offline=True)
    async with crew.up(state=folder) as running:
        return await _ask(running.client, running.entry, yes=yes, show=show)


async def _ask(client: Client, agent: str, *, yes: bool, show: Callable[[Frame], None]) -> str:
    """Ask, show what happens, decide what is held; return the answer. Raises: RunFailed."""
    answer = None
    async for frame in client.stream(QUESTION, agent=agent, user=USER):
        show(frame)
        if isinstance(frame.event, CallJudged) and frame.event.decision == "require_approval":
            await _decide(client, frame.event, yes=yes)
        if frame.type == "turn.finished" and frame.conversation == frame.run:
            answer = answer_of(frame)
    if answer is None:
        raise RunFailed("the log ended before the answer", reason_code="bus", run="")
    return answer.text


async def _decide(client: Client, held: CallJudged, *, yes: bool) -> None:
    if yes or await asyncio.to_thread(_asked, held):
        await client.approve(held.call, by="you")
    else:
        await client.deny(held.call, by="you", note="not approved in the demo")


def _asked(held: CallJudged) -> bool:
    if not sys.stdin.isatty():
        return True  # nobody is there to ask, and the demo pays no real money
    sys.stderr.write(f"Approve {held.tool}? Nothing has run yet. [Y/n] › ")
    sys.stderr.flush()
    return not sys.stdin.readline().strip().lower().startswith("n")


# --- killed on the way -------------------------------------------------------------------------


async def _killed(folder: Path, *, yes: bool, show: Callable[[Frame], None], say: Callable[[str], None]) -> str:
    """Run the crew as a process of its own; kill it in mid-payment; start it again; look at the ledger."""
    shop = _shop()
    before = shop.ledger()
    crew = _start(folder)
    try:
        say(f"the crew runs as process {crew.pid}")
        await _until(lambda: (folder / "log.db").exists() and (folder / "keys").is_dir(), crew)
        async with await _open(folder) as client:
            asked = asyncio.create_task(_ask(client, "frontdesk", yes=yes, show=show))
            await _until(lambda: asked.done() or shop.ledger()[0] > before[0], crew)
            started, made = _since(before, shop.ledger())
            say(f"payment under way ({started} started, {made} made): kill -9 {crew.pid}")
            crew.send_signal(signal.SIGKILL)
            crew.wait()
            crew = _start(folder)
            say(f"started again as process {crew.pid}")
            answer = await asyncio.wait_for(asked, WAIT_S)
        started, made = _since(before, shop.ledger())
        say(f"the shop's ledger: the payment was started {started} times, with one key, and made {made} time(s)")
        if made != 1:
            raise CrewlineError(f"{made} payments were made, not one", hint=f"look at {folder}")
        return answer
    finally:
        crew.terminate()
        crew.wait()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "crewline.cli", "--state", str(folder), "--quiet", "up",
               str(templates() / "support" / "crew.yaml"), "--offline"]
    output = (folder / "crew.log").open("ab")
    return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)


async def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a condition, looking 50 times a second. Raises: CrewlineError if the process ends first."""
    until = time.monotonic() + WAIT_S
    while not condition():
        if process.poll() is not None:
            raise CrewlineError(f"the crew's process ended with {process.returncode}", hint="see crew.log in the state folder")
        if time.monotonic() > until:
            raise CrewlineError("the crew's process did not get on", hint="see crew.log in the state folder")
        await asyncio.sleep(0.02)


async def _open(folder: Path) -> Client:
    """Return a client on the crew's log, as soon as the crew has made its topics."""
    client = Client(f"embedded:{folder}", "customer-support")
    while True:
        bus = await open_address(f"embedded:{folder}")
        try:
            topics = await bus.topics()
        finally:
            await bus.close()
        if client.topics.conversations in topics and client.topics.tokens in topics:
            return client
        await asyncio.sleep(0.05)


def _since(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


def _shop() -> Any:
    """Return the support crew's shop module, to read its ledger from outside the crew."""
    import importlib

    folder = str(templates() / "support")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("support.shop")
