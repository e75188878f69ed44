"""RAM of version 1 (until 0.8.2): be32 size, then all pages of 4096 bytes in their order.

A page is the tag 0 and its bytes, or the tag 1 and the one byte that it is filled with.
Origin: ram_load of 0.8.2.
"""

from typing import Any, BinaryIO

from construct import Int8ub, Struct
from construct.core import stream_read, stream_write

from ..combinators import Body, Node
from ..constants import RAM_TAG_FILL, RAM_TAG_NORMAL, RAM_UNNAMED_BLOCK, RAM_V1_PAGE_SIZE
from ..errors import GrammarError
from ..reading import filled, reading
from . import unnamed


class Pages(Node):
    """All pages, each as its bytes or as its fill byte; they are placed in the memory."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> list[bytes | int]:
        ram = reading(context).ram
        pages: list[bytes | int] = []
        for address in range(0, context.size, RAM_V1_PAGE_SIZE):
            offset = stream.tell()
            tag = Int8ub._parse(stream, context, path)
            if tag == RAM_TAG_NORMAL:
                page = content = stream_read(stream, RAM_V1_PAGE_SIZE, path)
            elif tag == RAM_TAG_FILL:
                page = Int8ub._parse(stream, context, path)
                content = filled(page, RAM_V1_PAGE_SIZE)
            else:
                raise GrammarError("ram.page.tag", offset)
            ram.place(RAM_UNNAMED_BLOCK, address, content)
            pages.append(page)
        return pages

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for page in obj:
            fill = isinstance(page, int)
            data = bytes([RAM_TAG_FILL, page]) if fill else bytes([RAM_TAG_NORMAL]) + page
            stream_write(stream, data, len(data), path)
        return obj


def _transcript(ram: Any) -> dict[str, Any]:
    zero = ram.pages.count(0)
    normal = sum(isinstance(page, bytes) for page in ram.pages)
    return unnamed.transcript(ram.size, zero, len(ram.pages) - zero - normal, normal)


PLAIN = Body(
    "ram", Struct("size" / unnamed.size_in(RAM_V1_PAGE_SIZE), "pages" / Pages()), _transcript
)
