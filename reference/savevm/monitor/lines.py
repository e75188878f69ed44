"""Byte streams between the machine's process and others: terminals, pipes, files, sockets.

A ``Backend`` is what QEMU calls a character device: it is opened once and gives its *front end*,
which is a monitor or a console, a ``Line`` for every connection.  ``Mux`` lets several front ends
share one, as ``-nographic`` does.
"""

import array
import asyncio
import contextlib
import os
import select
import socket
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from savevm.transport.address import Address
from savevm.transport.socket import Listener, connect

__all__ = [
    "Backend",
    "FileBackend",
    "FrontEnd",
    "Line",
    "Mux",
    "NullBackend",
    "Port",
    "SocketBackend",
    "StdioBackend",
]

# Bytes that are kept for a peer that does not read; a monitor's is disconnected when it has more.
HELD_MAX: Final = 1 << 20
# Connections of one backend at a time, and descriptors that come with one message.
PEERS_MAX: Final = 16
FDS_MAX: Final = 16
# What can always be written to a descriptor that is ready.
PIECE: Final = select.PIPE_BUF
# Seconds that what was written last has to get out.
LINGER: Final = 1.0


class Port(Protocol):
    """What a front end sees of its peer.

    ``lasting``: who sends no more may still read, as of standard input and output; a socket is closed
    when that is over.
    """

    @property
    def lasting(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class FrontEnd(Protocol):
    """What is at this end of a backend.  Descriptors that ``received`` gets are its to close.

    ``impatient``: a peer that leaves more than ``HELD_MAX`` bytes unread is disconnected; else it
    misses what comes then.
    """

    impatient: bool

    def opened(self, port: Port) -> None: ...
    def received(self, port: Port, data: bytes, fds: list[int]) -> None: ...

    def ended(self, port: Port) -> None:
        """The peer sends no more; the front end closes the port when it has nothing to say."""

    def closed(self, port: Port) -> None: ...


class Line:
    """A connection: reads from ``source`` and writes to ``sink``, one descriptor or two, -1 for none.

    They are left in the mode they have, as they may be shared, unless they are those of a
    ``connection``, which is then the line's.  ``start`` begins; ``gone`` is called in the end.
    """

    def __init__(
        self,
        front: FrontEnd,
        source: int,
        sink: int,
        connection: socket.socket | None = None,
        gone: "Callable[[Line], None] | None" = None,
    ) -> None:
        self._front: Final = front
        self._source = source
        self._sink = sink
        self._socket: Final = connection
        self._gone: Final = gone
        self._held = bytearray()
        self._reading = False
        self._writing = False
        self._paused = False
        self._loop: Final = asyncio.get_running_loop()
        self.closed = False
        self._closing = False
        if connection is not None:
            connection.setblocking(False)

    def start(self) -> None:
        """Have the front end say what it has to say first, and read."""
        self._front.opened(self)
        self.resume()

    @property
    def lasting(self) -> bool:
        """Whether what is read and what is written are two things."""
        return self._socket is None

    # Reading

    def pause(self) -> None:
        """Read no more until ``resume``."""
        self._paused = True
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._source)

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self.closed or self._closing or self._reading or self._source < 0:
            return
        try:
            self._loop.add_reader(self._source, self._read)
            self._reading = True
        except PermissionError:
            # A regular file is always ready.
            self._loop.call_soon(self._read_file)

    def _read_file(self) -> None:
        if not self._paused and not self.closed:
            self._read()
            if not self._paused:
                self._loop.call_soon(self._read_file)

    def _read(self) -> None:
        fds: list[int] = []
        try:
            if self._socket is not None:
                data, fds = _receive(self._socket)
            else:
                data = os.read(self._source, PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._front.received(self, data, fds)
            return
        for fd in fds:
            os.close(fd)
        self.pause()
        self._source = -1
        self._front.ended(self)

    # Writing

    def write(self, data: bytes) -> None:
        """Write ``data``, as the peer takes it."""
        if self.closed or self._sink < 0:
            return
        if len(self._held) > HELD_MAX:
            if self._front.impatient:
                self.end()
            return
        self._held += data
        if not self._writing:
            self._write()

    def _write(self) -> None:
        """Write what is held, as far as it goes without waiting."""
        try:
            while self._held and _writable(self._sink):
                self._put()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.end()
            return
        if self._closing and not self._held:
            self.end()
        elif bool(self._held) != self._writing:
            self._writing = bool(self._held)
            if self._writing:
                self._loop.add_writer(self._sink, self._write)
            else:
                self._loop.remove_writer(self._sink)

    def _put(self) -> None:
        if self._socket is not None:
            count = self._socket.send(self._held)
        else:
            count = os.write(self._sink, bytes(self._held[:PIECE]))
        del self._held[:count]

    def close(self) -> None:
        """End the connection once what is held is written, within ``LINGER`` seconds."""
        if self.closed or self._closing:
            return
        self.pause()
        self._closing = True
        if self._held:
            self._loop.call_later(LINGER, self.end)
        else:
            self.end()

    def end(self, *, wait: bool = False) -> None:
        """End the connection now; ``wait``: for what is held to be written, as ``close``."""
        if self.closed:
            return
        self.pause()
        self.closed = True
        if self._writing:
            self._loop.remove_writer(self._sink)
        until = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            while wait and self._held and _writable(self._sink, until - time.monotonic()):
                self._put()
        self._held.clear()
        if self._socket is not None:
            self._socket.close()
        self._front.closed(self)
        if self._gone is not None:
            self._gone(self)


def _writable(fd: int, timeout: float = 0.0) -> bool:
    """Whether ``fd`` takes something within ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    if connection.family != socket.AF_UNIX:
        return connection.recv(1 << 16), []
    room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, messages, _, _ = connection.recvmsg(1 << 16, room, flags)
    fds = array.array("i")
    for level, kind, rights in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, list(fds)


class Backend:
    """A character device; ``filename`` is what it is connected to, as ``query-chardev`` says it.

    ``open`` waits where it has to and raises ``OSError``.
    """

    filename = ""

    def __init__(self, label: str) -> None:
        self.label: Final = label
        self.front: FrontEnd | None = None

    async def open(self) -> None:
        """Connect the front end, if there is one by then."""

    def close(self) -> None:
        """End every connection."""


class NullBackend(Backend):
    """Takes everything and gives nothing."""

    filename = "null"


class FileBackend(Backend):
    """Writes to the file ``path``, which is emptied unless ``append``."""

    filename = "file"

    def __init__(self, label: str, path: str, *, append: bool = False) -> None:
        super().__init__(label)
        mode = os.O_APPEND if append else os.O_TRUNC
        self._fd: Final = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o666)
        self._line: Line | None = None

    async def open(self) -> None:
        assert self.front is not None
        self._line = Line(self.front, -1, self._fd)
        self._line.start()

    def close(self) -> None:
        if self._line is not None:
            self._line.end(wait=True)
        os.close(self._fd)


class StdioBackend(Backend):
    """Standard input and output; a terminal gives single keys meanwhile.

    ``signal`` False: its keys for signals are keys as any other.
    """

    filename = "stdio"

    def __init__(self, label: str, *, signal: bool = True) -> None:
        super().__init__(label)
        self._signal: Final = signal
        self._before: list[Any] | None = None
        self._line: Line | None = None

    async def open(self) -> None:
        assert self.front is not None
        sys.stdout.flush()
        if os.isatty(0):
            self._before = termios.tcgetattr(0)
            now = termios.tcgetattr(0)
            now[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON | termios.ISTRIP)
            now[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
            if not self._signal:
                now[3] &= ~termios.ISIG
            now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
            termios.tcsetattr(0, termios.TCSANOW, now)
        self._line = Line(self.front, 0, 1)
        self._line.start()

    def close(self) -> None:
        if self._line is not None:
            self._line.end(wait=True)
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._before)


class SocketBackend(Backend):
    """A "tcp" or "unix" address to listen on (``server``) or to connect to, or a connected socket.

    ``wait``: a server's ``open`` returns with the first connection.  ``single``: others wait until
    the one there is ends, else there may be ``PEERS_MAX`` at a time.
    """

    def __init__(
        self,
        label: str,
        place: Address | socket.socket,
        *,
        server: bool = False,
        wait: bool = False,
        single: bool = False,
    ) -> None:
        super().__init__(label)
        self._single: Final = single
        self._wait: Final = wait
        self._lines: list[Line] = []
        self._listener: Listener | None = None
        self._connection: socket.socket | None = None
        self._first: asyncio.Future[None] | None = None
        if isinstance(place, socket.socket):
            self._connection = place
            self.filename = "unix:" if place.family == socket.AF_UNIX else "tcp:"
            return
        if server:
            self._listener = Listener(place)
            place = self._listener.address
        else:
            self._connection = connect(place)
        self.filename = f"{place}{',server=on' if server else ''}"

    async def open(self) -> None:
        if self._connection is not None:
            self._add(self._connection)
        if self._listener is None:
            return
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._listen(True)
        if self._wait:
            print(f"waiting for connection on: {self.filename}", file=sys.stderr, flush=True)
            await self._first

    def _listen(self, wanted: bool) -> None:
        assert self._listener is not None
        if wanted:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
        else:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection = self._listener.accept(0)
        except OSError:
            return
        if self._single or len(self._lines) + 1 >= PEERS_MAX:
            self._listen(False)
        self._add(connection)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _add(self, connection: socket.socket) -> None:
        assert self.front is not None
        fd = connection.fileno()
        line = Line(self.front, fd, fd, connection, self._gone)
        self._lines.append(line)
        line.start()

    def _gone(self, line: Line) -> None:
        self._lines.remove(line)
        if self._listener is not None and self._listener.fileno() >= 0:
            self._listen(True)

    def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(RuntimeError):
                self._listen(False)
            self._listener.close()
        for line in list(self._lines):
            line.end(wait=True)


class Mux:
    """Several front ends at one backend: Ctrl-A c moves what is typed to the next of them.

    Ctrl-A x calls ``leave``, Ctrl-A Ctrl-A is the key itself, Ctrl-A h tells of these.
    """

    impatient = False

    HELP: Final = (
        b"\r\nC-a h    print this help\r\nC-a x    exit emulator\r\n"
        b"C-a c    switch between console and monitor\r\nC-a C-a  sends C-a\r\n"
    )

    def __init__(self, fronts: Sequence[FrontEnd], leave: Callable[[], None]) -> None:
        self._fronts: Final = list(fronts)
        self._leave: Final = leave
        self._ports: dict[Port, list[_Shared]] = {}
        self._at: dict[Port, int] = {}
        self._escaped = False

    def opened(self, port: Port) -> None:
        self._ports[port] = [_Shared(port, front) for front in self._fronts]
        self._at[port] = 0
        self._ports[port][0].show()

    def received(self, port: Port, data: bytes, fds: list[int]) -> None:
        typed = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"c":
                    self._pass(port, typed)
                    self._at[port] = (self._at[port] + 1) % len(self._fronts)
                    self._ports[port][self._at[port]].show()
                elif byte in b"x":
                    self._pass(port, typed)
                    self._leave()
                elif byte in b"h?":
                    port.write(self.HELP)
                elif byte == 1:
                    typed.append(byte)
            elif byte == 1:
                self._escaped = True
            else:
                typed.append(byte)
        self._pass(port, typed, fds)

    def _pass(self, port: Port, typed: bytearray, fds: list[int] | None = None) -> None:
        shared = self._ports[port][self._at[port]]
        if typed or fds:
            shared.front.received(shared, bytes(typed), fds or [])
        typed.clear()

    def ended(self, port: Port) -> None:
        if not port.lasting:
            port.close()

    def closed(self, port: Port) -> None:
        for shared in self._ports.pop(port):
            if shared.shown:
                shared.front.closed(shared)
        del self._at[port]


class _Shared:
    """The port of one front end of several; it is opened when it is first looked at."""

    def __init__(self, port: Port, front: FrontEnd) -> None:
        self._port: Final = port
        self.front: Final = front
        self.shown = False

    def show(self) -> None:
        """This is the one now."""
        if not self.shown:
            self.shown = True
            self.front.opened(self)
        else:
            focused = getattr(self.front, "focused", None)
            if focused is not None:
                focused(self)

    @property
    def lasting(self) -> bool:
        return self._port.lasting

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def close(self) -> None:
        """Only the line itself ends."""

    def pause(self) -> None:
        self._port.pause()

    def resume(self) -> None:
        self._port.resume()
