"""Speed of save, load, `savevm verify` and `savevm extract`, as ratios to cat and to a QEMU.

Two guests are made on the spot, one with 1 GiB of random pages and one with 8 GiB of zeros.
Everything lies in a RAM disk, those who are compared take turns, and the best of the rounds counts;
only ratios within one run mean something.  Random pages are loaded into memory that is there
already, zeros into memory that was never touched.  QEMU 7.2 has a file only through a command, as
"file" is measured; with "fd" it is handed the open file, as libvirt does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from engine import Engine, Job, migrate, ram, save, shell
from rich.console import Console
from rich.table import Table

import savevm
from savevm_conformance.capture import CaptureError

MIB = 1 << 20
ROOTS = [str(Path(__file__).parents[2] / root) for root in ("spec", "reference")]
# Copies of the random pages that are there at a time: files, and the memory of machines.
COPIES = 9
PEERS = {"file": "cat", "fd": "cat", "pipe": "cat | cat", "socket": "a read and write loop"}
# How many times as fast as QEMU a job should be.
AIMS = {
    "random pages": {"load": 0.9, "save file": 1.3, "save pipe": 1.0},
    "zero pages": {"load": 15.0, "save": 40.0},
}


@dataclass
class Row:
    """Best times of one job, in seconds; ``peer`` copied the stream, ``qemu`` is None if unknown."""

    guest: str
    job: str
    over: str
    peer: str
    savevm: float
    copy: float
    qemu: float | None
    aim: float | None = None


@dataclass
class Guest:
    """A machine as a stream; QEMU's command lines, for it and to load it, empty without a QEMU."""

    name: str
    stream: Path
    qemu: list[str]
    incoming: list[str]


