"""The log on Apache Kafka: what `Bus` promises, over aiokafka. Nothing here is imported before `open_bus` is called.

kafka.py           open_bus: the address, the options, the probe, then the bus
kafka_options.py   KafkaOptions: every setting, once, with its reason
kafka_probe.py     is there a broker, may we in, can we reach what it advertises: an answer within 3 s
kafka_wire.py      single requests and their errors in our words: metadata, offsets, a fetch without waiting
kafka_admin.py     topics with the right settings, or each difference; the lag of every group
kafka_bus.py       KafkaBus, put together from these and from
kafka_producer.py  appending: order, deadlines, a new producer after any failure
kafka_reader.py    fetching, buffering and sharing out fairly: tails
kafka_consumer.py  members of groups: callbacks from within `poll`, a clean leave
kafka_sharing.py   who gets which partition: sticky, and given only after its owner has let go
kafka_logs.py      aiokafka's log, each line at most once in a while
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from crewline.bus.kafka_options import KafkaOptions, parse_address
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.bus.kafka_bus import KafkaBus


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
    from crewline.bus.kafka_bus import KafkaBus
    from crewline.bus.kafka_logs import limit_logs
    from crewline.bus.kafka_probe import probe

    assert aiokafka and cramjam
    limit_logs()
    options = replace(options, servers=servers) if options is not None else KafkaOptions(servers)
    await probe(options)
    bus = KafkaBus(options)
    try:
        await bus.open()
    except BaseException:
        await bus.close()
        raise
    return bus
