"""Bit manipulation on random operands, against its definitions in Python's own numbers."""

import random
from collections.abc import Callable

import pytest
from riscv import MASK, Bare, i, r, signed

W = (1 << 32) - 1


def carryless(a: int, b: int) -> int:
    product = 0
    for bit in range(64):
        if b >> bit & 1:
            product ^= a << bit
    return product


def rotate(a: int, right: int, bits: int = 64) -> int:
    mask = (1 << bits) - 1
    a &= mask
    return (a >> right % bits | a << bits - right % bits) & mask


def extend(a: int, bits: int = 32) -> int:
    sign = 1 << bits - 1
    return ((a & (1 << bits) - 1) ^ sign) - sign & MASK


def reverse(a: int) -> int:
    return int.from_bytes(a.to_bytes(8, "little"), "big")


def orc(a: int) -> int:
    return int.from_bytes(bytes(255 if n else 0 for n in a.to_bytes(8, "little")), "little")


def trailing(a: int, bits: int) -> int:
    return (a & -a).bit_length() - 1 if a else bits


# Opcode, funct3, funct7, and what comes out of unsigned a and b.
REGISTERS: dict[str, tuple[int, int, int, Callable[[int, int], int]]] = {
    "sh1add": (0x33, 2, 0x10, lambda a, b: 2 * a + b),
    "sh2add": (0x33, 4, 0x10, lambda a, b: 4 * a + b),
    "sh3add": (0x33, 6, 0x10, lambda a, b: 8 * a + b),
    "add.uw": (0x3B, 0, 4, lambda a, b: (a & W) + b),
    "sh1add.uw": (0x3B, 2, 0x10, lambda a, b: 2 * (a & W) + b),
    "sh2add.uw": (0x3B, 4, 0x10, lambda a, b: 4 * (a & W) + b),
    "sh3add.uw": (0x3B, 6, 0x10, lambda a, b: 8 * (a & W) + b),
    "andn": (0x33, 7, 0x20, lambda a, b: a & ~b),
    "orn": (0x33, 6, 0x20, lambda a, b: a | ~b),
    "xnor": (0x33, 4, 0x20, lambda a, b: ~(a ^ b)),
    "min": (0x33, 4, 5, lambda a, b: min(signed(a), signed(b))),
    "minu": (0x33, 5, 5, lambda a, b: min(a, b)),
    "max": (0x33, 6, 5, lambda a, b: max(signed(a), signed(b))),
    "maxu": (0x33, 7, 5, lambda a, b: max(a, b)),
    "clmul": (0x33, 1, 5, lambda a, b: carryless(a, b)),
    "clmulr": (0x33, 2, 5, lambda a, b: carryless(a, b) >> 63),
    "clmulh": (0x33, 3, 5, lambda a, b: carryless(a, b) >> 64),
    "rol": (0x33, 1, 0x30, lambda a, b: rotate(a, -b % 64)),
    "ror": (0x33, 5, 0x30, lambda a, b: rotate(a, b)),
    "rolw": (0x3B, 1, 0x30, lambda a, b: extend(rotate(a, -b % 32, 32))),
    "rorw": (0x3B, 5, 0x30, lambda a, b: extend(rotate(a, b, 32))),
    "bclr": (0x33, 1, 0x24, lambda a, b: a & ~(1 << b % 64)),
    "bext": (0x33, 5, 0x24, lambda a, b: a >> b % 64 & 1),
    "binv": (0x33, 1, 0x34, lambda a, b: a ^ 1 << b % 64),
    "bset": (0x33, 1, 0x14, lambda a, b: a | 1 << b % 64),
    "czero.eqz": (0x33, 5, 7, lambda a, b: a if b else 0),
    "czero.nez": (0x33, 7, 7, lambda a, b: 0 if b else a),
}
# Opcode, funct3, the immediate, and what comes out.
UNARY: dict[str, tuple[int, int, int, Callable[[int], int]]] = {
    "clz": (0x13, 1, 0x600, lambda a: 64 - a.bit_length()),
    "ctz": (0x13, 1, 0x601, lambda a: trailing(a, 64)),
    "cpop": (0x13, 1, 0x602, lambda a: a.bit_count()),
    "clzw": (0x1B, 1, 0x600, lambda a: 32 - (a & W).bit_length()),
    "ctzw": (0x1B, 1, 0x601, lambda a: trailing(a & W, 32)),
    "cpopw": (0x1B, 1, 0x602, lambda a: (a & W).bit_count()),
    "sext.b": (0x13, 1, 0x604, lambda a: extend(a, 8)),
    "sext.h": (0x13, 1, 0x605, lambda a: extend(a, 16)),
    "zext.h": (0x3B, 4, 0x080, lambda a: a & 0xFFFF),
    "orc.b": (0x13, 5, 0x287, orc),
    "rev8": (0x13, 5, 0x6B8, reverse),
    "rori 63": (0x13, 5, 0x600 | 63, lambda a: rotate(a, 63)),
    "rori 0": (0x13, 5, 0x600, lambda a: a),
    "roriw 7": (0x1B, 5, 0x600 | 7, lambda a: extend(rotate(a, 7, 32))),
    "slli.uw 40": (0x1B, 1, 0x080 | 40, lambda a: (a & W) << 40),
    "bclri 63": (0x13, 1, 0x480 | 63, lambda a: a & ~(1 << 63)),
    "bexti 63": (0x13, 5, 0x480 | 63, lambda a: a >> 63),
    "binvi 63": (0x13, 1, 0x680 | 63, lambda a: a ^ 1 << 63),
    "bseti 63": (0x13, 1, 0x280 | 63, lambda a: a | 1 << 63),
}
EDGES = [0, 1, 31, 32, 63, 64, 0x7F, 0x80, W >> 1, W, W + 1, 1 << 31, 1 << 63, MASK >> 1, MASK]


def operands(seed: str) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    pairs = [(a, b) for a in EDGES for b in EDGES]
    return pairs + [(chance.getrandbits(64), chance.getrandbits(64)) for _ in range(50)]


@pytest.mark.parametrize("name", REGISTERS)
def test_two_registers(name: str) -> None:
    opcode, kind, function, definition = REGISTERS[name]
    bare = Bare()
    for a, b in operands(name):
        bare.run(r(opcode, 7, kind, 5, 6, function), x5=a, x6=b)
        assert bare.x(7) == definition(a, b) & MASK, (hex(a), hex(b))


@pytest.mark.parametrize("name", UNARY)
def test_one_register(name: str) -> None:
    opcode, kind, imm, definition = UNARY[name]
    bare = Bare()
    for a, _ in operands(name):
        bare.run(i(opcode, 7, kind, 5, imm), x5=a)
        assert bare.x(7) == definition(a) & MASK, hex(a)
