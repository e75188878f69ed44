"""``savevm machine``: the emulated machine, with QEMU's own options."""

import asyncio
import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

import savevm

if TYPE_CHECKING:
    from savevm.machine.cpu import Features
    from savevm.machine.spike import Spike
    from savevm.monitor.emulator import Console, Emulator
    from savevm.monitor.lines import Backend
    from savevm.monitor.options import Chardev, Options

USAGE: Final = """Usage: savevm machine -M spike [OPTION]...

An emulated RISC-V board, "spike" as QEMU lays it out, that takes QEMU's options, is commanded over
QMP as a QEMU is, and migrates live to and from QEMU 5.2, 7.2, 10.0 and 11.1.

"""


class _Raw(click.Command):
    """A command whose arguments are its own business: options here begin with one dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["argv"] = tuple(args)
        return []


@click.command(cls=_Raw)
def machine(argv: Sequence[str]) -> int:
    """Run an emulated machine that migrates with real QEMUs."""
    from savevm.monitor.options import OptionError, help_text, parse

    _open_standard()
    try:
        options = parse(argv)
        if options.question is not None:
            answers = {
                "help": USAGE + "Options:\n" + help_text(),
                "machines": "Supported machines are:\nspike                RISC-V Spike board",
                "version": f"savevm machine {savevm.__version__} ({savevm.build()})",
            }
            click.echo(answers[options.question])
            return 0
        code = _run(options)
    except OptionError as error:
        print(f"savevm machine: {error}", file=sys.stderr)
        return 1
    # Python waits for threads, and they for a FIFO that nobody opens, or a command that never ends.
    for stream in (sys.stdout, sys.stderr):
        # Nobody may read them any more.
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_standard() -> None:
    """Open standard descriptors that are closed on nothing: any file might get their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _run(options: "Options") -> int:
    """Build the machine and run it: the exit code.  Raises ``OptionError``."""
    # Not before it is needed: these compile, or are compiled.
    from savevm.machine.spike import Spike
    from savevm.monitor import commands, snapshots
    from savevm.monitor.emulator import Console, Emulator
    from savevm.monitor.options import OptionError
    from savevm.monitor.qmp import CommandError
    from savevm.qcow2 import Image

    assert commands
    for drive in options.drives:
        with _told(f"-drive file={drive.path}"), Image(drive.path, locked=False):
            pass
    console = Console()
    with _told("-cpu"):
        features = _features(options.features)
    with _told("-m"):
        board = Spike(
            options.memory,
            options.harts,
            deterministic=options.shift,
            console=console.write,
            features=features,
        )
    _load(board, options)
    console.typed = board.console_input
    backends = []
    for chardev in options.chardevs.values():
        with _told(chardev.option):
            backends.append(_backend(chardev, options))
    emulator = Emulator(
        board,
        options.settings,
        name=options.name,
        uuid=options.uuid,
        incoming_uri=options.incoming,
        autostart=options.autostart,
        reboots=options.reboots,
        shuts_down=options.shuts_down,
        drives=options.drives,
        backends=backends,
        credentials=options.credentials,
    )
    _connect(emulator, console, options)
    if options.loadvm is not None:
        try:
            snapshots.restore(emulator, options.loadvm)
        except CommandError as error:
            raise OptionError(str(error)) from None
    with _pidfile(options.pidfile), _told(""):
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(emulator.run())
        except CommandError as error:
            raise OptionError(f"-incoming {options.incoming}: {error}") from None
        finally:
            # It would complain of commands that nobody answers any more.
            loop.set_exception_handler(lambda loop, what: None)
            loop.close()


