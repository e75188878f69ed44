"""Random programs in all modes under Sv39, with traps of all kinds, go here as on a real QEMU.

Pages have random permissions and change them; the traps, each with what the registers say of it, the
memory and the page tables with their accessed and dirty bits have to be the same in the end.
"""

import random
import struct
import subprocess
from pathlib import Path

import pytest
from qemus import find_qemu
from riscv import EBREAK, ECALL, MRET, SRET, addi, amo, csr, i, load, r, store
from test_lockstep import FIRMWARE, RAM, Code, b_type, csrr, csrw, here, on_qemu, send, u_type

PROGRAMS = 24
OPERATIONS = 120

USER, SUPERVISOR, MACHINE = 0, 1, 3
# All of RAM for the supervisor, and to read and execute for the user: base = number << shift.
BASES = {MACHINE: (1, 31), SUPERVISOR: (0, 0), USER: (-1, 30)}
PAGES = 32  # small ones from WINDOW on; the last eight lead to code
LARGE = 4  # and large ones, behind each other
WINDOW = 0x4000_0000

# Offsets in RAM.
DATA = 0x60_0000  # eight pages, one that is spared, and four of code
CODE = DATA + 0x9000
END = CODE + 0x4000
TABLES = 0x70_0000  # of each program twice: root, middle, leaves
LOGS = {MACHINE: 0xA0_0000, SUPERVISOR: 0xA8_0000}
LOG = 0x1_8000
RECORD = 48

V, R, W, X, U, A, D = 1, 2, 4, 8, 16, 64, 128
MSTATUS, MEDELEG, MIDELEG, MIE, MTVEC, MSCRATCH, MEPC = (
    0x300,
    0x302,
    0x303,
    0x304,
    0x305,
    0x340,
    0x341,
)
SSTATUS, STVEC, SSCRATCH, SATP, SIP = 0x100, 0x105, 0x140, 0x180, 0x144
FENCE_I = 0x100F

JR_RA = 0x8082
ZERO = 0  # registers
RA, ADDRESS, TARGET, MODE = 1, 5, 28, 29
DATA_REGISTERS = range(6, 28)


def entry(at: int, bits: int) -> int:
    """A page table entry for an offset in RAM."""
    return RAM + at >> 12 << 10 | bits


def assemble(*items: int | str | tuple[int, int, str]) -> list[int]:
    """Words, with labels, and branches to them as (funct3, rs1, label)."""
    words: list[int] = []
    labels = {}
    for item in items:
        if isinstance(item, str):
            labels[item] = 4 * len(words)
        else:
            words.append(item if isinstance(item, int) else 0)
    branches = [item for item in items if not isinstance(item, str)]
    for at, item in enumerate(branches):
        if isinstance(item, tuple):
            kind, rs1, label = item
            words[at] = b_type(kind, rs1, ZERO, labels[label] - 4 * at)
    return words


def handler(machine: bool) -> list[int]:
    """Note the trap and go on: behind it, or where x1 says if it was a jump, or as ECALL asks."""
    group = 0x300 if machine else 0x100
    status, scratch, epc, cause, tval = (group | n for n in (0, 0x40, 0x41, 0x42, 0x43))
    mask = 0x2_1800 if machine else 0x100  # MPRV and MPP, or SPP
    note = [
        word
        for at, number in enumerate((cause, epc, tval, status), 1)
        for word in (csrr(30, number), store(30, 31, 8 * at))
    ]
    return assemble(
        csr(1, 31, scratch, 31),
        store(30, 31),
        *note,
        csrr(30, cause),
        (4, 30, "interrupt"),
        addi(30, 30, -12),
        (0, 30, "jump"),
        addi(30, 30, 11),
        (0, 30, "jump"),
        addi(30, 30, -7),
        (0, 30, "call"),
        addi(30, 30, -1),
        (0, 30, "call"),
        addi(30, 30, -2),
        (0, 30, "call"),
        csrr(30, epc),
        addi(30, 30, 4),
        csrw(epc, 30),
        (0, ZERO, "end"),
        "interrupt",
        csr(7, 0, 0x344 if machine else SIP, 2),
        (0, ZERO, "end"),
        "jump",
        csrw(epc, RA),
        (0, ZERO, "end"),
        "call",
        csrw(epc, TARGET),
        u_type(0x37, 30, mask + 0x800),
        addi(30, 30, mask & 0xFFF),
        csr(3, 0, status, 30),
        csr(2, 0, status, MODE),
        "end",
        load(30, 31),
        addi(31, 31, RECORD),
        csr(1, 31, scratch, 31),
        MRET if machine else SRET,
    )


