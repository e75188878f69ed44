"""qcow2 images: written out byte by byte, and made by ``qemu-img``."""

import shutil
import subprocess
from pathlib import Path
from struct import pack, pack_into
from typing import Any

import pytest

from savevm_spec.envelope.qcow2 import (
    L1Entry,
    StandardCluster,
    Subclusters,
    build,
    compressed_cluster,
    parse,
    vm_state_entry,
)
from savevm_spec.errors import GrammarError
from savevm_spec.rules import rules

DISK = 64 << 20


def header(
    *,
    magic: bytes = b"QFI\xfb",
    version: int = 3,
    cluster_bits: int = 9,
    snapshots: int = 0,
    at: int = 512,
    features: int = 0,
    order: int = 4,
    length: int = 112,
    compression: int = 0,
) -> bytes:
    data = magic + pack(">IQIIQII", version, 0, 0, cluster_bits, DISK, 0, 2)
    data += pack(">QQIIQ", 0x30000, 0x10000, 1, snapshots, at)
    if version == 3:
        data += pack(">QQQII", features, 0, 0, order, length)
        data += bytes((compression,)).ljust(length - 104, b"\0")
    return data


def image(entries: bytes = b"", **fields: Any) -> bytes:
    """With an extension, and the snapshot table in the second cluster."""
    extension = pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0") + bytes(8)
    return (header(**fields) + extension).ljust(512, b"\0") + entries


def entry(id: bytes, name: bytes, extra: bytes = b"", state: int = 0) -> bytes:
    data = pack(">QIHHIIQII", 1 << 20, 2, len(id), len(name), 11, 12, 13, state, len(extra))
    data += extra + id + name
    return data


OLD = entry(b"1", b"old", state=77)
LARGE = entry(b"2", b"\xc3\xa4\xff", pack(">QQ", 1 << 40, DISK))
NEW = entry(b"3", b"", pack(">QQQ", 5, DISK, 99) + b"future")


def table(*entries: bytes) -> bytes:
    return b"".join(e + bytes(-len(e) % 8) for e in entries[:-1]) + entries[-1]


@pytest.mark.parametrize("version", [2, 3])
def test_an_image_both_ways(version: int) -> None:
    data = image(table(OLD, LARGE, NEW), version=version, snapshots=3)
    value = parse(data)
    assert value.header.size == DISK
    assert (value.header.features is None) == (version == 2)
    assert [(e.type, e.data) for e in value.extensions] == [(0xE2792ACA, b"raw"), (0, b"")]
    old, large, new = value.snapshots
    assert (old.id, old.name, old.vm_state_size_32) == ("1", "old", 77)
    assert (old.date_sec, old.date_nsec, old.vm_clock_nsec) == (11, 12, 13)
    assert old.extra_data.vm_state_size is None
    assert (large.extra_data.vm_state_size, large.extra_data.disk_size) == (1 << 40, DISK)
    assert large.extra_data.icount is None
    assert large.name == "ä\udcff"
    assert (new.extra_data.icount, new.extra_data.unknown) == (99, b"future")
    assert build(value) == data


def test_sizes_follow_the_texts() -> None:
    value = parse(image(OLD, snapshots=1))
    value.snapshots[0].name = "a longer name"
    assert build(value) == image(entry(b"1", b"a longer name", state=77), snapshots=1)


LONG = image(entry(b"1", b"x" * 600), snapshots=1)


