"""A hart where programs hardly go: what the ISA tests leave out, and what only an emulator has."""

import random

import pytest
from riscv import (
    BASE,
    C_NOP,
    EBREAK,
    ECALL,
    HANDLER,
    MASK,
    MRET,
    NOP,
    SFENCE,
    SRET,
    WFI,
    Bare,
    addi,
    amo,
    branch,
    csr,
    jal,
    jalr,
    load,
    r,
    signed,
    store,
)

from savevm.machine.cpu import Features, Hart
from savevm.machine.state import NO_RESERVATION, HartState

DATA = BASE + 0x4000
FAR = BASE + 0x8000
SV39 = 8 << 60 | (BASE + 0x10000) >> 12
V, R, W, X, U, A, D = 1, 2, 4, 8, 16, 64, 128
LEAF = V | R | W | X | A | D


@pytest.fixture
def bare() -> Bare:
    machine = Bare()
    machine.hart.mtvec = HANDLER
    return machine


# -- What the emulator has of its own


def test_a_store_is_marked_once_and_again_after_clean(bare: Bare) -> None:
    bare.ram.follow(True)
    code = (store(6, 5), jal(0, -4))
    bare.run(*code, count=2, x5=DATA, x6=1)
    page = (DATA - BASE) >> 12
    assert bare.ram.dirty is not None
    assert bare.ram.dirty[page] == 1
    bare.ram.clean(0, bare.ram.pages)
    bare.hart.run(2)
    assert bare.ram.dirty[page] == 1
    assert bare.ram.dirty.count(1) == 1


def test_pages_that_are_only_read_stay_untouched(bare: Bare) -> None:
    bare.run(load(6, 5), load(6, 5, 0x100, 2), x5=DATA)
    assert not bare.ram.touched[(DATA - BASE) >> 12]


def test_a_page_table_walk_marks_the_page_that_it_writes(bare: Bare) -> None:
    bare.open()
    entry = bare.map(0x4000_0000, DATA, V | R | W)
    bare.map(BASE, BASE, LEAF)
    bare.put(BASE, load(6, 5), store(6, 5))
    bare.ram.follow(True)
    bare.enter(1, satp=SV39)
    bare.set(x5=0x4000_0000)
    bare.hart.run(1)
    assert bare.word(entry) & (A | D) == A
    bare.hart.run(1)
    assert bare.word(entry) & (A | D) == A | D
    assert bare.ram.dirty is not None
    assert {n for n, byte in enumerate(bare.ram.dirty) if byte} == {
        (entry - BASE) >> 12,
        (DATA - BASE) >> 12,
    }


def test_code_that_overwrites_the_next_instruction(bare: Bare) -> None:
    new = addi(7, 0, 42)
    bare.run(store(6, 5, 0, 2), addi(7, 0, 1), x5=BASE + 4, x6=new)
    assert bare.x(7) == 42


def test_code_that_was_run_and_is_overwritten_in_its_middle(bare: Bare) -> None:
    # A long instruction, of which the upper half becomes two compressed ones' first.
    bare.put(FAR, addi(7, 0, 0x123), jalr(0, 1))
    bare.put(BASE, jalr(1, 5), store(6, 5, 2, 1), jalr(1, 5))
    bare.set(x5=FAR, x6=0x4560)
    bare.hart.run(3)
    assert bare.x(7) == 0x123
    bare.hart.run(3)
    assert bare.x(7) == 0x456


def test_code_that_is_data_most_of_the_time(bare: Bare) -> None:
    bare.put(FAR, addi(7, 7, 1), jalr(0, 1))
    # Stores beside it until nobody expects code there any more, then another instruction.
    loop = (jalr(1, 5), store(6, 5, 0x40), addi(8, 8, -1), branch(1, 8, 0, -8))
    bare.put(BASE, *loop, store(9, 5, 0, 2), jalr(1, 5))
    bare.set(x5=FAR, x8=2000, x9=addi(7, 0, 5))
    bare.hart.run(3 + 3 * 2000 + 2 + 1)
    assert bare.x(7) == 5


def test_code_that_is_written_from_outside(bare: Bare) -> None:
    bare.run(addi(7, 0, 1), jal(0, -4), count=2)
    bare.put(BASE, addi(7, 0, 2))
    bare.hart.run(2)
    assert bare.x(7) == 2


def test_code_that_another_hart_writes(bare: Bare) -> None:
    other = Hart(1, bare.bus, bare.ram, bare.rom, bare.clock)
    other.reset(BASE + 0x2000)
    bare.put(BASE + 0x2000, store(6, 5), store(6, 5, 0, 2), jal(0, -4))
    other.x[5] = FAR
    other.x[6] = addi(7, 0, 9)
    other.run(3)  # FAR is data, and may be written without asking
    bare.put(BASE, jalr(1, 5), jal(0, -4))
    bare.put(FAR, addi(7, 0, 1), jalr(0, 1))
    bare.set(x5=FAR)
    bare.hart.run(3)
    assert bare.x(7) == 1
    other.run(2)
    bare.hart.run(3)
    assert bare.x(7) == 9


def test_a_device_in_ram_wins_over_ram(bare: Bare) -> None:
    bare.bus.add(DATA + 8, 16, bare.console)
    bare.run(store(6, 5), store(6, 5, 8), load(7, 5, 16), load(8, 5), x5=DATA, x6=77)
    assert bare.word(DATA) == 77
    assert bare.word(DATA + 8) == 0
    assert bare.console.written == [(0, 8, 77)]
    assert bare.x(7) == 8
    assert bare.x(8) == 77


