"""Random programs, integer and floating-point, leave the same registers here and on a real QEMU."""

import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from qemus import find_qemu

from savevm.machine.spike import Spike

PROGRAMS = 200
INSTRUCTIONS = 500
RAM = 0x8000_0000
MEGABYTES = 16
FIRMWARE = "firmware.bin"

# What a program leaves: x, f, then these, then the memory that it loads from and stores to.
CSRS = {"fcsr": 0x003, "mcause": 0x342, "mtval": 0x343, "mepc": 0x341}
MEMORY = 512
REGISTERS = 32 + 32 + len(CSRS)
RECORD = 8 * REGISTERS + MEMORY
NAMES = [f"x{i}" for i in range(32)] + [f"f{i}" for i in range(32)] + list(CSRS)
NAMES += [f"memory+{i}" for i in range(0, MEMORY, 8)]

# Where the record is, and never written by the program itself.
BASE = 3

SINGLES = [0, 1, 0x7F_FFFF, 0x80_0000, 0x3F80_0000, 0x3F80_0001, 0x4F00_0000, 0x5F00_0000]
SINGLES += [0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FC0_0000, 0x7FFF_FFFF, 0x3400_0000]
DOUBLES = [0, 1, (1 << 52) - 1, 1 << 52, 0x3FF << 52, (0x3FF << 52) + 1, 0x41E << 52, 0x43E << 52]
DOUBLES += [(0x7FF << 52) - 1, 0x7FF << 52, (0x7FF << 52) + 1, 0x7FF8 << 48, (1 << 63) - 1]
DOUBLES += [0x3810_0000_0000_0000, 0x380F_FFFF_F000_0000, 0x47EF_FFFF_F000_0000, 0x3CA << 52]
INTEGERS = [0, 1, 2, 31, 63, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 63, (1 << 63) - 1]
ALL = (1 << 64) - 1


def r_type(opcode: int, rd: int, funct3: int, rs1: int, rs2: int, funct7: int) -> int:
    return funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode


def i_type(opcode: int, rd: int, funct3: int, rs1: int, immediate: int) -> int:
    return (immediate & 0xFFF) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode


def s_type(opcode: int, funct3: int, rs1: int, rs2: int, immediate: int) -> int:
    return r_type(opcode, immediate & 0x1F, funct3, rs1, rs2, immediate >> 5 & 0x7F)


def b_type(funct3: int, rs1: int, rs2: int, offset: int) -> int:
    low = offset >> 1 & 0xF
    rd = low << 1 | offset >> 11 & 1
    return r_type(0x63, rd, funct3, rs1, rs2, (offset >> 12 & 1) << 6 | offset >> 5 & 0x3F)


def u_type(opcode: int, rd: int, immediate: int) -> int:
    return immediate & 0xFFFF_F000 | rd << 7 | opcode


def addi(rd: int, rs1: int, immediate: int) -> int:
    return i_type(0x13, rd, 0, rs1, immediate)


def csrw(csr: int, rs1: int) -> int:
    return i_type(0x73, 0, 1, rs1, csr)


def csrr(rd: int, csr: int) -> int:
    return i_type(0x73, rd, 2, 0, csr)


def load(rd: int, rs1: int, offset: int) -> int:
    return i_type(0x03, rd, 3, rs1, offset)


def store(rs2: int, rs1: int, offset: int) -> int:
    return s_type(0x23, 3, rs1, rs2, offset)


