"""Seeds: streams of real QEMUs, made small and free of firmware.

A seed is what is left of a captured stream after `shrink` (or `wipe_ram`, `drop_ram`,
`drop_sections`): all framing, device bodies and descriptions are as QEMU wrote them; RAM has lost
most of its pages and the contents of every page that could come from firmware, disks all theirs.
``seeds.toml`` says for each one which QEMU wrote it, how it was started and what was taken out.

The walking here is on purpose the least that does the job, and shares nothing with the readers
that the vectors test.
"""

import lzma
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final

from savevm_conformance.locate import vectors_directory

_BE32: Final = Struct(">I")
_BE64: Final = Struct(">Q")
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_PLAIN_WORDS: Final = (0x80, 0x200)
_LIVE: Final = (b"ram", b"block", b"spapr/htab", b"s390-storage_attributes")


@dataclass(frozen=True, slots=True)
class Seed:
    """One entry of ``seeds.toml``: where the bytes come from and what was changed."""

    name: str
    qemu: str
    argv: str
    changed: str
    origin_sha256: str
    origin_size: int

    def data(self) -> bytes:
        """The bytes of the seed, unpacked."""
        return lzma.decompress((seeds_directory() / f"{self.name}.bin.xz").read_bytes())


def seeds_directory() -> Path:
    """Where the seeds lie.

    Raises:
        FileNotFoundError: there are no vectors (see `savevm_conformance.locate`).
    """
    return vectors_directory() / "seeds"


@cache
def seeds() -> dict[str, Seed]:
    """All seeds by name, in the order of the file."""
    table = tomllib.loads((seeds_directory() / "seeds.toml").read_text("utf-8"))
    return {
        name: Seed(
            name=name,
            qemu=entry["qemu"],
            argv=entry["argv"],
            changed=entry["changed"],
            origin_sha256=entry["origin_sha256"],
            origin_size=entry["origin_size"],
        )
        for name, entry in table.items()
    }


def pack(data: bytes) -> bytes:
    """``data`` as the ``.bin.xz`` of a seed; equal input gives equal output."""
    return lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