def test_pause_returns_behind_the_instruction(bare: Bare) -> None:
    bare.console.then = bare.hart.pause
    bare.put(BASE, store(6, 5), NOP, NOP)
    bare.set(x5=0x1000_0000, x6=1)
    assert bare.hart.run(100) == 1
    assert bare.csr("pc") == BASE + 4
    assert bare.hart.run(2) == 2


def test_a_device_that_raises_leaves_the_hart_before_the_instruction(bare: Bare) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    bare.console.then = fail
    bare.put(BASE, NOP, store(6, 5))
    bare.set(x5=0x1000_0000)
    with pytest.raises(RuntimeError, match="broken"):
        bare.hart.run(5)
    assert bare.csr("pc") == BASE + 4


def test_rom_runs_and_cannot_be_written(bare: Bare) -> None:
    bare.rom.write(0, addi(7, 0, 3).to_bytes(4, "little") + store(7, 5).to_bytes(4, "little"))
    bare.hart.reset(0x1000)
    bare.set(x5=0x1010)
    bare.hart.run(2)
    assert bare.x(7) == 3
    assert bytes(bare.rom.view[16:24]) == bytes(8)


# -- Memory accesses


@pytest.mark.parametrize("offset", [1, 3, 7, 0xFFC, 0xFFF])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_misaligned_accesses(bare: Bare, offset: int, kind: int) -> None:
    size = 1 << kind
    value = 0x8192_A3B4_C5D6_E7F8
    bare.run(store(6, 5, 0, kind), load(7, 5, 0, kind), x5=DATA + offset, x6=value)
    start = DATA - BASE + offset
    low = value & ((1 << 8 * size) - 1)
    assert int.from_bytes(bare.ram.view[start : start + size], "little") == low
    sign = 1 << (8 * size - 1)
    assert bare.x(7) == (low ^ sign) - sign & MASK


def test_accesses_that_cross_into_a_page_elsewhere(bare: Bare) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.map(0x4000_0000, DATA, LEAF)
    bare.map(0x4000_1000, FAR, LEAF)
    bare.enter(1, satp=SV39)
    bare.run(store(6, 5), load(7, 5), x5=0x4000_0FFD, x6=0x1122_3344_5566_7788)
    assert bytes(bare.ram.view[DATA - BASE + 0xFFD :][:3]) == b"\x88\x77\x66"
    assert bytes(bare.ram.view[FAR - BASE :][:5]) == b"\x55\x44\x33\x22\x11"
    assert bare.x(7) == 0x1122_3344_5566_7788


def test_a_store_that_crosses_into_nothing_changes_nothing(bare: Bare) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.map(0x4000_0000, DATA, LEAF)
    bare.map(0x4000_1000, FAR, V | R | A)
    bare.enter(1, satp=SV39)
    bare.run(store(6, 5), x5=0x4000_0FFD, x6=MASK)
    assert bare.csr("mcause") == 15
    assert bare.csr("mtval") == 0x4000_1000
    assert not any(bare.ram.view[DATA - BASE : DATA - BASE + 0x1000])


def test_an_instruction_that_crosses_into_a_page_elsewhere(bare: Bare) -> None:
    bare.open()
    bare.map(0x4000_0000, DATA, LEAF)
    bare.map(0x4000_1000, FAR, LEAF)
    insn = addi(7, 0, 0x155)
    bare.ram.write(DATA - BASE + 0xFFC, C_NOP.to_bytes(2, "little"))
    bare.ram.write(DATA - BASE + 0xFFE, (insn & 0xFFFF).to_bytes(2, "little"))
    bare.ram.write(
        FAR - BASE, (insn >> 16).to_bytes(2, "little") + addi(8, 7, 1).to_bytes(4, "little")
    )
    bare.enter(1, satp=SV39, pc=0x4000_0FFC)
    bare.hart.run(3)
    assert (bare.x(7), bare.x(8)) == (0x155, 0x156)
    assert bare.csr("pc") == 0x4000_1006


def test_an_instruction_that_crosses_into_nothing(bare: Bare) -> None:
    bare.open()
    bare.map(0x4000_0000, DATA, LEAF)
    bare.ram.write(DATA - BASE + 0xFFE, b"\x93\x03")
    bare.enter(1, satp=SV39, pc=0x4000_0FFE)
    bare.hart.run(1)
    assert (bare.csr("mcause"), bare.csr("mepc")) == (12, 0x4000_0FFE)
    assert bare.csr("mtval") == 0x4000_1000


def test_running_on_into_the_next_page(bare: Bare) -> None:
    start = BASE + 0xFF8
    bare.put(start, *[addi(7, 7, 1)] * 4, jal(0, -16))
    bare.hart.pc = start
    bare.hart.run(50)
    assert bare.x(7) == 40
    assert bare.csr("pc") == start


@pytest.mark.parametrize(
    ("insn", "cause"),
    [
        (load(7, 5), 5),
        (store(7, 5), 7),
        (amo(2, 7, 5, 0), 5),
        (amo(0, 7, 5, 6), 7),
        (jalr(0, 5), 1),
    ],
)
def test_where_there_is_nothing(bare: Bare, insn: int, cause: int) -> None:
    bare.run(insn, count=2 if cause == 1 else 1, x5=0x4000_0000)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (cause, 0x4000_0000)
    assert bare.csr("mepc") == (0x4000_0000 if cause == 1 else BASE)


@pytest.mark.parametrize(
    ("insn", "cause"), [(amo(2, 7, 5, 0), 4), (amo(3, 7, 5, 6), 6), (amo(0, 7, 5, 6, 2), 6)]
)
def test_atomics_are_aligned(bare: Bare, insn: int, cause: int) -> None:
    bare.hart.reserved = DATA + 2
    bare.run(insn, x5=DATA + 2)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (cause, DATA + 2)


