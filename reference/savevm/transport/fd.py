"""Descriptors: opened here, inherited, or handed over on a UNIX socket."""

import array
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from typing import Final

from savevm.channel import Data, Operations
from savevm.transport.address import Address, named

__all__ = ["Descriptor", "Transport", "receive_fd", "resolve", "send_fd", "start_of", "widen"]

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
STANDARD: Final = (0, 1, 2)
# What a pipe or a UNIX socket should hold, in bytes: its two ends then wait for each other less.
HELD: Final = 1 << 20
# Python has it only where the system has.
F_SETPIPE_SZ: Final = 1031


class Transport(Operations):
    """Operations on something that the system names.

    ``name`` is the address, ``reason`` words for what went wrong, empty while nothing did.
    With ``seekable`` a position is honoured, else everything goes in sequence.  What is not
    blocking answers -EAGAIN, and ``fileno`` is what to wait on.  ``close`` may wait for the other
    side, each transport says how long.
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.reason = ""
        self.seekable = False

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return -1


class Descriptor(Transport):
    """Operations on ``fd``.

    ``start`` is where the positions count from, in bytes, None for what has none (pipes, sockets,
    terminals).  ``owned`` closes the descriptor in the end; else it is left as it was found, its
    file offset behind what was moved.  ``blocking`` None leaves that as it is.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        start: int | None = None,
        owned: bool = True,
        blocking: bool | None = None,
    ) -> None:
        super().__init__(name)
        self.seekable = start is not None
        self._fd = fd
        self._start: Final = start or 0
        self._end = 0
        self._owned: Final = owned
        self._blocked: Final = os.get_blocking(fd)
        if blocking is not None:
            os.set_blocking(fd, blocking)

    def fileno(self) -> int:
        return self._fd

    def _failed(self, error: OSError) -> int:
        if not isinstance(error, BlockingIOError):
            self.reason = error.strerror or str(error)
        return -(error.errno or errno.EIO)

    def put_buffer(self, data: memoryview, position: int) -> int:
        try:
            if not self.seekable:
                return os.write(self._fd, data)
            count = os.pwrite(self._fd, data, self._start + position)
        except OSError as error:
            return self._failed(error)
        self._end = max(self._end, position + count)
        return count

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """As ``put_buffer``, of what lies in several places."""
        some = buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX]
        try:
            if not self.seekable:
                return os.writev(self._fd, some)
            count = os.pwritev(self._fd, some, self._start + position)
        except OSError as error:
            return self._failed(error)
        self._end = max(self._end, position + count)
        return count

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        try:
            if not self.seekable:
                return os.readv(self._fd, [buffer])
            count = os.preadv(self._fd, [buffer], self._start + position)
        except OSError as error:
            return self._failed(error)
        self._end = max(self._end, position + count)
        return count

    def get_bytes(self, size: int, position: int) -> bytes | int:
        """At most ``size`` bytes, b"" at the end of the input, or a negative errno."""
        try:
            if not self.seekable:
                return os.read(self._fd, size)
            data = os.pread(self._fd, size, self._start + position)
        except OSError as error:
            return self._failed(error)
        self._end = max(self._end, position + len(data))
        return data

    def close(self) -> int:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return 0
        try:
            if self.seekable:
                os.lseek(fd, self._start + self._end, os.SEEK_SET)
            if self._owned:
                os.close(fd)
            else:
                os.set_blocking(fd, self._blocked)
        except OSError as error:
            return self._failed(error)
        return 0


def widen(fd: int) -> None:
    """Have ``fd``, if it is a pipe, hold more, as far as the system allows."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_SETPIPE_SZ, HELD)


def start_of(fd: int, *, writing: bool) -> int | None:
    """Where in its file ``fd`` stands, None where that means nothing."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    # Appending has the kernel ignore every position.
    if writing and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        return None
    return os.lseek(fd, 0, os.SEEK_CUR)


def resolve(
    address: Address, *, writing: bool, fds: MutableMapping[str, int] | None = None
) -> tuple[int, bool]:
    """The descriptor that an "fd" or "standard" address means, and whether it is ours to close.

    A name is taken out of ``fds``.  Standard input, output and error are never ours.  Raises
    ``OSError``: ENOENT for a name that was not received, EBADF for what is not open that way.
    """
    if address.scheme == "standard":
        fd = 1 if writing else 0
    elif address.target.isascii() and address.target.isdigit():
        fd = int(address.target) if len(address.target) < 10 else -1
    elif fds is not None and address.target in fds:
        fd = fds.pop(address.target)
    else:
        raise FileNotFoundError(errno.ENOENT, "no descriptor of that name", str(address))
    try:
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, ValueError):
        raise OSError(errno.EBADF, "not an open descriptor", str(address)) from None
    if access not in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        wanted = "writing" if writing else "reading"
        raise OSError(errno.EBADF, f"not open for {wanted}", str(address))
    return fd, fd not in STANDARD


def send_fd(channel: socket.socket, fd: int, data: bytes = b" ") -> None:
    """Hand ``fd`` over on the UNIX socket ``channel``; it goes with ``data``, at least one byte.

    The sender keeps its own.  Raises ``OSError``.
    """
    rights = array.array("i", [fd])
    sent = channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    if sent < len(data):
        channel.sendall(data[sent:])


def receive_fd(channel: socket.socket, size: int = 4096) -> tuple[int, bytes]:
    """A descriptor that was handed over on ``channel``, and the data it came with.

    At most ``size`` bytes of data.  Raises ``ConnectionError`` where the peer has closed, and
    ``OSError`` (EBADMSG) where anything but one descriptor comes, which leaves none open.
    """
    room = socket.CMSG_SPACE(array.array("i").itemsize)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, messages, answer, _ = channel.recvmsg(size, room, flags)
    fds = array.array("i")
    for level, kind, rights in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
    if len(fds) == 1 and not answer & socket.MSG_CTRUNC:
        os.set_inheritable(fds[0], False)
        return fds[0], data
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, "closed before a descriptor came")
    raise OSError(errno.EBADMSG, f"one descriptor was to come, not {len(fds) or 'none'}")


def open_fd(address: Address, fd: int, *, writing: bool, owned: bool, blocking: bool) -> Descriptor:
    """Operations on the descriptor that ``resolve`` gave; raises ``OSError``."""
    try:
        start = start_of(fd, writing=writing)
        widen(fd)
        # A channel copes with what is not blocking; others may share what is.
        return Descriptor(
            fd, str(address), start=start, owned=owned, blocking=None if blocking else False
        )
    except OSError as error:
        raise named(error, address) from error
