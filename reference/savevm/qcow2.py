"""The VM state of qcow2 internal snapshots, read and written in place.

A snapshot's VM state lies behind its disk: in the clusters that the snapshot's L1 table describes
from the first entry on that describes nothing of the disk.  All integers are big-endian.

Writing keeps this order, with the file synchronised between the steps: what nothing refers to yet;
reference counts; the COPIED flags of the active tables; the header's pointer to the snapshot table;
and only then is anything freed.  So a crash leaves at worst clusters that nothing uses and flags
that cost a copy, both of which ``qemu-img check -r leaks`` repairs.
"""

import errno
import fcntl
import os
import re
import stat
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Final, NamedTuple

from savevm.errors import StreamError, stream_error
from savevm_spec.constants import (
    LIMIT_QCOW2_L1,
    LIMIT_QCOW2_REFCOUNT_TABLE,
    LIMIT_QCOW2_SNAPSHOT_EXTRA,
    LIMIT_QCOW2_SNAPSHOT_TABLE,
    LIMIT_QCOW2_SNAPSHOTS,
    QCOW2_AUTOCLEAR_KNOWN,
    QCOW2_CLUSTER_BITS,
    QCOW2_COMPRESSED,
    QCOW2_COMPRESSION_TYPE,
    QCOW2_COPIED,
    QCOW2_CORRUPT,
    QCOW2_DIRTY,
    QCOW2_EXTENDED_CLUSTER_BITS_MIN,
    QCOW2_EXTENDED_L2,
    QCOW2_EXTERNAL_DATA,
    QCOW2_HEADER_AUTOCLEAR,
    QCOW2_HEADER_REFCOUNT_TABLE,
    QCOW2_HEADER_SIZE_3,
    QCOW2_HEADER_SNAPSHOTS,
    QCOW2_INCOMPATIBLE_KNOWN,
    QCOW2_MAGIC,
    QCOW2_OFFSET,
    QCOW2_REFCOUNT_ORDER_2,
    QCOW2_REFCOUNT_ORDER_MAX,
    QCOW2_SECTOR,
    QCOW2_SNAPSHOT_ALIGNMENT,
    QCOW2_SUBCLUSTERS,
    QCOW2_VERSIONS,
    QCOW2_ZERO,
    QCOW2_ZLIB,
    QCOW2_ZSTD,
)

__all__ = ["Image", "Snapshot", "StateWriter"]

_HEADER: Final = struct.Struct(">IIQIIQIIQQIIQ")
_FEATURES: Final = struct.Struct(">QQQII")
_ENTRY: Final = struct.Struct(">QIHHIIQII")
_POINTER: Final = struct.Struct(">QI")
_SNAPSHOTS: Final = struct.Struct(">IQ")
_ALL_ALLOCATED: Final = (1 << QCOW2_SUBCLUSTERS) - 1
_NO_ICOUNT: Final = (1 << 64) - 1
_SECOND: Final = 10**9
_NUMBER: Final = re.compile("[0-9]{1,18}")
# What is gathered before it is written, in bytes.
_RUN: Final = 4 << 20

# QEMU's locks: a byte for each permission that somebody uses, and one for each that somebody does
# not grant to others.
_LOCK_USED: Final = 100
_LOCK_DENIED: Final = 200
_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK: Final = struct.Struct("hhqqi0q")


class Snapshot(NamedTuple):
    """An internal snapshot.

    ``date`` in ns since the Epoch, ``vm_clock`` in ns of guest time, ``vm_state_size`` (0: of the
    disk only) and ``disk_size`` in bytes, ``icount`` in instructions or None.  ``offset`` is that
    of the table entry ``entry`` in the image file.
    """

    id: str
    name: str
    date: int
    vm_clock: int
    vm_state_size: int
    disk_size: int
    icount: int | None
    l1_offset: int
    l1_entries: int
    offset: int
    entry: bytes


def _error(rule: str, offset: int, detail: str) -> StreamError:
    return stream_error(f"envelope.qcow2.{rule}", offset, None, detail)


def _words(data: bytes) -> "array[int]":
    words = array("Q", data)
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _bytes(words: "array[int]") -> bytes:
    if sys.byteorder == "little":
        words = words[:]
        words.byteswap()
    return words.tobytes()


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _zlib(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)


def _zstd(data: bytes, size: int) -> bytes:
    for name in ("compression.zstd", "backports.zstd"):  # the first is there since Python 3.14
        try:
            module = import_module(name)
        except ImportError:
            continue
        return bytes(module.ZstdDecompressor().decompress(data, size))
    raise ImportError("a cluster compressed with zstd, and no Python package for it")


