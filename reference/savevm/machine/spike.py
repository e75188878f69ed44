"""The board "spike": harts, RAM, interruptor and host interface, and when it runs."""

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from savevm.machine.clint import CLINT_BASE, CLINT_SIZE, MTIP, NEVER, Clint
from savevm.machine.clock import FREQUENCY, Clock
from savevm.machine.cpu import Features, Hart
from savevm.machine.csr import STCE
from savevm.machine.fdt import device_tree
from savevm.machine.htif import FROMHOST, HTIF_SIZE, TOHOST, Htif
from savevm.machine.loader import (
    Image,
    check_room,
    place,
    raw_image,
    read_firmware,
    read_image,
    tree_address,
)
from savevm.machine.memory import Bus, GuestRam
from savevm.machine.state import MachineState
from savevm.ram import RamLoader

__all__ = ["HARTS_MAX", "MROM_NAME", "RAM_BASE", "RAM_NAME", "RUNSTATES", "Listener", "Spike"]

RAM_NAME: Final = "riscv.spike.ram"
MROM_NAME: Final = "riscv.spike.mrom"
RAM_BASE: Final = 0x8000_0000
HARTS_MAX: Final = 8

RUNSTATES: Final = frozenset(
    (
        "prelaunch",
        "inmigrate",
        "running",
        "paused",
        "finish-migrate",
        "postmigrate",
        "shutdown",
        "internal-error",
        "restore-vm",
        "save-vm",
    )
)

_MEMORY_MAX: Final = 1 << 55  # half of what has physical addresses
_MROM_BASE: Final = 0x1000
_MROM_SIZE: Final = 0xF000
# Hart in a0, device tree in a1, firmware's information in a2, and jump.
_RESET_VECTOR: Final = (
    0x00000297,  # auipc t0, 0
    0x02828613,  # addi a2, t0, 40
    0xF1402573,  # csrr a0, mhartid
    0x0202B583,  # ld a1, 32(t0)
    0x0182B283,  # ld t0, 24(t0)
    0x00028067,  # jr t0
)
# OpenSBI's struct fw_dynamic_info: magic, version; the next stage's mode is S.
_DYNAMIC_INFO: Final = (0x4942534F, 2)
_SUPERVISOR: Final = 1

_STIP: Final = 1 << 5  # of mip, which harts raise by themselves

# Instructions that a hart is ahead of the others at most, and time of the interruptor.
_QUANTUM: Final = 2000
# Seconds that other tasks of the event loop wait at most, about.
_SLICE: Final = 0.001

Listener = Callable[[str, dict[str, Any]], None]