def test_store_conditional_fails_where_another_value_is(bare: Bare) -> None:
    bare.run(amo(2, 7, 5, 0), store(6, 5), amo(3, 8, 5, 6), x5=DATA, x6=9)
    assert bare.x(8) == 1
    bare.run(amo(2, 7, 5, 0), amo(3, 8, 5, 5), amo(3, 9, 5, 6), x5=DATA, x6=9)
    assert (bare.x(7), bare.x(8), bare.x(9)) == (9, 0, 1)
    assert bare.word(DATA) == DATA


# -- Translation


def test_sfence_forgets_what_a_large_page_led_to(bare: Bare) -> None:
    bare.open()
    root = BASE + 0x10000
    bare.map(BASE, BASE, LEAF)
    bare.set_word(root + 8, (BASE >> 30 << 28) | LEAF)  # a gigabyte at 0x4000_0000
    bare.set_word(DATA, 1)
    bare.set_word(FAR, 2)
    virtual = 0x4000_0000 + (DATA & 0x3FFF_FFFF)
    bare.put(BASE, load(6, 5), SFENCE | 7 << 15, load(8, 5))
    bare.enter(1, satp=SV39)
    bare.set(x5=virtual, x7=virtual)
    bare.hart.run(1)
    bare.set_word(root + 8, 0)
    bare.map(virtual, FAR, LEAF)
    bare.hart.run(2)
    assert (bare.x(6), bare.x(8)) == (1, 2)


def test_sfence_of_one_page_forgets_it(bare: Bare) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF)
    entry = bare.map(0x4000_0000, DATA, LEAF)
    bare.put(BASE, load(6, 5), store(5, 5), SFENCE | 5 << 15, load(8, 5))
    bare.enter(1, satp=SV39)
    bare.set(x5=0x4000_0000)
    bare.hart.run(2)
    bare.set_word(entry, FAR >> 12 << 10 | LEAF)
    bare.hart.run(2)
    assert (bare.word(DATA), bare.x(8)) == (0x4000_0000, 0)


@pytest.mark.parametrize(
    ("levels", "mode", "high"), [(3, 8, 38), (4, 9, 47), (5, 10, 56)], ids=["Sv39", "Sv48", "Sv57"]
)
def test_levels_of_translation(bare: Bare, levels: int, mode: int, high: int) -> None:
    bare.open()
    virtual = MASK << high & MASK | 0x0123_4567_8000 & (1 << high) - 1
    table = BASE + 0x10000
    root = table
    for level in range(levels - 1, 0, -1):
        bare.set_word(
            table + (virtual >> 12 + 9 * level & 511) * 8, (table + 0x1000) >> 12 << 10 | V
        )
        table += 0x1000
    bare.set_word(table + (virtual >> 12 & 511) * 8, DATA >> 12 << 10 | LEAF)
    bare.put(DATA, load(6, 5), load(7, 8))
    bare.set_word(DATA + 0x20, 99)
    bare.enter(1, satp=mode << 60 | root >> 12, pc=virtual)
    bare.set(x5=virtual + 0x20, x8=(virtual + 0x20) ^ 1 << 63)
    bare.hart.run(2)
    assert bare.x(6) == 99
    assert (bare.csr("mcause"), bare.csr("mtval")) == (13, (virtual + 0x20) ^ 1 << 63)


def test_the_largest_page(bare: Bare) -> None:
    bare.open()
    bare.set_word(BASE + 0x10000, LEAF)  # 2 ** 48 bytes from 0 on
    bare.put(BASE, load(6, 5))
    bare.set_word(DATA, 7)
    bare.enter(1, satp=10 << 60 | (BASE + 0x10000) >> 12)
    bare.set(x5=DATA)
    bare.hart.run(1)
    assert bare.x(6) == 7


@pytest.mark.parametrize(
    ("priv", "status", "bits", "insn", "cause"),
    [
        (1, 0, V | R | W | A | D | U, load(6, 5), 13),  # the user's, without SUM
        (1, 1 << 18, V | R | W | A | D | U, load(6, 5), None),
        (1, 1 << 18, LEAF | U, jalr(0, 5), 12),  # never executed by the supervisor
        (0, 0, V | R | W | A | D, load(6, 5), 13),
        (1, 0, V | X | A, load(6, 5), 13),
        (1, 1 << 19, V | X | A, load(6, 5), None),  # MXR
        (1, 0, V | R | A, store(6, 5), 15),
        (1, 0, V | W | A | D, load(6, 5), 13),  # reserved
        (1, 0, LEAF | 1 << 54, load(6, 5), 13),  # reserved
    ],
)
def test_permissions_of_pages(
    bare: Bare, priv: int, status: int, bits: int, insn: int, cause: int | None
) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF | (U if priv == 0 else 0))
    bare.map(0x4000_0000, DATA, bits)
    bare.put(BASE, insn)
    bare.enter(priv, satp=SV39, mstatus=0xA << 32 | status)
    bare.set(x5=0x4000_0000)
    bare.hart.run(2 if insn & 0x7F == 0x67 else 1)
    assert bare.csr("mcause") == (cause or 0)
    assert bare.csr("mtval") == (0x4000_0000 if cause else 0)


def test_mprv_loads_as_the_previous_mode(bare: Bare) -> None:
    bare.open()
    bare.map(0x4000_0000, DATA, V | R | W | A | D | U)
    bare.set_word(DATA, 5)
    bare.enter(3, satp=SV39, mstatus=0xA << 32 | 1 << 17 | 0 << 11)
    bare.run(load(6, 5), x5=0x4000_0000)
    assert bare.x(6) == 5