class Image:
    """A qcow2 image file, or block device, that is opened for its internal snapshots.

    Raises ``StreamError`` for an image that breaks a rule, with the offset in the image file, and
    ``OSError`` as ``open`` does; ``BlockingIOError`` while another process has the image open in a
    way that conflicts.  ``writable`` keeps others from opening it, otherwise only from writing it;
    ``locked`` False, for reading only, disregards what others do, as ``qemu-img --force-share``.

    ``version`` is 2 or 3, ``disk_size`` and ``cluster`` (the size of one) in bytes.
    """

    version: int
    disk_size: int
    cluster: int
    refcount_bits: int
    _bits: int
    _l1_cover: int
    _l2_entries: int
    _step: int

    def __init__(
        self, path: str | os.PathLike[str], writable: bool = False, *, locked: bool = True
    ):
        self.path: Final = os.fspath(path)
        self.writable: Final = writable
        mode = os.O_RDWR if writable else os.O_RDONLY
        self._fd = os.open(self.path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        self._writer: StateWriter | None = None
        self._l2_cached: tuple[int, array[int]] = (0, array("Q"))
        self._inflated: tuple[int, bytes] = (0, b"")
        try:
            kind = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                code = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
                raise OSError(code, os.strerror(code), self.path)
            self._resizable: Final = stat.S_ISREG(kind)
            if locked or writable:
                self._lock()
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Image":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether ``close`` was not called yet."""
        return self._fd >= 0

    def close(self) -> None:
        """Give up the file and its locks; a VM state that was not committed is lost."""
        if self._writer is not None:
            self._writer.abandon()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # The file

    def _lock(self) -> None:
        """Take the locks that QEMU's file driver takes, where the system has them."""
        if sys.platform != "linux":
            return
        used = (_READ, _WRITE, _RESIZE) if self.writable else (_READ,)
        denied = (_WRITE, _RESIZE)

        def flock(kind: int, byte: int) -> bytes:
            return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)

        for byte in [_LOCK_USED + i for i in used] + [_LOCK_DENIED + i for i in denied]:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, flock(fcntl.F_RDLCK, byte))
        # Everybody's locks are shared, so that a conflict shows only when looked for.
        for byte in [_LOCK_DENIED + i for i in used] + [_LOCK_USED + i for i in denied]:
            found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, flock(fcntl.F_WRLCK, byte))
            if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
                what = "open in another process" if self.writable else "written by another process"
                raise BlockingIOError(errno.EAGAIN, f"the image is {what}", self.path)

    def _read(self, offset: int, size: int) -> bytes:
        """``size`` bytes; what lies behind the end of the file is zeros."""
        data = bytearray(size)
        self._read_into(memoryview(data), offset)
        return bytes(data)

    def _read_into(self, view: memoryview, offset: int) -> None:
        while len(view) and (count := os.preadv(self._fd, [view], offset)):
            view, offset = view[count:], offset + count
        view[:] = bytes(len(view))

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        end = offset + len(view)
        while len(view):
            view = view[os.pwrite(self._fd, view, end - len(view)) :]
            self._size = max(self._size, end - len(view))

    def _sync(self) -> None:
        os.fdatasync(self._fd)

    # The header

    def _read_header(self) -> None:
        head = self._read(0, QCOW2_HEADER_SIZE_3 + 1)
        (
            magic,
            self.version,
            _,
            _,
            self._bits,
            self.disk_size,
            self._encryption,
            self._l1_entries,
            self._l1_offset,
            self._refcounts_offset,
            self._refcounts_clusters,
            self._count,
            self._snapshots_offset,
        ) = _HEADER.unpack_from(head)
        self._features = self._autoclear = 0
        order, size = QCOW2_REFCOUNT_ORDER_2, QCOW2_HEADER_SIZE_3
        if self.version > 2:
            self._features, _, self._autoclear, order, size = _FEATURES.unpack_from(head, 72)
        self._compression = head[QCOW2_HEADER_SIZE_3] if size > QCOW2_HEADER_SIZE_3 else QCOW2_ZLIB
        self._extended = bool(self._features & QCOW2_EXTENDED_L2)
        marked = bool(self._features & QCOW2_COMPRESSION_TYPE)
        bits, least = self._bits, QCOW2_EXTENDED_CLUSTER_BITS_MIN if self._extended else 0
        self.cluster = 1 << min(bits, QCOW2_CLUSTER_BITS[-1])
        misplaced = self._count and self._snapshots_offset % self.cluster
        # In the order of the fields, each when the file has it.
        checks: list[tuple[int, str, int, bool, str]] = [
            (4, "magic", 0, magic == QCOW2_MAGIC, f"magic {magic:08x}"),
            (8, "version", 4, self.version in QCOW2_VERSIONS, f"version {self.version}"),
            (24, "cluster-bits", 20, bits in QCOW2_CLUSTER_BITS, f"clusters of 2^{bits} bytes"),
            (64, "limit", 60, self._count <= LIMIT_QCOW2_SNAPSHOTS, f"{self._count} snapshots"),
            (72, "alignment", 64, not misplaced, f"a table at {self._snapshots_offset:#x}"),
        ]
        if self.version > 2:
            unknown = self._features & ~QCOW2_INCOMPATIBLE_KNOWN
            long = size % 8 == 0 and QCOW2_HEADER_SIZE_3 <= size <= self.cluster
            narrow = order <= QCOW2_REFCOUNT_ORDER_MAX
            known = self._compression in (QCOW2_ZLIB, QCOW2_ZSTD)
            agree = marked == (self._compression != QCOW2_ZLIB)
            checks += [
                (80, "features", 72, not unknown, f"unknown incompatible features {unknown:#x}"),
                (80, "cluster-bits", 20, bits >= least, f"extended L2 in clusters of 2^{bits}"),
                (100, "refcount-order", 96, narrow, f"reference counts of 2^{order} bits"),
                (104, "header-length", 100, long, f"a header of {size} bytes"),
                (size, "compression-type", 104, known and agree, f"type {self._compression}"),
            ]
        for end, rule, at, fine, detail in checks:
            if self._size < end:
                raise _error("truncated", self._size, "the file ends within the header")
            if not fine:
                raise _error(rule, at, detail)
        self.refcount_bits = 1 << order
        self._step = 2 if self._extended else 1
        self._l2_entries = self.cluster // (8 * self._step)
        self._l1_cover = self.cluster * self._l2_entries

    def _usable(self) -> None:
        """Whether VM state can be had at all."""
        if self._encryption:
            raise _error("encrypted", 32, f"the image is encrypted (method {self._encryption})")
        if self._features & QCOW2_EXTERNAL_DATA:
            raise _error("external-data", 72, "the image has an external data file")

    # Tables

    def _located(self, offset: int, size: int, at: int) -> None:
        """Whether ``size`` bytes at ``offset``, named by the field at ``at``, can be there."""
        if offset % self.cluster:
            raise _error("alignment", at, f"offset {offset:#x} is not a multiple of {self.cluster}")
        end = _ceil(self._size, self.cluster) * self.cluster
        if offset == 0 or offset + size > end:
            raise _error("truncated", at, f"{size} bytes at {offset:#x} in a file of {self._size}")

    def _table(self, offset: int, size: int, limit: int, at: int) -> "array[int]":
        """A table of be64 words that the field at ``at`` names."""
        if size > limit:
            raise _error("limit", at, f"a table of {size} bytes, above {limit}")
        if not size:
            return array("Q")
        self._located(offset, size, at)
        return _words(self._read(offset, size))

    def _l1(self, offset: int, entries: int, at: int) -> "array[int]":
        return self._table(offset, 8 * entries, LIMIT_QCOW2_L1, at)

    def _active(self) -> "array[int]":
        return self._l1(self._l1_offset, self._l1_entries, 40)

    def _l2(self, offset: int, at: int) -> "array[int]":
        return self._table(offset, self.cluster, self.cluster, at)

    # Snapshots

    def snapshots(self) -> list[Snapshot]:
        """All internal snapshots, in the order of the table."""
        found: list[Snapshot] = []
        offset = self._snapshots_offset
        if self._count:
            self._located(offset, self._count * _ENTRY.size, QCOW2_HEADER_SNAPSHOTS + 4)
        for _ in range(self._count):
            snapshot = self._snapshot(offset)
            found.append(snapshot)
            offset += len(snapshot.entry)
            if offset - self._snapshots_offset > LIMIT_QCOW2_SNAPSHOT_TABLE:
                raise _error(
                    "limit",
                    snapshot.offset,
                    f"a table of more than {LIMIT_QCOW2_SNAPSHOT_TABLE} bytes",
                )
        return found

    def _snapshot(self, offset: int) -> Snapshot:
        head = self._read(offset, _ENTRY.size)
        l1, entries, id_size, name_size, sec, nsec, clock, state, extra_size = _ENTRY.unpack(head)
        if extra_size > LIMIT_QCOW2_SNAPSHOT_EXTRA:
            raise _error("limit", offset + 36, f"{extra_size} bytes of extra data")
        size = _ENTRY.size + extra_size + id_size + name_size
        if offset + size > self._size:
            raise _error("truncated", offset, f"an entry of {size} bytes in a file of {self._size}")
        size += -size % QCOW2_SNAPSHOT_ALIGNMENT
        entry = self._read(offset, size)
        texts = entry[_ENTRY.size + extra_size :]
        extra = [
            int.from_bytes(entry[at : at + 8]) if extra_size >= at + 8 - _ENTRY.size else None
            for at in (40, 48, 56)
        ]
        return Snapshot(
            id=texts[:id_size].decode("utf-8", "surrogateescape"),
            name=texts[id_size : id_size + name_size].decode("utf-8", "surrogateescape"),
            date=sec * _SECOND + nsec,
            vm_clock=clock,
            vm_state_size=state if extra[0] is None else extra[0],
            disk_size=self.disk_size if extra[1] is None else extra[1],
            icount=None if extra[2] == _NO_ICOUNT else extra[2],
            l1_offset=l1,
            l1_entries=entries,
            offset=offset,
            entry=entry,
        )

    def find(self, tag: str) -> Snapshot:
        """The first snapshot with the name ``tag``, else with that id; ``FileNotFoundError``."""
        every = self.snapshots()
        for snapshot in [s for s in every if s.name == tag] + [s for s in every if s.id == tag]:
            return snapshot
        raise FileNotFoundError(errno.ENOENT, f"no snapshot {tag!r}", self.path)

    # VM state, read

    def read_state(self, snapshot: Snapshot, position: int, count: int) -> bytes:
        """``count`` bytes of VM state from ``position`` on; fewer at its end."""
        self._state_area(snapshot)
        data = bytearray(max(0, min(count, snapshot.vm_state_size - position)))
        return bytes(data[: self.read_state_into(snapshot, position, memoryview(data))])

    def read_state_into(self, snapshot: Snapshot, position: int, buffer: memoryview) -> int:
        """Fill ``buffer``, of bytes, with VM state from ``position`` on: how many bytes."""
        first = self._state_area(snapshot)
        left = buffer[: max(0, min(len(buffer), snapshot.vm_state_size - position))]
        count = len(left)
        while len(left):
            table, within = divmod(position, self._l1_cover)
            offset, words = self._state_l2(snapshot.l1_offset + 8 * (first + table))
            done = self._read_clusters(words, offset, within, left)
            left, position = left[done:], position + done
        return count

    def _state_area(self, snapshot: Snapshot) -> int:
        """The index of the entry of a snapshot's L1 table with which its VM state begins."""
        self._usable()
        size = 8 * snapshot.l1_entries
        first = _ceil(snapshot.disk_size, self._l1_cover)
        if first + _ceil(snapshot.vm_state_size, self._l1_cover) > snapshot.l1_entries:
            raise _error(
                "snapshot.vm-state",
                snapshot.offset,
                f"an L1 table of {snapshot.l1_entries} entries, VM state from entry {first} on",
            )
        if size > LIMIT_QCOW2_L1:
            raise _error("limit", snapshot.offset + 8, f"an L1 table of {size} bytes")
        self._located(snapshot.l1_offset, size, snapshot.offset)
        return first

    def _state_l2(self, at: int) -> tuple[int, "array[int]"]:
        """The L2 table of the entry at ``at`` of an L1 table, and its offset (0: there is none)."""
        offset = _words(self._read(at, 8))[0] & QCOW2_OFFSET
        if not offset:
            return 0, array("Q", bytes(self.cluster))
        if self._l2_cached[0] != offset:
            self._l2_cached = offset, self._l2(offset, at)
        return self._l2_cached

    def _read_clusters(
        self, words: "array[int]", offset: int, within: int, view: memoryview
    ) -> int:
        """Some bytes from ``within`` what an L2 table describes: how many, at least one."""
        slot, within = divmod(within, self.cluster)
        at = offset + 8 * self._step * slot
        descriptor = words[self._step * slot] & ~QCOW2_COPIED
        host = descriptor & QCOW2_OFFSET
        end = self.cluster
        if descriptor & QCOW2_COMPRESSED:
            view = view[: end - within]
            view[:] = self._decompressed(descriptor, at)[within : within + len(view)]
            return len(view)
        if self._extended:
            zeros, allocated = divmod(words[2 * slot + 1], 1 << QCOW2_SUBCLUSTERS)
            if zeros & allocated:
                raise _error(
                    "cluster", at, f"subclusters {zeros & allocated:#x} are allocated and zeros"
                )
            if allocated != _ALL_ALLOCATED:
                size = self.cluster // QCOW2_SUBCLUSTERS
                index = within // size
                end = (index + 1) * size
                if not allocated >> index & 1:
                    host = 0
        elif descriptor & QCOW2_ZERO:
            if self.version == 2:
                raise _error("cluster", at, "a zero flag in version 2")
            host = 0
        if not host:
            view = view[: end - within]
            view[:] = bytes(len(view))
            return len(view)
        self._located(host, 1, at)
        if end == self.cluster:
            # As much as lies in a row is read at once.
            while end - within < len(view) and slot + 1 < self._l2_entries:
                slot += 1
                if words[self._step * slot] & ~QCOW2_COPIED != descriptor + end or (
                    self._extended and words[2 * slot + 1] != _ALL_ALLOCATED
                ):
                    break
                end += self.cluster
        view = view[: end - within]
        self._read_into(view, host + within)
        return len(view)

    def _compressed_extent(self, descriptor: int) -> tuple[int, int]:
        """Offset and size in bytes of what a descriptor says a compressed cluster may take."""
        shift = 62 - (self._bits - 8)
        offset = descriptor & ((1 << shift) - 1)
        sectors = (descriptor & (QCOW2_COMPRESSED - 1)) >> shift
        return offset, (sectors + 1) * QCOW2_SECTOR - offset % QCOW2_SECTOR

    def _decompressed(self, descriptor: int, at: int) -> bytes:
        if self._inflated[0] == descriptor:
            return self._inflated[1]
        offset, size = self._compressed_extent(descriptor)
        if offset >= self._size:
            raise _error(
                "truncated", at, f"a compressed cluster at {offset:#x} in a file of {self._size}"
            )
        decompress = _zlib if self._compression == QCOW2_ZLIB else _zstd
        try:
            data = decompress(self._read(offset, size), self.cluster)
        except ImportError as error:
            raise _error("compression-type", at, str(error)) from None
        except Exception as error:  # each package has its own
            raise _error("compressed", at, str(error)) from None
        if len(data) != self.cluster:
            raise _error("compressed", at, f"{len(data)} bytes instead of {self.cluster}")
        self._inflated = descriptor, data
        return data

    # VM state, written

    def write_state(
        self,
        name: str,
        *,
        replace: bool = False,
        vm_clock: int = 0,
        icount: int | None = None,
        date: int | None = None,
    ) -> "StateWriter":
        """Begin a snapshot of the disk as it is, with the VM state that the writer is given.

        ``replace`` an existing snapshot of that name: it is there until the new one is.  The other
        arguments are as in ``Snapshot``; ``date`` is now if not given.  Raises ``FileExistsError``,
        ``ValueError`` for a name that is empty or longer than 255 bytes, ``RuntimeError`` while
        another writer is at work, and ``StreamError`` for an image that must not be written.
        """
        encoded = name.encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) < 256:
            raise ValueError(f"a snapshot's name has 1 to 255 bytes, not {len(encoded)}")
        every = self.snapshots()
        dropped = next((s for s in every if s.name == name), None)
        if dropped is not None and not replace:
            raise FileExistsError(errno.EEXIST, f"there is a snapshot {name!r}", self.path)
        refcounts = self._begin()
        disk = self._active()[: _ceil(self.disk_size, self._l1_cover)]
        if len(disk) * self._l1_cover < self.disk_size:
            raise _error("l1-size", 36, f"{len(disk)} entries for a disk of {self.disk_size} bytes")
        self._count_l1(refcounts, disk, self._l1_offset, 1)
        left = [s for s in every if s is not dropped]
        identity = 1 + max((int(s.id) for s in left if _NUMBER.fullmatch(s.id)), default=0)
        seconds, nanoseconds = divmod(time.time_ns() if date is None else date, _SECOND)

        def entry(l1_offset: int, l1_entries: int, size: int) -> bytes:
            id = b"%d" % identity
            data = _ENTRY.pack(
                l1_offset,
                l1_entries,
                len(id),
                len(encoded),
                seconds & 0xFFFFFFFF,
                nanoseconds,
                vm_clock,
                size if size < 1 << 32 else 0,
                24,
            )
            data += struct.pack(
                ">QQQ", size, self.disk_size, _NO_ICOUNT if icount is None else icount
            )
            data += id + encoded
            return data.ljust(len(data) + -len(data) % QCOW2_SNAPSHOT_ALIGNMENT, b"\0")

        def commit(l1: "array[int]", size: int) -> None:
            offset = refcounts.take(_ceil(8 * len(l1), self.cluster)) * self.cluster
            self._write(_bytes(l1), offset)
            table = [s.entry for s in left] + [entry(offset, len(l1), size)]
            self._commit(refcounts, table, every, dropped)

        self._writer = StateWriter(self, refcounts, disk, commit)
        return self._writer

    def delete(self, snapshot: Snapshot) -> None:
        """Delete ``snapshot``, which ``snapshots`` gave; raises as ``write_state``."""
        every = self.snapshots()
        # Where the entry lies changes with every other snapshot.
        dropped = next((s for s in every if s.entry == snapshot.entry), None)
        if dropped is None:
            raise FileNotFoundError(errno.ENOENT, f"no snapshot {snapshot.name!r}", self.path)
        refcounts = self._begin()
        table = [s.entry for s in every if s is not dropped]
        self._commit(refcounts, table, every, dropped)

    def _begin(self) -> "_Refcounts":
        """The reference counts of an image that may be written, and in which all is accounted for."""
        if not self.writable:
            raise OSError(errno.EBADF, "the image is not open for writing", self.path)
        if self._writer is not None:
            raise RuntimeError("another VM state is being written")
        self._usable()
        for bit, rule in ((QCOW2_DIRTY, "dirty"), (QCOW2_CORRUPT, "corrupt")):
            if self._features & bit:
                raise _error(rule, 72, f"the image is marked {rule} (qemu-img check -r all)")
        refcounts = _Refcounts(self)
        self._account(refcounts)
        return refcounts

    def _account(self, refcounts: "_Refcounts") -> None:
        """Whether nothing that is in use counts as free."""
        refcounts.add(0, 0, 0)
        refcounts.span(self._refcounts_offset, refcounts.table_size, 0, QCOW2_HEADER_REFCOUNT_TABLE)
        for index, offset in refcounts.offsets.items():
            refcounts.add(offset >> self._bits, 0, self._refcounts_offset + 8 * index)
        seen: set[int] = set()
        every = self.snapshots()
        size = sum(len(s.entry) for s in every)
        refcounts.span(self._snapshots_offset, size, 0, QCOW2_HEADER_SNAPSHOTS + 4)
        tables = [(s.l1_offset, s.l1_entries, s.offset) for s in every]
        end = 0
        for offset, entries, at in sorted([(self._l1_offset, self._l1_entries, 40), *tables]):
            if entries and offset < end:
                raise _error("shared", at, f"the L1 table at {offset:#x} lies within another")
            words = self._l1(offset, entries, at)
            refcounts.span(offset, 8 * entries, 0, at)
            self._count_l1(refcounts, words, offset, 0, seen)
            end = max(end, offset + 8 * entries)

    def _count_l1(
        self,
        refcounts: "_Refcounts",
        words: "array[int]",
        offset: int,
        change: int,
        seen: set[int] | None = None,
    ) -> None:
        """Add ``change`` to the reference counts of all that an L1 table at ``offset`` refers to.

        Passes over the L2 tables in ``seen``, and puts the others in.
        """
        seen = set() if seen is None else seen
        own: set[int] = set()
        bits, step = self._bits, self._step
        unaligned = QCOW2_OFFSET & (self.cluster - 1)
        for index, entry in enumerate(words):
            table = entry & QCOW2_OFFSET
            if not table:
                continue
            at = offset + 8 * index
            if table in own:
                raise _error("shared", at, f"the L2 table at {table:#x} for the second time")
            own.add(table)
            if table in seen:
                continue
            seen.add(table)
            l2 = self._l2(table, at)
            refcounts.add(table >> bits, change, at)
            for slot in range(0, len(l2), step):
                if not (descriptor := l2[slot]):
                    continue
                if descriptor & QCOW2_COMPRESSED:
                    refcounts.span(*self._compressed_extent(descriptor), change, table + 8 * slot)
                elif host := descriptor & QCOW2_OFFSET:
                    if host & unaligned:
                        raise _error("alignment", table + 8 * slot, f"a cluster at {host:#x}")
                    refcounts.add(host >> bits, change, table + 8 * slot)

    def _flag(self, refcounts: "_Refcounts") -> None:
        """Have COPIED at what only the active tables refer to, and at nothing else."""

        def flagged(entry: int) -> int:
            cluster = (entry & QCOW2_OFFSET) >> self._bits
            if not cluster or entry & QCOW2_COMPRESSED or refcounts.get(cluster) != 1:
                return entry & ~QCOW2_COPIED
            return entry | QCOW2_COPIED

        def rewrite(words: "array[int]", offset: int, step: int) -> None:
            new = words[:]
            for slot in range(0, len(words), step):
                if words[slot]:
                    new[slot] = flagged(words[slot])
            if new != words:
                self._write(_bytes(new), offset)

        l1 = self._active()
        for index, entry in enumerate(l1):
            if table := entry & QCOW2_OFFSET:
                rewrite(self._l2(table, self._l1_offset + 8 * index), table, self._step)
        rewrite(l1, self._l1_offset, 1)
        self._sync()

    def _commit(
        self,
        refcounts: "_Refcounts",
        table: list[bytes],
        before: list[Snapshot],
        dropped: Snapshot | None,
    ) -> None:
        """Make ``table`` the snapshot table in the place of ``before``, then free what it frees."""
        data = b"".join(table)
        if len(table) > LIMIT_QCOW2_SNAPSHOTS or len(data) > LIMIT_QCOW2_SNAPSHOT_TABLE:
            raise OSError(errno.EFBIG, "the snapshot table would become too large", self.path)
        if clear := self._autoclear & ~QCOW2_AUTOCLEAR_KNOWN:
            self._autoclear ^= clear
            self._write(self._autoclear.to_bytes(8), QCOW2_HEADER_AUTOCLEAR)
        offset = 0
        if data:
            offset = refcounts.take(_ceil(len(data), self.cluster)) * self.cluster
            self._write(data, offset)
        refcounts.write()
        self._flag(refcounts)
        self._write(_SNAPSHOTS.pack(len(table), offset), QCOW2_HEADER_SNAPSHOTS)
        self._sync()
        old = self._snapshots_offset
        self._count, self._snapshots_offset = len(table), offset
        # Caches of what may be written over from now on.
        self._l2_cached, self._inflated = (0, array("Q")), (0, b"")
        refcounts.span(old, sum(len(s.entry) for s in before), -1, QCOW2_HEADER_SNAPSHOTS + 4)
        if dropped is not None:
            l1 = self._l1(dropped.l1_offset, dropped.l1_entries, dropped.offset)
            self._count_l1(refcounts, l1, dropped.l1_offset, -1)
            refcounts.span(dropped.l1_offset, 8 * len(l1), -1, dropped.offset)
            self._account(refcounts)
        refcounts.write()
        if dropped is not None:
            self._flag(refcounts)
        self._cut(refcounts.end())

    def _cut(self, end: int) -> None:
        """Have the file end at ``end`` at the latest, where it can be cut."""
        if self._resizable and end < self._size:
            os.ftruncate(self._fd, end)
            self._size = end

    def _point_refcounts(self, offset: int, clusters: int) -> None:
        self._write(_POINTER.pack(offset, clusters), QCOW2_HEADER_REFCOUNT_TABLE)
        self._sync()
        self._refcounts_offset, self._refcounts_clusters = offset, clusters


