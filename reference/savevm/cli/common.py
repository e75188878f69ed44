"""What the commands share: reading an input with progress, and saying what is wrong with it."""

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from savevm.errors import StreamError
from savevm.source import Envelope, Source, SourceError
from savevm.stream.events import Event, Finding
from savevm.stream.reader import Reader
from savevm_spec.rules import rules

# Below this size no progress bar is worth its start-up.
_LONG = 64 << 20


class CannotRun(click.ClickException):
    """The command could not do its work."""

    exit_code = 2


snapshot_option = click.option(
    "--snapshot",
    metavar="TAG",
    help="The snapshot of a disk image, by name or id; not needed if only one has VM state.",
)


@contextmanager
def opened(name: str, snapshot: str | None = None) -> Iterator[Source]:
    """An input by path or ``-``; what cannot be opened ends the command with exit code 2."""
    try:
        with Source(name, snapshot) as source:
            yield source
    except BrokenPipeError:
        raise
    except SourceError as e:
        raise CannotRun(f"{name}: {e}") from None
    except OSError as e:
        raise CannotRun(f"{e.filename or name}: {e.strerror or e}") from None


def chunks(source: Source) -> Iterator[bytes]:
    """The input's chunks, behind a progress bar on standard error where that is a terminal."""
    # Standard error may be closed.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if not terminal or (source.size is not None and source.size < _LONG):
        yield from source.chunks()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(source.name, total=source.size)
        pending = 0
        shown = 0.0
        for chunk in source.chunks():
            yield chunk
            pending += len(chunk)
            if (now := time.monotonic()) - shown > 0.2:
                progress.advance(task, pending)
                pending, shown = 0, now


def fed(
    source: Source, reader: Reader, problems: "Problems"
) -> Iterator[tuple[bytes, list[Event]]]:
    """The input's chunks, each with what ``reader`` makes of it; last, no bytes and what was left.

    Broken rules, of the stream and of what it is wrapped in, go to ``problems``.
    """
    compressed = source.envelope is not None and source.envelope.compression is not None
    refused = None
    try:
        for chunk in chunks(source):
            if reader.error is None:
                events = reader.feed(chunk)
                problems.read(events)
                yield chunk, events
            elif not compressed:
                break
            # What was compressed may be damaged, which only its checksum tells.
    except StreamError as error:
        refused = error
    broken = reader.error
    events = reader.finish()
    problems.read(events)
    yield b"", events
    problems.read(source.findings)
    if refused is None:
        problems.end(reader)
        return
    problems.stop(refused)
    # A stream that ends where the envelope breaks has nothing wrong of its own.
    if broken is not None:
        problems.stop(broken)


def problem(rule: str, offset: int, section: str | None, detail: str) -> dict[str, Any]:
    """A broken rule as JSON."""
    known = rules()[rule]
    return {
        "rule": rule,
        "level": known.level,
        "violation": known.violation,
        "errno": known.errno,
        "offset": offset,
        "section": section,
        "detail": detail,
        "sentence": known.sentence,
        "errata": known.errata,
    }


class Problems:
    """The broken rules of one stream: the first few of each rule, and how many there were.

    A rule may be broken by every nine bytes of a stream, so they are not all kept.  ``error`` is
    what ended reading, if anything did.
    """

    EACH: Final = 100  # kept
    SHOWN: Final = 3  # to people

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.error: StreamError | None = None

    def add(self, rule: str, offset: int, section: str | None, detail: str) -> None:
        """One more broken rule."""
        self.counts[rule] += 1
        if self.counts[rule] <= self.EACH:
            self.entries.append(problem(rule, offset, section, detail))

    def read(self, events: Iterable[Event]) -> None:
        """Those among the events of a reader."""
        for event in events:
            if isinstance(event, Finding):
                self.add(event.rule, event.offset, event.section, event.detail)

    def end(self, reader: Reader) -> None:
        """The rule that ended reading, if any."""
        if reader.error is not None:
            self.stop(reader.error)

    def stop(self, error: StreamError) -> None:
        """The rule that ended reading; of several, the cause first."""
        self.error = self.error or error
        self.add(error.rule, error.offset, error.section, error.detail)

    @property
    def broken(self) -> bool:
        """Whether the stream is wrong, not just unusual."""
        return any(map(is_broken, self.entries))

    def lines(self, name: str) -> Iterator[str]:
        """A line for each of the first ``SHOWN`` of a rule, and one for how many more there are."""
        lines: Counter[str] = Counter()
        for entry in self.entries:
            lines[entry["rule"]] += 1
            if lines[entry["rule"]] <= self.SHOWN:
                yield line(name, entry)
        for rule, count in self.counts.items():
            if count > self.SHOWN:
                broken = is_broken(next(e for e in self.entries if e["rule"] == rule))
                kind = "error" if broken else "note"
                yield f"{shown(name)}: {kind}: {count - self.SHOWN} more of the kind [{rule}]"


def is_broken(problem: dict[str, Any]) -> bool:
    """Whether the stream is wrong, not just unusual."""
    return bool(problem["violation"] == "reject" or problem["level"] == "MUST")


def line(name: str, problem: dict[str, Any]) -> str:
    """One broken rule on one line, file first as compilers do."""
    kind = "error" if is_broken(problem) else "note"
    section = f" in section {problem['section']!r}" if problem["section"] is not None else ""
    errata = f" ({problem['errata']})" if problem["errata"] else ""
    return (
        f"{shown(name)}: {kind}: offset {problem['offset']}{section}: {problem['detail']}{errata} "
        f"[{problem['rule']}]"
    )


def shown(text: str) -> str:
    """``text`` from a stream or a file name, for a terminal: nothing in it moves the cursor."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def described(envelope: Envelope) -> str:
    """What a stream comes wrapped in, on one line."""
    if (image := envelope.libvirt) is not None:
        from xml.sax.saxutils import unescape

        name = re.search("<name>(.*?)</name>", image.domain_xml, re.DOTALL)
        domain = f", domain {unescape(name[1])!r}" if name else ""
        running = "was running" if image.was_running else "was paused"
        return (
            f"libvirt save image version {image.version}, {image.byte_order}-endian, "
            f"{image.format}{domain}, {running}; stream from {image.stream_offset} on"
        )
    if (snapshot := envelope.snapshot) is not None:
        return (
            f"disk image, snapshot {snapshot.name!r} with id {snapshot.id!r}, "
            f"{size(snapshot.vm_state_size)} of VM state"
        )
    return f"{envelope.compression} data"


def size(count: int) -> str:
    """Bytes for people: the largest binary unit that gives a whole number."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} B"