def test_accessed_bits_are_the_guests_business_with_svadu_off() -> None:
    bare = Bare(Features(svadu=True))
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.map(0x4000_0000, DATA, V | R | W | A)
    bare.put(BASE, store(6, 5))
    bare.enter(1, satp=SV39, menvcfg=0)
    bare.set(x5=0x4000_0000)
    bare.hart.run(1)
    assert bare.csr("mcause") == 15
    bare.enter(1, menvcfg=1 << 61, pc=BASE, mcause=0)
    bare.hart.run(1)
    assert bare.csr("mcause") == 0


def test_a_page_has_a_memory_type_where_that_is_on() -> None:
    bare = Bare(Features(svpbmt=True))
    assert bare.csr("menvcfg") >> 62 == 1
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.put(BASE, load(6, 5))
    bare.set(x5=0x4000_0000)
    # None, not cached, device, reserved; then what other extensions have there.
    for high, on, cause in (
        *((0, True, 0), (1 << 61, True, 0), (2 << 61, True, 0), (3 << 61, True, 13)),
        *((1 << 61, False, 13), (1 << 63, True, 13), (1 << 61 | 1 << 60, True, 13)),
    ):
        bare.map(0x4000_0000, DATA, V | R | A | high)
        bare.enter(1, satp=SV39, menvcfg=on << 62, pc=BASE, mcause=0)
        bare.hart.run(1)
        assert bare.csr("mcause") == cause, hex(high)


def test_no_memory_types_where_there_are_none(bare: Bare) -> None:
    bare.run(csr(1, 6, 0x30A, 5), csr(2, 7, 0x30A, 0), x5=MASK)
    assert bare.x(7) >> 61 & 3 == 0


# -- Physical memory protection

TOR, NA4, NAPOT, LOCKED = 1 << 3, 2 << 3, 3 << 3, 1 << 7


def napot(start: int, size: int) -> int:
    return start >> 2 | (size >> 3) - 1


ALL = (NAPOT | R >> 1 | W >> 1 | X >> 1, (1 << 54) - 1)


@pytest.mark.parametrize(
    ("entries", "offset", "insn", "cause"),
    [
        ([], 0, load(6, 5), 1),  # nothing allows even the fetch
        ([ALL], 0, load(6, 5), None),
        ([(NAPOT | 1, napot(DATA, 64)), ALL], 0, store(6, 5), 7),
        ([(NAPOT | 1, napot(DATA, 64)), ALL], 56, load(6, 5), None),
        ([(NAPOT | 1, napot(DATA, 64)), ALL], 64, store(6, 5), None),
        ([(NAPOT, napot(DATA, 0x1000)), ALL], 0xFF8, load(6, 5), 5),
        ([(NA4, DATA >> 2), ALL], 0, load(6, 5, 0, 2), 5),
        ([(NA4, DATA >> 2), ALL], 4, load(6, 5, 0, 2), None),
        ([(NA4 | 3, DATA >> 2), ALL], 0, load(6, 5), 5),  # only half of it matches
        ([(0, DATA >> 2), (TOR | 1, (DATA + 0x20) >> 2), ALL], 0x18, store(6, 5), 7),
        ([(0, DATA >> 2), (TOR | 1, (DATA + 0x20) >> 2), ALL], 0x20, store(6, 5), None),
        ([(0, FAR >> 2), (TOR, DATA >> 2), ALL], 0, load(6, 5), None),  # from above to below
        ([(NAPOT | 3, napot(DATA, 0x1000)), ALL], 0, jalr(0, 5), 1),
    ],
)
def test_protection_of_the_user(
    bare: Bare, entries: list[tuple[int, int]], offset: int, insn: int, cause: int | None
) -> None:
    bare.protect(*entries)
    bare.put(BASE, insn)
    bare.enter(0)
    bare.set(x5=DATA + offset)
    bare.hart.run(2 if insn & 0x7F == 0x67 else 1)
    assert bare.csr("mcause") == (cause or 0)
    if entries and cause:
        assert bare.csr("mtval") == DATA + offset


def test_only_locked_entries_bind_machine_mode(bare: Bare) -> None:
    bare.protect((NAPOT, napot(DATA, 64)))
    bare.run(load(6, 5), x5=DATA)
    assert bare.csr("mcause") == 0
    bare.protect((NAPOT | LOCKED, napot(DATA, 64)))
    bare.run(load(6, 5), x5=DATA + 64)
    assert bare.csr("mcause") == 0
    bare.run(load(6, 5), x5=DATA)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (5, DATA)


def test_execution_stops_where_protection_begins_within_a_page(bare: Bare) -> None:
    bare.protect((0, (BASE + 8) >> 2), (TOR | 3, (BASE + 16) >> 2), ALL)
    bare.put(BASE, addi(7, 7, 1), addi(7, 7, 1), addi(7, 7, 1))
    bare.enter(0)
    bare.hart.run(3)
    assert bare.x(7) == 2
    assert (bare.csr("mcause"), bare.csr("mepc")) == (1, BASE + 8)


def test_page_tables_are_protected(bare: Bare) -> None:
    bare.protect((NAPOT, napot(BASE + 0x10000, 0x1000)), ALL)
    bare.map(BASE, BASE, LEAF)
    bare.put(BASE, NOP)
    bare.enter(1, satp=SV39)
    bare.hart.run(1)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (1, BASE)


