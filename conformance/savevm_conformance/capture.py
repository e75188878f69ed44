"""Capture the stream that every machine type of a QEMU writes.

Each machine is started stopped, told over QMP to migrate into a file, and quit.  What it wrote is
kept together with how it was made, so that anyone with the same QEMU can make it again.

``probe`` asks a binary what it is, ``capture_machine`` captures one machine, ``capture_all`` all
machines of several binaries into a directory; ``capture`` is the command line of the last.
"""

import asyncio
import contextlib
import fnmatch
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import click
from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MAGIC: Final = b"QEVM"
MANIFEST: Final = "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class Filled:
    """A file made for QEMU: ``size`` bytes, the first given by ``start`` (hex), the others zero."""

    start: str
    size: int

    def content(self) -> bytes:
        """The file."""
        return bytes.fromhex(self.start).ljust(self.size, b"\0")


# Every QEMU runs in its own directory, where these are: what is recorded names no path.
ZEROS: Final = "zeros.bin"
PPC_ELF: Final = "ppc.elf"
FILES: Final = {
    ZEROS: Filled("", 4096),
    # An executable for 32 bit PowerPC with its own first 4096 bytes as its only segment.
    PPC_ELF: Filled(
        "7f454c46010201000000000000000000"
        "000200140000000100000000000000340000000000000000003400200001000000000000"
        "0000000100000000000000000000000000001000000010000000000700001000",
        4096,
    ),
}
WRITTEN: Final = "stream.bin"
SAID: Final = "said"
# The consumer of a migration may outlive QEMU; the name appears only once it has written it all.
MIGRATE: Final[dict[str, object]] = {
    "uri": f"exec:cat > {WRITTEN}.part && mv {WRITTEN}.part {WRITTEN}"
}
COMMANDS: Final[tuple[dict[str, object], ...]] = (
    {"execute": "qmp_capabilities"},
    {"execute": "migrate", "arguments": MIGRATE},
    {"execute": "quit"},
)
# An inherited socket needs no path and no waiting for a listener, and it ends when QEMU does.
MONITOR: Final = ("-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control")

Option = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fallback:
    """How to start a machine that would not: if its words match ``when``, change its options.

    ``drop`` names options to leave out, ``add`` are options (with their values) to put in.
    """

    when: str
    why: str
    add: tuple[Option, ...] = ()
    drop: tuple[str, ...] = ()

    def apply(self, options: Sequence[Option]) -> list[Option]:
        """``options`` with the change made."""
        return [option for option in options if option[0] not in self.drop] + list(self.add)


# In this order, each at most once for a machine.
FALLBACKS: Final = (
    Fallback(
        when=r"no default audio driver",
        why="it has a sound device even with -nodefaults, and that wants to be connected",
        add=(("-audio", "none"),),
    ),
    Fallback(
        when=r"cap-htm|Transactional Memory",
        why="its default is a processor feature that TCG does not have",
        add=(("-machine", "cap-htm=off"),),
    ),
    Fallback(
        when=r"(?i)\b(memory|ram)\b|ram_size",
        why="it takes only certain sizes of memory",
        drop=("-m",),
    ),
    Fallback(
        when=r"flash image must be given",
        why="it boots from flash and insists on having one; this is how large most are",
        add=(("-drive", "if=pflash,driver=null-co,read-zeroes=on,size=32M"),),
    ),
    Fallback(
        when=r"requires 16777216 bytes",
        why="the flash has to have exactly the size of the one on the board",
        drop=("-drive",),
        add=(("-drive", "if=pflash,driver=null-co,read-zeroes=on,size=16M"),),
    ),
    Fallback(
        when=r"RISC-V firmware",
        why="a firmware that is not installed; nothing of it would run",
        add=(("-bios", "none"),),
    ),
    Fallback(
        when=r"u-boot.e500",
        why="as before, but this loader takes executables only",
        add=(("-bios", PPC_ELF),),
    ),
    Fallback(
        when=r"(?i)bios\b|firmware\b|rom\b",
        why="as before",
        add=(("-bios", ZEROS),),
    ),
    Fallback(
        when=r"(?i)\bkernel\b",
        why="it boots nothing but a kernel, or did not take the firmware",
        drop=("-bios",),
        add=(("-kernel", ZEROS),),
    ),
)


