"""The board: its devices, images and device tree, guests that run, and all of it against real QEMUs."""

import asyncio
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from qemus import Qemu, find_qemu

from savevm.machine import guests
from savevm.machine.clint import MSIP, MTIP, NEVER, Clint
from savevm.machine.clock import Clock
from savevm.machine.fdt import device_tree
from savevm.machine.htif import Htif
from savevm.machine.loader import ImageError, check_room, parse_elf, place, raw_image
from savevm.machine.memory import GuestRam
from savevm.machine.spike import RAM_BASE, Spike

MIB = 1 << 20
GUESTS = ("arithmetic", "interrupts", "sweeper", "benchmark", "console")
OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_jump.elf")


class Console:
    """A board and what it printed."""

    def __init__(self, memory: int = 16 * MIB, **options: Any) -> None:
        self.text = b""
        self.board = Spike(memory, console=self._print, **{"deterministic": 4, **options})

    def _print(self, data: bytes) -> None:
        self.text += data

    def run(self, until: Callable[[], bool], limit: int = 10_000_000) -> int:
        """Run until something is so; the instructions it took.  Fails at the limit."""
        if not self.board.running:
            self.board.resume()
        count = 0
        while self.board.running and not until():
            executed = self.board.step(1000)
            count += executed
            assert executed, f"all harts wait; printed {self.text!r}"
            assert count < limit, f"not so after {count} instructions; printed {self.text!r}"
        return count


# Devices


class Pending:
    """A hart, for the interruptor."""

    def __init__(self) -> None:
        self.mip = 0


def test_clint_raises_and_lowers_interrupts() -> None:
    harts = [Pending(), Pending(), Pending()]
    clock = Clock(0)
    clint = Clint(harts, clock)
    clock.resume()
    clint.write(4, 4, 0xFFFF_FFFF)
    assert [hart.mip for hart in harts] == [0, MSIP, 0]
    assert [clint.read(4 * i, 4) for i in range(4)] == [0, 1, 0, 0]
    assert clint.read(0, 8) == 1 << 32
    clint.write(8, 1, 1)
    clint.write(5, 1, 0xFF)  # not the bit
    clint.write(4, 4, 0)
    assert [hart.mip for hart in harts] == [0, 0, MSIP]

    clint.write(0x4000 + 8, 8, 100)
    clock.advance(99)
    clint.update()
    assert not harts[1].mip & MTIP
    clock.advance(1)
    clint.update()
    assert [hart.mip & MTIP for hart in harts] == [0, MTIP, 0]
    clint.write(0x4000 + 8, 4, 0xFFFF_FFFF)
    assert not harts[1].mip & MTIP
    assert clint.read(0x4000 + 8, 8) == 0xFFFF_FFFF
    clint.write(0x4000 + 12, 4, 0x8000_0000)
    assert [clint.read(0x4000 + 8 + i, 1) for i in range(8)] == [0xFF] * 4 + [0] * 3 + [0x80]
    assert clint.read(0x4000, 8) == NEVER
    assert clint.read(0x4000 + 24, 8) == 0  # nobody's


def test_mtime_is_read_and_written_in_any_width() -> None:
    clock = Clock(0)
    clint = Clint([Pending()], clock)
    clint.write(0xBFF8, 8, 0x0123_4567_89AB_CDEF)
    assert [clint.read(0xBFF8 + i, 2) for i in (0, 2, 4, 6)] == [0xCDEF, 0x89AB, 0x4567, 0x0123]
    clint.write(0xBFFC, 4, 5)
    assert clock.mtime() == 0x5_89AB_CDEF


def test_time_stands_still_while_the_machine_does() -> None:
    clock = Clock()
    clock.set(NEVER - 1)
    assert clock.mtime() == clock.mtime() == NEVER - 1
    clock.resume()
    before = clock.mtime()
    while clock.mtime() == before:
        pass
    clock.stop()
    assert clock.mtime() == clock.mtime() < 1 << 63  # it has gone past 64 bits


