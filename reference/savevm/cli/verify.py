"""``savevm verify``: which rules a stream breaks, and where."""

import json
import sys

import click

from savevm.cli.common import CannotRun, Problems, chunks, fed, opened, snapshot_option
from savevm.errors import StreamError
from savevm.rebuild import Rebuilder
from savevm.source import Source
from savevm.stream.events import Event
from savevm.stream.reader import Reader
from savevm_spec.rules import rules


class _Comparison:
    """Compares what is rebuilt with what was read, as both come in."""

    def __init__(self) -> None:
        self.rebuilder = Rebuilder()
        self._read = bytearray()
        self._offset = 0
        self.difference: int | None = None

    def add(self, chunk: bytes, events: list[Event], reader: Reader) -> None:
        self._read += chunk
        built = self.rebuilder.write(events, reader)
        if self.difference is not None:
            return
        if not self._read.startswith(built):
            same = next(
                (i for i, (a, b) in enumerate(zip(built, self._read, strict=False)) if a != b),
                min(len(built), len(self._read)),
            )
            self.difference = self._offset + same
        del self._read[: len(built)]
        self._offset += len(built)

    def finish(self, reader: Reader) -> str | None:
        """What is wrong, or None.  Bytes behind the stream are no part of it."""
        if self.difference is None and self._read and reader.trailing is None:
            self.difference = self._offset
        if self.difference is None:
            return None
        return f"built again, the stream differs from offset {self.difference} on"


def _with_reference(source: Source, rebuild: bool) -> tuple[Problems, str | None]:
    problems = Problems()
    comparison = _Comparison() if rebuild else None
    reader = Reader(
        description=source.description(),
        searched=source.size is not None,
        sink=comparison.rebuilder.sink if comparison else None,
    )

    for chunk, events in fed(source, reader, problems):
        if comparison:
            comparison.add(chunk, events, reader)
    if problems.error is not None or comparison is None:
        return problems, None
    return problems, comparison.finish(reader)


def _with_grammar(source: Source, rebuild: bool) -> tuple[Problems, str | None]:
    try:
        from savevm_spec.stream import build, parse
    except ModuleNotFoundError as e:
        raise CannotRun(
            f"the grammar needs the package {e.name!r}: pip install 'savevm[spec]'"
        ) from None
    problems = Problems()
    try:
        data = b"".join(chunks(source))
    except StreamError as e:
        problems.add(e.rule, e.offset, e.section, e.detail)
        return problems, None
    finally:
        problems.read(source.findings)
    stream = parse(data)
    for finding in stream.findings:
        problems.add(*finding, rules()[finding.rule].sentence)
    if (error := stream.error) is not None:
        sentence = rules()[error.rule].sentence
        problems.add(error.rule, error.offset, error.section, sentence)
    elif rebuild:
        built = build(stream)
        if not data.startswith(built):
            return problems, "built again, the stream differs"
    return problems, None


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@snapshot_option
@click.option(
    "--rebuild", is_flag=True, help="Also build the stream again from what was parsed, and compare."
)
@click.option(
    "--with",
    "implementation",
    type=click.Choice(["reference", "grammar"]),
    default="reference",
    show_default=True,
    help="Which implementation reads; the grammar is slow and reads the whole file into memory.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file, one per line.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing about streams that break no rule.")
def verify(
    files: tuple[str, ...],
    snapshot: str | None,
    rebuild: bool,
    implementation: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell whether streams are whole and follow the rules.

    FILE is a path, or - for standard input.  Every broken rule is printed with its offset: errors
    make the exit code 1, notes do not.  A file that cannot be read makes it 2.
    """
    read = _with_reference if implementation == "reference" else _with_grammar
    code = 0
    for name in files:
        try:
            with opened(name, snapshot) as source:
                problems, difference = read(source, rebuild)
        except CannotRun as e:
            code = 2
            if as_json:
                click.echo(json.dumps({"file": name, "verdict": "unreadable", "detail": e.message}))
            else:
                click.echo(f"savevm: {e.message}", err=True)
            continue
        good = difference is None and not problems.broken
        if not good:
            code = max(code, 1)
        if as_json:
            result = {
                "file": name,
                "verdict": "good" if good else "broken",
                "problems": problems.entries,
                "counts": problems.counts,
                "rebuilt": None if not rebuild else difference is None,
            }
            click.echo(json.dumps(result))
            continue
        for text in problems.lines(name):
            click.echo(text)
        if difference is not None:
            click.echo(f"{name}: error: {difference}")
        if good and not quiet:
            click.echo(f"{name}: good" + (", and the same when built again" if rebuild else ""))
    sys.exit(code)
