"""A hart's control and status registers, traps and privilege modes (privileged specification 1.12)."""

from typing import Final, Protocol

from librt.vecs import vec
from mypy_extensions import i64, mypyc_attr

from savevm.machine.decode import MISA_C, MISA_F, MISA_S, MISA_U
from savevm.machine.fpu import Fpu
from savevm.machine.memory import zeros
from savevm.machine.state import PMP_ENTRIES

__all__ = ["CSRS", "Features", "Privileged", "Time"]

USER: Final = 0
SUPERVISOR: Final = 1
MACHINE: Final = 3

# Causes of traps.
FETCH_MISALIGNED: Final = 0
FETCH_ACCESS: Final = 1
ILLEGAL_INSTRUCTION: Final = 2
BREAKPOINT: Final = 3
LOAD_MISALIGNED: Final = 4
LOAD_ACCESS: Final = 5
STORE_MISALIGNED: Final = 6
STORE_ACCESS: Final = 7
ECALL: Final = 8  # + mode
FETCH_PAGE: Final = 12
LOAD_PAGE: Final = 13
STORE_PAGE: Final = 15

SIE: Final = 1 << 1
MIE: Final = 1 << 3
SPIE: Final = 1 << 5
MPIE: Final = 1 << 7
SPP: Final = 1 << 8
MPP: Final = 3 << 11
FS: Final = 3 << 13
MPRV: Final = 1 << 17
SUM: Final = 1 << 18
MXR: Final = 1 << 19
TVM: Final = 1 << 20
TW: Final = 1 << 21
TSR: Final = 1 << 22
_UXL: Final = 2 << 32
_SXL: Final = 2 << 34
_SSTATUS: Final = SIE | SPIE | SPP | SUM | MXR

_SUPERVISOR_INTERRUPTS: Final = 0x222
_INTERRUPTS: Final = 0xAAA
_STIP: Final = 1 << 5
_DELEGABLE: Final = 0xB3FF

_FIOM_AND_CACHE: Final = 0xF1
PBMTE: Final = 1 << 62
_ADUE: Final = 1 << 61
STCE: Final = -(1 << 63)

_PMP_ADDRESS: Final = (1 << 54) - 1

# Registers that are kept as they are, by name, as a state has them.
CSRS: Final = (
    "mstatus",
    "misa",
    "medeleg",
    "mideleg",
    "mie",
    "mip",
    "mtvec",
    "mcounteren",
    "mcountinhibit",
    "mscratch",
    "mepc",
    "mcause",
    "mtval",
    "menvcfg",
    "mcycle",
    "minstret",
    "stvec",
    "scounteren",
    "sscratch",
    "sepc",
    "scause",
    "stval",
    "satp",
    "senvcfg",
    "stimecmp",
    "fcsr",
)


class Time(Protocol):
    """What harts tell the time by."""

    def mtime(self) -> int: ...

    def advance(self, instructions: int) -> None: ...


class Features:
    """What a hart has: extensions as in misa, and others by name.

    ``extensions`` are letters; ``sstc`` the supervisor's timer; ``svadu``: menvcfg.ADUE says whether
    page table walks set accessed and dirty bits, else they always do; ``svpbmt``: menvcfg.PBMTE allows
    pages to have a memory type, which makes no difference here; ``time``: its register can be
    read, which on QEMU's board it cannot: firmware that had found it there would fail when it has
    moved.  ``pmp_entries`` is 16 or 64.
    """

    def __init__(
        self,
        extensions: str = "IMAFDCSU",
        *,
        sstc: bool = False,
        svadu: bool = False,
        svpbmt: bool = False,
        time: bool = False,
        pmp_entries: int = 16,
        vendor: int = 0,
        architecture: int = 42,
        implementation: int = 0,
    ) -> None:
        misa: i64 = -(1 << 63)  # 64 bits
        for letter in extensions:
            misa |= 1 << (ord(letter) - ord("A"))
        self.misa: Final[i64] = misa
        self.sstc: Final = sstc
        self.svadu: Final = svadu
        self.svpbmt: Final = svpbmt
        self.time: Final = time
        self.pmp_entries: Final[i64] = pmp_entries
        self.vendor: Final[i64] = vendor
        self.architecture: Final[i64] = architecture
        self.implementation: Final[i64] = implementation


