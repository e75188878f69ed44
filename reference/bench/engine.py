"""Save and load of whole machines: ours in this process, QEMU's by its monitor, and plain copies.

Every job gives the seconds of its best part: from the command, or the call, until all is moved and
closed.  What starts before that is not counted: QEMU itself, the interpreter of a pump.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from savevm_conformance.capture import MONITOR, CaptureError, Qemu, running

from savevm.channel import CHUNK, Channel
from savevm.ram import RamBlock
from savevm.savevm import Device, Ram, Registry, load, save
from savevm.stream import events
from savevm.stream.reader import Reader
from savevm.transport import open_input, open_output

PUMP = Path(__file__).with_name("pump.py")
# Seconds for one migration of QEMU's.
PATIENCE = 120
MIB = 1 << 20

Job = Callable[[], float]


class Opaque(Device):
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


def machine_of(stream: Path) -> Registry:
    """A machine with the RAM blocks and devices of ``stream``, its RAM never written."""
    reader = Reader()
    registry = Registry()
    section = None
    with stream.open("rb") as file:
        while data := file.read(CHUNK):
            for event in reader.feed(data):
                if isinstance(event, events.RamBlocks):
                    registry.register(Ram([RamBlock(name, used) for name, used in event.blocks]))
                elif isinstance(event, events.Section):
                    section = event
                elif isinstance(event, events.Device):
                    assert section is not None
                    body = os.pread(file.fileno(), event.length, event.offset)
                    registry.register(Opaque(section, body))
    reader.finish()
    if reader.error is not None:
        raise reader.error
    return registry


def random_machine(size: int) -> Registry:
    """A machine of nothing but RAM: ``size`` bytes, random."""
    block = RamBlock("pc.ram", size)
    for address in range(0, size, 16 * MIB):
        block.write(address, os.urandom(min(16 * MIB, size - address)))
    registry = Registry()
    registry.register(Ram([block]))
    return registry


def save_to(registry: Registry, address: str) -> float:
    begin = time.perf_counter()
    channel = Channel(open_output(address))
    save(registry, channel)
    _close(channel)
    return time.perf_counter() - begin


def load_from(registry: Registry, address: str) -> float:
    begin = time.perf_counter()
    channel = Channel(open_input(address))
    load(registry, channel)
    _close(channel)
    return time.perf_counter() - begin


def _close(channel: Channel) -> None:
    channel.close()
    channel.check()


async def _migrate(qemu: Qemu, command: str, uri: str, fd: int) -> float:
    unlimited = {"max-bandwidth": 1 << 40}
    tell = {"capabilities": [{"capability": "events", "state": True}]}
    await qemu.execute("migrate-set-parameters", unlimited)
    await qemu.execute("migrate-set-capabilities", tell)
    if fd >= 0:
        qemu.client.send_fd_scm(fd)
        await qemu.execute("getfd", {"fdname": "stream"})
    with qemu.client.listener("MIGRATION") as told:
        begin = time.perf_counter()
        await qemu.execute(command, {"uri": uri})
        async for event in told:
            if event["data"]["status"] == "completed":
                return time.perf_counter() - begin
            if event["data"]["status"] == "failed":
                break
    raise CaptureError(f"{command} {uri}: failed: {qemu.said()}")


def migrate(
    argv: list[str], directory: Path, command: str, uri: str = "fd:stream", fd: int = -1
) -> float:
    """Seconds from ``command`` ("migrate", "migrate-incoming") until QEMU says it has completed.

    ``fd`` is the descriptor that "fd:stream" means.  Raises ``CaptureError``.
    """
    incoming = ["-incoming", "defer"] if command == "migrate-incoming" else []

    async def one() -> float:
        async with asyncio.timeout(PATIENCE), running(
            directory, [*argv, *incoming, *MONITOR]
        ) as qemu:
            return await _migrate(qemu, command, uri, fd)

    try:
        return asyncio.run(one())
    except TimeoutError:
        raise CaptureError(f"{command} {uri}: not completed in {PATIENCE} s") from None


@contextlib.contextmanager
def pump(job: str, file: Path, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that copies, ready to go; see ``pump``."""
    argv = [sys.executable, "-S", str(PUMP), job, str(file), str(path)]
    path.unlink(missing_ok=True)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            _told(process, "ready")
            yield process
            _told(process, "done")
        finally:
            process.kill()


def _told(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != f"{word}\n":
        raise CaptureError(f"{PUMP.name} is not {word}")


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


def shell(command: str) -> float:
    begin = time.perf_counter()
    subprocess.run(command, shell=True, check=True)
    return time.perf_counter() - begin


class Engine:
    """The jobs on one machine, which ``stream`` is of; all files are in ``directory``.

    ``qemu`` and ``incoming`` are QEMU's command lines, of the machine and of one to load it into.
    """

    def __init__(
        self, stream: Path, *, fresh: bool, qemu: list[str] | None, incoming: list[str] | None
    ) -> None:
        self.stream = stream
        self.directory = stream.parent
        self.copy = self.directory / "copy"
        self.socket = self.directory / "socket"
        self._fresh = fresh
        self._qemu = qemu
        self._incoming = incoming
        self._machine = machine_of(stream)
        load_from(self._machine, f"file:{stream}")

    def jobs(self, job: str, over: str) -> dict[str, Job]:
        """Who does ``job`` ("save", "load") over a "file", "pipe" or "socket": "savevm" and peers."""
        names = ["savevm", "copy"] + (["QEMU"] if self._qemu else [])
        return {name: lambda name=name: getattr(self, f"_{job}_{name.lower()}")(over) for name in names}