class Host:
    """HTIF with a page of RAM at 0x80000000."""

    def __init__(self, tohost_first: bool = True) -> None:
        self.codes: list[int] = []
        self.ram = GuestRam("ram", 4096)
        self.htif = Htif(self.ram, RAM_BASE, self.codes.append)
        self.tohost, self.fromhost = (0, 8) if tohost_first else (8, 0)
        base = self.htif.place(RAM_BASE + self.tohost, RAM_BASE + self.fromhost)
        assert base == RAM_BASE

    def request(self, device: int, command: int, payload: int) -> None:
        assert self.htif.read(self.tohost, 8) == 0
        self.htif.write(self.tohost, 8, device << 56 | command << 48 | payload)

    def answer(self) -> int:
        """fromhost, which is ready for the next answer then."""
        value = self.htif.read(self.fromhost, 8)
        self.htif.write(self.fromhost, 8, 0)
        return value


@pytest.mark.parametrize("tohost_first", [True, False])
def test_console_prints_and_reads(tohost_first: bool) -> None:
    host = Host(tohost_first)
    host.request(1, 1, ord("H"))
    assert host.answer() == 0x0101_0000_0000_0100 | ord("H")
    host.htif.write(host.tohost, 4, ord("i"))
    assert host.htif.output == b"H"
    host.htif.write(host.tohost + 4, 4, 0x0101_0000)
    assert host.htif.output == b"Hi"
    host.answer()

    host.request(1, 0, 0)
    assert host.answer() == 0
    host.htif.console_input(b"xyz")
    assert host.answer() == 0x0100_0000_0000_0100 | ord("x")
    assert host.answer() == 0  # nobody asked
    host.request(1, 0, 0)
    # An answer that is not taken is not overwritten.
    host.htif.console_input(b"!")
    assert host.answer() & 0xFF == ord("y")
    # Whether a character is asked for is not in a stream: whoever types is heard.
    other = Host(tohost_first)
    other.htif.adopt(0, 0)
    other.htif.console_input(b"?")
    assert other.answer() & 0xFF == ord("?")


@pytest.mark.parametrize("place", [(0x1004, 0x100C), (0x1000, 0x100C), (NEVER - 7, NEVER - 15)])
def test_registers_are_where_they_can_be(place: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tohost cannot be"):
        Host().htif.place(*place)


def test_guests_write_and_power_off() -> None:
    host = Host()
    text = b"written at once\n"
    host.ram.write(0, struct.pack("<8Q", 64, 1, RAM_BASE + 128, len(text), 0, 0, 0, 0))
    host.ram.write(128, text)
    host.request(0, 0, RAM_BASE)
    assert host.htif.output == text
    assert not host.codes
    # Outside of RAM, and more than there is.
    host.ram.write(0, struct.pack("<8Q", 64, 1, RAM_BASE + 4000, 1 << 60, 0, 0, 0, 0))
    for call in (0, RAM_BASE + 4090, RAM_BASE - 8, (1 << 48) - 2, RAM_BASE):
        host.request(0, 0, call)
    assert len(host.htif.output) == len(text) + 96
    host.request(0, 0, 42 << 1 | 1)
    assert host.codes == [42]


# Images


def test_images_of_any_bytes_are_refused_or_small() -> None:
    source = random.Random(7)
    whole = guests.SWEEPER.read_bytes()
    for _ in range(2000):
        data = bytearray(whole)
        if source.random() < 0.3:
            del data[source.randrange(len(data)) :]
        for _ in range(source.choice((1, 1, 4, 40))):
            if data:
                # Mostly where the headers are.
                end = len(data) if source.random() < 0.3 else min(len(data), 120)
                data[source.randrange(end)] = source.choice(
                    (0, 1, 0x7F, 0xFF, source.randrange(256))
                )
        try:
            image = parse_elf(bytes(data))
        except ValueError:
            continue
        assert sum(len(content) for _, content, _ in image.pieces) <= len(image.pieces) * len(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((4, b"\1"), "RV64"),
        ((5, b"\2"), "RV64"),
        ((16, b"\1\0"), "executable"),
        ((18, b"\x3e\0"), "RV64"),
        ((56, b"\0\0"), "without anything"),
        ((64 + 32, b"\xff\xff\xff"), "cut off"),
        ((64 + 40, b"\1\0\0\0"), "larger than its memory"),
    ],
)
def test_refusals_of_elf_files_say_why(change: tuple[int, bytes], why: str) -> None:
    data = bytearray(guests.SWEEPER.read_bytes())
    at, replacement = change
    data[at : at + len(replacement)] = replacement
    with pytest.raises(ValueError, match=why):
        parse_elf(bytes(data))


