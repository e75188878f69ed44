"""Streams that QEMUs of 2006 to 2011 wrote: all of them is understood, and what the guest had.

SAVEVM_STREAMS names a directory with ``history-*.bin`` or ``history-*.bin.xz``.  In each the guest
is a boot sector that has filled RAM at known places and goes on counting.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from savevm_conformance.adapters import reference
from savevm_conformance.runner import read_stream
from savevm_conformance.transcripts import difference, opaque
from savevm_spec.reading import Ram
from savevm_spec.stream import Stream, build, parse, transcript

DIRECTORY = os.environ.get("SAVEVM_STREAMS")
PATHS = sorted(Path(DIRECTORY).glob("history-*.bin*")) if DIRECTORY else []


class Made(NamedTuple):
    """What is known of a stream from when it was made."""

    dialect: str
    sections: int
    ram: int
    counter: int


MADE = {
    "r5434-savevm-s1": Made("v3-2008", 26, 0x1000000, 32),
    "r5478-migrate-tcp-slow": Made("v3-ram3", 39, 0x1000000, 40),
    "v0.10.6-migrate-exec": Made("v3-ram3", 30, 0x1000000, 20),
    "v0.12.5-migrate-blk": Made("v3-ram3", 33, 0xC50000, 25),
    "v0.14.1-savevm-s1": Made("v3-ram4", 33, 0x400000, 30),
    "v0.8.1-savevm-s1": Made("v1", 17, 0x850000, 33),
    "v0.9.1-savevm-s1": Made("v2", 23, 0x1000000, 32),
    "v1.0-rc2-migrate-tcp-slow": Made("v3-ram4", 67, 0x400000, 53),
}


def name(path: Path) -> str:
    return path.name.removeprefix("history-").partition(".bin")[0]


pytestmark = pytest.mark.skipif(
    not PATHS, reason="SAVEVM_STREAMS names no directory with history-*.bin or history-*.bin.xz"
)
each = pytest.mark.parametrize("path", PATHS, ids=name)


@cache
def read(path: Path) -> bytes:
    return read_stream(path)


@cache
def understood(path: Path) -> Stream:
    stream = parse(read(path))
    assert stream.error is None
    return stream


def contents(ram: Ram, begin: int, end: int) -> bytes:
    """What the main block has from ``begin`` to before ``end``, both multiples of 4096."""
    pages = ram.contents[next(iter(ram.blocks))]
    unit = len(next(iter(pages.values())))
    return b"".join(pages.get(at, bytes(unit)) for at in range(begin, end, unit))


def test_all_are_there() -> None:
    assert {name(path) for path in PATHS} == set(MADE)


@each
def test_nothing_stays_bytes(path: Path) -> None:
    made, told = MADE[name(path)], transcript(understood(path))
    assert told["dialect"] == made.dialect
    bodies = [record for record in told["records"] if "body" in record]
    assert len(bodies) == made.sections
    assert opaque(told) == {}
    assert {finding["rule"] for finding in told["findings"]} <= {"ram.zero.fill"}
    assert told["ram"][0]["used_length"] == made.ram


@each
def test_grammar_and_reference_agree(path: Path) -> None:
    data = read(path)
    assert difference(transcript(understood(path)), reference.transcribe(data)) is None
    assert build(understood(path)) == data
    assert reference.rebuild(data) == data


@each
def test_ram_is_the_guests(path: Path) -> None:
    ram = understood(path).reading.ram
    assert contents(ram, 0x100000, 0x140000) == b"".join(
        (at ^ 0x5A5A5A5A).to_bytes(4, "little") for at in range(0x100000, 0x140000, 4)
    )
    filled = b"".join(bytes([0x80 + page]) * 4096 for page in range(64))
    assert contents(ram, 0x200000, 0x240000) == filled
    counter = MADE[name(path)].counter
    assert contents(ram, 0x180000, 0x181000)[:8] == b"QCNT" + counter.to_bytes(4, "little")
    for page in range(16):
        at = 0x190000 + 4096 * page
        assert contents(ram, at, at + 4096)[:4] == (counter + page).to_bytes(4, "little")


@each
def test_disk_is_the_guests(path: Path) -> None:
    disks: dict[str, dict[int, bytes]] = {}
    stream = understood(path)
    for record in stream.value.body.get("records", []):
        section = record.get("content")
        if section and "schema" in section and section.schema.kind == "block":
            for word in section.body:
                if word.device is not None:
                    disks.setdefault(word.device, {})[word.word >> 9] = word.data
    if name(path) != "v0.12.5-migrate-blk":
        assert disks == {}
        return
    (disk,) = disks.values()
    assert sorted(disk) == [0, 2048, 4096]
    numbered = b"".join(bytes([sector & 255]) * 512 for sector in range(1, 2048))
    assert disk[0][510:512] == b"\x55\xaa"
    assert disk[0][512:] == numbered
    assert disk[2048] == bytes(1 << 20)
    assert disk[4096] == b"\x77" * (1 << 20)
