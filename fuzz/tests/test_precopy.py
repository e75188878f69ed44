"""Precopy, step by step in any order, against a copy of what the guest has written.

Whatever happens on the way, one machine runs, and it has all that was ever written.
"""

import errno
from collections.abc import Callable, Sequence

from boards import Board, Counter, Log
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from savevm.channel import Channel, ChannelError, Data, Operations, RateLimit
from savevm.errors import StreamError
from savevm.ram import RamBlock
from savevm.savevm import Format, Loader, LoadError, Saver

PAGE = 256
BLOCKS = (7, 1, 24)
# Where something is written: a block, an offset in its bytes, and what.
PLACES = st.integers(0, len(BLOCKS) - 1).flatmap(
    lambda block: st.tuples(st.just(block), st.integers(0, BLOCKS[block] * PAGE - 1))
)
CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.integers(0, 255).map(lambda byte: bytes((byte,)) * PAGE),
    st.integers(1, 12).map(lambda pages: bytes(pages * PAGE)),
    st.integers(1, 12).map(lambda pages: bytes(range(256)) * pages),
)
# Bytes per second: none, and those by which one step ends within a page, a few or many.
BANDWIDTHS = st.sampled_from((0, 1000, 20_000, 100_000))
WRITES = st.lists(st.tuples(PLACES, CONTENTS), min_size=1, max_size=4)


class Wire(Operations):
    """What the destination can have so far.

    ``room``: bytes that are taken before it says "not now"; ``error``: what it says instead of
    taking any; ``pauses``: how often it wants one.
    """

    def __init__(self, room: int) -> None:
        self.data = bytearray()
        self.room = room
        self.error = 0
        self.pauses = 0

    def put_buffer(self, data: memoryview, position: int) -> int:
        if self.error:
            return self.error
        if not self.room:
            return -errno.EAGAIN
        some = data[: self.room]
        self.data += some
        self.room -= len(some)
        return len(some)

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        return self.put_buffer(memoryview(b"".join(buffers)), position)

    def rate_limit(self) -> int:
        self.pauses -= self.pauses > 0
        return self.pauses


class Held:
    """The machine as a saver sees it: who resumes it is decided when all is known."""

    def __init__(self, board: Board) -> None:
        self.board = board

    @property
    def running(self) -> bool:
        return self.board.running

    def stop(self) -> None:
        self.board.stop()

    def resume(self) -> None:
        pass


def board(*, running: bool) -> Board:
    blocks = [RamBlock(f"r{i}", pages * PAGE, PAGE) for i, pages in enumerate(BLOCKS)]
    made = Board(Log("log"), Counter("later"), ram=blocks)
    made.running = running
    return made


def log(of: Board) -> list[int]:
    entry = of.registry.entries[2]
    assert isinstance(entry, Log)
    return entry.numbers


