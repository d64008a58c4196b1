"""A bus by its address, and the keys that go with it. Each backend is imported when its address is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crewline.bus.base import Bus
from crewline.errors import UsageError
from crewline.seal import Keyring, load_keys

if TYPE_CHECKING:
    from crewline.bus.kafka.options import KafkaOptions

EMBEDDED = "embedded:"
KAFKA = "kafka://"


async def open_address(address: str, options: KafkaOptions | None = None) -> Bus:
    """Open the bus at `embedded:DIR` or `kafka://HOST:PORT[,HOST:PORT]`.

    `options` says how to get in at Kafka's (its servers are replaced by the address's); default: plaintext.
    Raises: UsageError for another address; what the bus's own `open_bus` raises.
    """
    if address.startswith(EMBEDDED) and address != EMBEDDED:
        from crewline.bus.sqlite import open_bus

        return await open_bus(Path(address.removeprefix(EMBEDDED)))
    if address.startswith(KAFKA):
        from crewline.bus.kafka import open_bus as open_kafka

        return await open_kafka(address, options)
    raise UsageError(f"bus address {address!r}: expected embedded:DIR or kafka://HOST:PORT[,HOST:PORT]")


def load_keyring(bus: Bus | str, keys: Keyring | Path | None) -> Keyring:
    """Return the keyring for a bus: the one given, or that of the embedded log's folder. Raises: UsageError."""
    if isinstance(keys, Keyring):
        return keys
    if keys is None:
        address = bus if isinstance(bus, str) else bus.address
        if not address.startswith(EMBEDDED):
            raise UsageError("give the keys folder: `keys=Path(…)` (made by `crewline keys init`)")
        keys = Path(address.removeprefix(EMBEDDED)) / "keys"
    return load_keys(keys)