class CaptureError(Exception):
    """A QEMU did not do what it was asked; the text says what it said or did instead."""


class StartError(CaptureError):
    """QEMU ended before it took a command: ``said`` is all it said, ``crashed`` if by a signal."""

    def __init__(self, reason: str, said: str, *, crashed: bool) -> None:
        super().__init__(reason)
        self.said = said
        self.crashed = crashed


class RefusedError(CaptureError):
    """QEMU is well, but does not migrate this machine."""


Kind = Literal["does not start", "does not migrate", "failed"]


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU binary and what it says of itself; ``machines`` without "none" and aliases."""

    binary: Path
    target: str
    version: str
    package: str
    machines: tuple[str, ...]

    @property
    def qemu(self) -> str:
        """Version and, where the packager gave one, package: ``7.2.22 (Debian …)``."""
        return f"{self.version} ({self.package})" if self.package else self.version


@dataclass(frozen=True, slots=True)
class Made:
    """How a stream was made: the command line, and what was said to QEMU over QMP.

    ``files`` were in the working directory, where the stream was written too.
    """

    argv: list[str]
    files: dict[str, Filled]
    qmp: list[dict[str, object]] = field(default_factory=lambda: list(COMMANDS))


@dataclass(frozen=True, slots=True)
class Stream:
    """A captured stream; ``size`` in bytes and ``sha256`` are of the stream uncompressed."""

    file: str
    qemu: str
    target: str
    machine: str
    size: int
    sha256: str
    made: Made
    seconds: float


@dataclass(frozen=True, slots=True)
class Without:
    """A machine that gave no stream, and why."""

    qemu: str
    target: str
    machine: str
    kind: Kind
    reason: str


Outcome = Stream | Without


class Manifest:
    """The captures of a directory: what is there, how it was made, and what could not be had."""

    def __init__(self, directory: Path) -> None:
        """Read the manifest of ``directory`` if it has one; CaptureError if that is damaged."""
        self.directory = directory
        self.streams: dict[tuple[str, str, str], Stream] = {}
        self.without: dict[tuple[str, str, str], Without] = {}
        try:
            kept = json.loads((directory / MANIFEST).read_bytes())
            for entry in kept["streams"]:
                made = Made(**entry["made"])
                for name, file in entry["made"]["files"].items():
                    made.files[name] = Filled(**file)
                self._put(Stream(**entry | {"made": made}))
            for entry in kept["without"]:
                self._put(Without(**entry))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise CaptureError(f"{directory / MANIFEST} is not a manifest: {error}") from error

    def _put(self, outcome: Outcome) -> None:
        key = (outcome.qemu, outcome.target, outcome.machine)
        if isinstance(outcome, Stream):
            self.streams[key] = outcome
            self.without.pop(key, None)
        else:
            self.without[key] = outcome
            self.streams.pop(key, None)

    def has(self, emulator: Emulator, machine: str) -> bool:
        """Whether the stream of this machine is listed and its file still there."""
        stream = self.streams.get((emulator.qemu, emulator.target, machine))
        return stream is not None and (self.directory / stream.file).is_file()

    def add(self, outcome: Outcome) -> None:
        """Take ``outcome`` in, in the place of an earlier one, and write the manifest; OSError."""
        before = self.streams.get((outcome.qemu, outcome.target, outcome.machine))
        self._put(outcome)
        text = json.dumps(
            {
                "streams": [asdict(self.streams[key]) for key in sorted(self.streams)],
                "without": [asdict(self.without[key]) for key in sorted(self.without)],
            },
            indent=1,
        )
        part = self.directory / f".{MANIFEST}.part"
        part.write_text(text + "\n")
        part.replace(self.directory / MANIFEST)
        if before and not (isinstance(outcome, Stream) and outcome.file == before.file):
            (self.directory / before.file).unlink(missing_ok=True)


class Qemu:
    """A running QEMU: its process, its monitor and what it has said."""

    def __init__(self, directory: Path, argv: Sequence[str]) -> None:
        self.directory = directory
        self.argv = argv
        self.client = QMPClient()
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Have it take commands; CaptureError, and StartError if it ended before."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, (self.directory / SAID).open("wb") as said:
                # Its own group, so that a wrapper script and the consumer can be ended with it.
                self.process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdin=theirs.fileno(),
                    stdout=said,
                    stderr=said,
                    cwd=self.directory,
                    start_new_session=True,
                )
            await self.client.connect(ours)
        except (OSError, QMPError) as error:
            ours.close()
            if self.process is None:
                raise CaptureError(str(error)) from error
            reason, crashed = await self._ending(error)
            if self.process.returncode is None:
                raise CaptureError(reason) from error
            raise StartError(reason, self.said(), crashed=crashed) from error

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """What QEMU returns for ``command``; CaptureError if it refuses, or ends over it."""
        try:
            return await self.client.execute(command, arguments)
        except ExecuteError as error:
            raise RefusedError(str(error)) from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise CaptureError((await self._ending(error))[0]) from error

    async def quit(self) -> None:
        """Tell QEMU to end and wait until it has; CaptureError if it does so with an error."""
        assert self.process is not None
        # It may end before its answer gets through.
        with contextlib.suppress(ExecInterruptedError, QMPError, OSError):
            await self.client.execute("quit")
        if await self.process.wait() != 0:
            raise CaptureError((await self._ending(None))[0])

    def said(self) -> str:
        """What it said, outside of QMP, until now."""
        return (self.directory / SAID).read_text(errors="replace")

    async def _ending(self, cause: Exception | None) -> tuple[str, bool]:
        """Why QEMU no longer talks, and whether a signal ended it."""
        assert self.process is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), 1)
        status = self.process.returncode
        line = _first_line(self.said())
        if status is None:
            return f"no QMP: {cause}" + (f" ({line})" if line else ""), False
        # A shell between us and QEMU turns signal N into status 128 + N.
        number = -status if status < 0 else status - 128
        if number in signal.valid_signals():
            name = signal.Signals(number).name
            return f"killed by {name}" + (f": {line}" if line else ""), True
        return line or f"exit status {status} without a word", False

    async def end(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        with contextlib.suppress(Exception):
            await self.client.disconnect()


@contextlib.asynccontextmanager
async def running(directory: Path, argv: Sequence[str]) -> AsyncIterator[Qemu]:
    """A QEMU in ``directory``, none of which is left afterwards; ``argv`` ends with ``MONITOR``.

    CaptureError, and StartError for one that takes no command.
    """
    qemu = Qemu(directory, argv)
    try:
        await qemu.start()
        yield qemu
    finally:
        await asyncio.shield(qemu.end())


def _first_line(said: str) -> str:
    """The first line of ``said`` that is not a mere warning, without the program's name."""
    lines = [" ".join(line.split()) for line in said.splitlines()]
    lines = [re.sub(r"^\S*qemu(-\S+)?: ", "", line) for line in lines]
    mere = re.compile(r"(?i)warning|info\b|audio: |module \S+ not found")
    telling = [line for line in lines if line and not mere.match(line)]
    return (telling or [line for line in lines if line] or [""])[0]


