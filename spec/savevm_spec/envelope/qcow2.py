"""qcow2 images: the header, the table of internal snapshots, and the entries that lead to VM state.

A snapshot is an L1 table of its own.  Its entries lead to L2 tables, whose entries lead to clusters:
first those of the disk, then, from the next entry of the L1 table on, those of the VM state.  All
integers are big-endian.  Origin: docs/interop/qcow2.rst of QEMU.
"""

import io
from typing import Any, BinaryIO, Final

from construct import (
    Adapter,
    Aligned,
    BitsInteger,
    BitStruct,
    Bytes,
    Check,
    Const,
    Flag,
    If,
    Int16ub,
    Int32ub,
    Int64ub,
    Rebuild,
    RepeatUntil,
    Struct,
    len_,
    this,
)

from ..combinators import Node, Ruled, Whole, held
from ..constants import (
    LIMIT_QCOW2_SNAPSHOT_EXTRA,
    LIMIT_QCOW2_SNAPSHOTS,
    QCOW2_CLUSTER_BITS,
    QCOW2_COMPRESSION_TYPE,
    QCOW2_EXTENDED_CLUSTER_BITS_MIN,
    QCOW2_EXTENDED_L2,
    QCOW2_EXTENSION_END,
    QCOW2_HEADER_SIZE_3,
    QCOW2_HEADER_SNAPSHOTS,
    QCOW2_INCOMPATIBLE_KNOWN,
    QCOW2_MAGIC,
    QCOW2_REFCOUNT_ORDER_MAX,
    QCOW2_SNAPSHOT_ALIGNMENT,
    QCOW2_SUBCLUSTERS,
    QCOW2_VERSIONS,
    QCOW2_ZLIB,
    QCOW2_ZSTD,
)
from ..errors import GrammarError

SNAPSHOT_SIZE_MIN: Final = 40


class _Text(Adapter):  # type: ignore[misc]
    """Text, what is no UTF-8 as surrogates."""

    def _decode(self, obj: bytes, context: Any, path: str) -> str:
        return obj.decode("utf-8", "surrogateescape")

    def _encode(self, obj: str, context: Any, path: str) -> bytes:
        return _encoded(obj)


class _Offset(Adapter):  # type: ignore[misc]
    """An offset of which the low 9 bits are left out."""

    def _decode(self, obj: int, context: Any, path: str) -> int:
        return obj << 9

    def _encode(self, obj: int, context: Any, path: str) -> int:
        return obj >> 9


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# Header


def _wide_enough(features: Any) -> bool:
    extended = features.incompatible & QCOW2_EXTENDED_L2
    return not extended or features._.cluster_bits >= QCOW2_EXTENDED_CLUSTER_BITS_MIN


def _is_length(length: int, features: Any) -> bool:
    return length % 8 == 0 and QCOW2_HEADER_SIZE_3 <= length <= 1 << features._.cluster_bits


def _is_compression(additional: bytes, features: Any) -> bool:
    type = additional[0] if additional else QCOW2_ZLIB
    marked = bool(features.incompatible & QCOW2_COMPRESSION_TYPE)
    return type in (QCOW2_ZLIB, QCOW2_ZSTD) and marked == (type != QCOW2_ZLIB)


def _is_aligned(offset: int, header: Any) -> bool:
    return not header.nb_snapshots or offset % (1 << header.cluster_bits) == 0


Features = Struct(
    "incompatible"
    / held(
        "envelope.qcow2.features", Int64ub, lambda bits, _: not bits & ~QCOW2_INCOMPATIBLE_KNOWN
    ),
    "wide" / Ruled("envelope.qcow2.cluster-bits", Check(_wide_enough), at=20 - 80),
    "compatible" / Int64ub,
    "autoclear" / Int64ub,
    "refcount_order"
    / held(
        "envelope.qcow2.refcount-order", Int32ub, lambda bits, _: bits <= QCOW2_REFCOUNT_ORDER_MAX
    ),
    "header_length" / held("envelope.qcow2.header-length", Int32ub, _is_length),
    "additional"
    / held(
        "envelope.qcow2.compression-type",
        Bytes(this.header_length - QCOW2_HEADER_SIZE_3),
        _is_compression,
    ),
)
"""What version 3 adds (since 1.1).  The first byte of ``additional`` is the compression type."""

Header = Struct(
    "magic" / Ruled("envelope.qcow2.magic", Const(QCOW2_MAGIC, Int32ub)),
    "version"
    / held("envelope.qcow2.version", Int32ub, lambda version, _: version in QCOW2_VERSIONS),
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits"
    / held("envelope.qcow2.cluster-bits", Int32ub, lambda bits, _: bits in QCOW2_CLUSTER_BITS),
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots"
    / held("envelope.qcow2.limit", Int32ub, lambda count, _: count <= LIMIT_QCOW2_SNAPSHOTS),
    "snapshots_offset" / held("envelope.qcow2.alignment", Int64ub, _is_aligned),
    "features" / If(this.version >= 3, Features),
)
"""Sizes in bytes, ``l1_size`` in entries; offsets in the file."""

Extension = Struct(
    "type" / Int32ub,
    "length" / Rebuild(Int32ub, len_(this.data)),
    "data" / Aligned(8, Bytes(this.length)),
)

