"""Inputs to begin with: seeds, made of the conformance vectors, and those that are kept in the source.

Kept are an archive for each target, of few and small inputs that reach what is known to be
reachable, and beside it, as files, what something was found with.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from savevm.envelope import libvirt
from savevm.qcow2 import Image
from savevm.vmdesc import find_description
from savevm_fuzz.seeds import seeds as streams
from savevm_spec.constants import (
    LIBVIRT_FORMATS,
    QCOW2_COMPRESSED,
    QCOW2_HEADER_SNAPSHOTS,
    QCOW2_MAGIC,
    QCOW2_OFFSET,
)

__all__ = ["CORPUS", "archive", "kept", "name_of", "pack", "seeds"]

CORPUS: Final = Path(__file__).parents[2] / "corpus"
_PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": partial(gzip.compress, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "raw": bytes,
}
_SNAPSHOTS: Final = "hundred", "two"


def name_of(data: bytes) -> str:
    """The name of an input: the same for the same bytes."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def kept(target: str) -> dict[str, bytes]:
    """The inputs that are kept for a target, by name."""
    found = {path.name: path.read_bytes() for path in sorted(CORPUS.glob(f"{target}/*"))}
    if archive(target).exists():
        with tarfile.open(archive(target)) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    found[member.name] = file.read()
    return found


def archive(target: str) -> Path:
    """Where the archive of a target is; a tar file that xz compressed."""
    return CORPUS / f"{target}.tar.xz"


def pack(target: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs as the archive of a target, in place of what is in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        # What is alike lies together, and so becomes small.
        for data in sorted(set(inputs), key=lambda data: (len(data), data)):
            member = tarfile.TarInfo(name_of(data))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive(target).parent.mkdir(exist_ok=True)
    archive(target).write_bytes(lzma.compress(out.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def seeds(target: str, largest: int) -> Iterator[bytes]:
    """Good and bad inputs of at most ``largest`` bytes, all made of vectors."""
    make = {
        "reader": _streams,
        "vmdesc": _descriptions,
        "envelopes": _files,
        "channel": _plans,
        "machine": _loads,
    }[target]
    return (data for data in make() if len(data) <= largest)


def _streams() -> Iterator[bytes]:
    return (seed.data for seed in streams())


def _loads() -> Iterator[bytes]:
    return (seed.data for seed in streams(machine=True))


def _descriptions() -> Iterator[bytes]:
    for data in _streams():
        if (description := find_description(data)) is not None:
            yield description.text


def _plans() -> Iterator[bytes]:
    random = Random(0)
    for kind in range(16):
        yield bytes([kind]) + random.randbytes(200)
        yield bytes([kind]) + bytes(random.randrange(100) for _ in range(200))


def _files() -> Iterator[bytes]:
    stream = next(_loads())
    for seed in streams():
        if len(stream) < len(seed.data) < 1000:
            stream = seed.data
    for compress in _PACKERS.values():
        yield compress(stream)
    for format in LIBVIRT_FORMATS:
        body = _PACKERS.get(format, bytes)(stream)
        for order in ("little", "big"):
            head = libvirt.build("<domain/>", "<cookie/>", format=format, byte_order=order)
            yield head[:200].replace(head[20:24], _length(head, order), 1) + body
    for version, bits, width in ((2, 9, 4), (3, 9, 4), (3, 10, 0), (3, 9, 2), (3, 9, 3), (3, 9, 6)):
        image = _image(version, bits, width, stream)
        yield image
        yield _with_compressed_cluster(image, bits)


def _length(head: bytes, order: str) -> bytes:
    return (200 - 92).to_bytes(4, "little" if order == "little" else "big")


def _image(version: int, bits: int, order: int, state: bytes) -> bytes:
    """A qcow2 image of an empty disk of 256 KiB, with two snapshots.

    Clusters of 2**bits bytes, reference counts of 2**order bits.
    """
    cluster = 1 << bits
    disk = 1 << 18
    l1 = disk // (cluster * cluster // 8)
    numbers = QCOW2_MAGIC, version, 0, 0, bits, disk, 0, l1, 3 * cluster, cluster, 1, 0, 0
    head = struct.pack(">IIQIIQIIQQIIQ", *numbers)
    if version > 2:
        head += struct.pack(">QQQII", 0, 0, 0, order, 104)
    table = struct.pack(">Q", 2 * cluster)
    # Of four clusters, from the low bits of the first byte on.
    width = 1 << order
    counts = [1 << width - 8 if width > 8 else 1] * 4
    block = sum(count << i * width for i, count in enumerate(counts)).to_bytes(32, "little")
    data = b"".join(part.ljust(cluster, b"\0") for part in (head, table, block, b""))
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        for name in _SNAPSHOTS:
            with Image(f"/proc/self/fd/{fd}", writable=True) as image:
                writer = image.write_state(name, date=0)
                writer.write(0, state)
                writer.commit()
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _with_compressed_cluster(image: bytes, bits: int) -> bytes:
    """``image`` with the first cluster of the VM state compressed, behind all others."""
    (table,) = struct.unpack_from(">Q", image, QCOW2_HEADER_SNAPSHOTS + 4)
    l1, entries = struct.unpack_from(">QI", image, table)
    words = struct.unpack_from(f">{entries}Q", image, l1)
    l2 = next(word for word in words if word) & QCOW2_OFFSET
    packed = zlib.compressobj(wbits=-12)
    data = packed.compress(bytes(1 << bits)) + packed.flush()
    out = bytearray(image + data.ljust(1 << bits, b"\0"))
    struct.pack_into(">Q", out, l2, QCOW2_COMPRESSED | len(image))
    return bytes(out)
