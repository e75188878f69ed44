"""RISC-V instructions, decoded once into a number that says all.

A decoded instruction is an i64: operation in bits 0-7, rd in 8-13, rs1 in 14-19, rs2 in 20-25, its
length in halfwords in 26-27, a signed immediate in 32-63.  An rd of x0 becomes register 32, which
nothing reads.  Operations are numbered for the tree of comparisons that tells them apart: the most
frequent first, kinds together.
"""

from typing import Final

from mypy_extensions import i64

from savevm.machine.bitmanip import decode_bits

__all__ = ["MISA_A", "MISA_C", "MISA_D", "MISA_F", "MISA_M", "MISA_S", "MISA_U", "decode"]

MISA_A: Final = 1 << 0
MISA_C: Final = 1 << 2
MISA_D: Final = 1 << 3
MISA_F: Final = 1 << 5
MISA_M: Final = 1 << 12
MISA_S: Final = 1 << 18
MISA_U: Final = 1 << 20

# A branch or jump with NEAR in its name stays in its page, and its immediate is in halfwords.
ADDI: Final = 0
ADD: Final = 1
LD: Final = 2
SD: Final = 3
BNE_NEAR: Final = 4
BEQ_NEAR: Final = 5
LW: Final = 6
SW: Final = 7
ADDIW: Final = 8
LI: Final = 9  # rd = immediate
SLLI: Final = 10
JAL_NEAR: Final = 11
JALR: Final = 12
LBU: Final = 13
SB: Final = 14
ANDI: Final = 15
BLT_NEAR: Final = 16
BGE_NEAR: Final = 17
BLTU_NEAR: Final = 18
BGEU_NEAR: Final = 19
ADDW: Final = 20
SUB: Final = 21
OR: Final = 22
AND: Final = 23
XOR: Final = 24
SRLI: Final = 25
AUIPC: Final = 26
JAL: Final = 27
LHU: Final = 28
LWU: Final = 29
SUBW: Final = 30
MUL: Final = 31
LH: Final = 32
LB: Final = 33
SH: Final = 34
SRAI: Final = 35
SLTU: Final = 36
SLT: Final = 37
SLTIU: Final = 38
SLTI: Final = 39
XORI: Final = 40
ORI: Final = 41
SLLIW: Final = 42
SRLIW: Final = 43
SRAIW: Final = 44
SLL: Final = 45
SRL: Final = 46
SRA: Final = 47
SLLW: Final = 48
SRLW: Final = 49
SRAW: Final = 50
MULW: Final = 51
BEQ: Final = 52
BNE: Final = 53
BLT: Final = 54
BGE: Final = 55
BLTU: Final = 56
BGEU: Final = 57
FLD: Final = 58
FSD: Final = 59
FLW: Final = 60
FSW: Final = 61
# From here on the immediate is the instruction itself.
FLOAT: Final = 62
AMO: Final = 63
MULDIV: Final = 64  # the other multiplications, and divisions
BITS: Final = 65  # the immediate is decode_bits' here
CSR: Final = 66
SYSTEM: Final = 67
ILLEGAL: Final = 68
NOP: Final = 69
# Not instructions: the place behind a page, a place that was not looked at yet, and an instruction
# that ends in the next page.
PAGE_END: Final = 70
UNDECODED: Final = 71
CROSSING: Final = 72

SCRATCH: Final = 32  # the register that x0 is as a destination
SHORT: Final = 1 << 26
LONG: Final = 2 << 26


def _pack(op: i64, rd: i64, rs1: i64, rs2: i64, imm: i64, length: i64) -> i64:
    if rd == 0:
        rd = SCRATCH
    return op | rd << 8 | rs1 << 14 | rs2 << 20 | length | imm << 32


def _raw(op: i64, insn: i64) -> i64:
    """A decoded 32-bit instruction that carries itself."""
    return (
        op
        | (insn >> 7 & 31) << 8
        | (insn >> 15 & 31) << 14
        | (insn >> 20 & 31) << 20
        | LONG
        | _sign(insn, 31) << 32
    )


