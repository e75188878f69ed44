"""TCP and UNIX sockets: connecting, listening, and what goes through."""

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from savevm.channel import Data
from savevm.transport.address import Address, named
from savevm.transport.fd import HELD, Descriptor

__all__ = ["Listener", "Socket", "adopt", "connect", "leave", "tune"]

BACKLOG: Final = 128
# Seconds between two attempts to connect.
PAUSE: Final = 0.01
# The most that is looked at, in bytes, to close without a reset.
DRAINED: Final = 4 << 20


def tune(connection: socket.socket) -> None:
    """Have TCP not wait for more, as what comes to it was gathered before, and UNIX hold more."""
    with contextlib.suppress(OSError):
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HELD)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def leave(connection: socket.socket) -> None:
    """End what was written, and take what has come in and will not be read; then it can be closed.

    Closing over it would reset the connection, and with it go bytes that the peer has not read yet.
    """
    left = DRAINED
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.setblocking(False)
        while left > 0 and (count := len(connection.recv(1 << 16))):
            left -= count


class Socket(Descriptor):
    """Operations on a connected socket, which is then theirs."""

    def __init__(
        self, connection: socket.socket, name: str, *, blocking: bool | None = True
    ) -> None:
        self._socket: Final = connection
        self._written = False
        super().__init__(connection.fileno(), name)
        # Not by the descriptor: the object would go on waiting on its own.
        if blocking is not None:
            connection.setblocking(blocking)
        tune(connection)

    def put_buffer(self, data: memoryview, position: int) -> int:
        self._written = True
        return super().put_buffer(data, position)

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """As ``put_buffer``, of what lies in several places."""
        self._written = True
        return super().put_buffers(buffers, position)

    def shutdown(self) -> int:
        """End the connection under whoever waits on it, in both directions; 0 or a negative errno."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            return self._failed(error)
        return 0

    def close(self) -> int:
        if self._fd < 0:
            return 0
        self._fd = -1
        try:
            if self._written:
                leave(self._socket)
            self._socket.close()
        except OSError as error:
            return self._failed(error)
        return 0


def _unix(address: Address) -> str:
    """What the system calls a UNIX address."""
    target = address.target
    return "\0" + target[1:] if target.startswith("@") else target


def _socket_error(error: Exception, address: Address) -> OSError:
    """What a socket call raised: some addresses it finds wrong in ways that have no errno."""
    if isinstance(error, OSError):
        # Of a path that is too long it only says so.
        number = error.errno or (0 if isinstance(error, TimeoutError) else errno.ENAMETOOLONG)
        if number:
            error = OSError(number, error.strerror or str(error))
        return named(error, address)
    return OSError(errno.EINVAL, f"bad address: {error}", str(address))


def connect(address: Address, timeout: float | None = None) -> socket.socket:
    """A blocking socket connected to a "tcp" or "unix" address.

    Every address that a host has is tried, ``timeout`` seconds each.  Raises ``OSError``.
    """
    try:
        if address.scheme == "tcp":
            connection = socket.create_connection((address.target or None, address.port), timeout)
        else:
            connection = _connect_unix(address, timeout)
    except (OSError, UnicodeError) as error:
        raise _socket_error(error, address) from error
    connection.settimeout(None)
    return connection


def adopt(fd: int) -> socket.socket | None:
    """The socket that ``fd`` is, which then closes it; None where it is anything else."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    return socket.socket(fileno=fd)


def _connect_unix(address: Address, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        began = time.monotonic()
        while True:
            try:
                connection.connect(_unix(address))
                return connection
            except BlockingIOError:
                # With a timeout, a backlog that is full is not waited for.
                if timeout is not None and time.monotonic() - began >= timeout:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
                time.sleep(PAUSE)
    except BaseException:
        connection.close()
        raise


class Listener:
    """Listens on a "tcp" or "unix" address.

    ``address`` is where, with the port that the system chose.  A UNIX socket that nobody listens on
    any more is replaced, and removed when closing.  Raises ``OSError``.
    """

    def __init__(self, address: Address, backlog: int = BACKLOG) -> None:
        self._path: str | None = None
        self._file: tuple[int, int] | None = None
        try:
            if address.scheme == "tcp":
                self._socket = _listen_tcp(address, backlog)
                address = Address("tcp", address.target, self._socket.getsockname()[1])
            else:
                self._socket = _listen_unix(address, backlog)
                if not address.target.startswith("@"):
                    self._path = os.path.abspath(address.target)
                    self._file = _identity(self._path)
        except (OSError, UnicodeError) as error:
            raise _socket_error(error, address) from error
        self.address: Final = address

    def fileno(self) -> int:
        """The descriptor, readable when someone connects; -1 once closed."""
        return self._socket.fileno()

    def accept(self, timeout: float | None = None) -> socket.socket:
        """A blocking socket, of the next who connects within ``timeout`` seconds.

        Raises ``OSError``: TimeoutError where nobody does, BlockingIOError for a timeout of 0.
        """
        try:
            self._socket.settimeout(timeout)
            connection, _ = self._socket.accept()
        except OSError as error:
            raise named(error, self.address) from error
        connection.settimeout(None)
        return connection

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
        if self._path is not None and _identity(self._path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._path = None

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _listen_tcp(address: Address, backlog: int) -> socket.socket:
    if not address.target:
        both = socket.has_dualstack_ipv6()
        return socket.create_server(
            ("", address.port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=backlog,
            dualstack_ipv6=both,
        )
    found = socket.getaddrinfo(
        address.target, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    failure: OSError | None = None
    for family, _, _, _, place in found:
        try:
            return socket.create_server((place[0], place[1]), family=family, backlog=backlog)
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


def _listen_unix(address: Address, backlog: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        try:
            listening.bind(_unix(address))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _abandoned(address):
                raise
            os.unlink(address.target)
            listening.bind(_unix(address))
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def _abandoned(address: Address) -> bool:
    """Whether a UNIX address is a socket that nobody listens on."""
    if address.target.startswith("@") or not stat.S_ISSOCK(os.lstat(address.target).st_mode):
        return False
    # Of the other type, as one that connected would be taken for who is waited for.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
        return trial.connect_ex(address.target) == errno.ECONNREFUSED