def test_locked_entries_cannot_be_written(bare: Bare) -> None:
    address = napot(DATA, 64)
    bare.protect((0, 5), (TOR | LOCKED | 7, address))
    bare.run(
        csr(1, 0, 0x3B0, 5), csr(1, 0, 0x3B1, 5), csr(1, 0, 0x3A0, 0), csr(2, 6, 0x3A0, 0), x5=9
    )
    assert [int(bare.hart.pmpaddr[n]) for n in (0, 1)] == [5, address]
    assert bare.x(6) == (TOR | LOCKED | 7) << 8


# -- Traps, interrupts and modes


def test_a_delegated_exception(bare: Bare) -> None:
    bare.open()
    bare.put(BASE, ECALL)
    bare.put(FAR, csr(2, 6, 0x142, 0), SRET)
    bare.enter(0, medeleg=1 << 8, stvec=FAR, mstatus=0xA << 32 | 1 << 1)
    bare.hart.run(1)
    assert (bare.hart.priv, bare.csr("pc")) == (1, FAR)
    assert (bare.csr("scause"), bare.csr("sepc"), bare.csr("stval")) == (8, BASE, 0)
    assert bare.csr("mstatus") & (1 << 1 | 1 << 5 | 1 << 8) == 1 << 5
    bare.hart.run(2)
    assert (bare.hart.priv, bare.csr("pc")) == (0, BASE)
    assert bare.x(6) == 8


def test_exceptions_of_machine_mode_are_not_delegated(bare: Bare) -> None:
    bare.hart.medeleg = 0xB3FF
    bare.run(0)
    assert (bare.hart.priv, bare.csr("mcause"), bare.csr("mepc")) == (3, 2, BASE)


@pytest.mark.parametrize(
    "code", [0x0000, 0xFFFF_FFFF, 0x8002, csr(1, 5, 0xC00, 5), csr(2, 5, 0x5C0, 0), 0x9C41]
)
def test_illegal_instructions_show_their_bits(bare: Bare, code: int) -> None:
    bare.run(code)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (2, code)


def test_a_breakpoint_shows_its_address(bare: Bare) -> None:
    bare.run(NOP, EBREAK)
    assert (bare.csr("mcause"), bare.csr("mepc"), bare.csr("mtval")) == (3, BASE + 4, BASE + 4)


@pytest.mark.parametrize(
    ("mip", "mie", "mideleg", "priv", "status", "cause"),
    [
        (0x80, 0x80, 0, 3, 0, None),
        (0x80, 0x80, 0, 3, 8, 7),
        (0x80, 0x80, 0, 1, 0, 7),  # below machine mode it is always enabled
        (0x88, 0x88, 0, 3, 8, 3),
        (0xAAA, 0xAAA, 0, 3, 8, 11),
        (0x222, 0x222, 0x222, 3, 8, None),
        (0x222, 0x222, 0x222, 1, 0, None),
        (0x222, 0x222, 0x222, 1, 2, 9),
        (0x22, 0x22, 0x222, 0, 0, 1),
        (0x20, 0xA0, 0x222, 0, 0, 5),
        (0xA0, 0xA0, 0x222, 1, 2, 7),
    ],
)
def test_which_interrupt_is_taken(
    bare: Bare, mip: int, mie: int, mideleg: int, priv: int, status: int, cause: int | None
) -> None:
    bare.open()
    bare.put(BASE, *[NOP] * 4)
    bare.put(HANDLER, *[NOP] * 0x40)
    bare.enter(
        priv, mie=mie, mideleg=mideleg, stvec=HANDLER, mtvec=HANDLER | 1, mstatus=0xA << 32 | status
    )
    bare.hart.mip = mip
    bare.hart.run(1)
    taken = bare.csr("mcause"), bare.csr("scause")
    if cause is None:
        assert taken == (0, 0)
    elif mideleg >> cause & 1:
        assert (taken, bare.hart.priv, bare.csr("pc")) == ((0, 1 << 63 | cause), 1, HANDLER + 4)
    else:
        # Vectored.
        assert (taken, bare.hart.priv) == ((1 << 63 | cause, 0), 3)
        assert bare.csr("pc") == HANDLER + 4 * cause + 4


def test_an_interrupt_that_a_device_raises_is_taken_at_once(bare: Bare) -> None:
    hart = bare.hart

    def raise_it() -> None:
        hart.mip |= 0x80

    bare.console.then = raise_it
    hart.mie = 0x80
    bare.enter(3, mstatus=0xA << 32 | 8)
    bare.put(HANDLER, NOP)
    bare.run(store(6, 5), addi(7, 0, 1), x5=0x1000_0000)
    assert (bare.csr("mcause"), bare.csr("mepc"), bare.x(7)) == (1 << 63 | 7, BASE + 4, 0)


def test_waiting_for_an_interrupt(bare: Bare) -> None:
    bare.hart.mie = 0x80
    bare.put(BASE, WFI, addi(7, 0, 1))
    assert bare.hart.run(10) == 1
    assert bare.hart.waiting
    assert bare.hart.run(10) == 0
    # It wakes up though interrupts are off, and takes none.
    bare.hart.mip = 0x80
    assert bare.hart.run(1) == 1
    assert not bare.hart.waiting
    assert (bare.x(7), bare.csr("mcause")) == (1, 0)


def test_waiting_does_not_begin_where_an_interrupt_is_pending(bare: Bare) -> None:
    bare.hart.mie = bare.hart.mip = 0x80
    bare.run(WFI, addi(7, 0, 1))
    assert bare.x(7) == 1


