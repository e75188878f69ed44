"""RAM in sections, and bodies of version 4: be64 words of address | flags, and what they announce."""

from typing import Final

from mypy_extensions import i64

from savevm.errors import stream_error
from savevm.sink import Sink
from savevm.stream.events import Event, Finding, PageRun, RamBlocks, RamWord
from savevm.stream.handlers import Handlers, LiveBody
from savevm.stream.words import PageWords
from savevm_spec.constants import (
    LIMIT_RAM_BLOCKS,
    RAM_COMPRESS_PAGE,
    RAM_CONTINUE,
    RAM_EOS,
    RAM_FLAGS_KNOWN,
    RAM_HOOK,
    RAM_IDSTR,
    RAM_MEM_SIZE,
    RAM_MULTIFD_FLUSH,
    RAM_PAGE,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_PAGE_SIZE_MAX,
    RAM_PAGE_SIZE_MIN,
    RAM_PAGE_SIZES,
    RAM_XBZRLE,
    RAM_ZERO,
)

__all__ = ["PageRuns", "RamBody"]

# The most PAGE, and the most ZERO records of one run: they bound what a listener keeps until it
# hears of the run, and what it makes of it then.
RUN_PAGES: Final = 256
RUN_ZEROS: Final = 1 << 16

NO_FILL: Final = -1


# Zero pages read one by one before a group is compared at once.
_PATIENCE: Final = 64


class PageRuns(LiveBody):
    """What bodies of RAM have in common: page contents on their way to the sink, in runs.

    ``blocks``: used length in bytes of each RAM block so far.
    """

    def __init__(
        self,
        events: list[Event],
        sink: Sink | None,
        handlers: Handlers | None,
        blocks: dict[str, int],
    ) -> None:
        self.events = events
        self.sink = sink
        self.handlers = handlers
        self.blocks = blocks
        self._block = ""
        self._page_left: i64 = 0
        self._page_address: i64 = 0
        self._run_offset: i64 = 0
        self._run_fill: i64 = NO_FILL
        self._run_address: i64 = 0
        self._run_count: i64 = 0
        self._run_named = False

    def start(self) -> None:
        """A new body begins."""
        self.done = False

    def flush(self) -> None:
        """Report the run that is under way, if any."""
        count = self._run_count
        if count:
            self._run_count = 0
            fill = self._run_fill
            if fill != NO_FILL and self.sink is not None:
                self.sink.fill(self._block, self._run_address, count, fill)
            self.events.append(
                PageRun(
                    int(self._run_offset),
                    self._block,
                    int(fill),
                    int(self._run_address),
                    int(count),
                    self._run_named,
                )
            )

    def _listed(self, offset: i64, blocks: list[tuple[str, int]]) -> None:
        """A block list is complete."""
        event = RamBlocks(int(offset), blocks)
        self.events.append(event)
        if self.handlers is not None:
            self.handlers.ram_blocks(event)

    def _short(self, pos: i64, need: i64) -> i64:
        """``need`` bytes from ``pos`` on are wanted and not all there."""
        self.need = need
        return pos

    def _error(self, rule: str, offset: i64, detail: str) -> Exception:
        return stream_error(rule, int(offset), RAM_IDSTR, detail)

    def _infer_page_size(
        self, data: bytes, pos: i64, content: i64, kind: i64, more: int, final: bool
    ) -> i64:
        """Page size from the distance of the first two page records; 0: nothing shows it.

        The first, of ``kind``, begins at ``pos`` and what it announces at ``content``; the word of
        the second also has the flags ``more``.  ``need`` then says how much must be there to try
        again; 0: only the description tells.
        """
        size: i64 = len(data)
        self.need = 0
        if kind != RAM_ZERO and kind != RAM_PAGE:
            return RAM_PAGE_SIZE_DEFAULT
        reach: i64 = content + (1 if kind == RAM_ZERO else RAM_PAGE_SIZE_MAX) + 8
        if size < reach and not final:
            self.need = reach - pos
            return 0
        address = int.from_bytes(data[pos : pos + 8], "big") & ~0xFF
        if kind == RAM_ZERO:
            if content + 9 <= size:
                word = int.from_bytes(data[content + 1 : content + 9], "big")
                distance = (word & ~0xFF) - address
                if (
                    word & 0xFF in (RAM_ZERO | more, RAM_PAGE | more)
                    and RAM_PAGE_SIZE_MIN <= distance <= RAM_PAGE_SIZE_MAX
                    and distance & (distance - 1) == 0
                ):
                    return distance
            return 0
        for candidate in RAM_PAGE_SIZES:
            at: i64 = content + i64(candidate)
            if at + 8 <= size:
                word = int.from_bytes(data[at : at + 8], "big")
                if word in (
                    address + candidate | RAM_ZERO | more,
                    address + candidate | RAM_PAGE | more,
                ):
                    return i64(candidate)
        return 0


