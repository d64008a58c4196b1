"""Is there a broker, may we in, can we reach what it advertises? Asked before anything else is opened."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.errors import BusUnavailable

log = logging.getLogger(__name__)


async def probe(options: KafkaOptions) -> None:
    """Return if a broker answers and one of those it names can be reached.

    Raises: BusUnavailable within `connect_s_max` (and a moment), naming host, port and what was tried.
    """
    until = asyncio.get_running_loop().time() + options.connect_s_max
    answers = await _ask_all(options.servers, options, until)
    advertised = {address for answer in answers if not isinstance(answer, str) for address in answer}
    if not advertised:
        raise BusUnavailable(
            f"no Kafka broker answered within {options.connect_s_max:g} s (tried {options.tried}): "
            + "; ".join(f"{server}: {answer}" for server, answer in zip(options.servers, answers, strict=True)),
            hint="is it running, is this its listener, and is that the listener's security?",
        )
    others = sorted(advertised - {server for server, answer in zip(options.servers, answers, strict=True)
                                  if not isinstance(answer, str)})  # fmt: skip
    reached = len(advertised) - len(others)
    answers = await _ask_all(others, options, until + 0.3)
    problems = [f"{address}: {answer}" for address, answer in zip(others, answers, strict=True) if isinstance(answer, str)]
    if problems and reached + len(others) == len(problems):
        raise BusUnavailable(
            f"the Kafka broker at {', '.join(options.servers)} answers, but the addresses it advertises do not "
            f"(tried {options.tried}): {'; '.join(problems)}",
            hint="set `advertised.listeners` of the broker to what this host can reach",
        )
    if problems:
        log.warning("some Kafka brokers cannot be reached from here: %s", "; ".join(problems))


async def _ask_all(servers: Sequence[str], options: KafkaOptions, until: float) -> list[list[str] | str]:
    """Ask each of `servers`; return, for each, the addresses it advertises or what went wrong."""
    return list(await asyncio.gather(*(_ask(server, options, until) for server in servers)))


async def _ask(server: str, options: KafkaOptions, until: float) -> list[str] | str:
    host, _, port = server.rpartition(":")
    left_s = max(0.1, until - asyncio.get_running_loop().time())
    conn: Any = None
    try:
        async with asyncio.timeout(left_s):
            conn = await create_conn(
                host.strip("[]"), int(port), request_timeout_ms=ms(left_s), **options.connection()
            )
            answer = await conn.send(MetadataRequest([], allow_auto_topic_creation=False))
        return [f"{broker[1]}:{broker[2]}" for broker in answer.brokers]
    except TimeoutError:
        return "no answer"
    except (OSError, KafkaError) as error:
        return _why(error)
    finally:
        if conn is not None:
            conn.close()


def _why(error: BaseException) -> str:
    """Return the innermost cause in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
