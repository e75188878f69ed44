"""``savevm convert``: a stream in another dialect or another envelope."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from tempfile import gettempdir
from typing import Any, NoReturn

import click

from savevm.channel import ChannelError
from savevm.cli.common import (
    CannotRun,
    Problems,
    chunks,
    fed,
    opened,
    shown,
    size,
    snapshot_option,
)
from savevm.convert import CannotConvertError, Plan, ReadBack, Saved, plan, write
from savevm.destination import (
    COMPRESSIONS,
    Destination,
    FileDestination,
    SnapshotDestination,
    StandardDestination,
    wrap,
)
from savevm.errors import StreamError
from savevm.savable import CannotExpressError
from savevm.source import Envelope, Source
from savevm.stream.reader import Reader
from savevm.transport.fd import Descriptor
from savevm_spec.dialects import DIALECTS

_NOT_WRITTEN = "not written (--force writes it all the same)"
_DIALECTS = [name for name in DIALECTS if name != "v1"]


class _Refused(CannotRun):
    """What the stream has cannot be written so; each line is a reason."""


@contextmanager
def _destination(name: str) -> Iterator[None]:
    """What cannot be done with the output ends the command with exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except FileExistsError as e:
        raise CannotRun(f"{shown(name)}: {e.strerror or e} (--force replaces it)") from None
    except OSError as e:
        # Its file name may be that of a part.
        raise CannotRun(f"{shown(name)}: {e.strerror or e}") from None
    except (StreamError, ValueError) as e:
        raise CannotRun(f"{shown(name)}: {e}") from None


class _Request:
    """What was asked for, in one place."""

    def __init__(self, **options: Any) -> None:
        self.dst: str = options["dst"]
        self.to: str | None = options["dialect"]
        self.machine: str | None = options["machine"]
        self.block: str | None = options["block"]
        self.drop: tuple[str, ...] = options["drop"]
        self.envelope: str | None = options["envelope"]
        self.compress: str = options["compress"]
        self.xml: str | None = options["xml"]
        self.tag: str | None = options["tag"]
        self.force: bool = options["force"]
        self.check(options["as_json"])

    def check(self, as_json: bool) -> None:
        """Refuse options that mean nothing here."""
        for name, value in (("machine", self.machine), ("block", self.block), ("drop", self.drop)):
            if value and self.to is None:
                raise click.UsageError(f"--{name} needs --to DIALECT")
        if self.machine and self.to and not DIALECTS[self.to].configuration:
            raise click.UsageError(f"--machine: dialect {self.to} has no machine name")
        if (self.xml or self.compress != "raw") and self.envelope != "libvirt":
            raise click.UsageError("--xml and --compress need --envelope libvirt")
        if (self.tag is None) != (self.envelope != "qcow2"):
            raise click.UsageError("--envelope qcow2 and --tag NAME need each other")
        if self.dst == "-":
            if self.envelope == "qcow2":
                raise click.UsageError("a disk image is not written to standard output")
            if as_json:
                raise click.UsageError("--json would end up within the stream: DST is -")
            if sys.stdout.isatty():
                raise CannotRun("standard output is a terminal")

    def open(self, envelope: Envelope | None) -> Destination:
        """The output, with what lies before the stream in it; ``envelope`` is that of SRC."""
        if self.tag is not None:
            old = envelope.snapshot if envelope else None
            return SnapshotDestination(
                self.dst,
                self.tag,
                replace=self.force,
                vm_clock=old.vm_clock if old else 0,
                icount=old.icount if old else None,
            )
        head = self._head(envelope)
        compression = self.envelope if self.envelope in COMPRESSIONS else None
        if self.envelope == "libvirt" and self.compress != "raw":
            compression = self.compress
        inner: FileDestination | StandardDestination = (
            StandardDestination()
            if self.dst == "-"
            else FileDestination(self.dst, replace=self.force)
        )
        return wrap(inner, head, compression)

    def _head(self, envelope: Envelope | None) -> bytes:
        if self.envelope != "libvirt":
            return b""
        from savevm.envelope.libvirt import build

        image = envelope.libvirt if envelope else None
        if self.xml is not None:
            try:
                with open(self.xml, encoding="utf-8", errors="surrogateescape") as file:
                    domain_xml = file.read()
            except OSError as e:
                raise CannotRun(f"{shown(self.xml)}: {e.strerror}") from None
        elif image is not None:
            domain_xml = image.domain_xml
        else:
            raise CannotRun("SRC is no save image of libvirt, so it has no domain XML (--xml FILE)")
        return build(
            domain_xml,
            image.cookie if image else None,
            was_running=image.was_running if image else False,
            format=self.compress,
        )

    @property
    def there(self) -> bool:
        """Whether something would be replaced."""
        if self.tag is None:
            return os.path.isfile(self.dst)
        from savevm.qcow2 import Image

        with Image(self.dst) as image:
            return any(snapshot.name == self.tag for snapshot in image.snapshots())


