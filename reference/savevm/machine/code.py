"""Pages of memory whose instructions are decoded, for all harts of a machine."""

from typing import Final, final

from librt.vecs import vec
from mypy_extensions import i64

from savevm.machine.decode import CROSSING, LONG, PAGE_END, UNDECODED, decode
from savevm.machine.memory import GuestRam

__all__ = ["DecodedPages", "decoded_pages"]

# A place for each halfword, and two behind them: an instruction that begins in the last halfword,
# or the one before it, leads to one of those.
_HALVES: Final = 2048
STRIDE: Final = _HALVES + 2
# Pages that are decoded at once; 16 KiB each.
_FEWEST: Final = 64
_MOST: Final = 2048
# Stores to a page with code until it counts as data again.
_PATIENCE: Final = 512


@final
class DecodedPages:
    """Decoded instructions, found by the physical page that they are in.

    ``code`` has them, those of a page from a multiple of ``STRIDE`` on.  It is another vector after
    ``page``.  ``generation`` is raised when places that were given out are void.
    """

    def __init__(self, ram: GuestRam, rom: GuestRam | None, misa: i64) -> None:
        self.ram: Final = ram
        self.rom: Final = rom
        self.misa: i64 = misa
        self.code: vec[i64] = vec[i64]()
        self.generation: i64 = 0
        self._pages: vec[i64] = vec[i64]()  # of each: the page of RAM, or ~ that of ROM
        self._stores: vec[i64] = vec[i64]()  # of each: how many went to it
        self._used: i64 = 0
        self._epoch: i64 = ram.code_epoch
        self._grow(_FEWEST)

    def _grow(self, count: i64) -> None:
        code = vec[i64]([UNDECODED] * (count * STRIDE))
        pages = vec[i64]([0] * count)
        stores = vec[i64]([0] * count)
        old = self.code
        i: i64 = 0
        while i < len(old):
            code[i] = old[i]
            i += 1
        i = 0
        while i < len(self._pages):
            pages[i] = self._pages[i]
            i += 1
        i = 0
        while i < count:
            code[i * STRIDE + _HALVES] = PAGE_END
            code[i * STRIDE + _HALVES + 1] = PAGE_END
            i += 1
        self.code = code
        self._pages = pages
        self._stores = stores

    def page(self, ram: GuestRam, page: i64) -> i64:
        """The place of a page, which is decoded from now on."""
        place = ram.decoded[page]
        if place >= 0:
            return place
        if self._used == len(self._pages):
            if self._used < _MOST:
                self._grow(2 * self._used)
            else:
                self.flush()
        index = self._used
        self._used += 1
        place = index * STRIDE
        code = self.code
        i: i64 = place
        while i < place + _HALVES:
            code[i] = UNDECODED
            i += 1
        self._pages[index] = page if ram is self.ram else ~page
        self._stores[index] = 0
        ram.decoded[page] = place
        # Writes to it have to come by here.
        ram.epoch += 1
        return place

    def flush(self) -> None:
        """Forget everything."""
        i: i64 = 0
        while i < self._used:
            page = self._pages[i]
            if page >= 0:
                self.ram.decoded[page] = -1
            elif self.rom is not None:
                self.rom.decoded[~page] = -1
            i += 1
        self._used = 0
        self.generation += 1

    def follow(self) -> None:
        """Forget what was written other than by a hart."""
        epoch = self.ram.code_epoch
        if self.rom is not None:
            epoch += self.rom.code_epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self.flush()

    def written(self, offset: i64, size: i64) -> None:
        """A hart stored ``size`` bytes at ``offset`` of RAM, in a page that is decoded."""
        page = offset >> 12
        place = self.ram.decoded[page]
        code = self.code
        # Also an instruction that begins in the halfword before.
        first = (offset & 4095) >> 1
        last = ((offset & 4095) + size - 1) >> 1
        if first:
            first -= 1
        while first <= last:
            code[place + first] = UNDECODED
            first += 1
        index = place // STRIDE
        self._stores[index] += 1
        if self._stores[index] > _PATIENCE:
            self.ram.decoded[page] = -1
            self.ram.epoch += 1
            self.generation += 1

    def decode(self, place: i64) -> i64:
        """Decode and keep the instruction of a place."""
        index = place // STRIDE
        half = place - index * STRIDE
        page = self._pages[index]
        ram = self.ram
        if page < 0 and self.rom is not None:
            ram = self.rom
            page = ~page
        word: i64 = ram.load((page << 12) + 2 * half, 2)
        d: i64
        if word & 3 == 3:
            if half == _HALVES - 1:
                d = CROSSING | LONG | word << 32
            else:
                word |= ram.load((page << 12) + 2 * half + 2, 2) << 16
                d = decode(word, 2 * half, self.misa)
        else:
            d = decode(word, 2 * half, self.misa)
        self.code[place] = d
        return d


def decoded_pages(ram: GuestRam, rom: GuestRam | None, misa: i64) -> DecodedPages:
    """Those of the machine with this RAM."""
    known = ram.code
    if isinstance(known, DecodedPages):
        return known
    pages = DecodedPages(ram, rom, misa)
    ram.code = pages
    return pages
