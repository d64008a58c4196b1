"""`open_bus`: the address, the options, the probe, then the bus. aiokafka is not imported before it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from crewline.bus.kafka.options import KafkaOptions, parse_address
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.bus.kafka.bus import KafkaBus


async def open_bus(address: str, options: KafkaOptions | None = None) -> KafkaBus:
    """Open the bus at `kafka://HOST:PORT[,HOST:PORT]`; `options` says the rest (its servers are replaced).

    Raises: UsageError for a malformed address, or if aiokafka is not installed; BusUnavailable within
    3 s if there is no broker, no entry, or no way to what the broker advertises.
    """
    servers = parse_address(address)
    try:
        import aiokafka
        import cramjam
    except ImportError as error:
        raise UsageError(
            f"{address}: Kafka needs a package that is not installed ({error.name})", hint="pip install 'crewline[kafka]'"
        ) from None
    from crewline.bus.kafka.bus import KafkaBus
    from crewline.bus.kafka.logs import limit_logs
    from crewline.bus.kafka.probe import probe
    from crewline.bus.kafka.security import hide_secrets_in_logs

    assert aiokafka and cramjam
    limit_logs()
    hide_secrets_in_logs()
    options = replace(options, servers=servers) if options is not None else KafkaOptions(servers)
    await probe(options)
    bus = KafkaBus(options)
    try:
        await bus.open()
    except BaseException:
        await bus.close()
        raise
    return bus
