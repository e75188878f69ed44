"""Files, standard input and pipes as sources of a stream, whatever it is wrapped in."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from savevm.errors import StreamError, stream_error
from savevm.stream.events import Finding
from savevm.vmdesc import Description, find_description
from savevm_spec.constants import (
    LIBVIRT_HEADER_SIZE,
    LIBVIRT_MAGIC,
    LIMIT_DESCRIPTION_WINDOW,
    MAGIC,
    QCOW2_MAGIC,
)

# What only some inputs need is imported when they do: most are bare streams.
if TYPE_CHECKING:
    from savevm.envelope.libvirt import LibvirtImage
    from savevm.qcow2 import Image, Snapshot

__all__ = ["Envelope", "Source", "SourceError"]

# Larger reads are slower: the chunk falls out of the processor's cache before it is looked at.
CHUNK: Final = 256 << 10
# Enough to tell every kind of input.
_MAGIC_SIZE: Final = 16

_BARE: Final = MAGIC.to_bytes(4)
_QCOW2: Final = QCOW2_MAGIC.to_bytes(4)
# Save and Part differ behind it.
_LIBVIRT: Final = LIBVIRT_MAGIC[:12]
# What holds state of a QEMU, but no stream that can be had from it here.
_OTHERS: Final = {
    b"LibxlFmt": "a Xen save image (libxl), not a QEMU stream",
    b"QCPR": "the file of a CPR channel, which goes beside a stream",
    b"\x11\x22\x33\x44": "a multifd channel, which goes beside a stream",
}


class SourceError(Exception):
    """Nothing is wrong with the input, but it cannot be read like this; the text says why."""


class Envelope(NamedTuple):
    """What a stream comes wrapped in.

    ``compression`` is a format of libvirt ("gzip" …) or None; ``libvirt`` and ``snapshot`` belong to
    the kind of that name and to "qcow2".
    """

    kind: Literal["libvirt", "compressed", "qcow2"]
    compression: str | None = None
    libvirt: "LibvirtImage | None" = None
    snapshot: "Snapshot | None" = None

    def jsonable(self) -> dict[str, Any]:
        """All of it as JSON; dates and clocks in nanoseconds, sizes in bytes."""
        result: dict[str, Any] = {"kind": self.kind, "compression": self.compression}
        if self.libvirt is not None:
            result["libvirt"] = self.libvirt.jsonable()
        if self.snapshot is not None:
            names = ("id", "name", "date", "vm_clock", "vm_state_size", "disk_size", "icount")
            result["snapshot"] = {name: getattr(self.snapshot, name) for name in names}
        return result


class Source:
    """An open input.  ``name`` is a path or ``-``; ``snapshot`` a name or id in a disk image.

    A bare stream, a save image of libvirt, compressed data or a qcow2 image with VM state.  Raises
    ``OSError`` as ``open`` does, and ``SourceError``; what is wrong with the envelope is raised by
    ``chunks``.

    ``size`` in bytes of the stream; None where only reading tells (pipes, compressed data).
    ``envelope`` is None for a bare stream.  ``findings`` are broken rules of the envelope, complete
    when all chunks have been read; their offsets, and those of its errors, are in the file.
    """

    def __init__(self, name: str, snapshot: str | None = None) -> None:
        self.name: Final = name
        self.envelope: Envelope | None = None
        self.findings: list[Finding] = []
        self.size: int | None = None
        self._fd: Final = 0 if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        self._image: Image | None = None
        self._read: Callable[[int, int], bytes] = self._read_file
        self._error: StreamError | None = None
        # What has been read ahead where nothing can be read twice.
        self._head = b""
        # Where the stream, or what it is compressed to, begins in the file.
        self._start = 0
        try:
            status = os.fstat(self._fd)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if stat.S_ISREG(status.st_mode) and os.lseek(self._fd, 0, os.SEEK_CUR) == 0:
                self.size = status.st_size
            try:
                self._unwrap(snapshot)
            except StreamError as error:
                self._error = error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the input, unless it is standard input."""
        if self._image is not None:
            self._image.close()
        if self._fd:
            os.close(self._fd)

    # What it is

    def _unwrap(self, snapshot: str | None) -> None:
        head = self._peek(_MAGIC_SIZE)
        if head.startswith(_QCOW2):
            self._unwrap_qcow2(snapshot)
            return
        if snapshot is not None:
            raise SourceError("only disk images have snapshots")
        if head.startswith(_BARE):
            return
        if head.startswith(_LIBVIRT):
            self._unwrap_libvirt()
            return
        from savevm.envelope.compressed import compression

        if (format := compression(head)) is not None:
            self.envelope = Envelope("compressed", format)
            self.size = None
            return
        for magic, what in _OTHERS.items():
            if head.startswith(magic):
                raise stream_error("header.magic", 0, None, f"this is {what}")

    def _unwrap_libvirt(self) -> None:
        from savevm.envelope.libvirt import read, stream_offset

        start = stream_offset(self._peek(LIBVIRT_HEADER_SIZE))
        image = read(self._peek(start))
        self.findings += image.findings
        compression = None if image.format in ("raw", "sparse") else image.format
        self.envelope = Envelope("libvirt", compression, image)
        self._start = start
        if self.size is None:
            self._head = self._head[start:]
        else:
            os.lseek(self._fd, start, os.SEEK_SET)
            self.size = None if compression else self.size - start

    def _unwrap_qcow2(self, tag: str | None) -> None:
        from savevm.qcow2 import Image

        if self.name == "-" and self.size is None:
            raise SourceError("a disk image cannot be read from a pipe")
        self.size = None
        self._image = image = Image("/dev/stdin" if self.name == "-" else self.name)
        if tag is not None:
            snapshot = image.find(tag)
        else:
            snapshots = [s for s in image.snapshots() if s.vm_state_size]
            if len(snapshots) != 1:
                tags = ", ".join(repr(s.name or s.id) for s in snapshots)
                raise SourceError(
                    f"which snapshot? with VM state are {tags}"
                    if tags
                    else "no snapshot in the disk image has VM state"
                )
            snapshot = snapshots[0]
        if not snapshot.vm_state_size:
            raise SourceError(f"snapshot {snapshot.name or snapshot.id!r} is of the disk only")
        self.envelope = Envelope("qcow2", snapshot=snapshot)
        self.size = snapshot.vm_state_size
        self._read = partial(image.read_state, snapshot)

    # The bytes

    def _peek(self, count: int) -> bytes:
        """The first ``count`` bytes of the input, or all there are."""
        if self.size is not None:
            return self._read_file(0, count)
        pieces = [self._head]
        missing = count - len(self._head)
        while missing > 0 and (piece := os.read(self._fd, missing)):
            pieces.append(piece)
            missing -= len(piece)
        self._head = b"".join(pieces)
        return self._head[:count]

    def _read_file(self, start: int, count: int) -> bytes:
        """``count`` bytes of the file from ``start`` on, or all there are."""
        pieces = []
        while count > 0 and (piece := os.pread(self._fd, count, start)):
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def description(self) -> Description | None:
        """The VMDESCRIPTION at the end of a stream whose size is known; None where there is none."""
        if self.size is None or self._error is not None:
            return None
        try:
            for window in (1 << 17, 1 << 21, LIMIT_DESCRIPTION_WINDOW + 1):
                start = max(0, self.size - window)
                found = find_description(self._read(self._start + start, self.size - start))
                if found is not None or start == 0:
                    return found
        except StreamError as error:
            self._error = error
        return None

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the stream, in order; once.

        Raises ``StreamError`` (``envelope.*``, ``limit.*``, ``header.magic``) where the envelope
        breaks a rule, and ``SourceError`` for a compression that nothing here reads.
        """
        if self._error is not None:
            raise self._error
        if self._image is not None:
            return self._vm_state()
        if self.envelope is None or self.envelope.compression is None:
            return self._plain()
        return self._decompressed(self.envelope.compression)

    def _plain(self) -> Iterator[bytes]:
        if self._head:
            yield self._head
        while chunk := os.read(self._fd, CHUNK):
            yield chunk

    def _vm_state(self) -> Iterator[bytes]:
        position = 0
        while chunk := self._read(position, CHUNK):
            yield chunk
            position += len(chunk)

    def _decompressed(self, format: str) -> Iterator[bytes]:
        from savevm.envelope.compressed import Missing, decompressed

        try:
            yield from decompressed(format, self._plain(), self._start, self.findings)
        except Missing as error:
            raise SourceError(str(error)) from None
