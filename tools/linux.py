"""Boots Debian's Linux on the board "spike" and moves it from machine to machine while it ticks.

    linux.py --fetch DIR reference QEMU reference QEMU ...
    linux.py --kernel FILE --bios FILE reference QEMU ...

Each stage is "reference" or the path of a qemu-system-riscv64; the first one boots.  The only
process of that Linux prints a tick per second, having checked its memory; the tour is good if no
tick is missing and none comes twice.  Nothing is downloaded without --fetch, which has apt get
Debian's packages of the kernel and of OpenSBI into DIR (no root, nothing installed).
"""

import argparse
import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from qemu.qmp import QMPClient

from savevm.machine.guests import CONSOLE, initramfs

REFERENCE = "reference"
COMMAND_LINE = "earlycon=sbi keep_bootcon printk.devkmsg=on"
RELEASES = ((5, 2), (7, 2), (10, 0), (11, 1))
# What the reference's harts do not have; each QEMU knows some of them.
ABSENT = [
    "h",
    "zba",
    "zbb",
    "zbc",
    "zbs",
    "zfa",
    "zawrs",
    "zicond",
    "zicbom",
    "zicboz",
    "zicbop",
    "svadu",
    "svvptc",
    "sstc",
]
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TICK = re.compile(rb"\] tick (\d+)")


def fetch(directory: Path, suite: str) -> tuple[Path, Path]:
    """The newest kernel and OpenSBI of a suite of Debian, unpacked."""
    for name in ("lists/partial", "cache/archives/partial", "etc", "unpacked"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    (directory / "status").touch()
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "APT::Architecture": "riscv64",
        "APT::Architectures": "riscv64",
        "APT::Sandbox::User": "",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": directory / "etc",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def run(*argv: str) -> str:
        return subprocess.run(
            [*argv, *options], cwd=directory, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run("apt-get", "update")
    # The image is in one package or, since 2026, in one that the first depends on.
    listed = run("apt-cache", "depends", "--recurse", "--no-recommends", "linux-image-riscv64")
    names = re.findall(r"^linux-(?:image|binary)-\d\S+-riscv64$", listed, re.M)
    run("apt-get", "download", "opensbi", *sorted(set(names)))
    for package in directory.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, directory / "unpacked"], check=True)
    root = directory / "unpacked"
    kernel = next(path for path in root.rglob("vmlinu[xz]*") if path.is_file())
    return kernel, next(root.rglob("riscv64*/opensbi/generic/fw_dynamic.bin"))


