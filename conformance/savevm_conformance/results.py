"""What a run gives: one JSON object per line, which every report is made of."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

__all__ = ["OUTCOMES", "Outcome", "Report", "Result", "StreamResult", "Target", "read_report"]

Outcome = Literal["pass", "fail", "skip", "error", "crash", "timeout", "memory"]
OUTCOMES: Final[tuple[Outcome, ...]] = (
    "pass",
    "fail",
    "skip",
    "error",
    "crash",
    "timeout",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and what its adapter said of itself."""

    target: str
    name: str
    version: str
    url: str | None = None
    roles: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one target on one case; ``expected``, ``got`` and ``detail`` are for people.

    ``known`` is why a failure was known before, ``unexpected`` a pass where one was.
    """

    target: str
    case: str
    area: str
    verdict: str
    role: str
    rules: tuple[str, ...]
    outcome: Outcome
    expected: str
    got: str
    detail: tuple[str, ...] = ()
    known: str | None = None
    unexpected: bool = False
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the run fails by it."""
        return self.unexpected or (self.outcome not in ("pass", "skip") and self.known is None)


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What became of all targets on one stream; ``problems`` is empty when it passed."""

    file: str
    outcome: Outcome
    problems: tuple[str, ...]
    opaque: dict[str, int]
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether the run fails by it."""
        return self.outcome != "pass"


@dataclass(slots=True)
class Report:
    """All results of a run; ``date`` is ISO 8601 in UTC, ``suite`` the version of the suite."""

    targets: tuple[Target, ...]
    date: str = ""
    suite: str = ""
    results: list[Result] = field(default_factory=list)
    streams: list[StreamResult] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """How many results the run fails by."""
        return sum(r.failed for r in self.results) + sum(s.failed for s in self.streams)

    @property
    def ran(self) -> int:
        """How many results are of something that was run."""
        return sum(r.outcome != "skip" for r in self.results) + len(self.streams)

    @property
    def exit_code(self) -> int:
        """0 if all passed or was known to fail, 1 if something failed, 2 if nothing was run."""
        return (1 if self.failures else 0) if self.ran else 2

    def outcomes(self, target: str) -> Counter[Outcome]:
        """How often each outcome came of a target."""
        return Counter(r.outcome for r in self.results if r.target == target)

    def lines(self) -> Iterator[str]:
        """The report: ``kind`` is "run", "target", "result", "stream" or, last, "summary"."""
        yield _line("run", suite=self.suite, date=self.date)
        for target in self.targets:
            yield _line("target", **asdict(target))
        for result in self.results:
            yield _line("result", **asdict(result))
        for stream in self.streams:
            yield _line("stream", **asdict(stream))
        totals = {target.target: dict(self.outcomes(target.target)) for target in self.targets}
        yield _line("summary", targets=totals, failures=self.failures)


def _line(kind: str, **values: Any) -> str:
    return json.dumps({"kind": kind, **values})


def read_report(lines: Iterable[str]) -> Report:
    """The report that `Report.lines` wrote; several, one behind the other, become one.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    report = Report(())
    for line in lines:
        entry = json.loads(line)
        kind = entry.pop("kind")
        for key in ("rules", "detail", "roles", "features", "says", "problems"):
            if key in entry:
                entry[key] = tuple(entry[key])
        if kind == "run":
            report.suite, report.date = entry["suite"], max(report.date, entry["date"])
        elif kind == "target":
            report.targets = (*report.targets, Target(**entry))
        elif kind == "result":
            report.results.append(Result(**entry))
        elif kind == "stream":
            report.streams.append(StreamResult(**entry))
        elif kind != "summary":
            raise ValueError(f"a line of kind {kind!r}")
    return report
