"""What a hart does that its loop leaves to others: instructions that are rare, or that did not find
memory at once."""

from typing import Final

from mypy_extensions import i64, mypyc_attr

from savevm.machine.csr import (
    BREAKPOINT,
    CSRS,
    ECALL,
    FETCH_MISALIGNED,
    FS,
    MACHINE,
    MPP,
    SUPERVISOR,
    TSR,
    TVM,
    TW,
    USER,
    Features,
    Time,
)
from savevm.machine.decode import (
    FLD,
    FSD,
    LBU,
    LD,
    LH,
    LHU,
    LW,
    LWU,
    SB,
    SH,
    SW,
    SYSTEM,
    decode,
)
from savevm.machine.memory import Bus, GuestRam, signed
from savevm.machine.mmu import READ, WRITE, Mmu
from savevm.machine.state import PMP_ENTRIES, HartState

__all__ = ["Executor"]

_MASK: Final = (1 << 64) - 1
_LOW32: Final = 0xFFFF_FFFF
_SIGN32: Final = 0x8000_0000
_LEAST: Final = -(1 << 63)
_BOX: Final = -(1 << 32)
_NAN32: Final = 0x7FC0_0000
# mstatus.UXL and SXL: 64 bits, and the whole fields.
_XLEN64: Final = 0xA << 32
_XLEN: Final = 0xF << 32


