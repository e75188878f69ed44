"""``savevm conformance``: run the vectors, list them, write them, check an adapter."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from savevm_conformance import __version__
from savevm_conformance.cases import Case, Selection, load_cases
from savevm_conformance.check import check_adapter, smoke_cases
from savevm_conformance.known import known_failures
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol import ROLES
from savevm_conformance.report import FORMATS, format_of, render, show
from savevm_conformance.report.words import name, plain
from savevm_conformance.results import Report, Target, read_report
from savevm_conformance.runner import (
    CASE_SECONDS,
    MEMORY,
    STREAM_SECONDS,
    Limits,
    introduce,
    pairs,
    run_cases,
    run_streams,
    stream_files,
)
from savevm_conformance.targets import OURS, TARGETS, words

_TARGETS = "\n".join(f"  {name:26} {what}" for name, what in TARGETS.items())


@click.group()
def conformance() -> None:
    """Hold implementations of the stream against the conformance vectors."""


def _selecting(command: Any) -> Any:
    for option in (
        click.option("--feature", "features", multiple=True, help="Only what needs this feature."),
        click.option("--case", "globs", multiple=True, help="Only ids like this, as in the shell."),
        click.option("--rule", "rules", multiple=True, help="Only vectors of this rule."),
        click.option("--area", "areas", multiple=True, help="Only vectors of this area."),
    ):
        command = option(command)
    return command


def _vectors(**wanted: Sequence[str]) -> tuple[Case, ...]:
    selection = Selection(
        frozenset(wanted["areas"]),
        frozenset(wanted["rules"]),
        tuple(wanted["globs"]),
        frozenset(wanted["features"]),
    )
    try:
        found = load_cases(vectors_directory(), selection)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the vectors cannot be read: {error}") from error
    if not found:
        raise click.UsageError("no vector is of such an area, rule, id and feature")
    return found


def _all_vectors() -> tuple[Case, ...]:
    return _vectors(areas=(), rules=(), globs=(), features=())


@contextmanager
def _progress(json_lines: bool, total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=json_lines) as progress:
        task = progress.add_task("running", total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _terminable() -> Iterator[None]:
    """Who ends the suite, as CI does, ends the adapters with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _introduced(targets: Sequence[str]) -> tuple[Target, ...]:
    try:
        return tuple(introduce(target) for target in dict.fromkeys(targets))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@conformance.command(
    epilog="\b\nTargets:\n"
    + _TARGETS
    + "\n\nThe exit code is 0 if everything passed or was known to "
    "fail, 1 if something failed, 2 if nothing could be run."
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@_selecting
@click.option("--role", type=click.Choice(ROLES), help="Only in this role.")
@click.option(
    "--streams",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also every *.bin and *.bin.xz in this directory: all targets that say transcripts must "
    "accept each, say the same of it and write it again byte for byte.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Cases at a time; default: one per CPU."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help=f"Of a case; default: {CASE_SECONDS:g} for a vector, {STREAM_SECONDS:g} for a stream.",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    default=MEMORY >> 20,
    show_default=True,
    metavar="MIB",
    help="Of an adapter and what it starts.",
)
@click.option(
    "--known",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of known failures, for all targets.",
)
@click.option("--no-known", is_flag=True, help="Without the known failures that the suite has.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Write a report, of the kind that its name ends in: {', '.join(FORMATS)}.",
)
@click.option("--json", "json_lines", is_flag=True, help="Print the report as JSON lines.")
@click.option("-x", "--exitfirst", is_flag=True, help="Stop at the first failure.")
@click.pass_context
def run(
    context: click.Context,
    /,
    targets: tuple[str, ...],
    role: str | None,
    directory: Path | None,
    jobs: int | None,
    time_limit: float | None,
    memory_limit: int,
    files: tuple[Path, ...],
    no_known: bool,
    reports: tuple[Path, ...],
    json_lines: bool,
    exitfirst: bool,
    **wanted: tuple[str, ...],
) -> None:
    """Run TARGETs on the vectors; without any, the reference and the grammar."""
    for path in reports:
        _format(path)
    vectors = _vectors(**wanted)
    report = Report(_introduced(targets or OURS))
    report.date = datetime.now(UTC).isoformat(timespec="seconds")
    report.suite = __version__
    try:
        known = {t.target: known_failures(t, files, ours=not no_known) for t in report.targets}
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    work = pairs(report.targets, vectors, role)
    streams = stream_files(directory) if directory is not None else ()
    if directory is not None and not streams:
        raise click.UsageError(f"no streams in {directory}")
    if streams and not any("transcript" in target.says for target in report.targets):
        raise click.UsageError("none of these targets says transcripts of streams")
    if not work and not streams:
        raise click.UsageError("no vector is for what these targets can do")
    jobs = jobs or os.cpu_count() or 1
    of_cases, of_streams = (
        Limits(time_limit or seconds, memory_limit << 20)
        for seconds in (CASE_SECONDS, STREAM_SECONDS)
    )
    with (
        _terminable(),
        _progress(json_lines, len(work) + len(streams)) as advance,
        closing(run_cases(work, known, jobs=jobs, limits=of_cases)) as results,
        closing(run_streams(report.targets, streams, jobs=jobs, limits=of_streams)) as wholes,
    ):
        for result in results:
            report.results.append(result)
            advance()
            if exitfirst and result.failed:
                break
        for stream in () if exitfirst and report.failures else wholes:
            report.streams.append(stream)
            advance()
            if exitfirst and stream.failed:
                break
    order = [target.target for target in report.targets]
    report.results.sort(key=lambda r: (r.case, order.index(r.target), r.role))
    report.streams.sort(key=lambda stream: stream.file)
    if json_lines:
        for line in report.lines():
            click.echo(line)
    else:
        show(report, Console())
    for path in reports:
        path.write_text(render(report, format_of(path)), "utf-8")
    context.exit(report.exit_code)


def _format(path: Path) -> str:
    if not path.parent.is_dir():
        raise click.UsageError(f"no directory {path.parent}")
    try:
        return format_of(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@conformance.command("list")
@_selecting
def list_(**wanted: tuple[str, ...]) -> None:
    """List the vectors: id, rules, what each is."""
    for case in _vectors(**wanted):
        click.echo(f"{case.id}\t{', '.join(case.rules)}\t{case.description}")


@conformance.command()
@click.argument("files", nargs=-1, required=True, type=click.File("r", encoding="utf-8"))
@click.option("--format", "kind", type=click.Choice(("terminal", *FORMATS)), default="terminal")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def report(context: click.Context, files: Sequence[Any], kind: str, output: Path | None) -> None:
    """Make a report of the JSON lines of one run or of several.

    The exit code is that of the runs.
    """
    try:
        made = read_report(line for file in files for line in file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.UsageError(f"these are no results: {error!r}") from error
    if kind == "terminal":
        show(made, Console())
    elif output is not None:
        output.write_text(render(made, kind), "utf-8")
    else:
        click.echo(render(made, kind), nl=False)
    context.exit(made.exit_code)


@conformance.command("check-adapter", context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True)
@click.pass_context
def check(context: click.Context, command: tuple[str, ...]) -> None:
    """Check that COMMAND speaks the protocol, whatever it thinks of the streams.

    The exit code is 1 if it does not.
    """
    try:
        argv = words(command[0]) if len(command) == 1 else list(command)
        problems = check_adapter(argv, _all_vectors())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"this needs the package {error.name!r}: pip install 'savevm[conformance]'"
        ) from error
    for problem in problems:
        click.echo(plain(problem))
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    click.echo(count if problems else "it speaks the protocol")
    context.exit(1 if problems else 0)


@conformance.command()
@click.argument("target")
@click.pass_context
def smoke(context: click.Context, target: str) -> None:
    """Run TARGET on the few simplest vectors that it can, to see that its adapter works."""
    (introduced,) = _introduced([target])
    cases = smoke_cases(_all_vectors(), introduced)
    made = Report((introduced,))
    with _terminable():
        made.results += run_cases(pairs(made.targets, cases, None), {})
    made.results.sort(key=lambda result: (result.case, result.role))
    for result in made.results:
        click.echo(plain(f"{result.outcome:8} {name(result):50} {result.got}"))
        for line in result.detail:
            click.echo(plain(f"         {line}"))
    if not made.ran:
        click.echo("there is nothing that it can do of what the vectors ask for", err=True)
    context.exit(made.exit_code)


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
