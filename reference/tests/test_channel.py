"""The channel, over real descriptors and over operations that fail on purpose."""

import errno
import os
import random
import socket
import threading

import pytest

from savevm.channel import BUFFER, Channel, ChannelMisuse, End, Operations, RateLimit


class Descriptor(Operations):
    """A file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.calls = 0

    def put_buffer(self, data: memoryview, position: int) -> int:
        self.calls += 1
        try:
            return os.write(self.fd, data)
        except OSError as e:
            return -(e.errno or errno.EIO)

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        self.calls += 1
        try:
            return os.readv(self.fd, [buffer])
        except OSError as e:
            return -(e.errno or errno.EIO)

    def close(self) -> int:
        os.close(self.fd)
        return 0


class Script(Operations):
    """Answers from a list: a count, a negative errno, or bytes to give; then ``rest``."""

    def __init__(self, *answers: int | bytes, rest: int = 0) -> None:
        self.answers = list(answers)
        self.rest = rest
        self.written = bytearray()
        self.positions: list[int] = []
        self.notified = 0

    def _next(self) -> int | bytes:
        return self.answers.pop(0) if self.answers else self.rest

    def put_buffer(self, data: memoryview, position: int) -> int:
        self.positions.append(position)
        answer = self._next()
        assert isinstance(answer, int)
        count = min(answer, len(data))
        self.written += data[: max(count, 0)]
        return count

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        self.positions.append(position)
        answer = self._next()
        if isinstance(answer, bytes):
            buffer[: len(answer)] = answer
            return len(answer)
        return answer

    def put_notify(self) -> int:
        self.notified += 1
        return 0


def test_what_goes_through_a_pipe_comes_out() -> None:
    randomness = random.Random(1)
    pieces = [randomness.randbytes(randomness.choice((1, 7, 5000, 100_000))) for _ in range(60)]
    readable, writable = os.pipe()
    output = Channel(Descriptor(writable))

    def write() -> None:
        for piece in pieces:
            assert output.write(piece) == len(piece)
        output.put_integer(0x0123456789ABCDEF, 8)
        output.put_counted(b"name")
        assert output.close() == 0

    thread = threading.Thread(target=write)
    thread.start()
    source = Channel(Descriptor(readable))
    for piece in pieces:
        assert source.peek(1) == piece[:1]
        assert source.read_whole(len(piece)) == piece
    assert source.get_integer(8) == 0x0123456789ABCDEF
    assert source.get_counted() == b"name"
    total = sum(map(len, pieces)) + 13
    assert source.position == source.transferred == total
    assert source.end is End.OPEN
    assert source.get_integer(1) == 0
    assert (source.end, source.error) == (End.CLEAN, 0)
    thread.join()
    assert (output.position, output.transferred) == (total, total)
    assert source.close() == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_integers_are_big_endian(size: int) -> None:
    operations = Script(rest=BUFFER)
    channel = Channel(operations)
    channel.put_integer(1, size)
    channel.flush()
    assert bytes(operations.written) == b"\0" * (size - 1) + b"\1"
    assert Channel(Script(bytes(operations.written))).get_integer(size) == 1


def test_truncated_and_clean_are_different() -> None:
    clean = Channel(Script(b"ab"))
    assert (clean.read_whole(2), clean.read_whole(2)) == (b"ab", b"")
    assert (clean.end, clean.error) == (End.CLEAN, 0)
    for ask in (lambda c: c.read_whole(3), lambda c: c.get_integer(4), lambda c: c.get_counted()):
        cut = Channel(Script(b"\5b"))
        assert not ask(cut)
        assert (cut.end, cut.error) == (End.TRUNCATED, -errno.EIO)


def test_a_closed_peer_is_an_error_for_both_sides() -> None:
    ours, theirs = socket.socketpair()
    output = Channel(Descriptor(ours.fileno()))
    theirs.close()
    output.write(b"x")
    assert output.flush() == -errno.EPIPE
    assert output.end is End.CLOSED
    ours.close()
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.send(b"unread")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    source = Channel(Descriptor(client.fileno()))
    assert source.read(1) == b""
    assert (source.end, source.error) == (End.CLOSED, -errno.ECONNRESET)
    client.close()
    listener.close()


def test_the_first_error_sticks_and_ends_all_calls() -> None:
    operations = Script(-errno.ENOSPC, -errno.EPIPE)
    channel = Channel(operations)
    channel.write(b"x" * 10)
    assert channel.flush() == -errno.ENOSPC
    assert channel.write(b"y" * BUFFER * 2) == -errno.ENOSPC
    assert channel.flush() == channel.close() == -errno.ENOSPC
    assert len(operations.positions) == 1
    assert channel.end is End.FAILED


def test_a_count_of_nothing_written_is_an_error() -> None:
    channel = Channel(Script(0))
    channel.write(b"x")
    assert channel.flush() == -errno.EIO


def test_interruptions_and_short_counts_are_retried_where_they_stopped() -> None:
    operations = Script(-errno.EINTR, 3, -errno.EAGAIN, 2, rest=BUFFER)
    channel = Channel(operations, pause=0)
    channel.write(b"0123456789")
    assert channel.flush() == 0
    assert bytes(operations.written) == b"0123456789"
    assert operations.positions == [0, 0, 3, 3, 5]
    assert operations.notified == 1
    source = Channel(Script(-errno.EINTR, b"ab", -errno.EAGAIN, b"c"), pause=0)
    assert source.read_whole(3) == b"abc"


def test_a_transport_that_does_not_block_freezes_the_writer() -> None:
    operations = Script(4, -errno.EAGAIN, 3, -errno.EAGAIN, rest=1 << 20)
    channel = Channel(operations, blocking=False)
    assert channel.write(b"0123456789") == 10
    assert channel.flush() == -errno.EAGAIN
    assert channel.frozen
    assert channel.rate_exceeded
    assert channel.error == 0
    assert channel.write(b"x" * BUFFER) == BUFFER
    assert len(operations.positions) == 2
    assert channel.notify() == -errno.EAGAIN
    assert channel.notify() == 0
    assert bytes(operations.written) == b"0123456789" + b"x" * BUFFER
    assert not channel.frozen


def test_a_transport_that_does_not_block_takes_nothing_from_the_reader() -> None:
    source = Channel(Script(b"\3a", -errno.EAGAIN, b"bc"), blocking=False)
    assert source.get_counted() == b""
    assert source.end is End.OPEN
    assert source.get_counted() == b"abc"


def test_direction_is_decided_once() -> None:
    output = Channel(Script(rest=BUFFER))
    output.write(b"x")
    with pytest.raises(ChannelMisuse):
        output.read(1)
    source = Channel(Script(b"data"))
    source.peek(1)
    with pytest.raises(ChannelMisuse):
        source.write(b"x")


def test_flush_never_touches_what_was_only_read() -> None:
    operations = Script(b"data", rest=BUFFER)
    source = Channel(operations)
    assert source.peek(4) == b"data"
    assert source.flush() == 0
    assert source.close() == 0
    assert operations.written == b""
    assert Channel(operations).flush() == 0


def test_peek_is_bounded_and_reads_nothing() -> None:
    source = Channel(Script(b"abcdef"))
    assert source.peek(2, 3) == b"de"
    assert source.position == 0
    assert source.read(6) == b"abcdef"
    with pytest.raises(ValueError, match="more than can be peeked"):
        source.peek(BUFFER, 1)


def test_the_rate_limit_is_soft_and_what_is_too_much_is_waited_for() -> None:
    now = 0.0
    rate = RateLimit(1000, window=1.0, clock=lambda: now)
    channel = Channel(Script(rest=1 << 20), rate=rate)
    channel.write(b"x" * 1000)
    assert not channel.rate_exceeded
    channel.write(b"x" * 500)
    assert channel.rate_exceeded
    assert channel.write(b"x" * 5000) == 5000
    assert channel.rate_wait == 5.5
    now = 5.0
    assert channel.rate_exceeded
    now = 5.5
    assert not channel.rate_exceeded
    # Who was slow does not catch up.
    now = 100.0
    channel.write(b"x" * 1500)
    assert channel.rate_wait == 0.5
    rate.bandwidth = 0
    channel.write(b"x" * 100_000)
    assert not channel.rate_exceeded


def test_an_error_lifts_the_limit_so_that_the_writer_meets_it() -> None:
    channel = Channel(Script(-errno.EIO), rate=RateLimit(1, clock=lambda: 0.0))
    channel.write(b"xx")
    assert channel.rate_exceeded
    channel.flush()
    assert not channel.rate_exceeded


def test_closing_gives_the_error_of_the_last_bytes() -> None:
    full = Channel(Descriptor(os.open("/dev/full", os.O_WRONLY)))
    assert full.write(b"x") == 1
    assert full.close() == -errno.ENOSPC
