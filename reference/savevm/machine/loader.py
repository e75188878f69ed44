"""Images for the board: what a guest starts from, and where in RAM it goes."""

import itertools
import os
import re
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile

from savevm.channel import Data

__all__ = [
    "Image",
    "ImageError",
    "Placement",
    "check_room",
    "parse_elf",
    "place",
    "raw_image",
    "read_firmware",
    "read_image",
    "tree_address",
]

_MAGIC: Final = b"\x7fELF"
_RISCV: Final = "EM_RISCV"
_SYMBOLS: Final = ("tohost", "fromhost")
_SYMBOL: Final = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
# The boundary that firmware protects memory by, and that kernels and the device tree keep to.
_HUGE: Final = 2 << 20
_INITRD_AT_MOST: Final = 512 << 20
_DEFAULT_FIRMWARE: Final = (
    Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
    Path("/usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin"),
)


class ImageError(ValueError):
    """An image that cannot be loaded: ``image`` is "firmware", "kernel", "initrd" or "device tree"."""

    def __init__(self, image: str, why: str) -> None:
        super().__init__(why)
        self.image: Final = image


@dataclass(frozen=True)
class Image:
    """Pieces of memory (address, bytes), and how many bytes they take there, with zeros behind.

    ``symbols`` are the addresses of tohost and fromhost, if the image has both.
    """

    entry: int
    pieces: tuple[tuple[int, Data, int], ...]
    symbols: tuple[int, int] | None = None

    @property
    def start(self) -> int:
        return min((address for address, _, _ in self.pieces), default=self.entry)

    @property
    def end(self) -> int:
        return max((address + size for address, _, size in self.pieces), default=self.entry)


def raw_image(data: bytes, address: int) -> Image:
    return Image(address, ((address, data, len(data)),))


def parse_elf(data: bytes) -> Image:
    """An executable for RV64.  Raises ``ValueError`` for anything else."""
    try:
        return _parse_elf(data)
    except ValueError:
        raise
    except Exception as e:  # the parser raises whatever a broken file makes it run into
        raise ValueError(f"a broken ELF file ({type(e).__name__}: {e})") from None


def _parse_elf(data: bytes) -> Image:
    elf = ELFFile(BytesIO(data))
    if (elf.elfclass, elf.little_endian, elf["e_machine"]) != (64, True, _RISCV):
        raise ValueError("an ELF file that is not for little-endian RV64")
    if elf["e_type"] not in ("ET_EXEC", "ET_DYN"):
        raise ValueError("an ELF file that is not an executable")
    view = memoryview(data)
    pieces = []
    for i in range(elf.num_segments()):
        segment = elf.get_segment(i)
        if segment["p_type"] != "PT_LOAD" or not segment["p_memsz"]:
            continue
        start, size = segment["p_offset"], segment["p_filesz"]
        content = view[start : start + size]  # not copied, there may be many of the same
        if len(content) < size:
            raise ValueError(f"segment {i} of the ELF file is cut off")
        if size > segment["p_memsz"]:
            raise ValueError(f"segment {i} of the ELF file is larger than its memory")
        pieces.append((segment["p_paddr"], content, segment["p_memsz"]))
    if not pieces:
        raise ValueError("an ELF file without anything to load")
    return Image(elf["e_entry"], tuple(pieces), _symbols(elf))


def _symbols(elf: ELFFile) -> tuple[int, int] | None:
    for table in elf.iter_sections("SHT_SYMTAB"):
        strings = elf.get_section(table["sh_link"]).data()
        names = {
            found.start(): name
            for name in _SYMBOLS
            for found in re.finditer(name.encode() + b"\0", strings)
        }
        data = table.data()
        whole = len(data) // _SYMBOL.size * _SYMBOL.size
        values = {
            names[name]: value
            for name, _, _, _, value, _ in _SYMBOL.iter_unpack(data[:whole])
            if name in names
        }
        return (values["tohost"], values["fromhost"]) if len(values) == 2 else None
    return None