class _Cursor:
    """Reading position in a stream that is known to be well formed."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"the stream ends within {count} bytes at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def be32(self) -> int:
        return int(_BE32.unpack(self.take(4))[0])

    def be64(self) -> int:
        return int(_BE64.unpack(self.take(8))[0])

    def counted(self) -> bytes:
        return self.take(self.take(1)[0])


@dataclass(slots=True)
class _Ram:
    """What a RAM section says across bodies: blocks, and the current one when read and written."""

    page_size: int
    keep: int
    keep_pages: frozenset[bytes]
    lengths: dict[bytes, int]
    kept: dict[bytes, int]
    fills: list[int] = field(default_factory=list)
    filled: set[bytes] = field(default_factory=set)
    reading: bytes | None = None
    writing: bytes | None = None


def shrink(
    data: bytes,
    page_size: int,
    *,
    keep: int = 3,
    keep_pages: frozenset[bytes] = frozenset(),
    drop: frozenset[bytes] = frozenset(),
) -> bytes:
    """A version 3 stream with few page records, up to its first device section as it was after.

    Args:
        data: a whole, well-formed stream.
        page_size: the target page size in bytes.
        keep: how many page records of each block stay, from the first; the one of its last page
            and the first one that fills a page with another byte than 00 stay as well.
        keep_pages: blocks whose pages keep their contents; every other PAGE becomes a ZERO.
        drop: idstrs of live sections to leave out.

    Raises:
        ValueError: the stream is not what the caller says.
    """
    return _walk(data, _Ram(page_size, keep, keep_pages, {}, {}), drop)


def fill_offsets(data: bytes, page_size: int) -> list[int]:
    """Where a stream with ram version 4 fills a page with another byte than 00, ascending."""
    ram = _Ram(page_size, 0, frozenset(), {}, {})
    _walk(data, ram, frozenset())
    return ram.fills


def _walk(data: bytes, ram: _Ram, drop: frozenset[bytes]) -> bytes:
    cursor = _Cursor(data, 8)
    out = bytearray(data[:8])
    sections: dict[int, tuple[bytes, int]] = {}
    _configuration(cursor, out)
    while True:
        begin = cursor.at
        kind = cursor.take(1)[0]
        if kind == 8:
            command, length = cursor.take(2)[1], int.from_bytes(cursor.take(2), "big")
            payload = cursor.take(length)
            if command == 7:
                cursor.take(int.from_bytes(payload, "big"))
            out += data[begin : cursor.at]
            continue
        if kind not in (1, 2, 3):
            return bytes(out) + data[begin:]
        number = cursor.be32()
        if kind == 1:
            idstr = cursor.counted()
            cursor.be32()
            sections[number] = (idstr, cursor.be32())
        idstr, version = sections[number]
        if idstr not in _LIVE:
            return bytes(out) + data[begin:]
        head = data[begin : cursor.at]
        body = _body(cursor, idstr, version, kind, ram)
        if data[cursor.at : cursor.at + 1] == b"\x7e":
            body += cursor.take(5)
        if idstr not in drop:
            out += head + body


def _configuration(cursor: _Cursor, out: bytearray) -> None:
    begin = cursor.at
    if cursor.data[begin] == 7:
        cursor.take(1)
        cursor.take(cursor.be32())
        while cursor.data[cursor.at] == 5:
            cursor.take(1)
            name = cursor.counted()
            cursor.be32()
            if name.endswith(b"/uuid"):
                cursor.take(16)
            elif name.endswith(b"/target-page-bits"):
                cursor.be32()
            else:
                for _ in range(cursor.be32()):
                    cursor.counted()
    out += cursor.data[begin : cursor.at]


def _body(cursor: _Cursor, idstr: bytes, version: int, kind: int, ram: _Ram) -> bytes:
    begin = cursor.at
    if idstr == b"ram":
        return _ram(cursor, version, ram)
    if idstr == b"block":
        return _disks(cursor)
    if idstr == b"spapr/htab":
        if cursor.be32() == 0:
            return _htab(cursor)
    else:
        while (flag := cursor.be64() & 0xFFF) != 1:
            if flag == 2:
                cursor.take(cursor.be64())
    return cursor.data[begin : cursor.at]


def _disks(cursor: _Cursor) -> bytes:
    """The words of a body but those that bring a piece of a disk."""
    out = bytearray()
    while True:
        word = cursor.be64()
        if word & 1:
            cursor.counted()
            cursor.take(0 if word & 8 else 1 << 20)
            continue
        out += _BE64.pack(word)
        if word & 2:
            return bytes(out)


def _htab(cursor: _Cursor) -> bytes:
    """The chunks of a body; entries are wiped (they map firmware), and at most two per chunk."""
    out = bytearray(4)
    while True:
        index = cursor.take(4)
        valid = int.from_bytes(cursor.take(2), "big")
        invalid = cursor.take(2)
        cursor.take(16 * valid)
        left = min(valid, 2)
        out += index + left.to_bytes(2, "big") + invalid + bytes(range(16)) * left
        if index == bytes(4) and not valid and invalid == bytes(2):
            return bytes(out)


def _ram(cursor: _Cursor, version: int, ram: _Ram) -> bytes:
    out = bytearray()
    while True:
        word = cursor.be64()
        if word == _EOS:
            return bytes(out) + _BE64.pack(word)
        if word in _PLAIN_WORDS:
            out += _BE64.pack(word)
        elif word & 0xFF == _MEM_SIZE:
            out += _BE64.pack(word) + _blocks(cursor, version, word - _MEM_SIZE, ram)
        else:
            out += _page(cursor, version, word, ram)


def _blocks(cursor: _Cursor, version: int, total: int, ram: _Ram) -> bytes:
    begin = cursor.at
    if version < 4:
        ram.lengths[b""] = total
    else:
        while total:
            name = cursor.counted()
            ram.lengths[name] = cursor.be64()
            total -= ram.lengths[name]
    return cursor.data[begin : cursor.at]


def _page(cursor: _Cursor, version: int, word: int, ram: _Ram) -> bytes:
    flags, address = word & (ram.page_size - 1), word & -ram.page_size
    if version < 4:
        ram.reading = b""
    elif not flags & _CONTINUE:
        ram.reading = cursor.counted()
    block = ram.reading
    if block is None or block not in ram.lengths:
        raise ValueError(f"page of an unknown block before {cursor.at}")
    kind = flags & ~_CONTINUE
    if kind == _ZERO and version >= 4 and cursor.data[cursor.at]:
        ram.fills.append(cursor.at)
    content = cursor.take(1 if kind == _ZERO else ram.page_size)
    if kind not in (_ZERO, _PAGE):
        raise ValueError(f"unexpected word {word:#x} before {cursor.at}")
    last = address + ram.page_size >= ram.lengths[block]
    filled = kind == _ZERO and content != b"\0" and block not in ram.filled
    if ram.kept.get(block, 0) >= ram.keep and not last and not filled:
        return b""
    ram.kept[block] = ram.kept.get(block, 0) + 1
    if filled:
        ram.filled.add(block)
    if kind == _PAGE and block not in ram.keep_pages:
        kind, content = _ZERO, b"\0"
    if version < 4:
        return _BE64.pack(address | kind) + content
    same = block == ram.writing
    ram.writing = block
    if same:
        return _BE64.pack(address | kind | _CONTINUE) + content
    return _BE64.pack(address | kind) + bytes([len(block)]) + block + content


def drop_ram(data: bytes) -> bytes:
    """A version 2 stream without its record "ram"; the total length is made to fit."""
    cursor = _Cursor(data, 16)
    records = bytearray()
    while cursor.at < len(data):
        begin = cursor.at
        idstr = cursor.counted()
        cursor.take(8)
        cursor.take(cursor.be32())
        if idstr != b"ram":
            records += data[begin : cursor.at]
    return data[:8] + _BE64.pack(len(records)) + bytes(records)


def wipe_ram(data: bytes, keep: frozenset[int]) -> bytes:
    """A version 1 stream in whose RAM only the pages at the addresses ``keep`` have contents.

    The other pages with contents become zero; pages that are filled with one byte stay as they are.

    Raises:
        ValueError: there is no record "ram" of version 1.
    """
    needle = b"\x03ram" + bytes(4) + b"\0\0\0\1"
    if data.count(needle) != 1:
        raise ValueError('no single record "ram" of version 1')
    cursor = _Cursor(data, data.index(needle) + len(needle))
    head, end = data[: cursor.at], cursor.be32() + cursor.at
    size = cursor.be32()
    body = bytearray(_BE32.pack(size))
    for address in range(0, size, 4096):
        filled = cursor.take(1)[0]
        page = cursor.take(1 if filled else 4096)
        if filled:
            body += b"\x01" + page
        else:
            body += b"\x00" + page if address in keep else b"\x01\x00"
    return head + _BE32.pack(len(body)) + bytes(body) + data[end:]


def drop_sections(data: bytes, first: bytes, following: bytes) -> bytes:
    """A version 3 stream without its FULL sections from ``first`` to right before ``following``.

    Raises:
        ValueError: one of the two has no section with instance 0, or more than one.
    """
    return data[: _full(data, first)] + data[_full(data, following) :]


def _full(data: bytes, idstr: bytes) -> int:
    needle = bytes([len(idstr)]) + idstr + bytes(4)
    if data.count(needle) != 1:
        raise ValueError(f"no single section {idstr!r}")
    begin = data.index(needle) - 5
    if data[begin] != 4:
        raise ValueError(f"{idstr!r} is not the name of a FULL section")
    return begin