def test_images_have_room_and_keep_apart() -> None:
    ram = (RAM_BASE, RAM_BASE + 4 * MIB)
    two = {"one": raw_image(bytes(100), RAM_BASE), "other": raw_image(bytes(9), RAM_BASE + 99)}
    with pytest.raises(ValueError, match="the other at 0x80000063 overlaps the one"):
        check_room(ram, two)
    with pytest.raises(ValueError, match="not inside RAM"):
        check_room(ram, {"kernel": raw_image(bytes(5 * MIB), RAM_BASE)})
    with pytest.raises(ValueError, match="not inside RAM"):
        check_room(ram, {"kernel": raw_image(b"x", RAM_BASE - 1)})
    with pytest.raises(ValueError, match="without a kernel"):
        place(ram, initrd=b"x")


def test_boards_that_cannot_be() -> None:
    for memory, harts in ((4095, 1), (MIB, 0), (MIB, 9)):
        with pytest.raises(ValueError, match="not"):
            Spike(memory, harts)
    board = Spike(MIB)
    with pytest.raises(ValueError, match="without a kernel"):
        board.load_image(append="x")
    with pytest.raises(ImageError, match="No such file"):
        board.load_image("missing")
    with pytest.raises(OSError, match="no addresses"):
        Spike(1 << 62)
    with pytest.raises(ValueError, match="run state"):
        board.set_runstate("dancing")


# Against QEMU


def parsed(tree: bytes) -> dict[str, bytes]:
    """The properties of a device tree by path, read with dtc's own eyes."""
    if not shutil.which("dtc"):
        pytest.skip("no dtc on PATH: the device tree is not held against QEMU's")
    done = subprocess.run(
        ["dtc", "-q", "-I", "dtb", "-O", "dts"], input=tree, capture_output=True, check=True
    )
    path: list[str] = []
    found = {}
    for line in done.stdout.decode().splitlines():
        line = line.strip()
        if line.endswith("{"):
            path.append(line[:-2].rstrip("/"))
            found["/".join(path)] = b""
        elif line == "};":
            path.pop()
        elif line.endswith(";"):
            name, _, value = line[:-1].partition(" = ")
            found["/".join((*path, name))] = value.encode()
    return found


