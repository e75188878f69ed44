"""Streams that a compressor wrote: what they are, and what they hold.

gzip, bzip2 and xz by the standard library, zstd by it (since Python 3.14), by the package
``backports.zstd`` or by the program ``zstd``, lzop by its program.
"""

import bz2
import lzma
import os
import re
import selectors
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Final, NamedTuple, Protocol

from savevm.errors import StreamError, stream_error
from savevm.stream.events import Finding
from savevm_spec.constants import LIMIT_DECOMPRESSOR

__all__ = ["MAGIC_SIZE", "Missing", "compression", "decompressed"]

# Output pieces in bytes, at most.
_OUTPUT: Final = 256 << 10
# Input pieces: an error is located to within one.
_INPUT: Final = 16 << 10


class Missing(Exception):
    """Nothing here decompresses the format."""


class _Decompressor(Protocol):
    """One member (stream, frame) of compressed data; ``bz2`` and ``lzma`` have it of themselves."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # A full piece may have left output in the decompressor without any input.
        self.needs_input = len(found) < max_length
        return found


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LIMIT_DECOMPRESSOR)


def _zstd_module() -> str | None:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            import_module(name)
        except ImportError:
            continue
        return name
    return None


def _zstd() -> _Decompressor:
    module = import_module(_zstd_module() or "")
    window = {module.DecompressionParameter.window_log_max: LIMIT_DECOMPRESSOR.bit_length() - 1}
    decompressor: _Decompressor = module.ZstdDecompressor(options=window)
    return decompressor


class _Format(NamedTuple):
    """``magics`` begin a member; ``program`` decompresses its input to its output."""

    magics: tuple[bytes, ...]
    make: Callable[[], _Decompressor] | None
    program: tuple[str, ...]


_FORMATS: Final = {
    "gzip": _Format((b"\x1f\x8b",), _Gzip, ()),
    "bzip2": _Format((b"BZh",), bz2.BZ2Decompressor, ()),
    "xz": _Format((b"\xfd7zXZ\0",), _xz, ()),
    "lzop": _Format((b"\x89LZO\0\r\n\x1a\n",), None, ("lzop", "-dc", "--ignore-warn")),
    "zstd": _Format((b"\x28\xb5\x2f\xfd",), _zstd, ("zstd", "-dcq")),
}
# What programs say of damage, and what they put before it.
_DAMAGE: Final = re.compile(
    "corrupt|violation|checksum|memory|too large|larger|not a |unsupported|unknown", re.IGNORECASE
)
_PREFIX: Final = re.compile(r"^(\w+: )?((<stdin>|/\*stdin\*\\ ?): ?)?")
# A frame of zstd without content; one may follow others.
_ZSTD_SKIPPABLE: Final = tuple(bytes((i, 0x2A, 0x4D, 0x18)) for i in range(0x50, 0x60))
MAGIC_SIZE: Final = max(len(magic) for format in _FORMATS.values() for magic in format.magics)


def compression(head: bytes) -> str | None:
    """The format of compressed data by its first ``MAGIC_SIZE`` bytes."""
    return next((name for name, f in _FORMATS.items() if head.startswith(f.magics)), None)


class _Input:
    """Pieces of bytes from ``position`` of the file on."""

    def __init__(self, pieces: Iterator[bytes], position: int) -> None:
        self._pieces = pieces
        self._rest = b""
        self._start = 0
        self.position = position

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or as many as there are."""
        while len(self._rest) - self._start < count and (piece := next(self._pieces, b"")):
            self._rest = self._rest[self._start :] + piece
            self._start = 0
        return self._rest[self._start : self._start + count]

    def take(self) -> bytes:
        """Some of what comes next; nothing at the end."""
        piece = self.peek(1) and self._rest[self._start : self._start + _INPUT]
        self._move(len(piece))
        return piece

    def put_back(self, count: int) -> None:
        """The last ``count`` bytes were not wanted."""
        self._move(-count)

    def _move(self, count: int) -> None:
        self._start += count
        self.position += count


