"""The body of a RAM section: words until EOS."""

from typing import Any, BinaryIO

from construct import Int64ub, RepeatUntil

from ..combinators import Body, Node, Whole
from ..constants import (
    RAM_CONTINUE,
    RAM_EOS,
    RAM_HOOK,
    RAM_MEM_SIZE,
    RAM_MULTIFD_FLUSH,
    RAM_PAGE,
    RAM_ZERO,
)
from .blocks import BlockList
from .pages import Page, PageRecord, ZeroPages, ZeroRecords

CONTROL = frozenset({RAM_EOS, RAM_HOOK, RAM_MULTIFD_FLUSH})
"""Words that stand alone; their address is 0."""

_page_record = PageRecord()
_zero_records = ZeroRecords()


class Word(Node):
    """A word with what it announces: an int of ``CONTROL``, a block list, a ``Page``; or many words
    as ``ZeroPages``."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        offset = stream.tell()
        word = Int64ub._parse(stream, context, path)
        if word in CONTROL:
            return word
        stream.seek(offset)
        if word & 0xFF == RAM_MEM_SIZE:
            return BlockList._parse(stream, context, path)
        if word & 0xFF == RAM_ZERO | RAM_CONTINUE:
            pages = _zero_records._parse(stream, context, path)
            if pages is not None:
                return pages
        return _page_record._parse(stream, context, path)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        match obj:
            case int():
                return Int64ub._build(obj, stream, context, path)
            case Page():
                return _page_record._build(obj, stream, context, path)
            case ZeroPages():
                return _zero_records._build(obj, stream, context, path)
        return BlockList._build(obj, stream, context, path)


Words = Whole("ram.truncated", RepeatUntil(lambda word, *_: word == RAM_EOS, Word()))


def _transcript(words: Any) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    pages: dict[str, dict[str, int]] = {}
    for word in words:
        if isinstance(word, Page):
            repeated = "fill" if word.content else "zero"
            kind = "normal" if word.flags & RAM_PAGE else repeated
            pages.setdefault(word.block, {"zero": 0, "fill": 0, "normal": 0})[kind] += 1
        elif isinstance(word, ZeroPages):
            pages.setdefault(word.block, {"zero": 0, "fill": 0, "normal": 0})["zero"] += word.number
        elif not isinstance(word, int):
            blocks += [{"idstr": b.idstr, "used_length": b.used_length} for b in word.blocks]
    return {
        "blocks": blocks,
        "pages": pages,
        "hooks": words.count(RAM_HOOK),
        "multifd_flushes": words.count(RAM_MULTIFD_FLUSH),
    }


RAM = Body("ram", Words, _transcript)
