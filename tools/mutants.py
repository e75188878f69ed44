#!/usr/bin/env python3
"""Mutation testing of the conformance suite: would it notice that an implementation is wrong?

Makes deliberately wrong variants of the reference's reader and writer, each by one small change that
an operator makes mechanically, and runs the vectors against each as against any adapter, up to the
first failure.  Where all pass with streams read in one piece, they are read in small pieces too.
A variant that passes everywhere survives: either nobody could tell it from the original, or a vector
is missing.  Which variants are made depends on the seed and on the sources alone.

Exits with 1 if fewer were caught than wanted, 2 if nothing could be run.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from savevm_conformance.cases import Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_conformance.results import Result
from savevm_conformance.runner import Limits, introduce, pairs, run_cases
from variants import PACKAGE, ROOT, SOURCES, Mutant, Variants, candidates, select

COUNT: Final = 60
AT_LEAST: Final = 58
SEED: Final = 1
# Of one case; the slowest takes a tenth of a second.
LIMITS: Final = Limits(10.0, 1 << 30)
# Bytes of a piece: no record, word or page comes whole.
PIECE: Final = 7


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: whether anything noticed that it is wrong."""

    mutant: Mutant
    diff: str
    caught: bool


@dataclass(frozen=True)
class Tested(Verdict):
    """What the vectors make of a mutant; ``case`` that caught it, None: it survived."""

    case: str | None = None
    outcome: str = ""
    got: str = ""
    pieces: bool = False


class Bench(Variants):
    """Runs the vectors against variants.

    Raises ``ValueError`` where the original itself does not pass.
    """

    def __init__(self, directory: Path, original: Path = PACKAGE) -> None:
        super().__init__(directory, original)
        # Held to what the rules leave open, too, as the original is.
        self.cases: Final = [
            replace(case, expect=case.expect.get("savevm", case.expect))
            for case in load_cases(vectors_directory())
        ]
        self.target: Final = introduce(command(self.base))
        for piece in (None, PIECE):
            if failure := self.failure(self.base, self.cases, piece):
                raise ValueError(f"the original fails {failure.case}: {failure.got}")

    def ordered(self, file: str) -> list[Case]:
        """The cases, first those about what is in ``file``."""
        areas = SOURCES.get(file, ())
        first = [c for c in self.cases if c.area in areas or c.verdict in areas]
        return [*first, *(case for case in self.cases if case not in first)]

    def failure(self, package: Path, cases: Sequence[Case], piece: int | None) -> Result | None:
        """The first failure of the package in that directory."""
        target = replace(self.target, target=command(package, piece))
        role = "reader" if piece else None
        with closing(run_cases(pairs([target], cases, role), {}, limits=LIMITS)) as results:
            return next((result for result in results if result.failed), None)

    def run(self, mutant: Mutant) -> Tested:
        """Make the mutant, and run the vectors against it."""
        diff = mutant.diff(self.source(mutant))
        cases = self.ordered(mutant.file)
        with self.planted(mutant) as package:
            for piece in (None, PIECE):
                if failure := self.failure(package, cases, piece):
                    got = "; ".join([failure.got, *failure.detail[:1]])
                    caught = failure.case, failure.outcome, got, bool(piece)
                    return Tested(mutant, diff, True, *caught)
        return Tested(mutant, diff, False)


def command(package: Path, piece: int | None = None) -> str:
    """The adapter of the package in that directory, as a target; in pieces of so many bytes, or of all sizes."""
    path = os.pathsep.join(map(str, (package, ROOT / "spec", ROOT / "conformance")))
    argv = ["env", f"PYTHONPATH={path}", sys.executable]
    if piece is None:
        argv += ["-m", "savevm_conformance.adapters.reference"]
    else:
        argv += [str(ROOT / "tools" / "pieces.py"), str(piece)]
    return f"cmd:{shlex.join(argv)}"


_Judged = TypeVar("_Judged", bound=Verdict)