def _refused(name: str, position: int, why: str) -> StreamError:
    # Only the decompressors' words tell one from the other.
    rule = "limit.decompressor" if "memory" in why.lower() else "envelope.compressed.data"
    return stream_error(rule, position, None, f"{name}: {why}")


def _ended(name: str, position: int) -> StreamError:
    detail = f"the input ends within {name} data"
    return stream_error("envelope.compressed.truncated", position, None, detail)


def decompressed(
    name: str, pieces: Iterator[bytes], offset: int, findings: list[Finding]
) -> Iterator[bytes]:
    """What ``pieces``, from ``offset`` of the file on, hold, in pieces of at most 256 KiB.

    ``name`` is a format of libvirt.  Raises ``StreamError`` (``envelope.compressed.*``,
    ``limit.decompressor``, with the offset in the file) and ``Missing``.
    """
    format = _FORMATS[name]
    input = _Input(pieces, offset)
    if format.make is not None and (name != "zstd" or _zstd_module()):
        return _by_library(name, format.make, input, findings)
    return _by_program(name, format.program, input)


def _by_library(
    name: str, make: Callable[[], _Decompressor], input: _Input, findings: list[Finding]
) -> Iterator[bytes]:
    magics = _FORMATS[name].magics + (_ZSTD_SKIPPABLE if name == "zstd" else ())
    while True:
        yield from _member(name, make(), input)
        head = input.peek(MAGIC_SIZE)
        if not head:
            return
        if not head.startswith(magics):
            detail = f"bytes behind the {name} data"
            findings.append(
                Finding(input.position, "envelope.compressed.trailing-data", None, detail)
            )
            return


def _member(name: str, decompressor: _Decompressor, input: _Input) -> Iterator[bytes]:
    while not decompressor.eof:
        piece = b""
        if decompressor.needs_input and not (piece := input.take()):
            raise _ended(name, input.position)
        try:
            found = decompressor.decompress(piece, _OUTPUT)
        # bz2 raises OSError, and zstd an exception of its own.
        except Exception as error:
            why = str(error) or type(error).__name__
            raise _refused(name, input.position, why) from None
        if found:
            yield found
    input.put_back(len(decompressor.unused_data))


def _by_program(name: str, program: tuple[str, ...], input: _Input) -> Iterator[bytes]:
    # Programs take what ends within the magic for something else.
    (magic,) = _FORMATS[name].magics
    if len(head := input.peek(len(magic))) < len(magic) and magic.startswith(head):
        raise _ended(name, input.position + len(head))
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                bufsize=0,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise Missing(f"{name} data needs the program {program[0]!r}") from None
        try:
            yield from _fed(process, input)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        if code:
            complaints.seek(0)
            said = complaints.read(4096).decode("utf-8", "replace").partition("\n")[0]
            # lzop says of input that ends early whatever errno happens to be.
            if code > 0 and not input.peek(1) and not _DAMAGE.search(said):
                raise _ended(name, input.position)
            why = _PREFIX.sub("", said).strip() or f"{program[0]} ended with code {code}"
            raise _refused(name, input.position, why)


def _fed(process: "subprocess.Popen[bytes]", input: _Input) -> Iterator[bytes]:
    """The output of ``process`` while it is given ``input``: neither waits for the other."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    os.set_blocking(stdin.fileno(), False)
    pending = memoryview(b"")
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stdin, selectors.EVENT_WRITE)
        while True:
            for key, _ in selector.select():
                if key.fileobj is stdout:
                    if not (found := os.read(stdout.fileno(), _OUTPUT)):
                        return
                    yield found
                    continue
                pending = pending or memoryview(input.take())
                try:
                    done = os.write(stdin.fileno(), pending) if pending else 0
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    # It has ended, and says why by its exit code.
                    done = 0
                pending = pending[done:]
                if not done:
                    selector.unregister(stdin)
                    stdin.close()