@mypyc_attr(allow_interpreted_subclasses=False)
class Executor(Mmu):
    """A hart but for its loop.

    Methods that execute an instruction are given it as it was decoded, its address, and ``left`` of
    before it; they return whether the loop has to stop, with ``pc`` and ``left`` set, because of a
    trap or because an interrupt may be pending.
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
        super().__init__(hart_id, bus, ram, rom, clock, features)
        self.pausing: bool = False

    def pause(self) -> None:
        """Let ``run`` return behind the instruction that is executed now."""
        self.pausing = True

    def _begin(self, pc: i64, left: i64) -> None:
        self.pc = _signed(pc)
        self.left = left

    def _trap(self) -> bool:
        self.left -= 1
        self.take_exception()
        return True

    def _end(self, d: i64) -> bool:
        """The instruction was executed, and the loop has to stop."""
        self.pc = _signed(self.pc + (d >> 25 & 6))
        self.left -= 1
        return True

    def jump_misaligned(self, target: i64, pc: i64, left: i64) -> None:
        """A jump to an address that no instruction can be at."""
        self._begin(pc, left)
        self.cause = FETCH_MISALIGNED
        self.tval = target
        self._trap()

    def decode_crossing(self, d: i64, pc: i64, left: i64) -> i64:
        """The instruction that ends in the next page, or -1 and a trap."""
        self._begin(pc, left)
        high = self.fetch_half(_signed(pc + 2))
        if self.cause >= 0:
            self._trap()
            return -1
        return decode(d >> 32 | high << 16, 4094, self.pages.misa)

    # -- Loads and stores

    def load(self, d: i64, address: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        op: i64 = d & 255
        address = _signed(address)
        value: i64
        if op == LD:
            value = self.read(address, 8)
        elif op == LW:
            value = (self.read(address, 4) ^ _SIGN32) - _SIGN32
        elif op == LBU:
            value = self.read(address, 1)
        elif op == LHU:
            value = self.read(address, 2)
        elif op == LWU:
            value = self.read(address, 4)
        elif op == LH:
            value = (self.read(address, 2) ^ 0x8000) - 0x8000
        else:  # LB
            value = (self.read(address, 1) ^ 128) - 128
        if self.cause >= 0:
            return self._trap()
        self.x[d >> 8 & 63] = value
        return self._end(d) if self.event else False

    def store(self, d: i64, address: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        op: i64 = d & 255
        size: i64 = 8
        if op == SW:
            size = 4
        elif op == SB:
            size = 1
        elif op == SH:
            size = 2
        self.write(_signed(address), size, self.x[d >> 20 & 63])
        if self.cause >= 0:
            return self._trap()
        return self._end(d) if self.event else False

    def load_float(self, d: i64, address: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        if not self.mstatus & FS:
            self._illegal(self._instruction())
            return self._trap()
        value: i64
        address = _signed(address)
        i: i64 = address >> 11 & 510
        if d & 255 == FLD:
            if self.rtlb[i] == (address & -4089) + self.data_tag:
                value = self.ram.data[(address + self.rtlb[i + 1]) >> 3]
            else:
                value = self.read(address, 8)
        else:
            value = self.read(address, 4) | _BOX
        if self.cause >= 0:
            return self._trap()
        self.f[d >> 8 & 31] = value
        self.mstatus |= FS
        return self._end(d) if self.event else False

    def store_float(self, d: i64, address: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        if not self.mstatus & FS:
            self._illegal(self._instruction())
            return self._trap()
        value = self.f[d >> 20 & 31]
        address = _signed(address)
        i: i64 = address >> 11 & 510
        if d & 255 == FSD:
            if self.wtlb[i] == (address & -4089) + self.data_tag:
                self.ram.data[(address + self.wtlb[i + 1]) >> 3] = value
            else:
                self.write(address, 8, value)
        else:
            self.write(address, 4, value)
        if self.cause >= 0:
            return self._trap()
        return self._end(d) if self.event else False

    def _instruction(self) -> i64:
        """The bits of the instruction at ``pc``, which was fetched."""
        low = self.fetch_half(self.pc)
        if low & 3 != 3:
            return low
        return low | self.fetch_half(_signed(self.pc + 2)) << 16

    def amo(self, d: i64, pc: i64, left: i64) -> bool:
        """An instruction of extension A."""
        self._begin(pc, left)
        if not self.atomic(d >> 32):
            return False
        return self._trap() if self.cause >= 0 else self._end(d)

    # -- Multiplication and division

    def muldiv(self, insn: i64) -> None:
        """Those of extension M other than MUL and MULW; rd is not x0."""
        x = self.x
        a = x[insn >> 15 & 31]
        b = x[insn >> 20 & 31]
        rd: i64 = insn >> 7 & 31
        kind: i64 = insn >> 12 & 7
        if insn & 8:
            if kind & 1:
                a &= _LOW32
                b &= _LOW32
            else:
                a = ((a & _LOW32) ^ _SIGN32) - _SIGN32
                b = ((b & _LOW32) ^ _SIGN32) - _SIGN32
        value: i64
        if kind < 4:
            value = _high(a, b)
            if a < 0 and kind != 3:
                value -= b
            if b < 0 and kind == 1:
                value -= a
            value = _signed(value)
        elif kind & 1:
            value = _divide_unsigned(a, b, kind == 7)
        elif b == 0:
            value = -1 if kind == 4 else a
        elif b == -1:
            value = _signed(-a) if kind == 4 else 0
        else:
            value = a // b
            if value < 0 and value * b != a:
                value += 1
            if kind == 6:
                value = a - value * b
        if insn & 8:
            value = ((value & _LOW32) ^ _SIGN32) - _SIGN32
        x[rd] = value

    # -- Control and status registers, and system instructions

    def csr(self, insn: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        number: i64 = insn >> 20 & 0xFFF
        kind: i64 = insn >> 12 & 3
        rs1: i64 = insn >> 15 & 31
        rd: i64 = insn >> 7 & 31
        operand: i64 = rs1 if insn & 0x4000 else self.x[rs1]
        old = self.csr_read(number)
        writes = kind == 1 or rs1 != 0
        if self.cause < 0 and writes:
            if kind == 1:
                self.csr_write(number, operand)
            elif number == 0x144 or number == 0x344:
                # What the supervisor sees of its timer is not written back.
                if kind == 2:
                    self.csr_write(number, self.mip | operand)
                else:
                    self.csr_write(number, self.mip & ~operand)
            elif kind == 2:
                self.csr_write(number, old | operand)
            else:
                self.csr_write(number, old & ~operand)
        if self.cause >= 0:
            self._illegal(insn)
            return self._trap()
        if rd:
            self.x[rd] = old
        if writes:
            self.pc = _signed(self.pc + 4)
            self.left -= 1
            return True
        return False

    def system(self, d: i64, pc: i64, left: i64) -> bool:
        self._begin(pc, left)
        insn: i64 = d >> 32 & _LOW32
        op: i64 = d & 255
        priv = self.priv
        status = self.mstatus
        if d >> 26 & 3 == 1 and insn != 0x100073:
            return self._illegal(insn) and self._trap()
        if op == SYSTEM:
            if insn == 0x73:
                self.cause = ECALL + priv
                self.tval = 0
                return self._trap()
            if insn == 0x100073:
                self.cause = BREAKPOINT
                self.tval = self.pc
                return self._trap()
            if insn == 0x30200073 and priv == MACHINE:
                self.left -= 1
                self.mret()
                return True
            if insn == 0x10200073 and priv >= SUPERVISOR and self.has_supervisor():
                if priv == MACHINE or not status & TSR:
                    self.left -= 1
                    self.sret()
                    return True
            if insn == 0x10500073 and (
                priv == MACHINE
                or (not status & TW and (priv == SUPERVISOR or not self.has_supervisor()))
            ):
                self.tick()
                self.waiting = self.mip & self.mie == 0
                return self._end(d)
            if insn & 0xFE007FFF == 0x12000073 and self.has_supervisor():
                if priv == MACHINE or (priv == SUPERVISOR and not status & TVM):
                    if insn >> 15 & 31:
                        self.forget(self.x[insn >> 15 & 31])
                    else:
                        self.flush()
                    return self._end(d)
            if insn & 0x7FFF == 0x200F and self._cache_block(insn):
                return self._trap() if self.cause >= 0 else self._end(d)
            if insn == 0x00D00073 or insn == 0x01D00073:
                # Waits for a reservation to be lost, or any shorter time.
                return self._end(d)
        self._illegal(insn)
        return self._trap()

    def _cache_block(self, insn: i64) -> bool:
        """CBO.INVAL, CLEAN, FLUSH and ZERO (Zicbom, Zicboz); whether this mode may."""
        kind: i64 = insn >> 20
        enabled: i64 = 0x30  # of menvcfg and senvcfg
        if kind == 4:
            enabled = 0x80
        elif kind:
            enabled = 0x40
        if self.priv < MACHINE and not self.menvcfg & enabled:
            return False
        if self.priv == USER and self.has_supervisor() and not self.senvcfg & enabled:
            return False
        # There are no caches: all that is left is whether the block may be accessed, and zeros.
        address = self.x[insn >> 15 & 31] & -64
        if kind == 4:
            # All of it or nothing.
            self.reach(address, 64, WRITE)
            i: i64 = 0
            while i < 64 and self.cause < 0:
                self.write(address + i, 8, 0)
                i += 8
        else:
            self.reach(address, 8, READ)
            if self.cause >= 0:
                # One that may be stored to will do, and the faults are those of a store.
                self.cause = -1
                self.reach(address, 8, WRITE)
        return True

    # -- Floating point

    def float(self, d: i64, pc: i64, left: i64) -> bool:
        """An instruction of extensions F and D but for loads and stores."""
        self._begin(pc, left)
        insn: i64 = d >> 32 & _LOW32
        if not self.mstatus & FS or not self.compute(insn):
            self._illegal(insn)
            return self._trap()
        self.mstatus |= FS
        return False

    def _operand(self, number: i64, fmt: i64) -> i64:
        value = self.f[number]
        if fmt == 0:
            # What is not a single counts as one that is not a number.
            if value >> 32 != -1:
                return _NAN32
            return value & _LOW32
        return value

    def compute(self, insn: i64) -> bool:
        """Execute one that only reads and writes registers; or there is no such instruction."""
        fpu = self.fpu
        x = self.x
        rd: i64 = insn >> 7 & 31
        kind: i64 = insn >> 12 & 7
        rs1: i64 = insn >> 15 & 31
        rs2: i64 = insn >> 20 & 31
        fmt: i64 = insn >> 25 & 3
        which: i64 = insn >> 27
        rm: i64 = kind if kind != 7 else self.frm
        value: i64
        if insn & 0x7F != 0x53:
            if rm > 4:
                return False
            a = self._operand(rs1, fmt)
            b = self._operand(rs2, fmt)
            c = self._operand(which, fmt)
            which = insn >> 2 & 3
            if which == 0:
                value = fpu.fmadd(a, b, c, fmt, rm)
            elif which == 1:
                value = fpu.fmsub(a, b, c, fmt, rm)
            elif which == 2:
                value = fpu.fnmsub(a, b, c, fmt, rm)
            else:
                value = fpu.fnmadd(a, b, c, fmt, rm)
        elif which < 4:
            if rm > 4:
                return False
            a = self._operand(rs1, fmt)
            b = self._operand(rs2, fmt)
            if which == 0:
                value = fpu.add(a, b, fmt, rm)
            elif which == 1:
                value = fpu.sub(a, b, fmt, rm)
            elif which == 2:
                value = fpu.mul(a, b, fmt, rm)
            else:
                value = fpu.div(a, b, fmt, rm)
        elif which == 4 and kind < 3:
            a = self._operand(rs1, fmt)
            b = self._operand(rs2, fmt)
            if kind == 0:
                value = fpu.sgnj(a, b, fmt)
            elif kind == 1:
                value = fpu.sgnjn(a, b, fmt)
            else:
                value = fpu.sgnjx(a, b, fmt)
        elif which == 5 and kind < 2:
            a = self._operand(rs1, fmt)
            b = self._operand(rs2, fmt)
            value = fpu.min(a, b, fmt) if kind == 0 else fpu.max(a, b, fmt)
        elif which == 11 and rs2 == 0 and rm < 5:
            value = fpu.sqrt(self._operand(rs1, fmt), fmt, rm)
        elif which == 8 and rs2 == 1 - fmt and rm < 5 and self.pages.misa & 8:
            if fmt:
                value = fpu.widen(self._operand(rs1, 0))
            else:
                value = fpu.narrow(self._operand(rs1, 1), rm)
        elif which == 20 and kind < 3:
            a = self._operand(rs1, fmt)
            b = self._operand(rs2, fmt)
            if kind == 2:
                value = fpu.eq(a, b, fmt)
            elif kind == 1:
                value = fpu.lt(a, b, fmt)
            else:
                value = fpu.le(a, b, fmt)
            if rd:
                x[rd] = value
            return True
        elif which == 24 and rs2 < 4 and rm < 5:
            value = fpu.to_integer(self._operand(rs1, fmt), rs2, fmt, rm)
            if rd:
                x[rd] = value
            return True
        elif which == 26 and rs2 < 4 and rm < 5:
            value = fpu.from_integer(x[rs1], rs2, fmt, rm)
        elif which == 28 and rs2 == 0 and kind < 2:
            if kind == 1:
                value = fpu.classify(self._operand(rs1, fmt), fmt)
            elif fmt:
                value = self.f[rs1]
            else:
                value = ((self.f[rs1] & _LOW32) ^ _SIGN32) - _SIGN32
            if rd:
                x[rd] = value
            return True
        elif which == 30 and rs2 == 0 and kind == 0:
            value = x[rs1] if fmt else x[rs1] & _LOW32
        else:
            return False
        self.f[rd] = value if fmt else value | _BOX
        return True

    # -- The whole state

    def state(self) -> HartState:
        """All there is of the hart; ``mtimecmp`` is the board's."""
        csrs = dict(self.hpm)
        for name in CSRS:
            if name == "mstatus":
                value = int(self.status())
            elif name == "fcsr":
                value = int(self.frm << 5 | self.fpu.flags)
            else:
                value = int(getattr(self, name))
            csrs[name] = value & _MASK
        if not self.svadu:
            # Walks set accessed and dirty bits, and a hart that has ADUE is to be told.
            csrs["menvcfg"] |= 1 << 61
        return HartState(
            hart_id=int(self.hart_id),
            x=[int(self.x[i]) & _MASK for i in range(32)],
            f=[int(self.f[i]) & _MASK for i in range(32)],
            pc=int(self.pc) & _MASK,
            privilege=int(self.priv),
            csrs=csrs,
            pmpcfg=[int(n) for n in self.pmpcfg],
            pmpaddr=[int(n) for n in self.pmpaddr],
            reserved=int(self.reserved) & _MASK,
            reserved_value=int(self.reserved_value) & _MASK,
            waiting=self.waiting,
        )

    def adopt(self, state: HartState) -> None:
        """Become what ``state`` says; raises ``ValueError``, and stays what it was, if it cannot.

        ``misa`` keeps the letters of extensions that this hart does not have, for the guest to see.
        """
        csrs = state.csrs
        misa = csrs.get("misa", 0)
        if misa >> 62 != 2:
            raise ValueError(f"a hart of 64 bits has misa.MXL 2, not {misa >> 62}")
        if state.privilege not in (0, 1, 3):
            raise ValueError(f"there is no privilege mode {state.privilege}")
        for name, value in csrs.items():
            if value and name not in CSRS and not name.startswith("mhpm"):
                raise ValueError(f"this hart has no register {name}")
        if len(state.x) != 32 or len(state.f) != 32:
            raise ValueError("a hart has 32 registers of a kind")
        lengths = csrs.get("mstatus", 0) & _XLEN
        if lengths & 3 << 32 == 1 << 32 or lengths & 3 << 34 == 1 << 34:
            raise ValueError("this hart has no modes of 32 bits")
        if csrs.get("satp", 0) >> 60 not in (0, 8, 9, 10):
            raise ValueError(f"there is no translation mode {csrs['satp'] >> 60}")
        self.reset(0)
        features = self.features
        self.set_misa(signed(misa))
        self.hpm = {name: value for name, value in csrs.items() if name.startswith("mhpm")}
        menvcfg = csrs.get("menvcfg", 0)
        self.sstc = features.sstc or menvcfg >> 63 != 0
        self.svpbmt = features.svpbmt or menvcfg >> 62 & 1 != 0
        self.svadu = features.svadu or menvcfg >> 61 & 1 != 0
        # Where it comes from there may be all of them; it uses those that it has found there.
        self.pmp_entries = PMP_ENTRIES
        for name, value in csrs.items():
            if name not in ("misa", "fcsr", "mcycle", "minstret", "mcountinhibit"):
                if name in CSRS:
                    setattr(self, name, signed(value))
        self.mstatus = self.mstatus & ~(_LEAST | _XLEN) | _XLEN64
        if self.mstatus & MPP == 2 << 11:
            self.mstatus &= ~MPP
        fcsr = csrs.get("fcsr", 0)
        self.frm = fcsr >> 5 & 7
        self.fpu.flags = fcsr & 31
        self.set_counters(
            signed(csrs.get("mcycle", 0)),
            signed(csrs.get("minstret", 0)),
            signed(csrs.get("mcountinhibit", 0)),
        )
        for i in range(32):
            self.x[i] = signed(state.x[i])
            self.f[i] = signed(state.f[i])
        self.x[0] = 0
        for i in range(PMP_ENTRIES):
            self.pmpcfg[i] = state.pmpcfg[i] & 0xFF
            # QEMU keeps bits that there are not.
            self.pmpaddr[i] = state.pmpaddr[i] & (1 << 54) - 1
        self.pc = signed(state.pc)
        self.priv = state.privilege
        self.reserved = signed(state.reserved)
        self.reserved_value = signed(state.reserved_value)
        self.waiting = state.waiting
        self.mode_changed()
        self.pmp_changed()