def cpu_of(qemu: str) -> str:
    """The option for a CPU like the reference's."""

    def knows(name: str) -> bool:
        argv = [qemu, "-M", "spike", "-cpu", f"rv64,{name}=off", "-bios", "none", "-S"]
        done = subprocess.run(
            [*argv, "-nodefaults", "-display", "none", "-monitor", "stdio"],
            input=b"quit\n",
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    return "rv64" + "".join(f",{name}=off" for name in ABSENT if knows(name))


class Log:
    """Lines with the time, to a file and to the terminal."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._begin = time.monotonic()

    def __call__(self, who: str, line: str) -> None:
        text = f"{time.monotonic() - self._begin:8.3f} {who:<16} {line}"
        print(text, flush=True)
        if self._file is not None:
            print(text, file=self._file, flush=True)


class Stage:
    """A machine of the tour."""

    def __init__(
        self, name: str, what: str, directory: Path, memory: str, drop: str, log: Log
    ) -> None:
        self.name = name
        self.what = what
        self.ticks: list[int] = []
        self.release = ""
        self._path = directory / f"{name}.qmp"
        self._memory = memory
        self._drop = f",x-drop={drop}" if drop else ""
        self._log = log
        self._client = QMPClient(name)

    async def start(self, *options: str) -> None:
        if self.what == REFERENCE:
            argv = [sys.executable, "-m", "savevm.cli", "machine", "-M", f"spike{self._drop}"]
        else:
            argv = [self.what, "-M", "spike", "-cpu", cpu_of(self.what)]
        argv += ["-m", self._memory, "-nodefaults", "-display", "none", "-serial", "stdio"]
        argv += ["-qmp", f"unix:{self._path},server=on,wait=off", *options]
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read())
        deadline = time.monotonic() + 30
        while True:
            try:
                await self._client.connect(str(self._path))
                break
            except Exception:
                if time.monotonic() > deadline or self._process.returncode is not None:
                    raise
                await asyncio.sleep(0.1)
        version = (await self.execute("query-version"))["qemu"]
        number = version["major"], version["minor"]
        self.release = "{}.{}".format(*max(r for r in RELEASES if r <= number or r == RELEASES[0]))

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._log(self.name, line.decode("utf-8", "replace").rstrip())
            if found := TICK.search(line):
                self.ticks.append(int(found[1]))

    async def execute(self, command: str, **arguments: Any) -> Any:
        return await self._client.execute(command, arguments)

    async def tick(self, count: int, timeout: float) -> None:
        """Wait for so many more ticks."""
        goal = len(self.ticks) + count
        deadline = time.monotonic() + timeout
        while len(self.ticks) < goal:
            if time.monotonic() > deadline or self._process.returncode is not None:
                raise SystemExit(f"{self.name}: no tick for {timeout:.0f} s, or it has ended")
            await asyncio.sleep(0.05)

    async def move(self, other: "Stage", port: int) -> None:
        """Migrate, live."""
        if self.what == REFERENCE and other.what != REFERENCE:
            await self.execute("migrate-set-parameters", **{"x-release": other.release})
        await self.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
        while True:
            status = await self.execute("query-migrate")
            if status.get("status") == "completed":
                break
            if status.get("status") in ("failed", "cancelled"):
                raise SystemExit(f"{self.name} to {other.name}: {status}")
            await asyncio.sleep(0.02)
        ram = status.get("ram", {})
        self._log(
            self.name,
            f"moved: {status.get('total-time')} ms, downtime {status.get('downtime')} ms, "
            f"{ram.get('transferred')} bytes, {ram.get('dirty-sync-count')} rounds",
        )

    async def end(self) -> None:
        with contextlib.suppress(Exception):
            await self.execute("quit")
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
        await self._reading


async def tour(arguments: argparse.Namespace, directory: Path, log: Log) -> bool:
    (directory / "initrd").write_bytes(initramfs())
    images = ["-bios", str(arguments.bios), "-kernel", str(arguments.kernel)]
    images += ["-initrd", str(arguments.initrd or directory / "initrd"), "-append", COMMAND_LINE]
    ticks: list[int] = []
    running: list[Stage] = []
    try:
        for i, what in enumerate(arguments.stages):
            label = what if what == REFERENCE else "qemu"
            stage = Stage(f"{i}-{label}", what, directory, arguments.memory, arguments.drop, log)
            running.append(stage)
            if i == 0:
                await stage.start(*images)
                await stage.tick(arguments.ticks, arguments.timeout)
                continue
            port = free_port()
            waiting = ("-bios", "none", "-kernel", str(CONSOLE))
            await stage.start(*waiting, "-incoming", f"tcp:127.0.0.1:{port}")
            log(stage.name, f"waits (release {stage.release})")
            source = running[0]
            await source.move(stage, port)
            await running.pop(0).end()
            ticks += source.ticks
            await stage.tick(arguments.ticks, arguments.timeout)
    finally:
        for stage in running:
            await stage.end()
            ticks += stage.ticks
    good = ticks == list(range(len(ticks))) and len(ticks) > 0
    log("tour", f"{len(ticks)} ticks, {'none' if good else 'SOME'} missing or repeated")
    return good


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--bios", type=Path)
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--fetch", type=Path, metavar="DIR")
    parser.add_argument("--suite", default="trixie", help="of Debian, for --fetch")
    parser.add_argument("--memory", default="256M")
    parser.add_argument(
        "--drop",
        default="mcountinhibit",
        help="registers that the reference may lose, with colons between, where a QEMU has no"
        " place for them (5.2 has none for the default: what counters stand still)",
    )
    parser.add_argument("--ticks", type=int, default=5, help="at each stage")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each stage")
    parser.add_argument("--log", type=Path)
    parser.add_argument("stages", nargs="+", metavar="STAGE")
    arguments = parser.parse_args(argv)
    if arguments.fetch:
        arguments.kernel, arguments.bios = fetch(arguments.fetch, arguments.suite)
    if not arguments.kernel or not arguments.bios:
        parser.error("--kernel and --bios, or --fetch")
    for stage in arguments.stages:
        if stage != REFERENCE and not shutil.which(stage):
            parser.error(f"no {stage}")
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        file = stack.enter_context(arguments.log.open("w")) if arguments.log else None
        return 0 if asyncio.run(tour(arguments, Path(directory), Log(file))) else 1


if __name__ == "__main__":
    raise SystemExit(main())
