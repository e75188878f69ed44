"""Small streams written by hand, byte by byte and without the code under test."""

import struct
from pathlib import Path

VECTORS = Path(__file__).parents[2] / "conformance" / "vectors"

HEADER = b"QEVM" + struct.pack(">I", 3)
EOF = b"\0"


def counted(text: str) -> bytes:
    return bytes((len(text),)) + text.encode("latin-1")


def configuration(machine: str = "none", *subsections: bytes) -> bytes:
    return struct.pack(">BI", 7, len(machine)) + machine.encode() + b"".join(subsections)


def word(value: int) -> bytes:
    return struct.pack(">Q", value)


def footer(section_id: int) -> bytes:
    return struct.pack(">BI", 0x7E, section_id)


def start(
    section_id: int,
    idstr: str,
    body: bytes,
    *,
    version: int = 4,
    instance: int = 0,
    kind: int = 1,
    end: bytes | None = None,
) -> bytes:
    head = struct.pack(">BI", kind, section_id) + counted(idstr)
    end = footer(section_id) if end is None else end
    return head + struct.pack(">II", instance, version) + body + end


def part(section_id: int, body: bytes, kind: int = 2) -> bytes:
    return struct.pack(">BI", kind, section_id) + body + footer(section_id)


def blocks(*listed: tuple[str, int]) -> bytes:
    total = sum(size for _, size in listed)
    return word(total | 4) + b"".join(counted(name) + word(size) for name, size in listed)


def page(address: int, contents: bytes, block: str | None = None) -> bytes:
    """A PAGE record, of the last block unless one is named."""
    if block is None:
        return word(address | 8 | 0x20) + contents
    return word(address | 8) + counted(block) + contents


def zero(address: int, block: str | None = None, fill: int = 0) -> bytes:
    if block is None:
        return word(address | 2 | 0x20) + bytes((fill,))
    return word(address | 2) + counted(block) + bytes((fill,))


EOS = word(0x10)


def guest(*pages: bytes, size: int = 0x10000) -> bytes:
    """A whole stream of one RAM block "r" with the given page records, and no devices."""
    return (
        HEADER
        + configuration()
        + start(2, "ram", blocks(("r", size)) + EOS)
        + part(2, b"".join(pages) + EOS)
        + part(2, EOS, kind=3)
        + EOF
    )


def vmdescription(text: bytes) -> bytes:
    return struct.pack(">BI", 6, len(text)) + text


def accepted_vectors() -> list[Path]:
    return sorted(VECTORS.glob("*/accept/*/stream.bin"))