def _sign(n: i64, bit: i64) -> i64:
    """``n`` with ``bit`` as the sign; there is nothing above it."""
    top: i64 = (1 << 32) >> (32 - bit)
    return (n ^ top) - top


def _jump(near: i64, far: i64, rd: i64, rs1: i64, rs2: i64, imm: i64, at: i64, length: i64) -> i64:
    if 0 <= at + imm < 4096 and not imm & 1:
        return _pack(near, rd, rs1, rs2, imm >> 1, length)
    return _pack(far, rd, rs1, rs2, imm, length)


def decode(insn: i64, at: i64, misa: i64) -> i64:
    """A decoded instruction.

    ``insn`` has the 32 bits at byte ``at`` of a page, of which a compressed instruction takes the
    lower 16; ``misa`` has the extensions.
    """
    if insn & 3 != 3:
        insn &= 0xFFFF
        if not misa & MISA_C:
            return ILLEGAL | SHORT | insn << 32
        quadrant: i64 = insn & 3
        d: i64
        if quadrant == 0:
            d = _quadrant_0(insn, misa)
        elif quadrant == 1:
            d = _quadrant_1(insn, at)
        else:
            d = _quadrant_2(insn, misa)
        return d if d != ILLEGAL else ILLEGAL | SHORT | insn << 32
    d = _long(insn, at, misa)
    if d != ILLEGAL:
        return d
    bits = decode_bits(insn)
    if bits >= 0:
        return _pack(BITS, insn >> 7 & 31, insn >> 15 & 31, insn >> 20 & 31, bits, LONG)
    return _raw(ILLEGAL, insn)


def _quadrant_0(insn: i64, misa: i64) -> i64:
    kind: i64 = insn >> 13
    low: i64 = (insn >> 2 & 7) + 8
    base: i64 = (insn >> 7 & 7) + 8
    word: i64 = (insn >> 10 & 7) << 3 | (insn >> 6 & 1) << 2 | (insn >> 5 & 1) << 6
    double: i64 = (insn >> 10 & 7) << 3 | (insn >> 5 & 3) << 6
    if kind == 0:
        imm: i64 = (
            (insn >> 11 & 3) << 4
            | (insn >> 7 & 15) << 6
            | (insn >> 6 & 1) << 2
            | (insn >> 5 & 1) << 3
        )
        return _pack(ADDI, low, 2, 0, imm, SHORT) if imm else ILLEGAL
    if kind == 2:
        return _pack(LW, low, base, 0, word, SHORT)
    if kind == 3:
        return _pack(LD, low, base, 0, double, SHORT)
    if kind == 6:
        return _pack(SW, 0, base, low, word, SHORT)
    if kind == 7:
        return _pack(SD, 0, base, low, double, SHORT)
    if kind == 1 and misa & MISA_D:
        return FLD | low << 8 | base << 14 | SHORT | double << 32
    if kind == 5 and misa & MISA_D:
        return _pack(FSD, 0, base, low, double, SHORT)
    return ILLEGAL


