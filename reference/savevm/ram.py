"""The RAM of a machine: its blocks, and the live section that carries them both ways."""

import mmap
import struct
import zlib
from typing import Final

from mypy_extensions import i64

from savevm.channel import Channel, Data
from savevm.sink import Sink
from savevm.stream.words import PageWords
from savevm_spec.constants import (
    RAM_CHUNK_MAGIC,
    RAM_CHUNK_MAX,
    RAM_CONTINUE,
    RAM_EOS,
    RAM_MEM_SIZE,
    RAM_PAGE,
    RAM_TAG_NORMAL,
    RAM_UNNAMED_BLOCK,
    RAM_V1_PAGE_SIZE,
    RAM_V2_BLOCK_SIZE,
    RAM_VERSION,
    RAM_ZERO,
)

__all__ = ["RamBlock", "RamLoader", "RamSaver", "save_version_2"]

# Pages of one gathering write, fewer under a rate limit.  Each takes two of the 1024 buffers that a
# system call has.
_GATHER: Final = 256
# Blocks of RAM version 2 that are compressed at once.
_BATCH: Final = 256
# Runs of dirty pages that are looked for one by one.
_RUNS: Final = 100

_EOS: Final = RAM_EOS.to_bytes(8, "big")
# Python knows the last, MAP_NORESERVE of Linux, only since 3.14 or so: RAM may be larger than the host's.
_MAPPING: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000


