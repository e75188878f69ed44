"""Programs that begin here and end on a real QEMU leave the machine that they leave when they end here.

The machine goes there and comes back as a stream, so that the state between any two instructions is
held against QEMU, and not only what a program can say of itself.
"""

import struct
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemus import Qemu, find_qemu
from test_hostile import load, written
from test_lockstep import BASE, MEMORY, REGISTERS, Chance, Code, addi, csrr, csrw, store

from savevm.cli.processes import find_qemus
from savevm.machine.spike import RAM_BASE, Spike

SIZE = 16 << 20
# Offsets in RAM: of programs, of what they load from and store to, and of what says that they ended.
PROGRAM = 0x1000
RECORD = 0x10_0000
ENDED = 0x20_0000
MRET = 0x3020_0073
# What counts time and instructions.
UNLIKE = {"mcycle", "minstret"}


@st.composite
def instructions(draw: st.DrawFn) -> list[int]:
    """One, or a few that belong together; every choice shrinks."""
    chance = Chance(0)
    chance.random = draw(st.randoms(use_true_random=False, note_method_calls=False))
    chance.choice = chance.random.choice
    return chance.instructions()


# Of any length: lists that may be long are mostly short.
PROGRAMS = st.integers(0, 100).flatmap(
    lambda size: st.lists(instructions(), min_size=size, max_size=size)
)


def machine(seed: int, program: list[list[int]]) -> Spike:
    """A board before the first instruction of a program, with anything in its registers."""
    spike = Spike(SIZE, deterministic=0)
    code = Code(RAM_BASE + PROGRAM)
    # A trap is left behind the instruction, all of which have four bytes that get one.
    handler = code.address
    code.put(csrw(0x340, 5), csrr(5, 0x341), addi(5, 5, 4), csrw(0x341, 5), csrr(5, 0x340), MRET)
    begin = code.address + len(code.bytes)
    for words in program:
        code.put(*words)
    # Streams do not have the floating-point flags.  Say that it ended, and stay there.
    code.put(csrr(5, 0x003), store(5, BASE, 8 * REGISTERS - 8))
    code.point(BASE, RAM_BASE + ENDED)
    code.put(addi(5, 0, 1), store(5, BASE, 0), 0x0000_006F)
    spike.ram.write(PROGRAM, bytes(code.bytes))
    chance = Chance(seed)
    words = chance.memory_words()
    spike.ram.write(RECORD + 8 * REGISTERS, struct.pack(f"<{MEMORY // 8}Q", *words))
    state = spike.state()
    fcsr, *registers = chance.registers()
    hart = state.harts[0]
    x = [0, *registers[:31]]
    x[BASE] = RAM_BASE + RECORD
    csrs = hart.csrs | {"fcsr": fcsr, "mtvec": handler, "mstatus": hart.csrs["mstatus"] | 0x6000}
    state.harts[0] = replace(hart, x=x, f=registers[31:], pc=begin, csrs=csrs)
    spike.adopt(state)
    spike.set_runstate("paused")
    return spike


def run(spike: Spike, most: int) -> None:
    """Execute about so many instructions."""
    spike.resume()
    while most > 0:
        most -= spike.step(most)
    spike.stop()


def loaded(stream: bytes, directory: Path) -> Spike:
    spike = Spike(SIZE, deterministic=0)
    coming = load(stream, spike, directory / "stream")
    assert coming.status == "completed", coming.error
    return spike


def there(directory: Path) -> bytes:
    """The stream of a machine that came as the file "begun", when its program has ended on QEMU."""
    ended = {"command_line": f"xp /1bx {RAM_BASE + ENDED:#x}"}
    # Longer than any program takes.
    deadline = time.monotonic() + 10
    with Qemu(directory, incoming=True) as qemu:
        qemu.execute("migrate-incoming", uri="exec:cat begun")
        assert qemu.migration()["status"] == "completed"
        qemu.execute("cont")
        while "0x01" not in qemu.execute("human-monitor-command", **ended):
            assert time.monotonic() < deadline, "it does not come to its end"
            time.sleep(0.005)
        qemu.execute("stop")
        qemu.execute("migrate", uri="exec:cat > part && mv part ended")
        assert qemu.migration()["status"] == "completed"
        while not (directory / "ended").exists():
            time.sleep(0.005)
    return (directory / "ended").read_bytes()


def seen(spike: Spike) -> dict[str, int]:
    """What is compared, besides all of RAM."""
    hart = spike.state().harts[0]
    csrs = {name: value for name, value in hart.csrs.items() if name not in UNLIKE}
    x = {f"x{i}": n for i, n in enumerate(hart.x)}
    f = {f"f{i}": n for i, n in enumerate(hart.f)}
    words = struct.unpack_from(f"<{MEMORY // 8 + 1}Q", spike.ram.view, RECORD + 8 * REGISTERS - 8)
    memory = {f"memory+{8 * i:#x}": word for i, word in enumerate(words)}
    return {"pc": hart.pc, "privilege": hart.privilege, **csrs, **x, **f, **memory}


@pytest.fixture(scope="module", name="release")
def release_of_qemu() -> str:
    """The QEMU's there is; raw machines have a host interface since 6."""
    (kind,) = find_qemus([find_qemu()])
    if int(kind.release.split(".")[0]) < 7:
        pytest.skip(f"no host interface for a machine without firmware in {kind.name}")
    return kind.release


@settings(max_examples=max(1, settings().max_examples // 4))
@given(
    st.integers(0, (1 << 32) - 1),
    PROGRAMS,
    st.integers(0, 100),
)
def test_half_here_and_half_there(
    release: str, seed: int, program: list[list[int]], steps: int
) -> None:
    begun = machine(seed, program)
    run(begun, steps)
    with TemporaryDirectory() as name:
        directory = Path(name)
        here = loaded(written(begun, release, directory / "begun"), directory)
        # Nothing is done twice, but each may end in the handler.
        run(here, 8 * sum(map(len, program)) + 64)
        assert here.ram.view[ENDED] == 1
        ours = loaded(written(here, release, directory / "ours"), directory)
        theirs = loaded(there(directory), directory)
    wrong = [
        f"{name} is {one:#x} here, {other:#x} there"
        for (name, one), other in zip(seen(ours).items(), seen(theirs).values(), strict=True)
        if one != other
    ]
    assert wrong == []
    assert ours.ram.view == theirs.ram.view
