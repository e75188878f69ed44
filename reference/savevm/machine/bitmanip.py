"""Bit manipulation: the extensions Zba, Zbb, Zbc, Zbs and Zicond."""

from typing import Final

from mypy_extensions import i64

__all__ = ["decode_bits", "evaluate"]

_LOW32: Final = 0xFFFF_FFFF
_SIGN32: Final = 0x8000_0000

# What decode_bits gives: the operation above, and below it the second operand where it is immediate.
_IMMEDIATE: Final = 64
_KIND: Final = 7

_SHADD: Final = 1  # to 3, of as many bits
_SHADD_UW: Final = 4  # to 7, of 0 to 3 bits
_ANDN: Final = 8
_ORN: Final = 9
_XNOR: Final = 10
_MIN: Final = 11
_MINU: Final = 12
_MAX: Final = 13
_ROL: Final = 15
_ROR: Final = 16
_ROLW: Final = 17
_RORW: Final = 18
_BCLR: Final = 19
_BEXT: Final = 20
_BINV: Final = 21
_BSET: Final = 22
_CZERO_EQZ: Final = 23
_CZERO_NEZ: Final = 24
_ZEXT_H: Final = 25
_SEXT_B: Final = 26
_SEXT_H: Final = 27
_CLZ: Final = 28
_CTZ: Final = 29
_CPOP: Final = 30
_CLZW: Final = 31
_CTZW: Final = 32
_CPOPW: Final = 33
_ORC_B: Final = 34
_REV8: Final = 35
_SLLI_UW: Final = 36
_CLMUL: Final = 37
_CLMULR: Final = 38
_CLMULH: Final = 39


def decode_bits(insn: i64) -> i64:
    """The immediate of a decoded instruction that ``evaluate`` takes, or -1: ``insn`` is another."""
    opcode: i64 = insn & 0x7F
    kind: i64 = insn >> 12 & 7
    high: i64 = insn >> 25
    imm: i64 = insn >> 20 & 0xFFF
    op: i64 = 0
    if opcode == 0x33:
        if high == 0x10 and (kind == 2 or kind == 4 or kind == 6):
            op = _SHADD - 1 + kind // 2
        elif high == 0x20 and (kind == 4 or kind == 6 or kind == 7):
            op = _ANDN if kind == 7 else _ORN if kind == 6 else _XNOR
        elif high == 5 and kind >= 4:
            op = _MIN - 4 + kind
        elif high == 5 and kind:
            op = _CLMUL if kind == 1 else _CLMULR if kind == 2 else _CLMULH
        elif high == 0x30 and (kind == 1 or kind == 5):
            op = _ROL if kind == 1 else _ROR
        elif high == 0x24 and (kind == 1 or kind == 5):
            op = _BCLR if kind == 1 else _BEXT
        elif high == 0x34 and kind == 1:
            op = _BINV
        elif high == 0x14 and kind == 1:
            op = _BSET
        elif high == 7 and (kind == 5 or kind == 7):
            op = _CZERO_EQZ if kind == 5 else _CZERO_NEZ
    elif opcode == 0x3B:
        if high == 4 and kind == 0:
            op = _SHADD_UW
        elif high == 0x10 and (kind == 2 or kind == 4 or kind == 6):
            op = _SHADD_UW + kind // 2
        elif high == 4 and kind == 4 and insn >> 20 & 31 == 0:
            op = _ZEXT_H
        elif high == 0x30 and (kind == 1 or kind == 5):
            op = _ROLW if kind == 1 else _RORW
    elif opcode == 0x13 and kind == 1:
        if imm >= 0x600 and imm <= 0x602:
            op = _CLZ - 0x600 + imm
        elif imm == 0x604 or imm == 0x605:
            op = _SEXT_B - 0x604 + imm
        else:
            high = imm >> 6
            imm = (imm & 63) | _IMMEDIATE
            if high == 0x12:
                return _BCLR << _KIND | imm
            if high == 0x1A:
                return _BINV << _KIND | imm
            if high == 0x0A:
                return _BSET << _KIND | imm
    elif opcode == 0x13 and kind == 5:
        if imm == 0x287:
            op = _ORC_B
        elif imm == 0x6B8:
            op = _REV8
        else:
            high = imm >> 6
            imm = (imm & 63) | _IMMEDIATE
            if high == 0x18:
                return _ROR << _KIND | imm
            if high == 0x12:
                return _BEXT << _KIND | imm
    elif opcode == 0x1B:
        if kind == 1 and imm >= 0x600 and imm <= 0x602:
            op = _CLZW - 0x600 + imm
        elif kind == 1 and imm >> 6 == 2:
            return _SLLI_UW << _KIND | _IMMEDIATE | (imm & 63)
        elif kind == 5 and high == 0x30:
            return _RORW << _KIND | _IMMEDIATE | (imm & 31)
    return op << _KIND if op else -1


