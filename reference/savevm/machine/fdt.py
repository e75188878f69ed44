"""Flattened device trees (Devicetree Specification 0.4, chapter 5), as the board gives them to guests."""

import struct
from typing import Final

from savevm.machine.clint import CLINT_BASE, CLINT_SIZE

__all__ = ["DeviceTree", "device_tree"]

_MAGIC: Final = 0xD00DFEED
_VERSION: Final = 17
_COMPATIBLE_VERSION: Final = 16
_BEGIN_NODE: Final = 1
_END_NODE: Final = 2
_PROPERTY: Final = 3
_END: Final = 9
_HEADER: Final = 40
_RESERVATIONS: Final = bytes(16)  # none

# Harts' interrupts that the interruptor raises.
_SOFTWARE: Final = 3
_TIMER: Final = 7


class DeviceTree:
    """Writes a tree: ``begin`` and ``end`` nodes, and ``put`` properties between."""

    def __init__(self) -> None:
        self._structure = bytearray()
        self._strings = bytearray()
        self._names: dict[str, int] = {}

    def begin(self, name: str) -> None:
        self._structure += struct.pack(">I", _BEGIN_NODE) + _padded(name.encode() + b"\0")

    def end(self) -> None:
        self._structure += struct.pack(">I", _END_NODE)

    def put(self, name: str, *values: int | str | bytes) -> None:
        """A property of cells (be32) and strings; bytes as they are; nothing at all."""
        data = b"".join(
            struct.pack(">I", value)
            if isinstance(value, int)
            else value.encode() + b"\0"
            if isinstance(value, str)
            else value
            for value in values
        )
        at = self._names.get(name)
        if at is None:
            at = self._names[name] = len(self._strings)
            self._strings += name.encode() + b"\0"
        self._structure += struct.pack(">III", _PROPERTY, len(data), at) + _padded(data)

    def blob(self) -> bytes:
        structure = bytes(self._structure) + struct.pack(">I", _END)
        at = _HEADER + len(_RESERVATIONS)
        strings = at + len(structure)
        header = struct.pack(
            ">10I",
            _MAGIC,
            strings + len(self._strings),
            at,
            strings,
            _HEADER,
            _VERSION,
            _COMPATIBLE_VERSION,
            0,
            len(self._strings),
            len(structure),
        )
        return header + _RESERVATIONS + structure + bytes(self._strings)


def device_tree(
    *,
    ram: tuple[int, int],
    harts: int,
    isa: str,
    mmu: str,
    frequency: int,
    htif: int | None,
    arguments: str = "",
    initrd: tuple[int, int] | None = None,
) -> bytes:
    """The board's tree.

    ``ram`` and ``initrd`` are start and end addresses, ``htif`` the lower register's if guests
    cannot know it by themselves, ``frequency`` that of ``mtime`` in Hz.
    """
    tree = DeviceTree()
    tree.begin("")
    tree.put("#address-cells", 2)
    tree.put("#size-cells", 2)
    tree.put("compatible", "ucbbar,spike-bare-dev")
    tree.put("model", "ucbbar,spike-bare,qemu")

    tree.begin("chosen")
    tree.put("stdout-path", "/htif")
    if arguments:
        tree.put("bootargs", arguments)
    if initrd:
        tree.put("linux,initrd-start", *_wide(initrd[0]))
        tree.put("linux,initrd-end", *_wide(initrd[1]))
    tree.end()

    tree.begin(f"memory@{ram[0]:x}")
    tree.put("device_type", "memory")
    tree.put("reg", *_wide(ram[0]), *_wide(ram[1] - ram[0]))
    tree.end()

    tree.begin("cpus")
    tree.put("#address-cells", 1)
    tree.put("#size-cells", 0)
    tree.put("timebase-frequency", frequency)
    for i in range(harts):
        tree.begin(f"cpu@{i:x}")
        tree.put("phandle", 2 * i + 1)
        tree.put("device_type", "cpu")
        tree.put("reg", i)
        tree.put("status", "okay")
        tree.put("compatible", "riscv")
        tree.put("riscv,isa", isa)
        tree.put("mmu-type", mmu)
        tree.begin("interrupt-controller")
        tree.put("#interrupt-cells", 1)
        tree.put("interrupt-controller")
        tree.put("compatible", "riscv,cpu-intc")
        tree.put("phandle", 2 * i + 2)
        tree.end()
        tree.end()
    tree.begin("cpu-map")
    tree.begin("cluster0")
    for i in range(harts):
        tree.begin(f"core{i}")
        tree.put("cpu", 2 * i + 1)
        tree.end()
    tree.end()
    tree.end()
    tree.end()

    tree.begin("htif")
    if htif is not None:
        tree.put("reg", *_wide(htif), *_wide(0x1000))
    tree.put("compatible", "ucb,htif0")
    tree.end()

    tree.begin("soc")
    tree.put("#address-cells", 2)
    tree.put("#size-cells", 2)
    tree.put("compatible", "simple-bus")
    tree.put("ranges")
    tree.begin(f"clint@{CLINT_BASE:x}")
    tree.put(
        "interrupts-extended",
        *(cell for i in range(harts) for cell in (2 * i + 2, _SOFTWARE, 2 * i + 2, _TIMER)),
    )
    tree.put("reg", *_wide(CLINT_BASE), *_wide(CLINT_SIZE))
    tree.put("compatible", "sifive,clint0", "riscv,clint0")
    tree.end()
    tree.end()

    tree.end()
    return tree.blob()


def _wide(value: int) -> tuple[int, int]:
    return value >> 32, value & 0xFFFF_FFFF


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
