"""Speed of `savevm verify` and `savevm extract` on large streams, as ratios to real peers.

Makes two streams on the spot with a QEMU: a guest with 1 GiB of random pages, and one with 8 GiB
of zeros.  Everything lies in a RAM disk, the programs take turns, and the best of the rounds
counts; only ratios within one run mean something.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qemu.qmp.legacy import QEMUMonitorProtocol

import savevm

MIB = 1 << 20
ROOTS = [str(Path(__file__).parents[2] / root) for root in ("spec", "reference")]


def run(argv: list[str], *, stdout: str = os.devnull, pure: bool = False) -> tuple[float, int]:
    """Run to success; wall-clock seconds and peak resident set in bytes.

    The peak is an upper bound: Linux counts this process's own in, as it was at the start.
    """
    env = dict(os.environ)
    env.pop("PYTHONPATH", None)
    if pure:
        env["PYTHONPATH"] = os.pathsep.join(ROOTS)
    with open(stdout, "wb") as out:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdout=out, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)}: exit code {process.returncode}")
    return seconds, usage.ru_maxrss << 10


class Qemu:
    """A QEMU process and its monitor; killed at the end of the ``with`` block."""

    def __init__(self, binary: str, arguments: list[str]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        socket = f"{self._directory.name}/qmp"
        self._monitor = QEMUMonitorProtocol(socket, server=True)
        self._process = subprocess.Popen([binary, *arguments, "-qmp", f"unix:{socket}"])
        self._monitor.accept(timeout=60)

    def __enter__(self) -> "Qemu":
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.close()
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def migrate(self, uri: str) -> None:
        """Start writing the stream as fast as it goes."""
        self._monitor.cmd("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self._monitor.cmd("migrate", uri=uri)

    def wait_for_migration(self) -> None:
        """Until the stream is written, or loaded."""
        while True:
            answer = self._monitor.cmd("query-migrate")
            assert isinstance(answer, dict)
            if answer.get("status") == "completed":
                return
            if answer.get("status") == "failed":
                raise SystemExit("bench: QEMU's migration failed")
            time.sleep(0.002)


def make_stream(qemu: str, arguments: list[str], path: Path) -> None:
    with Qemu(qemu, arguments) as source:
        source.migrate(f"exec:cat > {path}")
        source.wait_for_migration()


def load_in_qemu(qemu: str, arguments: list[str], path: Path | None) -> float:
    """Seconds from QEMU's start until the stream is loaded or, without one, until it is idle."""
    begin = time.perf_counter()
    incoming = ["-incoming", f"exec:cat {path}"] if path else []
    with Qemu(qemu, [*arguments, *incoming]) as destination:
        if path:
            destination.wait_for_migration()
        return time.perf_counter() - begin


def measure(name: str, stream: Path, peers: dict[str, Callable[[], float]], rounds: int) -> None:
    best: dict[str, float] = {}
    for _ in range(rounds):
        for peer, job in peers.items():
            best[peer] = min(best.get(peer, 1e9), job())
    print(f"\n{name}: {stream.stat().st_size / MIB:.0f} MiB")
    for peer, seconds in best.items():
        print(f"  {peer:<28}{seconds * 1000:>9.0f} ms")

    start_up = best["savevm start-up"]
    qemu = best["QEMU -incoming"] - best["QEMU start-up"]

    def ratio(ours: str, peer: str, theirs: float) -> None:
        print(
            f"  {ours} is {theirs / best[ours]:.2f} × as fast as {peer}, "
            f"{theirs / (best[ours] - start_up):.2f} × without start-up"
        )

    ratio("verify", "cat > /dev/null", best["cat > /dev/null"])
    ratio("verify", "QEMU -incoming (without start-up)", qemu)
    ratio("verify", "verify, interpreted", best["verify, interpreted"])
    ratio("extract", "cat > RAM disk", best["cat > RAM disk"])
    ratio("extract", "QEMU -incoming (without start-up)", qemu)


class Bench:
    """One stream, and the programs that take turns on it."""

    def __init__(self, qemu: str, directory: Path, arguments: list[str]) -> None:
        self.qemu = qemu
        self.directory = directory
        self.stream = directory / "stream"
        self.peaks: dict[str, int] = {}
        make_stream(qemu, arguments, self.stream)
        # The destination gets its RAM from the stream, not from a loader device.
        self.incoming = arguments[: arguments.index("-m") + 2]
        # A header and the EOF mark: what a run costs before it has read anything.
        self.tiny = directory / "tiny"
        self.tiny.write_bytes(b"QEVM\0\0\0\3\0")

    def peers(self) -> dict[str, Callable[[], float]]:
        out = self.directory / "out"
        return {
            "savevm start-up": partial(self.ours, "start-up", ["verify", "-q", str(self.tiny)]),
            "cat > /dev/null": partial(self.cat, Path(os.devnull)),
            "verify": partial(self.ours, "verify", ["verify", "-q", str(self.stream)]),
            "cat > RAM disk": partial(self.cat, self.directory / "copy"),
            "extract": partial(self.ours, "extract", ["extract", str(self.stream), "-o", str(out)]),
            "QEMU -incoming": partial(load_in_qemu, self.qemu, self.incoming, self.stream),
            "QEMU start-up": partial(load_in_qemu, self.qemu, self.incoming, None),
            "verify, interpreted": partial(
                self.ours, "verify, interpreted", ["verify", "-q", str(self.stream)], pure=True
            ),
        }

    def ours(self, label: str, argv: list[str], *, pure: bool = False) -> float:
        seconds, self.peaks[label] = run([sys.executable, "-m", "savevm.cli", *argv], pure=pure)
        shutil.rmtree(self.directory / "out", ignore_errors=True)
        return seconds

    def cat(self, target: Path) -> float:
        seconds, _ = run(["cat", str(self.stream)], stdout=str(target))
        if target.is_file():
            target.unlink()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", metavar="DIR", help="where qemu-system-x86_64 is, if not on PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", type=int, default=1024, metavar="MIB")
    parser.add_argument("--zeros", type=int, default=8192, metavar="MIB")
    options = parser.parse_args()
    qemu = shutil.which("qemu-system-x86_64", path=options.qemu)
    if qemu is None:
        raise SystemExit("bench: no qemu-system-x86_64 (install it or give --qemu)")
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    print(version.stdout.split("\n")[0])
    print(f"savevm {savevm.__version__}, {savevm.build()}")
    base = ["-M", "pc", "-nodefaults", "-display", "none", "-accel", "tcg", "-S"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        noise = directory / "noise"
        with noise.open("wb") as out:
            for _ in range(options.random // 16):
                out.write(os.urandom(16 * MIB))
        loader = f"loader,file={noise},addr=0x2000000,force-raw=on"
        guests = {
            "random pages": [*base, "-m", f"{options.random + 64}M", "-device", loader],
            "zero pages": [*base, "-m", f"{options.zeros}M"],
        }
        for title, arguments in guests.items():
            bench = Bench(qemu, directory, arguments)
            measure(title, bench.stream, bench.peers(), options.rounds)
            for label, peak in bench.peaks.items():
                print(f"  peak memory of {label}: at most {peak / MIB:.0f} MiB")
            bench.stream.unlink()
            noise.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
