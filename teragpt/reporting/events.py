"""TensorBoard's event files, one an attempt: `tensorboard --logdir runs` shows every run below that folder.

The format is a record of length, checksums and an Event message (tensorflow/core/lib/io/record_writer.h, event.proto),
unchanged since 2015. Why not a library: the writers there are load cloud stores and image codecs, seconds of every
start, for these few fields. It must not know what the numbers mean.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache

from teragpt.storage import Folder

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed
MASK = 0xA282EAD8  # TFRecord's, added to a checksum
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
START = 1  # SessionLog.SessionStatus


class EventFile:
    """The event file of one attempt, the `tracker` that a run always has."""

    def __init__(self, folder: Folder, attempt: int) -> None:
        self.log = folder.log(f"events.out.tfevents.{attempt:06d}", attempt)  # readers go by the order of names
        self.last: dict[str, int] = {}
        self.log.add(record(field(3, BYTES, b"brain.Event:2")))

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Add scalars. What an earlier attempt, or this one before a rewind, told of this step and later is void."""
        head = field(1, FIXED64, struct.pack("<d", time)) + field(2, VARINT, varint(step))
        if not self.last or any(step <= self.last.get(name, -1) for name in values):
            self.log.add(record(head + field(7, BYTES, field(1, VARINT, varint(START)))))
        self.last |= dict.fromkeys(values, step)
        told = b"".join(field(1, BYTES, scalar(name, value)) for name, value in values.items())
        self.log.add(record(head + field(5, BYTES, told)))

    def publish(self) -> None:
        """Put the file where others read it, if it is not there. Raises OSError."""
        self.log.publish()

    def close(self, *, whole: bool) -> None:
        """Add no more, whether or not the run is `whole`. Raises OSError."""
        del whole
        self.log.publish()
        self.log.close()


def scalar(name: str, value: float) -> bytes:
    """A Summary.Value."""
    return field(1, BYTES, name.encode()) + field(2, FIXED32, struct.pack("<f", value))


def field(number: int, kind: int, content: bytes) -> bytes:
    """A field of a protobuf message."""
    return varint(number << 3 | kind) + (varint(len(content)) if kind == BYTES else b"") + content


def varint(number: int) -> bytes:
    """A number from 0 on, seven bits a byte, the least first."""
    more, rest = divmod(number, 128)
    return bytes([rest | 128]) + varint(more) if more else bytes([rest])


def record(event: bytes) -> bytes:
    """A record, which readers tell from one that was cut off."""
    length = struct.pack("<Q", len(event))
    return length + checksum(length) + event + checksum(event)


def checksum(content: bytes) -> bytes:
    """The masked CRC-32C."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


@cache
def table() -> list[int]:
    """What each byte adds to a CRC-32C."""
    found = list(range(256))
    for _ in range(8):
        found = [crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0) for crc in found]
    return found