class Chance:
    """Random instructions."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.choice = self.random.choice

    def integer_value(self) -> int:
        if self.random.randrange(3) == 0:
            return self.random.getrandbits(64)
        return (self.choice(INTEGERS) * self.choice((1, -1)) + self.choice((0, 0, 1, -1))) & ALL

    def single(self) -> int:
        kind = self.random.randrange(5)
        if kind == 0:
            return self.random.getrandbits(32)
        sign = self.random.getrandbits(1) << 31
        if kind == 1:
            return sign ^ self.choice(SINGLES)
        # Near one, so that sums cancel and products neither overflow nor vanish.
        exponent = self.random.randrange(0x7F - 20, 0x7F + 21)
        return sign | exponent << 23 | self.random.getrandbits(23)

    def double(self) -> int:
        kind = self.random.randrange(5)
        if kind == 0:
            return self.random.getrandbits(64)
        sign = self.random.getrandbits(1) << 63
        if kind == 1:
            return sign ^ self.choice(DOUBLES)
        exponent = self.random.randrange(0x3FF - 40, 0x3FF + 41)
        return sign | exponent << 52 | self.random.getrandbits(52)

    def registers(self) -> list[int]:
        """Their first values; fcsr in place of x0, and singles in the first half of f."""
        fcsr = self.random.getrandbits(5) | self.random.randrange(5) << 5
        integers = [self.integer_value() for _ in range(31)]
        singles = [self.single() | 0xFFFF_FFFF << 32 for _ in range(15)]
        doubles = [self.double() for _ in range(17)]
        return [fcsr, *integers, *singles, *doubles]

    def memory_words(self) -> list[int]:
        """Singles in the first half, and doubles."""
        half = range(MEMORY // 16)
        return [self.single() | self.single() << 32 for _ in half] + [self.double() for _ in half]

    def rd(self) -> int:
        return self.choice([n for n in range(32) if n != BASE])

    def any(self) -> int:
        return self.random.randrange(32)

    def f(self, double: int) -> int:
        """A register that mostly holds numbers of this format: NaNs would spread else."""
        if self.random.randrange(12) == 0:
            return self.any()
        return self.random.randrange(16) + 16 * double

    def at(self, size: int, aligned: bool = False, half: int = 2) -> int:
        """An offset from BASE into the program's memory, or half of it."""
        offset = self.random.randrange((MEMORY if half == 2 else MEMORY // 2) - size + 1)
        if aligned or self.random.randrange(4):
            offset -= offset % size
        return 8 * REGISTERS + offset + (MEMORY // 2 if half == 1 else 0)

    def instructions(self) -> list[int]:
        """One instruction, or a few that belong together."""
        kinds: list[tuple[int, Callable[[], list[int]]]] = [
            (14, self.integer),
            (8, self.immediate),
            (3, self.wide),
            (6, self.bits),
            (4, self.memory),
            (2, self.atomic),
            (2, self.branch),
            (3, self.compressed),
            (20, self.arithmetic),
            (8, self.fused),
            (8, self.convert),
            (6, self.compare_and_move),
            (20, self.floating_memory),
            (3, self.control),
            (1, self.illegal),
        ]
        weights = [weight for weight, _ in kinds]
        return self.random.choices([kind for _, kind in kinds], weights)[0]()

    def integer(self) -> list[int]:
        opcode = self.choice((0x33, 0x3B))
        funct7 = self.choice((0, 0x20, 1, 1))
        functs: Sequence[int] = range(8)
        if funct7 == 0x20:
            functs = (0, 5)
        elif opcode == 0x3B:
            functs = (0, 4, 5, 6, 7) if funct7 else (0, 1, 5)
        return [r_type(opcode, self.rd(), self.choice(functs), self.any(), self.any(), funct7)]

    def immediate(self) -> list[int]:
        opcode = self.choice((0x13, 0x1B))
        funct3 = self.choice(range(8) if opcode == 0x13 else (0, 1, 5))
        value = self.random.getrandbits(12)
        if funct3 in (1, 5):
            value &= 0x3F if opcode == 0x13 else 0x1F
            value |= 0x400 if funct3 == 5 and self.random.getrandbits(1) else 0
        return [i_type(opcode, self.rd(), funct3, self.any(), value)]

    def wide(self) -> list[int]:
        return [u_type(self.choice((0x17, 0x37)), self.rd(), self.random.getrandbits(32))]

    def bits(self) -> list[int]:
        """Zba, Zbb, Zbc and Zbs."""
        rd, rs1, rs2 = self.rd(), self.any(), self.any()
        number = self.random.getrandbits(6)
        opcode, funct7, functs = self.choice(
            (
                (0x33, 0x10, (2, 4, 6)),  # sh1add …
                (0x33, 0x20, (4, 6, 7)),  # xnor, orn, andn
                (0x33, 0x05, range(1, 8)),  # clmul …, min …
                (0x33, 0x30, (1, 5)),  # rol, ror
                (0x33, 0x24, (1, 5)),  # bclr, bext
                (0x33, 0x34, (1,)),  # binv
                (0x33, 0x14, (1,)),  # bset
                (0x3B, 0x10, (2, 4, 6)),  # sh1add.uw …
                (0x3B, 0x04, (0,)),  # add.uw
                (0x3B, 0x30, (1, 5)),  # rolw, rorw
                (0x13, 0x30, (0x60, 0x61, 0x62, 0x64, 0x65)),  # clz, ctz, cpop, sext
                (0x1B, 0x30, (0x60, 0x62)),  # not ctzw, which QEMU 7.2 has wrong
                (0x13, 0x30, (5,)),  # rori
                (0x13, 0x24, (1, 5)),  # bclri, bexti
                (0x13, 0x34, (1,)),  # binvi
                (0x13, 0x14, (1,)),  # bseti
                (0x1B, 0x04, (1,)),  # slli.uw
            )
        )
        function = self.choice(functs)
        if function >= 0x60:
            return [r_type(opcode, rd, 1, rs1, function & 7, funct7)]
        if opcode & 0x20 == 0:
            funct7, rs2 = funct7 | number >> 5, number & 31
        which = self.random.randrange(20)
        if which == 0:
            return [r_type(0x13, rd, 5, rs1, 7, 0x14)]  # orc.b
        if which == 1:
            return [r_type(0x13, rd, 5, rs1, 24, 0x35)]  # rev8
        if which == 2:
            return [r_type(0x3B, rd, 4, rs1, 0, 0x04)]  # zext.h
        if which == 3:
            return [r_type(0x1B, rd, 5, rs1, number & 31, 0x30)]  # roriw
        return [r_type(opcode, rd, function, rs1, rs2, funct7)]

    def memory(self) -> list[int]:
        width = self.random.randrange(4)
        if self.random.getrandbits(1):
            sign = 4 if width < 3 and self.random.getrandbits(1) else 0
            return [i_type(0x03, self.rd(), width | sign, BASE, self.at(1 << width))]
        return [s_type(0x23, width, BASE, self.any(), self.at(1 << width))]

    def atomic(self) -> list[int]:
        pointer = self.choice([n for n in range(1, 32) if n != BASE])
        width = self.choice((2, 3))
        function = self.choice((0x00, 0x01, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x02))
        address = addi(pointer, BASE, self.at(1 << width, aligned=True))
        if function == 0x02:
            held = r_type(0x2F, self.rd(), width, pointer, 0, function << 2)
            # SC without a register in between that LR may have overwritten.
            again = addi(pointer, BASE, self.at(1 << width, aligned=True))
            put = r_type(0x2F, self.rd(), width, pointer, self.any(), 3 << 2)
            return [address, held, address if self.random.getrandbits(1) else again, put]
        return [address, r_type(0x2F, self.rd(), width, pointer, self.any(), function << 2)]

    def branch(self) -> list[int]:
        skipped = self.instructions()
        length = sum(2 if word & 3 != 3 else 4 for word in skipped)
        if self.random.randrange(4) == 0:
            jump = length + 4
            bits = jump >> 20 & 1, jump >> 1 & 0x3FF, jump >> 11 & 1, jump >> 12 & 0xFF
            immediate = bits[0] << 31 | bits[1] << 21 | bits[2] << 20 | bits[3] << 12
            return [immediate | self.rd() << 7 | 0x6F, *skipped]
        funct3 = self.choice((0, 1, 4, 5, 6, 7))
        return [b_type(funct3, self.any(), self.any(), length + 4), *skipped]

    def compressed(self) -> list[int]:
        rd = self.choice([n for n in range(1, 32) if n not in (2, BASE)])
        low = self.random.randrange(8)
        other = self.random.randrange(1, 32)
        bits = self.random.randrange(1, 32)
        sign = self.random.getrandbits(1)
        return [
            self.choice(
                (
                    0x0001 | rd << 7 | bits << 2 | sign << 12,  # c.addi
                    0x2001 | rd << 7 | bits << 2 | sign << 12,  # c.addiw
                    0x4001 | rd << 7 | bits << 2 | sign << 12,  # c.li
                    0x6001 | rd << 7 | bits << 2 | sign << 12,  # c.lui
                    0x0002 | rd << 7 | bits << 2 | sign << 12,  # c.slli
                    0x8002 | rd << 7 | other << 2,  # c.mv
                    0x9002 | rd << 7 | other << 2,  # c.add
                    0x8001 | low << 7 | bits << 2 | sign << 12,  # c.srli
                    0x8401 | low << 7 | bits << 2 | sign << 12,  # c.srai
                    0x8801 | low << 7 | bits << 2 | sign << 12,  # c.andi
                    0x8C01 | low << 7 | bits % 8 << 2 | self.random.randrange(4) << 5,  # c.sub …
                    0x9C01 | low << 7 | bits % 8 << 2 | self.random.randrange(2) << 5,  # c.subw …
                )
            )
        ]

    def rounding(self) -> int:
        return self.choice((0, 1, 2, 3, 4, 7, 7, 7))

    def arithmetic(self) -> list[int]:
        double = self.random.getrandbits(1)
        operation = self.choice((0x00, 0x04, 0x08, 0x0C, 0x2C))
        rs2 = 0 if operation == 0x2C else self.f(double)
        funct7 = operation | double
        return [r_type(0x53, self.f(double), self.rounding(), self.f(double), rs2, funct7)]

    def fused(self) -> list[int]:
        opcode = self.choice((0x43, 0x47, 0x4B, 0x4F))
        double = self.random.getrandbits(1)
        rd, rs1, rs2, rs3 = (self.f(double) for _ in range(4))
        return [r_type(opcode, rd, self.rounding(), rs1, rs2, rs3 << 2 | double)]

    def convert(self) -> list[int]:
        double = self.random.getrandbits(1)
        kind = self.random.randrange(4)
        f = self.f(double)
        to = self.random.randrange(3)
        if to == 0:
            return [r_type(0x53, self.rd(), self.rounding(), f, kind, 0x60 | double)]
        if to == 1:
            return [r_type(0x53, f, self.rounding(), self.any(), kind, 0x68 | double)]
        return [r_type(0x53, f, self.rounding(), self.f(1 - double), 1 - double, 0x20 | double)]

    def compare_and_move(self) -> list[int]:
        double = self.random.getrandbits(1)
        a, b, c = (self.f(double) for _ in range(3))
        kind = self.random.randrange(6)
        if kind == 0:
            return [r_type(0x53, self.rd(), self.random.randrange(3), a, b, 0x50 | double)]
        if kind == 1:
            return [r_type(0x53, c, self.random.randrange(3), a, b, 0x10 | double)]
        if kind == 2:
            return [r_type(0x53, c, self.random.randrange(2), a, b, 0x14 | double)]
        if kind == 3:
            return [r_type(0x53, self.rd(), 1, a, 0, 0x70 | double)]
        if kind == 4:
            return [r_type(0x53, self.rd(), 0, a, 0, 0x70 | double)]
        return [r_type(0x53, c, 0, self.any(), 0, 0x78 | double)]

    def floating_memory(self) -> list[int]:
        double = self.random.getrandbits(1)
        offset = self.at(4 << double, half=double)
        if self.random.randrange(4):
            return [i_type(0x07, self.f(double), 2 | double, BASE, offset)]
        return [s_type(0x27, 2 | double, BASE, self.f(double), offset)]

    def control(self) -> list[int]:
        """fcsr, frm and fflags; also modes that make instructions with a dynamic one illegal."""
        csr = self.choice((1, 2, 2, 3))
        if csr == 2:
            return [i_type(0x73, self.rd(), 5, self.choice((0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 6)), csr)]
        operation = self.choice((1, 2, 3))
        return [i_type(0x73, self.rd(), operation, self.any(), csr)]

    def illegal(self) -> list[int]:
        return [
            self.choice(
                (
                    r_type(0x53, self.any(), 5, self.any(), self.any(), 0x00),  # a reserved mode
                    r_type(0x53, self.any(), 0, self.any(), 9, 0x60),  # no such integer
                    r_type(0x33, self.any(), 0, self.any(), self.any(), 0x7F),
                    r_type(0x33, self.any(), 3, self.any(), self.any(), 0x30),
                    r_type(0x13, self.any(), 1, self.any(), 7, 0x30),
                    i_type(0x73, self.rd(), 2, 0, 0x5C0),  # no such register
                    i_type(0x03, self.any(), 7, BASE, 0),
                    0x0000_007F | self.any() << 7,
                )
            )
        ]


class Code:
    """A program in the making."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.bytes = bytearray()

    def put(self, *words: int) -> None:
        for word in words:
            self.bytes += struct.pack("<H" if word & 3 != 3 else "<I", word)

    def point(self, register: int, target: int) -> None:
        """The address, which is near, into a register."""
        distance = target - (self.address + len(self.bytes))
        upper = distance + 0x800 & ~0xFFF
        self.put(
            u_type(0x17, register, upper & 0xFFFF_FFFF), addi(register, register, distance - upper)
        )


def image(seed: int, programs: int = PROGRAMS, instructions: int = INSTRUCTIONS) -> bytes:
    """Raw firmware: each program fills its record; all go to the console in the end."""
    tables = RAM + (4 << 20)
    records = RAM + (6 << 20)
    table_size = 8 * 64
    code = Code(RAM)
    # A trap is left behind the instruction, all of which have four bytes that get one.
    handler = RAM + 16
    code.point(5, handler)
    code.put(csrw(0x305, 5))
    code.put(b_type(0, 0, 0, 4 + 24))
    assert code.address + len(code.bytes) == handler
    code.put(csrw(0x340, 5), csrr(5, 0x341), addi(5, 5, 4), csrw(0x341, 5), csrr(5, 0x340))
    code.put(0x3020_0073)
    code.point(5, handler)
    code.put(u_type(0x37, 5, 0x6000), i_type(0x73, 0, 2, 5, 0x300))
    code.point(BASE, records)
    table = bytearray()
    initial = bytearray()
    for number in range(programs):
        chance = Chance(seed * 1_000_003 + number)
        code.point(1, tables + number * table_size)
        code.put(load(2, 1, 0), csrw(0x003, 2))
        code.put(csrw(0x342, 0), csrw(0x343, 0), csrw(0x341, 0))
        code.put(*(i_type(0x07, n, 3, 1, 8 * (32 + n)) for n in range(32)))
        code.put(*(load(n, 1, 8 * n) for n in range(31, 0, -1) if n != BASE))
        table += struct.pack("<64Q", *chance.registers())
        initial += bytes(8 * REGISTERS) + struct.pack(f"<{MEMORY // 8}Q", *chance.memory_words())
        done = 0
        while done < instructions:
            some = chance.instructions()
            code.put(*some)
            done += len(some)
        code.put(*(store(n, BASE, 8 * n) for n in range(32)))
        code.put(*(s_type(0x27, 3, BASE, n, 8 * (32 + n)) for n in range(32)))
        for at, csr in enumerate(CSRS.values()):
            code.put(csrr(1, csr), store(1, BASE, 8 * (64 + at)))
        code.put(addi(BASE, BASE, RECORD))
    send(code, (records, records + len(initial)))
    content = code.bytes
    content += bytes(tables - RAM - len(content)) + table
    content += bytes(records - RAM - len(content)) + initial
    return bytes(content)


def send(code: Code, *ranges: tuple[int, int]) -> None:
    """Memory goes to the console, then the power goes off."""
    for start, end in ranges:
        code.point(1, start)
        code.point(2, end)
        code.put(u_type(0x37, 3, 0x100_0000), addi(4, 0, 0x101), i_type(0x13, 4, 1, 4, 48))
        loop = len(code.bytes)
        code.put(i_type(0x03, 5, 4, 1, 0), r_type(0x33, 5, 6, 5, 4, 0), store(5, 3, 8))
        code.put(addi(1, 1, 1))
        code.put(b_type(6, 1, 2, loop - len(code.bytes)))
    code.put(addi(5, 0, 1), store(5, 3, 8), b_type(0, 0, 0, 0))


def on_qemu(qemu: str, directory: Path, *options: str) -> bytes:
    command = [
        qemu,
        "-M",
        "spike",
        "-m",
        f"{MEGABYTES}M",
        "-bios",
        FIRMWARE,
        "-nodefaults",
        *options,
    ]
    command += ["-display", "none", "-serial", "file:console"]
    subprocess.run(command, cwd=directory, check=True, timeout=120, capture_output=True)
    return (directory / "console").read_bytes()


def here(directory: Path) -> bytes:
    said = bytearray()
    machine = Spike(MEGABYTES << 20, console=said.extend, deterministic=7)
    machine.load_image(bios=str(directory / FIRMWARE))
    machine.resume()
    while machine.running:
        machine.step(100_000)
    return bytes(said)


def differences(ours: bytes, theirs: bytes) -> list[str]:
    found = []
    for start in range(0, len(theirs), RECORD):
        pairs = zip(
            *(struct.unpack_from(f"<{RECORD // 8}Q", said, start) for said in (ours, theirs)),
            strict=True,
        )
        found += [
            f"program {start // RECORD}: {name} is {ours:#x} here, {theirs:#x} there"
            for name, (ours, theirs) in zip(NAMES, pairs, strict=True)
            if ours != theirs
        ]
    return found


@pytest.mark.parametrize("seed", range(2))
def test_same_registers_and_memory_as_a_real_qemu(seed: int, tmp_path: Path) -> None:
    qemu = find_qemu()
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.split("version ")[1].split(".")[0]) < 7:
        pytest.skip(f"no host interface for raw firmware in {version.splitlines()[0]}")
    (tmp_path / FIRMWARE).write_bytes(image(seed))
    theirs = on_qemu(qemu, tmp_path)
    assert len(theirs) == PROGRAMS * RECORD
    ours = here(tmp_path)
    assert len(ours) == len(theirs)
    assert differences(ours, theirs)[:20] == []