Extensions = RepeatUntil(lambda extension, *_: extension.type == QCOW2_EXTENSION_END, Extension)
"""Directly behind the header."""

# Snapshot table


def _present(size: int) -> Any:
    """Whether the extra data has a field that ends ``size`` bytes into it."""
    return this._.extra_data_size >= size


ExtraData = Struct(
    "vm_state_size" / If(_present(8), Int64ub),
    "disk_size" / If(_present(16), Int64ub),
    "icount" / If(_present(24), Int64ub),
    "unknown"
    / Bytes(lambda extra: extra._.extra_data_size - min(24, extra._.extra_data_size // 8 * 8)),
)
"""``icount`` (since 5.2) in instructions, all ones for none; ``vm_state_size`` overrides the other."""

Snapshot = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_size" / Rebuild(Int16ub, lambda entry: len(_encoded(entry.id))),
    "name_size" / Rebuild(Int16ub, lambda entry: len(_encoded(entry.name))),
    "date_sec" / Int32ub,
    "date_nsec" / Int32ub,
    "vm_clock_nsec" / Int64ub,
    "vm_state_size_32" / Int32ub,
    "extra_data_size"
    / held("envelope.qcow2.limit", Int32ub, lambda size, _: size <= LIMIT_QCOW2_SNAPSHOT_EXTRA),
    "extra_data" / ExtraData,
    "id" / _Text(Bytes(this.id_size)),
    "name" / _Text(Bytes(this.name_size)),
)
"""An entry of the snapshot table: dates since the Epoch, ``vm_clock_nsec`` of guest time.

Sizes in bytes, ``l1_size`` in entries.  ``vm_state_size_32`` is 0 where the size does not fit; in
both, 0 is no VM state.
"""


class SnapshotTable(Node):
    """The entries that the header announces, where it says, each aligned to 8 bytes."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        header = context.header
        cluster = 1 << header.cluster_bits
        end = -(-stream.seek(0, 2) // cluster) * cluster
        start = header.snapshots_offset
        if not start or start + header.nb_snapshots * SNAPSHOT_SIZE_MIN > end:
            raise GrammarError("envelope.qcow2.truncated", QCOW2_HEADER_SNAPSHOTS + 4)
        stream.seek(start)
        entry = Ruled("envelope.qcow2.truncated", Snapshot, frame=True)
        entries = []
        for _ in range(header.nb_snapshots):
            stream.seek(-stream.tell() % QCOW2_SNAPSHOT_ALIGNMENT, 1)
            entries.append(entry._parsereport(stream, context, path))
        return entries

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        stream.seek(context.header.snapshots_offset)
        for entry in obj:
            stream.seek(-stream.tell() % QCOW2_SNAPSHOT_ALIGNMENT, 1)
            Snapshot._build(entry, stream, context, path)
        return obj


Image = Struct(
    "header" / Whole("envelope.qcow2.truncated", Header),
    "extensions" / Whole("envelope.qcow2.truncated", Extensions),
    "snapshots" / If(this.header.nb_snapshots, SnapshotTable()),
)
"""What is known of an image without its clusters; built, everything else is zeros."""

# L1 and L2 tables: the bits of a be64, the highest first

L1Entry = BitStruct(
    "copied" / Flag,
    "reserved" / BitsInteger(7),
    "offset" / _Offset(BitsInteger(47)),
    "reserved_low" / BitsInteger(9),
)
"""Where an L2 table is in the file, 0 for none.

``copied``, here and in the entries of L2 tables, is right in the active tables only: that nothing
else refers to it.
"""

StandardCluster = BitStruct(
    "copied" / Flag,
    "compressed" / Const(False, Flag),
    "reserved" / BitsInteger(6),
    "offset" / _Offset(BitsInteger(47)),
    "reserved_low" / BitsInteger(8),
    "zero" / Flag,
)
"""Where a cluster is in the file, 0 for none; ``zero`` (since version 3): it reads as zeros."""

Subclusters = BitStruct(
    "zero" / BitsInteger(QCOW2_SUBCLUSTERS), "allocated" / BitsInteger(QCOW2_SUBCLUSTERS)
)
"""The second half of an extended L2 entry: a bit for each subcluster, the lowest for the first."""


def compressed_cluster(cluster_bits: int) -> Any:
    """An L2 entry of compressed data: at ``offset``, and in so many more ``sectors`` of 512 bytes."""
    return BitStruct(
        "copied" / Const(False, Flag),
        "compressed" / Const(True, Flag),
        "sectors" / BitsInteger(cluster_bits - 8),
        "offset" / BitsInteger(70 - cluster_bits),
    )


def vm_state_entry(disk_size: int, cluster_bits: int, *, extended_l2: bool = False) -> int:
    """The index of the entry of a snapshot's L1 table with which the VM state begins."""
    entries_bits = cluster_bits - (4 if extended_l2 else 3)
    return -(-disk_size >> cluster_bits + entries_bits)


def parse(data: bytes) -> Any:
    """The Containers of ``Image``; raises ``GrammarError``."""
    return Image.parse_stream(io.BytesIO(data))


def build(image: Any) -> bytes:
    """The bytes of an image up to the last that the values of ``parse`` tell of."""
    data: bytes = Image.build(image)
    return data
