"""A few RISC-V instructions as numbers, and a bare hart to run them."""

from collections.abc import Callable
from typing import Any

from savevm.machine.clock import Clock
from savevm.machine.cpu import Features, Hart
from savevm.machine.memory import Bus, GuestRam

BASE = 0x8000_0000
HANDLER = BASE + 0x800
MASK = (1 << 64) - 1

ECALL = 0x0000_0073
EBREAK = 0x0010_0073
MRET = 0x3020_0073
SRET = 0x1020_0073
WFI = 0x1050_0073
SFENCE = 0x1200_0073
NOP = 0x0000_0013
C_NOP = 0x0001


def r(opcode: int, rd: int, kind: int, rs1: int, rs2: int, function: int) -> int:
    return function << 25 | rs2 << 20 | rs1 << 15 | kind << 12 | rd << 7 | opcode


def i(opcode: int, rd: int, kind: int, rs1: int, imm: int) -> int:
    return (imm & 0xFFF) << 20 | rs1 << 15 | kind << 12 | rd << 7 | opcode


def addi(rd: int, rs1: int, imm: int) -> int:
    return i(0x13, rd, 0, rs1, imm)


def load(rd: int, rs1: int, imm: int = 0, kind: int = 3) -> int:
    """``kind`` is funct3: 0 LB, 1 LH, 2 LW, 3 LD, 4 LBU, 5 LHU, 6 LWU."""
    return i(0x03, rd, kind, rs1, imm)


def store(rs2: int, rs1: int, imm: int = 0, kind: int = 3) -> int:
    """``kind`` is funct3: 0 SB, 1 SH, 2 SW, 3 SD."""
    return r(0x23, imm & 31, kind, rs1, rs2, imm >> 5 & 127)


def branch(kind: int, rs1: int, rs2: int, to: int) -> int:
    """``kind`` is funct3: 0 BEQ, 1 BNE."""
    low = to & 0x1E | to >> 11 & 1
    return r(0x63, low, kind, rs1, rs2, (to >> 12 & 1) << 6 | to >> 5 & 63)


def jal(rd: int, to: int) -> int:
    high = (to >> 20 & 1) << 19 | (to >> 1 & 0x3FF) << 9 | (to >> 11 & 1) << 8 | to >> 12 & 0xFF
    return high << 12 | rd << 7 | 0x6F


def jalr(rd: int, rs1: int, imm: int = 0) -> int:
    return i(0x67, rd, 0, rs1, imm)


def csr(kind: int, rd: int, number: int, rs1: int) -> int:
    """``kind`` is funct3: 1 CSRRW, 2 CSRRS, 3 CSRRC."""
    return i(0x73, rd, kind, rs1, number)


def amo(function: int, rd: int, rs1: int, rs2: int, kind: int = 3) -> int:
    """``function``: 0 AMOADD, 1 AMOSWAP, 2 LR, 3 SC; ``kind`` 2 for words, 3 for doublewords."""
    return r(0x2F, rd, kind, rs1, rs2, function << 2)


class Console:
    """A device of 16 bytes that keeps what is written; reads give the offset."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.then: Callable[[], Any] = lambda: None

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))
        self.then()


class Bare:
    """A hart, RAM, ROM at 0x1000 and a ``Console`` at 0x1000_0000."""

    def __init__(self, features: Features | None = None, memory: int = 1 << 20) -> None:
        self.ram = GuestRam("ram", memory, BASE)
        self.rom = GuestRam("rom", 0x1000, 0x1000)
        self.bus = Bus()
        self.console = Console()
        self.bus.add(0x1000_0000, 16, self.console)
        self.clock = Clock(0)
        self.hart = Hart(0, self.bus, self.ram, self.rom, self.clock, features)
        self.hart.reset(BASE)

    def put(self, at: int, *code: int) -> int:
        """Instructions, of 32 bits where they say so; the address behind them."""
        data = b"".join(n.to_bytes(4 if n & 3 == 3 else 2, "little") for n in code)
        self.ram.write(at - BASE, data)
        return at + len(data)

    def run(self, *code: int, count: int = 0, **x: int) -> None:
        """Run code at ``BASE``, as many instructions as there are, with ``x5=…`` in registers."""
        self.put(BASE, *code)
        self.hart.pc = signed(BASE)
        self.set(**x)
        self.hart.run(count or len(code))

    def set(self, **x: int) -> None:
        for name, value in x.items():
            self.hart.x[int(name[1:])] = signed(value)

    def x(self, number: int) -> int:
        return int(self.hart.x[number]) & MASK

    def csr(self, name: str) -> int:
        return int(getattr(self.hart, name)) & MASK

    def word(self, at: int) -> int:
        return int.from_bytes(self.ram.view[at - BASE : at - BASE + 8], "little")

    def set_word(self, at: int, value: int) -> None:
        self.ram.write(at - BASE, value.to_bytes(8, "little"))

    def enter(self, priv: int, **registers: int) -> None:
        """Go on in a mode, with CSRs as named."""
        for name, value in registers.items():
            setattr(self.hart, name, signed(value))
        self.hart.priv = priv
        self.hart.mode_changed()
        self.hart.flush()

    def protect(self, *entries: tuple[int, int]) -> None:
        """Set PMP entries from the first on: configuration and address register."""
        for index, (cfg, address) in enumerate(entries):
            self.hart.pmpcfg[index] = cfg
            self.hart.pmpaddr[index] = address
        self.hart.pmp_changed()

    def open(self) -> None:
        """Let all modes access everything."""
        self.protect((0x1F, (1 << 54) - 1))

    def map(self, virtual: int, physical: int, bits: int, root: int = BASE + 0x10000) -> int:
        """Map a page in Sv39, with tables from ``root`` on; where its entry is."""
        table = root
        for level in (2, 1):
            at = table + (virtual >> (12 + 9 * level) & 511) * 8
            if not self.word(at):
                self._next_table = getattr(self, "_next_table", root) + 0x1000
                self.set_word(at, self._next_table >> 12 << 10 | 1)
            table = self.word(at) >> 10 << 12
        at = table + (virtual >> 12 & 511) * 8
        self.set_word(at, physical >> 12 << 10 | bits)
        return at


def signed(n: int) -> int:
    """A register as the hart has it."""
    return ((n & MASK) ^ 1 << 63) - (1 << 63)