@dataclass(frozen=True)
class Placement:
    """What goes where: images by what they are, where the reset vector jumps, the kernel's entry
    (0: no kernel), the initrd's start and end, and the addresses of tohost and fromhost."""

    images: dict[str, Image]
    start: int
    kernel_entry: int
    initrd: tuple[int, int] | None
    symbols: tuple[int, int] | None


def place(
    ram: tuple[int, int],
    *,
    bios: bytes | None = None,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
) -> Placement:
    """Lay out images in RAM from ``ram[0]`` to ``ram[1]``, where QEMU does.

    An ELF file goes where it says.  Raw firmware goes to the begin of RAM; a raw kernel behind the
    firmware, on a multiple of 2 MiB; the initrd half of the RAM behind the kernel, 512 MiB at most.
    Raises ``ImageError`` for a broken image.
    """
    images = {}
    start = ram[0]
    entry = 0
    symbols = extent = None
    if bios is not None:
        firmware = images["firmware"] = _image("firmware", bios, ram[0])
        start = firmware.entry
        symbols = firmware.symbols
    if kernel is not None:
        at = align_up(firmware.end, _HUGE) if bios is not None else ram[0]
        image = images["kernel"] = _image("kernel", kernel, at)
        entry = image.entry
        symbols = symbols or image.symbols
        if initrd is not None:
            at = image.start + min((ram[1] - ram[0]) // 2, _INITRD_AT_MOST)
            extent = (at, at + len(initrd))
            images["initrd"] = raw_image(initrd, at)
    elif initrd is not None:
        raise ImageError("initrd", "an initrd without a kernel")
    return Placement(images, start, entry, extent, symbols)


def _image(name: str, data: bytes, address: int) -> Image:
    try:
        return parse_elf(data) if data.startswith(_MAGIC) else raw_image(data, address)
    except ValueError as error:
        raise ImageError(name, str(error)) from None


def check_room(ram: tuple[int, int], images: dict[str, Image]) -> None:
    """Raises ``ImageError`` for what is not inside RAM, or in the way of something else."""
    for name, image in images.items():
        if image.start < ram[0] or image.end > ram[1]:
            raise ImageError(
                name,
                f"the {name} ({image.start:#x} to {image.end:#x}) "
                f"is not inside RAM ({ram[0]:#x} to {ram[1]:#x})",
            )
    pieces = sorted(
        (address, address + size, name)
        for name, image in images.items()
        for address, _, size in image.pieces
        if size
    )
    for (_, end, one), (address, _, other) in itertools.pairwise(pieces):
        if address < end:
            raise ImageError(
                other, f"the {other} at {address:#x} overlaps the {one}, which ends at {end:#x}"
            )


def read_image(name: str, path: str | Path, room: int) -> bytes:
    """The file of the image ``name`` for ``room`` bytes of RAM; raises ``ImageError``.

    An ELF file may be larger than that, but what has no size must end.
    """
    try:
        with open(path, "rb") as file:
            most = max(room, os.fstat(file.fileno()).st_size)
            data = file.read(most + 1)
    except OSError as error:
        raise ImageError(name, error.strerror or str(error)) from error
    except MemoryError:
        raise ImageError(name, "Cannot allocate memory") from None
    if len(data) > most:
        raise ImageError(name, f"does not end within the {room} bytes of RAM")
    return data


def read_firmware(name: str, room: int) -> bytes | None:
    """The firmware that QEMU's option ``-bios`` names: a file, "none" or "default".

    Raises ``ImageError``, also where there is no default firmware on this system.
    """
    if name == "none":
        return None
    if name != "default":
        return read_image("firmware", name, room)
    for path in _DEFAULT_FIRMWARE:
        if path.is_file():
            return read_image("firmware", path, room)
    raise ImageError("firmware", f"no default firmware; OpenSBI is not installed ({path})")


def tree_address(ram: tuple[int, int], size: int) -> int:
    """Where a device tree of ``size`` bytes goes: to the end of RAM, on a multiple of 2 MiB."""
    return max(align_down(ram[1] - size, _HUGE), ram[0])


def align_up(address: int, unit: int) -> int:
    return -(-address // unit) * unit


def align_down(address: int, unit: int) -> int:
    return address // unit * unit