def _quadrant_1(insn: i64, at: i64) -> i64:
    kind: i64 = insn >> 13
    rd: i64 = insn >> 7 & 31
    low: i64 = (insn >> 2 & 7) + 8
    high: i64 = (insn >> 7 & 7) + 8
    bits: i64 = (insn >> 12 & 1) << 5 | (insn >> 2 & 31)
    imm: i64 = _sign(bits, 5)
    if kind == 0:
        return _pack(ADDI, rd, rd, 0, imm, SHORT)
    if kind == 1:
        return _pack(ADDIW, rd, rd, 0, imm, SHORT) if rd else ILLEGAL
    if kind == 2:
        return _pack(LI, rd, 0, 0, imm, SHORT)
    if kind == 3:
        if rd != 2:
            return _pack(LI, rd, 0, 0, imm << 12, SHORT) if imm else ILLEGAL
        imm = _sign(
            (insn >> 12 & 1) << 9
            | (insn >> 6 & 1) << 4
            | (insn >> 5 & 1) << 6
            | (insn >> 3 & 3) << 7
            | (insn >> 2 & 1) << 5,
            9,
        )
        return _pack(ADDI, 2, 2, 0, imm, SHORT) if imm else ILLEGAL
    if kind == 4:
        which: i64 = insn >> 10 & 3
        if which == 0:
            return _pack(SRLI if bits else ADDI, high, high, 0, bits, SHORT)
        if which == 1:
            return _pack(SRAI, high, high, 0, bits, SHORT)
        if which == 2:
            return _pack(ANDI, high, high, 0, imm, SHORT)
        which = (insn >> 12 & 1) << 2 | (insn >> 5 & 3)
        op: i64 = ILLEGAL
        if which == 0:
            op = SUB
        elif which == 1:
            op = XOR
        elif which == 2:
            op = OR
        elif which == 3:
            op = AND
        elif which == 4:
            op = SUBW
        elif which == 5:
            op = ADDW
        return _pack(op, high, high, low, 0, SHORT) if op != ILLEGAL else ILLEGAL
    if kind == 5:
        imm = _sign(
            (insn >> 12 & 1) << 11
            | (insn >> 11 & 1) << 4
            | (insn >> 9 & 3) << 8
            | (insn >> 8 & 1) << 10
            | (insn >> 7 & 1) << 6
            | (insn >> 6 & 1) << 7
            | (insn >> 3 & 7) << 1
            | (insn >> 2 & 1) << 5,
            11,
        )
        return _jump(JAL_NEAR, JAL, 0, 0, 0, imm, at, SHORT)
    imm = _sign(
        (insn >> 12 & 1) << 8
        | (insn >> 10 & 3) << 3
        | (insn >> 5 & 3) << 6
        | (insn >> 3 & 3) << 1
        | (insn >> 2 & 1) << 5,
        8,
    )
    if kind == 6:
        return _jump(BEQ_NEAR, BEQ, 0, high, 0, imm, at, SHORT)
    return _jump(BNE_NEAR, BNE, 0, high, 0, imm, at, SHORT)


def _quadrant_2(insn: i64, misa: i64) -> i64:
    kind: i64 = insn >> 13
    rd: i64 = insn >> 7 & 31
    rs2: i64 = insn >> 2 & 31
    top: i64 = insn >> 12 & 1
    double: i64 = top << 5 | (insn >> 5 & 3) << 3 | (insn >> 2 & 7) << 6
    store: i64 = (insn >> 10 & 7) << 3 | (insn >> 7 & 7) << 6
    if kind == 0:
        return _pack(SLLI, rd, rd, 0, top << 5 | rs2, SHORT)
    if kind == 1 and misa & MISA_D:
        return FLD | rd << 8 | 2 << 14 | SHORT | double << 32
    if kind == 2 and rd:
        return _pack(LW, rd, 2, 0, top << 5 | (insn >> 4 & 7) << 2 | (insn >> 2 & 3) << 6, SHORT)
    if kind == 3 and rd:
        return _pack(LD, rd, 2, 0, double, SHORT)
    if kind == 4:
        if rs2:
            if top:
                return _pack(ADD, rd, rd, rs2, 0, SHORT)
            return _pack(ADDI, rd, rs2, 0, 0, SHORT)
        if rd:
            return _pack(JALR, top, rd, 0, 0, SHORT)
        return SYSTEM | SHORT | 0x100073 << 32 if top else ILLEGAL
    if kind == 5 and misa & MISA_D:
        return _pack(FSD, 0, 2, rs2, store, SHORT)
    if kind == 6:
        return _pack(SW, 0, 2, rs2, (insn >> 9 & 15) << 2 | (insn >> 7 & 3) << 6, SHORT)
    if kind == 7:
        return _pack(SD, 0, 2, rs2, store, SHORT)
    return ILLEGAL


