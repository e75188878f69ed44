"""Streams per second of each target of ``savevm fuzz``: compiled, interpreted, and how many times as fast.

One worker runs as installed and from the sources without a compiler, in turns; the best counts.  QEMUs
are those of ``SAVEVM_QEMUS``.  What is guided by coverage runs interpreted alone, and needs atheris.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PURE = os.pathsep.join(str(ROOT / root) for root in ("spec", "reference", "conformance", "fuzz"))
# What is named, and the command line of `savevm fuzz` for it.
TARGETS = {
    "reference": ["reference"],
    "reference, each compared": ["reference", "--compare", "1"],
    "spec": ["spec"],
    "adapter of the reference": [
        f"cmd:{shlex.quote(sys.executable)} -m savevm_conformance.adapters.reference"
    ],
    "adapter as writer": [
        f"cmd:{shlex.quote(sys.executable)} -m savevm_conformance.adapters.reference",
        "--role",
        "writer",
    ],
}
GUIDED = ("reader", "vmdesc", "envelopes", "channel", "machine")


def run(argv: list[str], *, pure: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    if pure:
        environment["PYTHONPATH"] = PURE
    return subprocess.run(
        [sys.executable, "-m", *argv], env=environment, cwd="/", capture_output=True, text=True
    )


def campaign(arguments: list[str], seconds: float, *, pure: bool) -> float:
    """Executions per second of a campaign that finds nothing new."""
    command = ["savevm.cli", "fuzz", *arguments, "--time", f"{seconds:g}s", "-j1", "--json"]
    done = run([*command, "--seed", "1"], pure=pure)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    rate = json.loads(done.stdout.splitlines()[-1])["rate"]
    assert isinstance(rate, float)
    return rate


def guided(target: str, seconds: float) -> float | None:
    """Executions per second of a target of coverage, None where it cannot be run."""
    with tempfile.TemporaryDirectory() as name:
        options = ["--", f"-max_total_time={seconds:g}", "-seed=1"]
        done = run(["savevm_fuzz.coverage", target, name, *options], pure=True)
    if match := re.search(r"Done (\d+) runs in (\d+) second", done.stderr):
        return int(match[1]) / (int(match[2]) or 1)
    print(f"coverage {target}: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each run (30)")
    parser.add_argument("--rounds", type=int, default=1, help="of which the best counts (1)")
    options = parser.parse_args()
    table = Table(box=None)
    for heading in ("target", "compiled", "interpreted", "ratio"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for name, arguments in TARGETS.items():
        rates = dict.fromkeys((False, True), 0.0)
        for _ in range(options.rounds):
            for pure in rates:
                rates[pure] = max(rates[pure], campaign(arguments, options.seconds, pure=pure))
        compiled, interpreted = rates.values()
        table.add_row(
            name, f"{compiled:.0f}", f"{interpreted:.0f}", f"{compiled / interpreted:.2f}"
        )
    for path in filter(None, os.environ.get("SAVEVM_QEMUS", "").split(os.pathsep)):
        table.add_row(
            f"qemu:{path}", f"{campaign([f'qemu:{path}'], options.seconds, pure=False):.0f}"
        )
    for name in GUIDED:
        rate = guided(name, options.seconds)
        table.add_row(f"coverage of {name}", "", "-" if rate is None else f"{rate:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
