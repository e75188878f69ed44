"""Channels that fail: who saves and who loads notices, whenever it is, and the source runs on."""

import errno
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from boards import PAGE, Board, Counter, Log
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import load_error

from savevm.channel import BUFFER, Channel, ChannelError, Data, End, Operations
from savevm.errors import TruncatedError
from savevm.ram import RamBlock
from savevm.savevm import Format, Saver, load, save
from savevm.transport.memory import MemoryInput, MemoryOutput
from savevm_fuzz.strategies import FaultPlan, Operation, fault_plans

WRITING = fault_plans(("write", "close", "rate_limit"))
READING = fault_plans(("read", "close"))
# The most bytes that an operation moves.
PIECES = st.sampled_from((1 << 20, 1 << 13, 500, 130))
DIALECTS = st.sampled_from(("v3-configuration", "v3-vmdesc", "v3-ram4"))
DELAYS = (-errno.EAGAIN, -errno.EINTR)


class Planned(Operations):
    """``inner`` with faults.  ``fatal``: the first result that must be noticed; None before that."""

    def __init__(self, inner: Operations, plan: FaultPlan, piece: int) -> None:
        self.inner = inner
        self.plan = plan
        self.piece = piece
        self.fatal: int | None = None
        self.calls: dict[Operation, int] = {"read": 0, "write": 0, "close": 0, "rate_limit": 0}

    def _result(self, operation: Operation, position: int, size: int) -> int:
        call = self.calls[operation]
        self.calls[operation] += 1
        result = self.plan.result(operation, call, position, size)
        if operation in ("read", "write") and result <= 0 and result not in DELAYS:
            self.fatal = result if self.fatal is None else self.fatal
        return result

    def put_buffer(self, data: memoryview, position: int) -> int:
        count = self._result("write", position, min(len(data), self.piece))
        return self.inner.put_buffer(data[:count], position) if count > 0 else count

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        return self.put_buffer(memoryview(b"".join(buffers)), position)

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        count = self._result("read", position, min(len(buffer), self.piece))
        return self.inner.get_buffer(buffer[:count], position) if count > 0 else count

    def close(self) -> int:
        return self._result("close", 0, 0)

    def rate_limit(self) -> int:
        return self._result("rate_limit", 0, 0)


class Setup(NamedTuple):
    """A machine that can be made again: pages of its blocks, what is written, and other state."""

    blocks: list[int]
    seed: int
    writes: int
    numbers: list[int]
    state: list[int]

    def board(self) -> Board:
        blocks = [RamBlock(f"r{i}", pages * PAGE) for i, pages in enumerate(self.blocks)]
        board = Board(Log("log"), Counter("later"), ram=blocks)
        board.scribble(Random(self.seed), self.writes)
        board.counter.state = list(self.state)
        log = board.registry.entries[2]
        assert isinstance(log, Log)
        log.numbers = list(self.numbers)
        return board

    def old(self) -> Board:
        """A machine of the same kind in its first state."""
        return self._replace(writes=0, numbers=[], state=[1, 2, 3]).board()


def state(board: Board) -> dict[str, Any]:
    entries = board.registry.entries
    logs = [e.numbers for e in entries if isinstance(e, Log)]
    counters = [e.state for e in entries if isinstance(e, Counter)]
    return {"memory": board.memory(), "logs": logs, "counters": counters}


SETUPS = st.builds(
    Setup,
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(0, 1 << 16),
    st.integers(0, 8),
    st.lists(st.integers(0, (1 << 32) - 1), max_size=50),
    st.lists(st.integers(0, (1 << 63) - 1), min_size=3, max_size=3),
)


def saved(setup: Setup, dialect: str) -> bytes:
    output = MemoryOutput()
    save(setup.board().registry, Channel(output), Format(dialect, "board"))
    return bytes(output.data)


def ended(error: int) -> End:
    return End.CLOSED if error in (-errno.EPIPE, -errno.ECONNRESET) else End.FAILED


def sticks(channel: Channel, operations: Planned, error: int, call: Callable[[], int]) -> None:
    """The error is what every call gives from now on, and nothing is tried again."""
    calls = dict(operations.calls)
    assert error < 0
    assert channel.error == error
    assert channel.end is ended(error)
    assert call() == error
    assert channel.flush() == error
    assert not channel.rate_exceeded
    assert operations.calls == calls
    assert channel.close() == error


def loads(setup: Setup, data: bytearray) -> bool:
    """Whether the machine comes out of it; else it is told that it ends too early."""
    target = setup.old()
    error = load_error(target.registry, Channel(MemoryInput(data)), target)
    if error is not None:
        assert isinstance(error.cause, TruncatedError)
        assert target.running == (not error.applied)
        return False
    assert state(target) == state(setup.board())
    return True


@settings(max_examples=3 * settings().max_examples)
@given(SETUPS, DIALECTS, WRITING, PIECES, st.booleans())
def test_the_source_runs_on(
    setup: Setup, dialect: str, plan: FaultPlan, piece: int, blocking: bool
) -> None:
    good = saved(setup, dialect)
    board, output = setup.board(), MemoryOutput()
    operations = Planned(output, plan, piece)
    channel = Channel(operations, blocking=blocking, pause=0.0)
    saver: Saver | None = None
    caught: ChannelError | None = None
    try:
        saver = save(board.registry, channel, Format(dialect, "board"), board)
    except ChannelError as error:
        caught = error
    assert state(board) == state(setup.board())
    # A channel that does not block has the saver pause, so that parts end elsewhere.
    assert not blocking or good.startswith(output.data)
    whole = loads(setup, output.data)
    if operations.fatal is None:
        assert caught is None
        assert saver is not None
        assert (saver.phase, channel.error, channel.held_back) == ("completed", 0, 0)
        assert not board.running
        assert whole
        assert channel.position == channel.transferred == len(output.data)
        # What cannot be closed is told, but all was taken.
        assert channel.close() == plan.result("close", 0, 0, 0)
        return
    fatal = operations.fatal or -errno.EIO
    assert caught is not None
    assert caught.errno == -fatal
    assert caught.end is ended(fatal)
    assert channel.transferred == len(output.data)
    assert board.running
    assert all(block.dirty is None for block in board.blocks)
    sticks(channel, operations, fatal, lambda: channel.write(b"more"))
    # As if it had not been tried.
    again = MemoryOutput()
    save(board.registry, Channel(again), Format(dialect, "board"), board)
    assert again.data == good