def _say(name: str, problems: Problems) -> None:
    for text in problems.lines(name):
        click.echo(text, err=True)


def _copy(source: Source, out: Destination, request: _Request, problems: Problems) -> int:
    """The stream's bytes as they are, and read on the way; how many.

    What comes behind a broken rule that ends reading is written only by force.
    """
    reader = Reader(description=source.description(), searched=source.size is not None)
    count = 0
    refused = None
    try:
        for chunk in chunks(source):
            problems.read(reader.feed(chunk))
            if reader.error is not None and not request.force:
                break
            with _destination(request.dst):
                out.write(chunk)
            count += len(chunk)
    except StreamError as e:
        refused = e
    broken = reader.error
    problems.read(reader.finish())
    problems.read(source.findings)
    if refused is None:
        problems.end(reader)
    else:
        problems.stop(refused)
        if broken is not None:
            problems.stop(broken)
    return count


def _wrap(source: Source, envelope: Envelope | None, request: _Request, problems: Problems) -> int:
    """Write the stream of ``source`` into an envelope; how many bytes it has.

    ``envelope`` is the old one.
    """
    with _destination(request.dst):
        there = request.force and request.there
        out = request.open(envelope)
    with closing(out):
        count = _copy(source, out, request, problems)
        if problems.broken and (there or not request.force):
            why = "what is there is not replaced by a broken stream" if there else _NOT_WRITTEN
            _give_up(source, problems, request.dst, why)
        with _destination(request.dst):
            out.finish()
    return count


def _give_up(source: Source, problems: Problems, dst: str, why: str) -> NoReturn:
    """The stream breaks a rule, and what was asked for is not done."""
    _say(source.name, problems)
    click.echo(f"Error: {shown(dst)}: {why}", err=True)
    sys.exit(1)


def _load(source: Source, request: _Request, problems: Problems) -> Saved:
    """All that is in the stream."""
    saved = Saved(
        description=source.description(),
        searched=source.size is not None,
        block_name=request.block,
    )
    for _, events in fed(source, saved.reader, problems):
        saved.take(events)
    if problems.error is not None or (problems.broken and not request.force):
        why = _NOT_WRITTEN if problems.error is None else "not written: not all could be read"
        _give_up(source, problems, request.dst, why)
    saved.finish()
    return saved


def _plan(saved: Saved, request: _Request, name: str) -> Plan:
    assert request.to is not None
    try:
        return plan(saved, request.to, machine=request.machine, drop=request.drop)
    except CannotConvertError as e:
        raise _refusal(name, request.to, list(e.reasons)) from None


def _refusal(name: str, target: str, reasons: list[str]) -> _Refused:
    lines = [f"{shown(name)}: cannot be written in dialect {target}:"]
    return _Refused("\n".join([*lines, *(f"  {shown(reason)}" for reason in reasons)]))


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of a save, on standard error where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, left: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, left: progress.update(task, completed=done, total=done + left)


def _rewrite(plan: Plan, out: FileDestination, request: _Request, name: str) -> int:
    """Write the plan to a file and hold it against what was to be written; its size in bytes."""
    operations = Descriptor(os.dup(out.fd), out.part, start=0)
    try:
        with _bar(request.dst) as progress:
            count = write(plan, operations, progress)
    except CannotExpressError as e:
        raise _refusal(name, plan.form.dialect.name, [str(e)]) from None
    except ChannelError as e:
        raise CannotRun(f"{shown(request.dst)}: {operations.reason or e.strerror}") from None
    with opened(out.part) as written:
        back = ReadBack(plan, written.description())
        for chunk in chunks(written):
            back.take(back.reader.feed(chunk))
        back.take(back.reader.finish())
    if (difference := back.difference()) is not None:
        why = f"what was written cannot be read again: {difference}"
        raise _refusal(name, plan.form.dialect.name, [why])
    return count


