"""A few words for writing streams by hand, byte by byte, with named places to damage later.

    wire = Wire().header().machine(b"none").eof()
    wire.marks["version"]       # Mark(offset=4, size=4)

Nothing here checks anything: a `Wire` writes what it is told, right or wrong.
"""

import json
from itertools import accumulate, pairwise
from struct import pack
from typing import Any, NamedTuple, Self
from zlib import adler32

# What the blocks of the streams written by hand are called: those of the board "spike", which a QEMU
# with 16 KiB of RAM loads.
MAIN, ROM = b"riscv.spike.ram", b"riscv.spike.mrom"
MAIN_LENGTH, ROM_LENGTH = 0x4000, 0xF000
_BLOCKS = {"main": MAIN, "rom": ROM}

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20


class Mark(NamedTuple):
    """A named place: offset and size in bytes."""

    offset: int
    size: int


def be16(value: int) -> bytes:
    """Two bytes, big-endian."""
    return value.to_bytes(2, "big")


def be32(value: int) -> bytes:
    """Four bytes, big-endian."""
    return value.to_bytes(4, "big")


def be64(value: int) -> bytes:
    """Eight bytes, big-endian."""
    return value.to_bytes(8, "big")


def counted(name: bytes) -> bytes:
    """A name behind the byte that is its length."""
    return bytes([len(name)]) + name


def pattern(size: int) -> bytes:
    """``size`` bytes of page contents that nobody else owns."""
    return bytes((7 * index + (index >> 8)) & 0xFF for index in range(size))


def tagged(*blocks: bytes) -> bytes:
    """The plain text of RAM version 2: each block behind the tag 00."""
    return b"".join(b"\0" + block for block in blocks)


def stored(text: bytes) -> bytes:
    """A zlib stream that holds ``text`` as it is; every zlib would write its own, this is always so."""
    pieces = [text[at : at + 0xFFFF] for at in range(0, len(text), 0xFFFF)] or [b""]
    out = b"\x78\x01"
    for number, piece in enumerate(pieces, 1):
        head = pack("<BHH", number == len(pieces), len(piece), len(piece) ^ 0xFFFF)
        out += head + piece
    return out + be32(adler32(text))


