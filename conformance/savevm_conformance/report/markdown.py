"""Results as Markdown, as the summary page of a CI job takes it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from savevm_conformance.report.words import STATES, State, called, counted, name, plain, state
from savevm_conformance.results import Report, Result

# More failures are folded.  Only so many, with so many characters, are told: GitHub takes no summary
# of more than 1 MiB.
_OPEN: Final = 5
_TOLD: Final = 200
_SIZE: Final = 300_000
# Characters of one line of a result that are told.
_LONG: Final = 1000


def markdown(report: Report) -> str:
    """The totals, the areas, every failure, known failures by reason, and the streams."""
    blocks = [_verdict(report)]
    if report.results:
        blocks += [_totals(report), *_areas(report), *_failures(report)]
        blocks += _grouped("Known failures", report, "known")
        blocks += _grouped("Skipped", report, "skip")
    if report.streams:
        blocks += _streams(report)
    return "\n\n".join(blocks) + "\n"


def _text(text: str) -> str:
    """Text that means nothing to Markdown, in one line."""
    short = plain(text)[:_LONG].replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]()#+!~<>&@])", r"\\\1", short)


def _code(text: str) -> str:
    """Text as code; it has more backticks around it than there are in it."""
    short = plain(text)[:_LONG].replace("\n", " ") or " "
    fence = "`" * (max(map(len, re.findall("`+", short)), default=0) + 1)
    pad = " " if short[0] == "`" or short[-1] == "`" else ""
    return f"{fence}{pad}{short}{pad}{fence}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table; all but the first ``left`` columns are of numbers."""
    lines = [head, [":--"] * left + ["--:"] * (len(head) - left), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _folded(title: str, body: Sequence[str]) -> str:
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *body, "</details>"])


def _verdict(report: Report) -> str:
    word = "failed" if report.failures else "passed" if report.ran else "nothing run"
    lines = [f"## Conformance: {word}"]
    failed = f"**{report.failures} failures** of " if report.failures else ""
    by = ", ".join(filter(None, [_text(f"savevm {report.suite}"), _text(report.date)]))
    lines.append(f"{failed}{counted(report)} ({by}).")
    return "\n\n".join(lines)


def _totals(report: Report) -> str:
    counts = {
        target.target: Counter(state(r) for r in report.results if r.target == target.target)
        for target in report.targets
    }
    # Good news first, and no column that is empty.
    words: list[State] = [
        word for word in ("pass", "known", "skip") if any(c[word] for c in counts.values())
    ]
    words += [w for w in STATES if w not in words and any(c[w] for c in counts.values())]
    rows = [
        [
            _code(target.target),
            _text(called(target)),
            *(str(counts[target.target][word]) for word in words),
        ]
        for target in report.targets
    ]
    return _table(["target", "implementation", *words], rows, left=2)


def _areas(report: Report) -> Iterator[str]:
    def score(area: str, target: str) -> str:
        of_it = [r for r in report.results if r.area == area and r.target == target]
        ran = [r for r in of_it if r.outcome != "skip"]
        passed = sum(r.outcome == "pass" for r in ran)
        if not ran:
            return "skip" if of_it else "–"
        return f"**{passed}/{len(ran)}**" if any(r.failed for r in ran) else f"{passed}/{len(ran)}"

    rows = [
        [area, *(score(area, target.target) for target in report.targets)]
        for area in sorted({r.area for r in report.results})
    ]
    yield "### Passed of what was run, by area"
    yield _table(["area", *(_code(target.target) for target in report.targets)], rows)


def _failures(report: Report) -> Iterator[str]:
    failed = [r for r in report.results if r.failed]
    if not failed:
        return
    yield "### Failures"
    told: list[str] = []
    for result in failed[:_TOLD]:
        if sum(map(len, told)) < _SIZE:
            told.append("\n".join(_failure(result)))
    if len(failed) > len(told):
        told.append(f"And {len(failed) - len(told)} more.")
    if len(failed) <= _OPEN:
        yield from told
    else:
        yield _folded(f"{len(failed)} failures", told)


def _failure(result: Result) -> Iterator[str]:
    yield f"- **{state(result)}** {_code(result.target)} {_code(name(result))}"
    yield f"  - expected: {_code(result.expected)}"
    yield f"  - got: {_code(result.got)}"
    yield from (f"  - {_code(line)}" for line in result.detail)
    if result.unexpected:
        yield "  - it is listed as a known failure"


def _grouped(title: str, report: Report, word: str) -> Iterator[str]:
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for result in report.results:
        if state(result) == word:
            found[result.target, result.known or result.got].append(name(result))
    if not found:
        return
    lines = []
    for (target, why), cases in sorted(found.items(), key=lambda item: -len(item[1])):
        some = ", ".join(map(_code, cases[:_OPEN])) + (", …" if len(cases) > _OPEN else "")
        lines.append(f"- {_code(target)}, {len(cases)}: {_text(why)}\n  - {some}")
    count = sum(map(len, found.values()))
    yield f"### {title}"
    yield _folded(f"{count}, by reason", ["\n".join(lines[:_TOLD])])


def _streams(report: Report) -> Iterator[str]:
    passed = sum(stream.outcome == "pass" for stream in report.streams)
    yield "### Streams"
    yield f"{passed} of {len(report.streams)} passed."
    lines = []
    for stream in report.streams:
        if stream.outcome != "pass":
            lines.append(f"- **{stream.outcome}** {_code(stream.file)}")
            lines += [f"  - {_code(problem)}" for problem in stream.problems]
    if lines:
        yield "\n".join(lines[:_TOLD])