def _long(insn: i64, at: i64, misa: i64) -> i64:
    opcode: i64 = insn & 0x7F
    rd: i64 = insn >> 7 & 31
    kind: i64 = insn >> 12 & 7
    rs1: i64 = insn >> 15 & 31
    rs2: i64 = insn >> 20 & 31
    imm: i64 = _sign(insn >> 20, 11)
    op: i64 = ILLEGAL
    if opcode == 0x13:
        return _immediate(insn, rd, kind, rs1, imm)
    if opcode == 0x33:
        return _register(insn, rd, kind, rs1, rs2, misa)
    if opcode == 0x03:
        if kind == 3:
            op = LD
        elif kind == 2:
            op = LW
        elif kind == 4:
            op = LBU
        elif kind == 0:
            op = LB
        elif kind == 1:
            op = LH
        elif kind == 5:
            op = LHU
        elif kind == 6:
            op = LWU
        return _pack(op, rd, rs1, 0, imm, LONG) if op != ILLEGAL else ILLEGAL
    if opcode == 0x23:
        if kind == 3:
            op = SD
        elif kind == 2:
            op = SW
        elif kind == 0:
            op = SB
        elif kind == 1:
            op = SH
        imm = imm & ~31 | rd
        return _pack(op, 0, rs1, rs2, imm, LONG) if op != ILLEGAL else ILLEGAL
    if opcode == 0x63:
        imm = _sign(
            (insn >> 31) << 12
            | (insn >> 7 & 1) << 11
            | (insn >> 25 & 63) << 5
            | (insn >> 8 & 15) << 1,
            12,
        )
        # Where instructions are aligned to 4 bytes a far one looks whether its target is.
        beside: i64 = at
        if imm & 2 and not misa & MISA_C:
            beside = -(1 << 20)
        if kind == 0:
            return _jump(BEQ_NEAR, BEQ, 0, rs1, rs2, imm, beside, LONG)
        if kind == 1:
            return _jump(BNE_NEAR, BNE, 0, rs1, rs2, imm, beside, LONG)
        if kind == 4:
            return _jump(BLT_NEAR, BLT, 0, rs1, rs2, imm, beside, LONG)
        if kind == 5:
            return _jump(BGE_NEAR, BGE, 0, rs1, rs2, imm, beside, LONG)
        if kind == 6:
            return _jump(BLTU_NEAR, BLTU, 0, rs1, rs2, imm, beside, LONG)
        if kind == 7:
            return _jump(BGEU_NEAR, BGEU, 0, rs1, rs2, imm, beside, LONG)
        return ILLEGAL
    if opcode == 0x6F:
        imm = _sign(
            (insn >> 31) << 20
            | (insn >> 12 & 255) << 12
            | (insn >> 20 & 1) << 11
            | (insn >> 21 & 1023) << 1,
            20,
        )
        beside = at
        if imm & 2 and not misa & MISA_C:
            beside = -(1 << 22)
        return _jump(JAL_NEAR, JAL, rd, 0, 0, imm, beside, LONG)
    if opcode == 0x67:
        return _pack(JALR, rd, rs1, 0, imm, LONG) if kind == 0 else ILLEGAL
    if opcode == 0x37:
        return _pack(LI, rd, 0, 0, _sign(insn & ~0xFFF, 31), LONG)
    if opcode == 0x17:
        return _pack(AUIPC, rd, 0, 0, _sign(insn & ~0xFFF, 31), LONG)
    if opcode == 0x1B:
        shift: i64 = insn >> 25
        if kind == 0:
            return _pack(ADDIW, rd, rs1, 0, imm, LONG)
        if kind == 1 and shift == 0:
            return _pack(SLLIW, rd, rs1, 0, rs2, LONG)
        if kind == 5 and shift == 0:
            return _pack(SRLIW, rd, rs1, 0, rs2, LONG)
        if kind == 5 and shift == 0x20:
            return _pack(SRAIW, rd, rs1, 0, rs2, LONG)
        return ILLEGAL
    if opcode == 0x3B:
        which: i64 = insn >> 25 << 3 | kind
        if which == 0:
            op = ADDW
        elif which == 0x100:
            op = SUBW
        elif which == 1:
            op = SLLW
        elif which == 5:
            op = SRLW
        elif which == 0x105:
            op = SRAW
        elif misa & MISA_M:
            if which == 8:
                op = MULW
            elif which >= 12 and which < 16:
                return _raw(MULDIV, insn) if rd else _pack(NOP, 0, 0, 0, 0, LONG)
        return _pack(op, rd, rs1, rs2, 0, LONG) if op != ILLEGAL else ILLEGAL
    if opcode == 0x73:
        if kind == 0:
            return _raw(SYSTEM, insn)
        return _raw(CSR, insn) if kind != 4 else ILLEGAL
    if opcode == 0x2F:
        return _raw(AMO, insn) if misa & MISA_A and (kind == 2 or kind == 3) else ILLEGAL
    if opcode == 0x0F:
        if kind == 2 and rd == 0 and imm != 3 and imm >= 0 and imm <= 4:
            return _raw(SYSTEM, insn)
        return _pack(NOP, 0, 0, 0, 0, LONG) if kind < 2 else ILLEGAL
    if not misa & MISA_F:
        return ILLEGAL
    if opcode == 0x07 and (kind == 2 or (kind == 3 and misa & MISA_D)):
        op = FLD if kind == 3 else FLW
        return op | rd << 8 | rs1 << 14 | LONG | imm << 32
    if opcode == 0x27 and (kind == 2 or (kind == 3 and misa & MISA_D)):
        return _pack(FSD if kind == 3 else FSW, 0, rs1, rs2, imm & ~31 | rd, LONG)
    if opcode == 0x53 or opcode & 0x73 == 0x43:
        fmt: i64 = insn >> 25 & 3
        return _raw(FLOAT, insn) if fmt == 0 or (fmt == 1 and misa & MISA_D) else ILLEGAL
    return ILLEGAL


