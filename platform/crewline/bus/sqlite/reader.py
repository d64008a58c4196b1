"""Reading records from the file."""

from __future__ import annotations

from typing import NamedTuple

import apsw

from crewline.bus.base import Batch, Record
from crewline.bus.sqlite.catalog import Partition
from crewline.bus.sqlite.file import decode_headers, fetch
from crewline.errors import OffsetOutOfRange

READ_BYTES_MAX = 8 << 20  # of one batch; at least one record comes whatever its size

# Two statements of one row each, whatever the number of records: every step of a statement lets go of the
# interpreter lock, and a thread gets it back from a busy event loop only after 5 ms. Measured, 500 records
# beside a busy loop: 1.8 s row by row, 0.02 s this way. Casts between BLOB and TEXT keep the bytes.
_SIZES = (
    "SELECT begin_offset, end_offset, count(offset), group_concat(offset), group_concat(ms), group_concat(length(key)),"
    " group_concat(ifnull(length(value), -1)), group_concat(length(headers)) FROM partitions LEFT JOIN"
    " (SELECT * FROM records_{id} WHERE offset >= ? ORDER BY offset LIMIT ?) ON true WHERE id = ?"
)
_BYTES = (
    "SELECT CAST(group_concat(CAST(key AS TEXT), '') AS BLOB), CAST(group_concat(CAST(value AS TEXT), '') AS BLOB),"
    " CAST(group_concat(CAST(headers AS TEXT), '') AS BLOB)"
    " FROM (SELECT key, value, headers FROM records_{id} WHERE offset BETWEEN ? AND ? ORDER BY offset)"
)


class Wanted(NamedTuple):
    """What to read: up to `records_max` records of `partition` from `start` on."""

    partition: Partition
    start: int
    records_max: int


def out_of_range(partition: Partition, start: int, begin: int, end: int) -> OffsetOutOfRange:
    """Return the error that says which offsets there are."""
    return OffsetOutOfRange(
        f"{partition.topic.name} partition {partition.number} has offsets {begin} to {end}, not {start}: "
        + ("older records are gone (retention)" if start < begin else "is this the log that was read before?")
    )


def read_batches(connection: apsw.Connection, wanted: list[Wanted]) -> list[Batch]:
    """Return one batch for each of `wanted`, all as of the same moment. Raises: OffsetOutOfRange."""
    connection.execute("BEGIN")
    try:
        return [_read(connection, *want) for want in wanted]
    finally:
        connection.execute("COMMIT")


def _read(connection: apsw.Connection, partition: Partition, start: int, records_max: int) -> Batch:
    begin, end, count, offsets, times, keys, values, headers = fetch(
        connection, _SIZES.format(id=partition.id), (start, records_max, partition.id)
    )[0]
    if not begin <= start <= end:
        raise out_of_range(partition, start, begin, end)
    topic, number = partition.topic.name, partition.number
    if count == 0:
        return Batch(topic, number, (), end, end)
    offset_list, key_sizes, value_sizes, header_sizes = (
        [int(text) for text in joined.split(",")] for joined in (offsets, keys, values, headers)
    )
    total = 0
    for index, size in enumerate(value_sizes):
        total += size
        if total > READ_BYTES_MAX and index:
            del offset_list[index:]
            break
    key_bytes, value_bytes, header_bytes = fetch(connection, _BYTES.format(id=partition.id), (offset_list[0], offset_list[-1]))[0]
    records = []
    key_at = value_at = header_at = 0
    for offset, ms, key_size, value_size, header_size in zip(
        offset_list, times.split(","), key_sizes, value_sizes, header_sizes, strict=False
    ):
        value = None
        if value_size >= 0:
            value = value_bytes[value_at : value_at + value_size]
            value_at += value_size
        records.append(
            Record(
                topic,
                number,
                offset,
                int(ms),
                key_bytes[key_at : key_at + key_size],
                value,
                decode_headers(header_bytes[header_at : header_at + header_size]),
            )
        )
        key_at += key_size
        header_at += header_size
    complete = len(records) == count < records_max
    return Batch(topic, number, records, end if complete else records[-1].offset + 1, end)
