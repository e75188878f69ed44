"""What a machine is between two instructions, apart from its RAM and from any layout of a stream.

All numbers are unsigned; registers are of 64 bits.
"""

from dataclasses import dataclass, field

__all__ = ["NO_RESERVATION", "PMP_ENTRIES", "HartState", "MachineState"]

PMP_ENTRIES = 64
NO_RESERVATION = (1 << 64) - 1


@dataclass
class HartState:
    """A hart (RISC-V privileged specification).

    ``csrs`` by their standard names (``mstatus``, ``misa``, ``fcsr`` …) as machine mode reads them;
    those that are left out are zero.  ADUE of ``menvcfg`` says whether page table walks set accessed
    and dirty bits, also on a hart that has no such bit.  ``pmpcfg`` has a byte and ``pmpaddr`` a
    register for each of ``PMP_ENTRIES``.
    ``reserved`` is the virtual address of LR's reservation and ``reserved_value`` what LR read.
    ``mtimecmp`` in ticks of ``MachineState.mtime``.
    """

    hart_id: int = 0
    x: list[int] = field(default_factory=lambda: [0] * 32)
    f: list[int] = field(default_factory=lambda: [0] * 32)
    pc: int = 0
    privilege: int = 3
    csrs: dict[str, int] = field(default_factory=dict)
    pmpcfg: list[int] = field(default_factory=lambda: [0] * PMP_ENTRIES)
    pmpaddr: list[int] = field(default_factory=lambda: [0] * PMP_ENTRIES)
    reserved: int = NO_RESERVATION
    reserved_value: int = 0
    waiting: bool = False
    mtimecmp: int = 0


@dataclass
class MachineState:
    """A board: its harts, ``mtime`` in ticks of 100 ns, HTIF's registers and its run state.

    ``runstate`` is QEMU's name of it ("running", "paused" …).
    """

    harts: list[HartState]
    mtime: int = 0
    tohost: int = 0
    fromhost: int = 0
    runstate: str = "running"