@mypyc_attr(allow_interpreted_subclasses=False)
class Privileged:
    """Registers of a hart, and what depends on its privilege mode.

    All registers are signed numbers of 64 bits.  A method that finds an exception sets ``cause``
    and ``tval``; ``cause`` is -1 else.
    """

    def __init__(self, hart_id: int, clock: Time, features: Features) -> None:
        self.hart_id: Final[i64] = hart_id
        self.clock: Final = clock
        self.features: Final = features
        self.fpu: Final = Fpu()
        self.misa: i64 = features.misa
        self.sstc: bool = features.sstc
        self.svadu: bool = features.svadu
        self.svpbmt: bool = features.svpbmt
        self.x: vec[i64] = zeros(64)
        self.f: vec[i64] = zeros(32)
        self.pc: i64 = 0
        self.priv: i64 = MACHINE
        self.waiting: bool = False
        self.cause: i64 = -1
        self.tval: i64 = 0
        self.reserved: i64 = -1
        self.reserved_value: i64 = 0
        # Instructions: before this slice, of it, and of those the ones that were not executed yet.
        self.executed: i64 = 0
        self.budget: i64 = 0
        self.left: i64 = 0
        self._told: i64 = 0

        self.mstatus: i64 = 0
        self.medeleg: i64 = 0
        self.mideleg: i64 = 0
        self.mie: i64 = 0
        self.mip: i64 = 0
        self.mtvec: i64 = 0
        self.mcounteren: i64 = 0
        self.mcountinhibit: i64 = 0
        self.mscratch: i64 = 0
        self.mepc: i64 = 0
        self.mcause: i64 = 0
        self.mtval: i64 = 0
        self.menvcfg: i64 = 0
        self.stvec: i64 = 0
        self.scounteren: i64 = 0
        self.sscratch: i64 = 0
        self.sepc: i64 = 0
        self.scause: i64 = 0
        self.stval: i64 = 0
        self.satp: i64 = 0
        self.senvcfg: i64 = 0
        self.stimecmp: i64 = -1
        self.frm: i64 = 0
        # Performance counters and their events, by name: nothing is counted, so they read as 0, but
        # where the guest moves on they may count again.
        self.hpm: dict[str, int] = {}
        # mcycle and minstret without what was executed, or as they are where they are inhibited.
        self._cycle: i64 = 0
        self._instret: i64 = 0

        self.pmpcfg: vec[i64] = zeros(PMP_ENTRIES)
        self.pmpaddr: vec[i64] = zeros(PMP_ENTRIES)
        self.pmp_entries: i64 = features.pmp_entries
        # The entries that are on: first byte, byte behind the last one, and configuration.
        self._regions: i64 = 0
        self._region_start: vec[i64] = zeros(PMP_ENTRIES)
        self._region_end: vec[i64] = zeros(PMP_ENTRIES)
        self._region_cfg: vec[i64] = zeros(PMP_ENTRIES)

    def reset(self, pc: int) -> None:
        """As after power-on, to begin at ``pc``, with its own features.  General registers are 0, too."""
        features = self.features
        self.set_misa(features.misa)
        self.sstc = features.sstc
        self.svadu = features.svadu
        self.svpbmt = features.svpbmt
        self.pmp_entries = features.pmp_entries
        i: i64 = 0
        while i < 32:
            self.x[i] = 0
            self.f[i] = 0
            i += 1
        i = 0
        while i < PMP_ENTRIES:
            self.pmpcfg[i] = 0
            self.pmpaddr[i] = 0
            i += 1
        self.pc = pc
        self.priv = MACHINE
        self.waiting = False
        self.reserved = -1
        self.mstatus = _UXL | _SXL if self.misa & MISA_S else 0
        self.medeleg = self.mideleg = self.mie = self.mip = 0
        self.mtvec = self.mcounteren = self.mcountinhibit = self.mscratch = 0
        self.mepc = self.mcause = self.mtval = 0
        self.menvcfg = 0
        if self.svadu:
            self.menvcfg |= _ADUE
        if self.svpbmt:
            self.menvcfg |= PBMTE
        self.stvec = self.scounteren = self.sscratch = 0
        self.sepc = self.scause = self.stval = self.satp = self.senvcfg = 0
        self.stimecmp = -1
        self.frm = self.fpu.flags = 0
        self.hpm = {}
        self._cycle = self._instret = -self.executed
        self.pmp_changed()

    def set_misa(self, misa: i64) -> None:
        """Say what the guest sees; of it the hart has what is among its features."""
        self.misa = misa

    def flush(self) -> None:
        """What is known of address translation does not hold any more."""

    def mode_changed(self) -> None:
        """``priv`` or ``mstatus`` is another."""

    def has_supervisor(self) -> bool:
        return self.misa & MISA_S != 0

    # -- Counters

    def now(self) -> i64:
        """Instructions executed, up to now."""
        return self.executed + self.budget - self.left

    def tell_time(self) -> None:
        """Tell the clock what was executed."""
        now = self.now()
        if now != self._told:
            self.clock.advance(int(now - self._told))
            self._told = now

    def time(self) -> i64:
        """The clock's time, as a register has it."""
        self.tell_time()
        mtime: int = self.clock.mtime()
        return ((mtime & 0xFFFF_FFFF_FFFF_FFFF) ^ 1 << 63) - (1 << 63)

    @property
    def mcycle(self) -> i64:
        return self._cycle if self.mcountinhibit & 1 else _wrap(self._cycle, self.now())

    @property
    def minstret(self) -> i64:
        return self._instret if self.mcountinhibit & 4 else _wrap(self._instret, self.now())

    def set_counters(self, mcycle: i64, minstret: i64, inhibit: i64) -> None:
        """Set mcycle, minstret and mcountinhibit."""
        self._cycle = mcycle if inhibit & 1 else _wrap(mcycle, -self.now())
        self._instret = minstret if inhibit & 4 else _wrap(minstret, -self.now())
        self.mcountinhibit = inhibit

    def tick(self) -> None:
        """See whether the supervisor's timer is due."""
        if self.sstc and self.menvcfg & STCE:
            least: i64 = -(1 << 63)
            if (self.time() ^ least) >= (self.stimecmp ^ least):
                self.mip |= _STIP
            else:
                self.mip &= ~_STIP

    # -- Traps

    def enter_trap(self, cause: i64, tval: i64, interrupt: bool) -> None:
        """Take a trap at ``pc``."""
        delegated: i64 = self.mideleg if interrupt else self.medeleg
        status = self.mstatus
        number: i64 = cause
        if interrupt:
            number |= -(1 << 63)
        elif not self.mcountinhibit & 4:
            # It did not retire.
            self._instret -= 1
        vector: i64
        if self.priv <= SUPERVISOR and delegated >> cause & 1:
            self.scause = number
            self.sepc = self.pc
            self.stval = tval
            vector = self.stvec
            status = status & ~(SPIE | SPP | SIE)
            if self.mstatus & SIE:
                status |= SPIE
            if self.priv == SUPERVISOR:
                status |= SPP
            self.priv = SUPERVISOR
        else:
            self.mcause = number
            self.mepc = self.pc
            self.mtval = tval
            vector = self.mtvec
            status = status & ~(MPIE | MPP | MIE)
            if self.mstatus & MIE:
                status |= MPIE
            status |= self.priv << 11
            self.priv = MACHINE
        self.mstatus = status
        self.pc = vector & ~3
        if vector & 1 and interrupt:
            self.pc = _wrap(self.pc, 4 * cause)
        # Not for who comes next.
        self.reserved = -1
        self.mode_changed()

    def take_exception(self) -> None:
        """Take the trap that ``cause`` and ``tval`` say, at ``pc``."""
        cause = self.cause
        self.cause = -1
        self.enter_trap(cause, self.tval, False)

    def take_interrupt(self) -> bool:
        """Take the most urgent interrupt that is pending and enabled; whether there was one."""
        # Others, that came with the state of another hart, lead nowhere.
        pending = self.mip & self.mie & _INTERRUPTS
        if not pending:
            return False
        priv = self.priv
        enabled: i64 = 0
        if priv < MACHINE or self.mstatus & MIE:
            enabled = pending & ~self.mideleg
        if not enabled and (priv < SUPERVISOR or (priv == SUPERVISOR and self.mstatus & SIE)):
            enabled = pending & self.mideleg
        if not enabled:
            return False
        cause: i64 = 5
        if enabled & 1 << 11:
            cause = 11
        elif enabled & 1 << 3:
            cause = 3
        elif enabled & 1 << 7:
            cause = 7
        elif enabled & 1 << 9:
            cause = 9
        elif enabled & 1 << 1:
            cause = 1
        self.waiting = False
        self.enter_trap(cause, 0, True)
        return True

    def mret(self) -> None:
        """Return from a trap to machine mode."""
        status = self.mstatus
        self.priv = (status & MPP) >> 11
        self.pc = self.mepc
        if status & MPIE:
            status |= MIE
        else:
            status &= ~MIE
        status = (status | MPIE) & ~MPP
        if not self.misa & MISA_U:
            status |= MPP
        if self.priv != MACHINE:
            status &= ~MPRV
        self.mstatus = status
        self.reserved = -1
        self.mode_changed()

    def sret(self) -> None:
        """Return from a trap to supervisor mode."""
        status = self.mstatus
        self.priv = SUPERVISOR if status & SPP else USER
        self.pc = self.sepc
        if status & SPIE:
            status |= SIE
        else:
            status &= ~SIE
        self.mstatus = (status | SPIE) & ~(SPP | MPRV)
        self.reserved = -1
        self.mode_changed()

    # -- Registers

    def status(self) -> i64:
        """mstatus as it reads: SD is on where FS is dirty."""
        if self.mstatus & FS == FS:
            return self.mstatus | -(1 << 63)
        return self.mstatus

    def set_mstatus(self, value: i64, mask: i64) -> None:
        """Write the bits of ``mask``, as far as there are such."""
        if not self.misa & MISA_F:
            mask &= ~FS
        old_mpp = self.mstatus & MPP
        self.mstatus = (self.mstatus & ~mask) | (value & mask)
        mpp = (self.mstatus & MPP) >> 11
        if (
            mpp == 2
            or (mpp == 1 and not self.misa & MISA_S)
            or (mpp == 0 and not self.misa & MISA_U)
        ):
            self.mstatus = (self.mstatus & ~MPP) | old_mpp
        self.mode_changed()

    def csr_read(self, number: i64) -> i64:
        """The register; ``cause`` is set where there is none, or it is not for this mode."""
        if (number >> 8 & 3) > self.priv:
            self.cause = ILLEGAL_INSTRUCTION
            return 0
        group: i64 = number >> 8
        if group == 3:
            return self._read_machine(number)
        if group == 1:
            return self._read_supervisor(number)
        if group == 0 and number < 4 and number > 0:
            if not self.mstatus & FS:
                self.cause = ILLEGAL_INSTRUCTION
                return 0
            if number == 1:
                return self.fpu.flags
            if number == 2:
                return self.frm
            return self.frm << 5 | self.fpu.flags
        if number >= 0xC00 and number < 0xC20:
            return self._read_counter(number - 0xC00)
        if number >= 0xB00 and number < 0xB20:
            if number == 0xB00:
                return self.mcycle
            if number == 0xB02:
                return self.minstret
            if number != 0xB01:
                return 0
        if number == 0xF11:
            return self.features.vendor
        if number == 0xF12:
            return self.features.architecture
        if number == 0xF13:
            return self.features.implementation
        if number == 0xF14:
            return self.hart_id
        if number == 0xF15:
            return 0
        if number >= 0x7A0 and number <= 0x7A3:
            return 0  # there are no triggers
        self.cause = ILLEGAL_INSTRUCTION
        return 0

    def _read_counter(self, which: i64) -> i64:
        allowed: i64 = -1
        if self.priv < MACHINE:
            allowed = self.mcounteren
            if self.priv == USER and self.misa & MISA_S:
                allowed &= self.scounteren
        if not allowed >> which & 1:
            self.cause = ILLEGAL_INSTRUCTION
            return 0
        if which == 0:
            return self.mcycle
        if which == 1:
            if self.features.time:
                return self.time()
            self.cause = ILLEGAL_INSTRUCTION
            return 0
        if which == 2:
            return self.minstret
        return 0

    def _read_machine(self, number: i64) -> i64:
        if number == 0x300:
            return self.status()
        if number == 0x301:
            return self.misa
        if number == 0x304:
            return self.mie
        if number == 0x305:
            return self.mtvec
        if number == 0x340:
            return self.mscratch
        if number == 0x341:
            return self.mepc
        if number == 0x342:
            return self.mcause
        if number == 0x343:
            return self.mtval
        if number == 0x344:
            self.tick()
            return self.mip
        if number == 0x320:
            return self.mcountinhibit
        if number >= 0x323 and number <= 0x33F:
            return 0
        if number >= 0x3A0 and number < 0x3A0 + self.pmp_entries // 8 * 2 and not number & 1:
            cfg: i64 = 0
            i: i64 = 7
            while i >= 0:
                cfg = _shift_in(cfg, self.pmpcfg[(number - 0x3A0) * 4 + i])
                i -= 1
            return cfg
        if number >= 0x3B0 and number < 0x3B0 + self.pmp_entries:
            return self.pmpaddr[number - 0x3B0]
        if number == 0x306 and self.misa & MISA_U:
            return self.mcounteren
        if number == 0x30A and self.misa & MISA_U:
            return self.menvcfg
        if self.misa & MISA_S:
            if number == 0x302:
                return self.medeleg
            if number == 0x303:
                return self.mideleg
        self.cause = ILLEGAL_INSTRUCTION
        return 0

    def _read_supervisor(self, number: i64) -> i64:
        if self.misa & MISA_S:
            if number == 0x100:
                return self.status() & (_SSTATUS | FS | _UXL | -(1 << 63))
            if number == 0x104:
                return self.mie & self.mideleg
            if number == 0x105:
                return self.stvec
            if number == 0x106:
                return self.scounteren
            if number == 0x10A:
                return self.senvcfg
            if number == 0x140:
                return self.sscratch
            if number == 0x141:
                return self.sepc
            if number == 0x142:
                return self.scause
            if number == 0x143:
                return self.stval
            if number == 0x144:
                self.tick()
                return self.mip & self.mideleg
            if number == 0x14D and self._has_stimecmp():
                return self.stimecmp
            if number == 0x180 and not (self.priv == SUPERVISOR and self.mstatus & TVM):
                return self.satp
        self.cause = ILLEGAL_INSTRUCTION
        return 0

    def _has_stimecmp(self) -> bool:
        if not self.sstc:
            return False
        return self.priv == MACHINE or (self.menvcfg & STCE != 0 and self.mcounteren & 2 != 0)

    def csr_write(self, number: i64, value: i64) -> None:
        """Write a register that ``csr_read`` found."""
        if number >> 10 == 3:
            self.cause = ILLEGAL_INSTRUCTION
            return
        group: i64 = number >> 8
        if group == 3:
            self._write_machine(number, value)
        elif group == 1:
            self._write_supervisor(number, value)
        elif group == 0:
            if number == 1:
                self.fpu.flags = value & 31
            elif number == 2:
                self.frm = value & 7
            else:
                self.fpu.flags = value & 31
                self.frm = value >> 5 & 7
            self.mstatus |= FS
        elif number == 0xB00:
            # It counts on with the next instruction.
            self.set_counters(
                _wrap(value, 0 if self.mcountinhibit & 1 else -1), self.minstret, self.mcountinhibit
            )
        elif number == 0xB02:
            self.set_counters(
                self.mcycle, _wrap(value, 0 if self.mcountinhibit & 4 else -1), self.mcountinhibit
            )

    def _write_machine(self, number: i64, value: i64) -> None:
        if number == 0x300:
            mask: i64 = MIE | MPIE | MPP | MPRV | FS
            if self.misa & MISA_S:
                mask |= _SSTATUS | TVM | TSR
            if self.misa & MISA_U:
                mask |= TW
            self.set_mstatus(value, mask)
        elif number == 0x302:
            self.medeleg = value & _DELEGABLE
        elif number == 0x303:
            self.mideleg = value & _SUPERVISOR_INTERRUPTS
        elif number == 0x304:
            self.mie = value & (_INTERRUPTS if self.misa & MISA_S else 0x888)
        elif number == 0x305:
            if value & 3 < 2:
                self.mtvec = value
        elif number == 0x306:
            self.mcounteren = value & 0xFFFF_FFFF
        elif number == 0x30A:
            mask = _FIOM_AND_CACHE
            if self.sstc:
                mask |= STCE
            if self.svadu:
                mask |= _ADUE
            if self.svpbmt:
                mask |= PBMTE
            self.menvcfg = value & mask
            self.flush()
        elif number == 0x320:
            self.set_counters(self.mcycle, self.minstret, value & 0xFFFF_FFFD)
        elif number == 0x340:
            self.mscratch = value
        elif number == 0x341:
            self.mepc = value & (-2 if self.misa & MISA_C else -4)
        elif number == 0x342:
            self.mcause = value
        elif number == 0x343:
            self.mtval = value
        elif number == 0x344:
            mask = _SUPERVISOR_INTERRUPTS if self.misa & MISA_S else 0
            if self.sstc and self.menvcfg & STCE:
                mask &= ~_STIP
            self.mip = (self.mip & ~mask) | (value & mask)
        elif number >= 0x3B0:
            self._write_pmpaddr(number - 0x3B0, value)
        elif number >= 0x3A0:
            self._write_pmpcfg((number - 0x3A0) * 4, value)

    def _write_supervisor(self, number: i64, value: i64) -> None:
        if number == 0x100:
            self.set_mstatus(value, _SSTATUS | FS)
        elif number == 0x104:
            self.mie = (self.mie & ~self.mideleg) | (value & self.mideleg)
        elif number == 0x105:
            if value & 3 < 2:
                self.stvec = value
        elif number == 0x106:
            self.scounteren = value & 0xFFFF_FFFF
        elif number == 0x10A:
            self.senvcfg = value & _FIOM_AND_CACHE
        elif number == 0x140:
            self.sscratch = value
        elif number == 0x141:
            self.sepc = value & (-2 if self.misa & MISA_C else -4)
        elif number == 0x142:
            self.scause = value
        elif number == 0x143:
            self.stval = value
        elif number == 0x144:
            mask: i64 = self.mideleg & 2
            self.mip = (self.mip & ~mask) | (value & mask)
        elif number == 0x14D:
            self.stimecmp = value
            self.tick()
        elif number == 0x180:
            mode = value >> 60 & 15
            if mode == 0 or (mode >= 8 and mode <= 10):
                if value != self.satp:
                    self.satp = value
                    self.flush()

    # -- Physical memory protection

    def _write_pmpcfg(self, first: i64, value: i64) -> None:
        i: i64 = 0
        while i < 8:
            cfg: i64 = value >> (8 * i) & 0x9F
            if cfg & 3 == 2:
                cfg &= ~2  # writable but not readable is reserved
            if not self.pmpcfg[first + i] & 0x80:
                self.pmpcfg[first + i] = cfg
            i += 1
        self.pmp_changed()

    def _write_pmpaddr(self, index: i64, value: i64) -> None:
        if self.pmpcfg[index] & 0x80:
            return
        # The start of a locked range.
        if index + 1 < self.pmp_entries and self.pmpcfg[index + 1] & 0x98 == 0x88:
            return
        self.pmpaddr[index] = value & _PMP_ADDRESS
        self.pmp_changed()

    def pmp_changed(self) -> None:
        """Look at ``pmpcfg`` and ``pmpaddr`` again."""
        count: i64 = 0
        i: i64 = 0
        while i < self.pmp_entries:
            cfg = self.pmpcfg[i]
            address = self.pmpaddr[i]
            kind: i64 = cfg >> 3 & 3
            start: i64 = address << 2
            end: i64 = start + 4
            if kind == 1:
                end = start
                start = self.pmpaddr[i - 1] << 2 if i else 0
            elif kind == 3:
                size: i64 = 8
                while address & 1:
                    address >>= 1
                    size <<= 1
                # All ones: more than there is.
                if size > 1 << 57:
                    size = 1 << 57
                start = start & ~(size - 1)
                end = start + size
            if kind and start < end:
                self._region_start[count] = start
                self._region_end[count] = end
                self._region_cfg[count] = cfg
                count += 1
            i += 1
        self._regions = count
        self.flush()

    def pmp_allows(self, address: i64, size: i64, access: i64, priv: i64) -> bool:
        """Whether bytes at a physical address may be accessed: read 1, write 2, execute 4."""
        i: i64 = 0
        while i < self._regions:
            start = self._region_start[i]
            end = self._region_end[i]
            if address < end and start < address + size:
                if address < start or address + size > end:
                    return False
                cfg = self._region_cfg[i]
                return cfg & access != 0 or (priv == MACHINE and not cfg & 0x80)
            i += 1
        return priv == MACHINE

    def pmp_whole(self, page: i64) -> bool:
        """Whether all of the page at a physical address has the same permissions."""
        i: i64 = 0
        while i < self._regions:
            start = self._region_start[i]
            end = self._region_end[i]
            if page < end and start < page + 4096:
                return start <= page and page + 4096 <= end
            i += 1
        return True


def _wrap(a: i64, b: i64) -> i64:
    """Their sum, of 64 bits."""
    big: i64 = 0
    big += 1 << 61
    return (((a + b) & (big * 8 - 1)) ^ (big * 4)) - big * 4


def _shift_in(word: i64, byte: i64) -> i64:
    """``word`` with another byte below it."""
    big: i64 = 0
    big += 1 << 61
    return (((word << 8 | byte) & (big * 8 - 1)) ^ (big * 4)) - big * 4