@pytest.mark.parametrize(
    ("insn", "priv", "status", "legal"),
    [
        (WFI, 1, 0, True),
        (WFI, 1, 1 << 21, False),
        (WFI, 0, 0, False),
        (SRET, 1, 0, True),
        (SRET, 1, 1 << 22, False),
        (SRET, 0, 0, False),
        (MRET, 1, 0, False),
        (SFENCE, 1, 0, True),
        (SFENCE, 1, 1 << 20, False),
        (SFENCE, 0, 0, False),
        (csr(2, 6, 0x180, 0), 1, 0, True),
        (csr(2, 6, 0x180, 0), 1, 1 << 20, False),
        (csr(2, 6, 0x300, 0), 1, 0, False),
        (csr(2, 6, 0x100, 0), 0, 0, False),
        (csr(2, 6, 0xC02, 0), 1, 0, False),  # mcounteren is 0
        (csr(2, 6, 0x003, 0), 3, 0, False),  # FS is off
        (csr(2, 6, 0x003, 0), 0, 1 << 13, True),
    ],
)
def test_what_a_mode_may_do(bare: Bare, insn: int, priv: int, status: int, legal: bool) -> None:
    bare.open()
    bare.put(BASE, insn)
    bare.enter(priv, mstatus=0xA << 32 | status)
    bare.hart.run(1)
    assert (bare.csr("mcause"), bare.csr("mtval")) == ((0, 0) if legal else (2, insn))


def test_counters(bare: Bare) -> None:
    bare.run(NOP, NOP, csr(2, 5, 0xB02, 0), csr(1, 0, 0xB02, 6), csr(2, 7, 0xB02, 0), x6=100)
    assert (bare.x(5), bare.x(7)) == (2, 100)
    # Inhibited it stands still.
    bare.run(csr(1, 0, 0x320, 5), csr(2, 6, 0xB02, 0), NOP, csr(2, 7, 0xB02, 0), x5=4)
    assert bare.x(6) == bare.x(7)


def test_time_is_the_clocks() -> None:
    bare = Bare(Features(time=True))
    bare.clock.resume()
    bare.run(NOP, NOP, csr(2, 5, 0xC01, 0), NOP, csr(2, 6, 0xC01, 0))
    assert (bare.x(5), bare.x(6)) == (2, 4)


def test_time_is_not_there_as_on_qemus_board(bare: Bare) -> None:
    bare.hart.mtvec = HANDLER
    bare.run(csr(2, 5, 0xC01, 0))
    assert (bare.csr("mcause"), bare.csr("pc")) == (2, HANDLER)


def test_the_supervisors_timer() -> None:
    bare = Bare(Features(sstc=True))
    bare.clock.resume()
    bare.run(
        csr(1, 0, 0x30A, 5), csr(1, 0, 0x14D, 6), csr(2, 7, 0x344, 0), *[NOP] * 9, x5=1 << 63, x6=8
    )
    assert bare.x(7) & 0x20 == 0
    bare.run(csr(2, 7, 0x344, 0))
    assert bare.x(7) & 0x20


def test_jumps_without_compressed_instructions_are_aligned() -> None:
    bare = Bare(Features("IMASU"))
    bare.hart.mtvec = HANDLER
    for insn in (jalr(1, 5), jal(1, 6), branch(0, 0, 0, 6)):
        bare.run(insn, x5=BASE + 6, x1=0)
        assert (bare.csr("mcause"), bare.csr("mepc"), bare.csr("mtval")) == (0, BASE, BASE + 6)
        assert bare.csr("pc") == HANDLER
        assert bare.x(1) == 0


# -- The whole state


def test_a_hart_goes_on_as_another(bare: Bare) -> None:
    bare.open()
    bare.put(BASE, addi(7, 7, 1), csr(2, 6, 0xB02, 0), amo(2, 9, 5, 0), amo(3, 8, 5, 6))
    bare.enter(3, mscratch=MASK, stvec=FAR, mie=0x80)
    bare.set(x5=DATA, x31=1 << 63)
    bare.hart.f[3] = -1
    bare.hart.run(3)
    state = bare.hart.state()
    assert state.csrs["minstret"] == 3
    assert (state.reserved, state.reserved_value, state.x[31]) == (DATA, 0, 1 << 63)
    other = Bare()
    other.hart.adopt(state)
    assert other.hart.state() == state
    other.put(BASE, *[NOP] * 3, amo(3, 8, 5, 6))
    other.hart.run(1)
    assert (other.x(8), other.word(DATA)) == (0, 1)


def test_a_fresh_hart_has_no_reservation(bare: Bare) -> None:
    assert bare.hart.state().reserved == NO_RESERVATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"csrs": {"misa": 1 << 62 | 0x141105}}, "MXL"),
        ({"csrs": {}}, "MXL"),
        ({"privilege": 2}, "mode 2"),
        ({"csrs": {"misa": 2 << 62 | 0x141105, "vstart": 1}}, "vstart"),
        ({"csrs": {"misa": 2 << 62 | 0x141105, "mstatus": 1 << 32}}, "32 bits"),
        ({"csrs": {"misa": 2 << 62 | 0x141105, "satp": 1 << 60}}, "translation mode 1"),
    ],
)
def test_states_that_no_hart_can_have(bare: Bare, change: dict[str, object], message: str) -> None:
    bare.run(addi(7, 0, 5))
    before = bare.hart.state()
    state = HartState(csrs={"misa": 2 << 62 | 0x141105})
    for name, value in change.items():
        setattr(state, name, value)
    with pytest.raises(ValueError, match=message):
        bare.hart.adopt(state)
    assert bare.hart.state() == before