class Program:
    """A random program in the making: the mode that it is in is known throughout."""

    def __init__(self, code: Code, number: int, seed: int, modern: bool) -> None:
        self.code = code
        self.number = number
        self.modern = modern
        self.random = random.Random(seed)
        self.choice = self.random.choice
        self.mode = MACHINE
        self.protected = bool(self.random.getrandbits(1))
        self.fenced = True  # the supervisor may fence
        self.tables = TABLES + number * 6 * 4096
        self.delegated = bool(self.random.getrandbits(1))  # ECALL of the user

    def root(self, which: int) -> int:
        return 8 << 60 | RAM + self.tables + 3 * 4096 * which >> 12

    def leaf(self, code: bool) -> int:
        """A page table entry, of a page with code or data, mostly a useful one."""
        page = self.random.randrange(4) if code else self.random.randrange(8)
        at = (CODE if code else DATA) + 4096 * page
        bits = V | self.random.choice((U, 0)) | self.choice((R, R | W, R | X, X, R | W | X))
        bits |= self.choice((0, A, A | D, A | D))
        if code and self.random.randrange(3):
            bits |= X
        odd = self.random.randrange(16)
        if odd == 0:
            bits &= ~V
        elif odd == 1:
            bits = V | W | (bits & (U | X))
        elif odd == 2:
            # There is nothing; could it not be written, QEMU's atomics would not see that first.
            return 0x4000_0000 >> 12 << 10 | (bits & U) | V | R | W | A | D
        elif odd == 3:
            bits |= 1 << self.random.randrange(54, 61)
        elif odd == 4:
            bits |= 3 << 8  # for software
        return entry(at, bits)

    def large(self) -> int:
        """An entry of 2 MiB: all of the data's, or not aligned."""
        bits = self.leaf(False) & 0xFF
        return entry(DATA & -(2 << 20) if self.random.randrange(5) else DATA + 4096, bits)

    def memory(self) -> bytes:
        """The tables as they begin."""
        said = b""
        for which in range(2):
            base = self.tables + 3 * 4096 * which
            root = [0] * 512
            root[0] = entry(0, V | R | W | X | A | D)
            root[511] = entry(0, V | R | X | U | A | D)
            root[1] = entry(base + 4096, V)
            middle = [0] * 512
            middle[0] = entry(base + 8192, V)
            for n in range(1, LARGE + 1):
                middle[n] = self.large()
            leaves = [self.leaf(n >= PAGES - 8) for n in range(PAGES)] + [0] * (512 - PAGES)
            said += struct.pack("<1536Q", *root, *middle, *leaves)
        return said

    # Instructions

    def put(self, *words: int) -> None:
        self.code.put(*words)

    def number_to(self, register: int, value: int) -> None:
        """A number of up to 44 bits into a register, in 4 instructions."""
        upper = value + 0x800 >> 12
        high = upper + 0x800 >> 12
        # lui takes 20 bits, so that the lower 24 are shifted in.
        self.put(
            u_type(0x37, register, high << 12 & 0xFFFF_FFFF),
            addi(register, register, upper - (high << 12) & 0xFFF),
            i(0x13, register, 1, register, 12),
            addi(register, register, value & 0xFFF),
        )

    def switch(self, mode: int) -> None:
        """Go on in another mode."""
        if self.mode == USER and mode == MACHINE and self.delegated:
            self.switch(SUPERVISOR)
        begin = len(self.code.bytes)
        supervised = self.mode == USER and self.delegated
        use_sret = self.mode == SUPERVISOR and mode != MACHINE and self.random.getrandbits(1)
        if use_sret:
            self.number_to(TARGET, 0)
            self.target(mode, begin + 4 * 13)
            self.put(csrw(0x141, TARGET), addi(MODE, ZERO, 0x100))
            self.put(csr(3 if mode == USER else 2, 0, SSTATUS, MODE), SRET)
            assert len(self.code.bytes) == begin + 4 * 13
        else:
            self.put(addi(MODE, ZERO, mode))
            self.target(mode, begin + 4 * 10)
            self.put(addi(MODE, ZERO, mode), i(0x13, MODE, 1, MODE, 8 if supervised else 11))
            self.put(0x13)
            self.put(ECALL)
            assert len(self.code.bytes) == begin + 4 * 10
        self.mode = mode

    def target(self, mode: int, at: int) -> None:
        """The address of an offset in RAM, as a mode has it, in 5 instructions."""
        number, shift = BASES[mode]
        self.put(u_type(0x37, TARGET, at + 0x800), addi(TARGET, TARGET, at & 0xFFF))
        self.put(addi(MODE, ZERO, number), i(0x13, MODE, 1, MODE, shift))
        self.put(r(0x33, TARGET, 0, TARGET, MODE, 0))

    def register(self) -> int:
        return self.choice(DATA_REGISTERS)

    def window(self, code: bool = False) -> int:
        """The address of a page."""
        if not code and self.random.randrange(5) == 0:
            large = self.random.randrange(1, LARGE + 1) << 21
            return WINDOW + large + (DATA & (2 << 20) - 1) + 4096 * self.random.randrange(8)
        if code:
            return WINDOW + 4096 * self.random.randrange(PAGES - 8, PAGES)
        # The one before those is not for data that ends behind it.
        return WINDOW + 4096 * self.random.randrange(PAGES - 9)

    def address(self, size: int) -> int:
        """Where data may be, or not."""
        offset = self.choice((0, 8, 0x7F8, 0x800, 0xFF0, 0xFF8)) + self.random.randrange(8)
        if self.protected or self.random.randrange(4):
            # An access of which a part is protected may count as several.
            offset &= -size
        at = self.window() + offset
        if self.random.randrange(20) == 0:
            at |= 1 << self.random.randrange(39, 43)  # not canonical
        elif self.mode == MACHINE and self.random.getrandbits(1):
            at = RAM + DATA + (at & 0x7FFF)
        return at

    def operation(self) -> None:
        kinds = [self.access] * 10 + [self.atomic] * 4 + [self.jump] * 4 + [self.floating] * 3
        kinds += [self.remap] * 3 + [self.fence, self.status, self.status, self.interrupt]
        kinds += [self.reserve, self.patch, self.patch, self.forbidden, self.move, self.move]
        kinds += [self.space]
        if self.modern:
            kinds += [self.block]
        self.choice(kinds)()

    def access(self) -> None:
        width = self.random.randrange(4)
        self.number_to(ADDRESS, self.address(1 << width))
        if self.random.getrandbits(1):
            sign = 4 if width < 3 and self.random.getrandbits(1) else 0
            self.put(load(self.register(), ADDRESS, 0, width | sign))
        else:
            self.put(store(self.register(), ADDRESS, 0, width))

    def atomic(self) -> None:
        width = self.choice((2, 3))
        self.number_to(ADDRESS, self.address(1 << width) & -(1 << width))
        function = self.choice((0x00, 0x01, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C))
        self.put(amo(function, self.register(), ADDRESS, self.register(), width))

    def reserve(self) -> None:
        """LR and SC, and what may come between."""
        width = self.choice((2, 3))
        address = self.address(8) & -8
        self.number_to(ADDRESS, address)
        self.put(amo(2, self.register(), ADDRESS, 0, width))
        if self.random.getrandbits(1):
            self.put(self.choice((0xFFFF_FFFF, csrr(self.register(), 0x7C0), 0x13)))
        self.put(amo(3, self.register(), ADDRESS, self.register(), width))

    def floating(self) -> None:
        width = self.choice((2, 3))
        f = self.random.randrange(32)
        kind = self.random.randrange(4)
        self.number_to(ADDRESS, self.address(1 << width))
        if kind == 0:
            self.put(i(0x07, f, width, ADDRESS, 0))
        elif kind == 1:
            self.put(r(0x27, 0, width, ADDRESS, f, 0))
        elif kind == 2:
            self.put(r(0x53, f, 0, self.random.randrange(32), self.random.randrange(32), 1))
        else:
            self.put(csr(1, self.register(), 3, self.register()))

    def jump(self) -> None:
        if self.mode != MACHINE:
            self.number_to(ADDRESS, self.window(True) + 2 * self.random.randrange(2040))
            self.put(i(0x67, RA, 0, ADDRESS, 0))

    def patch(self) -> None:
        """Write code, and run it, mostly through another address."""
        offset = 4 * self.random.randrange(1024)
        number = self.random.randrange(31)
        self.number_to(ADDRESS, self.window(True) + offset)
        self.number_to(MODE, JR_RA << 16 | 0x4501 | number << 2)  # c.li a0; c.jr ra
        self.put(store(MODE, ADDRESS, 0, 2), FENCE_I)
        if self.mode != MACHINE:
            self.number_to(ADDRESS, self.window(True) + offset)
            self.put(i(0x67, RA, 0, ADDRESS, 0))
            self.put(r(0x33, self.register(), 0, self.register(), 10, 0))

    def block(self) -> None:
        self.number_to(ADDRESS, self.address(8))
        kind = self.choice((0, 1, 2, 4, 4, 4))
        self.put(i(0x0F, 0, 2, ADDRESS, kind))

    def remap(self) -> None:
        """Another entry, and the fence that it needs."""
        if self.mode == USER or (self.mode == SUPERVISOR and not self.fenced):
            return
        which = self.random.randrange(2)
        base = self.tables + 3 * 4096 * which
        if self.random.randrange(4):
            page = self.random.randrange(PAGES)
            at, value = base + 8192 + 8 * page, self.leaf(page >= PAGES - 8)
            address = WINDOW + 4096 * page
        else:
            page = self.random.randrange(1, LARGE + 1)
            at, value = base + 4096 + 8 * page, self.large()
            address = WINDOW + (page << 21) + (DATA & (2 << 20) - 1)
        self.number_to(ADDRESS, at + (RAM if self.mode == MACHINE else 0))
        high = value >> 54
        self.number_to(MODE, value & (1 << 54) - 1)
        self.put(addi(TARGET, ZERO, high), i(0x13, TARGET, 1, TARGET, 54))
        self.put(r(0x33, MODE, 6, MODE, TARGET, 0), store(MODE, ADDRESS))
        self.number_to(ADDRESS, address)
        self.put(self.choice((0x1200_0073, 0x1200_0073 | ADDRESS << 15)))

    def fence(self) -> None:
        self.put(self.choice((0x1200_0073, FENCE_I, 0x0FF0_000F)))

    def space(self) -> None:
        """The other tables."""
        if self.mode == USER:
            return
        self.number_to(ADDRESS, self.root(self.random.randrange(2)) & (1 << 44) - 1)
        self.put(addi(MODE, ZERO, 1), i(0x13, MODE, 1, MODE, 63))
        self.put(r(0x33, ADDRESS, 6, ADDRESS, MODE, 0), csrw(SATP, ADDRESS))

    def status(self) -> None:
        """Bits of sstatus, or mstatus, and in machine mode what it delegates."""
        if self.mode == USER:
            return
        if self.mode == SUPERVISOR:
            self.number_to(ADDRESS, self.choice((1 << 18, 1 << 19, 3 << 18, 3 << 13, 1 << 13, 2)))
            self.put(csr(self.choice((2, 3)), self.register(), SSTATUS, ADDRESS))
        elif self.random.randrange(3) == 0:
            # Not to touch: bits of ECALL.
            self.number_to(ADDRESS, self.random.getrandbits(16) & ~0x700)
            self.put(csr(self.choice((2, 3)), self.register(), MEDELEG, ADDRESS))
        else:
            bit = self.choice((1 << 17, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21))
            kind = self.choice((2, 3))
            if bit == 1 << 17 and kind == 2:
                self.number_to(ADDRESS, 3 << 11)
                self.put(csr(3, 0, MSTATUS, ADDRESS))
                bit |= self.choice((0, 1, 3)) << 11
            if bit == 1 << 20:
                self.fenced = kind == 3
            self.number_to(ADDRESS, bit)
            self.put(csr(kind, self.register(), MSTATUS, ADDRESS))

    def interrupt(self) -> None:
        if self.mode == USER:
            return
        machine = self.mode == MACHINE
        which = self.random.randrange(4)
        if which == 0 and machine:
            self.put(csr(self.choice((6, 7)), 0, MIDELEG, 2))
        elif which == 1:
            self.put(csr(self.choice((6, 7)), 0, MIE if machine else 0x104, 2))
        else:
            self.put(csr(6, 0, 0x344 if machine else SIP, 2))

    def forbidden(self) -> None:
        """What is for higher modes, or for none."""
        words = [csrr(self.register(), n) for n in (SATP, SSTATUS, 0x340, 0x106, 0xC01, 0x5C0)]
        if self.mode == USER:
            words += [SRET, MRET, 0x1050_0073, 0x1200_0073]
        elif self.mode == SUPERVISOR:
            words += [MRET, EBREAK]
        self.put(self.choice(words))

    def move(self) -> None:
        self.switch(self.choice((MACHINE, SUPERVISOR, SUPERVISOR, USER, USER)))

    def all(self) -> None:
        self.number_to(ADDRESS, self.root(0) & (1 << 44) - 1)
        self.put(addi(MODE, ZERO, 1), i(0x13, MODE, 1, MODE, 63))
        self.put(r(0x33, ADDRESS, 6, ADDRESS, MODE, 0), csrw(SATP, ADDRESS), 0x1200_0073)
        self.number_to(ADDRESS, self.random.getrandbits(16) & 0xB0FF | (self.delegated << 8))
        self.put(csrw(MEDELEG, ADDRESS))
        self.number_to(ADDRESS, 0x72_0000 | 0x1800 | 0x6000)
        self.put(csr(3, 0, MSTATUS, ADDRESS))
        self.put(addi(ADDRESS, ZERO, 1), i(0x13, ADDRESS, 1, ADDRESS, 13))
        self.put(csr(2, 0, MSTATUS, ADDRESS))
        if self.modern:
            self.put(addi(ADDRESS, ZERO, self.choice((0, 0xF0))))
            self.put(csrw(0x10A, ADDRESS), csr(2, 0, 0x30A, ADDRESS))
        # A page of data and a part of one are protected, the rest is not.  All may be read: QEMU's
        # atomics would see first where it may not.
        guards = 0x1F << 16
        for n, size in enumerate((4096, self.choice((8, 64, 4096)))):
            at = RAM + DATA + size * self.random.randrange(8 * 4096 // size)
            self.number_to(ADDRESS, at + size // 2 - 1 >> 2)
            self.put(csrw(0x3B0 + n, ADDRESS))
            if self.protected:
                guards |= self.choice((0x19, 0x1B, 0x1D)) << 8 * n
        self.number_to(ADDRESS, guards)
        self.put(csrw(0x3A0, ADDRESS), 0x1200_0073)
        for n in DATA_REGISTERS:
            self.number_to(n, self.random.getrandbits(40))
        for _ in range(OPERATIONS):
            self.operation()
        self.switch(MACHINE)
        self.put(csr(1, 31, MSCRATCH, 31))
        self.put(*(store(n, 31, 8 * n) for n in range(31)))
        self.put(addi(31, 31, 8 * 36), csr(1, 31, MSCRATCH, 31))


def image(seed: int, modern: bool) -> bytes:
    """Raw firmware that runs the programs and sends what they leave to the console."""
    code = Code(RAM)
    handlers = [handler(True), handler(False)]
    supervisors = 8 + 4 * len(handlers[0])
    code.put(b_type(0, ZERO, ZERO, supervisors + 4 * len(handlers[1])), 0x13)
    for words in handlers:
        code.put(*words)
    code.point(5, RAM + 8)
    code.put(csrw(MTVEC, 5))
    code.put(addi(5, ZERO, supervisors), csrw(STVEC, 5))
    code.point(5, RAM + LOGS[MACHINE])
    code.put(csrw(MSCRATCH, 5), u_type(0x37, 5, LOGS[SUPERVISOR]), csrw(SSCRATCH, 5))
    # All of memory for all modes.
    code.put(addi(5, ZERO, -1), i(0x13, 5, 5, 5, 10), csrw(0x3B2, 5))
    code.put(u_type(0x37, 5, 0x6000), csr(2, 0, MSTATUS, 5))
    code.put(*(r(0x53, n, 0, 0, 0, 0x79) for n in range(32)))
    tables = b""
    for number in range(PROGRAMS):
        program = Program(code, number, seed * 1_000_003 + number, modern)
        tables += program.memory()
        program.all()
    assert len(code.bytes) < DATA
    assert TABLES + len(tables) < LOGS[MACHINE]
    parts = [(at, LOG) for at in LOGS.values()] + [(DATA, END - DATA), (TABLES, len(tables))]
    send(code, *((RAM + at, RAM + at + count) for at, count in parts))
    content = bytes(code.bytes)
    content += bytes(DATA - len(content))
    content += random.Random(seed).randbytes(CODE - DATA)
    content += struct.pack("<H", JR_RA) * ((END - CODE) // 2)
    content += bytes(TABLES - len(content)) + tables
    return content


def differences(ours: bytes, theirs: bytes) -> list[str]:
    """What the first traps, and the memory, are that differ."""
    found = []
    for mode, start in (("machine", 0), ("supervisor", LOG)):
        logs = (
            struct.iter_unpack("<6Q", said[start : start + LOG // 48 * 48])
            for said in (ours, theirs)
        )
        for at, (mine, other) in enumerate(zip(*logs, strict=True)):
            if mine != other:
                text = " ".join(
                    f"{a:#x}" if a == b else f"{a:#x}/{b:#x}"
                    for a, b in zip(mine, other, strict=True)
                )
                found.append(f"{mode} trap {at}: x30 cause epc tval status {text}")
    tables = 2 * LOG + END - DATA
    for at in range(2 * LOG, len(theirs), 8):
        mine, other = (int.from_bytes(said[at : at + 8], "little") for said in (ours, theirs))
        # QEMU reads what an atomic cannot write: that sets the bit.
        if mine != other and not (at >= tables and mine ^ other == A and not mine & W):
            found.append(f"memory {at - 2 * LOG:#x}: {mine:#x} here, {other:#x} there")
    return found


@pytest.mark.parametrize("seed", range(2))
def test_same_traps_and_memory_as_a_real_qemu(seed: int, tmp_path: Path) -> None:
    qemu = find_qemu()
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    version = int(said.split("version ")[1].split(".")[0])
    if version < 10:
        pytest.skip(f"atomics and tval are not as specified in {said.splitlines()[0]}")
    (tmp_path / FIRMWARE).write_bytes(image(seed, version >= 10))
    theirs = on_qemu(qemu, tmp_path, "-cpu", "rv64")
    ours = here(tmp_path)
    assert len(ours) == len(theirs)
    assert differences(ours, theirs)[:20] == []