def evaluate(imm: i64, a: i64, b: i64) -> i64:
    """The result for rs1 and rs2; ``imm`` is what ``decode_bits`` gave."""
    op: i64 = imm >> _KIND
    if imm & _IMMEDIATE:
        b = imm & 63
    if op < _ANDN:
        if op >= _SHADD_UW:
            a &= _LOW32
            op -= _SHADD_UW
        return _wrap((a << op) + b)
    if op < _ROL:
        if op == _ANDN:
            return a & ~b
        if op == _ORN:
            return a | ~b
        if op == _XNOR:
            return ~(a ^ b)
        if op == _MIN:
            return a if a < b else b
        if op == _MAX:
            return a if a > b else b
        # Of two with the same sign the order is the same.
        less = a < b if (a ^ b) >= 0 else b < 0
        return a if less == (op == _MINU) else b
    if op < _ZEXT_H:
        return _shift(op, a, b)
    if op == _ZEXT_H:
        return a & 0xFFFF
    if op == _SEXT_B:
        return ((a & 255) ^ 128) - 128
    if op == _SEXT_H:
        return ((a & 0xFFFF) ^ 0x8000) - 0x8000
    if op == _CLZ:
        high: i64 = a >> 32 & _LOW32
        return _leading(high) if high else 32 + _leading(a & _LOW32)
    if op == _CTZ:
        low: i64 = a & _LOW32
        return _trailing(low) if low else 32 + _trailing(a >> 32 & _LOW32)
    if op == _CPOP:
        return _population(a & _LOW32) + _population(a >> 32 & _LOW32)
    if op == _CLZW:
        return _leading(a & _LOW32)
    if op == _CTZW:
        return _trailing(a & _LOW32)
    if op == _CPOPW:
        return _population(a & _LOW32)
    if op == _SLLI_UW:
        return _wrap((a & _LOW32) << b)
    if op == _ORC_B or op == _REV8:
        return _bytes(a, op == _REV8)
    return _carryless(op, a, b)


def _shift(op: i64, a: i64, b: i64) -> i64:
    one: i64 = b & 0
    one += 1
    if op == _ROLW or op == _RORW:
        b &= 31
        if op == _ROLW:
            b = 32 - b
        a &= _LOW32
        a = (a >> b | a << (32 - b)) & _LOW32
        return (a ^ _SIGN32) - _SIGN32
    if op == _CZERO_EQZ:
        return a if b else 0
    if op == _CZERO_NEZ:
        return 0 if b else a
    b &= 63
    if op == _BEXT:
        return a >> b & 1
    if op == _BSET:
        return _wrap(a | one << b)
    if op == _BCLR:
        return _wrap(a & ~(one << b))
    if op == _BINV:
        return _wrap(a ^ one << b)
    if b == 0:
        return a
    if op == _ROL:
        b = 64 - b
    return _wrap(_right(a, b) | a << (64 - b))


def _wrap(n: i64) -> i64:
    """``n``, or what 64 bits make of it."""
    big: i64 = 0
    big += 1 << 61
    return ((n & (big * 8 - 1)) ^ (big * 4)) - big * 4


def _right(n: i64, shift: i64) -> i64:
    """``n`` shifted by 1 to 63 without its sign."""
    ones: i64 = -(shift >> 6)  # zero, but not for the compiler
    ones -= 1
    return n >> shift & ~(ones << (63 - shift) << 1)


def _leading(n: i64) -> i64:
    """Zeros above the highest one of 32 bits."""
    count: i64 = 32
    while n:
        n >>= 1
        count -= 1
    return count


def _trailing(n: i64) -> i64:
    count: i64 = 0
    if n == 0:
        return 32
    while not n & 1:
        n >>= 1
        count += 1
    return count


def _population(n: i64) -> i64:
    n -= n >> 1 & 0x5555_5555
    n = (n & 0x3333_3333) + (n >> 2 & 0x3333_3333)
    n = (n + (n >> 4)) & 0x0F0F_0F0F
    return n * 0x0101_0101 >> 24 & 63


def _bytes(a: i64, reverse: bool) -> i64:
    result: i64 = 0
    i: i64 = 0
    while i < 64:
        byte: i64 = a >> i & 255
        if reverse:
            result = result << 8 | byte
        elif byte:
            byte = 255
            result |= byte << i
        i += 8
    return _wrap(result)


def _carryless(op: i64, a: i64, b: i64) -> i64:
    low: i64 = 0
    high: i64 = 0
    i: i64 = 0
    while i < 64:
        if b >> i & 1:
            low ^= a << i
            if i:
                high ^= _right(a, 64 - i)
        i += 1
    low = _wrap(low)
    if op == _CLMUL:
        return low
    if op == _CLMULH:
        return high
    return _wrap(high << 1 | (1 if low < 0 else 0))
