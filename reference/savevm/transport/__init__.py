"""What channels stand on: files, descriptors, sockets, TLS, commands, memory.

``open_input`` and ``open_output`` give a channel's operations for an address; ``listen`` waits for
who connects.
"""

import contextlib
import errno
import os
from collections.abc import MutableMapping
from types import TracebackType
from typing import Final

from savevm.transport.address import Address
from savevm.transport.exec import GRACE, Command
from savevm.transport.fd import Descriptor, Transport, open_fd, receive_fd, resolve, send_fd
from savevm.transport.file import open_file
from savevm.transport.memory import MemoryInput, MemoryOutput
from savevm.transport.socket import BACKLOG, Listener, Socket, adopt, connect
from savevm.transport.tls import Credentials, Tls, TlsError, over

__all__ = [
    "Address",
    "Command",
    "Credentials",
    "Descriptor",
    "Listening",
    "MemoryInput",
    "MemoryOutput",
    "Socket",
    "Tls",
    "TlsError",
    "Transport",
    "listen",
    "open_input",
    "open_output",
    "receive_fd",
    "send_fd",
]


class Listening:
    """Who connects to ``address``, which has the port that the system chose.

    A context manager: closes, and removes a UNIX socket.
    """

    def __init__(self, listener: Listener, tls: Credentials | None) -> None:
        self.address: Final = listener.address
        self._listener: Final = listener
        self._tls: Final = tls

    def fileno(self) -> int:
        """The descriptor, readable when someone connects; -1 once closed."""
        return self._listener.fileno()

    def accept(self, *, timeout: float | None = None, blocking: bool = True) -> Transport:
        """Operations on the next connection, in both directions; with TLS, as its server.

        ``timeout`` in seconds, for the connection and then for a handshake.  Raises ``OSError``
        (TimeoutError; BlockingIOError for a timeout of 0) and ``TlsError``.
        """
        connection = self._listener.accept(timeout)
        return over(
            connection,
            self.address,
            self._tls,
            server=True,
            # Who need not wait for a connection has to for a handshake.
            timeout=timeout or None,
            blocking=blocking,
        )

    def admit(self) -> Transport:
        """As ``accept``, but nothing is waited for: with TLS, ``Tls.secure`` is still to be called."""
        return over(
            self._listener.accept(0),
            self.address,
            self._tls,
            server=True,
            blocking=False,
            handshake=False,
        )

    def close(self) -> None:
        """Listen no more; what was accepted stays."""
        self._listener.close()

    def __enter__(self) -> "Listening":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def listen(
    address: Address | str, *, tls: Credentials | None = None, backlog: int = BACKLOG
) -> Listening:
    """Listen on a "tcp" or "unix" address.

    A port of 0 lets the system choose.  A UNIX socket that nobody listens on any more is replaced.
    Raises ``OSError``; credentials that cannot be used are refused here, before anyone connects.
    """
    place = Address.parse(address) if isinstance(address, str) else address
    if place.scheme not in ("tcp", "unix"):
        raise OSError(errno.EINVAL, "not an address to listen on", str(place))
    if tls is not None:
        tls.context(server=True)
    return Listening(Listener(place, backlog), tls)


def _open(
    address: Address | str,
    *,
    writing: bool,
    listening: bool,
    tls: Credentials | None,
    fds: MutableMapping[str, int] | None,
    timeout: float | None,
    blocking: bool,
    grace: float,
) -> Transport:
    place = Address.parse(address) if isinstance(address, str) else address
    if place.scheme in ("tcp", "unix"):
        if listening:
            with listen(place, tls=tls, backlog=1) as listener:
                return listener.accept(timeout=timeout, blocking=blocking)
        connection = connect(place, timeout)
        return over(connection, place, tls, server=False, timeout=timeout, blocking=blocking)
    if place.scheme in ("fd", "standard"):
        fd, owned = resolve(place, writing=writing, fds=fds)
        if owned and (adopted := adopt(fd)) is not None:
            # Whoever handed it over connected it: who writes is the client, as in QEMU.
            return over(
                adopted,
                place,
                tls,
                server=not writing,
                timeout=timeout,
                blocking=blocking,
            )
        if tls is None:
            return open_fd(place, fd, writing=writing, owned=owned, blocking=blocking)
        if owned:
            with contextlib.suppress(OSError):
                os.close(fd)
    if tls is not None:
        raise TlsError(errno.ENOTSOCK, "TLS needs a socket", str(place))
    if place.scheme == "exec":
        return Command(place, writing=writing, blocking=blocking, grace=grace)
    return open_file(place, writing=writing, blocking=blocking)


def open_input(
    address: Address | str,
    *,
    listening: bool = True,
    tls: Credentials | None = None,
    fds: MutableMapping[str, int] | None = None,
    timeout: float | None = None,
    blocking: bool = True,
    grace: float = GRACE,
) -> Transport:
    """Operations that read from ``address``.

    ``listening``: a socket waits for one connection, as ``-incoming`` does, rather than connect;
    who accepts is the server of TLS.  ``fds`` are descriptors that were handed over, by name; the
    one that is used is taken out.  ``timeout`` in seconds, for connecting and for a handshake (None:
    no limit, and 30).  ``grace`` in seconds, for a command to end.  Raises ``OSError`` that names the
    address; ``TlsError``.
    """
    return _open(
        address,
        writing=False,
        listening=listening,
        tls=tls,
        fds=fds,
        timeout=timeout,
        blocking=blocking,
        grace=grace,
    )


def open_output(
    address: Address | str,
    *,
    listening: bool = False,
    tls: Credentials | None = None,
    fds: MutableMapping[str, int] | None = None,
    timeout: float | None = None,
    blocking: bool = True,
    grace: float = GRACE,
) -> Transport:
    """Operations that write to ``address``; as ``open_input``, but a socket connects.

    A file is cut off at its offset; what lies before stays.
    """
    return _open(
        address,
        writing=True,
        listening=listening,
        tls=tls,
        fds=fds,
        timeout=timeout,
        blocking=blocking,
        grace=grace,
    )