class Precopy(RuleBasedStateMachine):
    """A machine that is moved again and again, each time from where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.source = board(running=True)
        self.shadow = [bytearray(pages * PAGE) for pages in BLOCKS]
        self.numbers: list[int] = []
        self.now = 0.0
        self.saver: Saver | None = None
        self.wire = Wire(0)
        self.target = self.source
        self.loader: Loader | None = None
        self.given = 0

    # The guest

    @precondition(lambda self: self.source.running)
    @rule(writes=WRITES)
    def write(self, writes: list[tuple[tuple[int, int], bytes]]) -> None:
        for (number, at), data in writes:
            block = self.shadow[number]
            fits = data[: len(block) - at]
            self.source.blocks[number].write(at, fits)
            block[at : at + len(fits)] = fits

    @precondition(lambda self: self.source.running)
    @rule(numbers=st.lists(st.integers(0, (1 << 32) - 1), max_size=40))
    def count(self, numbers: list[int]) -> None:
        log(self.source).extend(numbers)
        self.numbers += numbers
        self.source.counter.state[0] += len(numbers)

    # The migration

    @precondition(lambda self: self.saver is None)
    @rule(
        dialect=st.sampled_from(("v3-configuration", "v3-vmdesc", "v3-ram4")),
        room=st.one_of(st.just(1 << 40), st.integers(0, 5000)),
        dirt=WRITES,
        bandwidth=BANDWIDTHS,
    )
    def begin(
        self,
        dialect: str,
        room: int,
        dirt: list[tuple[tuple[int, int], bytes]],
        bandwidth: int,
    ) -> None:
        self.target = board(running=False)
        # What was there before is not what comes.
        for (number, at), data in dirt:
            block = self.target.blocks[number]
            block.write(at, data[: block.used_length - at])
        self.loader, self.given = Loader(self.target.registry, "board"), 0
        self.wire = Wire(room)
        form = Format(dialect, "board")
        channel = Channel(self.wire, blocking=False, rate=self.rate(bandwidth))
        self.saver = Saver(self.source.registry, channel, form, Held(self.source))
        left = self.saver.begin()
        assert left == sum(BLOCKS) * PAGE + 4 * len(self.numbers)

    @precondition(lambda self: self.saver is not None and self.saver.phase == "live")
    @rule()
    def iterate(self) -> None:
        assert self.saver is not None
        before = self.saver.left
        if self.stepped(self.saver.step):
            assert self.saver.left <= before
        assert self.source.running

    @precondition(lambda self: self.saver is not None and self.saver.phase == "live")
    @rule()
    def converge(self) -> None:
        """While the guest writes nothing, and nothing is in the way, a few steps send all."""
        assert self.saver is not None
        self.wire.room, self.wire.pauses = 1 << 40, 0
        rate, self.saver.channel.rate = self.saver.channel.rate, None
        if not self.stepped(self.saver.flush):
            return
        for _ in range(4):
            if not self.stepped(self.saver.step):
                return
        assert self.saver.left == 0
        assert rate is not None
        self.saver.channel.rate = self.rate(rate.bandwidth)

    @precondition(lambda self: self.saver is not None and self.saver.phase == "live")
    @rule(writes=WRITES)
    def another_round(self, writes: list[tuple[tuple[int, int], bytes]]) -> None:
        """The first round has everything; what is lost is lost in a later one."""
        self.converge()
        if self.saver is not None:
            self.write(writes)
            self.iterate()

    def rate(self, bandwidth: int) -> RateLimit:
        return RateLimit(bandwidth, clock=lambda: self.now)

    @precondition(lambda self: self.saver is not None)
    @rule(bandwidth=BANDWIDTHS, pauses=st.integers(0, 3))
    def limit(self, bandwidth: int, pauses: int) -> None:
        assert self.saver is not None
        if self.saver.phase == "live":
            self.saver.channel.rate = self.rate(bandwidth)
        self.wire.pauses = pauses

    @rule(seconds=st.sampled_from((0.01, 1.0, 100.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.saver is not None)
    @rule(room=st.one_of(st.integers(1, 3000), st.just(1 << 40)))
    def take(self, room: int) -> None:
        """The transport takes more."""
        assert self.saver is not None
        self.wire.room = room
        self.stepped(self.saver.flush)

    @precondition(lambda self: self.saver is not None)
    @rule(size=st.integers(1, 4000))
    def arrive(self, size: int) -> None:
        """Some of what was sent comes to the destination, which has the machine only in the end."""
        assert self.loader is not None
        self.loader.feed(bytes(self.wire.data[self.given : self.given + size]))
        self.given = min(self.given + size, len(self.wire.data))

    @precondition(lambda self: self.saver is not None and self.saver.phase == "live")
    @rule()
    def switch_over(self) -> None:
        assert self.saver is not None
        self.stepped(self.saver.complete)

    @precondition(lambda self: self.saver is not None)
    @rule(error=st.sampled_from((errno.EIO, errno.EPIPE, errno.ENOSPC)))
    def break_down(self, error: int) -> None:
        """The transport takes nothing any more, which is met with the next byte."""
        self.wire.error = -error

    @precondition(lambda self: self.saver is not None and self.saver.whole is not None)
    @rule(more=st.integers(-2, 2))
    def cancel_near_the_end(self, more: int) -> None:
        """When the destination has just what it takes to go on, or a little less, or more."""
        assert self.saver is not None
        assert self.saver.whole is not None
        self.wire.room = max(0, self.saver.whole + more - len(self.wire.data))
        if self.stepped(self.saver.flush):
            self.cancel()

    @precondition(lambda self: self.saver is not None)
    @rule()
    def cancel(self) -> None:
        assert self.saver is not None
        self.saver.cancel()
        self.over()

    def stepped(self, step: Callable[[], object]) -> bool:
        """Whether the save goes on after a step."""
        assert self.saver is not None
        failure: ChannelError | None = None
        try:
            step()
        except ChannelError as error:
            failure = error
        if failure is not None:
            assert self.wire.error == self.saver.channel.error == -(failure.errno or 0)
            assert self.saver.phase != "completed"
        if failure is not None or self.saver.phase == "completed":
            self.over()
        return self.saver is not None

    def over(self) -> None:
        """The save has come to its end: who has the machine now runs."""
        saver, loader, source = self.saver, self.loader, self.source
        assert saver is not None
        assert loader is not None
        self.saver = None
        assert all(block.dirty is None for block in source.blocks)
        assert saver.channel.transferred == len(self.wire.data)
        # All of it, or all that takes to go on: who has a piece of the description refuses it.
        whole = saver.phase == "completed" or len(self.wire.data) == saver.whole
        arrived = True
        refusal: Exception | None = None
        try:
            loader.feed(bytes(self.wire.data[self.given :]))
            loader.finish()
        except LoadError as error:
            arrived, refusal = False, error.cause
        assert arrived == whole
        if arrived:
            assert not source.running
            self.target.running = True
            self.source = self.target
            return
        assert isinstance(refusal, StreamError)
        assert refusal.errno_name == "EIO"
        assert self.target.counter.state == [1, 2, 3]
        if not source.running:
            source.resume()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.source.memory() == self.shadow
        assert log(self.source) == self.numbers
        assert self.source.counter.state == [1 + len(self.numbers), 2, 3]

    @invariant()
    def one_runs(self) -> None:
        stopped = self.saver is not None and self.saver.phase != "live"
        assert self.source.running != stopped
        assert self.target is self.source or not self.target.running


TestPrecopy = Precopy.TestCase
TestPrecopy.settings = settings(max_examples=2 * settings().max_examples, stateful_step_count=40)