def _signed(n: i64) -> i64:
    """``n``, or what 64 bits make of it."""
    big: i64 = 0
    big += 1 << 61
    return ((n & (big * 8 - 1)) ^ (big * 4)) - big * 4


def _high(a: i64, b: i64) -> i64:
    """The upper half of the product of two unsigned numbers."""
    a0: i64 = a & _LOW32
    a1: i64 = a >> 32 & _LOW32
    b0: i64 = b & _LOW32
    b1: i64 = b >> 32 & _LOW32
    middle: i64 = a1 * b0 + (a0 * b0 >> 32 & _LOW32)
    other: i64 = a0 * b1 + (middle & _LOW32)
    return a1 * b1 + (middle >> 32 & _LOW32) + (other >> 32 & _LOW32)


def _divide_unsigned(a: i64, b: i64, remainder: bool) -> i64:
    quotient: i64
    if b == 0:
        return a if remainder else -1
    if b < 0:
        # Half of all numbers or more: it fits once or not at all.
        quotient = 1 if (a ^ _LEAST) >= (b ^ _LEAST) else 0
    elif a >= 0:
        quotient = a // b
    else:
        quotient = _signed(((a >> 1 & ~_LEAST) // b) << 1)
        rest = _signed(a - quotient * b)
        if rest < 0 or rest >= b:
            quotient += 1
    return _signed(a - quotient * b) if remainder else _signed(quotient)