class RamBody(PageRuns):
    """Reads bodies of RAM sections; keeps the block list and the current block between them."""

    def __init__(self, events: list[Event], sink: Sink | None, handlers: Handlers | None) -> None:
        super().__init__(events, sink, handlers, {})
        self.page_size: i64 = 0
        self._announced: set[str] = set()
        self._listing: list[tuple[str, int]] = []
        self._listing_offset: i64 = 0
        self._remaining: int = 0
        self._used: i64 = -1
        self._zero_group: PageWords | None = None

    def read(self, data: bytes, start: i64, base: i64, final: bool) -> i64:
        """Read from ``data[start:]``, which lies at stream offset ``base + start``.

        Returns where it stopped: behind the body (``done``), or where ``need`` bytes are wanted.
        ``final``: nothing comes after ``data``.  Raises ``StreamError``.
        """
        pos: i64 = start
        size: i64 = len(data)
        page_size: i64 = self.page_size
        mask: i64 = page_size - 1
        sink = self.sink
        self.need = 1
        while True:
            if self._page_left > 0:
                piece: i64 = size - pos
                if piece > self._page_left:
                    piece = self._page_left
                if sink is not None and piece > 0:
                    sink.page_data(self._block, self._page_address, data, pos, pos + piece)
                self._page_address += piece
                self._page_left -= piece
                pos += piece
                if self._page_left > 0:
                    return self._short(pos, 1)
                self._run_count += 1
            if self._remaining > 0:
                pos = self._read_listing(data, pos, base)
                if self._remaining > 0:
                    return pos
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
            if top < 0x80:
                if word == RAM_EOS or word == RAM_HOOK or word == RAM_MULTIFD_FLUSH:
                    self.flush()
                    self.events.append(RamWord(int(base + pos), int(word)))
                    pos += 8
                    if word == RAM_EOS:
                        self.done = True
                        return pos
                    continue
            if word & 0xFF == RAM_MEM_SIZE:
                self.flush()
                if top >= 0x80:
                    raise self._error("limit.ram-size", base + pos, "RAM of 2^63 bytes or more")
                self._listing = []
                self._listing_offset = base + pos
                self._remaining = int(word - RAM_MEM_SIZE)
                pos += 8
                if self._remaining == 0:
                    self._listed(base + pos - 8, [])
                continue
            if page_size == 0:
                page_size = self._first_page_size(data, pos, final)
                if page_size == 0:
                    return pos
                self.page_size = page_size
                mask = page_size - 1
            flags: i64 = word & mask
            kind: i64 = flags & ~RAM_CONTINUE
            if kind != RAM_ZERO and kind != RAM_PAGE:
                raise self._bad_flags(flags, base + pos)
            after: i64 = pos + 8
            named = flags & RAM_CONTINUE == 0
            if named:
                self.flush()
                if after >= size:
                    return self._short(pos, 9)
                length: i64 = data[after]
                if after + 1 + length > size:
                    return self._short(pos, 9 + length)
                name = data[after + 1 : after + 1 + length].decode("latin-1")
                if name not in self.blocks:
                    raise self._error(
                        "ram.page.unknown-block", base + after, f"no RAM block {name!r}"
                    )
                self._block = name
                self._used = self.blocks[name]
                after += 1 + length
            elif self._used < 0:
                raise self._error(
                    "ram.page.continue-needs-block", base + pos, "CONTINUE before any block"
                )
            address: i64 = word - flags
            if top >= 0x80 or address >= self._used:
                raise self._error(
                    "ram.page.outside-block",
                    base + pos,
                    f"page at {hex(int(address) + (1 << 63 if top >= 0x80 else 0))} of block "
                    f"{self._block!r} of {hex(int(self._used))} bytes",
                )
            fill: i64 = NO_FILL
            if kind == RAM_ZERO:
                if after >= size:
                    return self._short(pos, after - pos + 1)
                fill = data[after]
            if (
                named
                or fill != self._run_fill
                or address != self._run_address + self._run_count * page_size
                or self._run_count == 0
                or self._run_count >= (RUN_PAGES if fill == NO_FILL else RUN_ZEROS)
            ):
                self.flush()
                if sink is not None and self._block not in self._announced:
                    self._announced.add(self._block)
                    sink.block(self._block, self.blocks[self._block], int(page_size))
                self._run_offset = base + pos
                self._run_fill = fill
                self._run_address = address
                self._run_named = named
            if kind == RAM_ZERO:
                if fill != 0:
                    self.events.append(
                        Finding(
                            int(base + after),
                            "ram.zero.fill",
                            RAM_IDSTR,
                            f"page filled with {hex(int(fill))}",
                        )
                    )
                pos = after + 1
                self._run_count += 1
                if fill == 0:
                    count: i64 = self._zeros_ahead(data, pos, address)
                    self._run_count += count
                    pos += 9 * count
            else:
                pos = after
                self._page_address = address
                self._page_left = page_size

    def _zeros_ahead(self, data: bytes, pos: i64, address: i64) -> i64:
        """How many more ZERO records of consecutive pages, with CONTINUE, follow at once.

        ``address`` is that of the page before.  Empty memory comes as millions of these, so after
        a few of them whole groups are compared with what they must look like.
        """
        start: i64 = pos
        size: i64 = len(data)
        page_size: i64 = self.page_size
        room: i64 = RUN_ZEROS - self._run_count
        last: i64 = min(self._used - page_size, address + room * page_size)
        patience: i64 = _PATIENCE
        while size - pos >= 9 and address < last:
            address += page_size
            if patience == 0:
                group = self._zero_group
                if group is None or group.page_size != page_size:
                    group = PageWords(page_size, RAM_ZERO | RAM_CONTINUE, b"\0")
                    self._zero_group = group
                index: i64 = group.index(address)
                count: i64 = min(
                    group.count - index,
                    (size - pos) // 9,
                    (last - address) // page_size + 1,
                )
                records = group.records(address)
                if data.startswith(records[int(9 * index) : int(9 * (index + count))], int(pos)):
                    pos += 9 * count
                    address += (count - 1) * page_size
                    continue
                patience = count
            patience -= 1
            word: i64 = address | RAM_ZERO | RAM_CONTINUE
            if (
                data[pos + 8] != 0
                or data[pos + 7] != word & 0xFF
                or data[pos + 6] != word >> 8 & 0xFF
                or data[pos + 5] != word >> 16 & 0xFF
                or data[pos + 4] != word >> 24 & 0xFF
                or data[pos + 3] != word >> 32 & 0xFF
                or data[pos + 2] != word >> 40 & 0xFF
                or data[pos + 1] != word >> 48 & 0xFF
                or data[pos] != word >> 56
            ):
                break
            pos += 9
        return (pos - start) // 9

    def _bad_flags(self, flags: i64, offset: i64) -> Exception:
        text = hex(int(flags))
        kind = flags & ~RAM_CONTINUE
        if flags & ~RAM_FLAGS_KNOWN:
            return self._error(
                "ram.page.misaligned", offset, f"address bits below the page size: {text}"
            )
        if kind == RAM_XBZRLE or kind == RAM_COMPRESS_PAGE:
            return self._error("ram.flags.unsupported", offset, f"page encoding {text} is not read")
        return self._error("ram.flags.combination", offset, f"no record has the flags {text}")

    def _read_listing(self, data: bytes, pos: i64, base: i64) -> i64:
        size: i64 = len(data)
        while self._remaining > 0:
            need: i64 = 1
            if pos < size:
                need = 9 + i64(data[pos])
            if size - pos < need:
                return self._short(pos, need)
            end: i64 = pos + need
            name = data[pos + 1 : end - 8].decode("latin-1")
            used = int.from_bytes(data[end - 8 : end], "big")
            if name not in self.blocks and len(self.blocks) >= LIMIT_RAM_BLOCKS:
                raise self._error(
                    "limit.ram-blocks", base + pos, f"more than {LIMIT_RAM_BLOCKS} RAM blocks"
                )
            if used > self._remaining:
                raise self._error(
                    "ram.blocks.total",
                    base + end - 8,
                    f"block {name!r} of {used:#x} bytes where {self._remaining:#x} are left",
                )
            if name in self.blocks:
                self.events.append(
                    Finding(
                        int(base + pos),
                        "ram.block.duplicate",
                        RAM_IDSTR,
                        f"block {name!r} is listed again",
                    )
                )
                if used != self.blocks[name]:
                    raise self._error(
                        "ram.block.length",
                        base + end - 8,
                        f"block {name!r} of {used:#x} bytes, listed with {self.blocks[name]:#x}",
                    )
            self.blocks[name] = used
            self._listing.append((name, used))
            self._remaining -= used
            pos = end
        self._listed(self._listing_offset, self._listing)
        return pos

    def _first_page_size(self, data: bytes, pos: i64, final: bool) -> i64:
        size: i64 = len(data)
        flags: i64 = data[pos + 7]
        content: i64 = pos + 8
        if flags & RAM_CONTINUE == 0:
            if content >= size:
                self.need = 0 if final else 9
                return 0
            content += 1 + i64(data[content])
        return self._infer_page_size(data, pos, content, flags & ~RAM_CONTINUE, RAM_CONTINUE, final)
