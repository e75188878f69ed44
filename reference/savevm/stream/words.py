"""The words of page records, made for many pages at once."""

import struct

from mypy_extensions import i64

__all__ = ["PageWords"]


class PageWords:
    """The words address | ``flags``, each with ``tail`` behind it, of an aligned group of pages.

    Groups are of 16 MiB (64 KiB where pages are below 1 KiB), so that within one only the low
    bytes of the words differ, and between two only the others.
    """

    def __init__(self, page_size: i64, flags: i64, tail: bytes) -> None:
        self.page_size = page_size
        self.stride: i64 = 8 + len(tail)
        self._bytes: i64 = 1 << 24 if page_size >= 1024 else 1 << 16
        self._columns: i64 = 5 if page_size >= 1024 else 6
        self.count: i64 = self._bytes // page_size
        size = int(self.count)
        packed = struct.pack(f">{size}Q", *range(int(flags), size * int(page_size), int(page_size)))
        self._records = bytearray((bytes(8) + tail) * size)
        for column in range(8):
            self._records[column :: int(self.stride)] = packed[column::8]

    def index(self, address: i64) -> i64:
        """Which record of its group is that of the page at ``address``."""
        return (address & (self._bytes - 1)) // self.page_size

    def records(self, address: i64) -> memoryview:
        """The records of the group of ``address``; they change with the next call."""
        high = int(address).to_bytes(8, "big")
        for column in range(int(self._columns)):
            if self._records[column] != high[column]:
                stride = int(self.stride)
                self._records[column::stride] = high[column : column + 1] * int(self.count)
        return memoryview(self._records)
