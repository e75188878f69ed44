"""Builds a stream again from its events and compares, in bounded memory."""

from mypy_extensions import i64

from savevm.sink import Sink
from savevm.stream.events import BodyEnd, Event, PageRun, Section
from savevm.stream.reader import Reader
from savevm.stream.writer import Writer

__all__ = ["Rebuilder"]


class _Contents(Sink):
    """Keeps contents until the event that they belong to comes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        self.data += data[start:end]

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
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
        self._record_length = -1

    def write(self, events: list[Event], reader: Reader) -> bytes:
        """Bytes of ``events``, which ``reader`` (with this object's ``sink``) has returned."""
        page_size = reader.page_size or 0
        self._writer.set_page_size(page_size)
        out = []
        for event in events:
            contents = b""
            if isinstance(event, PageRun) and event.fill < 0:
                contents = self.sink.take(event.count * page_size)
            elif isinstance(event, Section):
                self._record_length = event.body_length
            elif isinstance(event, BodyEnd) and self._record_length > 0:
                contents = self.sink.take(self._record_length)
            out.append(self._writer.write(event, contents))
        return b"".join(out)
