"""A hart's way to memory: address translation, protection, and what it remembers of both.

Three translation buffers, for reads, writes and fetches, of ``_ENTRIES`` pairs each: the tag of a
page, and what leads from it to RAM.  A tag is the page's virtual address and, in the bits below, who
accesses it; for reads and writes the lowest three bits are 0, so that an address that is not aligned
has no entry.  What leads there is, for data, the number that makes the address an offset in RAM; for
code the place of the page's instructions.

An entry means that nothing has to be looked at any more: the page lies in RAM with no device in it,
all of it may be accessed, its accessed and dirty bits are set, and, for writes, it is marked as
written and has no decoded instructions.
"""

from typing import Final

from librt.vecs import vec
from mypy_extensions import i64, mypyc_attr

from savevm.machine.code import DecodedPages, decoded_pages
from savevm.machine.csr import (
    FETCH_ACCESS,
    FETCH_PAGE,
    ILLEGAL_INSTRUCTION,
    LOAD_ACCESS,
    LOAD_MISALIGNED,
    LOAD_PAGE,
    MACHINE,
    MPRV,
    MXR,
    PBMTE,
    STORE_ACCESS,
    STORE_MISALIGNED,
    STORE_PAGE,
    SUM,
    SUPERVISOR,
    USER,
    Features,
    Privileged,
    Time,
)
from savevm.machine.memory import Bus, GuestRam, zeros

__all__ = ["EXECUTE", "READ", "WRITE", "Mmu"]

# Accesses, as PMP has them.
READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4

_ENTRIES: Final = 256
# A tag that no access has.
_NONE: Final = 0x800

_VALID: Final = 1
_R: Final = 2
_W: Final = 4
_X: Final = 8
_USER: Final = 16
_ACCESSED: Final = 64
_DIRTY: Final = 128
_PPN: Final = (1 << 44) - 1
_ADUE: Final = 1 << 61
# The bytes of a page of level 4.
_ALL_PAGES: Final = (1 << 48) - 1


