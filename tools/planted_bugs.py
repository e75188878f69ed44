#!/usr/bin/env python3
"""Planted bugs: does the fuzzer find out that an implementation is wrong?

Makes the same wrong variants of the reference as ``mutants.py``, and fuzzes each as anybody would:
``savevm fuzz`` in the profile ci, as a reader, as one that gets its input in pieces, and as a writer.
Where that finds nothing it goes on with other random numbers.  What is found must not be found of the
reference as it is.

Exits with 1 if fewer were found than wanted, 2 if nothing could be run or the reference is at fault.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mutants import Verdict, command, main, options, survived
from variants import PACKAGE, ROOT, SOURCES, Mutant, Variants

AT_LEAST: Final = 55
# For each, in all.
SECONDS: Final = 600.0
# Exit codes of the fuzzer: where nothing was found, the last two because it was told to end, or it has
# not even begun; and where there is nothing to fuzz.
_NOTHING: Final = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
_UNUSABLE: Final = 2
_ROOTS: Final = [str(ROOT / name) for name in ("spec", "reference", "conformance", "fuzz")]


class Way(NamedTuple):
    """A way to use the fuzzer; ``piece`` as of `command`."""

    name: str
    role: str
    piece: int | None = None


WAYS: Final = (Way("reader", "reader"), Way("pieces", "reader", 0), Way("writer", "writer"))

# Seconds that are told of how many were found within.
_SOON: Final = (10.0, 60.0)


class Ran(NamedTuple):
    """What came of a run of the fuzzer; ``signature`` of what it found, empty where it is nothing."""

    executions: int
    signature: str = ""
    error: bool = False


@dataclass(frozen=True)
class Fuzzed(Verdict):
    """What the fuzzer makes of a mutant.

    ``seconds`` and ``executions`` are of all runs up to the one, of ``way`` and ``seed``, that found
    it; ``error``: it could not even be introduced.
    """

    seconds: float
    executions: int
    way: str | None = None
    seed: int = 0
    signature: str = ""
    error: bool = False


class Fuzzer(Variants):
    """Fuzzes variants, each for up to ``seconds`` in all.

    Raises ``ValueError`` where something is found in the original.
    """

    def __init__(
        self,
        directory: Path,
        seconds: float,
        much: Sequence[str] = ("--profile", "ci"),
        original: Path = PACKAGE,
    ) -> None:
        super().__init__(directory, original)
        self.seconds: Final = seconds
        self.much: Final = much
        for way in WAYS:
            if signature := self.fuzz(self.base, way, 0, seconds).signature:
                raise ValueError(f"the original as {way.name}: {signature}")

    def fuzz(self, package: Path, way: Way, seed: int, seconds: float) -> Ran:
        """Fuzz the package in that directory until something is found, or time is up.

        Raises ``ValueError`` where it is found in the original, too.
        """
        with tempfile.TemporaryDirectory(dir=self.directory) as findings:
            arguments = *self.much, "--seed", str(seed), "--role", way.role, "--findings", findings
            with _savevm_fuzz(command(package, way.piece), "-x", "--json", *arguments) as process:
                try:
                    output, errors = process.communicate(timeout=seconds)
                except subprocess.TimeoutExpired:
                    process.terminate()
                    output, errors = process.communicate()
            told: dict[str, dict[str, Any]] = {}
            for line in map(json.loads, output.splitlines()):
                told[line["kind"]] = line
            executions = told.get("summary", {}).get("executions", 0)
            if "finding" in told:
                finding = told["finding"]
                if package != self.base:
                    self._right(way, finding["directory"])
                return Ran(executions, finding["signature"])
            if process.returncode == _UNUSABLE and not told:
                return Ran(0, errors.rpartition("Error: ")[2].strip(), error=True)
            if process.returncode not in _NOTHING:
                raise ValueError(f"the fuzzer fails: {errors}")
            return Ran(executions)

    def _right(self, way: Way, finding: str) -> None:
        """What was found must not be found of the original."""
        with _savevm_fuzz(command(self.base, way.piece), "--replay", finding) as process:
            output, errors = process.communicate()
        if process.returncode:
            raise ValueError(f"the original as {way.name}, too: {output}{errors}")

    def run(self, mutant: Mutant) -> Fuzzed:
        """Make the mutant, and fuzz it."""
        diff = mutant.diff(self.source(mutant))
        began = time.monotonic()
        executions = 0
        # What it is about comes first, as with the vectors.
        role = "writer" if "write" in SOURCES[mutant.file] else "reader"
        ways = sorted(WAYS, key=lambda way: way.role != role)
        rounds = ((seed, way) for seed in count() for way in ways)
        with self.planted(mutant) as package:
            while (left := began + self.seconds - time.monotonic()) > 0:
                seed, way = next(rounds)
                ran = self.fuzz(package, way, seed, left)
                executions += ran.executions
                if ran.signature:
                    seconds = round(time.monotonic() - began, 1)
                    return Fuzzed(
                        mutant,
                        diff,
                        True,
                        seconds,
                        executions,
                        way.name,
                        seed,
                        ran.signature,
                        ran.error,
                    )
        return Fuzzed(mutant, diff, False, self.seconds, executions)


def _savevm_fuzz(target: str, *arguments: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join([*_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "savevm.cli", "fuzz", target, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def show(verdicts: Sequence[Fuzzed], console: Console) -> None:
    """Each mutant with what found it, and how many were found how soon."""
    table = Table(box=None)
    for heading in ("mutant", "operator", "found by"):
        table.add_column(heading, overflow="fold")
    for heading in ("seconds", "executions"):
        table.add_column(heading, justify="right")
    table.add_column("finding", overflow="fold")
    for found in verdicts:
        mutant = found.mutant
        by = "an error" if found.error else found.way and f"{found.way}, seed {found.seed}"
        table.add_row(
            f"{mutant.file}:{mutant.line} {mutant.function}",
            mutant.operator,
            by or "nothing",
            f"{found.seconds:.1f}",
            str(found.executions),
            Text(found.signature),
        )
    console.print(table)
    times = [found.seconds for found in verdicts if found.caught]
    soon = [f"{sum(t <= most for t in times)} within {most:g} s" for most in _SOON]
    console.print(f"\nfound: {', '.join(soon)}, {len(times)} in all")
    survived(verdicts, console)


if __name__ == "__main__":
    parser = options(__doc__ or "", AT_LEAST)
    parser.add_argument("--fuzz", type=float, default=SECONDS, metavar="SECONDS", help="for each")
    given = parser.parse_args()
    sys.exit(main(given, AT_LEAST, lambda place: Fuzzer(place, given.fuzz).run, show))