def _immediate(insn: i64, rd: i64, kind: i64, rs1: i64, imm: i64) -> i64:
    shift: i64 = imm & 63
    if kind == 0:
        if rs1 == 0:
            return _pack(LI, rd, 0, 0, imm, LONG)
        return _pack(ADDI, rd, rs1, 0, imm, LONG)
    if kind == 7:
        return _pack(ANDI, rd, rs1, 0, imm, LONG)
    if kind == 1 and insn >> 26 == 0:
        return _pack(SLLI, rd, rs1, 0, shift, LONG)
    if kind == 5 and insn >> 26 == 0:
        # A logical shift by none would have to keep the sign.
        return _pack(SRLI if shift else ADDI, rd, rs1, 0, shift, LONG)
    if kind == 5 and insn >> 26 == 0x10:
        return _pack(SRAI, rd, rs1, 0, shift, LONG)
    if kind == 2:
        return _pack(SLTI, rd, rs1, 0, imm, LONG)
    if kind == 3:
        return _pack(SLTIU, rd, rs1, 0, imm, LONG)
    if kind == 4:
        return _pack(XORI, rd, rs1, 0, imm, LONG)
    if kind == 6:
        return _pack(ORI, rd, rs1, 0, imm, LONG)
    return ILLEGAL


def _register(insn: i64, rd: i64, kind: i64, rs1: i64, rs2: i64, misa: i64) -> i64:
    function: i64 = insn >> 25
    op: i64 = ILLEGAL
    if function == 0:
        if kind == 0:
            op = ADD
        elif kind == 1:
            op = SLL
        elif kind == 2:
            op = SLT
        elif kind == 3:
            op = SLTU
        elif kind == 4:
            op = XOR
        elif kind == 5:
            op = SRL
        elif kind == 6:
            op = OR
        else:
            op = AND
    elif function == 0x20:
        if kind == 0:
            op = SUB
        elif kind == 5:
            op = SRA
    elif function == 1 and misa & MISA_M:
        if kind != 0:
            return _raw(MULDIV, insn) if rd else _pack(NOP, 0, 0, 0, 0, LONG)
        op = MUL
    return _pack(op, rd, rs1, rs2, 0, LONG) if op != ILLEGAL else ILLEGAL
