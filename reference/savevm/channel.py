"""The byte channel: buffered bytes over operations that can be replaced.

A channel goes one way, which its first use decides; using it the other way is a programming error
and raises at once.  The operations return a count of bytes or a negative errno.  The first error
sticks: every later call returns it, and the operations are not touched again.  Integers are
big-endian.  The contract is that of the byte channel of QEMU 0.10 (svn r5352, r5474), with the
error kept as errno, as since QEMU 1.0.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

__all__ = [
    "BUFFER",
    "CHUNK",
    "Channel",
    "ChannelError",
    "ChannelMisuse",
    "End",
    "Operations",
    "RateLimit",
]

Data = bytes | bytearray | memoryview

# What is gathered before it is written and asked for when reading, and the most that can be peeked
# at, in bytes.
BUFFER: Final = 32768
# What ``read_chunk`` asks for: larger ones fall out of the processor's cache before they are used.
CHUNK: Final = 256 << 10


class ChannelMisuse(RuntimeError):
    """A channel was read after it was written, or written after it was read."""


class End(Enum):
    """How a channel stands."""

    OPEN = "open"
    CLEAN = "clean end"  # the input ended, and not within anything that was asked for
    TRUNCATED = "truncated"  # the input ended within something that was asked for
    CLOSED = "closed by the peer"
    FAILED = "failed"


class ChannelError(OSError):
    """A channel failed: ``errno`` (positive) and ``end``, how the channel stands."""

    def __init__(self, error: int, end: End) -> None:
        super().__init__(-error, os.strerror(-error))
        self.end: Final = end

    def __str__(self) -> str:
        return f"the channel is {self.end.value}: {self.strerror}"


class Operations:
    """What a channel stands on; a transport replaces what it has.

    The channel retries -EINTR itself.  -EAGAIN means "not now".  ``seekable``: ``put_buffer`` may
    be told a position that was written before.
    """

    seekable = False

    def put_buffer(self, data: memoryview, position: int) -> int:
        """Write some of ``data``, which begins ``position`` bytes into the channel."""
        return -errno.EBADF

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """Write some of the bytes of ``buffers``, none of them empty, as if they were joined."""
        return self.put_buffer(memoryview(buffers[0]), position)

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        """Fill some of ``buffer`` from ``position`` on; 0 at the end of the input."""
        return -errno.EBADF

    def get_bytes(self, size: int, position: int) -> bytes | int:
        """Up to ``size`` bytes from ``position`` on, or what ``get_buffer`` gives if not positive."""
        room = bytearray(size)
        count = self.get_buffer(memoryview(room), position)
        return bytes(memoryview(room)[:count]) if count > 0 else count

    def close(self) -> int:
        """Give back what the transport holds; not negative, or a negative errno."""
        return 0

    def rate_limit(self) -> int:
        """Not 0 when the transport wants the writer to pause."""
        return 0

    def put_notify(self) -> int:
        """A writer that was told -EAGAIN is about to try again."""
        return 0

    def fileno(self) -> int:
        """A descriptor that becomes ready when -EAGAIN is over; -1 where there is none."""
        return -1


class RateLimit:
    """A soft limit of ``bandwidth`` bytes per second; 0 is none.

    It stops nothing.  A writer asks between two pieces of work whether it is more than ``window``
    seconds ahead of the bandwidth, so it gets ahead by at most one piece more.
    """

    def __init__(
        self, bandwidth: int, window: float = 0.05, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.bandwidth = bandwidth
        self.window: Final = window
        self._clock: Final = clock
        # When all that was written would have been, at this bandwidth.
        self._even = clock()

    def account(self, count: int) -> None:
        """``count`` bytes were written."""
        if self.bandwidth:
            self._even = max(self._even, self._clock()) + count / self.bandwidth

    @property
    def piece(self) -> int:
        """Bytes of a piece of work that exceeds the limit by little; 0 where there is none."""
        return int(self.bandwidth * self.window / 4)

    @property
    def wait(self) -> float:
        """Seconds for which a writer should pause."""
        return max(0.0, self._even - self.window - self._clock()) if self.bandwidth else 0.0


class Channel:
    """A buffered channel over ``operations``.

    ``blocking`` False: what the transport does not take now stays in memory, without a bound, and
    reading returns what is there.  Otherwise the channel tries again every ``pause`` seconds.
    ``rate`` can be changed at any time.

    ``error`` is 0 or the first negative errno, ``end`` how the channel stands, ``position`` how many
    bytes the caller has written or read, ``transferred`` how many the operations have moved.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        rate: RateLimit | None = None,
        blocking: bool = True,
        pause: float = 0.001,
    ) -> None:
        self.error = 0
        self.end = End.OPEN
        self.position = 0
        self.transferred = 0
        self.frozen = False
        self._operations: Final = operations
        self.rate = rate
        self._blocking: Final = blocking
        self._pause: Final = pause
        self._writing: bool | None = None
        self._buffer = bytearray()

    def _use(self, *, writing: bool) -> None:
        if self._writing is None:
            self._writing = writing
        elif self._writing != writing:
            now, before = ("written", "read") if writing else ("read", "written")
            raise ChannelMisuse(f"a channel that was {before} is {now}")

    def _fail(self, error: int, end: End | None = None) -> int:
        if not self.error:
            closed = error in (-errno.EPIPE, -errno.ECONNRESET, -errno.ENOTCONN)
            self.error = error
            self.end = end or (End.CLOSED if closed else End.FAILED)
        return self.error

    # Writing

    def write(self, data: Data) -> int:
        """Write all of ``data``: its length in bytes, or a negative errno."""
        view = memoryview(data).cast("B")
        size = len(view)
        if not self._begin_write(size):
            return self.error
        if len(self._buffer) + size < BUFFER or self.frozen:
            self._buffer += view
            return size
        # What is large goes out from where it is.
        return self._put([view], size) or size

    def write_buffers(self, buffers: Sequence[Data], size: int) -> int:
        """Write all of ``buffers``, ``size`` bytes together, none of them empty; as ``write``.

        They are not looked at after the call: what cannot be written now is copied.
        """
        if not self._begin_write(size):
            return self.error
        if self.frozen:
            self._buffer += b"".join(buffers)
            return size
        return self._put(buffers, size) or size

    def _begin_write(self, size: int) -> bool:
        self._use(writing=True)
        if self.error:
            return False
        self.position += size
        if self.rate is not None:
            self.rate.account(size)
        return True

    def _put(self, buffers: Sequence[Data], size: int) -> int:
        """Give what is gathered and ``buffers``, of ``size`` bytes, to the operations: 0 or the error.

        What they do not take is kept.
        """
        if self._buffer:
            size += len(self._buffer)
            buffers = [self._buffer, *buffers]
        first = 0
        done = 0  # bytes of the first buffer
        while size > 0:
            if done or len(buffers) - first == 1:
                piece = memoryview(buffers[first])[done:]
                count = self._operations.put_buffer(piece, self.transferred)
            else:
                rest = buffers[first:] if first else buffers
                count = self._operations.put_buffers(rest, self.transferred)
            if count > 0:
                self.transferred += count
                size -= count
                done += count
                # Mostly all is taken, and the many buffers of pages need not be counted.
                while size > 0 and done >= len(buffers[first]):
                    done -= len(buffers[first])
                    first += 1
            elif count == -errno.EAGAIN and not self._blocking:
                self.frozen = True
                break
            elif count == -errno.EAGAIN:
                time.sleep(self._pause)
                self._operations.put_notify()
            elif count != -errno.EINTR:
                return self._fail(count or -errno.EIO)
        left = [memoryview(buffers[first])[done:], *buffers[first + 1 :]] if size > 0 else []
        self._buffer = bytearray().join(left)
        return 0

    def flush(self) -> int:
        """Give what is gathered to the operations: 0, -EAGAIN while frozen, or the error.

        Does nothing to a channel that is used for reading.
        """
        if self.error or not self._writing or not self._buffer:
            return self.error
        if self.frozen:
            return -errno.EAGAIN
        return self._put([], 0) or (-errno.EAGAIN if self.frozen else 0)

    def overwrite(self, position: int, data: bytes) -> int:
        """Write ``data`` again at ``position``, where bytes were written before; as ``write``.

        Only over operations that are seekable; waits for them.
        """
        # An operation may refuse now and then even what blocks no one.
        while self.flush() == -errno.EAGAIN:
            time.sleep(self._pause)
            self.notify()
        if self.error:
            return self.error
        view = memoryview(data)
        while len(view):
            count = self._operations.put_buffer(view, position)
            if count > 0:
                position += count
                view = view[count:]
            elif count == -errno.EAGAIN:
                time.sleep(self._pause)
                self._operations.put_notify()
            elif count != -errno.EINTR:
                return self._fail(count or -errno.EIO)
        return len(data)

    def notify(self) -> int:
        """The transport can take more: write what was held back; as ``flush``."""
        self.frozen = False
        self._operations.put_notify()
        return self.flush()

    @property
    def rate_exceeded(self) -> bool:
        """Whether a writer should pause: too fast, frozen, or the transport's own wish.

        False after an error, so that the writer goes on and meets it.
        """
        if self.error:
            return False
        return self.frozen or self.rate_wait > 0.0 or self._operations.rate_limit() != 0

    @property
    def rate_wait(self) -> float:
        """Seconds until the rate limit lets a writer go on."""
        return self.rate.wait if self.rate is not None else 0.0

    @property
    def seekable(self) -> bool:
        """Whether ``overwrite`` can be used."""
        return self._operations.seekable

    @property
    def held_back(self) -> int:
        """Bytes written to the channel that the operations have not taken yet."""
        return len(self._buffer) if self._writing else 0

    def put_integer(self, value: int, size: int) -> int:
        """Write ``value``, unsigned, in ``size`` bytes (1, 2, 4 or 8); as ``write``."""
        return self.write(value.to_bytes(size, "big"))

    def put_counted(self, text: bytes) -> int:
        """Write a length byte and ``text``, of at most 255 bytes; as ``write``."""
        return self.write(bytes((len(text),)) + text)

    # Reading

    def _fill(self, size: int) -> None:
        """Have ``size`` bytes in the buffer, if the input has them."""
        self._use(writing=False)
        while len(self._buffer) < size and not self.error and self.end is End.OPEN:
            # No more at once than a chunk, as ``size`` may be what a broken input says.
            room = bytearray(max(BUFFER, min(CHUNK, size - len(self._buffer))))
            count = self._operations.get_buffer(memoryview(room), self.transferred)
            if count > 0:
                self.transferred += count
                self._buffer += memoryview(room)[:count]
            elif not self._wait_for_input(count):
                return

    def _wait_for_input(self, count: int) -> bool:
        """Whether to ask the operations again, which gave ``count``: 0 or a negative errno."""
        if count == 0:
            self.end = End.CLEAN
        elif count == -errno.EAGAIN and not self._blocking:
            return False
        elif count == -errno.EAGAIN:
            time.sleep(self._pause)
        elif count != -errno.EINTR:
            self._fail(count)
        return True

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer when the input ends or fails, or has no more now."""
        self._fill(size)
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[: len(data)]
        self.position += len(data)
        return data

    def read_chunk(self, size: int = CHUNK) -> bytes:
        """The next bytes as they come, at most ``size``; none where ``read`` gives none."""
        self._use(writing=False)
        if self._buffer:
            return self.read(min(size, len(self._buffer)))
        while not self.error and self.end is End.OPEN:
            data = self._operations.get_bytes(size, self.transferred)
            if isinstance(data, bytes) and data:
                self.transferred += len(data)
                self.position += len(data)
                return data
            if not self._wait_for_input(data if isinstance(data, int) else 0):
                break
        return b""

    def peek(self, size: int, offset: int = 0) -> bytes:
        """``size`` bytes from ``offset`` on, without reading them; fewer where ``read`` gives fewer.

        Raises ``ValueError`` for more than ``BUFFER`` bytes.
        """
        if size + offset > BUFFER:
            raise ValueError(f"{size} bytes at {offset} are more than can be peeked at")
        self._fill(size + offset)
        return bytes(memoryview(self._buffer)[offset : offset + size])

    def read_whole(self, size: int) -> bytes:
        """The next ``size`` bytes, or none.

        None where the input ends cleanly before the first of them; where it ends after, the channel
        is truncated and its error -EIO.
        """
        self._fill(size)
        have = len(self._buffer)
        if have >= size:
            return self.read(size)
        if have and self.end is End.CLEAN:
            self._fail(-errno.EIO, End.TRUNCATED)
        return b""

    def get_integer(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes; 0 where there is none, and the error tells."""
        return int.from_bytes(self.read_whole(size), "big")

    def get_counted(self) -> bytes:
        """A string behind its length byte; as ``read_whole``."""
        self._fill(1)
        length = self._buffer[0] if self._buffer else 0
        return self.read_whole(1 + length)[1:]

    # Both

    def fileno(self) -> int:
        """As the operations'."""
        return self._operations.fileno()

    def check(self) -> None:
        """Raise the channel's error, if it has one, as ``ChannelError``."""
        if self.error:
            raise ChannelError(self.error, self.end)

    def close(self) -> int:
        """Flush and close: the channel's error, else what closing gives."""
        error = self.flush()
        closed = self._operations.close()
        return error or (closed if closed >= 0 else self._fail(closed))
