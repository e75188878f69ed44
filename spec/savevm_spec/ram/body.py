"""The body of a RAM section; in versions 3 and 4: words until EOS."""

from typing import Any, BinaryIO

from construct import Int64ub, RepeatUntil

from ..combinators import Body, Node
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
from .chunks import CHUNKED
from .pages import Page, PageRecord, ZeroPages, ZeroRecords
from .plain import PLAIN
from .unnamed import SizeWord

_zero_records = ZeroRecords()


class Word(Node):
    """A word with what it announces: an int of ``control``, ``sizes``, a ``Page``; or many words as
    ``ZeroPages``.

    ``control`` are the words that stand alone, whose address is 0, and ``sizes`` is what begins
    with MEM_SIZE.  Without block names (version 3) there is no CONTINUE.
    """

    def __init__(self, control: set[int], sizes: Any, named: bool) -> None:
        super().__init__()
        self.control = control
        self.sizes = sizes
        self.page = PageRecord(named)
        self.many = RAM_ZERO | RAM_CONTINUE if named else None

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        offset = stream.tell()
        word = Int64ub._parse(stream, context, path)
        if word in self.control:
            return word
        stream.seek(offset)
        if word & 0xFF == RAM_MEM_SIZE:
            return self.sizes._parse(stream, context, path)
        if word & 0xFF == self.many:
            pages = _zero_records._parse(stream, context, path)
            if pages is not None:
                return pages
        return self.page._parse(stream, context, path)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        match obj:
            case int():
                return Int64ub._build(obj, stream, context, path)
            case Page():
                return self.page._build(obj, stream, context, path)
            case ZeroPages():
                return _zero_records._build(obj, stream, context, path)
        return self.sizes._build(obj, stream, context, path)


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


def _words(word: Word) -> Body:
    return Body("ram", RepeatUntil(lambda found, *_: found == RAM_EOS, word), _transcript)


RAM = {
    1: PLAIN,
    2: CHUNKED,
    3: _words(Word({RAM_EOS}, SizeWord, named=False)),
    4: _words(Word({RAM_EOS, RAM_HOOK, RAM_MULTIFD_FLUSH}, BlockList, named=True)),
}
"""Bodies by version."""