@mypyc_attr(allow_interpreted_subclasses=False)
class Mmu(Privileged):
    """A hart with memory.

    ``read`` and ``write`` set ``cause`` and ``tval`` where an access is not allowed, and ``event``
    where a device was accessed, so that interrupts may be pending now.
    """

    def __init__(
        self,
        hart_id: int,
        bus: Bus,
        ram: GuestRam,
        rom: GuestRam | None,
        clock: Time,
        features: Features,
    ) -> None:
        super().__init__(hart_id, clock, features)
        self.bus: Final = bus
        self.ram: Final = ram
        self.rom: Final = rom
        self.pages: Final[DecodedPages] = decoded_pages(ram, rom, features.misa)
        self.event: bool = False
        self.rtlb: vec[i64] = zeros(2 * _ENTRIES)
        self.wtlb: vec[i64] = zeros(2 * _ENTRIES)
        self.ftlb: vec[i64] = zeros(2 * _ENTRIES)
        self.data_priv: i64 = MACHINE  # loads and stores are made as from this mode
        self.data_tag: i64 = 0  # the bits of a tag that say who accesses
        # Addresses among which all are that were found by entries of more than a page.
        self._large_first: i64 = 0
        self._large_last: i64 = -1
        self.guarded: bool = (
            False  # each instruction of the page is looked at before it is executed
        )
        self.epoch: i64 = -1  # of RAM, as of what the write buffer says
        self.generation: i64 = -1  # of the decoded pages, as of the fetch buffer

    def set_misa(self, misa: i64) -> None:
        super().set_misa(misa)
        misa &= self.features.misa
        if misa != self.pages.misa:
            self.pages.misa = misa
            self.pages.flush()

    def flush(self) -> None:
        _empty(self.rtlb)
        _empty(self.wtlb)
        _empty(self.ftlb)
        self._large_first = 0
        self._large_last = -1

    def forget(self, address: i64) -> None:
        """Translations by the entry of a virtual address do not hold any more."""
        if self._large_first <= address <= self._large_last:
            # Any number of pages may have been found by it.
            self.flush()
            return
        index: i64 = address >> 11 & (2 * _ENTRIES - 2)
        self.rtlb[index] = _NONE
        self.wtlb[index] = _NONE
        self.ftlb[index] = _NONE

    def mode_changed(self) -> None:
        status = self.mstatus
        priv = self.priv
        if status & MPRV and priv == MACHINE:
            priv = status >> 11 & 3
        self.data_priv = priv
        self.data_tag = (priv | (status & (SUM | MXR)) >> 16) << 3

    def follow_memory(self) -> None:
        """See what others did to memory since."""
        self.pages.follow()
        if self.epoch != self.ram.epoch:
            self.epoch = self.ram.epoch
            _empty(self.wtlb)
        if self.generation != self.pages.generation:
            self.generation = self.pages.generation
            _empty(self.ftlb)

    # -- Translation

    def translate(self, address: i64, access: i64, priv: i64) -> i64:
        """The physical address, or -1 and ``cause``; protection is not looked at."""
        satp = self.satp
        mode: i64 = satp >> 60 & 15
        if priv == MACHINE or mode == 0:
            return address
        levels: i64 = mode - 5
        # All bits above the translated ones are like the highest of them.
        high: i64 = address >> (9 * levels + 11)
        if high != 0 and high != -1:
            return self._page_fault(address, access)
        table: i64 = (satp & _PPN) << 12
        level: i64 = levels - 1
        while level >= 0:
            at: i64 = table + (address >> (12 + 9 * level) & 511) * 8
            offset: i64 = at - self.ram.base
            if (
                offset < 0
                or offset >= self.ram.size
                or not self.pmp_allows(at, 8, READ, SUPERVISOR)
            ):
                return self._access_fault(address, access)
            entry = self.ram.data[offset >> 3]
            table = (entry >> 10 & _PPN) << 12
            if not entry & _VALID or entry & (_R | _W) == _W:
                return self._page_fault(address, access)
            if entry >> 54 and not self._has_type(entry):
                return self._page_fault(address, access)
            if not entry & (_R | _X):
                if entry & (_ACCESSED | _DIRTY | _USER):
                    return self._page_fault(address, access)
                level -= 1
                continue
            if entry & _USER:
                if priv == SUPERVISOR and (access == EXECUTE or not self.mstatus & SUM):
                    return self._page_fault(address, access)
            elif priv == USER:
                return self._page_fault(address, access)
            wanted: i64 = _R
            if access == WRITE:
                wanted = _W
            elif access == EXECUTE:
                wanted = _X
            elif self.mstatus & MXR:
                wanted = _R | _X
            span: i64 = _ALL_PAGES >> (36 - 9 * level)
            if not entry & wanted or table & span & ~4095:
                return self._page_fault(address, access)
            used: i64 = entry | _ACCESSED
            if access == WRITE:
                used |= _DIRTY
            if used != entry:
                if self.svadu and not self.menvcfg & _ADUE:
                    return self._page_fault(address, access)
                if not self.pmp_allows(at, 8, WRITE, SUPERVISOR):
                    return self._access_fault(address, access)
                self._store_ram(offset, 8, used)
            if level:
                first: i64 = address & ~span
                last: i64 = address | span
                if self._large_first > self._large_last:
                    self._large_first = first
                    self._large_last = last
                else:
                    self._large_first = min(self._large_first, first)
                    self._large_last = max(self._large_last, last)
            return table & ~span | address & span
        return self._page_fault(address, access)

    def _has_type(self, entry: i64) -> bool:
        """Whether the highest bits of an entry are those of a page's memory type."""
        kind: i64 = entry >> 54
        leaf = entry & (_R | _X) != 0
        return leaf and (kind == 0x80 or kind == 0x100) and self.menvcfg & PBMTE != 0

    def _page_fault(self, address: i64, access: i64) -> i64:
        self.tval = address
        if access == EXECUTE:
            self.cause = FETCH_PAGE
        elif access == READ:
            self.cause = LOAD_PAGE
        else:
            self.cause = STORE_PAGE
        return -1

    def _access_fault(self, address: i64, access: i64) -> i64:
        self.tval = address
        if access == EXECUTE:
            self.cause = FETCH_ACCESS
        elif access == READ:
            self.cause = LOAD_ACCESS
        else:
            self.cause = STORE_ACCESS
        return -1

    # -- Fetches

    def fetch_place(self, address: i64) -> i64:
        """The place of the page of an address among the decoded ones, or -1 and ``cause``."""
        index: i64 = address >> 11 & (2 * _ENTRIES - 2)
        tag: i64 = (address & -4096) + self.priv
        if self.ftlb[index] == tag:
            self.guarded = False
            return self.ftlb[index + 1]
        page: i64 = self.translate(address, EXECUTE, self.priv)
        if self.cause >= 0:
            return -1
        page &= -4096
        # Where protection differs within a page all of it is asked for, each time.
        if not self.pmp_allows(page, 4096, EXECUTE, self.priv):
            if self.pmp_whole(page) or not self.pmp_allows(
                page + (address & 4094), 2, EXECUTE, self.priv
            ):
                self._access_fault(address, EXECUTE)
                return -1
        ram = self.ram
        offset = page - ram.base
        if offset < 0 or offset >= ram.size:
            rom = self.rom
            if rom is None or page < rom.base or page >= rom.base + rom.size:
                self._access_fault(address, EXECUTE)
                return -1
            ram = rom
            offset = page - rom.base
        self.guarded = not self.pmp_whole(page)
        second: i64 = (address & 4094) + 2
        if self.guarded and second < 4096 and ram.load(offset + second - 2, 2) & 3 == 3:
            # An instruction of which only the beginning may be executed.
            if not self.pmp_allows(page + second, 2, EXECUTE, self.priv):
                self._access_fault(address + 2, EXECUTE)
                return -1
        place = self.pages.page(ram, offset >> 12)
        self.follow_memory()
        if not self.guarded:
            self.ftlb[index] = tag
            self.ftlb[index + 1] = place
        return place

    def fetch_half(self, address: i64) -> i64:
        """The 16 bits at an address, or ``cause``."""
        at = self.translate(address, EXECUTE, self.priv)
        if self.cause >= 0:
            return 0
        if not self.pmp_allows(at, 2, EXECUTE, self.priv):
            return self._access_fault(address, EXECUTE)
        ram = self.ram
        if at < ram.base or at >= ram.base + ram.size:
            rom = self.rom
            if rom is None or at < rom.base or at >= rom.base + rom.size:
                return self._access_fault(address, EXECUTE)
            ram = rom
        return ram.load(at - ram.base, 2)

    # -- Data

    def reach(self, address: i64, size: i64, access: i64) -> i64:
        """The physical address of data within a page, or -1 and ``cause``; remembers the page."""
        priv = self.data_priv
        at = self.translate(address, access, priv)
        if self.cause >= 0:
            return -1
        if not self.pmp_allows(at, size, access, priv):
            return self._access_fault(address, access)
        ram = self.ram
        offset = at - ram.base
        if offset < 0 or offset >= ram.size:
            return at
        page: i64 = at & -4096
        if self.bus.overlaps(page, page + 4096) or not self.pmp_whole(page):
            return at
        index: i64 = address >> 11 & (2 * _ENTRIES - 2)
        tag: i64 = (address & -4096) + self.data_tag
        delta: i64 = (offset & -4096) - (address & -4096)
        if access == READ:
            self.rtlb[index] = tag
            self.rtlb[index + 1] = delta
        elif ram.decoded[offset >> 12] < 0:
            ram.mark(offset >> 12)
            self.wtlb[index] = tag
            self.wtlb[index + 1] = delta
        return at

    def read(self, address: i64, size: i64) -> i64:
        """``size`` bytes at any address, without a sign unless 8; or ``cause``."""
        if address & (size - 1):
            return self._read_misaligned(address, size)
        at = self.reach(address, size, READ)
        if self.cause >= 0:
            return 0
        return self._load(at, size, address)

    def write(self, address: i64, size: i64, value: i64) -> None:
        """The same the other way."""
        if address & (size - 1):
            self._write_misaligned(address, size, value)
            return
        at = self.reach(address, size, WRITE)
        if self.cause < 0:
            self._store(at, size, value, address)

    def _load(self, at: i64, size: i64, address: i64) -> i64:
        """Aligned bytes at a physical address, which is that of a virtual one."""
        device = self.bus.find(at)
        if device >= 0:
            self.tell_time()
            self.event = True
            return self.bus.read(device, at, size)
        ram = self.ram
        if at < ram.base or at >= ram.base + ram.size:
            rom = self.rom
            if rom is None or at < rom.base or at >= rom.base + rom.size:
                self._access_fault(address, READ)
                return 0
            ram = rom
        return ram.load(at - ram.base, size)

    def _store(self, at: i64, size: i64, value: i64, address: i64) -> None:
        device = self.bus.find(at)
        if device >= 0:
            self.tell_time()
            self.event = True
            self.bus.write(device, at, size, value)
            return
        ram = self.ram
        if at < ram.base or at >= ram.base + ram.size:
            rom = self.rom
            if rom is None or at < rom.base or at >= rom.base + rom.size:
                self._access_fault(address, WRITE)
            return
        self._store_ram(at - ram.base, size, value)

    def _store_ram(self, offset: i64, size: i64, value: i64) -> None:
        """Store in RAM, whatever page it is."""
        ram = self.ram
        ram.store(offset, size, value)
        ram.mark(offset >> 12)
        if ram.decoded[offset >> 12] >= 0:
            self.pages.written(offset, size)
            if self.generation != self.pages.generation:
                self.event = True

    def _read_misaligned(self, address: i64, size: i64) -> i64:
        value: i64 = 0
        # All of it has to be readable before a device is.
        start, second = self._both(address, size, READ)
        if self.cause >= 0:
            return 0
        within: i64 = 4096 - (address & 4095)
        i: i64 = 0
        while i < size:
            at: i64 = start + i if i < within else second + i - within
            byte = self._load(at, 1, address + i)
            if self.cause >= 0:
                return 0
            if i == 7:
                byte = (byte ^ 128) - 128
            value |= byte << (8 * i)
            i += 1
        return value

    def _write_misaligned(self, address: i64, size: i64, value: i64) -> None:
        start, second = self._both(address, size, WRITE)
        within: i64 = 4096 - (address & 4095)
        i: i64 = 0
        while i < size and self.cause < 0:
            at: i64 = start + i if i < within else second + i - within
            self._store(at, 1, value >> (8 * i) & 255, address + i)
            i += 1

    def _both(self, address: i64, size: i64, access: i64) -> tuple[i64, i64]:
        """Physical addresses of the first byte, and of the first in the next page if there is one."""
        within: i64 = 4096 - (address & 4095)
        first = self.reach(address, size if size < within else within, access)
        second: i64 = -1
        if self.cause < 0 and within < size:
            second = self.reach(_next_page(address), size - within, access)
        return first, second

    # -- Atomics

    def atomic(self, insn: i64) -> bool:
        """Execute an instruction of extension A; whether ``event`` or ``cause`` is set."""
        x = self.x
        address = x[insn >> 15 & 31]
        rs2 = x[insn >> 20 & 31]
        rd: i64 = insn >> 7 & 31
        kind: i64 = insn >> 27 & 31
        size: i64 = 4 if insn >> 12 & 7 == 2 else 8
        if kind == 2:
            if insn >> 20 & 31:
                return self._illegal(insn)
            if address & (size - 1):
                self.cause = LOAD_MISALIGNED
                self.tval = address
                return True
            value = self.read(address, size)
            if self.cause >= 0:
                return True
            if size == 4:
                value = (value ^ 0x8000_0000) - 0x8000_0000
            self.reserved = address
            self.reserved_value = value
            if rd:
                x[rd] = value
            return self.event
        if not (kind == 0 or kind == 1 or kind == 3 or (kind & 3 == 0)):
            return self._illegal(insn)
        if address & (size - 1):
            self.cause = STORE_MISALIGNED
            self.tval = address
            return True
        # Whatever is done, also nothing, it has to be writable.
        at: i64
        index: i64 = address >> 11 & (2 * _ENTRIES - 2)
        if self.wtlb[index] == (address & -4096) + self.data_tag:
            at = address + self.wtlb[index + 1] + self.ram.base
        else:
            at = self.reach(address, size, WRITE)
            if self.cause >= 0:
                return True
        if kind == 3 and self.reserved != address:
            self.reserved = -1
            if rd:
                x[rd] = 1
            return self.event
        old = self._load(at, size, address)
        if self.cause >= 0:
            self.cause = STORE_ACCESS
            return True
        if size == 4:
            old = (old ^ 0x8000_0000) - 0x8000_0000
        if kind == 3:
            self.reserved = -1
            if old == self.reserved_value:
                self._store(at, size, rs2, address)
                if rd:
                    x[rd] = 0
            elif rd:
                x[rd] = 1
            return self.event
        if size == 4:
            rs2 = ((rs2 & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
        least: i64 = -(1 << 63)
        new: i64
        if kind == 0:
            big: i64 = 0
            big += 1 << 61
            new = (((old + rs2) & (big * 8 - 1)) ^ (big * 4)) - big * 4
        elif kind == 1:
            new = rs2
        elif kind == 4:
            new = old ^ rs2
        elif kind == 8:
            new = old | rs2
        elif kind == 12:
            new = old & rs2
        elif kind == 16:
            new = old if old < rs2 else rs2
        elif kind == 20:
            new = old if old > rs2 else rs2
        elif kind == 24:
            new = old if (old ^ least) < (rs2 ^ least) else rs2
        else:
            new = old if (old ^ least) > (rs2 ^ least) else rs2
        self._store(at, size, new, address)
        if rd:
            x[rd] = old
        return self.event

    def _illegal(self, insn: i64) -> bool:
        self.cause = ILLEGAL_INSTRUCTION
        self.tval = insn & 0xFFFF_FFFF
        return True


def _empty(tlb: vec[i64]) -> None:
    i: i64 = 0
    while i < 2 * _ENTRIES:
        tlb[i] = _NONE
        i += 2


def _next_page(address: i64) -> i64:
    big: i64 = 0
    big += 1 << 61
    return ((((address | 4095) + 1) & (big * 8 - 1)) ^ (big * 4)) - big * 4
