"""RAM in its four versions: what the grammar reads by loops of its own is drawn by some of its own."""

import zlib
from typing import Any, Final

from savevm_spec.constants import (
    RAM_CHUNK_MAX,
    RAM_CONTINUE,
    RAM_EOS,
    RAM_MEM_SIZE,
    RAM_PAGE,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_PAGE_SIZES,
    RAM_TAG_NORMAL,
    RAM_UNNAMED_BLOCK,
    RAM_V1_PAGE_SIZE,
    RAM_V2_BLOCK_SIZE,
    RAM_ZERO,
)
from savevm_spec.ram import unnamed
from savevm_spec.ram.blocks import Block, BlockList
from savevm_spec.ram.body import Word
from savevm_spec.ram.chunks import CHUNKED, Chunk, Chunks
from savevm_spec.ram.pages import Page, PageRecord, ZeroPages, ZeroRecords
from savevm_spec.ram.plain import PLAIN, Pages

from .derive import FEW, Draw, Drawing, drawing, drawn, drawn_struct, register, special

__all__: list[str] = []

# Of a block, so that streams stay small.
PAGES_MAX: Final = 5


def _contents(state: Drawing, size: int) -> bytes:
    """A page of ``size`` bytes: zeros but for a few bytes somewhere, or a pattern."""
    if state.choice(["few", "pattern"]) == "pattern":
        return state.binary(size, size)
    piece = state.binary(0, 8)
    before = state.integer(0, size - len(piece))
    return (bytes(before) + piece).ljust(size, b"\0")


def _page_size(state: Drawing) -> int:
    return state.ram.page_size or RAM_PAGE_SIZE_DEFAULT


# One block without a name


def _all_ram(unit: int) -> Draw:
    """Draws the size in bytes of all RAM, which is the same wherever it is stated."""

    def draw(con: Any, context: Any) -> int:
        state = drawing(context)
        blocks = state.ram.blocks
        if RAM_UNNAMED_BLOCK not in blocks:
            blocks[RAM_UNNAMED_BLOCK] = unit * state.integer(0, PAGES_MAX)
        return blocks[RAM_UNNAMED_BLOCK]

    return draw


@special(PLAIN.grammar)
def _(con: Any, context: Any) -> Any:
    return drawn_struct(con, context, size=_all_ram(RAM_V1_PAGE_SIZE))


@special(CHUNKED.grammar)
def _(con: Any, context: Any) -> Any:
    return drawn_struct(con, context, size=_all_ram(RAM_V2_BLOCK_SIZE))


@special(unnamed.SizeWord)
def _(con: Any, context: Any) -> Any:
    draw = _all_ram(_page_size(drawing(context)))
    return drawn_struct(con, context, word=lambda con, this: draw(con, this) | RAM_MEM_SIZE)


@register
def _(con: Pages, context: Any) -> list[bytes | int]:
    state = drawing(context)

    def page() -> bytes | int:
        filled = state.choice([True, False])
        return state.integer(0, 255) if filled else _contents(state, RAM_V1_PAGE_SIZE)

    return state.many(page, context.size // RAM_V1_PAGE_SIZE)


@register
def _(con: Chunks, context: Any) -> list[Any]:
    """The zlib stream may be left without an end."""
    state = drawing(context)
    tag = bytes([RAM_TAG_NORMAL])
    blocks = range(0, context.size, RAM_V2_BLOCK_SIZE)
    text = b"".join(tag + _contents(state, RAM_V2_BLOCK_SIZE) for _ in blocks)
    deflate = zlib.compressobj(state.integer(0, 9))
    left = deflate.compress(text) + deflate.flush(state.choice([zlib.Z_FINISH, zlib.Z_SYNC_FLUSH]))
    chunks: list[Any] = []
    while left:
        size = RAM_CHUNK_MAX - (state.integer(0, RAM_CHUNK_MAX - 1) if len(chunks) < FEW else 0)
        piece, left = left[:size], left[size:]
        chunks.append(drawn_struct(Chunk, context, data=lambda *_, piece=piece: piece))
    return chunks


# Blocks with names, and words


@special(BlockList)
def _(con: Any, context: Any) -> Any:
    return drawn_struct(con, context, remaining=lambda *_: 1 << 63)


@special(Block)
def _(con: Any, context: Any) -> Any:
    """A name that was there before has the length that it had."""

    def idstr(con: Any, block: Any) -> str:
        known = drawing(block).choice([None, *drawing(block).ram.blocks])
        return drawn(con, block) if known is None else known

    def used_length(con: Any, block: Any) -> int:
        state = drawing(block)
        stated = state.ram.blocks.get(block.idstr)
        return stated or _page_size(state) * state.integer(1, PAGES_MAX)

    return drawn_struct(con, context, idstr=idstr, used_length=used_length)


@register
def _(con: Word, context: Any) -> Any:
    """There are pages only of blocks that are known."""
    state = drawing(context)
    if state.simplest:
        state.shows = None
        return RAM_EOS
    kinds: list[Any] = [con.sizes, *sorted(con.control - {RAM_EOS})]
    if any(state.ram.blocks.values()):
        kinds = [*[con.page] * 4, *kinds]
    if con.many is not None and state.ram.current is not None and state.shows is None:
        kinds.append(ZeroRecords())
    kind = state.choice(kinds)
    if kind is not con.page:
        state.shows = None
    return kind if isinstance(kind, int) else drawn(kind, context)


@register
def _(con: PageRecord, context: Any) -> Page:
    state = drawing(context)
    ram, shown = state.ram, state.shows
    block = state.choice([name for name, length in ram.blocks.items() if length])
    # Drawn where it cannot be, too, so that shrinking can leave the page before out.
    again = state.choice([True, False])
    flags = RAM_CONTINUE if con.named and again and block == ram.current else 0
    if shown is not None and (flags or not con.named):
        address = _next(state, shown)
    else:
        address = _page_size(state) * state.integer(0, (ram.blocks[block] - 1) // _page_size(state))
    content: bytes | int
    if state.choice([False, True]):
        flags, content = flags | RAM_PAGE, _contents(state, _page_size(state))
    else:
        filled = state.choice([False, False, True])
        flags, content = flags | RAM_ZERO, state.integer(0, 255) if filled else 0
    page = Page(address, flags, block, content)
    state.shows = page if ram.page_size is None else None
    ram.page_size, ram.current = _page_size(state), block
    return page


def _next(state: Drawing, shown: Page) -> int:
    """The address of a page right behind the one which, with its address, shows the page size."""
    length = state.ram.blocks[shown.block]
    # How far from it the next one is tells of any size; but what has contents has their size.
    sizes = RAM_PAGE_SIZES if isinstance(shown.content, int) else RAM_PAGE_SIZES[:1]
    steps = [s for s in sizes if shown.address % s == 0 and shown.address + s < length]
    step = state.choice([*steps, 0])
    state.ram.page_size = step or state.ram.page_size
    return int(shown.address) + step


@register
def _(con: ZeroRecords, context: Any) -> ZeroPages:
    state = drawing(context)
    size, block = _page_size(state), state.ram.current
    assert block is not None
    pages = -(-state.ram.blocks[block] // size)
    first = state.integer(0, pages - 1)
    return ZeroPages(first * size, block, state.integer(1, pages - first), size)
