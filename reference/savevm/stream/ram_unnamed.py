"""Bodies of "ram" sections and records of the versions 1 to 3, in which RAM is one block."""

import zlib
from typing import Any, Final

from mypy_extensions import i64

from savevm.sink import Sink
from savevm.stream.events import Event, RamChunk, RamWord
from savevm.stream.ram import NO_FILL, RUN_PAGES, RUN_ZEROS, PageRuns, RamBody
from savevm_spec.constants import (
    RAM_CHUNK_MAGIC,
    RAM_CHUNK_MAX,
    RAM_EOS,
    RAM_FLAGS_KNOWN,
    RAM_FULL,
    RAM_MEM_SIZE,
    RAM_PAGE,
    RAM_TAG_FILL,
    RAM_TAG_NORMAL,
    RAM_UNNAMED_BLOCK,
    RAM_V1_PAGE_SIZE,
    RAM_V2_BLOCK_SIZE,
    RAM_ZERO,
)

__all__ = ["UnnamedRam"]

_CHUNK_HEADER: Final = 4
_TAGGED: Final = 1 + RAM_V2_BLOCK_SIZE


class UnnamedRam(PageRuns):
    """Reads bodies of any of these versions; ``named`` has the blocks and the page size."""

    def __init__(self, events: list[Event], sink: Sink | None, named: RamBody) -> None:
        super().__init__(events, sink, named.handlers, named.blocks)
        self._named = named
        self._block = RAM_UNNAMED_BLOCK
        self._version: i64 = 0
        self._announced: i64 = 0
        self._sized = False
        self._size: i64 = -1
        # How much RAM the body has had; in version 2, how much plain text.
        self._have: i64 = 0
        self._inflate: Any = None

    def begin(self, version: int) -> None:
        """A new body of this version begins."""
        self.start()
        self._version = version
        self._sized = False
        self._size = self.blocks.get(RAM_UNNAMED_BLOCK, -1)
        self._have = 0
        self._inflate = zlib.decompressobj() if version == 2 else None

    def read(self, data: bytes, start: i64, base: i64, final: bool) -> i64:
        return self.read_within(data, start, len(data), base, final)

    def read_within(self, data: bytes, start: i64, end: i64, base: i64, final: bool) -> i64:
        """As ``read``, but only from ``data[start:end]``; ``final``: nothing comes after that."""
        self.need = 1
        if self._version == 3:
            return self._read_words(data, start, base, final)
        pos: i64 = start
        if not self._sized:
            if end - pos < 4:
                return self._short(pos, 4)
            size: i64 = int.from_bytes(data[pos : pos + 4], "big")
            unit: i64 = RAM_V1_PAGE_SIZE if self._version == 1 else RAM_V2_BLOCK_SIZE
            if size % unit:
                raise self._error(
                    "ram.size", base + pos, f"{int(size):#x} bytes in units of {int(unit)}"
                )
            self._take_size(size, base + pos)
            self._sized = True
            pos += 4
        if self._version == 1:
            return self._read_pages(data, pos, end, base)
        return self._read_chunks(data, pos, end, base, final)

    def _take_size(self, size: i64, offset: i64) -> None:
        if self._size >= 0 and size != self._size:
            raise self._error(
                "ram.size.differs", offset, f"{int(size):#x} bytes, not {int(self._size):#x}"
            )
        self._size = size
        self.blocks[RAM_UNNAMED_BLOCK] = int(size)
        self._listed(offset, [(RAM_UNNAMED_BLOCK, int(size))])

    def _announce(self, page_size: i64) -> None:
        if self.sink is not None and page_size != self._announced:
            self._announced = page_size
            self.sink.block(RAM_UNNAMED_BLOCK, int(self._size), int(page_size))

    def _extend(self, offset: i64, fill: i64, address: i64, page_size: i64) -> None:
        """A page comes; its run counts it only when it is whole."""
        if (
            fill != self._run_fill
            or address != self._run_address + self._run_count * page_size
            or self._run_count == 0
            or self._run_count >= (RUN_PAGES if fill == NO_FILL else RUN_ZEROS)
        ):
            self.flush()
            self._announce(page_size)
            self._run_offset = offset
            self._run_fill = fill
            self._run_address = address

    def _page_piece(self, data: bytes, pos: i64, end: i64) -> i64:
        """Takes what there is of the page at hand and returns where that ends."""
        piece: i64 = end - pos
        if piece > self._page_left:
            piece = self._page_left
        if self.sink is not None and piece > 0:
            self.sink.page_data(self._block, self._page_address, data, pos, pos + piece)
        self._page_address += piece
        self._page_left -= piece
        if self._page_left == 0:
            self._run_count += 1
        return pos + piece

    # Version 1: a tag before each page

    def _read_pages(self, data: bytes, pos: i64, end: i64, base: i64) -> i64:
        while True:
            if self._page_left > 0:
                pos = self._page_piece(data, pos, end)
                if self._page_left > 0:
                    return self._short(pos, 1)
            if self._have == self._size:
                self.flush()
                self.done = True
                return pos
            if pos >= end:
                return self._short(pos, 1)
            tag: i64 = data[pos]
            if tag == RAM_TAG_NORMAL:
                self._extend(base + pos, NO_FILL, self._have, RAM_V1_PAGE_SIZE)
                self._page_address = self._have
                self._page_left = RAM_V1_PAGE_SIZE
                pos += 1
            elif tag == RAM_TAG_FILL:
                if end - pos < 2:
                    return self._short(pos, 2)
                self._extend(base + pos, data[pos + 1], self._have, RAM_V1_PAGE_SIZE)
                self._run_count += 1
                pos += 2
            else:
                raise self._error("ram.page.tag", base + pos, f"tag {hex(int(tag))}")
            self._have += RAM_V1_PAGE_SIZE

    # Version 2: one zlib stream in chunks

    def _read_chunks(self, data: bytes, pos: i64, end: i64, base: i64, final: bool) -> i64:
        plain_size: i64 = self._size // RAM_V2_BLOCK_SIZE * _TAGGED
        while True:
            if self._have == plain_size:
                # Whether there are more chunks is seen by what comes, unless the zlib stream ended.
                head = data[pos : pos + 2] if end - pos >= 2 else data[pos:end]
                if self._inflate.eof or (final and len(head) < 2):
                    self.done = True
                elif len(head) < 2 and head in b"\xfa":
                    return self._short(pos, 1 + len(head))
                elif head != b"\xfa\xbe":
                    self.done = True
                if self.done:
                    return pos
            if end - pos < 2:
                return self._short(pos, 2)
            magic: i64 = i64(data[pos]) << 8 | i64(data[pos + 1])
            if magic != RAM_CHUNK_MAGIC:
                raise self._error("ram.chunk.magic", base + pos, f"magic {hex(int(magic))}")
            if end - pos < _CHUNK_HEADER:
                return self._short(pos, _CHUNK_HEADER)
            length: i64 = i64(data[pos + 2]) << 8 | i64(data[pos + 3])
            if length < 1 or length > RAM_CHUNK_MAX:
                raise self._error("ram.chunk.length", base + pos + 2, f"{int(length)} bytes")
            after: i64 = pos + _CHUNK_HEADER + length
            if after > end:
                return self._short(pos, _CHUNK_HEADER + length)
            chunk = data[pos:after]
            blocks = self._take_chunk(chunk, base + pos, plain_size - self._have)
            self.events.append(RamChunk(int(base + pos), chunk, int(blocks)))
            pos = after

    def _take_chunk(self, chunk: bytes, offset: i64, wanted: i64) -> i64:
        """Inflates a chunk; returns how many blocks became whole."""
        try:
            plain: bytes = self._inflate.decompress(chunk[_CHUNK_HEADER:], int(wanted) + 1)
        except zlib.error as e:
            raise self._error("ram.chunk.data", offset, str(e)) from None
        size: i64 = min(i64(len(plain)), wanted)
        into: i64 = self._have % _TAGGED
        at: i64 = _TAGGED - into if into else 0
        while at < size:
            if plain[at] != RAM_TAG_NORMAL:
                raise self._error("ram.page.tag", offset, f"tag {hex(plain[at])}")
            at += _TAGGED
        if len(plain) > wanted:
            raise self._error("ram.chunk.data", offset, "more than all of the RAM")
        if self._inflate.unused_data:
            raise self._error("ram.chunk.data", offset, "more than the zlib stream")
        if self._inflate.eof and size < wanted:
            raise self._error("ram.chunk.data", offset, "the zlib stream ends before the RAM does")
        if size:
            self._announce(RAM_V2_BLOCK_SIZE)
        blocks: i64 = 0
        at = 0
        while at < size:
            into = self._have % _TAGGED
            piece: i64 = min(_TAGGED - into, size - at)
            skip: i64 = 0 if into else 1
            if self.sink is not None and piece > skip:
                address: i64 = self._have // _TAGGED * RAM_V2_BLOCK_SIZE + into + skip - 1
                self.sink.page_data(self._block, address, plain, at + skip, at + piece)
            at += piece
            self._have += piece
            if into + piece == _TAGGED:
                blocks += 1
        return blocks

    # Version 3: words of address | flags, as in version 4

    def _read_words(self, data: bytes, start: i64, base: i64, final: bool) -> i64:
        pos: i64 = start
        size: i64 = len(data)
        page_size: i64 = self._named.page_size
        while True:
            if self._page_left > 0:
                pos = self._page_piece(data, pos, size)
                if self._page_left > 0:
                    return self._short(pos, 1)
            if size - pos < 8:
                return self._short(pos, 8)
            top: i64 = data[pos]
            word: i64 = (
                (top & 0x7F) << 56
                | data[pos + 1] << 48
                | data[pos + 2] << 40
                | data[pos + 3] << 32
                | data[pos + 4] << 24
                | data[pos + 5] << 16
                | data[pos + 6] << 8
                | data[pos + 7]
            )
            if top < 0x80 and word == RAM_EOS:
                self.flush()
                self.events.append(RamWord(int(base + pos), int(word)))
                self.done = True
                return pos + 8
            if word & 0xFF == RAM_MEM_SIZE:
                self.flush()
                if top >= 0x80:
                    raise self._error("limit.ram-size", base + pos, "RAM of 2^63 bytes or more")
                self._take_size(word - RAM_MEM_SIZE, base + pos)
                pos += 8
                continue
            if page_size == 0:
                page_size = self._infer_page_size(data, pos, pos + 8, i64(data[pos + 7]), 0, final)
                if page_size == 0:
                    return pos
                self._named.page_size = page_size
            flags: i64 = word & (page_size - 1)
            if flags != RAM_ZERO and flags != RAM_PAGE:
                raise self._bad_flags(flags, base + pos)
            address: i64 = word - flags
            if top >= 0x80 or address >= self._size:
                raise self._error(
                    "ram.page.outside-block",
                    base + pos,
                    f"page at {hex(int(address) + (1 << 63 if top >= 0x80 else 0))} of "
                    + (f"{hex(int(self._size))} bytes" if self._size >= 0 else "no size yet"),
                )
            if flags == RAM_ZERO:
                if size - pos < 9:
                    return self._short(pos, 9)
                self._extend(base + pos, data[pos + 8], address, page_size)
                self._run_count += 1
                pos += 9
            else:
                self._extend(base + pos, NO_FILL, address, page_size)
                self._page_address = address
                self._page_left = page_size
                pos += 8

    def _bad_flags(self, flags: i64, offset: i64) -> Exception:
        text = hex(int(flags))
        if flags & ~RAM_FLAGS_KNOWN:
            return self._error(
                "ram.page.misaligned", offset, f"address bits below the page size: {text}"
            )
        if flags == RAM_FULL:
            return self._error("ram.flags.unsupported", offset, "RAM in chunks is not read here")
        return self._error("ram.flags.combination", offset, f"no record has the flags {text}")
