"""A crew at hand for one command: started in this process from its file, or reached over the log by its name."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crewline.cli.background import Background
from crewline.cli.settings import Settings
from crewline.errors import NotFound

if TYPE_CHECKING:
    from crewline.client import Client
    from crewline.crews.running import Crew, Running

CREW_FILE = "crew.yaml"
LEAVE_S = 3.0  # how long handing over may take when a command ends; a killed crew loses nothing either


class At(NamedTuple):
    """A crew that can be asked. `running` is None if it runs elsewhere; `agent` is whom to ask."""

    client: Client
    agent: str
    running: Running | None


@dataclass(slots=True)
class Session:
    """A crew at hand, its loop in the background. `again` runs it, if it was started here from its file;
    `reach` are the options by which another command reaches the same log, each with a blank before it;
    `code` is what the process ends with if the crew cannot be left in good order."""

    background: Background
    at: At
    host: Future[None]
    again: str | None
    reach: str
    code: int = 0

    @property
    def client(self) -> Client:
        return self.at.client

    def check(self) -> None:
        """Raise what ended the crew, if it has ended."""
        if self.host.done():
            self.host.result()

    def goes_on(self, run: str) -> str:
        """Return what becomes of a run when this command leaves it."""
        if self.again is None:
            return f"run {run} goes on; see it: crewline runs watch {run}{self.reach}"
        return f"run {run} is kept in the log; go on with it: {self.again}"


def crew_file(named: str | None) -> Path:
    """Return the crew file that is meant: a file, a folder with a crew.yaml, or the one here. Raises: NotFound."""
    path = Path(named) if named is not None else Path(CREW_FILE)
    if path.is_dir():
        path = path / CREW_FILE
    if path.is_file():
        return path
    if named is None:
        raise NotFound("there is no crew.yaml in this folder", hint="name a crew file, or start one: crewline init my-crew")
    raise NotFound(f"{path}: there is no such crew file", hint="name a crew file, or start one: crewline init my-crew")


def crew_files(named: list[str] | None) -> list[Path]:
    """Return the crew files that are meant; without names, the one in this folder. Raises: NotFound."""
    return [crew_file(each) for each in named] if named else [crew_file(None)]


def load(settings: Settings, file: Path, overlays: Sequence[Path], *, offline: bool) -> Crew:
    """Return the crew of a file; a YAML file given by `--bus` is laid over it, like any overlay. Raises: CrewFileError."""
    from crewline.crews.running import Crew

    named = [settings.bus_file] if settings.bus_file is not None else []
    return Crew.load(file, overlays=[*overlays, *named], offline=offline)


def reach(settings: Settings, running: Running | None) -> str:
    """Return the options by which another command reaches a crew, each with a blank before it.

    `running` is the crew if it was started here, from a file: an overlay of it may say where the log is.
    """
    config = running.crew.config if running is not None else None
    named = ""
    if running is not None and running.where.kafka is not None and settings.bus is None and config is not None:
        named = f" --bus {config.place('bus').file}"
    return f"{named}{settings.as_options}"


def is_name(crew: str) -> bool:
    """Whether a crew is given by its name, not by its file. A folder of that name counts only if a crew is in it."""
    path = Path(crew)
    if "/" in crew or crew in (".", "..") or crew.endswith((".yaml", ".yml")):
        return False
    return not (path.is_file() or (path / CREW_FILE).is_file())


@contextmanager
def open_session(
    settings: Settings, crew: str | None, *, overlays: Sequence[Path] = (), offline: bool = False, roles: bool = True,
    agent: str | None = None,
) -> Iterator[Session]:
    """Start the crew of a file (or reach the one of a name), and leave it in good order.

    Args:
        roles: start the crew's roles; without them an intent waits in the log.
        agent: whom to ask; None: the entry agent, or, of a crew that runs elsewhere, whom people asked last.

    Raises: CrewFileError, UsageError, NotFound.
    """
    if crew is not None and is_name(crew):
        again, opened = None, _elsewhere(settings, crew, agent)
    else:
        file = crew_file(crew)
        again = _up(settings, file, overlays, offline)
        opened = _here(load(settings, file, overlays, offline=offline), settings, agent, roles=roles)
    with Background() as background:
        ready: Future[At] = Future()
        leave = background.run(_event())
        host = background.start(_host(opened, ready, leave))
        host.add_done_callback(lambda ended: _tell(ended, ready))
        at = ready.result()
        session = Session(background, at, host, again, reach(settings, at.running))
        try:
            yield session
        finally:
            background.call(leave.set)
            _wait(host, session)


def _up(settings: Settings, file: Path, overlays: Sequence[Path], offline: bool) -> str:
    words = ["crewline up", str(file), *(f"-f {overlay}" for overlay in overlays), *(["--offline"] if offline else [])]
    return " ".join(words) + settings.as_options


async def _event() -> asyncio.Event:
    return asyncio.Event()


async def _host(opened: AbstractAsyncContextManager[At], ready: Future[At], leave: asyncio.Event) -> None:
    """Hold the crew open in one task, from its start to its end."""
    async with opened as at:
        ready.set_result(at)
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(leave.wait())}
        if at.running is not None:
            waits.add(asyncio.create_task(at.running.serve()))
        done, open_ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in open_:
            task.cancel()
        for task in done:
            task.result()


def _tell(ended: Future[None], ready: Future[At]) -> None:
    if not ready.done() and not ended.cancelled() and (error := ended.exception()) is not None:
        ready.set_exception(error)


def _wait(host: Future[None], session: Session) -> None:
    try:
        host.exception(timeout=LEAVE_S)
    except (TimeoutError, KeyboardInterrupt):
        # A tool or a model hangs. Nothing is lost: the log has it all, and whoever runs the crew next goes on.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(session.code)


@asynccontextmanager
async def _here(crew: Crew, settings: Settings, agent: str | None, *, roles: bool) -> AsyncIterator[At]:
    only = None if roles else ()
    async with crew.up(state=settings.state, bus=settings.bus_address, keys=settings.keys, only=only) as running:
        await running.ready()
        yield At(running.client, agent or running.entry, running if roles else None)


@asynccontextmanager
async def _elsewhere(settings: Settings, crew: str, agent: str | None) -> AsyncIterator[At]:
    from dataclasses import replace

    from crewline.cli.state import open_client

    async with open_client(replace(settings, crew=crew)) as client:
        yield At(client, agent or await _agent_of(client, crew), None)


async def _agent_of(client: Client, crew: str) -> str:
    """Return whom people last asked in this crew. Raises: NotFound if nobody has asked anybody yet."""
    projection = await client.projection()
    asked = [turn for turn in projection.turns.values() if not turn.delegated]
    if not asked:
        raise NotFound(
            f"nobody has asked crew {crew!r} anything yet, so its first agent is not known",
            hint="name its file, or the agent: --agent NAME",
        )
    return max(asked, key=lambda turn: turn.started_ms).agent