class RamBlock:
    """A RAM block of ``used_length`` bytes in pages of ``page_size``, zero until it is written.

    ``view`` is its memory.  Who writes there marks it with ``wrote``: pages that were never written
    are known to be zero, and a live save sends those again that are written while it runs.  Raises
    ``OSError`` where the system has no room for the block.
    """

    def __init__(self, name: str, used_length: int, page_size: int = 4096) -> None:
        self.name: Final = name
        self.used_length: Final = used_length
        self.page_size: Final = page_size
        self.pages: Final = -(-used_length // page_size)
        self.view: memoryview = memoryview(b"")
        # One byte per page: not 0 once the page was written.
        self.touched: bytearray | mmap.mmap = bytearray()
        # One byte per page, while a live save runs: not 0 if it was written since it was sent.
        self.dirty: bytearray | None = None
        self._words: memoryview = memoryview(b"")
        self._memory: mmap.mmap | None = None
        self._zero_page: Final = bytes(page_size)
        try:
            self.allocate()
        except (MemoryError, OverflowError, ValueError) as e:
            raise OSError(
                12, f"no block of {used_length} bytes: {str(e) or 'not enough memory'}"
            ) from None

    def allocate(self) -> None:
        """Get memory, and set ``view`` and ``touched``."""
        size = max(self.pages, 1)
        memory = mmap.mmap(-1, size * self.page_size, flags=_MAPPING)
        memory.madvise(mmap.MADV_HUGEPAGE)
        self.touched = mmap.mmap(-1, size, flags=_MAPPING)
        self.view = memoryview(memory)
        self._words = self.view.cast("Q")
        self._memory = memory

    def follow(self, live: bool) -> None:
        """Note from now on which pages are written; or no more."""
        self.dirty = bytearray(self.pages) if live else None

    def clean(self, first: int, behind: int) -> None:
        """Pages from ``first`` on, none from ``behind`` on, are as they are about to be sent."""
        if self.dirty is not None:
            self.dirty[first:behind] = bytes(behind - first)

    def is_zero(self, page: i64) -> bool:
        """Whether a page has only zeros."""
        size: i64 = self.page_size
        if self._words[int(page * size // 8)]:
            return False
        at: i64 = page * size
        assert self._memory is not None
        return self._memory.find(self._zero_page, int(at), int(at + size)) >= 0

    def clear(self, address: int, count: int) -> None:
        """``count`` bytes from byte ``address`` on are zero now; who calls marks them."""
        self.view[address : address + count] = bytes(count)

    def wrote(self, address: int, count: int) -> None:
        """``count`` bytes (at least 1) from byte ``address`` on were written."""
        first = address // self.page_size
        behind = (address + count - 1) // self.page_size + 1
        marks = b"\x01" * (behind - first)
        self.touched[first:behind] = marks
        if self.dirty is not None:
            self.dirty[first:behind] = marks

    def write(self, address: int, data: Data) -> None:
        """Write ``data`` at byte ``address``; raises ``ValueError`` where it is not within the block."""
        if address < 0 or address + len(data) > len(self.view):
            raise ValueError(f"{len(data)} bytes at {address:#x} are not within the block")
        if len(data):
            self.view[address : address + len(data)] = data
            self.wrote(address, len(data))


class RamSaver:
    """Writes RAM blocks as the bodies of live sections of version 3 or 4.

    Version 3 has no block names and takes one block.  The first round goes over all pages, each
    later one over those that were written since it, or the round before it, came by.  ``left`` is
    what is still to be sent, in bytes of RAM; ``rounds`` how many were begun; ``over``: the last of
    them has come to its end.  ``normal`` and ``zero`` count the pages sent with and without contents.
    """

    def __init__(self, blocks: list[RamBlock], version: int = RAM_VERSION) -> None:
        self.blocks: Final = blocks
        self.version: Final = version
        self._flag: i64 = RAM_CONTINUE if version == RAM_VERSION else 0
        page_size = blocks[0].page_size if blocks else 4096
        self.page_size: i64 = page_size
        self._pages = PageWords(page_size, RAM_PAGE | self._flag, b"")
        self._zeros = PageWords(page_size, RAM_ZERO | self._flag, b"\0")
        words = self._pages.records(0)
        self._page_words = [words[i : i + 8] for i in range(0, len(words), 8)]
        self.rounds: int = 1
        self.over = False
        self.normal: i64 = 0
        self.zero: i64 = 0
        self._unsent: int = 0  # index of the block that the first round has come to
        self._at: int = 0  # of that which this round has come to
        self._cursor: int = 0  # its next page
        self._named = ""
        self._most: i64 = _GATHER  # pages of a gathering write

    def begin(self, out: Channel, live: bool) -> None:
        """Write the sizes of all blocks.  ``live``: what is written from now on is sent again."""
        total = 0
        for block in self.blocks:
            total += block.used_length
            block.follow(live)
        out.put_integer(total | RAM_MEM_SIZE, 8)
        if self.version == RAM_VERSION:
            for block in self.blocks:
                out.put_counted(block.name.encode("latin-1"))
                out.put_integer(block.used_length, 8)
        out.write(_EOS)

    @property
    def left(self) -> int:
        """Bytes of RAM that are to be sent, as of now."""
        pages = 0
        for i in range(len(self.blocks)):
            block = self.blocks[i]
            if i > self._unsent:
                pages += block.pages
            elif i == self._unsent:
                pages += block.pages - self._cursor
            if block.dirty is not None and i <= self._unsent:
                end = self._cursor if i == self._unsent else block.pages
                pages += _marked(block.dirty, end)
        return pages * int(self.page_size)

    def iterate(self, out: Channel, budget: int) -> None:
        """Write about ``budget`` bytes, fewer at the end of a round and where the channel asks to
        pause."""
        start = out.position
        self._named = ""
        self._most = _GATHER
        if out.rate is not None and out.rate.bandwidth:
            self._most = max(1, min(_GATHER, out.rate.piece // int(self.page_size)))
        while out.position - start < budget and not out.rate_exceeded:
            if not self._send(out) or out.error:
                break
        out.write(_EOS)

    def complete(self, out: Channel) -> None:
        """Write all that is left."""
        self._named = ""
        self._most = _GATHER
        # This round, and what was written behind its back.
        while not out.error and (self._send(out) or self.left):
            pass
        out.write(_EOS)
        self.end()

    def end(self) -> None:
        """Stop following what is written."""
        for block in self.blocks:
            block.follow(False)

    def _send(self, out: Channel) -> bool:
        """Write some pages that are next; whether there were any before the end of the round."""
        if self.over:
            self.over = False
            self.rounds += 1
            self._at = self._cursor = 0
        while self._at < len(self.blocks):
            block = self.blocks[self._at]
            dirty = block.dirty
            first = self._cursor
            end = block.pages
            if self._at < self._unsent:
                first = dirty.find(1, first) if dirty is not None else -1
                if dirty is not None and first >= 0:
                    behind = dirty.find(0, first, first + self._most)
                    end = behind if behind >= 0 else min(first + self._most, end)
            if 0 <= first < end:
                self._cursor = int(self._run(out, block, first, end))
                return True
            self._at += 1
            self._cursor = 0
            self._unsent = max(self._unsent, self._at)
        self.over = True
        return False

    def _run(self, out: Channel, block: RamBlock, first: i64, end: i64) -> i64:
        """Write pages from ``first`` on, none from ``end`` on; the page behind the last one."""
        if self._named != block.name and self._flag:
            # The first page of a block in a body names it.
            self._named = block.name
            self._name(out, block, first)
            return first + 1
        page_size: i64 = self.page_size
        index: i64 = self._pages.index(first * page_size)
        end = min(end, first + self._pages.count - index)
        if not block.touched[int(first)]:
            found: i64 = block.touched.find(b"\x01", int(first), int(end))
            if found >= 0:
                end = found
            block.clean(int(first), int(end))
            self.zero += end - first
            records = self._zeros.records(first * page_size)
            out.write(records[int(9 * index) : int(9 * (index + end - first))])
            return end
        end = min(end, first + self._most)
        block.clean(int(first), int(end))
        self._pages.records(first * page_size)
        zero_words = self._zeros.records(first * page_size)
        view = block.view
        page_words = self._page_words
        gathered: list[Data] = []
        size: i64 = 0
        page: i64 = first
        while page < end:
            at: i64 = page * page_size
            if block.is_zero(page):
                gathered.append(zero_words[int(9 * index) : int(9 * index + 9)])
                size += 9
                self.zero += 1
            else:
                gathered.append(page_words[int(index)])
                gathered.append(view[int(at) : int(at + page_size)])
                size += 8 + page_size
                self.normal += 1
            index += 1
            page += 1
        out.write_buffers(gathered, int(size))
        return page

    def _name(self, out: Channel, block: RamBlock, page: i64) -> None:
        """Write a page record with the name of its block."""
        block.clean(int(page), int(page) + 1)
        at = int(page * self.page_size)
        name = block.name.encode("latin-1")
        if block.is_zero(page):
            self.zero += 1
            out.put_integer(at | RAM_ZERO, 8)
            out.put_counted(name)
            out.put_integer(0, 1)
        else:
            self.normal += 1
            out.put_integer(at | RAM_PAGE, 8)
            out.put_counted(name)
            out.write(bytes(block.view[at : at + int(self.page_size)]))


def _marked(marks: bytearray, end: int) -> int:
    """How many of the first ``end`` bytes are 1; the others are 0."""
    count = 0
    at = marks.find(1, 0, end)
    # Looking at every byte takes longer than looking for a few runs.
    for _ in range(_RUNS):
        if at < 0:
            return count
        behind = marks.find(0, at, end)
        if behind < 0:
            return count + end - at
        count += behind - at
        at = marks.find(1, behind, end)
    return count + marks.count(1, at, end) if at >= 0 else count


def save_version_2(block: RamBlock, out: Channel) -> None:
    """Write a whole block as the body of a section of version 2."""
    out.put_integer(block.used_length, 4)
    # As QEMU compresses: its streams come out byte for byte where the zlib is the same.
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9)
    held = bytearray()
    stride = 1 + RAM_V2_BLOCK_SIZE
    plain = bytearray(bytes((RAM_TAG_NORMAL,)) * (stride * _BATCH))
    view = memoryview(plain)
    count = block.used_length // RAM_V2_BLOCK_SIZE
    for first in range(0, count, _BATCH):
        number = min(_BATCH, count - first)
        for i in range(number):
            at = (first + i) * RAM_V2_BLOCK_SIZE
            start = i * stride + 1
            view[start : start + RAM_V2_BLOCK_SIZE] = block.view[at : at + RAM_V2_BLOCK_SIZE]
        held += deflate.compress(view[: number * stride])
        _put_chunks(out, held, RAM_CHUNK_MAX)
    held += deflate.flush()
    _put_chunks(out, held, 1)


def _put_chunks(out: Channel, held: bytearray, least: int) -> None:
    """Write chunks of at most ``RAM_CHUNK_MAX`` bytes for as long as ``least`` are held."""
    while len(held) >= least:
        chunk = bytes(memoryview(held)[:RAM_CHUNK_MAX])
        out.write(struct.pack(">HH", RAM_CHUNK_MAGIC, len(chunk)) + chunk)
        del held[: len(chunk)]


class RamLoader(Sink):
    """Places pages in RAM blocks.

    ``blocks`` are the machine's; None: they are made as the stream lists them.  The unnamed block of
    versions 1 to 3 is the only one there is.  Call ``mark`` when all has been placed.
    """

    def __init__(self, blocks: list[RamBlock] | None) -> None:
        self.blocks: Final[dict[str, RamBlock]] = {block.name: block for block in blocks or ()}
        self._make: Final = blocks is None
        self._unit: i64 = 1  # bytes of a page of the stream
        self._name = ""
        self._block: RamBlock | None = None
        # The chunk that pages come from, and a view of it: one for all its pages.
        self._data = b""
        self._view = memoryview(b"")
        # Bytes of the block that were written and are not marked yet.
        self._from: i64 = 0
        self._to: i64 = 0

    def block(self, name: str, used_length: int, page_size: int) -> None:
        self._unit = page_size
        if self._make:
            self.blocks[name] = RamBlock(name, used_length, max(page_size, RAM_V1_PAGE_SIZE))
        elif name == RAM_UNNAMED_BLOCK and name not in self.blocks:
            self.blocks[name] = next(iter(self.blocks.values()))

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        if data is not self._data:
            self._data = data
            self._view = memoryview(data)
        if block is not self._name:
            self._select(block)
        target = self._block
        assert target is not None
        target.view[int(address) : int(address + end - start)] = self._view[int(start) : int(end)]
        if address != self._to:
            self.mark()
            self._from = address
        self._to = address + end - start

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        if block is not self._name:
            self._select(block)
        self.mark()
        target = self._block
        assert target is not None
        end: i64 = address + count * self._unit
        if byte:
            piece: i64 = 1 << 16
            while address < end:
                if piece > end - address:
                    piece = end - address
                target.write(int(address), bytes((int(byte),)) * int(piece))
                address += piece
            return
        page_size: i64 = target.page_size
        behind = int((end - 1) // page_size + 1)
        found: i64 = target.touched.find(b"\x01", int(address // page_size), behind)
        while found >= 0:
            low: i64 = max(found * page_size, address)
            high: i64 = min((found + 1) * page_size, end)
            target.clear(int(low), int(high - low))
            target.wrote(int(low), int(high - low))
            found = target.touched.find(b"\x01", int(found) + 1, behind)

    def _select(self, name: str) -> None:
        self.mark()
        self._name = name
        self._block = self.blocks[name]

    def mark(self) -> None:
        """Mark what has been placed as written."""
        if self._to > self._from and self._block is not None:
            self._block.wrote(int(self._from), int(self._to - self._from))
        self._from = 0
        self._to = 0