def split(data: bytes, *sizes: int) -> list[bytes]:
    """``data`` in pieces of these sizes, and what is left as the last."""
    ends = [*accumulate(sizes, initial=0), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


class Wire:
    """Bytes being written.  Every method appends and returns self.

    Marks are called ``<prefix>.<field>``; the first of a name stays, the next one becomes
    ``<name>#2`` and so on.
    """

    def __init__(self, data: bytes = b"") -> None:
        """Go on behind ``data``."""
        self.data = bytearray(data)
        self.marks: dict[str, Mark] = {}

    def put(self, data: bytes, mark: str | None = None) -> Self:
        """``data`` as it is."""
        if mark is not None:
            self._mark(mark, Mark(len(self.data), len(data)))
        self.data += data
        return self

    def _mark(self, name: str, mark: Mark) -> None:
        free, count = name, 1
        while free in self.marks:
            count += 1
            free = f"{name}#{count}"
        self.marks[free] = mark

    def find(self, mark: str, needle: bytes, skip: int = 0, size: int = 1) -> Self:
        """Name the ``size`` bytes that stand ``skip`` bytes behind the start of ``needle``.

        Raises:
            ValueError: ``needle`` is not there exactly once.
        """
        if self.data.count(needle) != 1:
            raise ValueError(f"{needle!r} occurs {self.data.count(needle)} times")
        self.marks[mark] = Mark(self.data.index(needle) + skip, size)
        return self

    def name(self, name: bytes, mark: str) -> Self:
        """A counted name: ``<mark>.length`` and ``<mark>``."""
        return self.put(bytes([len(name)]), f"{mark}.length").put(name, mark)

    # The parts of a version 3 stream

    def header(self, version: int = 3) -> Self:
        """Marks: magic, version."""
        return self.put(b"QEVM", "magic").put(be32(version), "version")

    def machine(self, name: bytes = b"spike") -> Self:
        """A configuration without subsections.  Marks: configuration{,.length,.machine}."""
        self.put(b"\x07", "configuration").put(be32(len(name)), "configuration.length")
        return self.put(name, "configuration.machine")

    def subsection(self, name: bytes, version: int, mark: str) -> Self:
        """The head of a subsection.  Marks: <mark>{.mark,.name.length,.name,.version}."""
        self.put(b"\x05", f"{mark}.mark").name(name, f"{mark}.name")
        return self.put(be32(version), f"{mark}.version")

    def page_bits(self, bits: int) -> Self:
        """configuration/target-page-bits.  Marks: bits.*, bits."""
        self.subsection(b"configuration/target-page-bits", 1, "bits")
        return self.put(be32(bits), "bits")

    def capabilities(self, *names: bytes) -> Self:
        """configuration/capabilities.  Marks: capabilities.*, capabilities.count, capability."""
        self.subsection(b"configuration/capabilities", 1, "capabilities")
        self.put(be32(len(names)), "capabilities.count")
        for name in names:
            self.name(name, "capability")
        return self

    def uuid(self) -> Self:
        """configuration/uuid.  Marks: uuid.*, uuid."""
        return self.subsection(b"configuration/uuid", 1, "uuid").put(bytes(range(16)), "uuid")

    def command(self, number: int, payload: bytes = b"") -> Self:
        """Marks: command{,.number,.length,.payload}."""
        self.put(b"\x08", "command").put(be16(number), "command.number")
        self.put(be16(len(payload)), "command.length")
        return self.put(payload, "command.payload")

    def section(self, kind: int, number: int, idstr: bytes, instance: int, version: int) -> Self:
        """The head of a START (1) or FULL (4).  Marks: <idstr>.{type,id,idstr,instance,version}."""
        mark = idstr.decode("latin-1")
        self.put(bytes([kind]), f"{mark}.type").put(be32(number), f"{mark}.id")
        self.name(idstr, f"{mark}.idstr").put(be32(instance), f"{mark}.instance")
        return self.put(be32(version), f"{mark}.version")

    def again(self, kind: int, number: int, mark: str) -> Self:
        """The head of a PART (2) or END (3).  Marks: <mark>.type, <mark>.id."""
        return self.put(bytes([kind]), f"{mark}.type").put(be32(number), f"{mark}.id")

    def footer(self, number: int, mark: str = "footer") -> Self:
        """Marks: <mark>, <mark>.id."""
        return self.put(b"\x7e", mark).put(be32(number), f"{mark}.id")

    def eof(self) -> Self:
        """Marks: eof."""
        return self.put(b"\0", "eof")

    def vmdesc(self, description: Any) -> Self:
        """A VMDESCRIPTION of ``description``: text, or what becomes JSON as QEMU writes it.

        Marks: vmdesc, vmdesc.length, vmdesc.text.
        """
        text = description if isinstance(description, bytes) else json.dumps(description).encode()
        self.put(b"\x06", "vmdesc").put(be32(len(text)), "vmdesc.length")
        return self.put(text, "vmdesc.text")

    # RAM words

    def blocks(self, **lengths: int) -> Self:
        """The block list; main and rom are `MAIN` and `ROM`.

        Marks: blocks, <block>.name.length, <block>.name, <block>.length.
        """
        self.put(be64(sum(lengths.values()) | MEM_SIZE), "blocks")
        for block, length in lengths.items():
            name = _BLOCKS.get(block, block.encode())
            self.name(name, f"{block}.name").put(be64(length), f"{block}.length")
        return self

    def page(self, word: int, block: bytes | None = None, content: bytes = b"\0") -> Self:
        """A page record; ``word`` gets CONTINUE when no block is named.

        Marks: page, page.block.length, page.block, page.content.
        """
        self.put(be64(word if block is not None else word | CONTINUE), "page")
        if block is not None:
            self.name(block, "page.block")
        return self.put(content, "page.content")

    def word(self, word: int, mark: str = "word") -> Self:
        """Eight bytes.  Marks: <mark>."""
        return self.put(be64(word), mark)

    def end_of_section(self) -> Self:
        """The word EOS.  Marks: eos."""
        return self.word(EOS, "eos")

    # Records of version 1 and 2, and RAM without block names

    def record(self, idstr: bytes, instance: int, version: int, body: "bytes | Wire") -> Self:
        """Marks: <idstr>.{idstr*,instance,version,length,body}, and those of the body."""
        mark = idstr.decode("latin-1")
        part = body if isinstance(body, Wire) else Wire(body)
        self.name(idstr, f"{mark}.idstr").put(be32(instance), f"{mark}.instance")
        self.put(be32(version), f"{mark}.version").put(be32(len(part.data)), f"{mark}.length")
        self.put(b"", f"{mark}.body").append(part)
        self.marks[f"{mark}.body"] = Mark(self.marks[f"{mark}.body"].offset, len(part.data))
        return self

    def append(self, part: "Wire") -> Self:
        """``part`` with its marks."""
        begin = len(self.data)
        self.data += part.data
        for name, (offset, size) in part.marks.items():
            self._mark(name, Mark(begin + offset, size))
        return self

    def plain_ram(self, *pages: bytes | int) -> Self:
        """RAM of version 1; a page is its bytes, or the byte that fills it.

        Marks: size, tag, page, fill.
        """
        self.put(be32(4096 * len(pages)), "size")
        for page in pages:
            if isinstance(page, int):
                self.put(b"\1", "tag").put(bytes([page]), "fill")
            else:
                self.put(b"\0", "tag").put(page, "page")
        return self

    def chunked_ram(self, size: int, *chunks: bytes) -> Self:
        """RAM of version 2 of ``size`` bytes.  Marks: size, chunk{,.magic,.length,.data}."""
        self.put(be32(size), "size")
        for chunk in chunks:
            self._mark("chunk", Mark(len(self.data), 4 + len(chunk)))
            self.put(b"\xfa\xbe", "chunk.magic").put(be16(len(chunk)), "chunk.length")
            self.put(chunk, "chunk.data")
        return self