def _convert(
    source: Source, request: _Request, problems: Problems, summary: dict[str, Any]
) -> None:
    """Write the stream of ``source`` in another dialect, then into its envelope."""
    saved = _load(source, request, problems)
    planned = _plan(saved, request, source.name)
    summary["dialect"] = {"from": saved.dialect, "to": request.to}
    summary["dropped"] = planned.dropped
    summary["sections"] = len(planned.registry.entries)
    summary["ram"] = [{"idstr": b.name, "used_length": b.used_length} for b in saved.blocks]
    in_place = request.dst != "-" and (
        os.path.isfile(request.dst) or not os.path.exists(request.dst)
    )
    # Beside the output there is room for something of its size.
    beside = os.path.dirname(os.path.realpath(request.dst)) if in_place else gettempdir()
    bare = in_place and request.envelope is None
    with _destination(request.dst):
        out = FileDestination(
            request.dst if bare else os.path.join(beside, f"savevm-{os.getpid()}"),
            replace=request.force,
        )
    with closing(out):
        summary["bytes"] = _rewrite(planned, out, request, source.name)
        if bare:
            with _destination(request.dst):
                out.finish()
            return
        with opened(out.part) as written:
            _wrap(written, source.envelope, request, Problems())


@click.command()
@click.argument("src")
@click.argument("dst")
@snapshot_option
@click.option(
    "--to",
    "dialect",
    type=click.Choice(_DIALECTS),
    help="Write the machine anew in this dialect; without, the bytes of the stream stay as they are.",
)
@click.option("--machine", metavar="NAME", help="The machine's name in the configuration.")
@click.option(
    "--block", metavar="NAME", help="The name of RAM that has none in SRC; pc.ram is a PC's."
)
@click.option(
    "--drop",
    multiple=True,
    metavar="WHAT",
    help="Leave out what the dialect has no form for: configuration, commands, order (that "
    "sections came before RAM), or sections by a shell pattern of their idstr.",
)
@click.option(
    "--envelope",
    type=click.Choice(["libvirt", "qcow2", *COMPRESSIONS]),
    help="What to wrap the stream in; without, it is bare.",
)
@click.option(
    "--compress",
    type=click.Choice(["raw", *COMPRESSIONS]),
    default="raw",
    show_default=True,
    help="How the save image of libvirt has the stream.",
)
@click.option(
    "--xml", metavar="FILE", help="The domain XML of the save image, if SRC has none or another."
)
@click.option("--tag", metavar="NAME", help="The snapshot to make in the disk image.")
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace the file or snapshot that is there; write even what breaks a rule, if nothing "
    "is there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(src: str, dst: str, snapshot: str | None, as_json: bool, **options: Any) -> None:
    """Write a stream in another dialect or envelope.

    SRC is a path, or - for standard input: a stream, compressed or not, a save image of libvirt, or
    a disk image (qcow2) with a snapshot.  DST is a path, - for standard output, or with --envelope
    qcow2 a disk image, which must be there.  It takes its name, or gets its snapshot, when all has
    been written and read again; until then nothing is changed.

    With --to, devices stay as they are, byte for byte; RAM is written anew.  What the dialect has no
    form for is refused, all of it with the reason and exit code 2.  A SRC that breaks a rule gives
    exit code 1.
    """
    request = _Request(dst=dst, as_json=as_json, **options)
    problems = Problems()
    summary: dict[str, Any] = {
        "source": src,
        "destination": dst,
        "envelope": request.envelope,
        "dialect": None,
        "dropped": [],
    }
    with opened(src, snapshot) as source:
        if request.to is None:
            summary["bytes"] = _wrap(source, source.envelope, request, problems)
        else:
            _convert(source, request, problems, summary)
    _say(src, problems)
    summary["problems"] = problems.entries
    if as_json:
        click.echo(json.dumps(summary))
    elif dst != "-":
        for what in summary["dropped"]:
            click.echo(f"{shown(dst)}: without {shown(what)}")
        dialects = summary["dialect"]
        how = f", from {dialects['from']} to {dialects['to']}" if dialects else ""
        wrapped = f", in {request.envelope}" if request.envelope else ""
        click.echo(f"{shown(dst)}: {size(summary['bytes'])}{how}{wrapped}")
    sys.exit(1 if problems.broken else 0)
