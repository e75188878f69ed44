"""RAM that harts run in: as bytes, as words, and as a live section."""

import os
import random
from pathlib import Path

import pytest
from boards import PAGE, Board
from riscv import BASE, Bare, addi, branch, store

from savevm.channel import Channel
from savevm.machine.memory import GuestRam
from savevm.ram import RamBlock
from savevm.savevm import Format, Saver, load
from savevm.transport.memory import MemoryInput, MemoryOutput

SIZE = 16 * PAGE


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_bytes_and_words_are_the_same_memory() -> None:
    chance = random.Random(1)
    ram = GuestRam("ram", SIZE)
    memory = bytearray(SIZE)
    for _ in range(2000):
        kind = chance.randrange(4)
        count = chance.choice((1, 2, 7, 8, 9, 100, PAGE, PAGE + 3))
        at = chance.randrange(SIZE - count)
        if kind == 0:
            data = chance.randbytes(count)
            ram.write(at, data)
            memory[at : at + count] = data
        elif kind == 1:
            ram.clear(at, count)
            memory[at : at + count] = bytes(count)
        else:
            size = chance.choice((1, 2, 4, 8))
            at &= -size
            value = chance.randrange(-(1 << 63), 1 << 63)
            if kind == 2:
                ram.store(at, size, value)
                memory[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            expected = int.from_bytes(memory[at : at + size], "little", signed=size == 8)
            assert ram.load(at, size) == expected
    assert bytes(ram.view) == memory


def test_no_byte_outside_is_written() -> None:
    ram = GuestRam("ram", SIZE)
    data = bytes([255]) * 16
    for at in (-1, -16, SIZE - 15, SIZE):
        with pytest.raises(ValueError, match="not within the block"):
            ram.write(at, data)
    assert not any(ram.view)


def test_a_page_that_is_zero() -> None:
    ram = GuestRam("ram", SIZE)
    for at in (PAGE, 2 * PAGE - 1):
        assert ram.is_zero(1)
        ram.write(at, b"\x80")
        assert not ram.is_zero(1)
        assert ram.is_zero(0)
        assert ram.is_zero(2)
        ram.clear(at, 1)


def test_much_takes_no_memory_before_it_is_touched() -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * PAGE
    size = free // 2 // PAGE * PAGE
    before = resident()
    ram = GuestRam("ram", size)
    assert resident() - before < size // 100
    for at in (0, size - 8, size // 2 & -8):
        assert ram.load(at, 8) == 0
        ram.store(at, 8, at + 1)
        assert bytes(ram.view[at : at + 8]) == (at + 1).to_bytes(8, "little")


def test_more_than_there_is_room_for() -> None:
    with pytest.raises(OSError, match="no block of"):
        GuestRam("ram", 1 << 60)
    with pytest.raises(ValueError, match="multiple"):
        GuestRam("ram", PAGE + 8)


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
@pytest.mark.parametrize("other", [GuestRam, RamBlock])
def test_it_is_saved_and_loaded_as_any_other(other: type[RamBlock], piece: int) -> None:
    chance = random.Random(piece)
    source = Board(ram=[GuestRam("ram", SIZE)])
    source.scribble(chance, 20)
    output = MemoryOutput()
    saver = Saver(source.registry, Channel(output), Format(machine="board"), source)
    saver.begin()
    saver.iterate()
    source.scribble(chance, 5)
    saver.complete()
    data = bytes(output.data)
    target = Board(ram=[other("ram", SIZE)])
    target.scribble(chance, 20)

    class Slow(MemoryInput):
        def get_buffer(self, buffer: memoryview, position: int) -> int:
            return super().get_buffer(buffer[:piece], position)

        def get_bytes(self, size: int, position: int) -> bytes | int:
            return super().get_bytes(min(size, piece), position)

    load(target.registry, Channel(Slow(data)), target, machine_name="board")
    assert target.memory() == source.memory()


def test_what_a_hart_writes_while_it_is_saved_is_sent() -> None:
    bare = Bare()
    # Each turn stores to the next page, again and again over all but the first.
    add = 0x0072_82B3  # x5 = x5 + x7
    turn = (store(6, 5), addi(6, 6, 1), add, branch(1, 5, 8, -12))
    bare.put(BASE, *turn, addi(5, 9, 0), branch(0, 0, 0, -20))
    board = Board(ram=[bare.ram])
    bare.set(x5=BASE + PAGE, x7=PAGE, x8=BASE + (1 << 20), x9=BASE + PAGE)
    output = MemoryOutput()
    saver = Saver(board.registry, Channel(output), Format(machine="board"), board)
    saver.begin()
    for _ in range(6):
        assert bare.hart.run(5000) == 5000
        saver.iterate()
    bare.hart.run(777)
    saver.complete()
    target = Board(ram=[GuestRam("ram", 1 << 20)])
    load(target.registry, Channel(MemoryInput(bytes(output.data))), target, machine_name="board")
    assert target.memory() == board.memory()
    assert bare.word(BASE + PAGE) > 4


def test_code_that_a_stream_brings_replaces_what_was_run() -> None:
    bare = Bare()
    bare.run(addi(7, 0, 1))
    source = Board(ram=[GuestRam("ram", 1 << 20)])
    source.blocks[0].write(0, addi(7, 0, 2).to_bytes(4, "little"))
    output = MemoryOutput()
    saver = Saver(source.registry, Channel(output), Format(machine="board"), source)
    saver.begin()
    saver.complete()
    target = Board(ram=[bare.ram])
    load(target.registry, Channel(MemoryInput(bytes(output.data))), target, machine_name="board")
    bare.hart.pc = BASE
    bare.hart.run(1)
    assert bare.x(7) == 2


def test_zeros_that_a_stream_brings_replace_what_was_run() -> None:
    bare = Bare()
    bare.put(BASE + PAGE, addi(7, 7, 1), addi(7, 7, 1))
    bare.hart.pc = BASE + PAGE
    bare.hart.run(1)
    source = Board(ram=[GuestRam("ram", 1 << 20)])
    output = MemoryOutput()
    saver = Saver(source.registry, Channel(output), Format(machine="board"), source)
    saver.begin()
    saver.complete()
    target = Board(ram=[bare.ram])
    load(target.registry, Channel(MemoryInput(bytes(output.data))), target, machine_name="board")
    bare.hart.run(1)
    assert (bare.x(7), bare.csr("mcause")) == (1, 2)