def _features(switched: dict[str, bool]) -> "Features":
    """What the harts have, after ``switched``; raises ``ValueError``."""
    from savevm.machine.cpu import Features

    plain = Features()
    letters = [
        letter
        for letter in "IMAFDCSU"
        if switched.get(letter.lower(), bool(plain.misa >> ord(letter) - ord("A") & 1))
    ]
    if "D" in letters and "F" not in letters:
        raise ValueError("a hart with 'd' has 'f'")
    return Features(
        "".join(letters),
        sstc=switched.get("sstc", plain.sstc),
        svadu=switched.get("svadu", plain.svadu),
        svpbmt=switched.get("svpbmt", plain.svpbmt),
    )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the system, and of files, are the option's."""
    from savevm.errors import StreamError
    from savevm.monitor.options import OptionError
    from savevm.monitor.qmp import describe

    try:
        yield
    except StreamError as error:
        raise OptionError(f"{what}: {error}") from None
    except (OSError, ValueError) as error:
        raise OptionError(f"{what}: {describe(error)}".removeprefix(": ")) from None


@contextlib.contextmanager
def _pidfile(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with _told("cannot create PID file"), open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _load(board: "Spike", options: "Options") -> None:
    """Put files in RAM; raises ``OptionError`` that names the option and the file."""
    from savevm.machine.loader import ImageError, raw_image, read_image
    from savevm.monitor.options import OptionError

    where = {
        "kernel": f"-kernel {options.kernel}",
        "firmware": f"-bios {options.bios}",
        "initrd": f"-initrd {options.initrd}",
        "device tree": "-m",
    }
    try:
        board.load_image(options.kernel, options.bios, options.initrd, options.append)
        for loader in options.images:
            where["image"] = loader.option
            data = read_image("image", loader.path, board.ram.used_length)
            board.add_image(raw_image(data, loader.address))
    except ImageError as error:
        raise OptionError(f"{where[error.image]}: {error}") from None


def _backend(chardev: "Chardev", options: "Options") -> "Backend":
    """The character device; what listens does so from now on."""
    from savevm.monitor import lines
    from savevm.monitor.options import OptionError, switch
    from savevm.transport.address import Address

    given = chardev.options
    if chardev.backend == "null":
        return lines.NullBackend(chardev.id)
    if chardev.backend == "stdio":
        return lines.StdioBackend(chardev.id, signal=switch("signal", given.get("signal", "on")))
    if chardev.backend == "file":
        append = switch("append", given.get("append", "off"))
        return lines.FileBackend(chardev.id, given["path"], append=append)
    server = switch("server", given.get("server", "off"))
    place: Address | socket.socket
    if "fd" in given:
        number = given["fd"]
        if not number.isdigit() or not _is_socket(int(number)):
            raise OptionError(f"{chardev.option}: Unable to parse FD number {number}, or no socket")
        place = socket.socket(fileno=os.dup(int(number)))
    elif "path" in given:
        place = Address("unix", given["path"])
    else:
        port = given.get("port", "")
        if not port.isdigit() or int(port) > 65535:
            raise OptionError(f"{chardev.option}: Parameter 'port' expects a number below 65536")
        place = Address("tcp", given.get("host", ""), int(port))
    try:
        return lines.SocketBackend(
            chardev.id,
            place,
            server=server,
            wait=server and switch("wait", given.get("wait", "on")),
            single=chardev.mux or chardev.id == options.serial,
        )
    except OSError as error:
        doing = "bind socket to" if server else "connect to"
        raise OptionError(
            f"{chardev.option}: Failed to {doing} {error.filename or place}: {error.strerror}"
        ) from None


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except (OSError, OverflowError):
        return False


def _connect(emulator: "Emulator", console: "Console", options: "Options") -> None:
    """Put the front ends to their character devices."""
    from savevm.monitor.hmp import Monitor
    from savevm.monitor.lines import FrontEnd, Mux
    from savevm.monitor.qmp import Qmp

    fronts: dict[str, list[FrontEnd]] = {}
    if options.serial is not None:
        fronts[options.serial] = [console]
    for monitor in options.monitors:
        fronts.setdefault(monitor.chardev, []).append(
            Qmp(emulator, pretty=monitor.pretty) if monitor.mode == "control" else Monitor(emulator)
        )
    for backend in emulator.backends:
        attached = fronts.get(backend.label, [])
        if options.chardevs[backend.label].mux and attached:
            backend.front = Mux(attached, lambda: emulator.end("host-ui"))
        elif attached:
            backend.front = attached[0]
