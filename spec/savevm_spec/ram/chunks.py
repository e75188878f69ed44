"""RAM of version 2 (0.9, and r5434): be32 size, then one zlib stream in chunks.

A chunk is the be16 magic fa be, be16 length and as many bytes.  Inflated they are all blocks of
1024 bytes in their order, each behind the tag 0.  The zlib stream may end in chunks behind those
that gave the last block.  Origin: ram_decompress_buf, ram_load of 0.9.1.
"""

import zlib
from typing import Any, BinaryIO

from construct import Const, Int16ub, Struct

from ..combinators import Body, Node, Ruled, held, limited_bytes
from ..constants import (
    RAM_CHUNK_MAGIC,
    RAM_CHUNK_MAX,
    RAM_TAG_NORMAL,
    RAM_UNNAMED_BLOCK,
    RAM_V2_BLOCK_SIZE,
)
from ..errors import GrammarError
from ..reading import Ram, reading
from . import unnamed

Chunk = Struct(
    "magic" / Ruled("ram.chunk.magic", Const(RAM_CHUNK_MAGIC, Int16ub)),
    "data" / limited_bytes(held("ram.chunk.length", Int16ub, lambda n, _: 1 <= n <= RAM_CHUNK_MAX)),
)

_TAGGED = 1 + RAM_V2_BLOCK_SIZE


class Blocks:
    """Inflates chunks and places the blocks in ``ram``; ``missing`` counts bytes of plain text."""

    def __init__(self, ram: Ram, size: int) -> None:
        self.ram = ram
        self.missing = size // RAM_V2_BLOCK_SIZE * _TAGGED
        self.inflate = zlib.decompressobj()
        self._address = 0
        self._begun = b""

    def add(self, chunk: bytes, offset: int) -> None:
        """The next chunk, which lies at ``offset``."""
        try:
            # A byte more than is wanted shows that there is more.
            text = self.inflate.decompress(chunk, self.missing + 1)
        except zlib.error as error:
            raise GrammarError("ram.chunk.data", offset, str(error)) from error
        self._place(text[: self.missing], offset)
        self.missing -= len(text)
        if self.missing < 0 or self.inflate.unused_data or (self.inflate.eof and self.missing):
            raise GrammarError("ram.chunk.data", offset)

    def _place(self, text: bytes, offset: int) -> None:
        text = self._begun + text
        whole = len(text) - len(text) % _TAGGED
        if any(tag != RAM_TAG_NORMAL for tag in text[::_TAGGED]):
            raise GrammarError("ram.page.tag", offset)
        for at in range(0, whole, _TAGGED):
            self.ram.place(RAM_UNNAMED_BLOCK, self._address, text[at + 1 : at + _TAGGED])
            self._address += RAM_V2_BLOCK_SIZE
        self._begun = text[whole:]


def _has_chunk(stream: BinaryIO) -> bool:
    magic = stream.read(2)
    stream.seek(-len(magic), 1)
    return magic == RAM_CHUNK_MAGIC.to_bytes(2)


class Chunks(Node):
    """All chunks, as they are compressed."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> list[bytes]:
        blocks = Blocks(reading(context).ram, context.size)
        chunks = []
        while blocks.missing or (not blocks.inflate.eof and _has_chunk(stream)):
            offset = stream.tell()
            chunks.append(Chunk._parse(stream, context, path))
            blocks.add(chunks[-1].data, offset)
        return chunks

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for chunk in obj:
            Chunk._build(chunk, stream, context, path)
        return obj


def _transcript(ram: Any) -> dict[str, Any]:
    told = unnamed.transcript(ram.size, 0, 0, ram.size // RAM_V2_BLOCK_SIZE)
    return told | {"chunks": len(ram.chunks)}


CHUNKED = Body(
    "ram", Struct("size" / unnamed.size_in(RAM_V2_BLOCK_SIZE), "chunks" / Chunks()), _transcript
)