def test_a_reset_gives_a_hart_its_own_features_back() -> None:
    bare = Bare()
    came = HartState(csrs={"misa": 2 << 62 | 0x3411EF, "menvcfg": 7 << 61, "stimecmp": 5})
    bare.hart.adopt(came)
    assert bare.csr("misa") == 2 << 62 | 0x3411EF
    bare.run(csr(1, 6, 0x30A, 5), csr(2, 7, 0x30A, 0), x5=0)
    bare.run(csr(1, 6, 0x30A, 5), csr(2, 7, 0x30A, 0), x5=MASK)
    assert bare.x(7) >> 61 == 7
    bare.run(csr(1, 6, 0x30A, 0))
    assert bare.csr("menvcfg") == 0, "the guest's word is handed on"
    bare.hart.reset(BASE)
    assert bare.hart.state() == Bare().hart.state()
    bare.hart.mtvec = HANDLER
    bare.run(csr(1, 6, 0x30A, 5), csr(2, 7, 0x30A, 0), x5=MASK)
    assert bare.x(7) >> 61 == 0


# -- What is rare


SKIP = (csr(2, 31, 0x341, 0), addi(31, 31, 4), csr(1, 0, 0x341, 31), MRET)
ZERO_BLOCK = 0x0040_200F | 5 << 15


def test_a_trap_takes_the_reservation(bare: Bare) -> None:
    bare.put(HANDLER, *SKIP)
    bare.run(amo(2, 7, 5, 0), ECALL, amo(3, 8, 5, 6), count=7, x5=DATA, x6=1)
    assert (bare.csr("pc"), bare.x(8), bare.word(DATA)) == (BASE + 12, 1, 0)


def test_a_store_conditional_that_fails_has_to_be_allowed(bare: Bare) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.map(0x4000_0000, DATA, V | R | A)
    bare.enter(1, satp=SV39)
    bare.run(amo(3, 8, 5, 6), x5=0x4000_0000)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (15, 0x4000_0000)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_faults_of_cache_blocks_are_those_of_stores(bare: Bare, kind: int) -> None:
    bare.open()
    bare.map(BASE, BASE, LEAF)
    bare.enter(1, satp=SV39, menvcfg=0xF0)
    bare.run(kind << 20 | 0x200F | 5 << 15, x5=0x4000_0000)
    assert bare.csr("mcause") == 15


def test_a_block_of_which_a_part_is_protected_stays(bare: Bare) -> None:
    bare.protect((NAPOT, napot(DATA + 32, 8)), ALL)
    bare.set_word(DATA, MASK)
    bare.put(BASE, ZERO_BLOCK)
    bare.enter(1, menvcfg=0xF0)
    bare.set(x5=DATA)
    bare.hart.run(1)
    assert (bare.csr("mcause"), bare.csr("mtval"), bare.word(DATA)) == (7, DATA, MASK)


def test_a_misaligned_load_from_nothing_shows_its_beginning(bare: Bare) -> None:
    bare.run(load(6, 5), x5=0x4000_0003)
    assert (bare.csr("mcause"), bare.csr("mtval")) == (5, 0x4000_0003)


def test_an_instruction_of_which_half_is_protected(bare: Bare) -> None:
    bare.protect((TOR | 7, (BASE + 8) >> 2), (0x18, (1 << 54) - 1))
    bare.put(BASE, NOP, C_NOP, addi(7, 0, 1))
    bare.enter(0)
    bare.hart.run(3)
    assert bare.x(7) == 0
    assert (bare.csr("mcause"), bare.csr("mepc"), bare.csr("mtval")) == (1, BASE + 6, BASE + 8)


def test_the_last_vector_of_all(bare: Bare) -> None:
    bare.enter(0, mtvec=(1 << 63) - 3, mie=0x80, mip=0x80)
    bare.hart.run(1)
    assert bare.hart.mepc == signed((1 << 63) + 24)


def test_interrupts_that_there_are_not_are_not_taken(bare: Bare) -> None:
    bare.open()
    bare.enter(1, mie=1 << 13, mip=1 << 13)
    bare.run(addi(7, 0, 1))
    assert bare.x(7) == 1


def test_the_user_may_wait_where_there_is_no_supervisor() -> None:
    bare = Bare(Features("IMACU"))
    bare.open()
    bare.enter(0)
    bare.run(WFI)
    assert bare.hart.waiting


# -- Anything at all


