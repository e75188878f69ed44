"""Builds a stream again from its events and compares, in bounded memory."""

from typing import Final

from mypy_extensions import i64

from savevm.sink import Sink
from savevm.stream.events import BodyEnd, DiskWord, Event, PageRun, RamChunk, RecordBody
from savevm.stream.reader import Reader
from savevm.stream.writer import Writer
from savevm_spec.constants import (
    BLOCK_DEVICE,
    BLOCK_SECTOR_BITS,
    BLOCK_SIZE,
    RAM_V2_BLOCK_SIZE,
)

__all__ = ["Rebuilder"]


_FLAGS: Final = (1 << BLOCK_SECTOR_BITS) - 1


class _Contents(Sink):
    """Keeps contents until the event that they belong to comes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        self.data += data[start:end]

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        self.data += data[start:end]

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        self.data += data[start:end]

    def take(self, size: int) -> bytes:
        piece = bytes(self.data[:size])
        del self.data[:size]
        return piece


class Rebuilder:
    """Writes what a reader reads."""

    def __init__(self) -> None:
        self.sink = _Contents()
        self._writer = Writer()
        self._record_length = 0

    def write(self, events: list[Event], reader: Reader) -> bytes:
        """Bytes of ``events``, which ``reader`` (with this object's ``sink``) has returned."""
        self._writer.set_page_size(reader.page_size or 0)
        return b"".join([self._writer.write(event, self._contents(event)) for event in events])

    def _contents(self, event: Event) -> bytes:
        match event:
            case PageRun() if event.fill < 0:
                return self.sink.take(event.count * self._writer.page_size)
            case RamChunk():
                # The writer repeats the chunk itself.
                self.sink.take(event.blocks * RAM_V2_BLOCK_SIZE)
            case DiskWord() if event.word & _FLAGS == BLOCK_DEVICE:
                return self.sink.take(BLOCK_SIZE)
            case RecordBody():
                self._record_length = event.length
            case BodyEnd() if self._record_length:
                length, self._record_length = self._record_length, 0
                return self.sink.take(length)
        return b""
