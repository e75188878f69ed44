"""Machines in processes of their own, ours and QEMU's alike: started, commanded over QMP, ended."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = [
    "OURS",
    "Kind",
    "Machine",
    "MachineError",
    "contiguous",
    "find_qemus",
    "migrate",
    "swept",
]

PAGE: Final = 4096
# Seconds for a process to connect its monitor, and for an answer.
START: Final = 60.0
ANSWER: Final = 60.0


class MachineError(Exception):
    """A machine did not do what it was told; the text is for people."""


@dataclass(frozen=True)
class Kind:
    """A program that machines run in; ``release`` is QEMU's, empty for ours."""

    name: str
    argv: tuple[str, ...]
    release: str = ""


OURS: Final = Kind("reference", (sys.executable, "-m", "savevm.cli", "machine"))


def find_qemus(places: Sequence[str] = ()) -> list[Kind]:
    """The QEMUs at ``places`` (binaries, or directories with one), else that on PATH; oldest first.

    Raises ``MachineError`` for a place that has none.
    """
    name = "qemu-system-riscv64"
    found = []
    for place in places or (name,):
        path = shutil.which(Path(place) / name if Path(place).is_dir() else place)
        if path is None:
            if places:
                raise MachineError(f"{place}: no {name}")
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)\.(\d+)", said.stdout)
        if version is None:
            raise MachineError(f"{path} --version says {said.stdout[:80]!r}")
        release = f"{version[1]}.{version[2]}"
        found.append(Kind(f"QEMU {release}", (str(path),), release))
    return sorted(found, key=lambda kind: [int(part) for part in kind.release.split(".")])


@dataclass
class Machine:
    """A machine in a process, which ``started`` gives."""

    kind: Kind
    process: asyncio.subprocess.Process
    console: Path
    directory: Path
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _reader: Any = None
    _writer: Any = None

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, kind: Kind, directory: Path, *options: str) -> AsyncIterator["Machine"]:
        """A machine, until the end of the block; its files lie in ``directory``.

        Raises ``MachineError``.
        """
        own = directory / f"{len(list(directory.iterdir()))}"
        own.mkdir()
        connected: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not connected.done():
                connected.set_result((reader, writer))

        server = await asyncio.start_unix_server(accept, own / "qmp", limit=1 << 24)
        said = own / "said"
        with said.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *kind.argv,
                *("-M", "spike", "-bios", "none", "-nic", "none", "-display", "none"),
                *("-monitor", "none", "-serial", "file:console", "-qmp", "unix:qmp"),
                *options,
                cwd=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        machine = cls(kind, process, own / "console", own)
        try:
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait(
                {connected, ended}, timeout=START, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            if not connected.done():
                raise MachineError(f"{kind.name} did not start: {machine.said()}")
            machine._reader, machine._writer = connected.result()
            await machine._next()
            await machine.execute("qmp_capabilities")
            yield machine
        finally:
            if machine._writer is not None:
                machine._writer.close()
            await machine.end()
            server.close()

    async def end(self) -> None:
        """End the process; what it has printed stays."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def said(self) -> str:
        """What the process has said, without what it warns of."""
        text = (self.directory / "said").read_text("utf-8", "replace")
        lines = [line for line in text.splitlines() if "warning" not in line]
        return "\n".join(lines[-5:]) or f"exit code {self.process.returncode}"

    async def _next(self) -> dict[str, Any]:
        try:
            line = await asyncio.wait_for(self._reader.readline(), ANSWER)
        except (OSError, TimeoutError):
            line = b""
        if not line:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), 1)
            raise MachineError(f"{self.kind.name} ended: {self.said()}")
        message: dict[str, Any] = json.loads(line)
        return message

    async def execute(self, command: str, **arguments: Any) -> Any:
        """What a command returns; underscores in names of arguments are hyphens."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._writer.write(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        while True:
            message = await self._next()
            if "event" in message:
                self.events.append((message["event"], message.get("data", {})))
            elif "error" in message:
                raise MachineError(f"{self.kind.name}: {command}: {message['error']['desc']}")
            else:
                return message["return"]

    async def capabilities(self, *names: str) -> None:
        """Switch capabilities of migrations on."""
        states = [{"capability": name, "state": True} for name in names]
        await self.execute("migrate-set-capabilities", capabilities=states)

    async def memory(self, address: int, size: int) -> bytes:
        """Physical memory."""
        path = self.directory / "memory"
        await self.execute("pmemsave", val=address, size=size, filename=str(path))
        data = path.read_bytes()
        path.unlink()
        return data

    def letters(self) -> str:
        """What the guest has printed here."""
        return self.console.read_text("latin-1") if self.console.exists() else ""


async def migrate(
    source: Machine,
    destination: Machine,
    told: Callable[[dict[str, Any]], None] = lambda statistics: None,
    *,
    scheme: str = "tcp",
    **parameters: Any,
) -> dict[str, Any]:
    """Migrate live over "tcp" or "unix", with ``parameters`` of the source; the last statistics.

    ``destination`` waits for it with "-incoming defer".  ``told`` gets the statistics on the way.
    Raises ``MachineError``.
    """
    for machine in (source, destination):
        await machine.capabilities("return-path", "events")
    await source.execute("migrate-set-parameters", **parameters)
    uri = f"unix:{destination.directory}/incoming" if scheme == "unix" else "tcp:127.0.0.1:0"
    await destination.execute("migrate-incoming", uri=uri)
    if scheme == "tcp":
        where = (await destination.execute("query-migrate"))["socket-address"][0]
        uri = f"tcp:{where['host']}:{where['port']}"
    await source.execute("migrate", uri=uri)
    while True:
        statistics: dict[str, Any] = await source.execute("query-migrate")
        status = statistics.get("status")
        if "ram" in statistics:
            told(statistics)
        if status == "completed":
            break
        if status in ("failed", "cancelled"):
            why = statistics.get("error-desc", "")
            raise MachineError(
                f"{source.kind.name} → {destination.kind.name} {status}: {why}\n"
                f"{source.said()}\n{destination.said()}"
            )
        await asyncio.sleep(0.02)
    while (await destination.execute("query-status"))["status"] == "inmigrate":
        await asyncio.sleep(0.01)
    return statistics


def swept(memory: bytes) -> str:
    """What is wrong with pages whose first bytes are counted up one after the other; "" if nothing is."""
    counters = memory[::PAGE]
    ahead = [(a - b) % 256 for a, b in itertools.pairwise(counters)]
    jumps = {page: step for page, step in enumerate(ahead, 1) if step}
    if list(jumps.values()) in ([], [1]):
        return ""
    shown = ", ".join(f"{step} before page {page}" for page, step in list(jumps.items())[:4])
    return f"{len(jumps)} jumps between the counters of neighbours: {shown}"


def contiguous(letters: str) -> str:
    """What is wrong with letters printed one after the other, Z before A; "" if nothing is."""
    for at, (a, b) in enumerate(itertools.pairwise(letters), 1):
        if (ord(b) - ord(a)) % 26 != 1:
            return f"{a!r} and then {b!r} as letter {at + 1}"
    return "" if letters.isalpha() and letters.isupper() else f"not only letters: {letters[:40]!r}"
