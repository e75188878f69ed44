"""What a hart's addresses reach: RAM that it reads and writes without a call, and devices."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Any, Final, final

from librt.vecs import append, extend, vec
from mypy_extensions import i64

from savevm.ram import RamBlock

__all__ = ["PAGE", "Bus", "GuestRam", "zeros"]

PAGE: Final = 4096
_WORDS: Final = 512  # of 8 bytes in a page
# Words that are made zero at once, and those of which huge pages are worth asking for.
_PIECE: Final = 1 << 17
_LARGE: Final = 1 << 20
# Masks are this, shifted right: a small constant on the left of << is shifted in 32 bits by mypyc.
_ALL: Final = 0x7FFF_FFFF_FFFF_FFFF


def zeros(count: i64) -> vec[i64]:
    """A vector of so many zeros."""
    return vec[i64]([0] * count)


def _large_zeros(count: i64) -> vec[i64]:
    """The same, in huge pages where the system has such.

    Much of it is given by the system when it is touched; what is little there for certain, so that a
    guest, or a migration, need not wait for it.
    """
    # There is room for all, and nothing in it.
    nothing: Iterable[i64] = ()
    words: Any = vec[i64](nothing, capacity=count)
    if count >= _LARGE:
        begin = _address(words)
        end = begin + 8 * int(count)
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        _advise(first, last, mmap.MADV_HUGEPAGE)
        # Behind what every object has: how many words there are, and where.
        head = (ctypes.c_ssize_t * 2).from_address(id(words) + object.__basicsize__)
        much = end - begin > os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 4
        # What is given up reads as zeros from then on.
        if much and list(head) == [0, begin] and not _advise(first, last, mmap.MADV_DONTNEED):
            ctypes.memset(begin, 0, first - begin)
            ctypes.memset(last, 0, end - last)
            head[0] = int(count)
            stretched: vec[i64] = words
            return stretched
    piece = zeros(min(count, _PIECE))
    filled: vec[i64] = words
    while len(filled) + _PIECE <= count:
        filled = extend(filled, piece)
    return extend(filled, zeros(count - len(filled)))


def _advise(begin: int, end: int, advice: int) -> int:
    """Advise the system of some pages of memory; 0 where the advice was taken."""
    size = ctypes.c_size_t(end - begin)
    result: int = ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), size, advice)
    return result


def _address(words: object) -> int:
    """Where the words of a vector begin in this process; they stay there as long as it is not extended."""
    buffer = (ctypes.c_void_p * 16)()  # a Py_buffer, and more; the address comes first
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(words), ctypes.byref(buffer), 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return buffer[0] or 0


def signed(n: int) -> i64:
    """The register that has the unsigned number ``n`` of 64 bits."""
    return ((n & 0xFFFF_FFFF_FFFF_FFFF) ^ 1 << 63) - (1 << 63)


@final
class GuestRam(RamBlock):
    """A RAM block that harts run in, at guest physical address ``base``; its length is a multiple of 4096.

    ``data`` are its 64-bit words as little-endian machines have them, signed, and ``view`` the same
    memory.  ``view`` ends with the block.

    ``epoch`` is raised whenever a hart must ask again before it writes a page: because ``dirty``
    bytes were cleared, or code was found there.  ``decoded`` has, for each page, the place of its
    instructions among the decoded ones, or -1; ``code_epoch`` is raised when such a page was written
    other than by a hart.
    """

    def __init__(
        self, name: str, used_length: int, base: int = 0x8000_0000, read_only: bool = False
    ) -> None:
        if used_length % PAGE:
            raise ValueError(f"block {name!r} has {used_length} bytes, not a multiple of {PAGE}")
        self.base: Final[i64] = base
        self.size: Final[i64] = used_length
        self.read_only: Final = read_only
        self.data: vec[i64] = vec[i64]()
        self.decoded: vec[i64] = vec[i64]()
        self.epoch: i64 = 0
        self.code_epoch: i64 = 0
        self.code: object = None  # its DecodedPages
        super().__init__(name, used_length, PAGE)

    def allocate(self) -> None:
        words: i64 = self.used_length // 8
        self.data = _large_zeros(max(words, 1))
        self.decoded = vec[i64]([-1] * i64(max(self.pages, 1)))
        self.touched = bytearray(self.pages)
        # The view that a vector gives itself cannot be written.
        memory = (ctypes.c_ubyte * (8 * len(self.data))).from_address(_address(self.data))
        self.view = memoryview(memory).cast("B")[: self.used_length]

    def follow(self, live: bool) -> None:
        super().follow(live)
        self.epoch += 1

    def clean(self, first: int, behind: int) -> None:
        super().clean(first, behind)
        if self.dirty is not None:
            self.epoch += 1

    def is_zero(self, page: i64) -> bool:
        data = self.data
        i: i64 = page * _WORDS
        end: i64 = i + _WORDS
        while i < end:
            if data[i]:
                return False
            i += 1
        return True

    def wrote(self, address: int, count: int) -> None:
        super().wrote(address, count)
        self.epoch += 1
        page: i64 = address // PAGE
        last: i64 = (address + count - 1) // PAGE
        decoded = self.decoded
        while page <= last:
            if decoded[page] >= 0:
                self.code_epoch += 1
                return
            page += 1

    def mark(self, page: i64) -> None:
        """A hart is about to write this page."""
        index = int(page)
        self.touched[index] = 1
        if self.dirty is not None:
            self.dirty[index] = 1

    def load(self, offset: i64, size: i64) -> i64:
        """``size`` bytes (1, 2, 4 or 8) at a multiple of it, without a sign unless 8."""
        word = self.data[offset >> 3]
        if size == 8:
            return word
        mask: i64 = _ALL >> (63 - (size << 3))
        return (word >> ((offset & 7) << 3)) & mask

    def store(self, offset: i64, size: i64, value: i64) -> None:
        """The same the other way; marks nothing."""
        if size == 8:
            self.data[offset >> 3] = value
            return
        half: i64 = 0
        half += 1 << 61
        shift: i64 = (offset & 7) << 3
        mask: i64 = (_ALL >> (63 - (size << 3))) << shift
        word = (self.data[offset >> 3] & ~mask) | ((value << shift) & mask)
        self.data[offset >> 3] = ((word & (half * 8 - 1)) ^ (half * 4)) - half * 4


@final
class Bus:
    """The devices, by guest physical address.

    A device has ``read(offset, size)``, which returns a number, and ``write(offset, size, value)``,
    both with unsigned little-endian numbers of 1, 2, 4 or 8 bytes that lie within 8 aligned ones.
    A device wins over RAM where both are.
    """

    def __init__(self) -> None:
        self._starts: vec[i64] = vec[i64]()
        self._ends: vec[i64] = vec[i64]()
        self._devices: list[Any] = []

    def add(self, start: int, size: int, device: Any) -> None:
        """Put a device at ``start``, and nowhere else.  Of two at the same address the first wins."""
        others = [i for i, known in enumerate(self._devices) if known is not device]
        self._starts = append(vec[i64]([self._starts[i] for i in others]), start)
        self._ends = append(vec[i64]([self._ends[i] for i in others]), start + size)
        self._devices = [*(self._devices[i] for i in others), device]

    def find(self, address: i64) -> i64:
        """The device at an address, or -1."""
        starts = self._starts
        ends = self._ends
        i: i64 = 0
        while i < len(starts):
            if starts[i] <= address < ends[i]:
                return i
            i += 1
        return -1

    def overlaps(self, start: i64, end: i64) -> bool:
        """Whether any device is between two addresses."""
        starts = self._starts
        ends = self._ends
        i: i64 = 0
        while i < len(starts):
            if starts[i] < end and start < ends[i]:
                return True
            i += 1
        return False

    def read(self, device: i64, address: i64, size: i64) -> i64:
        """What a device that ``find`` found has, as a register has it."""
        value: int = self._devices[device].read(int(address - self._starts[device]), int(size))
        return signed(value)

    def write(self, device: i64, address: i64, size: i64, value: i64) -> None:
        """Tell a device that ``find`` found."""
        number = int(value) & ((1 << 8 * int(size)) - 1)
        self._devices[device].write(int(address - self._starts[device]), int(size), number)
