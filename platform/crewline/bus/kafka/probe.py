"""Is there a broker, may we in, can we reach what it advertises? Asked before anything else is opened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import SaslAuthenticationFailed
from aiokafka.protocol.metadata import MetadataRequest

from crewline.bus.kafka.listeners import closed, look_at
from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.bus.kafka.refusals import Refusal, refusal
from crewline.errors import BusUnavailable

log = logging.getLogger(__name__)

LOOK_AFTER_S = 1.0  # who says nothing for so long may speak another protocol: look while we wait on


async def probe(options: KafkaOptions) -> None:
    """Return if a broker answers and one of those it names can be reached.

    Raises: BusUnavailable within `connect_s_max` (and a moment), naming host, port, what was tried and what to do.
    """
    until = asyncio.get_running_loop().time() + options.connect_s_max
    answers = await _ask_all(options.servers, options, until)
    advertised = {address for answer in answers if not isinstance(answer, Refusal) for address in answer}
    refused = {server: answer for server, answer in zip(options.servers, answers, strict=True) if isinstance(answer, Refusal)}
    if not advertised:
        raise BusUnavailable(f"no way into Kafka (tried {options.tried}): {_listed(refused)}", hint=_hint(refused))
    others = sorted(advertised - (set(options.servers) - refused.keys()))
    answers = await _ask_all(others, options, until + 0.3)
    problems = {server: answer for server, answer in zip(others, answers, strict=True) if isinstance(answer, Refusal)}
    if len(problems) == len(advertised):
        raise BusUnavailable(
            f"the Kafka broker at {', '.join(options.servers)} answers, but the addresses it advertises do not "
            f"(tried {options.tried}): {_listed(problems)}",
            hint="set `advertised.listeners` of the broker to what this host can reach",
        )
    if problems:
        log.warning("some Kafka brokers cannot be reached from here: %s", _listed(problems))


def _listed(refused: dict[str, Refusal]) -> str:
    return "; ".join(f"{server}: {each.say}" for server, each in refused.items())


def _hint(refused: dict[str, Refusal]) -> str:
    return "; ".join(dict.fromkeys(each.hint for each in refused.values()))


async def _ask_all(servers: Sequence[str], options: KafkaOptions, until: float) -> list[list[str] | Refusal]:
    """Ask each of `servers`; return, for each, the addresses it advertises or why not."""
    return list(await asyncio.gather(*(_ask(server, options, until) for server in servers)))


async def _ask(server: str, options: KafkaOptions, until: float) -> list[str] | Refusal:
    host, _, port = server.rpartition(":")
    left_s = max(0.1, until - asyncio.get_running_loop().time())
    asking = asyncio.create_task(_metadata(host.strip("[]"), int(port), options, left_s))
    looking: asyncio.Task[Any] | None = None
    try:
        done, _ = await asyncio.wait({asking}, timeout=min(LOOK_AFTER_S, left_s))
        if done and asking.exception() is None:
            return asking.result()
        looking = asyncio.create_task(look_at(host.strip("[]"), int(port), until))
        try:
            return await asking
        except Exception as error:  # whatever the client makes of what it meets there, it is no way in
            return refusal(error, options, await looking)
    finally:
        tasks = [task for task in (asking, looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # they have sockets to close


async def _metadata(host: str, port: int, options: KafkaOptions, left_s: float) -> list[str]:
    """Sign in and ask which brokers there are, again while there are none; return their addresses."""
    conn = AIOKafkaConnection(host, port, request_timeout_ms=ms(left_s), **options.connection())
    answered = False
    try:
        async with asyncio.timeout(left_s):
            await conn.connect()
            while not (brokers := (await conn.send(MetadataRequest([], allow_auto_topic_creation=False))).brokers):
                if options.signs_in_by_token:  # so ends one that was not taken: aiokafka does not read why
                    raise SaslAuthenticationFailed()
                answered = True
                await asyncio.sleep(options.retry_s)
        return [f"{broker[1]}:{broker[2]}" for broker in brokers]
    except TimeoutError:
        if answered:
            raise BusUnavailable(
                "the broker is starting, or fenced: it names no broker", hint="try again in a moment, or see the broker's log"
            ) from None
        raise
    finally:
        await closed(conn)
