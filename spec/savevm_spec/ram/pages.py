"""Page records: a be64 word address | flags, the block name unless CONTINUE, and the content.

The content is a fill byte behind ZERO and a whole target page behind PAGE.  In version 3 all RAM is
one block without a name: there is no CONTINUE, and no name.  Streams have so many of these that
they are read by one loop and kept as tuples, and empty pages as one for many.
Origin: ram_load_precopy; ram_load of 0.10 for version 3.
"""

import struct
from typing import Any, BinaryIO, NamedTuple

from construct import Int8ub, Int64ub
from construct.core import stream_read, stream_write

from ..combinators import Counted, Node
from ..constants import (
    RAM_COMPRESS_PAGE,
    RAM_CONTINUE,
    RAM_FLAGS_KNOWN,
    RAM_FULL,
    RAM_PAGE,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_PAGE_SIZE_MAX,
    RAM_PAGE_SIZE_MIN,
    RAM_PAGE_SIZES,
    RAM_UNNAMED_BLOCK,
    RAM_XBZRLE,
    RAM_ZERO,
)
from ..errors import GrammarError
from ..reading import filled, reading


class Page(NamedTuple):
    """One page record; ``content`` is the fill byte of a ZERO record or the bytes of the page."""

    address: int
    flags: int
    block: str
    content: bytes | int


class ZeroPages(NamedTuple):
    """``number`` ZERO records with CONTINUE and the fill byte 0, of pages that follow each other."""

    address: int
    block: str
    number: int
    page_size: int


def _be64(data: bytes, offset: int) -> int | None:
    word = data[offset : offset + 8]
    return int.from_bytes(word) if len(word) == 8 else None


def infer_page_size(data: bytes, offset: int, named: bool) -> int:
    """Target page size in bytes that the page record at ``offset`` and the next word show.

    Only the next page of the same block tells: its address is one page further.
    """
    same_block = RAM_CONTINUE if named else 0
    word = int.from_bytes(data[offset : offset + 8])
    flags, address = word & 0xFF, word & ~0xFF
    content = offset + 8
    if named and not flags & RAM_CONTINUE:
        if content >= len(data):
            return RAM_PAGE_SIZE_DEFAULT
        content += 1 + data[content]
    followers = (RAM_ZERO | same_block, RAM_PAGE | same_block)
    kind = flags & ~same_block
    if kind == RAM_ZERO:
        after = _be64(data, content + 1)
        if after is not None and after & 0xFF in followers:
            step = (after & ~0xFF) - address
            if RAM_PAGE_SIZE_MIN <= step <= RAM_PAGE_SIZE_MAX and step & (step - 1) == 0:
                return step
    elif kind == RAM_PAGE:
        for size in RAM_PAGE_SIZES:
            if _be64(data, content + size) in [(address + size) | f for f in followers]:
                return size
    return RAM_PAGE_SIZE_DEFAULT


class PageRecord(Node):
    """A page record, as ``Page``; it is placed in the memory of the reading."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        self.modifiers = RAM_CONTINUE if named else 0
        self.unsupported = (RAM_XBZRLE, RAM_COMPRESS_PAGE) if named else (RAM_FULL,)

    def _refuse(self, flags: int, offset: int) -> GrammarError:
        if flags & ~RAM_FLAGS_KNOWN:
            return GrammarError("ram.page.misaligned", offset)
        if flags & ~self.modifiers in self.unsupported:
            return GrammarError("ram.flags.unsupported", offset)
        return GrammarError("ram.flags.combination", offset)

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Page:
        state = reading(context)
        ram = state.ram
        offset = stream.tell()
        word = Int64ub._parse(stream, context, path)
        if ram.page_size is None:
            data: bytes = stream.getvalue()  # type: ignore[attr-defined]
            ram.page_size = infer_page_size(data, offset, self.named)
        flags = word & (ram.page_size - 1)
        address = word - flags
        kind = flags & ~self.modifiers
        if kind not in (RAM_PAGE, RAM_ZERO):
            raise self._refuse(flags, offset)
        block = RAM_UNNAMED_BLOCK
        if self.named:
            if not flags & RAM_CONTINUE:
                name = Counted._parse(stream, context, path)
                if name not in ram.blocks:
                    raise GrammarError("ram.page.unknown-block", offset + 8)
                ram.current = name
            elif ram.current is None:
                raise GrammarError("ram.page.continue-needs-block", offset)
            block = ram.current
        if address >= ram.blocks.get(block, 0):
            raise GrammarError("ram.page.outside-block", offset)
        if kind == RAM_PAGE:
            content = stream_read(stream, ram.page_size, path)
            ram.place(block, address, content)
            return Page(address, flags, block, content)
        fill = Int8ub._parse(stream, context, path)
        if fill and self.named:
            state.report("ram.zero.fill", stream.tell() - 1)
        ram.place(block, address, filled(fill, ram.page_size))
        return Page(address, flags, block, fill)

    def _build(self, obj: Page, stream: BinaryIO, context: Any, path: str) -> Page:
        Int64ub._build(obj.address | obj.flags, stream, context, path)
        if self.named and not obj.flags & RAM_CONTINUE:
            Counted._build(obj.block, stream, context, path)
        if isinstance(obj.content, int):
            Int8ub._build(obj.content, stream, context, path)
        else:
            stream_write(stream, obj.content, len(obj.content), path)
        return obj


_ZERO_RECORD = struct.Struct(">QB")


class ZeroRecords(Node):
    """As many records as one ``ZeroPages`` can stand for; None, and nothing read, if there is none."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> ZeroPages | None:
        ram = reading(context).ram
        offset = stream.tell()
        data: bytes = stream.getvalue()  # type: ignore[attr-defined]
        if ram.page_size is None or ram.current is None:
            return None
        word = _be64(data, offset) or 0
        address = word - (RAM_ZERO | RAM_CONTINUE)
        room = min(
            (len(data) - offset) // _ZERO_RECORD.size,
            -(-(ram.blocks[ram.current] - address) // ram.page_size),
        )
        if address % ram.page_size or room <= 0:
            return None
        count = 0
        records = memoryview(data)[offset : offset + room * _ZERO_RECORD.size]
        for found, fill in _ZERO_RECORD.iter_unpack(records):
            if fill or found != word:
                break
            word += ram.page_size
            count += 1
        if not count:
            return None
        stream.seek(offset + count * _ZERO_RECORD.size)
        pages = ZeroPages(address, ram.current, count, ram.page_size)
        if contents := ram.contents.get(pages.block):
            for at in range(address, address + count * ram.page_size, ram.page_size):
                contents.pop(at, None)
        return pages

    def _build(self, obj: ZeroPages, stream: BinaryIO, context: Any, path: str) -> ZeroPages:
        first = obj.address | RAM_ZERO | RAM_CONTINUE
        words = range(first, first + obj.number * obj.page_size, obj.page_size)
        data = b"".join([_ZERO_RECORD.pack(word, 0) for word in words])
        stream_write(stream, data, len(data), path)
        return obj
