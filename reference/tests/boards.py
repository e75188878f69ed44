"""Machines for the tests of saving and loading: RAM, devices and live sections, without a processor."""

import errno
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from mypy_extensions import i64

from savevm.channel import Channel, Data, Operations
from savevm.errors import stream_error
from savevm.ram import RamBlock
from savevm.savevm import Device, Format, Live, Ram, Registry
from savevm.stream.events import Section
from savevm.stream.handlers import LiveBody

PAGE = 4096


class Counter(Device):
    """A device whose state is three numbers."""

    def __init__(self, idstr: str = "counter", **options: Any) -> None:
        super().__init__(idstr, **{"version_id": 2, "minimum_version_id": 1, **options})
        self.state = [1, 2, 3]

    def layout(self, version_id: int) -> dict[str, Any]:
        fields = [{"name": f"c{i}", "type": "int64", "size": 8} for i in range(version_id + 1)]
        return {"vmsd_name": self.idstr, "version": version_id, "fields": fields}

    def save(self) -> Any:
        return {"fields": [[f"c{i}", n] for i, n in enumerate(self.state)], "subsections": []}

    def load(self, state: Any, version_id: int) -> None:
        numbers = [value for _, value in state["fields"]]
        if min(numbers) < -1000:
            raise ValueError("a counter below -1000")
        self.state = numbers + self.state[len(numbers) :]


class Blob(Device):
    """A device whose body is its own business."""

    def __init__(self, size: int) -> None:
        super().__init__("blob")
        self.data = bytes(size)

    def layout(self, version_id: int) -> dict[str, Any]:
        return {"size": len(self.data)}

    def save(self) -> Any:
        return self.data

    def load(self, state: Any, version_id: int) -> None:
        self.data = state


class Log(Live):
    """A live section of its own kind: a list of numbers that grows while the machine runs.

    A body is a be32 count and as many be32 numbers.
    """

    def __init__(self, idstr: str) -> None:
        super().__init__(idstr)
        self.numbers: list[int] = []
        self._sent = 0

    def _write(self, out: Channel, count: int) -> None:
        some = self.numbers[self._sent : self._sent + count]
        out.put_integer(len(some), 4)
        out.write(b"".join(n.to_bytes(4, "big") for n in some))
        self._sent += len(some)

    def begin(self, out: Channel, form: Format, live: bool) -> None:
        self._sent = 0
        self._write(out, 0)

    def iterate(self, out: Channel, budget: int) -> None:
        self._write(out, max(1, budget // 4))

    def complete(self, out: Channel) -> None:
        self._write(out, len(self.numbers))

    @property
    def left(self) -> int:
        return 4 * (len(self.numbers) - self._sent)

    def body(self, section: Section) -> LiveBody:
        if section.type == 1:
            self.numbers = []
        return LogBody(self, section)


class LogBody(LiveBody):
    def __init__(self, log: Log, section: Section) -> None:
        super().__init__()
        self.log = log
        self.section = section

    def read(self, data: bytes, start: i64, base: i64, final: bool) -> i64:
        have = len(data) - start
        if have < 4:
            self.need = 4
            return start
        (count,) = struct.unpack_from(">I", data, start)
        if count > 1 << 20:
            raise stream_error("ram.size", base + start, self.section.idstr, "too many numbers")
        self.need = 4 + 4 * count
        if have < self.need:
            return start
        self.log.numbers += struct.unpack_from(f">{count}I", data, start + 4)
        self.done = True
        return start + self.need


class Board:
    """A machine with RAM and devices.  ``running`` and how often it was stopped."""

    def __init__(self, *extra: Any, ram: Sequence[RamBlock] | None = None) -> None:
        self.running = True
        self.stops = 0
        self.blocks = list(ram) if ram is not None else [RamBlock("pc.ram", 64 * PAGE)]
        self.counter = Counter()
        self.registry = Registry()
        for savable in (Ram(self.blocks), self.counter, *extra):
            self.registry.register(savable)

    def stop(self) -> None:
        assert self.running
        self.running = False
        self.stops += 1

    def resume(self) -> None:
        assert not self.running
        self.running = True

    def scribble(self, random: random.Random, pages: int) -> None:
        """Write somewhere in that many pages."""
        for _ in range(pages):
            block = random.choice(self.blocks)
            data = random.randbytes(random.choice((1, 16, PAGE)))
            block.write(random.randrange(block.used_length - len(data) + 1), data)

    def memory(self) -> list[bytes]:
        return [bytes(block.view) for block in self.blocks]


class Faulty(Operations):
    """``inner`` in pieces of at most ``piece`` bytes; operation ``index`` does ``fault`` instead.

    ``calls`` counts the operations; the first has the index 0.  A fault is told the bytes offered
    or asked for and gives how many are moved, or a negative errno.
    """

    def __init__(
        self,
        inner: Operations,
        index: int = -1,
        fault: Callable[[int], int] | None = None,
        piece: int = 500,
    ) -> None:
        self.inner = inner
        self.seekable = inner.seekable
        self.index = index
        self.fault = fault
        self.piece = piece
        self.calls = 0

    def _count(self, size: int) -> int:
        """How many bytes this operation moves, or what it gives."""
        self.calls += 1
        size = min(size, self.piece)
        if self.calls - 1 != self.index:
            return size
        assert self.fault is not None
        return self.fault(size)

    def put_buffer(self, data: memoryview, position: int) -> int:
        count = self._count(len(data))
        return self.inner.put_buffer(data[:count], position) if count > 0 else count

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        return self.put_buffer(memoryview(b"".join(buffers)), position)

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        count = self._count(len(buffer))
        return self.inner.get_buffer(buffer[:count], position) if count > 0 else count

    def close(self) -> int:
        count = self._count(0)
        return count if count < 0 else self.inner.close()


FAULTS: dict[str, Callable[[int], int]] = {
    "short count": lambda size: min(size, 1),
    "EAGAIN": lambda _: -errno.EAGAIN,
    "EINTR": lambda _: -errno.EINTR,
    "EIO": lambda _: -errno.EIO,
    "ENOSPC": lambda _: -errno.ENOSPC,
    "EPIPE": lambda _: -errno.EPIPE,
    "ECONNRESET": lambda _: -errno.ECONNRESET,
    "nothing": lambda _: 0,
}
HARMLESS = ("short count", "EAGAIN", "EINTR")