class Spike:
    """A board of ``memory`` bytes of RAM (a multiple of 4096) and ``harts`` harts.

    ``features`` are those of each hart.  ``console`` is told what the guest prints.  With ``deterministic`` time is not real: a tick of
    100 ns passes every ``1 << deterministic`` instructions, and time that nobody computes in is
    skipped.  ``listeners`` hear events by QEMU's names: STOP, RESUME, RESET, SHUTDOWN.

    ``runstate`` is one of ``RUNSTATES``; the harts run in "running" only.  Raises ``ValueError``
    for sizes that cannot be and ``OSError`` where there is not enough memory.
    """

    def __init__(
        self,
        memory: int = 64 << 20,
        harts: int = 1,
        *,
        deterministic: int | None = None,
        features: Features | None = None,
        console: Callable[[bytes], None] | None = None,
    ) -> None:
        if not 1 <= harts <= HARTS_MAX:
            raise ValueError(f"{harts} harts, not 1 to {HARTS_MAX}")
        if memory > _MEMORY_MAX:
            raise OSError(12, f"no addresses for {memory} bytes of RAM")
        self.console = console
        self.listeners: list[Listener] = []
        self.runstate = "prelaunch"
        self.exit_code: int | None = None
        self.htif_base = 0
        self.features: Final = features or Features()
        self.clock: Final = Clock(deterministic)
        self.ram: Final = GuestRam(RAM_NAME, memory, RAM_BASE)
        self.mrom: Final = GuestRam(MROM_NAME, _MROM_SIZE, _MROM_BASE, True)
        self.bus: Final = Bus()
        self.harts: Final = [
            Hart(i, self.bus, self.ram, self.mrom, self.clock, self.features) for i in range(harts)
        ]
        self.clint: Final = Clint(self.harts, self.clock)
        self.htif: Final = Htif(self.ram, RAM_BASE, self._power_off)
        self._images: list[Image] = []
        self._powered_off: int | None = None
        self._woken = asyncio.Event()
        self.bus.add(CLINT_BASE, CLINT_SIZE, self.clint)
        self.load_image()

    # Images

    def load_image(
        self,
        kernel: str | Path | None = None,
        bios: str = "none",
        initrd: str | Path | None = None,
        append: str = "",
    ) -> None:
        """Load what the board starts from, as QEMU's options of these names do, and reset it.

        Raises ``ImageError`` for a file that cannot be read, is broken or has no room in RAM.
        """
        if append and kernel is None:
            raise ValueError("a command line without a kernel")
        room = self.ram.used_length
        ram = (RAM_BASE, RAM_BASE + room)
        placement = place(
            ram,
            bios=read_firmware(bios, room),
            kernel=None if kernel is None else read_image("kernel", kernel, room),
            initrd=None if initrd is None else read_image("initrd", initrd, room),
        )
        tohost, fromhost = placement.symbols or (TOHOST, FROMHOST)
        self.htif_base = htif = self.htif.place(tohost, fromhost)
        tree = device_tree(
            ram=ram,
            harts=len(self.harts),
            isa=_isa(self.features),
            mmu="riscv,sv57",
            frequency=FREQUENCY,
            htif=None if placement.symbols else htif,
            arguments=append,
            initrd=placement.initrd,
        )
        at = tree_address(ram, len(tree))
        images = {**placement.images, "device tree": raw_image(tree, at)}
        check_room(ram, images)
        self.bus.add(htif, HTIF_SIZE, self.htif)
        self._images = list(images.values())
        vector = struct.pack(
            "<6I2Q6Q",
            *_RESET_VECTOR,
            placement.start,
            at,
            *_DYNAMIC_INFO,
            placement.kernel_entry,
            _SUPERVISOR,
            0,  # options
            0,  # boot hart
        )
        self.mrom.write(0, vector)
        self._reset()

    def add_image(self, image: Image) -> None:
        """Put ``image`` in RAM now and with every reset; raises ``ValueError`` if it is not inside."""
        check_room((RAM_BASE, RAM_BASE + self.ram.used_length), {"image": image})
        self._images.append(image)
        for address, data, _ in image.pieces:
            self.ram.write(address - RAM_BASE, data)

    def _reset(self) -> None:
        zeros = RamLoader([self.ram])
        for image in self._images:
            for address, data, size in image.pieces:
                at = address - RAM_BASE
                self.ram.write(at, data)
                if size > len(data):
                    zeros.fill(RAM_NAME, at + len(data), size - len(data), 0)
        for hart in self.harts:
            hart.reset(_MROM_BASE)
        self.htif.reset()
        self.clint.reset()
        self._powered_off = None

    def reset(self, reason: str = "host-qmp-system-reset") -> None:
        """Start anew: as a power button does it, without a change of what runs."""
        self._reset()
        self._emit("RESET", {"guest": False, "reason": reason})
        if self.runstate in ("shutdown", "internal-error"):
            self.set_runstate("paused")
        self._woken.set()

    # Running

    @property
    def running(self) -> bool:
        return self.runstate == "running"

    def stop(self, runstate: str = "paused") -> None:
        """Between two instructions; time stops too."""
        self.set_runstate(runstate)

    def resume(self) -> None:
        self.set_runstate("running")

    def set_runstate(self, name: str) -> None:
        if name not in RUNSTATES:
            raise ValueError(f"no run state {name!r}")
        before = self.runstate
        self.runstate = name
        if name == before:
            return
        if name == "running":
            self.clock.resume()
            self._woken.set()
            self._emit("RESUME", {})
        elif before == "running":
            self.clock.stop()
            self._emit("STOP", {})

    def _emit(self, event: str, data: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            listener(event, data)

    def step(self, budget: int) -> int:
        """Run each hart for about ``budget`` instructions; how many were executed by all of them.

        0: all wait, or the board does not run.
        """
        total = 0
        alone = len(self.harts) == 1 and self.clock.shift is None
        while budget > 0 and self.running:
            quantum = budget if alone else min(budget, _QUANTUM)
            self.clint.update()
            most = 0
            for hart in self.harts:
                count = hart.run(quantum)
                total += count
                most = max(most, count)
            if self._powered_off is not None:
                self._shut_down(self._powered_off)
            if not most and not self._skip():
                break
            budget -= max(most, 1)  # skipped time counts, or this might not end
        if self.htif.output:
            printed = bytes(self.htif.output)
            self.htif.output.clear()
            if self.console is not None:
                self.console(printed)
        return total

    def _skip(self) -> bool:
        """Nobody computes: go on to the next interrupt of a timer, where time is not real."""
        if self.clock.shift is None:
            return False
        ticks = self._idle_ticks()
        if ticks is None:
            return False
        self.clock.advance(ticks << self.clock.shift)
        return True

    def _idle_ticks(self) -> int | None:
        """Ticks until a timer raises an interrupt that is not pending yet; None: none ever does."""
        now = self.clock.mtime()
        due = []
        for hart, mtimecmp in zip(self.harts, self.clint.mtimecmp, strict=True):
            if not hart.mip & MTIP:
                due.append(mtimecmp)
            if hart.sstc and hart.menvcfg & STCE and not hart.mip & _STIP:
                due.append(hart.stimecmp & NEVER)
        first = min(due, default=NEVER)
        # The time may have come since the harts were told it last.
        return max(first - now, 0) if first < NEVER else None

    async def run(self) -> None:
        """Run, whenever the board is to; until this task is cancelled."""
        budget = 1000
        while True:
            self._woken.clear()
            if not self.running:
                await self._woken.wait()
                continue
            begin = time.perf_counter()
            executed = self.step(budget)
            took = time.perf_counter() - begin
            if executed:
                if took > _SLICE:
                    budget = max(budget // 2, 100)
                elif executed >= budget and took < _SLICE / 2:
                    budget *= 2
                await asyncio.sleep(0)
            elif self.running:
                await self._wait()

    async def _wait(self) -> None:
        """For an interrupt of a timer, or for ``wake``."""
        ticks = self._idle_ticks()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), None if ticks is None else ticks / FREQUENCY)

    def wake(self) -> None:
        """Something has happened that harts may be waiting for."""
        self._woken.set()

    def console_input(self, data: bytes) -> None:
        """Characters for the guest's console."""
        self.htif.console_input(data)
        self.wake()

    def _power_off(self, exit_code: int) -> None:
        if self._powered_off is None:
            self._powered_off = exit_code
        for hart in self.harts:
            hart.pausing = True

    def _shut_down(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self._emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        self.set_runstate("shutdown")

    # State

    def state(self) -> MachineState:
        """What the board is between two instructions, without its RAM."""
        # A timer may have come due since the harts last ran.
        self.clint.update()
        harts = [hart.state() for hart in self.harts]
        for hart, mtimecmp in zip(harts, self.clint.mtimecmp, strict=True):
            hart.mtimecmp = mtimecmp
        return MachineState(
            harts=harts,
            mtime=self.clock.mtime(),
            tohost=self.htif.tohost,
            fromhost=self.htif.fromhost,
            runstate=self.runstate,
        )

    def adopt(self, state: MachineState) -> None:
        """Become what ``state`` says, all but its run state.

        Raises ``ValueError`` for what this board cannot be; it is to be reset then.
        """
        if len(state.harts) != len(self.harts):
            raise ValueError(f"{len(state.harts)} harts, not {len(self.harts)}")
        for i, (hart, other) in enumerate(zip(self.harts, state.harts, strict=True)):
            hart.adopt(other)
            self.clint.mtimecmp[i] = other.mtimecmp
        self.clock.set(state.mtime)
        self.htif.adopt(state.tohost, state.fromhost)
        self.clint.update()
        self._powered_off = None
        self.wake()


def _isa(features: Features) -> str:
    """The devicetree's riscv,isa."""
    single = "".join(x for x in "imafdc" if features.misa >> (ord(x) - ord("a")) & 1)
    others = ["zicntr", "zicsr", "zifencei"]
    if features.sstc:
        others.append("sstc")
    if features.svadu:
        others.append("svadu")
    if features.svpbmt:
        others.append("svpbmt")
    return f"rv64{single}_" + "_".join(others)