async def probe(binary: Path, *, timeout: float = 60, args: Sequence[str] = ()) -> Emulator:
    """Ask ``binary`` for its version, target and machine types, within ``timeout`` seconds.

    CaptureError if it is not a QEMU, or does not answer in time.
    """
    argv = (str(binary), "-M", "none", "-nodefaults", "-display", "none", *args, *MONITOR)
    try:
        with tempfile.TemporaryDirectory() as directory:
            async with asyncio.timeout(timeout), running(Path(directory), argv) as qemu:
                version = await qemu.execute("query-version")
                target = await qemu.execute("query-target")
                machines = await qemu.execute("query-machines")
                await qemu.quit()
        return Emulator(
            binary=binary,
            target=target["arch"],
            version=".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro")),
            package=version["package"].strip(" ()"),
            machines=tuple(sorted(m["name"] for m in machines if m["name"] != "none")),
        )
    except TimeoutError:
        raise CaptureError(f"{binary.name}: no answer within {timeout:g} s") from None
    except CaptureError as error:
        raise CaptureError(f"{binary.name}: does not talk QMP: {error}") from error
    except (KeyError, TypeError) as error:
        raise CaptureError(f"{binary.name}: unexpected answer: {error!r}") from error


async def _migrate(qemu: Qemu) -> None:
    """Have the stream written to the end; RefusedError, or CaptureError if that fails."""
    await qemu.execute("migrate", MIGRATE)
    pause = 0.005
    while True:
        answer = await qemu.execute("query-migrate")
        match answer.get("status"):
            case "completed":
                break
            case "failed" | "cancelled":
                why = answer.get("error-desc") or _first_line(qemu.said())
                raise CaptureError(f"migration failed: {why}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.5)
    await qemu.quit()
    while not (qemu.directory / WRITTEN).exists():
        await asyncio.sleep(0.01)


def _keep(written: Path, kept: Path) -> tuple[int, str]:
    """Move a stream to where it stays, compressed if so named: its size in bytes and SHA-256."""
    with written.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise CaptureError("wrote no stream, though it says it completed")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = stream.tell()
        if kept.suffix == ".xz":
            stream.seek(0)
            written = written.with_suffix(".xz")
            with lzma.open(written, "wb") as packed:
                shutil.copyfileobj(stream, packed, 1 << 20)
    written.replace(kept)
    return size, digest


async def capture_machine(
    emulator: Emulator,
    machine: str,
    directory: Path,
    *,
    timeout: float = 60,
    args: Sequence[str] = (),
    memory: str | None = None,
    compress: bool = True,
) -> Outcome:
    """Start ``machine``, have it write its stream, and keep that in ``directory``.

    ``timeout`` in seconds holds for all attempts together; ``memory`` is QEMU's ``-m``.  What QEMU
    does wrong is the outcome; OSError if the stream cannot be kept.
    """
    options: list[Option] = [
        ("-M", machine),
        ("-S",),
        ("-nodefaults",),
        ("-display", "none"),
        ("-accel", "tcg"),
        *([("-m", memory)] if memory else []),
    ]
    left = list(FALLBACKS)
    began = time.monotonic()
    suffix = ".bin.xz" if compress else ".bin"
    kept = re.sub(r"[^\w.+-]", "-", f"{emulator.version}_{emulator.target}_{machine}") + suffix

    async def attempt(work: Path) -> Stream:
        argv = [word for option in options for word in option] + [*args, *MONITOR]
        files = {name: file for name, file in FILES.items() if name in argv}
        for name, file in files.items():
            (work / name).write_bytes(file.content())
        async with running(work, [str(emulator.binary), *argv]) as qemu:
            await _migrate(qemu)
        size, digest = await asyncio.to_thread(_keep, work / WRITTEN, directory / kept)
        return Stream(
            file=kept,
            qemu=emulator.qemu,
            target=emulator.target,
            machine=machine,
            size=size,
            sha256=digest,
            made=Made([emulator.binary.name, *argv], files),
            seconds=round(time.monotonic() - began, 3),
        )

    kind: Kind = "failed"
    reason = ""
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    with tempfile.TemporaryDirectory(
                        prefix=".capture-", dir=directory, ignore_cleanup_errors=True
                    ) as work:
                        return await attempt(Path(work))
                except StartError as error:
                    # What it said without any fallback is the reason that counts.
                    if not reason:
                        kind = "failed" if error.crashed else "does not start"
                        reason = str(error)
                    fits = [
                        fallback
                        for fallback in left
                        if re.search(fallback.when, error.said)
                        and fallback.apply(options) != options
                    ]
                    if not fits:
                        break
                    left.remove(fits[0])
                    options = fits[0].apply(options)
    except TimeoutError:
        kind, reason = "failed", f"no stream within {timeout:g} s"
    except RefusedError as error:
        kind, reason = "does not migrate", str(error)
    except CaptureError as error:
        kind, reason = "failed", str(error)
    return Without(emulator.qemu, emulator.target, machine, kind, reason)


Report = Callable[[Outcome], None]


def plan(emulators: Iterable[Emulator], patterns: Sequence[str] = ()) -> list[tuple[Emulator, str]]:
    """Every machine type once, those whose name fits a pattern (none given: all).

    A binary that goes by several names, or does a part of what another does, is not asked twice;
    the one that is called like its target goes first.
    """
    planned: dict[tuple[str, str, str], tuple[Emulator, str]] = {}
    for emulator in sorted(
        emulators, key=lambda e: (not e.binary.name.endswith(f"-{e.target}"), e.binary.name)
    ):
        for machine in emulator.machines:
            if not patterns or any(fnmatch.fnmatchcase(machine, p) for p in patterns):
                key = (emulator.qemu, emulator.target, machine)
                planned.setdefault(key, (emulator, machine))
    return [planned[key] for key in sorted(planned)]


async def capture_all(
    planned: Iterable[tuple[Emulator, str]],
    manifest: Manifest,
    *,
    jobs: int = 1,
    timeout: float = 60,
    args: Sequence[str] = (),
    memory: str | None = None,
    compress: bool = True,
    report: Report = lambda outcome: None,
) -> list[Outcome]:
    """Capture the machines of ``planned`` into the directory of ``manifest``, ``jobs`` at a time.

    Each outcome is in the manifest on the disk when ``report`` is called with it.  Cancelling
    leaves no QEMU running and keeps what was captured.  OSError if the directory cannot be written.
    """
    outcomes: list[Outcome] = []
    waiting = iter(planned)

    async def work() -> None:
        for emulator, machine in waiting:
            outcome = await capture_machine(
                emulator,
                machine,
                manifest.directory,
                timeout=timeout,
                args=args,
                memory=memory,
                compress=compress,
            )
            manifest.add(outcome)
            outcomes.append(outcome)
            report(outcome)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return outcomes


async def probe_all(
    binaries: Sequence[Path], *, jobs: int = 1, timeout: float = 60, args: Sequence[str] = ()
) -> tuple[list[Emulator], list[str]]:
    """Probe ``binaries``, ``jobs`` at a time: the QEMUs, and what is wrong with the others."""
    slots = asyncio.Semaphore(jobs)

    async def one(binary: Path) -> Emulator | str:
        async with slots:
            try:
                return await probe(binary, timeout=timeout, args=args)
            except CaptureError as error:
                return str(error)

    answers = await asyncio.gather(*map(one, binaries))
    emulators = [answer for answer in answers if isinstance(answer, Emulator)]
    return emulators, [answer for answer in answers if isinstance(answer, str)]


def find_binaries(names: Iterable[str]) -> list[Path]:
    """The binaries that ``names`` stand for: paths, commands on PATH, directories of QEMUs.

    FileNotFoundError if one stands for nothing that can be run.
    """
    found: dict[Path, None] = {}
    for name in names:
        if Path(name).is_dir():
            here = sorted(p for p in Path(name).glob("qemu-system-*") if os.access(p, os.X_OK))
            if not here:
                raise FileNotFoundError(f"no qemu-system-* in {name}")
        elif which := shutil.which(name):
            here = [Path(which)]
        else:
            raise FileNotFoundError(f"no such program: {name}")
        found.update((path.absolute(), None) for path in here)
    return list(found)


def _line(outcome: Outcome) -> str:
    if isinstance(outcome, Stream):
        return f"{outcome.file}: {outcome.size} bytes in {outcome.seconds:.1f} s"
    return f"{outcome.target} {outcome.machine}: {outcome.kind}: {outcome.reason}"


@dataclass(frozen=True, slots=True)
class _Request:
    """The command line."""

    binaries: list[Path]
    directory: Path | None
    patterns: tuple[str, ...]
    jobs: int
    timeout: float
    args: tuple[str, ...]
    memory: str | None
    compress: bool
    force: bool
    as_json: bool
    only_list: bool


async def _run(request: _Request) -> int:
    """Do what the command line asks for; its exit status."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    emulators, wrong = await probe_all(
        request.binaries, jobs=request.jobs, timeout=request.timeout, args=request.args
    )
    for text in wrong:
        click.echo(text, err=True)
    planned = plan(emulators, request.patterns)
    if emulators and not planned:
        raise click.UsageError("no machine type fits --machine")
    if request.only_list or request.directory is None:
        _list(planned, as_json=request.as_json)
        return 1 if wrong else 0

    request.directory.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(request.directory)
    missing = [
        (emulator, machine)
        for emulator, machine in planned
        if request.force or not manifest.has(emulator, machine)
    ]
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        bar = progress.add_task("capture", total=len(missing))

        def report(outcome: Outcome) -> None:
            progress.update(bar, advance=1, description=f"{outcome.target} {outcome.machine}")
            if not request.as_json:
                click.echo(_line(outcome))

        outcomes = await capture_all(
            missing,
            manifest,
            jobs=request.jobs,
            timeout=request.timeout,
            args=request.args,
            memory=request.memory,
            compress=request.compress,
            report=report,
        )
    streams = [outcome for outcome in outcomes if isinstance(outcome, Stream)]
    without = [outcome for outcome in outcomes if isinstance(outcome, Without)]
    there = len(planned) - len(missing)
    if request.as_json:
        document = {
            "there": there,
            "streams": [asdict(stream) for stream in streams],
            "without": [asdict(machine) for machine in without],
            "wrong": wrong,
        }
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(f"{len(streams)} captured, {there} already there, {len(without)} without stream")
    failed = wrong or any(machine.kind == "failed" for machine in without)
    return 1 if failed or not (streams or there) else 0


def _list(planned: Iterable[tuple[Emulator, str]], *, as_json: bool) -> None:
    rows = [{"qemu": e.qemu, "target": e.target, "machine": machine} for e, machine in planned]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(f"{row['qemu']}  {row['target']}  {row['machine']}")


@click.command("capture")
@click.argument("qemus", metavar="QEMU...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where streams and MANIFEST.json go; needed unless --list.",
)
@click.option(
    "--machine",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only machine types that fit, such as 'virt*'; repeatable.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    default=lambda: os.cpu_count() or 1,
    show_default="number of cores",
    help="How many QEMUs run at a time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For each machine.",
)
@click.option("--arg", "args", multiple=True, help="One more word for QEMU; repeatable.")
@click.option("--memory", metavar="SIZE", help="QEMU's -m.")
@click.option("--compress/--no-compress", default=True, help="Keep .bin.xz (default), or .bin.")
@click.option("--force", is_flag=True, help="Also capture what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Say what was done in JSON.")
@click.option("--list", "only_list", is_flag=True, help="Only list the machine types.")
def capture(
    qemus: tuple[str, ...],
    output: Path | None,
    patterns: tuple[str, ...],
    jobs: int,
    timeout: float,
    args: tuple[str, ...],
    memory: str | None,
    compress: bool,
    force: bool,
    as_json: bool,
    only_list: bool,
) -> None:
    """Have every machine type of real QEMUs write its migration stream, and keep it.

    QEMU is a binary, or a directory with qemu-system-* in it.  Machines whose stream is already in
    DIR are left alone, so an interrupted capture can be taken up again.

    Exit status: 0 streams were captured (or all there); 1 there are none, or a QEMU crashed, hung
    or failed to write its stream; 2 usage, or no such program.
    """
    if output is None and not only_list:
        raise click.UsageError("where to? (-o DIR)")
    try:
        binaries = find_binaries(qemus)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    request = _Request(
        binaries=binaries,
        directory=output,
        patterns=patterns,
        jobs=jobs,
        timeout=timeout,
        args=args,
        memory=memory,
        compress=compress,
        force=force,
        as_json=as_json,
        only_list=only_list,
    )
    try:
        status = asyncio.run(_run(request))
    except asyncio.CancelledError:
        raise click.Abort from None
    except (CaptureError, OSError) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(status)
