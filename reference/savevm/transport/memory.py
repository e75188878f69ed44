"""Bytes in memory."""

from collections.abc import Sequence

from savevm.channel import Data, Operations

__all__ = ["MemoryInput", "MemoryOutput"]


class MemoryInput(Operations):
    """Reads ``data``, at any position."""

    seekable = True

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        some = self._data[position : position + len(buffer)]
        buffer[: len(some)] = some
        return len(some)

    def get_bytes(self, size: int, position: int) -> bytes | int:
        """At most ``size`` bytes, b"" at the end."""
        return bytes(self._data[position : position + size])


class MemoryOutput(Operations):
    """Writes into ``data``, at any position; a gap that this leaves is zeros."""

    seekable = True

    def __init__(self) -> None:
        self.data = bytearray()

    def put_buffer(self, data: memoryview, position: int) -> int:
        if position > len(self.data):
            self.data.extend(bytes(position - len(self.data)))
        self.data[position : position + len(data)] = data
        return len(data)

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """As ``put_buffer``, of what lies in several places."""
        return self.put_buffer(memoryview(b"".join(buffers)), position)
