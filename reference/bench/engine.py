"""Save and load of a whole machine: ours in this process, QEMU's by its monitor, and plain copies.

A job gives seconds, from the call or command until all is moved and closed.  QEMU's start and that
of a process at the other end of a socket are not in them, a shell's at the other end of a pipe is.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pump

from savevm import savevm
from savevm.channel import CHUNK, Channel
from savevm.ram import RamBlock
from savevm.stream import events
from savevm.stream.reader import Reader
from savevm.transport import open_input, open_output
from savevm_conformance.capture import MONITOR, CaptureError, Qemu, running

# For one migration of QEMU's, in seconds.
PATIENCE = 120

Job = Callable[[], float]


class Opaque(savevm.Device):
    """A device whose state is just ``body``."""

    def __init__(self, section: events.Section, body: bytes) -> None:
        super().__init__(section.idstr, section.instance_id, version_id=section.version_id)
        self.body = body

    def layout(self, version_id: int) -> dict[str, Any]:
        return {"size": len(self.body)}

    def save(self) -> bytes:
        return self.body

    def load(self, state: bytes, version_id: int) -> None:
        self.body = state


def machine_of(stream: Path) -> savevm.Registry:
    """A machine with the RAM blocks and the devices of ``stream``, its RAM never written."""
    registry = savevm.Registry()
    section = None

    def take(event: events.Event) -> None:
        nonlocal section
        if isinstance(event, events.RamBlocks):
            registry.register(savevm.Ram([RamBlock(*block) for block in event.blocks]))
        elif isinstance(event, events.Section):
            section = event
        elif isinstance(event, events.Device):
            assert section is not None
            body = os.pread(file.fileno(), event.length, event.offset)
            registry.register(Opaque(section, body))

    reader = Reader()
    with stream.open("rb", 0) as file:
        while data := file.read(CHUNK):
            for event in reader.feed(data):
                take(event)
        for event in reader.finish():
            take(event)
    if reader.error is not None:
        raise reader.error
    return registry


def ram(size: int, *, random: bool) -> savevm.Registry:
    """A machine of nothing but ``size`` bytes of RAM, never written or else random."""
    block = RamBlock("pc.ram", size)
    piece = 16 << 20
    for address in range(0, size if random else 0, piece):
        block.write(address, os.urandom(min(piece, size - address)))
    registry = savevm.Registry()
    registry.register(savevm.Ram([block]))
    return registry


def _closed(channel: Channel, begin: float) -> float:
    channel.close()
    channel.check()
    return time.perf_counter() - begin


def save(machine: savevm.Registry, address: str) -> float:
    begin = time.perf_counter()
    channel = Channel(open_output(address))
    savevm.save(machine, channel, savevm.Format(machine="pc"))
    return _closed(channel, begin)


def load(machine: savevm.Registry, address: str) -> float:
    begin = time.perf_counter()
    channel = Channel(open_input(address))
    savevm.load(machine, channel)
    return _closed(channel, begin)


async def _completed(qemu: Qemu, command: str, uri: str) -> float:
    events_on: dict[str, object] = {"capabilities": [{"capability": "events", "state": True}]}
    await qemu.execute("migrate-set-capabilities", events_on)
    await qemu.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    with qemu.client.listener("MIGRATION") as told:
        begin = time.perf_counter()
        await qemu.execute(command, {"uri": uri})
        async for event in told:
            data: Any = event["data"]
            status = data["status"]
            if status == "completed":
                return time.perf_counter() - begin
            if status == "failed":
                break
    raise CaptureError(f"{command} {uri} failed: {qemu.said()}")


def migrate(argv: list[str], directory: Path, uri: str, *, incoming: bool = False) -> float:
    """Seconds from the command until QEMU says that it has completed.

    A file is handed over as a descriptor.  Raises ``CaptureError``.
    """
    command = "migrate-incoming" if incoming else "migrate"
    options = ["-incoming", "defer"] if incoming else []

    async def one() -> float:
        async with running(directory, [*argv, *options, *MONITOR]) as qemu:
            if not uri.startswith("file:"):
                return await _completed(qemu, command, uri)
            with open(uri[5:], "rb" if incoming else "wb", 0) as file:
                qemu.client.send_fd_scm(file.fileno())
                await qemu.execute("getfd", {"fdname": "file"})
                return await _completed(qemu, command, "fd:file")

    try:
        return asyncio.run(asyncio.wait_for(one(), PATIENCE))
    except TimeoutError:
        raise CaptureError(f"{command} {uri}: not completed in {PATIENCE} s") from None


def timed(job: Callable[..., object], *arguments: object) -> float:
    begin = time.perf_counter()
    job(*arguments)
    return time.perf_counter() - begin


class Engine:
    """The jobs on the machine that ``stream`` is of, whose directory is used.

    ``fresh``: every load is into memory that was never touched, else into memory that is there.
    ``qemu`` and ``incoming``: QEMU's command lines, for the machine and one like it to load into.
    """

    def __init__(self, stream: Path, fresh: bool, qemu: list[str], incoming: list[str]) -> None:
        self._stream = stream
        self._directory = stream.parent
        self._fresh = fresh
        self._qemu = qemu
        self._incoming = incoming
        self._socket = self._directory / "socket"
        self._written = self._directory / "written"
        # What copies are loaded into: it stays.
        self._over = self._directory / "over"
        self._machine = machine_of(stream)
        load(self._machine, f"file:{stream}")

    def saves(self, over: str) -> dict[str, Job]:
        """Save over a "file", "fd" (of a file), "pipe" or "socket": who does it, ourselves first."""
        pipe = "cat > /dev/null"
        addresses = {"pipe": f"exec:{pipe}", "socket": f"unix:{self._socket}"}
        address = addresses.get(over, f"file:{self._written}")
        copies = {
            "pipe": partial(shell, f"cat {self._stream} | {pipe}"),
            "socket": partial(timed, pump.send, str(self._stream), str(self._socket)),
        }
        copy = copies.get(over, partial(shell, f"cat {self._stream} > {self._written}"))
        peers: dict[str, Job] = {"savevm": partial(save, self._machine, address), "copy": copy}
        if self._qemu:
            uri = f"exec:cat > {self._written}" if over == "file" else address
            peers["QEMU"] = partial(migrate, self._qemu, self._directory, uri)
        return {name: partial(self._alone, "receive", over, job) for name, job in peers.items()}

    def loads(self, over: str) -> dict[str, Job]:
        """Load over a "file", "fd" (of a file), "pipe" or "socket", as ``saves``."""
        pipe = f"cat {self._stream}"
        addresses = {"pipe": f"exec:{pipe}", "socket": f"unix:{self._socket}"}
        address = addresses.get(over, f"file:{self._stream}")
        copies = {
            "pipe": partial(shell, f"{pipe} | cat 1<> {self._over}"),
            "socket": partial(timed, pump.receive, str(self._over), str(self._socket)),
        }
        copy = copies.get(over, partial(shell, f"{pipe} 1<> {self._over}"))
        peers: dict[str, Job] = {"savevm": partial(self._load, address), "copy": copy}
        if self._incoming:
            uri = f"exec:{pipe}" if over == "file" else address
            peers["QEMU"] = partial(migrate, self._incoming, self._directory, uri, incoming=True)
        return {name: partial(self._alone, "send", over, job) for name, job in peers.items()}

    def _load(self, address: str) -> float:
        return load(machine_of(self._stream) if self._fresh else self._machine, address)

    def _alone(self, other: str, over: str, job: Job) -> float:
        """Do ``job`` with, for a socket, a process at the other end of it."""
        self._socket.unlink(missing_ok=True)
        self._written.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            if over == "socket":
                stack.enter_context(self._other_end(other))
            return job()

    @contextlib.contextmanager
    def _other_end(self, job: str) -> Iterator[None]:
        file = "/dev/null" if job == "receive" else str(self._stream)
        argv = [sys.executable, pump.__file__, job, file, str(self._socket)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                process.stdout.read(1)
                yield
                process.wait(PATIENCE)
            finally:
                process.kill()


def shell(command: str) -> float:
    return timed(partial(subprocess.run, check=True, shell=True), command)
