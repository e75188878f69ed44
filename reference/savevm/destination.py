"""Where a stream goes, whatever it is wrapped in: the counterpart of ``source``."""

import bz2
import errno
import lzma
import os
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

# What only some outputs need is imported when they do.
if TYPE_CHECKING:
    from savevm.qcow2 import StateWriter

__all__ = [
    "COMPRESSIONS",
    "Destination",
    "FileDestination",
    "SnapshotDestination",
    "StandardDestination",
    "wrap",
]

COMPRESSIONS: Final = ("gzip", "bzip2", "xz", "lzop", "zstd")
_PROGRAMS: Final = {"lzop": ("lzop", "-c"), "zstd": ("zstd", "-qc")}
_ZSTD_MODULES: Final = ("compression.zstd", "backports.zstd")


class Destination:
    """Where the bytes of a stream are written, in order.

    A context manager: what was not ended by ``finish`` is given up, with nothing left of it where
    that can be.  Raises ``OSError``.
    """

    def write(self, data: bytes) -> None:
        """The next bytes."""
        raise NotImplementedError

    def finish(self) -> None:
        """All is written: let it be seen."""

    def close(self) -> None:
        """Give back what is held, and give up what was not finished."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FileDestination(Destination):
    """A file that takes its name only when it is whole; what has the name already, only if ``replace``.

    A new one is for its owner only.  What is no regular file, as a FIFO, is written at once.  ``part``
    is the path of what is being written, ``fd`` a descriptor of it.
    """

    def __init__(self, path: str, *, replace: bool = False) -> None:
        # What a symbolic link points to is replaced, not the link.
        self._path: Final = os.path.realpath(path)
        self._finished = False
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.direct: Final = found is not None and not stat.S_ISREG(found.st_mode)
        if self.direct:
            self.fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            self.part = self._path
            return
        if found is not None and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        directory, name = os.path.split(self._path)
        self.fd, self.part = tempfile.mkstemp(".part", f".{name[:100]}.", directory)
        if found is not None:
            os.fchmod(self.fd, stat.S_IMODE(found.st_mode))

    def write(self, data: bytes) -> None:
        _write_all(self.fd, data)

    def finish(self) -> None:
        if not self.direct:
            os.fsync(self.fd)
            os.replace(self.part, self._path)
        self._finished = True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if not self._finished and not self.direct:
                os.unlink(self.part)


class StandardDestination(Destination):
    """Standard output."""

    fd = 1

    def write(self, data: bytes) -> None:
        _write_all(self.fd, data)


class SnapshotDestination(Destination):
    """The VM state of a snapshot ``tag`` in the qcow2 image ``path``, made last.

    Raises ``StreamError``, ``FileExistsError`` and ``ValueError`` as ``Image`` and its
    ``write_state`` do; ``vm_clock`` and ``icount`` are as there.
    """

    def __init__(
        self,
        path: str,
        tag: str,
        *,
        replace: bool = False,
        vm_clock: int = 0,
        icount: int | None = None,
    ) -> None:
        from savevm.qcow2 import Image

        self._image: Final = Image(path, writable=True)
        self._position = 0
        try:
            self._writer: Final[StateWriter] = self._image.write_state(
                tag, replace=replace, vm_clock=vm_clock, icount=icount
            )
        except BaseException:
            self._image.close()
            raise

    def write(self, data: bytes) -> None:
        self._writer.write(self._position, data)
        self._position += len(data)

    def finish(self) -> None:
        self._writer.commit()

    def close(self) -> None:
        self._image.close()


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Packed(Destination):
    """Compressed on its way to another destination."""

    def __init__(self, inner: Destination, compressor: _Compressor) -> None:
        self._inner: Final = inner
        self._compressor: Final = compressor

    def write(self, data: bytes) -> None:
        self._inner.write(self._compressor.compress(data))

    def finish(self) -> None:
        self._inner.write(self._compressor.flush())
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


class _Piped(Destination):
    """Compressed by a program on its way to another destination."""

    def __init__(
        self, inner: FileDestination | StandardDestination, program: tuple[str, ...]
    ) -> None:
        self._inner: Final = inner
        self._program: Final = program[0]
        try:
            self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=inner.fd)
        except FileNotFoundError:
            inner.close()
            raise FileNotFoundError(
                errno.ENOENT, f"there is no program {program[0]!r} to compress with"
            ) from None

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if code := self._process.wait():
            raise OSError(errno.EIO, f"{self._program} ended with code {code}")
        self._inner.finish()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._inner.close()


def wrap(
    inner: FileDestination | StandardDestination, head: bytes = b"", compression: str | None = None
) -> Destination:
    """``inner`` with ``head`` before a stream that is compressed in a format of ``COMPRESSIONS``."""
    if head:
        inner.write(head)
    if compression is None:
        return inner
    make: dict[str, Callable[[], _Compressor]] = {
        "gzip": lambda: zlib.compressobj(wbits=16 + zlib.MAX_WBITS),
        "bzip2": bz2.BZ2Compressor,
        "xz": lzma.LZMACompressor,
    }
    if compression == "zstd":
        for module in _ZSTD_MODULES:
            try:
                make["zstd"] = import_module(module).ZstdCompressor
                break
            except ImportError:
                continue
    if compression in make:
        return _Packed(inner, make[compression]())
    return _Piped(inner, _PROGRAMS[compression])


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
