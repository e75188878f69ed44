"""``savevm fuzz``: mutated streams for any implementation, and what is found with them."""

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.console import Console
from rich.live import Live

from savevm_conformance.judge import said
from savevm_conformance.report.words import plain
from savevm_conformance.targets import TARGETS
from savevm_fuzz.engine import Campaign, Introduced, Stats, found, introduce
from savevm_fuzz.findings import (
    Finding,
    Known,
    Look,
    examine,
    examine_apart,
    known_findings,
    led_by,
    read_finding,
    shrink,
    stream_of,
)
from savevm_fuzz.mutations import Mutant
from savevm_fuzz.promote import PromotionError, promote
from savevm_fuzz.targets import MEMORY, SECONDS, open_target

_TARGETS = "\n".join(f"  {name:26} {what}" for name, what in TARGETS.items())
# Every so many streams are compared with the grammar, by default: of those that can tell something
# without, and of the others.
_COMPARE: Final = (20, 1)
# Seconds between two lines of progress where there is no terminal.
_LINE: Final = 10.0
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


class _Profile(NamedTuple):
    """How long to go on: seconds, or counts that take about as long whatever the target is.

    They are of streams for what runs ``here``, for a ``program`` and for a ``machine``, and of
    ``states`` for a writer.
    """

    seconds: float | None = None
    here: int | None = None
    program: int | None = None
    machine: int | None = None
    states: int | None = None
    jobs: int | None = None

    def number(self, target: Introduced, role: str) -> int | None:
        """How many to run; None: it is a matter of time."""
        if role == "writer":
            return self.states
        if target.loads:
            return self.machine
        return self.here if target.quick else self.program


_PROFILES: Final = {
    "dev": _Profile(seconds=10),
    # The same everywhere and each time, and so are its findings.
    "ci": _Profile(here=200_000, program=30_000, machine=2_000, states=10_000, jobs=2),
    "nightly": _Profile(seconds=3600),
}


