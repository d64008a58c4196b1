"""The way to one Redis: opened with checks, bounded in time, and said clearly when it is not there.

A store is a cache, and the roles work on without it. So while Redis is away calls fail at once, one task looks
whether it is back, and the log says both, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crewline.errors import StoreError

from crewline_memory.redis_scripts import Script

try:
    import redis.asyncio as aio
    from redis import exceptions
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:  # `redis` is an extra
    raise StoreError("the Redis store needs the package redis; install it: pip install 'crewline[redis]'") from error

log = logging.getLogger(__name__)

CONNECT_S = 2.5
CALL_S = 2.5  # of a small call; a large one gets more by its size
BYTES_PER_S = 4_000_000  # a slow network's
PROBE_S_MIN, PROBE_S_MAX = 0.1, 2.0
PORT = 6379

T = TypeVar("T")
Value = str | bytes | int


class RedisLink:
    """Scripts run on one Redis. Made by `open_link`.

    `name` is `Redis at HOST:PORT`: no message holds the URL, which may have a password in it.
    """

    def __init__(self, name: str, client: aio.Redis | RedisCluster, *, tls: bool = False) -> None:
        self.name = name
        self.tls = tls
        self._client = client
        self._away: StoreError | None = None
        self._probing: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Value] = (), *, size: int = 0) -> Any:
        """Run a script, twice if the first connection was found dead: it must bear that.

        Args:
            size: how many bytes are sent, about; the call's time is bounded by it.

        Raises: StoreError that names the Redis and what to do.
        """

        async def evaluate() -> Any:
            try:
                return await self._client.evalsha(script.digest, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:  # a new server, or its scripts were flushed
                return await self._client.eval(script.text, len(keys), *keys, *arguments)

        if self._closed:
            raise StoreError(f"the store on {self.name} is closed")
        if self._away is not None:
            raise StoreError(self._away.message)
        try:
            return await self._bounded(evaluate, CALL_S + size / BYTES_PER_S)
        except _Away as error:
            self._lose(error)
            raise StoreError(error.message) from error

    async def check(self) -> dict[str, Any]:
        """Look whether this Redis can be used; return what it says of itself. Raises: StoreError."""
        client = self._client
        if isinstance(client, RedisCluster):
            by_node = await self._bounded(lambda: client.info(target_nodes=RedisCluster.PRIMARIES), CALL_S)
            nodes = list(by_node.values()) if "redis_version" not in by_node else [by_node]
        else:
            nodes = [await self._bounded(client.info, CALL_S)]
        for said in nodes:
            if said.get("role") == "slave" and said.get("redis_mode") != "cluster":
                raise _Away(f"{self.name} is a read-only replica; give the primary's address")
            if (policy := said.get("maxmemory_policy", "noeviction")) != "noeviction":
                raise _Away(
                    f"{self.name} may throw away what is stored (maxmemory-policy is {policy}); set "
                    "`maxmemory-policy noeviction`, or use another Redis"
                )
        return nodes[0]

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._probing is not None:
                self._probing.cancel()
                await asyncio.gather(self._probing, return_exceptions=True)
            await self._client.aclose()

    async def _bounded(self, call: Callable[[], Awaitable[T]], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError) as error:
            raise self._translated(error, seconds) from error

    def _translated(self, error: Exception, seconds: float) -> StoreError:
        """Return what a person can use of what redis-py says."""
        name, causes = self.name, _chain(error)
        for cause in causes:
            if isinstance(cause, ssl.SSLError):
                why = getattr(cause, "verify_message", "") or cause.reason or cause
                return _Away(f"{name}: no TLS ({why}); say which CA to trust: rediss://…?ssl_ca_certs=FILE; redis:// if it has no TLS")
            if isinstance(cause, FileNotFoundError):
                return _Away(f"{name}: a file that the URL names is not there ({cause.filename or cause})")
        if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
            return _Away(f"{name} lets us in with another user or password only ({error}); put them into the URL")
        if isinstance(error, exceptions.BusyLoadingError):
            return _Away(f"{name} is still loading its data; it will answer when it is done")
        if isinstance(error, exceptions.ReadOnlyError):
            return _Away(f"{name} is a read-only replica; give the primary's address. Nothing was written")
        if isinstance(error, exceptions.OutOfMemoryError):
            return StoreError(f"{name} is out of memory; raise `maxmemory` or remove data. Nothing was written")
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            tls = ", or does it speak no TLS" if self.tls else ""
            return _Away(f"{name} did not answer within {seconds:.1f} s; is it stopped, overloaded, behind a firewall{tls}?")
        if isinstance(error, exceptions.ClusterDownError | exceptions.RedisClusterException):
            return _Away(f"{name}: its cluster does not serve every key ({error}); see `redis-cli --cluster check`")
        if isinstance(error, exceptions.ConnectionError | OSError):
            numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
            reason = os.strerror(numbers[-1]) if numbers and numbers[-1] > 0 else error
            return _Away(f"{name} cannot be reached ({reason}); check that it runs, host, port, and whether it speaks TLS")
        return StoreError(f"{name} refused: {error}")

    # --- away and back -------------------------------------------------------------------------

    def _lose(self, error: StoreError) -> None:
        self._away = error
        if not self._closed and (self._probing is None or self._probing.done()):
            log.warning("%s. Working on without it: restarts and conversations not in memory are slower, or wait", error)
            self._probing = asyncio.create_task(self._probe(), name="redis-probe")

    async def _probe(self) -> None:
        pause_s = PROBE_S_MIN
        while self._away is not None:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PROBE_S_MAX)
            try:
                await self.check()
            except StoreError as error:
                self._away = error
            else:
                self._away = None
        log.warning("%s answers again", self.name)


class _Away(StoreError):
    """This Redis cannot be used now; the next call would only find out again."""


async def open_link(url: str) -> RedisLink:
    """Connect to the Redis at `redis://[USER:PASSWORD@]HOST[:PORT][/DB]` (TLS: `rediss://`), and check it.

    What else redis-py takes in a URL (`?ssl_ca_certs=FILE`) may stand in it. A cluster is found by any of its nodes.
    Raises: StoreError: not a URL, not there, not let in, a replica, or one that evicts. Within about 3 s.
    """
    try:
        parts = urlsplit(url)
        name, tls = f"Redis at {parts.hostname or 'localhost'}:{parts.port or PORT}", parts.scheme == "rediss"
        client = aio.Redis.from_url(url, **_OPTIONS, retry=_retry(1))
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # not connected: an option that there is not is said here
    except (ValueError, TypeError) as error:
        raise StoreError(
            "the Redis URL is not understood; expected redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// for TLS"
        ) from error
    link = RedisLink(name, client, tls=tls)
    said = await _checked(link)
    if said.get("redis_mode") == "cluster":
        await link.close()
        link = RedisLink(name, RedisCluster.from_url(url, **_OPTIONS, retry=_retry(3)), tls=tls)
        await _checked(link)
    return link


_OPTIONS: dict[str, Any] = {"socket_connect_timeout": CONNECT_S, "socket_timeout": None, "protocol": 2}


def _retry(times: int) -> Retry:
    """Return when redis-py is to try again by itself: at once, with a new connection. All else is for the callers."""
    return Retry(NoBackoff(), times, supported_errors=(exceptions.ConnectionError,))


async def _checked(link: RedisLink) -> dict[str, Any]:
    """Return what the Redis says of itself; close the link if it cannot be used."""
    try:
        return await link.check()
    except BaseException as error:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            await link.close()
        if isinstance(error, _Away):
            raise StoreError(error.message) from error.__cause__
        raise


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
