"""Real servers for tests: redis-server and Kafka, each kept by a shell that ends it when we do.

The shell waits for the end of its standard input, which is ours: closed on purpose, by an interrupt, or
because pytest was killed. So no server is left behind, whatever ends the tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 10.0
LOOK_S = 0.01

# A child that nobody waited for keeps its pid: the kill at the end can hit no stranger.
_REDIS = 'cd "$1"; shift; redis-server "$@" >>redis.log 2>&1 & echo $!; cat >/dev/null; kill -9 $! 2>/dev/null; wait'
_KAFKA = (
    'scripts/kafka start --brokers "$2" --port "$3" --dir "$1" $4 2>"$1/start.log" && cat >/dev/null; '
    'scripts/kafka stop --dir "$1"; rm -rf "$1"/data-*'
)


class ServerAbsent(Exception):
    """A server that the tests need is not installed or does not start. The message says what to do."""


def _comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds, for `START_S` at most; return whether it does."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


class RedisServer:
    """A redis-server on a port of its own, that a test may stop, kill and start again.

    Args:
        directory: its folder (log, and data if `options` ask for any).
        options: more of redis-server's, as on its command line.
    """

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.options = options
        self._keeper: subprocess.Popen[str] | None = None
        self.pid = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> RedisServer:
        """Start it; return when it answers. Raises: ServerAbsent."""
        if shutil.which("redis-server") is None:
            raise ServerAbsent("redis-server is needed for these tests (Debian: apt-get install redis-server)")
        self.directory.mkdir(parents=True, exist_ok=True)
        server = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *self.options)
        self._keeper = _keep(_REDIS, str(self.directory), *server)
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline())
        if not _comes_true(lambda: self._answers() or not self.runs()) or not self.runs():
            log = (self.directory / "redis.log").read_text()[-2_000:]
            self.kill()
            raise ServerAbsent(f"redis-server does not answer on port {self.port}:\n{log}")
        return self

    def runs(self) -> bool:
        """Whether the process is there: not ended, not a zombie that its keeper has yet to bury."""
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal (SIGTERM: it saves, if it saves at all, and ends; SIGSTOP, SIGCONT)."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """End it as an administrator would; return when it is gone."""
        self.signal(signal.SIGTERM)
        assert _comes_true(lambda: not self.runs()), f"redis-server {self.pid} does not end"
        self.kill()

    def kill(self) -> None:
        """End it with SIGKILL; return when it is gone. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            _let_go(keeper)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-LOADING"))
        return False


class KafkaServer:
    """Brokers started by scripts/kafka in `directory`, on ports of their own. Raises: ServerAbsent at `start`.

    With `secure` nobody gets in without signing in: scripts/kafka-secure says who may, and where.
    """

    def __init__(self, directory: Path, *, brokers: int = 1, secure: bool = False) -> None:
        self.directory = directory
        self.brokers = brokers
        self.secure = secure
        self.port = free_port(span=10 * brokers)
        self._keeper: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> KafkaServer:
        """Start them; return when every broker answers a metadata request. Fetches Kafka the first time."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keeper = _keep(
            _KAFKA, str(self.directory), str(self.brokers), str(self.port), "--secure" if self.secure else ""
        )
        assert self._keeper.stdout is not None
        servers = self._keeper.stdout.readline().strip()
        if not servers:
            self.stop()
            said = (self.directory / "start.log").read_text().strip()
            raise ServerAbsent(f"Kafka is needed for these tests and does not start (scripts/kafka start):\n{said}")
        self.address = f"kafka://{servers}"
        return self

    def stop(self) -> None:
        """End the brokers and remove what they stored. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            _let_go(keeper)


def free_port(*, span: int = 2) -> int:
    """Return a port such that it and the `span` - 1 after it are free: below those that outgoing connections get."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        if all(_is_free(each) for each in range(port, port + span)):
            return port
    raise ServerAbsent("no free port found between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _keep(script: str, *arguments: str) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C is for pytest, which then closes the pipe.
    return subprocess.Popen(
        ["bash", "-c", script, "keeper", *arguments], cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )


def _let_go(keeper: subprocess.Popen[str]) -> None:
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
