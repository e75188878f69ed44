"""``savevm conformance``: run the vectors, list them, write them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from savevm_conformance.adapters import OURS, load
from savevm_conformance.locate import vectors_directory
from savevm_conformance.report import show
from savevm_conformance.runner import (
    CASE_SECONDS,
    STREAM_SECONDS,
    Case,
    Report,
    cases,
    run_streams,
    run_vectors,
    stream_files,
)


@click.group()
def conformance() -> None:
    """Hold readers of the stream against the conformance vectors."""


def _vectors(areas: Sequence[str] = (), rules: Sequence[str] = ()) -> tuple[Case, ...]:
    try:
        return cases(vectors_directory(), areas, rules)
    except (OSError, KeyError, ValueError) as error:
        raise click.UsageError(f"the vectors cannot be read: {error}") from error


@contextmanager
def _progress(json_lines: bool, total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=json_lines) as progress:
        task = progress.add_task("running", total=total)
        yield lambda: progress.advance(task)


@conformance.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--area", "areas", multiple=True, help="Only vectors of this area (repeatable).")
@click.option("--rule", "rules", multiple=True, help="Only vectors of this rule (repeatable).")
@click.option(
    "--streams",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also every *.bin and *.bin.xz in this directory: all targets must accept each, say the "
    "same of it and rebuild it byte for byte.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Processes; default: one per CPU.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Seconds per case; default: {CASE_SECONDS:g} for a vector, {STREAM_SECONDS:g} for a "
    "stream.",
)
@click.option("--json", "json_lines", is_flag=True, help="Print the report as JSON lines.")
@click.pass_context
def run(
    context: click.Context,
    targets: tuple[str, ...],
    areas: tuple[str, ...],
    rules: tuple[str, ...],
    directory: Path | None,
    jobs: int | None,
    time_limit: float | None,
    json_lines: bool,
) -> None:
    """Run TARGETs on the vectors.

    A TARGET is reference, spec, or module:attribute (an object with transcribe and rebuild, or a
    callable that gives one); without any: reference and spec.

    The exit status is 0 if everything passed, 1 if something failed, 2 if nothing could be run.
    """
    targets = tuple(dict.fromkeys(targets)) or tuple(OURS)
    for target in targets:
        try:
            load(target)
        except Exception as error:
            raise click.UsageError(f"target {target}: {error}") from error
    vectors = _vectors(areas, rules)
    files = stream_files(directory) if directory is not None else ()
    if directory is not None and not files:
        raise click.UsageError(f"no streams in {directory}")
    if not vectors:
        raise click.UsageError("no vector is of such an area and rule")
    jobs = jobs or os.cpu_count() or 1
    report = Report(targets)
    with _progress(json_lines, len(targets) * len(vectors) + len(files)) as advance:
        limit = time_limit or CASE_SECONDS
        for result in run_vectors(targets, vectors, jobs=jobs, seconds=limit):
            report.results.append(result)
            advance()
        limit = time_limit or STREAM_SECONDS
        for stream in run_streams(targets, files, jobs=jobs, seconds=limit):
            report.streams.append(stream)
            advance()
    report.results.sort(key=lambda result: (result.case, targets.index(result.target)))
    report.streams.sort(key=lambda stream: stream.file)
    if json_lines:
        for line in report.lines():
            click.echo(line)
    else:
        show(report, Console())
    context.exit(1 if report.failures else 0)


@conformance.command("list")
@click.option("--area", "areas", multiple=True, help="Only vectors of this area (repeatable).")
@click.option("--rule", "rules", multiple=True, help="Only vectors of this rule (repeatable).")
def list_(areas: tuple[str, ...], rules: tuple[str, ...]) -> None:
    """List the vectors: id, rules, what each is."""
    for case in _vectors(areas, rules):
        click.echo(f"{case.id}\t{', '.join(case.rules)}\t{case.description}")


@conformance.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when something would change.")
@click.option("--afresh", is_flag=True, help="Make every digest anew, from both implementations.")
@click.pass_context
def generate(context: click.Context, check: bool, afresh: bool) -> None:
    """Write the vectors from their tables and seeds, bit for bit as they are.

    The digest of an accepted vector is made when its bytes change, and only if the reference and
    the grammar agree on it; the exit status is 1 when they do not.
    """
    from savevm_conformance.generate import files

    problems: list[str] = []

    def problem(text: str) -> None:
        problems.append(text)
        click.echo(text, err=True)

    changed = files.generate(vectors_directory(), check=check, afresh=afresh, problem=problem)
    if problems:
        click.echo(f"{len(problems)} problems", err=True)
        context.exit(1)
    click.echo(f"{changed} files {'would change' if check else 'written'}")