def run(
    judge: Callable[[Mutant], _Judged], mutants: Sequence[Mutant], jobs: int, console: Console
) -> list[_Judged]:
    """What is made of each, with progress on the console."""
    with ThreadPoolExecutor(jobs) as pool, Progress(console=console, transient=True) as progress:
        task = progress.add_task("mutants", total=len(mutants))
        waiting = [pool.submit(judge, mutant) for mutant in mutants]
        try:
            for future in as_completed(waiting):
                future.result()
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in waiting]


def show(verdicts: Sequence[Tested], console: Console) -> None:
    """Operators with how many were caught, and each that was not."""
    table = Table("operator", box=None)
    for heading in ("mutants", "caught", "by an error or a timeout", "only in pieces"):
        table.add_column(heading, justify="right")
    operators = sorted({verdict.mutant.operator for verdict in verdicts})
    for operator in (*operators, None):
        made = [v for v in verdicts if operator in (None, v.mutant.operator)]
        caught = [v for v in made if v.caught]
        broken = [v for v in caught if v.outcome != "fail"]
        pieces = [v for v in caught if v.pieces]
        table.add_row(
            operator or "all",
            *(str(len(some)) for some in (made, caught, broken, pieces)),
            end_section=operator == operators[-1],
        )
    console.print(table)
    survived(verdicts, console)


def survived(verdicts: Sequence[Verdict], console: Console) -> None:
    """The changes that nothing noticed."""
    for verdict in verdicts:
        if not verdict.caught:
            mutant = verdict.mutant
            console.print(f"\nsurvived: {mutant.file}:{mutant.line} {mutant.function}")
            console.print(verdict.diff, markup=False, highlight=False, soft_wrap=True)


def line(verdict: Verdict) -> str:
    """A verdict on a mutant as JSON."""
    values = asdict(verdict)
    mutant = values.pop("mutant")
    return json.dumps(
        {key: mutant[key] for key in ("file", "line", "function", "operator")} | values
    )


def options(description: str, at_least: int) -> argparse.ArgumentParser:
    """What can be said about which mutants are made."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--count", type=int, default=COUNT, help=f"variants ({COUNT})")
    parser.add_argument("--at-least", type=int, help=f"caught, or it fails ({at_least} of {COUNT})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the choice ({SEED})")
    parser.add_argument("--only", default="*", metavar="GLOB", help="of FILE:FUNCTION:OPERATOR")
    parser.add_argument("--list", action="store_true", help="list the variants, run nothing")
    parser.add_argument("--json", action="store_true", help="print JSON lines, one per variant")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    return parser


def main(
    given: argparse.Namespace,
    at_least: int,
    prepare: Callable[[Path], Callable[[Mutant], _Judged]],
    show: Callable[[Sequence[_Judged], Console], None],
) -> int:
    """Make mutants as the options say, and judge each with what is prepared in a directory."""
    found = [
        mutant
        for mutant in candidates()
        if fnmatchcase(f"{mutant.file}:{mutant.function}:{mutant.operator}", given.only)
    ]
    mutants = select(found, given.count, given.seed)
    if given.list:
        for mutant in mutants:
            print(mutant.diff((PACKAGE / mutant.file).read_bytes()))
        return 0
    if not mutants:
        print("mutants: none is like that", file=sys.stderr)
        return 2
    errors = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        try:
            verdicts = run(prepare(Path(name)), mutants, given.jobs, errors)
        except ValueError as error:
            errors.print(f"mutants: {error}", markup=False)
            return 2
    if given.json:
        print("\n".join(map(line, verdicts)))
    else:
        show(verdicts, Console())
        print(f"{len(found)} variants can be made, {len(mutants)} were, seed {given.seed}")
    least = given.at_least
    if least is None:
        least = -(-len(mutants) * at_least // COUNT)
    return 0 if sum(verdict.caught for verdict in verdicts) >= least else 1


if __name__ == "__main__":
    asked = options(__doc__ or "", AT_LEAST).parse_args()
    sys.exit(main(asked, AT_LEAST, lambda directory: Bench(directory).run, show))