def make(name: str, size: int, qemu: str | None, directory: Path) -> Guest:
    """A guest with ``size`` MiB of RAM that is as ``name`` says; raises ``CaptureError``."""
    directory.mkdir()
    guest = Guest(name, directory / "stream", [], [])
    random = name == "random pages"
    if qemu is None:
        save(ram(size * MIB, random=random), f"file:{guest.stream}")
        return guest
    base = [qemu, "-M", "pc", "-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-m"]
    if random:
        noise = directory / "noise"
        with noise.open("wb") as out:
            for _ in range(size // 16):
                out.write(os.urandom(16 * MIB))
        # The destination has its RAM from the stream, not from a loader device.
        loader = f"loader,file={noise},addr=0x2000000,force-raw=on"
        guest.qemu = [*base, f"{size + 64}M", "-device", loader]
        guest.incoming = [*base, f"{size + 64}M", "-mem-prealloc"]
    else:
        guest.qemu = guest.incoming = [*base, f"{size}M"]
    migrate(guest.qemu, directory, f"file:{guest.stream}")
    return guest


class Bench:
    """What is measured on a guest, and what could not be."""

    def __init__(self, guest: Guest, rounds: int) -> None:
        self.guest = guest
        self.rows: list[Row] = []
        self.peaks: dict[str, int] = {}
        self.missing: list[str] = []
        self._rounds = rounds

    def _best(self, jobs: Mapping[str, Job]) -> dict[str, float]:
        best: dict[str, float] = {}
        left = dict(jobs)
        for _ in range(self._rounds):
            for name, job in list(left.items()):
                try:
                    best[name] = min(best.get(name, 1e9), job())
                except CaptureError as error:
                    del left[name]
                    self.missing.append(f"{self.guest.name}: {name}: {error}")
        return best

    def commands(self) -> None:
        """Measure `savevm verify` and `savevm extract`, with and without their start-up."""
        stream, directory = self.guest.stream, self.guest.stream.parent
        # A header and the EOF mark: what a run costs before it has read anything.
        tiny = directory / "tiny"
        tiny.write_bytes(b"QEVM\0\0\0\3\0")
        verify = ["verify", "-q", str(stream)]
        jobs: dict[str, Job] = {
            "start-up": partial(self._run, "start-up", ["verify", "-q", str(tiny)]),
            "cat > /dev/null": partial(shell, f"cat {stream} > /dev/null"),
            "verify": partial(self._run, "verify", verify),
            "cat > file": partial(shell, f"cat {stream} > {directory}/written"),
            "extract": partial(
                self._run, "extract", ["extract", str(stream), "-o", f"{directory}/out"]
            ),
            "verify, interpreted": partial(self._run, "verify, interpreted", verify, pure=True),
        }
        if incoming := self.guest.incoming:
            jobs["QEMU"] = partial(migrate, incoming, directory, f"file:{stream}", incoming=True)
        best = self._best(jobs)
        start_up = best["start-up"]
        for job, less in (("verify", start_up), ("extract", start_up), ("verify, interpreted", 0)):
            peer = "cat > file" if job == "extract" else "cat > /dev/null"
            row = Row(self.guest.name, job, "file", peer, best[job], best[peer], best.get("QEMU"))
            self.rows.append(row)
            if not less:
                continue
            job += ", without start-up"
            if less < row.savevm:
                self.rows.append(Row(**asdict(row) | {"job": job, "savevm": row.savevm - less}))
            else:
                self.missing.append(f"{self.guest.name}: {job}: the noise is larger")

    def _run(self, label: str, argv: list[str], *, pure: bool = False) -> float:
        """Seconds of a command; its peak memory is an upper bound.

        Linux counts this process's own in, as it was at the start.
        """
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if pure:
            env["PYTHONPATH"] = os.pathsep.join(ROOTS)
        command = [sys.executable, "-m", "savevm.cli", *argv]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        self.peaks[label] = usage.ru_maxrss << 10
        # Nobody is to be charged with clearing what was there before.
        shutil.rmtree(self.guest.stream.with_name("out"), ignore_errors=True)
        self.guest.stream.with_name("written").unlink(missing_ok=True)
        return seconds

    def engine(self) -> None:
        """Measure save and load."""
        guest = self.guest
        fresh = guest.name == "zero pages"
        engine = Engine(guest.stream, fresh, guest.qemu, guest.incoming)
        aims = AIMS[guest.name]
        for job, jobs in (("load", engine.loads), ("save", engine.saves)):
            for over, peer in PEERS.items():
                best = self._best(jobs(over))
                aim = aims.get(f"{job} {over}", aims.get(job))
                ours, copy, theirs = best["savevm"], best["copy"], best.get("QEMU")
                self.rows.append(Row(guest.name, job, over, peer, ours, copy, theirs, aim))

    def table(self) -> Table:
        """The rows, as how many times as fast as each peer we are."""
        table = Table(title=f"{self.guest.name}: {self.guest.stream.stat().st_size / MIB:.0f} MiB")
        for name in ("", "over", "ms", "×", "as fast as", "× QEMU", "aim"):
            table.add_column(
                name, justify="right" if name in ("ms", "×", "× QEMU", "aim") else "left"
            )
        for row in self.rows:
            ratio = row.qemu / row.savevm if row.qemu else None
            held = ratio is None or row.aim is None or ratio >= row.aim
            table.add_row(
                row.job,
                row.over,
                f"{row.savevm * 1000:.0f}",
                f"{row.copy / row.savevm:.2f}",
                row.peer,
                "" if ratio is None else f"{ratio:.2f}" if held else f"[red]{ratio:.2f}",
                "" if row.aim is None else f"{row.aim:g}",
            )
        return table


def available() -> int:
    """MiB of memory that programs and the RAM disk can have together."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))


def report(benches: list[Bench], missing: list[str], qemu: str) -> None:
    console = Console()
    console.print(f"savevm {savevm.__version__}, {savevm.build()}; {qemu}", highlight=False)
    for bench in benches:
        console.print(bench.table())
        for label, peak in bench.peaks.items():
            console.print(f"peak memory of {label}: at most {peak / MIB:.0f} MiB")
    for line in missing:
        console.print(f"not measured: {line}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", metavar="DIR", help="where qemu-system-x86_64 is, if not on PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", type=int, default=1024, metavar="MIB")
    parser.add_argument("--zeros", type=int, default=8192, metavar="MIB")
    parser.add_argument("--only", choices=("commands", "engine"), help="measure nothing else")
    parser.add_argument("--json", action="store_true", help="print times and aims in JSON")
    options = parser.parse_args()
    missing = []
    qemu = shutil.which("qemu-system-x86_64", path=options.qemu)
    version = "no QEMU"
    if qemu is None:
        missing.append("QEMU: no qemu-system-x86_64 (install it or give --qemu)")
    else:
        said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
        version = said.stdout.split("\n")[0]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        benches = []
        sizes = {"random pages": options.random, "zero pages": options.zeros}
        if available() < COPIES * options.random:
            del sizes["random pages"]
            missing.append(f"random pages: less than {COPIES * options.random} MiB of memory left")
        for i, (guest, size) in enumerate(sizes.items()):
            made = make(guest, size, qemu, Path(name, str(i)))
            benches.append(Bench(made, options.rounds))
        # Our machines count as memory of the commands, so these go first.
        if options.only != "engine":
            for bench in benches:
                bench.commands()
        if options.only != "commands":
            for bench in benches:
                bench.engine()
        missing += [line for bench in benches for line in bench.missing]
        if options.json:
            rows = [asdict(row) for bench in benches for row in bench.rows]
            facts = {"savevm": savevm.__version__, "build": savevm.build(), "qemu": version}
            print(json.dumps(facts | {"rows": rows, "not measured": missing}, indent=1))
        else:
            report(benches, missing, version)


if __name__ == "__main__":
    main()