@pytest.mark.parametrize("harts", [1, 3])
def test_the_device_tree_is_that_of_qemu(harts: int, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    argv = [find_qemu(), "-M", f"spike,dumpdtb={theirs}", "-m", "64M", "-smp", str(harts)]
    argv += ["-nodefaults", "-display", "none", "-bios", "none", "-kernel", str(guests.SWEEPER)]
    subprocess.run([*argv, "-append", "a b"], check=True, capture_output=True, timeout=60)
    expected = parsed(theirs.read_bytes())
    ours = parsed(
        device_tree(
            ram=(RAM_BASE, RAM_BASE + 64 * MIB),
            harts=harts,
            isa="rv64imafdc",
            mmu="riscv,sv57",
            frequency=10_000_000,
            htif=None,
            arguments="a b",
        )
    )
    # Handles are any numbers, and what processors have is their own.
    differs = ("phandle", "cpu", "interrupts-extended", "riscv,isa", "mmu-type", "compatible")
    for name in [*ours, *expected]:
        last = name.rpartition("/")[2]
        if last.startswith("riscv,cbo") or last in ("riscv,isa-base", "riscv,isa-extensions"):
            continue
        if last == "stdout-path" and name not in expected:
            continue  # since 6.0
        assert name in ours, name
        assert name in expected, name
        if last not in differs:
            assert ours[name] == expected[name], name


def test_memory_before_the_first_instruction_is_that_of_qemu(tmp_path: Path) -> None:
    source = random.Random(11)
    firmware, kernel, initrd = (tmp_path / name for name in ("firmware", "kernel", "initrd"))
    firmware.write_bytes(source.randbytes(3 * MIB))
    kernel.write_bytes(source.randbytes(70_001))
    initrd.write_bytes(source.randbytes(5000))
    options = ("-m", "64M", "-bios", "firmware", "-kernel", "kernel", "-initrd", "initrd")
    with Qemu(tmp_path, *options) as qemu:
        places = {"mrom": (0x1000, 4096), "ram": (RAM_BASE, 62 * MIB)}
        for name, (start, size) in places.items():
            qemu.execute("pmemsave", val=start, size=size, filename=str(tmp_path / name))
    board = Spike(64 * MIB)
    board.load_image(kernel, str(firmware), initrd)
    assert (tmp_path / "mrom").read_bytes() == board.mrom.view[:4096]
    theirs = (tmp_path / "ram").read_bytes()
    for page in range(0, len(theirs), 4096):
        assert theirs[page : page + 4096] == board.ram.view[page : page + 4096], hex(page)


def printed_by_qemu(directory: Path, name: str, *options: str) -> tuple[bytes, int]:
    argv = [find_qemu(), "-M", "spike", "-m", "16M", "-nodefaults", "-display", "none"]
    argv += ["-serial", "stdio", "-bios", "none", "-kernel", f"{guests.SWEEPER.parent}/{name}.elf"]
    done = subprocess.run(
        [*argv, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return done.stdout, done.returncode


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("arithmetic", ()),
        ("interrupts", ("-smp", "4", "-append", "harts=4")),
    ],
)
def test_guests_print_on_qemu_what_they_print_here(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    printed, code = printed_by_qemu(tmp_path, name, *options)
    harts = 4 if options else 1
    here = Console(harts=harts)
    here.board.load_image(
        guests.SWEEPER.parent / f"{name}.elf", append="harts=4" if options else ""
    )
    here.run(lambda: False)
    assert printed == here.text
    assert code == here.board.exit_code == 0


# Guests


def test_guests_are_small() -> None:
    for name in GUESTS:
        path = guests.SWEEPER.parent / f"{name}.elf"
        image = parse_elf(path.read_bytes())
        assert image.symbols is not None
        assert path.stat().st_size < 20_000


def test_arithmetic_passes() -> None:
    here = Console()
    here.board.load_image(bios=str(guests.ARITHMETIC))
    here.run(lambda: False)
    assert here.text.splitlines()[-1] == b"PASS", here.text
    assert here.board.exit_code == 0


@pytest.mark.parametrize("harts", [1, 2, 8])
def test_interrupts_reach_every_hart(harts: int) -> None:
    here = Console(harts=harts)
    here.board.load_image(guests.INTERRUPTS, append=f"harts={harts}")
    here.run(lambda: False)
    assert here.text == "".join(map(str, range(harts))).encode() + b"ttt PASS\n"


SWEEP = "start=0x80100000 end=0x80140000 rate=0"
SWEPT = slice(MIB, MIB + 0x40000, 4096)


def test_the_sweeper_sweeps() -> None:
    here = Console()
    here.board.load_image(guests.SWEEPER, append=SWEEP)
    here.run(lambda: len(here.text) >= 30)
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2
    assert here.text == letters[: len(here.text)]
    counters = bytes(here.board.ram.view)[SWEPT]
    assert sorted(counters, reverse=True) == list(counters)
    assert {counters[0], counters[-1]} <= {len(here.text) % 256, len(here.text) % 256 + 1}
    # The page before the window, and the one behind it, are as they were.
    assert here.board.ram.touched[MIB // 4096 - 1] == 0
    assert here.board.ram.touched[(MIB + 0x40000) // 4096] == 0


def test_the_rate_is_kept() -> None:
    here = Console(deterministic=0)
    here.board.load_image(guests.SWEEPER, append=SWEEP.replace("rate=0", "rate=40960000"))
    here.run(lambda: len(here.text) >= 4)
    # 64 pages at 10,000 a second are 64,000 ticks.
    assert 3.9 < here.board.clock.mtime() / 64_000 < 4.5


def test_a_board_goes_on_as_another() -> None:
    first = Console()
    first.board.load_image(guests.SWEEPER, append=SWEEP)
    first.run(lambda: len(first.text) >= 3)
    first.board.stop()
    second = Console()
    second.board.load_image(guests.SWEEPER)
    second.board.ram.write(0, bytes(first.board.ram.view))
    second.board.adopt(first.board.state())
    assert second.board.state().harts == first.board.state().harts
    assert second.board.clock.mtime() == first.board.clock.mtime()
    before = len(first.text)
    for console in (first, second):
        console.board.resume()
        for _ in range(50):
            console.board.step(1000)
    assert len(second.text) > 3
    assert first.text[before:] == second.text
    assert first.board.state() == second.board.state()
    assert first.board.ram.view == second.board.ram.view
    with pytest.raises(ValueError, match="harts"):
        Spike(MIB, harts=2).adopt(first.board.state())


def test_runs_are_the_same_where_time_is_not_real() -> None:
    states = []
    for _ in range(2):
        here = Console(harts=2)
        here.board.load_image(guests.INTERRUPTS, append="harts=2")
        here.run(lambda: False)
        states.append((here.text, here.board.state()))
    assert states[0] == states[1]


def test_reset_starts_anew() -> None:
    here = Console()
    events: list[tuple[str, dict[str, Any]]] = []
    here.board.load_image(guests.ARITHMETIC)
    here.board.listeners.append(lambda name, data: events.append((name, data)))
    here.run(lambda: False)
    text = here.text
    assert [name for name, _ in events] == ["RESUME", "SHUTDOWN", "STOP"]
    assert events[1][1] == {"guest": True, "reason": "guest-shutdown"}
    here.board.reset()
    assert here.board.runstate == "paused"
    assert here.board.clock.mtime() == 0
    here.run(lambda: False)
    assert here.text == text * 2


def test_the_loop_sleeps_wakes_and_yields() -> None:
    async def drive() -> bytes:
        here = Console(deterministic=None)
        here.board.load_image(guests.INTERRUPTS, append="harts=1")
        task = asyncio.create_task(here.board.run())
        await asyncio.sleep(0)
        here.board.resume()
        while here.board.runstate == "running":
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        return here.text

    assert asyncio.run(asyncio.wait_for(drive(), 60)) == b"0ttt PASS\n"


@pytest.mark.parametrize("step", [3000, 4100, 5500, 6500, 12_000])
def test_a_time_that_comes_while_harts_go_to_sleep_is_not_missed(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drive() -> bytes:
        here = Console(deterministic=None)
        here.board.load_image(guests.INTERRUPTS)
        # Whoever looks at the clock sees it go on.
        looks = count(0, step)
        monkeypatch.setattr(here.board.clock, "_now", lambda: next(looks))
        task = asyncio.create_task(here.board.run())
        here.board.resume()
        while here.board.runstate == "running":
            await asyncio.sleep(0)
        task.cancel()
        return here.text

    assert asyncio.run(asyncio.wait_for(drive(), 20)) == b"0ttt PASS\n"


def test_a_paused_board_does_nothing() -> None:
    async def drive() -> None:
        here = Console(deterministic=None)
        here.board.load_image(guests.SWEEPER, append=SWEEP)
        task = asyncio.create_task(here.board.run())
        here.board.resume()
        while len(here.text) < 2:
            await asyncio.sleep(0)
        here.board.stop()
        before = here.board.state()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert here.board.state() == before
        here.board.resume()
        while len(here.text) < 4:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(drive(), 60))


def test_opensbi_boots() -> None:
    if not OPENSBI.exists():
        pytest.skip(f"no {OPENSBI} (Debian's package opensbi): OpenSBI was not booted")
    here = Console(64 * MIB)
    here.board.load_image(bios=str(OPENSBI))
    here.run(lambda: b"Boot HART MEDELEG" in here.text, 40_000_000)
    assert here.text.lstrip().startswith(b"OpenSBI v")
    assert b"Platform Name             : ucbbar,spike-bare,qemu" in here.text
    assert b"Platform Console Device   : htif" in here.text
