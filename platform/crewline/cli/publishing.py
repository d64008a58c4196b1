"""`crewline topics publish`: records for a topic of the outside world, as whoever writes it would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline.cli.output import Output

STDIN = "-"
_BATCH = 500


async def publish(out: Output, topic: str, value: str, key: str) -> None:
    """Append one JSON value, or (`-`) each line of standard input, to `topic` under `key`; say where they stand.

    Raises: UsageError for text that is not JSON, with its line: nothing of that line's batch is written.
    """
    from crewline.bus.base import Message
    from crewline.cli.state import open_log

    lines = enumerate(sys.stdin, 1) if value == STDIN else iter([(1, value)])
    count = 0
    async with open_log(out.settings) as bus:
        await bus.partitions(topic)  # a wrong name is said before a line is read
        for batch in _batches(lines):
            positions = await bus.append([Message(topic, key.encode(), each) for each in batch])
            count += len(positions)
            if out.settings.json:
                for at in positions:
                    out.document({"topic": at.topic, "partition": at.partition, "offset": at.offset})
    if not out.settings.json:
        out.say(f"{count} record{'s' if count != 1 else ''} on {topic}")


def _batches(lines: Iterator[tuple[int, str]]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for number, line in lines:
        if line.strip():
            batch.append(_checked(line, number))
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _checked(line: str, number: int) -> bytes:
    import msgspec

    text = line.strip().encode()
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"line {number} is not JSON: {error}", hint="""quote it for your shell: '{"card_id": "c-17"}'""") from None
    return text
