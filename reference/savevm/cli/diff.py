"""``savevm diff``: what is not the same in two saved machines."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import click

from savevm.cli.common import CannotRun, Problems, chunks, fed, opened, shown
from savevm.diff import Contents, Difference, Ignored, PageContents, differences
from savevm.source import Source
from savevm.stream.reader import Reader
from savevm_spec.constants import (
    BLOCK_IDSTR,
    HTAB_IDSTR,
    RAM_IDSTR,
    RAM_PAGE_SIZE_DEFAULT,
    STORAGE_ATTRIBUTES_IDSTR,
)

# Lines of one section, and runs on one line, without --all.
_LINES = 10
_RUNS = 4
# Bytes that are shown of what differs.
_BYTES = 8
_UNITS = {
    RAM_IDSTR: "page",
    BLOCK_IDSTR: "MiB",
    HTAB_IDSTR: "entry",
    STORAGE_ATTRIBUTES_IDSTR: "attribute",
}


def _contents(source: Source, page_size: int) -> Contents:
    contents = Contents(
        description=source.description(), searched=source.size is not None, page_size=page_size
    )
    problems = Problems()
    for _, events in fed(source, contents.reader, problems):
        contents.take(events)
    if problems.error is not None:
        for text in problems.lines(source.name):
            click.echo(text, err=True)
        raise CannotRun(f"{shown(source.name)}: not all could be read, so nothing is compared")
    contents.finish()
    if contents.flaw is not None:
        raise CannotRun(f"{shown(source.name)}: {contents.flaw}")
    return contents


def _pages(
    name: str, snapshot: str | None, contents: Contents, found: dict[str, int]
) -> dict[str, bytearray]:
    """The page at one address of each block, from a second look at the stream."""
    wanted = found
    if contents.unnamed and len(found) == 1:
        (wanted_name,) = contents.reader.blocks
        wanted = {wanted_name: next(iter(found.values()))}
    sink = PageContents(wanted, contents.page_size)
    with opened(name, snapshot) as source:
        reader = Reader(
            description=source.description(), searched=source.size is not None, sink=sink
        )
        for chunk in chunks(source):
            reader.feed(chunk)
        reader.finish()
    return {block: sink.pages[other] for block, other in zip(found, wanted, strict=True)}


def _look(found: list[Difference], sides: list[tuple[str, str | None, Contents]]) -> None:
    """Say of each RAM block where its first byte is that differs."""
    blocks = {
        d.path.removeprefix(f"{RAM_IDSTR}/"): d
        for d in found
        if d.kind == "units" and d.path.startswith(f"{RAM_IDSTR}/")
    }
    if not blocks or any(name == "-" for name, _, _ in sides):
        return
    wanted = {block: d.runs[0] for block, d in blocks.items()}
    a, b = (_pages(*side, wanted) for side in sides)
    for block, d in blocks.items():
        one, other = bytes(a[block]), bytes(b[block])
        at = next((i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y), None)
        if at is not None:
            d.first = wanted[block] + at
            d.a, d.b = one[at : at + _BYTES], other[at : at + _BYTES]


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int):
        return hex(value) if abs(value) > 9 else str(value)
    if isinstance(value, bytes):
        return value.hex(" ") or "nothing"
    return f"{len(value)} elements" if isinstance(value, list) else "a structure"


def _ranges(d: Difference, limit: int | None) -> str:
    runs = list(zip(d.runs[::2], d.runs[1::2], strict=True))
    text = ", ".join(f"{start:#x}-{end - 1:#x}" for start, end in runs[:limit])
    return text + (" …" if limit is not None and len(runs) > limit else "")


def _text(d: Difference, names: tuple[str, str], whole: bool) -> str:
    path = shown(d.path)
    if d.kind == "missing":
        return f"{path}: only in {shown(names[d.only == 'b'])}"
    if d.kind == "value":
        return f"{path}: {_value(d.a)} != {_value(d.b)}"
    contents = f"at {d.first:#x}: {_value(d.a)} != {_value(d.b)}"
    if d.kind == "bytes":
        a, b = d.lengths
        lengths = f"{a}" if a == b else f"{a} and {b}"
        return f"{path}: {d.count} of {lengths} bytes differ, first {contents}"
    unit = next((u for s, u in _UNITS.items() if d.path.startswith(s)), "unit")
    differ = f"{unit} differs" if d.count == 1 else f"{unit.replace('entry', 'entrie')}s differ"
    first = f"; first {contents}" if d.first >= 0 else ""
    return f"{path}: {d.count} {differ}: {_ranges(d, None if whole else _RUNS)}{first}"


def _lines(found: Iterable[Difference], names: tuple[str, str], whole: bool) -> Iterator[str]:
    """A line for each difference, but only so many of a section."""
    every = list(found)
    counts: Counter[str] = Counter()
    for d, following in pairwise([*every, None]):
        assert d is not None
        section = d.section
        counts[section] += 1
        if whole or counts[section] <= _LINES:
            yield _text(d, names, whole)
        elif following is None or following.section != section:
            yield f"{shown(section)}: {counts[section] - _LINES} more (--all)"


def _json(d: Difference) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, (bytes, bytearray)):
            return value.hex()
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    result: dict[str, Any] = {"path": d.path, "kind": d.kind}
    if d.kind == "missing":
        return result | {"only": d.only}
    result |= {"a": plain(d.a), "b": plain(d.b)}
    if d.kind == "value":
        return result
    result |= {"count": d.count, "first": d.first if d.first >= 0 else None}
    if d.kind == "bytes":
        return result | {"lengths": d.lengths}
    runs = zip(d.runs[::2], d.runs[1::2], strict=True)
    return result | {"size": d.size, "ranges": [[start, end - 1] for start, end in runs]}


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--snapshot-a", metavar="TAG", help="The snapshot of A, if that is a disk image.")
@click.option("--snapshot-b", metavar="TAG", help="The snapshot of B, if that is a disk image.")
@click.option(
    "-i",
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="Leave out sections or fields by a shell pattern of their path, and all in them; clocks "
    "stands for what moves with time.",
)
@click.option("--all", "whole", is_flag=True, help="Shorten no list.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code tells.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(
    a: str,
    b: str,
    snapshot_a: str | None,
    snapshot_b: str | None,
    ignore: tuple[str, ...],
    whole: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare two saved machines.

    A and B are as for inspect, in any dialects and envelopes; one of them may be -.  What is
    compared is the configuration, the fields of devices, the pages of RAM, and what other live
    sections hold; not how the stream is cut into records.  A path is the idstr of a section, with
    #INSTANCE if that is not 0, and behind a / the field: cpu/env.regs[3], ram/pc.ram.

    Exit codes: 0 nothing differs, 1 something does, 2 the two cannot be compared.
    """
    if a == b == "-":
        raise click.UsageError("standard input cannot be both")
    sides: list[tuple[str, str | None, Contents]] = []
    page_size = RAM_PAGE_SIZE_DEFAULT
    for name, tag in ((a, snapshot_a), (b, snapshot_b)):
        with opened(name, tag) as source:
            sides.append((name, tag, _contents(source, page_size)))
        page_size = sides[-1][2].page_size
    if sides[0][2].page_size != page_size and not sides[0][2].reader.page_size and a != "-":
        with opened(a, snapshot_a) as source:
            sides[0] = a, snapshot_a, _contents(source, page_size)
    try:
        found = list(differences(sides[0][2], sides[1][2], Ignored(ignore)))
    except ValueError as e:
        raise CannotRun(str(e)) from None
    if not quiet:
        _look(found, sides)
    if as_json:
        result = {
            name: {"file": file, "dialect": contents.dialect}
            for name, (file, _, contents) in zip("ab", sides, strict=True)
        }
        click.echo(
            json.dumps({**result, "equal": not found, "differences": [_json(d) for d in found]})
        )
    elif not quiet:
        for text in _lines(found, (a, b), whole):
            click.echo(text)
    sys.exit(1 if found else 0)
