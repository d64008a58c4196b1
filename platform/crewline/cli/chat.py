"""`crewline chat`: talk with a crew. Answers stream to stdout; what happens on the way, to stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crewline.cli import settings as globals_
from crewline.cli.asking import Asking
from crewline.cli.decide import Decider, Holds
from crewline.cli.output import Output
from crewline.errors import CrewlineError, NotFound

if TYPE_CHECKING:
    from crewline.cli.session import Session

HISTORY = "chat_history"
HELP = """\
/approve [ID]       show what this conversation waits for, and decide
/deny [WHY]         deny it; the agent reads why
/stop               stop the conversation's turn
/help  /quit        this list; leave (Ctrl-D too): the conversation stays in the log"""


def chat(
    context: typer.Context,
    crew: Annotated[
        str | None, typer.Argument(help="A crew file, its folder, or a running crew's name; default: ./crew.yaml.")
    ] = None,
    conv: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this conversation.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last conversation.")] = False,
    user: Annotated[str | None, typer.Option(help="On whose behalf.")] = None,
    agent: Annotated[str | None, typer.Option(help="Whom to ask; default: the crew's entry agent.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the scripted model named `offline`.")] = False,
) -> None:
    """Talk with a crew, line by line.

    In the chat: /approve /deny /stop /help /quit. Without a terminal, each line of stdin is a message.

    Example: crewline chat crew.yaml --offline --user u-7
    """
    from crewline.cli import logs
    from crewline.cli.prompts import terminating
    from crewline.cli.session import open_session
    from crewline.cli.state import user_name

    settings = globals_.of(context)
    out = Output(settings)
    logs.set_up(settings, tracebacks=False)
    holds = Holds("ask" if settings.interactive else "fail", user_name())
    with terminating(), open_session(settings, crew, overlays=overlay or (), offline=offline, agent=agent) as session:
        conversation = conv or (_last(session) if resume else None)
        talk = Talk(session, out, holds, user=user, agent=session.at.agent, conversation=conversation)
        with _history(settings.state / HISTORY, on=settings.interactive):
            session.code = code = talk.run()
    raise typer.Exit(code)


class Talk:
    """A chat: one conversation, its lines read and answered."""

    def __init__(
        self, session: Session, out: Output, holds: Holds, *, user: str | None, agent: str, conversation: str | None
    ) -> None:
        self._session = session
        self._out = out
        self._holds = holds
        self._user = user
        self._agent = agent
        self._conversation = conversation
        self._left: tuple[str, str] | None = None  # what was asked, and its intent, while its answer is to come
        self._decider = Decider(session.client, session.background, out, holds.by)

    def run(self) -> int:
        """Read and answer until the input ends; return the exit code."""
        self._out.say(f"You talk with {self._agent}. /help lists what else you can do; /quit leaves.", tone="dim")
        if self._conversation is not None:
            self._out.say(f"conversation {self._conversation} goes on", tone="dim")
        code = 0
        while (line := self._read()) is not None:
            if not line:
                continue
            try:
                if line in ("/quit", "/exit"):
                    break
                code = self._command(line) if line.startswith("/") else self._ask(line)
            except CrewlineError as error:
                code = self._out.fail(error)
            if code and not self._out.settings.interactive:
                return code
        if self._conversation is not None:
            self._out.say(f"go on with it: crewline chat --conv {self._conversation}", tone="dim")
        return 0 if self._out.settings.interactive else code

    def _read(self) -> str | None:
        """Return the next line, or None at the end. Ctrl-C takes the line back; on an empty line it leaves."""
        try:
            if not self._out.settings.interactive:
                line = sys.stdin.readline()
                return line.strip() if line else None
            return input("you › ").strip()
        except EOFError:
            self._out.insist("")
            return None
        except KeyboardInterrupt:
            self._out.insist("")
            return None

    def _ask(self, line: str, intent: str | None = None) -> int:
        """Ask, or follow an earlier intent again: a repeated one is the same intent."""
        handle = self._session.background.run(
            self._session.client.publish(
                line, agent=self._agent, user=self._user, conversation=self._conversation, intent=intent
            )
        )
        self._conversation = handle.conversation
        asking = Asking(self._session, self._out, self._holds, streams=not self._out.settings.json)
        ended = asking.follow(handle)
        self._left = None if ended.event is not None else (line, handle.intent)
        if ended.event is not None and ended.event.status != "done":
            reason = ended.event.reason
            self._out.say_error(
                reason.code if reason else ended.status, reason.say if reason else f"the turn {ended.status}",
                f"crewline runs show {handle.intent}{self._session.reach}",
            )
        elif ended.event is not None and intent is None:
            self._out.say(asking.closing(ended), tone="dim")
        return ended.code

    def _command(self, line: str) -> int:
        name, _, rest = line.partition(" ")
        if name == "/help":
            self._out.insist(HELP)
        elif name == "/approve":
            return self._decide(rest.strip(), None)
        elif name == "/deny":
            return self._decide("", rest.strip())
        elif name == "/stop":
            self._stop()
        else:
            self._out.say_error("usage", f"there is no {name}", "/help")
        return 0

    def _decide(self, call: str, denied_because: str | None) -> int:
        """Decide a call that this conversation waits for, then follow what was left."""
        call = call or self._waiting()
        if denied_because is not None:
            decided = self._decider.decide(call, "deny", denied_because)
        elif self._out.settings.interactive:
            decided = self._decider.ask(call, lambda: False)
        else:
            decided = self._decider.decide(call, "approve")
        return self._ask(*self._left) if decided and self._left is not None else 0

    def _waiting(self) -> str:
        """Return the oldest held call of this conversation's runs. Raises: NotFound."""
        client, run = self._session.client, self._session.background.run
        turns = run(client.projection()).turns.values()
        ours = {turn.run for turn in turns if turn.conversation == self._conversation}
        for each in run(client.open_calls()):
            if each.call.status == "held" and each.run in ours:
                return each.id
        raise NotFound("nothing of this conversation waits for a decision", hint="crewline approvals list")

    def _stop(self) -> None:
        if self._conversation is None:
            raise NotFound("nothing has been asked yet", hint="write a message first")
        self._session.background.run(self._session.client.cancel(self._conversation, by=self._holds.by))
        self._out.say("asked to stop", tone="dim")


def _last(session: Session) -> str | None:
    projection = session.background.run(session.client.projection())
    turns = [turn for turn in projection.turns.values() if not turn.delegated]
    return max(turns, key=lambda turn: turn.started_ms).conversation if turns else None


class _history:
    """Line editing with a history file, where Python has readline."""

    def __init__(self, file: Path, *, on: bool) -> None:
        self._file = file
        self._on = on

    def __enter__(self) -> None:
        if not self._on:
            return
        try:
            import readline
        except ImportError:
            self._on = False
            return
        with suppress(OSError):  # none yet
            readline.read_history_file(self._file)
        readline.set_history_length(1_000)

    def __exit__(self, *_: object) -> None:
        if self._on:
            import readline

            with suppress(OSError):  # a read-only folder: no history
                readline.write_history_file(self._file)
