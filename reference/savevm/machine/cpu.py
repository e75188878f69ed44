"""A RISC-V hart: RV64IMAC, Zicsr, Zifencei and Zicntr, with F and D, in machine, supervisor and user mode."""

from typing import final

from mypy_extensions import i64

from savevm.machine.bitmanip import evaluate
from savevm.machine.csr import FS, Features, Time
from savevm.machine.decode import (
    ADDI,
    ADDIW,
    ADDW,
    AUIPC,
    BEQ,
    BITS,
    BLT,
    BLT_NEAR,
    BLTU,
    BLTU_NEAR,
    BNE_NEAR,
    CSR,
    FLD,
    FLOAT,
    FLW,
    FSD,
    JALR,
    LD,
    LH,
    LHU,
    LW,
    MISA_C,
    MULDIV,
    MULW,
    NOP,
    OR,
    PAGE_END,
    SB,
    SH,
    SLL,
    SLLI,
    SLLIW,
    SLLW,
    SLTIU,
    SLTU,
    SRL,
    SRLIW,
    SRLW,
    SUBW,
    UNDECODED,
    XOR,
    XORI,
)
from savevm.machine.execute import Executor
from savevm.machine.memory import Bus, GuestRam

__all__ = ["Features", "Hart"]


@final
class Hart(Executor):
    """A hart with its registers and its view of memory.

    ``run`` executes; between two runs all registers may be read and set (``mode_changed`` and
    ``flush`` behind that), and ``mip``'s bits are the board's.
    """

    def __init__(
        self,
        hart_id: int,
        bus: Bus,
        ram: GuestRam,
        rom: GuestRam | None,
        clock: Time,
        features: Features | None = None,
    ) -> None:
        super().__init__(hart_id, bus, ram, rom, clock, features or Features())
        self.reset(0x1000)

    def run(self, count: i64) -> i64:
        """Execute up to ``count`` instructions; how many.

        Returns early where the hart waits for an interrupt, and after ``pause``.  An instruction
        that ends in a trap counts.
        """
        self.budget = count
        self.left = count
        self.follow_memory()
        self.tick()
        if self.mip & self.mie:
            self.waiting = False
        try:
            while self.left > 0 and not self.waiting and not self.pausing:
                self.event = False
                if self.mip & self.mie:
                    self.take_interrupt()
                if self.epoch != self.ram.epoch:
                    self.follow_memory()
                self._run()
        finally:
            self.pausing = False
            done: i64 = self.budget - self.left
            self.executed += done
            self.budget = 0
            self.left = 0
            self.tell_time()
        return done

    def _run(self) -> None:
        """Execute until something happens that ``run`` has to look at, or ``left`` is 0."""
        vpage: i64 = self.pc & -4096
        slot: i64 = self.fetch_place(self.pc)
        left: i64 = self.left
        if slot < 0:
            self.left = left - 1
            self.take_exception()
            return
        # Places of two bytes each: adding vbase to one doubled gives the address of it.
        vbase: i64 = vpage - (slot << 1)
        slot += (self.pc & 4095) >> 1
        x = self.x
        f = self.f
        code = self.pages.code
        data = self.ram.data
        rtlb = self.rtlb
        wtlb = self.wtlb
        ftlb = self.ftlb
        who: i64 = self.data_tag
        mode: i64 = self.priv
        align: i64 = 0 if self.misa & MISA_C else 2
        stop: i64 = left - 1 if self.guarded else 0
        # ((n & all64) ^ sign64) - sign64 is what 64 bits make of n; compiled, nothing is left of it.
        sign64: i64 = 0
        sign64 += 1 << 61
        all64: i64 = sign64 * 8 - 1
        sign64 = sign64 * 4
        least: i64 = -sign64
        low32: i64 = 0xFFFF_FFFF
        sign32: i64 = 0x8000_0000
        a: i64
        b: i64
        i: i64
        t: i64
        d: i64 = code[slot]
        while left > stop:
            op: i64 = d & 255
            if op < BLT_NEAR:
                if op < ADDIW:
                    if op < BNE_NEAR:
                        if op < LD:
                            if op == ADDI:
                                a = x[d >> 14 & 63] + (d >> 32)
                                x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                            else:  # ADD
                                a = x[d >> 14 & 63] + x[d >> 20 & 63]
                                x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                        elif op == LD:
                            a = x[d >> 14 & 63] + (d >> 32)
                            i = a >> 11 & 510
                            if rtlb[i] == (a & -4089) + who:
                                x[d >> 8 & 63] = data[(a + rtlb[i + 1]) >> 3]
                            elif self.load(d, a, (slot << 1) + vbase, left):
                                break
                        else:  # SD
                            a = x[d >> 14 & 63] + (d >> 32)
                            i = a >> 11 & 510
                            if wtlb[i] == (a & -4089) + who:
                                data[(a + wtlb[i + 1]) >> 3] = x[d >> 20 & 63]
                            elif self.store(d, a, (slot << 1) + vbase, left):
                                break
                    elif op < LW:
                        if op == BNE_NEAR:
                            if x[d >> 14 & 63] != x[d >> 20 & 63]:
                                slot += d >> 32
                                d = code[slot]
                                left -= 1
                                continue
                        elif x[d >> 14 & 63] == x[d >> 20 & 63]:  # BEQ_NEAR
                            slot += d >> 32
                            d = code[slot]
                            left -= 1
                            continue
                    elif op == LW:
                        a = x[d >> 14 & 63] + (d >> 32)
                        i = a >> 11 & 510
                        if rtlb[i] == (a & -4093) + who:
                            a += rtlb[i + 1]
                            b = data[a >> 3] >> ((a & 4) << 3)
                            x[d >> 8 & 63] = ((b & low32) ^ sign32) - sign32
                        elif self.load(d, a, (slot << 1) + vbase, left):
                            break
                    else:  # SW
                        a = x[d >> 14 & 63] + (d >> 32)
                        i = a >> 11 & 510
                        if wtlb[i] == (a & -4093) + who:
                            a += wtlb[i + 1]
                            i = a >> 3
                            t = (a & 4) << 3
                            b = (data[i] & ~(low32 << t)) | ((x[d >> 20 & 63] & low32) << t)
                            data[i] = ((b & all64) ^ sign64) - sign64
                        elif self.store(d, a, (slot << 1) + vbase, left):
                            break
                elif op < JALR:
                    if op < SLLI:
                        if op == ADDIW:
                            a = x[d >> 14 & 63] + (d >> 32)
                            x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                        else:  # LI
                            x[d >> 8 & 63] = d >> 32
                    elif op == SLLI:
                        a = x[d >> 14 & 63] << (d >> 32)
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                    else:  # JAL_NEAR
                        a = (slot << 1) + vbase + (d >> 25 & 6)
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                        slot += d >> 32
                        d = code[slot]
                        left -= 1
                        continue
                elif op < SB:
                    if op == JALR:
                        a = (slot << 1) + vbase
                        t = (x[d >> 14 & 63] + (d >> 32)) & -2
                        t = ((t & all64) ^ sign64) - sign64
                        if t & align:
                            self.jump_misaligned(t, a, left)
                            break
                        a += d >> 25 & 6
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                        i = t >> 11 & 510
                        left -= 1
                        if ftlb[i] != (t & -4096) + mode:
                            self.pc = t
                            self.left = left
                            break
                        slot = ftlb[i + 1]
                        vbase = (t & -4096) - (slot << 1)
                        slot += (t & 4095) >> 1
                        d = code[slot]
                        continue
                    # LBU
                    a = x[d >> 14 & 63] + (d >> 32)
                    i = a >> 11 & 510
                    if rtlb[i] == (a & -4096) + who:
                        a += rtlb[i + 1]
                        x[d >> 8 & 63] = data[a >> 3] >> ((a & 7) << 3) & 255
                    elif self.load(d, a, (slot << 1) + vbase, left):
                        break
                elif op == SB:
                    a = x[d >> 14 & 63] + (d >> 32)
                    i = a >> 11 & 510
                    if wtlb[i] == (a & -4096) + who:
                        a += wtlb[i + 1]
                        i = a >> 3
                        t = (a & 7) << 3
                        b = 255
                        b = (data[i] & ~(b << t)) | ((x[d >> 20 & 63] & 255) << t)
                        data[i] = ((b & all64) ^ sign64) - sign64
                    elif self.store(d, a, (slot << 1) + vbase, left):
                        break
                else:  # ANDI
                    x[d >> 8 & 63] = x[d >> 14 & 63] & (d >> 32)
            elif op < LH:
                if op < XOR:
                    if op < ADDW:
                        if op < BLTU_NEAR:
                            if op == BLT_NEAR:
                                if x[d >> 14 & 63] < x[d >> 20 & 63]:
                                    slot += d >> 32
                                    d = code[slot]
                                    left -= 1
                                    continue
                            elif x[d >> 14 & 63] >= x[d >> 20 & 63]:  # BGE_NEAR
                                slot += d >> 32
                                d = code[slot]
                                left -= 1
                                continue
                        elif op == BLTU_NEAR:
                            if (x[d >> 14 & 63] ^ least) < (x[d >> 20 & 63] ^ least):
                                slot += d >> 32
                                d = code[slot]
                                left -= 1
                                continue
                        elif (x[d >> 14 & 63] ^ least) >= (x[d >> 20 & 63] ^ least):  # BGEU_NEAR
                            slot += d >> 32
                            d = code[slot]
                            left -= 1
                            continue
                    elif op < OR:
                        if op == ADDW:
                            a = x[d >> 14 & 63] + x[d >> 20 & 63]
                            x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                        else:  # SUB
                            a = x[d >> 14 & 63] - x[d >> 20 & 63]
                            x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                    elif op == OR:
                        x[d >> 8 & 63] = x[d >> 14 & 63] | x[d >> 20 & 63]
                    else:  # AND
                        x[d >> 8 & 63] = x[d >> 14 & 63] & x[d >> 20 & 63]
                elif op < LHU:
                    if op < AUIPC:
                        if op == XOR:
                            x[d >> 8 & 63] = x[d >> 14 & 63] ^ x[d >> 20 & 63]
                        else:  # SRLI
                            t = d >> 32
                            a = -1
                            a = ~(a << (63 - t) << 1)
                            x[d >> 8 & 63] = x[d >> 14 & 63] >> t & a
                    elif op == AUIPC:
                        a = (slot << 1) + vbase + (d >> 32)
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                    else:  # JAL
                        a = (slot << 1) + vbase
                        t = a + (d >> 32)
                        t = ((t & all64) ^ sign64) - sign64
                        if t & align:
                            self.jump_misaligned(t, a, left)
                            break
                        a += d >> 25 & 6
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                        i = t >> 11 & 510
                        left -= 1
                        if ftlb[i] != (t & -4096) + mode:
                            self.pc = t
                            self.left = left
                            break
                        slot = ftlb[i + 1]
                        vbase = (t & -4096) - (slot << 1)
                        slot += (t & 4095) >> 1
                        d = code[slot]
                        continue
                elif op < SUBW:
                    if op == LHU:
                        a = x[d >> 14 & 63] + (d >> 32)
                        i = a >> 11 & 510
                        if rtlb[i] == (a & -4095) + who:
                            a += rtlb[i + 1]
                            x[d >> 8 & 63] = data[a >> 3] >> ((a & 6) << 3) & 0xFFFF
                        elif self.load(d, a, (slot << 1) + vbase, left):
                            break
                    else:  # LWU
                        a = x[d >> 14 & 63] + (d >> 32)
                        i = a >> 11 & 510
                        if rtlb[i] == (a & -4093) + who:
                            a += rtlb[i + 1]
                            x[d >> 8 & 63] = data[a >> 3] >> ((a & 4) << 3) & low32
                        elif self.load(d, a, (slot << 1) + vbase, left):
                            break
                elif op == SUBW:
                    a = x[d >> 14 & 63] - x[d >> 20 & 63]
                    x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                else:  # MUL
                    a = x[d >> 14 & 63] * x[d >> 20 & 63]
                    x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
            elif op < BEQ:
                if op < XORI:
                    if op < SLTU:
                        if op < SH:
                            if op == LH:
                                a = x[d >> 14 & 63] + (d >> 32)
                                i = a >> 11 & 510
                                if rtlb[i] == (a & -4095) + who:
                                    a += rtlb[i + 1]
                                    b = data[a >> 3] >> ((a & 6) << 3) & 0xFFFF
                                    x[d >> 8 & 63] = (b ^ 0x8000) - 0x8000
                                elif self.load(d, a, (slot << 1) + vbase, left):
                                    break
                            else:  # LB
                                a = x[d >> 14 & 63] + (d >> 32)
                                i = a >> 11 & 510
                                if rtlb[i] == (a & -4096) + who:
                                    a += rtlb[i + 1]
                                    b = data[a >> 3] >> ((a & 7) << 3) & 255
                                    x[d >> 8 & 63] = (b ^ 128) - 128
                                elif self.load(d, a, (slot << 1) + vbase, left):
                                    break
                        elif op == SH:
                            a = x[d >> 14 & 63] + (d >> 32)
                            i = a >> 11 & 510
                            if wtlb[i] == (a & -4095) + who:
                                a += wtlb[i + 1]
                                i = a >> 3
                                t = (a & 6) << 3
                                b = 0xFFFF
                                b = (data[i] & ~(b << t)) | ((x[d >> 20 & 63] & 0xFFFF) << t)
                                data[i] = ((b & all64) ^ sign64) - sign64
                            elif self.store(d, a, (slot << 1) + vbase, left):
                                break
                        else:  # SRAI
                            x[d >> 8 & 63] = x[d >> 14 & 63] >> (d >> 32)
                    elif op < SLTIU:
                        if op == SLTU:
                            a = x[d >> 14 & 63] ^ least
                            x[d >> 8 & 63] = 1 if a < (x[d >> 20 & 63] ^ least) else 0
                        else:  # SLT
                            a = x[d >> 14 & 63]
                            x[d >> 8 & 63] = 1 if a < x[d >> 20 & 63] else 0
                    elif op == SLTIU:
                        a = x[d >> 14 & 63] ^ least
                        x[d >> 8 & 63] = 1 if a < (d >> 32 ^ least) else 0
                    else:  # SLTI
                        x[d >> 8 & 63] = 1 if x[d >> 14 & 63] < d >> 32 else 0
                elif op < SLL:
                    if op < SLLIW:
                        if op == XORI:
                            x[d >> 8 & 63] = x[d >> 14 & 63] ^ (d >> 32)
                        else:  # ORI
                            x[d >> 8 & 63] = x[d >> 14 & 63] | (d >> 32)
                    elif op == SLLIW:
                        a = x[d >> 14 & 63] << (d >> 32)
                        x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                    elif op == SRLIW:
                        a = (x[d >> 14 & 63] & low32) >> (d >> 32)
                        x[d >> 8 & 63] = (a ^ sign32) - sign32
                    else:  # SRAIW
                        a = ((x[d >> 14 & 63] & low32) ^ sign32) - sign32
                        x[d >> 8 & 63] = a >> (d >> 32)
                elif op < SLLW:
                    t = x[d >> 20 & 63] & 63
                    if op == SLL:
                        a = x[d >> 14 & 63] << t
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                    elif op == SRL:
                        a = -1
                        a = x[d >> 14 & 63] >> t & ~(a << (63 - t) << 1)
                        x[d >> 8 & 63] = ((a & all64) ^ sign64) - sign64
                    else:  # SRA
                        x[d >> 8 & 63] = x[d >> 14 & 63] >> t
                elif op == MULW:
                    a = x[d >> 14 & 63] * x[d >> 20 & 63]
                    x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                else:
                    t = x[d >> 20 & 63] & 31
                    if op == SLLW:
                        a = x[d >> 14 & 63] << t
                        x[d >> 8 & 63] = ((a & low32) ^ sign32) - sign32
                    elif op == SRLW:
                        a = (x[d >> 14 & 63] & low32) >> t
                        x[d >> 8 & 63] = (a ^ sign32) - sign32
                    else:  # SRAW
                        a = ((x[d >> 14 & 63] & low32) ^ sign32) - sign32
                        x[d >> 8 & 63] = a >> t
            elif op < FLD:
                a = x[d >> 14 & 63]
                b = x[d >> 20 & 63]
                taken: bool
                if op < BLT:
                    taken = a == b if op == BEQ else a != b
                elif op < BLTU:
                    taken = a < b if op == BLT else a >= b
                elif op == BLTU:
                    taken = (a ^ least) < (b ^ least)
                else:  # BGEU
                    taken = (a ^ least) >= (b ^ least)
                if taken:
                    a = (slot << 1) + vbase
                    t = a + (d >> 32)
                    t = ((t & all64) ^ sign64) - sign64
                    if t & align:
                        self.jump_misaligned(t, a, left)
                        break
                    i = t >> 11 & 510
                    left -= 1
                    if ftlb[i] != (t & -4096) + mode:
                        self.pc = t
                        self.left = left
                        break
                    slot = ftlb[i + 1]
                    vbase = (t & -4096) - (slot << 1)
                    slot += (t & 4095) >> 1
                    d = code[slot]
                    continue
            elif op < MULDIV:
                a = (slot << 1) + vbase
                if op < FLOAT:
                    b = x[d >> 14 & 63] + (d >> 32)
                    i = b >> 11 & 510
                    # Where the registers count as changed already, nothing else is to be done.
                    dirty: bool = self.mstatus & FS == FS
                    if op == FLD:
                        if dirty and rtlb[i] == (b & -4089) + who:
                            f[d >> 8 & 31] = data[(b + rtlb[i + 1]) >> 3]
                        elif self.load_float(d, b, a, left):
                            break
                    elif op == FSD:
                        if dirty and wtlb[i] == (b & -4089) + who:
                            data[(b + wtlb[i + 1]) >> 3] = f[d >> 20 & 31]
                        elif self.store_float(d, b, a, left):
                            break
                    elif op == FLW:
                        if dirty and rtlb[i] == (b & -4093) + who:
                            b += rtlb[i + 1]
                            b = data[b >> 3] >> ((b & 4) << 3)
                            f[d >> 8 & 31] = (b & low32) | -0x1_0000_0000
                        elif self.load_float(d, b, a, left):
                            break
                    elif dirty and wtlb[i] == (b & -4093) + who:  # FSW
                        b += wtlb[i + 1]
                        i = b >> 3
                        t = (b & 4) << 3
                        b = (data[i] & ~(low32 << t)) | ((f[d >> 20 & 31] & low32) << t)
                        data[i] = ((b & all64) ^ sign64) - sign64
                    elif self.store_float(d, b, a, left):
                        break
                elif op == FLOAT:
                    if self.mstatus & FS == FS and self.compute(d >> 32 & low32):
                        pass
                    elif self.float(d, a, left):
                        break
                elif self.amo(d, a, left):
                    break
            elif op == UNDECODED:
                d = self.pages.decode(slot)
                continue
            elif op == MULDIV:
                self.muldiv(d >> 32)
            elif op == BITS:
                x[d >> 8 & 63] = evaluate(d >> 32, x[d >> 14 & 63], x[d >> 20 & 63])
            elif op < NOP:
                a = (slot << 1) + vbase
                if op == CSR:
                    if self.csr(d >> 32, a, left):
                        break
                else:
                    self.system(d, a, left)
                    break
            elif op == PAGE_END:
                self.pc = (((slot << 1) + vbase) & all64 ^ sign64) - sign64
                self.left = left
                break
            elif op != NOP:  # CROSSING
                d = self.decode_crossing(d, (slot << 1) + vbase, left)
                if d == -1:
                    break
                continue
            slot += d >> 26 & 3
            left -= 1
            d = code[slot]
        else:
            self.pc = (((slot << 1) + vbase) & all64 ^ sign64) - sign64
            self.left = left