def _seconds(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", value)
    if not match or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no time such as 90, 90s, 10m or 1h")
    return float(match[1]) * _UNITS[match[2]]


_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FINDING: Final = click.Path(exists=True, path_type=Path)
_DIRECTORY: Final = click.Path(file_okay=False, path_type=Path)


@click.command(
    epilog="\b\nTargets:\n"
    + _TARGETS
    + "\n\nThe exit code is 0 if nothing was found that was not known, 1 if something was, 2 if the "
    "target could not be run, and 130 or 143 if a signal ended it."
)
@click.argument("target", required=False)
@click.option(
    "--time", "duration", callback=_seconds, metavar="TIME", help="Go on so long: 90s, 10m, 1h."
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Run so many streams; the same seed and number of workers find the same.",
)
@click.option(
    "--profile",
    type=click.Choice(tuple(_PROFILES)),
    default="dev",
    show_default=True,
    help="Without both: dev, 10 s; ci, a count that is done in minutes; nightly, 1 h.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Workers; default: one per CPU, of ci 2."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the random numbers.")
@click.option(
    "--role",
    type=click.Choice(("reader", "writer")),
    default="reader",
    show_default=True,
    help="A writer is given random states, and the grammar reads what it writes.",
)
@click.option(
    "--corpus",
    type=_DIRECTORY,
    metavar="DIR",
    help="Streams that lead to something new: read, and added to.  Can be shared.",
)
@click.option("--findings", type=_DIRECTORY, metavar="DIR", help="Where to keep what is found.")
@click.option(
    "--known",
    type=_FILE,
    metavar="FILE",
    help="A TOML file of findings that are known: signature (a glob) and why.",
)
@click.option("--no-known", is_flag=True, help="Without the known findings that are kept here.")
@click.option(
    "--compare",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare every N-th stream, and those that lead to something new, with the grammar; "
    f"default: {_COMPARE[0]} for the reference, {_COMPARE[1]} for others.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Of a stream.",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    metavar="MIB",
    help=f"Of a stream; default: {MEMORY >> 20}, in this process 256.",
)
@click.option("--json", "json_lines", is_flag=True, help="Print JSON lines.")
@click.option(
    "--verbose",
    is_flag=True,
    help="Tell of the progress where there is no terminal, and what known did not come.",
)
@click.option("-x", "--exitfirst", is_flag=True, help="Stop at the first finding.")
@click.option(
    "--replay",
    type=_FINDING,
    metavar="FILE",
    help="Run one stream, or that of a finding, and tell what was predicted.",
)
@click.option(
    "--minimize",
    type=_FINDING,
    metavar="FILE",
    help="Make the stream of a finding as small as it goes.",
)
@click.option(
    "--promote",
    type=_FINDING,
    metavar="FILE",
    help="Make a stream, or a finding, a vector of the conformance suite.",
)
@click.option("--slug", metavar="AREA/NAME", help="What the vector is called.")
@click.option("--why", metavar="TEXT", help="What the vector is, in a sentence.")
@click.pass_context
def fuzz(
    context: click.Context,
    /,
    target: str | None,
    replay: Path | None,
    minimize: Path | None,
    promote: Path | None,
    slug: str | None,
    why: str | None,
    **given: Any,
) -> None:
    """Give mutated streams to TARGET and compare what it makes of them with what the rules say.

    Streams of the conformance vectors are changed where the grammar knows something to be.  What
    crashes, hangs, takes too much memory or decides otherwise than predicted is a finding: it is
    told once, made small and kept, with how to see it again.
    """
    if sum(path is not None for path in (replay, minimize, promote)) > 1:
        raise click.UsageError("only one of --replay, --minimize and --promote")
    if promote is not None:
        _promote(promote, slug, why)
    elif (path := replay or minimize) is not None:
        shrinking = minimize is not None
        context.exit(_again(context, path, target, given, shrinking=shrinking))
    elif target is None:
        raise click.UsageError("which target?")
    else:
        context.exit(_campaign(target, **given))


# A campaign


@dataclass
class _Results:
    """What came of it so far."""

    target: Introduced
    known: list[Known]
    directory: Path | None
    findings: dict[str, Finding] = field(default_factory=dict)

    def why(self, signature: str) -> str | None:
        """Why a finding is known."""
        found = (k.why for k in self.known if k.covers(self.target.name, signature))
        return next(found, None)

    @property
    def new(self) -> int:
        return sum(self.why(signature) is None for signature in self.findings)

    def missing(self) -> list[str]:
        """The known signatures that did not come."""
        name = self.target.name
        mine = [k for k in self.known if k.name in (None, name)]
        return [
            k.signature for k in mine if not any(k.covers(name, found) for found in self.findings)
        ]


def _campaign(
    name: str,
    *,
    duration: float | None,
    count: int | None,
    profile: str,
    jobs: int | None,
    seed: int | None,
    role: str,
    corpus: Path | None,
    findings: Path | None,
    known: Path | None,
    no_known: bool,
    compare: int | None,
    time_limit: float,
    memory_limit: int | None,
    json_lines: bool,
    verbose: bool,
    exitfirst: bool,
) -> int:
    if duration is not None and count is not None:
        raise click.UsageError("either --time or --count")
    memory = None if memory_limit is None else memory_limit << 20
    target = _introduced(name, time_limit)
    chosen = _PROFILES[profile]
    if duration is None and count is None:
        duration, count = chosen.seconds, chosen.number(target, role)
        jobs = jobs or chosen.jobs
    if seed is None:
        seed = secrets.randbits(32) if count is None else 0
    for directory in (corpus, findings):
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
    try:
        results = _Results(target, known_findings(target.name, known, ours=not no_known), findings)
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    campaign = Campaign(
        target,
        seed=seed,
        jobs=jobs or os.cpu_count() or 1,
        executions=count,
        duration=duration,
        compare=compare or _COMPARE[not target.quick],
        corpus=corpus,
        seconds=time_limit,
        memory=memory,
        known=tuple(results.known),
    )
    told = _Told(results, json_lines=json_lines, verbose=verbose)
    told.start(campaign)
    stopped = 0
    try:
        with _terminable() as terminated, told, closing(_run(campaign, role)) as run:
            for event in run:
                if isinstance(event, Finding):
                    told.finding(event)
                    if exitfirst and results.new:
                        break
                else:
                    told.progress(event)
    except KeyboardInterrupt:
        stopped = 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except RuntimeError as error:
        raise _Failure(f"a worker failed: {error}") from error
    told.summary()
    return stopped or (1 if results.new else 0)


def _run(campaign: Campaign, role: str) -> Generator[Stats | Finding, None, Any]:
    if role == "reader":
        return campaign.run()
    # Hypothesis is for this alone.
    from savevm_fuzz.writing import fuzz_writer

    return fuzz_writer(campaign)


def _introduced(name: str, seconds: float) -> Introduced:
    try:
        return introduce(name, seconds)
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Who ends it, as CI does, ends the workers with it, and still has what was found."""
    terminated: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


class _Told:
    """Tells of a campaign: JSON lines on standard output, or text, and progress on standard error."""

    def __init__(self, results: _Results, *, json_lines: bool, verbose: bool) -> None:
        self._results: Final = results
        self._json: Final = json_lines
        self._verbose: Final = verbose
        self._console: Final = Console(stderr=True)
        # Its thread would have to survive the forks of the workers.
        self._live: Final = Live(console=self._console, auto_refresh=False, transient=True)
        self._stats = Stats()
        self._last = time.monotonic()

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, campaign: Campaign) -> None:
        """What is begun."""
        target = campaign.target
        limits = {"count": campaign.executions, "seconds": campaign.duration}
        if self._json:
            values = {"seed": campaign.seed, "jobs": campaign.jobs, "compare": campaign.compare}
            self._line("start", **_named(target), **values, **limits)
        else:
            much = f"{campaign.executions or f'{campaign.duration:g} s'}"
            click.echo(
                f"{plain(f'{target.name} {target.version}')}: {much}, seed {campaign.seed}, "
                f"{campaign.jobs} workers"
            )

    def progress(self, stats: Stats) -> None:
        """How far it has come."""
        self._stats = stats
        if self._console.is_terminal:
            self._live.update(self._words(), refresh=True)
        if time.monotonic() - self._last >= _LINE:
            self._last = time.monotonic()
            if self._json:
                self._line("stats", **self._figures())
            if self._verbose and not self._console.is_terminal:
                click.echo(self._words(), err=True)

    def finding(self, finding: Finding) -> None:
        """Something was found, or found again with a better stream."""
        results = self._results
        again = finding.signature in results.findings
        results.findings[finding.signature] = finding
        directory = finding.save(results.directory) if results.directory is not None else None
        if again:
            return
        why = results.why(finding.signature)
        if self._json:
            where = None if directory is None else str(directory)
            self._line("finding", **finding.told(), known=why, directory=where)
            return
        with self._aside():
            kind = "known" if why else finding.look.kind
            click.echo(plain(f"{kind}: {finding.signature} ({len(finding.data)} bytes)"))
            for line in [why] if why else finding.look.lines[-6:]:
                click.echo(plain(f"    {line}"))
            if directory is not None:
                click.echo(f"    {directory}")

    def summary(self) -> None:
        """What came of it."""
        results = self._results
        if self._json:
            signatures = sorted(results.findings)
            figures = self._figures() | {"findings": signatures, "new": results.new}
            self._line("summary", **figures, missing=results.missing())
            return
        if self._verbose:
            for signature in results.missing():
                click.echo(plain(f"known, but not found: {signature}"))
        click.echo(self._words())

    def _figures(self) -> dict[str, Any]:
        stats = asdict(self._stats)
        rate = self._stats.executions / (self._stats.seconds or 1)
        return stats | {"rate": round(rate, 1), "findings": len(self._results.findings)}

    def _words(self) -> str:
        stats = self._figures()
        known = len(self._results.findings) - self._results.new
        return (
            f"{stats['executions']} executions ({stats['rate']:.0f}/s), {stats['compared']} "
            f"compared, {stats['paths']} paths, corpus {stats['corpus']}, {stats['findings']} "
            f"findings ({known} known), {stats['seconds']:.0f} s"
        )

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Text in the place of the live line."""
        if self._console.is_terminal:
            self._live.update("", refresh=True)
        yield

    def _line(self, kind: str, **values: Any) -> None:
        click.echo(json.dumps({"kind": kind, **values}))


class _Failure(click.ClickException):
    """What is no finding must not look like one."""

    exit_code = 2


def _named(target: Introduced) -> dict[str, str]:
    return {"target": target.target, "name": target.name, "version": target.version}


# One stream


def _again(
    context: click.Context, path: Path, name: str | None, given: Any, *, shrinking: bool
) -> int:
    """Run one stream: 1 if it is a finding."""
    data, told = _read(path)
    name = name or told.get("target")
    if name is None:
        raise click.UsageError("which target?")
    target = _introduced(name, given["time_limit"])
    writing = stream_of(path).suffix == ".json"
    if writing and shrinking:
        raise click.UsageError("a state is small already")
    before = led_by(told.get("got", {}))
    with _opened(target, given, writing=writing, before=before) as look_at:
        seen = look_at(data)
        if shrinking and seen.kind is not None:
            mutant = Mutant(data, told.get("seed", path.name), ())
            finding = shrink(found(target, seen, mutant), look_at)
            seen, smaller = finding.look, finding.data
            stream = stream_of(path)
            output = stream.with_name(f"{stream.stem}.min{stream.suffix}")
            output.write_bytes(smaller)
            click.echo(f"{len(data)} bytes became {len(smaller)}: {output}")
    if seen.predicted is not None:
        click.echo(plain(f"predicted: {said(seen.predicted)}"))
    click.echo(plain(f"got: {said(seen.got)}"))
    for line in seen.lines:
        click.echo(plain(f"    {line}"))
    click.echo(plain(f"{seen.kind}: {seen.signature}" if seen.kind else "as predicted"))
    return 1 if seen.kind else 0


@contextmanager
def _opened(
    introduced: Introduced, given: Any, *, writing: bool, before: Sequence[bytes]
) -> Iterator[Callable[[bytes], Look]]:
    """What looks at a stream; what runs in this process is given another, which it may end."""
    seconds, memory = given["time_limit"], given["memory_limit"] and given["memory_limit"] << 20
    with closing(open_target(introduced.target, seconds=seconds, memory=memory)) as target:
        if writing:
            from savevm_fuzz.writing import look_at_state

            yield lambda data: look_at_state(target, json.loads(data))
        elif introduced.here:
            yield lambda data: examine_apart(target, data, seconds)
        else:
            yield lambda data: examine(target, data, before=before)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        return read_finding(path)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: {error}") from error


def _promote(path: Path, slug: str | None, why: str | None) -> None:
    data, told = _read(path)
    try:
        id, file = promote(data, told, slug=slug, why=why)
    except PromotionError as error:
        raise _Failure(str(error)) from error
    click.echo(f"{file}: {id}; `savevm conformance generate` writes the vector")