def test_all_that_changes_while_it_is_followed_is_sent() -> None:
    """Two harts write in every way, and what is dirty is copied now and then, as a save does it."""
    chance = random.Random(3)
    bare = Bare(memory=1 << 18)
    other = Hart(1, bare.bus, bare.ram, bare.rom, bare.clock, None)
    for hart in (bare.hart, other):
        hart.mtvec = HANDLER
        hart.pmpcfg[0] = 0x1F
        hart.pmpaddr[0] = (1 << 54) - 1
        hart.pmp_changed()
    code = [BASE, BASE + 0x2000]
    starts = [BASE, BASE + 0x2FF8]
    copy = bytearray(bare.ram.view)
    bare.ram.follow(True)
    marks = bare.ram.dirty
    assert marks is not None
    for turn in range(600):
        if turn % 5 == 0:
            for _ in range(6):
                virtual = 0x4000_0000 + 4096 * chance.randrange(4)
                frame = chance.choice((*code, DATA, DATA + 0x1000, DATA + 0x2000, BASE + 0x12000))
                bare.map(virtual, frame, chance.choice((LEAF, LEAF & ~D, LEAF & ~(A | D))))
            for at in (BASE, code[1], code[1] + 0x1000):
                bare.map(at, at, chance.choice((LEAF, LEAF & ~A)))
            bare.put(HANDLER, *SKIP)
        if turn % 5 < 2:
            some: list[int] = []
            for _ in range(12):
                rs1, value = chance.randrange(5, 12), chance.randrange(32)
                offset, width = chance.randrange(-9, 9), chance.choice((2, 3))
                some += chance.choice(
                    (
                        [store(value, rs1, offset, chance.randrange(4))],
                        [r(0x27, offset & 31, width, rs1, value, offset >> 5 & 127)],
                        [amo(chance.choice((0, 1, 4, 28)), 12, rs1, value, width)],
                        [amo(2, 12, rs1, 0), amo(3, 12, rs1, value)],
                        [amo(3, 12, rs1, value)],
                        [ZERO_BLOCK & ~(31 << 15) | rs1 << 15],
                        [load(12, rs1, offset, chance.randrange(7))],
                    )
                )
            bare.put(starts[turn % 5], *some)
        # A save comes by here and there.
        for page in range(bare.ram.pages):
            if marks[page] and chance.randrange(3):
                bare.ram.clean(page, page + 1)
                copy[4096 * page : 4096 * page + 4096] = bare.ram.view[4096 * page :][:4096]
        hart = chance.choice((bare.hart, other))
        hart.satp, hart.pc = signed(SV39), signed(chance.choice(starts))
        hart.menvcfg, hart.mstatus = 0xF0, chance.choice((1, 3)) << 13
        hart.priv = chance.choice((1, 1, 3))
        hart.mode_changed()
        if turn % 5 == 0:
            bare.hart.flush()
            other.flush()
        for n in range(5, 12):
            at = 0x4000_0000 if hart.priv == 1 else DATA
            hart.x[n] = at + 4096 * chance.randrange(4) + chance.choice((0, 8, 0x7F8, 0xFFC))
        hart.run(30)
        for page in range(bare.ram.pages):
            if not marks[page]:
                assert copy[4096 * page : 4096 * page + 4096] == bare.ram.view[4096 * page :][:4096]


def test_no_code_gets_a_hart_out_of_its_bounds() -> None:
    """Any instructions in any mode: nothing is raised, and all registers stay of 64 bits."""
    chance = random.Random(11)
    opcodes = [0x03, 0x07, 0x0F, 0x13, 0x17, 0x1B, 0x23, 0x27, 0x2F, 0x33, 0x37, 0x3B]
    opcodes += [0x43, 0x47, 0x4B, 0x4F, 0x53, 0x63, 0x67, 0x6F, 0x73]
    places = [BASE, BASE + 0xFF0, BASE + 0x1000, BASE + 0x2000]
    edges = [
        0,
        1,
        1 << 63,
        (1 << 63) - 1,
        1 << 31,
        *places,
        BASE + 0xFFD,
        BASE + 0xFFFD,
        0x1000_0000,
    ]

    def instruction() -> int:
        kind = chance.random()
        if kind < 0.2:
            return chance.getrandbits(16)
        if kind < 0.3:
            return csr(chance.randrange(8), chance.randrange(32), chance.choice(known), 5)
        if kind < 0.4:
            return chance.choice([ECALL, EBREAK, MRET, SRET, WFI, SFENCE, SFENCE | 5 << 15])
        return chance.getrandbits(32) & ~0x7F | chance.choice(opcodes)

    known = [*range(0x300, 0x307), *range(0x340, 0x345), 0x3A0, 0x3B0, 0x3B1, *range(0x100, 0x107)]
    known += [0x141, 0x144, 0x180, 0x30A, 0x10A, 0x320, 0xB00, 0xB02, 1, 2, 3, 0xC00, 0xC01, 0x14D]
    for _ in range(15):
        bare = Bare(Features(sstc=True, svadu=True, time=True), memory=1 << 16)
        hart = bare.hart
        for _ in range(20):
            bare.put(chance.choice(places), *[instruction() for _ in range(40)])
            for n in range(1, 32):
                near = chance.choice(edges) + chance.randrange(-8, 8)
                hart.x[n] = signed(near if chance.random() < 0.7 else chance.getrandbits(64))
                hart.f[n] = signed(chance.getrandbits(64))
            hart.mtvec = hart.stvec = signed(chance.choice(places))
            hart.mip = chance.choice([0, 0x80, 0x222])
            if chance.random() < 0.5:
                bare.open()
            table = BASE + 0x4000
            bare.set_word(table + 16, BASE >> 30 << 28 | chance.getrandbits(10) | V)
            satp = 8 << 60 | table >> 12 if chance.random() < 0.4 else 0
            pc = chance.choice(places)
            bare.enter(chance.choice([0, 1, 3]), satp=satp, pc=pc, mstatus=0xA << 32 | 1 << 13)
            hart.waiting = False
            hart.run(100)
            state = hart.state()
            assert state.privilege in (0, 1, 3)
            assert state.x[0] == 0
            hart.adopt(state)
            assert hart.state() == state


@pytest.mark.parametrize(
    ("menvcfg", "priv", "cause"), [(0, 1, 2), (0x80, 1, 0), (0x80, 0, 2), (0, 3, 0)]
)
def test_a_block_is_zeroed_where_the_mode_may(
    bare: Bare, menvcfg: int, priv: int, cause: int
) -> None:
    bare.open()
    bare.ram.write(DATA - BASE, b"\xff" * 192)
    zero = 0x0040_200F | 5 << 15
    bare.put(BASE, zero)
    bare.enter(priv, menvcfg=menvcfg)
    bare.set(x5=DATA + 100)
    bare.hart.run(1)
    assert bare.csr("mcause") == cause
    block = b"\xff" * 64 if cause else bytes(64)
    assert bytes(bare.ram.view[DATA - BASE :][:192]) == b"\xff" * 64 + block + b"\xff" * 64
