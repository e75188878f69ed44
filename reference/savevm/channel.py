"""The byte channel: buffered bytes over operations that can be replaced.

A channel goes one way, which its first use decides; using it the other way is a programming error
and raises at once.  The operations return a count of bytes or a negative errno.  The first error
sticks: every later call returns it, and the operations are not touched again.  Integers are
big-endian.  The contract is that of the byte channel of QEMU 0.10 (svn r5352, r5474), with the
error kept as errno, as since QEMU 1.0.
"""

import errno
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

__all__ = ["BUFFER", "Channel", "ChannelMisuse", "End", "Operations", "RateLimit"]

# What is gathered before it is written and asked for when reading, and the most that can be peeked
# at, in bytes.
BUFFER: Final = 32768


class ChannelMisuse(RuntimeError):
    """A channel was read after it was written, or written after it was read."""


class End(Enum):
    """How a channel stands."""

    OPEN = "open"
    CLEAN = "clean end"  # the input ended, and not within anything that was asked for
    TRUNCATED = "truncated"  # the input ended within something that was asked for
    CLOSED = "closed by the peer"
    FAILED = "failed"


class Operations:
    """What a channel stands on; a transport replaces what it has.

    The channel retries -EINTR itself.  -EAGAIN means "not now".
    """

    def put_buffer(self, data: memoryview, position: int) -> int:
        """Write some of ``data``, which begins ``position`` bytes into the channel."""
        return -errno.EBADF

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        """Fill some of ``buffer`` from ``position`` on; 0 at the end of the input."""
        return -errno.EBADF

    def close(self) -> int:
        """Give back what the transport holds; not negative, or a negative errno."""
        return 0

    def rate_limit(self) -> int:
        """Not 0 when the transport wants the writer to pause."""
        return 0

    def put_notify(self) -> int:
        """A writer that was told -EAGAIN is about to try again."""
        return 0


class RateLimit:
    """A soft limit: ``budget`` bytes per window of ``window`` seconds; 0 is no limit.

    It stops nothing.  A writer asks between two pieces of work whether it has written more than the
    budget since the window began, so it exceeds it by at most one piece.
    """

    def __init__(
        self, budget: int, window: float = 0.1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self.window: Final = window
        self._clock: Final = clock
        self._begin = clock()
        self._bytes = 0

    def account(self, count: int) -> None:
        """``count`` bytes were written."""
        self._roll()
        self._bytes += count

    @property
    def exceeded(self) -> bool:
        """Whether the budget of this window is used up."""
        self._roll()
        return 0 < self.budget < self._bytes

    def _roll(self) -> None:
        now = self._clock()
        if now - self._begin >= self.window:
            self._begin, self._bytes = now, 0


class Channel:
    """A buffered channel over ``operations``.

    ``blocking`` False: what the transport does not take now stays in memory, without a bound, and
    reading returns what is there.  Otherwise the channel tries again every ``pause`` seconds.

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
        self._rate: Final = rate
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

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of ``data``: its length in bytes, or a negative errno."""
        self._use(writing=True)
        if self.error:
            return self.error
        view = memoryview(data).cast("B")
        self.position += len(view)
        if self._rate is not None:
            self._rate.account(len(view))
        if len(self._buffer) + len(view) < BUFFER or self.frozen:
            self._buffer += view
            return len(view)
        # What is large goes out from where it is.
        if self.flush() < 0 and self.error:
            return self.error
        left = view if self.frozen else self._put(view)
        self._buffer += left
        return self.error or len(view)

    def _put(self, data: memoryview) -> memoryview:
        """Give ``data`` to the operations; what they did not take."""
        while len(data):
            count = self._operations.put_buffer(data, self.transferred)
            if count > 0:
                self.transferred += count
                data = data[count:]
            elif count == -errno.EAGAIN and not self._blocking:
                self.frozen = True
                break
            elif count == -errno.EAGAIN:
                time.sleep(self._pause)
                self._operations.put_notify()
            elif count != -errno.EINTR:
                self._fail(count or -errno.EIO)
                return data[:0]
        return data

    def flush(self) -> int:
        """Give what is gathered to the operations: 0, -EAGAIN while frozen, or the error.

        Does nothing to a channel that is used for reading.
        """
        if self.error or not self._writing or not self._buffer:
            return self.error
        if self.frozen:
            return -errno.EAGAIN
        gathered = self._buffer
        left = self._put(memoryview(gathered))
        self._buffer = bytearray(left)
        return self.error or (-errno.EAGAIN if self.frozen else 0)

    def notify(self) -> int:
        """The transport can take more: write what was held back; as ``flush``."""
        self.frozen = False
        self._operations.put_notify()
        return self.flush()

    @property
    def rate_exceeded(self) -> bool:
        """Whether a writer should pause: budget used up, frozen, or the transport's own wish.

        False after an error, so that the writer goes on and meets it.
        """
        if self.error:
            return False
        limited = self._rate is not None and self._rate.exceeded
        return self.frozen or limited or self._operations.rate_limit() != 0

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
            want = max(BUFFER, size - len(self._buffer))
            room = bytearray(want)
            count = self._operations.get_buffer(memoryview(room), self.transferred)
            if count > 0:
                self.transferred += count
                self._buffer += memoryview(room)[:count]
            elif count == 0:
                self.end = End.CLEAN
            elif count == -errno.EAGAIN and not self._blocking:
                return
            elif count == -errno.EAGAIN:
                time.sleep(self._pause)
            elif count != -errno.EINTR:
                self._fail(count)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer when the input ends or fails, or has no more now."""
        self._fill(size)
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[: len(data)]
        self.position += len(data)
        return data

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

    def close(self) -> int:
        """Flush and close: the channel's error, else what closing gives."""
        error = self.flush()
        closed = self._operations.close()
        return error or (closed if closed >= 0 else self._fail(closed))