@settings(max_examples=3 * settings().max_examples)
@given(SETUPS, DIALECTS, READING, PIECES)
def test_the_destination_has_all_or_does_not_run(
    setup: Setup, dialect: str, plan: FaultPlan, piece: int
) -> None:
    good = saved(setup, dialect)
    target = setup.old()
    operations = Planned(MemoryInput(good), plan, piece)
    channel = Channel(operations, pause=0.0)
    caught = load_error(target.registry, channel, target)
    # Nothing that was read is flushed.
    assert channel.flush() == channel.error
    end = good.rindex(b"\0\6\0") + 1 if dialect != "v3-ram4" else len(good)
    if caught is None:
        # An end that comes where there could be one is none too early.
        assert operations.fatal in (None, 0)
        assert channel.transferred >= end
        assert state(target) == state(setup.board())
        assert target.running
        return
    error = operations.fatal
    assert error is not None
    assert state(target)["counters"] == state(setup.old())["counters"]
    assert target.running == (not caught.applied)
    if error == 0:
        assert isinstance(caught.cause, TruncatedError)
        assert caught.cause.offset == channel.transferred
    else:
        assert isinstance(caught.cause, ChannelError)
        assert (caught.cause.errno, caught.cause.end) == (-error, ended(error))
        sticks(channel, operations, error, channel.notify)
    # What came of it is written over by the next one.
    load(target.registry, Channel(MemoryInput(good)))
    assert state(target) == state(setup.board())


# The channel itself

SIZES = st.one_of(
    st.integers(0, 300), st.sampled_from((BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER))
)
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), SIZES),
        st.tuples(st.just("write_buffers"), SIZES.filter(bool)),
        st.tuples(st.sampled_from(("flush", "notify")), st.just(0)),
    ),
    max_size=20,
)


@given(WRITES, WRITING, PIECES, st.booleans(), st.randoms())
def test_what_is_written_comes_out_in_order_and_once(
    steps: list[tuple[str, int]], plan: FaultPlan, piece: int, blocking: bool, random: Random
) -> None:
    output = MemoryOutput()
    operations = Planned(output, plan, piece)
    channel = Channel(operations, blocking=blocking, pause=0.0)
    written = bytearray()
    for step, size in steps:
        error = channel.error
        data = bytes((len(written) + i) % 251 for i in range(size))
        if step == "write":
            result = channel.write(data)
        elif step == "write_buffers":
            cut = size // 2
            result = channel.write_buffers([d for d in (data[:cut], data[cut:]) if d], size)
        else:
            result = channel.flush() if step == "flush" else channel.notify()
            size = 0
        if error:
            assert result == error
            continue
        written += data[:size]
        assert result == (channel.error or (-errno.EAGAIN if channel.frozen and not size else size))
        if not channel.error:
            assert channel.position == len(written)
            assert channel.transferred + channel.held_back == len(written)
        assert (channel.error != 0) == (operations.fatal is not None)
        assert output.data == written[: channel.transferred]
    if not channel.error and blocking:
        operations.plan = FaultPlan()
        assert channel.close() == 0
        assert output.data == written


READS = st.lists(
    st.tuples(st.sampled_from(("read", "read_whole", "peek", "read_chunk", "integer")), SIZES),
    max_size=20,
)


@given(st.binary(max_size=600).map(lambda data: data * 200), READS, READING, PIECES)
def test_what_is_read_is_what_was_there(
    data: bytes, steps: list[tuple[str, int]], plan: FaultPlan, piece: int
) -> None:
    operations = Planned(MemoryInput(data), plan, piece)
    channel = Channel(operations, pause=0.0)
    at = 0
    for step, size in steps:
        if step == "read":
            got = channel.read(size)
        elif step == "read_whole":
            got = channel.read_whole(size)
            assert len(got) in (0, size)
        elif step == "peek":
            size = min(size, BUFFER - 3)
            assert data[at + 3 :].startswith(channel.peek(size, 3))
            got = b""
        elif step == "read_chunk":
            got = channel.read_chunk(size + 1)
            assert len(got) <= size + 1
        else:
            size = 8
            number = channel.get_integer(size)
            got = b"" if channel.position == at else number.to_bytes(size)
        assert data[at:].startswith(got)
        at += len(got)
        # What was read and is held is not written back.
        assert channel.flush() == channel.error
        assert operations.calls["write"] == 0
        assert channel.position == at
        if channel.end is End.OPEN and step == "read":
            assert len(got) == size
        assert (channel.error == 0) == (channel.end in (End.OPEN, End.CLEAN))
    if channel.end in (End.CLEAN, End.TRUNCATED):
        assert operations.fatal == 0 or channel.transferred == len(data)
    elif channel.end is not End.OPEN:
        assert operations.fatal is not None
        sticks(channel, operations, operations.fatal, channel.flush)
