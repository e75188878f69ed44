"""Results for people: the matrix, what failed and how, what was known, and the verdict."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from savevm_conformance.cases import VERDICTS
from savevm_conformance.locate import vectors_directory
from savevm_conformance.report.words import called, counted, name, plain, state
from savevm_conformance.results import Report, Result, StreamResult

# Cases that are named behind a reason which many share, and reasons to skip that are told.
_NAMED = 3
_SKIPS = 5


def show(report: Report, console: Console) -> None:
    """Print a whole report: what fails the run in full, what does not by its reasons."""
    if report.results:
        console.print(_matrix(report))
    for result in report.results:
        if result.failed:
            _failure(result, console)
    _reasons("known", [r for r in report.results if r.known is not None], console)
    _reasons("skip", [r for r in report.results if r.outcome == "skip"], console)
    if report.streams:
        _streams(report.streams, console)
    _verdict(report, console)


def _say(console: Console, text: str) -> None:
    # One line stays one line, however wide, so that it can be searched and cut.
    console.print(text, soft_wrap=True, highlight=False)


def _said(text: str) -> str:
    return escape(plain(text).replace("\n", "\n           "))


def _score(results: Sequence[Result]) -> str:
    ran = [result for result in results if result.outcome != "skip"]
    if not ran:
        return "[dim]skip[/]" if results else "[dim]-[/]"
    passed = sum(result.outcome == "pass" for result in ran)
    bad = any(result.failed for result in ran)
    colour = "red" if bad else "green" if passed == len(ran) else "yellow"
    return f"[{colour}]{passed}/{len(ran)}[/]"


def _matrix(report: Report) -> Table:
    table = Table(title="passed/run", title_justify="left")
    table.add_column("", no_wrap=True)
    for target in report.targets:
        heading = escape(plain(target.target))
        if target.version:
            heading += f"\n[dim]{escape(called(target))}[/]"
        table.add_column(heading, justify="right", overflow="fold")

    def row(title: str, results: Sequence[Result]) -> None:
        scores = ([r for r in results if r.target == target.target] for target in report.targets)
        table.add_row(title, *map(_score, scores))

    for area in sorted({result.area for result in report.results}):
        row(area, [r for r in report.results if r.area == area])
    table.add_section()
    for verdict in VERDICTS:
        if of_it := [r for r in report.results if r.verdict == verdict]:
            row(verdict, of_it)
    roles = sorted({result.role for result in report.results})
    if len(roles) > 1:
        table.add_section()
        for role in roles:
            row(role, [r for r in report.results if r.role == role])
    table.add_section()
    row("all", report.results)
    for title, word in (("skipped", "skip"), ("known", "known"), ("unexpected", "unexpected")):
        counts = Counter(r.target for r in report.results if state(r) == word)
        if counts:
            table.add_row(title, *(str(counts[target.target]) for target in report.targets))
    return table


def _failure(result: Result, console: Console) -> None:
    word = state(result)
    _say(console, f"[red]{word}[/] {_said(result.target)} [bold]{_said(name(result))}[/]")
    with suppress(FileNotFoundError):
        _say(console, f"  vector   {_said(str(vectors_directory() / result.case))}")
    _say(console, f"  expected {_said(result.expected)}")
    _say(console, f"  got      {_said(result.got)}")
    for line in result.detail:
        _say(console, f"           {_said(line)}")
    if result.unexpected:
        _say(console, "  it is listed as a known failure")


def _reasons(word: str, results: Sequence[Result], console: Console) -> None:
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        found[result.target, result.known or result.got].append(name(result))
    told: Counter[str] = Counter()
    for (target, why), cases in sorted(found.items(), key=lambda item: -len(item[1])):
        told[target] += 1
        if word == "skip" and told[target] > _SKIPS:
            continue
        some = ", ".join(cases[:_NAMED]) + (", …" if len(cases) > _NAMED else "")
        _say(console, f"[yellow]{word}[/] {_said(target)} {len(cases)}: {_said(why)}")
        _say(console, f"  [dim]{_said(some)}[/]")
    for target, reasons in told.items():
        if word == "skip" and reasons > _SKIPS:
            _say(console, f"[yellow]skip[/] {_said(target)} … for {reasons - _SKIPS} more reasons")


def _streams(streams: Sequence[StreamResult], console: Console) -> None:
    for stream in streams:
        if stream.outcome != "pass":
            _say(console, f"[red]{stream.outcome}[/] [bold]{_said(stream.file)}[/]")
            for problem in stream.problems:
                _say(console, f"  {_said(problem)}")
    passed = sum(stream.outcome == "pass" for stream in streams)
    _say(console, f"streams: {passed}/{len(streams)} passed")
    bodies: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for stream in streams:
        bodies.update(stream.opaque)
        files.update(stream.opaque.keys())
    if bodies:
        title = f"{bodies.total()} bodies that nobody looked into"
        table = Table(title=title, title_justify="left")
        for column in ("kind", "idstr", "bodies", "streams"):
            table.add_column(column, justify="right" if column in ("bodies", "streams") else "left")
        for body, count in bodies.most_common():
            kind, _, idstr = body.partition(" ")
            table.add_row(kind, _said(idstr), str(count), str(files[body]))
        console.print(table)


def _verdict(report: Report, console: Console) -> None:
    words: Counter[str] = Counter(state(result) for result in report.results)
    what = counted(report)
    if words["known"]:
        what += f" ({words['known']} known to fail)"
    if words["skip"]:
        what += f"; {words['skip']} skipped"
    if report.failures:
        _say(console, f"[bold red]FAILED[/]: {report.failures} of {what}")
    elif not report.ran:
        _say(console, f"[bold yellow]NOTHING RUN[/]: {what}")
    else:
        _say(console, f"[bold green]PASSED[/]: {what}")