@pytest.mark.parametrize(
    ("rule", "offset", "data"),
    [
        ("envelope.qcow2.magic", 0, header(magic=b"QFI\xfa")),
        ("envelope.qcow2.version", 4, header(version=1)),
        ("envelope.qcow2.version", 4, header(version=4)),
        ("envelope.qcow2.truncated", 71, header(version=2)[:-1]),
        ("envelope.qcow2.truncated", 103, header()[:103]),
        ("envelope.qcow2.truncated", 64, image(snapshots=1)),
        ("envelope.qcow2.truncated", 64, image(OLD, snapshots=1, at=0)),
        ("envelope.qcow2.truncated", 64, image(OLD, snapshots=13)),
        ("envelope.qcow2.truncated", 512, LONG[:-200]),
        ("envelope.qcow2.alignment", 64, image(OLD, snapshots=1, at=520)),
        ("envelope.qcow2.limit", 60, image(snapshots=65537)),
        ("envelope.qcow2.limit", 548, image(entry(b"1", b"", bytes(1025)), snapshots=1)),
        ("envelope.qcow2.cluster-bits", 20, header(cluster_bits=8)),
        ("envelope.qcow2.cluster-bits", 20, header(cluster_bits=22)),
        ("envelope.qcow2.cluster-bits", 20, header(cluster_bits=13, features=16)),
        ("envelope.qcow2.features", 72, header(features=32)),
        ("envelope.qcow2.refcount-order", 96, header(order=7)),
        ("envelope.qcow2.header-length", 100, header(length=96)),
        ("envelope.qcow2.header-length", 100, header(length=108)),
        ("envelope.qcow2.header-length", 100, header(length=520)),
        ("envelope.qcow2.compression-type", 104, header(compression=1)),
        ("envelope.qcow2.compression-type", 104, header(features=8)),
        ("envelope.qcow2.compression-type", 104, header(features=8, compression=2)),
    ],
)
def test_errors(rule: str, offset: int, data: bytes) -> None:
    with pytest.raises(GrammarError) as error:
        parse(data)
    assert (error.value.rule, error.value.offset) == (rule, offset)
    assert error.value.errno == rules()[rule].errno


@pytest.fixture
def qemu_img() -> str:
    found = shutil.which("qemu-img")
    if found is None:
        pytest.skip("no qemu-img on PATH: the grammar is not held against its images")
    return found


@pytest.mark.parametrize(
    ("options", "bits", "extended"),
    [
        ("compat=0.10", 16, False),
        ("compat=1.1", 16, False),
        ("cluster_size=512,refcount_bits=1", 9, False),
        ("cluster_size=2M,refcount_bits=64", 21, False),
        ("extended_l2=on,cluster_size=16k", 14, True),
        ("compression_type=zstd", 16, False),
    ],
)
def test_what_qemu_img_makes(
    qemu_img: str, tmp_path: Path, options: str, bits: int, extended: bool
) -> None:
    path = tmp_path / "image"
    subprocess.run([qemu_img, "create", "-qf", "qcow2", "-o", options, path, str(DISK)], check=True)
    for name in ("one", "the other"):
        subprocess.run([qemu_img, "snapshot", "-c", name, path], check=True)
    data = path.read_bytes()
    value = parse(data)
    assert value.header.cluster_bits == bits
    assert [(s.id, s.name) for s in value.snapshots] == [("1", "one"), ("2", "the other")]
    assert {s.extra_data.disk_size for s in value.snapshots} == {DISK}
    # What is said of a disk is exactly what its L1 table has.
    assert vm_state_entry(DISK, bits, extended_l2=extended) == value.header.l1_size
    built = build(value)
    start = value.header.snapshots_offset
    assert built[start:] == data[start:]
    front = built[:start].rstrip(b"\0")
    assert data.startswith(front)


def test_entries_that_qemu_img_writes(qemu_img: str, tmp_path: Path) -> None:
    path, raw = tmp_path / "image", tmp_path / "raw"
    raw.write_bytes(b"x" * 65536 + bytes(65536))
    argv = [qemu_img, "convert", "-f", "raw", "-O", "qcow2"]
    for compressed in (False, True):
        subprocess.run([*argv, *(["-c"] if compressed else []), raw, path], check=True)
        data = path.read_bytes()
        l1 = L1Entry.parse(data[parse(data).header.l1_table_offset :])
        assert l1.copied
        word = data[l1.offset : l1.offset + 8]
        grammar = compressed_cluster(16) if compressed else StandardCluster
        cluster = grammar.parse(word)
        assert grammar.build(cluster) == word
        if compressed:
            assert cluster.sectors == 0
            assert 0 < cluster.offset < len(data)
        else:
            assert data[cluster.offset : cluster.offset + 65536] == b"x" * 65536
            assert cluster.copied
            assert not cluster.zero


def test_subclusters() -> None:
    word = bytearray(8)
    pack_into(">II", word, 0, 0x80000000, 1)
    assert dict(Subclusters.parse(bytes(word)), _io=None) == {
        "_io": None,
        "zero": 1 << 31,
        "allocated": 1,
    }
