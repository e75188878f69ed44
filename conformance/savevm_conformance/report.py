"""Results for people: the matrix, what failed and how, what stayed opaque, and the verdict."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from savevm_conformance.runner import VERDICTS, Report, Result


def show(report: Report, console: Console) -> None:
    """Print a whole report."""
    if report.results:
        console.print(_matrix(report))
    for result in report.results:
        if result.outcome != "pass":
            _failure(result, console)
    if report.streams:
        _streams(report, console)
    _verdict(report, console)


def _score(results: Sequence[Result]) -> str:
    if not results:
        return "[dim]-[/]"
    passed = sum(result.outcome == "pass" for result in results)
    colour = "green" if passed == len(results) else "red"
    return f"[{colour}]{passed}/{len(results)}[/]"


def _matrix(report: Report) -> Table:
    table = Table(title="passed/vectors", title_justify="left")
    table.add_column("")
    for target in report.targets:
        table.add_column(escape(target), justify="right")

    def row(name: str, results: Sequence[Result]) -> None:
        scores = ([r for r in results if r.target == target] for target in report.targets)
        table.add_row(name, *map(_score, scores))

    for area in sorted({result.area for result in report.results}):
        row(area, [r for r in report.results if r.area == area])
    table.add_section()
    for verdict in VERDICTS:
        row(verdict, [r for r in report.results if r.verdict == verdict])
    table.add_section()
    row("all", report.results)
    return table


def _failure(result: Result, console: Console) -> None:
    console.print(f"[red]{result.outcome}[/] {escape(result.target)} [bold]{result.case}[/]")
    console.print(f"  expected {escape(result.expected)}", soft_wrap=True, highlight=False)
    console.print(f"  got      {escape(result.got)}", soft_wrap=True, highlight=False)


def _streams(report: Report, console: Console) -> None:
    for stream in report.streams:
        if stream.outcome != "pass":
            console.print(f"[red]{stream.outcome}[/] [bold]{escape(stream.file)}[/]")
            for problem in stream.problems:
                console.print(f"  {escape(problem)}", soft_wrap=True, highlight=False)
    passed = sum(stream.outcome == "pass" for stream in report.streams)
    console.print(f"streams: {passed}/{len(report.streams)} passed")
    bodies: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for stream in report.streams:
        bodies.update(stream.opaque)
        files.update(dict.fromkeys(stream.opaque, 1))
    if bodies:
        title = f"{bodies.total()} bodies that nobody looked into"
        table = Table(title=title, title_justify="left")
        for column in ("kind", "idstr", "bodies", "streams"):
            table.add_column(column, justify="right" if column in ("bodies", "streams") else "left")
        for name, count in bodies.most_common():
            kind, _, idstr = name.partition(" ")
            table.add_row(kind, escape(idstr), str(count), str(files[name]))
        console.print(table)


def _verdict(report: Report, console: Console) -> None:
    what = f"{len(report.results)} results on vectors"
    if report.streams:
        what += f", {len(report.streams)} streams"
    if report.failures:
        console.print(f"[bold red]FAILED[/]: {report.failures} of {what}")
    else:
        console.print(f"[bold green]PASSED[/]: {what}")
