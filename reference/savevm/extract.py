"""RAM blocks, disks, and what is not decoded of the records of versions 1 and 2, into files."""

import os
from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from savevm.sink import Sink
from savevm_spec.constants import BLOCK_SIZE

__all__ = ["BlockFiles"]

# Pages are gathered into one system call, at most this many at a time.
_GATHER: Final = 256
# Written pages are remembered in maps of this many pages each, made when first needed, so that an
# announced but unsent terabyte costs nothing.
_SEGMENT: Final = 4096
_SECTOR_SIZE: Final = 512


class _BlockFile:
    def __init__(self, fd: int, name: str, used_length: int, page_size: int) -> None:
        self.fd = fd
        self.name = name
        self.used_length: i64 = used_length
        self.page_size: i64 = page_size
        # The unit in which is remembered what was written.
        self._unit: i64 = page_size
        self._written: dict[int, bytearray] = {}
        self._pieces: list[memoryview] = []
        self._start: i64 = 0
        self._end: i64 = 0

    def put(self, address: i64, data: memoryview, start: i64, end: i64) -> None:
        if self.fd < 0:
            return
        if address + end - start > self.used_length:
            end = start + self.used_length - address
            if end <= start:
                return
        if not self._pieces or address != self._end or len(self._pieces) >= _GATHER:
            self.flush()
            self._start = address
            self._end = address
        self._pieces.append(data[int(start) : int(end)])
        self._end += end - start

    def flush(self) -> None:
        """Write what has been gathered; raises ``OSError``."""
        pieces = self._pieces
        if not pieces:
            return
        self._mark(self._start, self._end)
        at: i64 = self._start
        while pieces:
            try:
                done: i64 = os.pwritev(self.fd, pieces, int(at))
            except OSError as e:
                self._pieces = []
                raise OSError(e.errno, e.strerror, self.name) from None
            at += done
            if at == self._end:
                break
            # The kernel wrote less than asked: go on behind it.
            pieces = [memoryview(b"".join(pieces))[int(done) :]]
        self._pieces = []

    def _mark(self, start: i64, end: i64) -> None:
        page: i64 = start // self._unit
        last: i64 = (end - 1) // self._unit
        while page <= last:
            segment = self._written.get(int(page // _SEGMENT))
            if segment is None:
                segment = bytearray(_SEGMENT)
                self._written[int(page // _SEGMENT)] = segment
            first: i64 = page % _SEGMENT
            count: i64 = min(_SEGMENT - first, last - page + 1)
            segment[int(first) : int(first + count)] = b"\x01" * int(count)
            page += count

    def fill(self, address: i64, count: i64, byte: i64) -> None:
        self.flush()
        size = self.page_size
        if byte:
            page = memoryview(bytes((int(byte),)) * int(size))
            for i in range(count):
                at: i64 = address + i * size
                self.put(at, page, 0, size)
            self.flush()
            return
        # Never written means a hole: only pages sent before are overwritten with zeros.
        unit = self._unit
        zeros = memoryview(bytes(int(unit)))
        end: i64 = address + count * size
        first: i64 = address // unit
        behind: i64 = (end + unit - 1) // unit
        for number in sorted(self._written):
            segment = self._written[number]
            base: i64 = number * _SEGMENT
            low: i64 = max(first - base, 0)
            high: i64 = min(behind - base, _SEGMENT)
            if low >= high:
                continue
            found: i64 = segment.find(1, int(low), int(high))
            while found >= 0:
                start: i64 = max((base + found) * unit, address)
                self.put(start, zeros, 0, min((base + found + 1) * unit, end) - start)
                found = segment.find(1, int(found) + 1, int(high))
        self.flush()


class _Disk:
    def __init__(self, fd: int, device: str) -> None:
        self.fd = fd
        self.device = device
        self.size = 0

    def write(self, offset: int, data: memoryview) -> None:
        while len(data):
            try:
                done = os.pwrite(self.fd, data, offset)
            except OSError as e:
                raise OSError(e.errno, e.strerror, self.device) from None
            offset += done
            data = data[done:]

    def has_data(self, offset: int, end: int) -> bool:
        """Whether anything was written from ``offset`` to ``offset + BLOCK_SIZE``, and to ``end``."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) < min(offset + BLOCK_SIZE, end)
        except OSError:
            return False


class BlockFiles(Sink):
    """Writes pages, record bodies and device blocks to files.

    ``open_block(name, used_length)``, ``open_record(idstr, instance_id)`` and ``open_disk(device)``
    give their descriptors, or -1 for what is not to be written; ``extend_disk(device, size)`` makes
    a disk larger, to ``size`` bytes, and says whether that went.  A page behind the used length (blocks need not be whole
    pages) is cut there.  ``OSError`` of the file system is raised with the block's name as file
    name.
    """

    def __init__(
        self,
        open_block: Callable[[str, int], int],
        open_record: Callable[[str, int], int],
        open_disk: Callable[[str], int],
        extend_disk: Callable[[str, int], bool],
    ) -> None:
        self._open_block = open_block
        self._open_record = open_record
        self._open_disk = open_disk
        self._extend_disk = extend_disk
        self._blocks: dict[str, _BlockFile] = {}
        self._disks: dict[str, _Disk] = {}
        self._name = ""
        self._block: _BlockFile | None = None
        self._record: int = -1
        # The chunk that pages come from, and a view of it: one for all its pages.
        self._data = b""
        self._view = memoryview(b"")

    def block(self, name: str, used_length: int, page_size: int) -> None:
        if name in self._blocks:
            file = self._blocks[name]
            file.flush()
            file.page_size = page_size
            return
        fd = self._open_block(name, used_length)
        self._blocks[name] = _BlockFile(fd, name, used_length, page_size)

    def _select(self, block: str) -> _BlockFile:
        if self._block is None or block != self._name:
            self._name = block
            self._block = self._blocks[block]
        return self._block

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        if data is not self._data:
            self._data = data
            self._view = memoryview(data)
        self._select(block).put(address, self._view, start, end)

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        self._select(block).fill(address, count, byte)

    def record(self, idstr: str, instance_id: int, length: i64) -> None:
        self._close_record()
        self._record = self._open_record(idstr, instance_id)

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        if self._record >= 0:
            piece = memoryview(data)[int(start) : int(end)]
            while len(piece):
                # mypyc 2.4 evaluates an expression within the slice twice.
                done = os.write(self._record, piece)
                piece = piece[done:]

    def _disk(self, device: str) -> _Disk:
        if device not in self._disks:
            self._disks[device] = _Disk(self._open_disk(device), device)
        return self._disks[device]

    def _room(self, disk: _Disk, end: int) -> bool:
        """Make the disk reach at least to byte ``end``."""
        if disk.fd >= 0 and end > disk.size:
            if self._extend_disk(disk.device, end):
                disk.size = end
            else:
                os.close(disk.fd)
                disk.fd = -1
        return disk.fd >= 0

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        disk = self._disk(device)
        # Not in 64 bits: a sector number has up to 55.
        offset = int(sector) * _SECTOR_SIZE + int(at)
        if self._room(disk, offset + int(end - start)):
            disk.write(offset, memoryview(data)[int(start) : int(end)])

    def disk_zero(self, device: str, sector: i64) -> None:
        disk = self._disk(device)
        offset = int(sector) * _SECTOR_SIZE
        before = disk.size
        if self._room(disk, offset + BLOCK_SIZE) and disk.has_data(offset, before):
            disk.write(offset, memoryview(bytes(BLOCK_SIZE)))

    def _close_record(self) -> None:
        if self._record >= 0:
            os.close(self._record)
            self._record = -1

    def close(self) -> None:
        """Write what is left and close the files."""
        self._close_record()
        try:
            for file in self._blocks.values():
                file.flush()
        finally:
            for file in self._blocks.values():
                if file.fd >= 0:
                    os.close(file.fd)
            for disk in self._disks.values():
                if disk.fd >= 0:
                    os.close(disk.fd)
            self._blocks.clear()
            self._disks.clear()
