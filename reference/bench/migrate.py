"""Live migration between two processes of the reference, as a ratio to that between two QEMUs.

Throughput: a machine with 1 GiB of random pages that stands still.  Downtime: one with as many, and a
guest that writes 20 MB/s of other pages.  Both kinds of process get the same options and commands,
take turns, and the best of the rounds counts; only ratios within one run mean something.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

import savevm
from savevm.cli.demo import guest
from savevm.cli.processes import OURS, Kind, Machine, MachineError, find_qemus, migrate

MIB = 1 << 20
UNLIMITED = {"max-bandwidth": 0}


async def throughput(kind: Kind, directory: Path, size: int, scheme: str) -> tuple[float, float]:
    """Bytes per second of a machine with ``size`` MiB of random pages, and those of computing time."""
    loader = f"loader,file={directory / 'noise'},addr=0x80000000,force-raw=on"
    board = ("-S", "-m", f"{size + 64}M")
    async with (
        Machine.started(kind, directory, *board, "-device", loader) as source,
        Machine.started(kind, directory, *board, "-incoming", "defer") as destination,
    ):
        pair = (source, destination)
        before = sum(map(computed, pair))
        statistics = await migrate(*pair, scheme=scheme, **UNLIMITED)
        sent = statistics["ram"]["transferred"]
        return sent / statistics["total-time"] * 1000, sent / (sum(map(computed, pair)) - before)


def computed(machine: Machine) -> float:
    """Seconds for which a process has computed."""
    times = psutil.Process(machine.process.pid).cpu_times()
    return float(times.user + times.system)


async def downtime(kind: Kind, directory: Path, size: int, scheme: str) -> float:
    """Milliseconds for which a guest that writes 20 MB/s stands still."""
    loader = f"loader,file={directory / 'noise'},addr={0x80000000 + 128 * MIB:#x},force-raw=on"
    with guest(size=64 * MIB) as options:
        board = ("-m", f"{128 + size}M", *options)
        async with (
            Machine.started(kind, directory, *board, "-device", loader) as source,
            Machine.started(kind, directory, *board, "-incoming", "defer") as destination,
        ):
            # Until it has come around.
            await asyncio.sleep(4)
            statistics = await migrate(source, destination, scheme=scheme)
            return float(statistics["downtime"])


async def measure(qemu: Kind | None, size: int, rounds: int) -> dict[str, Any]:
    """Best results, by what was measured and by the kind of process."""
    kinds = [OURS, *([qemu] if qemu is not None else [])]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="savevm-") as name:
        directory = Path(name)
        with (directory / "noise").open("wb") as noise:
            for _ in range(size):
                noise.write(os.urandom(MIB))
        for scheme in ("unix", "tcp"):
            fast: dict[str, float] = {}
            cheap: dict[str, float] = {}
            for _ in range(rounds):
                for kind in kinds:
                    both = await throughput(kind, directory, size, scheme)
                    for best, rate in zip((fast, cheap), both, strict=True):
                        best[kind.name] = max(best.get(kind.name, 0.0), rate / 1e6)
            results[f"throughput over {scheme}, MB/s"] = fast
            results[f"over {scheme}, MB/s of computing time"] = cheap
        lowest: dict[str, float] = {}
        for _ in range(rounds):
            for kind in kinds:
                time = await downtime(kind, directory, size, "tcp")
                lowest[kind.name] = min(lowest.get(kind.name, 1e9), time)
        results["downtime, ms"] = lowest
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", help="a qemu-system-riscv64, or a directory with one")
    parser.add_argument("--size", type=int, default=1024, help="MiB of random pages")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        qemus = find_qemus([given.qemu] if given.qemu else ())
        qemu = qemus[0] if qemus else None
        results = asyncio.run(measure(qemu, given.size, given.rounds))
    except MachineError as error:
        sys.exit(str(error))
    if given.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(title=f"live migration, {savevm.build()} build", box=box.SIMPLE)
    for column in ("", "reference", qemu.name if qemu else "QEMU", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for job, numbers in results.items():
        ours = numbers[OURS.name]
        theirs = numbers.get(qemu.name) if qemu else None
        shown = ["-", "-"] if theirs is None else [f"{theirs:.0f}", f"{ours / max(theirs, 1):.2f}"]
        table.add_row(job, f"{ours:.0f}", *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