class _Refcounts:
    """The reference counts of an image's clusters, changed in memory until they are written.

    ``offsets`` are those of the refcount blocks in the file by index, 0 for one that is new.
    ``begun`` tells whether anything was written over what was there.
    """

    def __init__(self, image: Image) -> None:
        self._image: Final = image
        self._width: Final = image.refcount_bits
        self._most: Final = (1 << self._width) - 1
        self._type: Final = {16: "H", 32: "I", 64: "Q"}.get(self._width, "B")
        self._each: Final = image.cluster * 8 // self._width
        self._blocks: dict[int, array[int]] = {}
        self._changed: set[int] = set()
        self._free = 1
        self.begun = False
        self.table_size = image._refcounts_clusters * image.cluster
        self.offsets: dict[int, int] = {}
        start = image._refcounts_offset
        at = QCOW2_HEADER_REFCOUNT_TABLE
        table = image._table(start, self.table_size, LIMIT_QCOW2_REFCOUNT_TABLE, at)
        used: set[int] = set()
        for index, entry in enumerate(table):
            if offset := entry & ~(QCOW2_SECTOR - 1):
                at = start + 8 * index
                image._located(offset, image.cluster, at)
                if offset in used:
                    raise _error(
                        "shared", at, f"the refcount block at {offset:#x} for the second time"
                    )
                used.add(offset)
                self.offsets[index] = offset

    def _block(self, index: int) -> "array[int]":
        block = self._blocks.get(index)
        if block is None:
            offset = self.offsets.get(index, 0)
            size = self._image.cluster
            block = self._decode(self._image._read(offset, size) if offset else bytes(size))
            self._blocks[index] = block
        return block

    def _decode(self, data: bytes) -> "array[int]":
        if self._width < 8:
            lanes = 8 // self._width
            counts = bytearray(lanes * len(data))
            number = int.from_bytes(data)
            mask = int.from_bytes(bytes((self._most,)) * len(data))
            for lane in range(lanes):
                counts[lane::lanes] = (number >> lane * self._width & mask).to_bytes(len(data))
            data = bytes(counts)
        block = array(self._type, data)
        if sys.byteorder == "little":
            block.byteswap()
        return block

    def _encode(self, block: "array[int]") -> bytes:
        if sys.byteorder == "little":
            block = block[:]
            block.byteswap()
        data = block.tobytes()
        if self._width < 8:
            lanes = 8 // self._width
            number = 0
            for lane in range(lanes):
                number |= int.from_bytes(data[lane::lanes]) << lane * self._width
            data = number.to_bytes(len(data) // lanes)
        return data

    def get(self, cluster: int) -> int:
        """The reference count of a cluster, by number."""
        index, slot = divmod(cluster, self._each)
        if index not in self.offsets:
            return 0
        return self._block(index)[slot]

    def add(self, cluster: int, change: int, at: int) -> None:
        """Add ``change`` to the count of a cluster that what stands at ``at`` refers to."""
        index, slot = divmod(cluster, self._each)
        block = self._blocks.get(index)
        if block is None and index in self.offsets:
            block = self._block(index)
        count = block[slot] if block is not None else 0
        if not count:
            raise _error(
                "refcount", at, f"the cluster at {cluster * self._image.cluster:#x} counts as free"
            )
        if change:
            if count + change > self._most:
                raise _error(
                    "refcount.width", at, f"{count + change} references in {self._width} bits"
                )
            assert block is not None
            block[slot] = count + change
            self._changed.add(index)
            if count + change == 0:
                self._free = min(self._free, cluster)

    def span(self, offset: int, size: int, change: int, at: int) -> None:
        """As ``add``, for all clusters that have some of ``size`` bytes at ``offset``."""
        bits = self._image._bits
        if size:
            for cluster in range(offset >> bits, (offset + size - 1 >> bits) + 1):
                self.add(cluster, change, at)

    def run(self, count: int) -> range:
        """Some free clusters in a row, at most ``count``; from now on in use."""
        return self._claim(self._next_free(self._free), count, whole=False)

    def take(self, count: int) -> int:
        """The first of ``count`` free clusters in a row; from now on in use."""
        return self._claim(self._next_free(self._free), count, whole=True).start

    def _next_free(self, cluster: int) -> int:
        while True:
            index, slot = divmod(cluster, self._each)
            if index not in self.offsets:
                return cluster
            try:
                return index * self._each + self._block(index).index(0, slot)
            except ValueError:
                cluster = (index + 1) * self._each

    def _claim(self, start: int, count: int, *, whole: bool) -> range:
        first = start
        while True:
            end = start + 1
            while end < start + count and not self.get(end):
                end += 1
            if end - start == count or not whole:
                break
            start = self._next_free(end)
        if end << self._image._bits > QCOW2_OFFSET:
            raise OSError(errno.EFBIG, "the image would become too large", self._image.path)
        for cluster in range(start, end):
            index, slot = divmod(cluster, self._each)
            self.offsets.setdefault(index, 0)
            self._block(index)[slot] = 1
            self._changed.add(index)
        if start == first:
            self._free = end
        return range(start, end)

    def write(self) -> None:
        """Write what has changed, so that no count is ever below the references.

        What is freed here may be written over at once; what refers to what was allocated may follow
        when the file is synchronised.
        """
        image = self._image
        while self._changed:
            new, moved = self._place()
            if moved:
                words = array("Q", bytes(moved[1] * image.cluster))
                for index, offset in self.offsets.items():
                    words[index] = offset
                image._write(_bytes(words), moved[0])
            for index in new:
                image._write(self._encode(self._blocks[index]), self.offsets[index])
            # What needs room has it; until here all could be taken back.
            self.begun = True
            for index in self._changed.difference(new):
                image._write(self._encode(self._blocks[index]), self.offsets[index])
            self._changed.clear()
            # A new block's own count may be in another.
            image._sync()
            if moved:
                old, size = image._refcounts_offset, self.table_size
                image._point_refcounts(*moved)
                self.table_size = moved[1] * image.cluster
                self.span(old, size, -1, QCOW2_HEADER_REFCOUNT_TABLE)
            else:
                for index in new:
                    at = image._refcounts_offset + 8 * index
                    image._write(self.offsets[index].to_bytes(8), at)

    def _place(self) -> tuple[list[int], tuple[int, int] | None]:
        """Give every new block a place, and the table where it cannot take them as it is.

        The indices of the new blocks, and offset and clusters of the new table, or None.
        """
        image = self._image
        new: list[int] = []
        moved: tuple[int, int] | None = None
        while True:
            # A block's own cluster may be the first of a further block.
            while missing := [index for index, offset in self.offsets.items() if not offset]:
                for index in missing:
                    self.offsets[index] = self.take(1) * image.cluster
                new += missing
            size = moved[1] * image.cluster if moved else self.table_size
            needed = 8 * (max(self.offsets) + 1)
            if needed <= size and (moved or not self._entangled(new)):
                return new, moved
            if moved:
                self.span(moved[0], size, -1, 0)
            room = size if needed <= size else needed + needed // 2
            clusters = _ceil(min(room, LIMIT_QCOW2_REFCOUNT_TABLE), image.cluster)
            if clusters * image.cluster < needed:
                detail = "the image would have too many reference counts"
                raise OSError(errno.EFBIG, detail, image.path)
            moved = self.take(clusters) * image.cluster, clusters

    def _entangled(self, new: list[int]) -> bool:
        """Whether new blocks are counted in each other: their entries have to appear together."""
        counted = (
            (index, (self.offsets[index] >> self._image._bits) // self._each) for index in new
        )
        return any(own != index and own in new for index, own in counted)

    def end(self) -> int:
        """Where the last cluster ends that is in use, in bytes."""
        for index in sorted(self.offsets, reverse=True):
            block = self._block(index)
            if used := _ceil(len(block.tobytes().rstrip(b"\0")), block.itemsize):
                return (index * self._each + used) * self._image.cluster
        return self._image.cluster


class StateWriter:
    """The VM state of a snapshot that is not there before ``commit``; ``Image.write_state``.

    ``size`` is where the furthest byte ends that was written.
    """

    def __init__(
        self,
        image: Image,
        refcounts: _Refcounts,
        l1: "array[int]",
        commit: "Callable[[array[int], int], None]",
    ) -> None:
        self._image: Final = image
        self._refcounts: Final = refcounts
        self._l1: Final = l1
        self._commit: Final = commit
        self._file_size: Final = image._size
        # Offset in the file of each whole cluster of VM state so far; the rest is gathered.
        self._hosts: array[int] = array("Q")
        self._gathered = bytearray()

    @property
    def _written(self) -> int:
        return len(self._hosts) * self._image.cluster

    @property
    def size(self) -> int:
        return self._written + len(self._gathered)

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` from byte ``position`` of the VM state on, which may have been written.

        What is passed over is zeros.  Raises ``OSError``, of EFBIG for more than an L1 table can
        describe.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        while position > self.size:
            self._append(memoryview(bytes(min(_RUN, position - self.size))))
        cluster = self._image.cluster
        while position < self._written and len(view):
            index, within = divmod(position, cluster)
            piece = view[: cluster - within]
            self._image._write(piece, self._hosts[index] + within)
            view, position = view[len(piece) :], position + len(piece)
        if position < self.size and len(view):
            within = position - self._written
            piece = view[: self.size - position]
            self._gathered[within : within + len(piece)] = piece
            view = view[len(piece) :]
        self._append(view)

    def _append(self, view: memoryview) -> None:
        if self._gathered:
            room = _RUN - len(self._gathered)
            self._gathered += view[:room]
            view = view[room:]
            if len(self._gathered) < _RUN:
                return
            full, self._gathered = self._gathered, bytearray()
            self._allocate(memoryview(full))
        whole = len(view) - len(view) % _RUN
        self._allocate(view[:whole])
        self._gathered += view[whole:]

    def _allocate(self, view: memoryview) -> None:
        """Write whole clusters to where there is room."""
        cluster = self._image.cluster
        count = len(self._hosts) + len(view) // cluster
        tables = _ceil(count, self._image._l2_entries)
        if 8 * (len(self._l1) + tables) > LIMIT_QCOW2_L1:
            raise OSError(errno.EFBIG, "more VM state than an L1 table describes", self._image.path)
        while len(view):
            run = self._refcounts.run(len(view) // cluster)
            size = len(run) * cluster
            self._image._write(view[:size], run.start * cluster)
            self._hosts.extend(range(run.start * cluster, run.stop * cluster, cluster))
            view = view[size:]

    def commit(self) -> Snapshot:
        """Make the snapshot.  The writer is of no more use, also after an error.

        Raises ``ValueError`` if there is no VM state, and otherwise as ``write``.
        """
        self._check_open()
        image = self._image
        size = self.size
        try:
            if not size:
                raise ValueError("a snapshot without VM state is not a saved machine")
            self._gathered += bytes(-size % image.cluster)
            self._allocate(memoryview(self._gathered))
            entries = image._l2_entries
            l1 = self._l1[:]
            for first in range(0, len(self._hosts), entries):
                hosts = self._hosts[first : first + entries]
                words = array("Q", bytes(image.cluster))
                words[: image._step * len(hosts) : image._step] = hosts
                if image._extended:
                    words[1 : 2 * len(hosts) : 2] = array("Q", [_ALL_ALLOCATED]) * len(hosts)
                offset = self._refcounts.take(1) * image.cluster
                image._write(_bytes(words), offset)
                l1.append(offset)
            self._commit(l1, size)
        finally:
            self.abandon()
        return image.snapshots()[-1]

    def _check_open(self) -> None:
        if self._image._writer is not self:
            raise RuntimeError("the VM state was committed or abandoned")

    def abandon(self) -> None:
        """Leave the image as it was; nothing once the snapshot is there."""
        if self._image._writer is self:
            self._image._writer = None
            # From then on the file's end may be in use.
            if not self._refcounts.begun:
                self._image._cut(self._file_size)
