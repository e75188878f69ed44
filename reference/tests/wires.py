"""What tests of transports share: guards, and an event loop with both ends in it."""

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from savevm.channel import Channel, End
from savevm.transport import Transport


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise RuntimeError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else set()
    yield
    if before:
        after = {fd for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").exists()}
        assert after <= before


async def ready(operations: Transport, *, writing: bool) -> None:
    """Wait for the descriptor, as an event loop does."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    add(operations.fileno(), event.set)
    await event.wait()
    remove(operations.fileno())


async def carry(source: Transport, output: Transport, data: bytes) -> bytes:
    """Through both at once, in one thread."""

    async def write() -> None:
        channel = Channel(output, blocking=False)
        for i in range(0, len(data), 70_000):
            channel.write(data[i : i + 70_000])
            while channel.frozen:
                await ready(output, writing=True)
                channel.notify()
        while channel.flush() == -errno.EAGAIN:
            await ready(output, writing=True)
            channel.notify()
        assert await asyncio.to_thread(channel.close) == 0, output.reason

    async def read() -> bytes:
        channel = Channel(source, blocking=False)
        got = bytearray()
        while channel.end is End.OPEN:
            chunk = channel.read_chunk()
            got += chunk
            if not chunk and channel.end is End.OPEN:
                await ready(source, writing=False)
        assert channel.end is End.CLEAN
        assert await asyncio.to_thread(channel.close) == 0, source.reason
        return bytes(got)

    got, _ = await asyncio.wait_for(asyncio.gather(read(), write()), 60)
    return got
