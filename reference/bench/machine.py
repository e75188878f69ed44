"""Speed of the emulated machine: instructions per second, and how many times as fast a QEMU is.

The benchmark of reference/guests, which times itself by the board's clock, runs on the installed
package, on the sources without a compiler, and on QEMU (TCG), in turns; the best counts.  With a
kernel and firmware, so does a boot of Linux from its first instruction to its first process.
"""

import argparse
import asyncio
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOTS = [str(Path(__file__).parents[2] / root) for root in ("spec", "reference")]
MEMORY = 256 << 20
COMMAND_LINE = "earlycon=sbi keep_bootcon printk.devkmsg=on"
# In a second of a compiled machine, and of one that is not.
ROUNDS = 100
ROUNDS_PURE = 1
AIMS = {"compiled": 100.0, "pure": 1.0, "Linux": 60.0}


def run_here(images: dict[str, str], until: bytes) -> dict[str, Any]:
    """Run until something is printed: instructions, seconds of this process, and what was printed."""
    from savevm.machine.spike import Spike

    printed = bytearray()
    board = Spike(MEMORY, console=printed.extend)
    board.load_image(**images)

    async def run() -> None:
        task = asyncio.create_task(board.run())
        board.resume()
        while until not in printed and board.running:
            await asyncio.sleep(0.002)
            if task.done():
                await task
        task.cancel()

    begin = time.process_time()
    asyncio.run(run())
    seconds = time.process_time() - begin
    if until not in printed:
        raise SystemExit(f"the guest stopped: {printed[-500:]!r}")
    count = sum(int(hart.executed) for hart in board.harts)
    return {"instructions": count, "seconds": seconds, "printed": printed.decode("latin-1")}


def child(images: dict[str, str], until: bytes, *, pure: bool = False) -> dict[str, Any]:
    """``run_here`` in a process of its own."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if pure:
        environment["PYTHONPATH"] = os.pathsep.join(ROOTS)
    argv = [sys.executable, __file__, "--child", json.dumps(images), "--until", until.decode()]
    done = subprocess.run(argv, env=environment, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_qemu(
    qemu: str, images: dict[str, str], until: bytes, cpu: str = "rv64"
) -> tuple[float, str]:
    """Seconds of the processor until something is printed, and what was."""
    argv = [qemu, "-M", "spike", "-cpu", cpu, "-m", f"{MEMORY >> 20}M"]
    argv += ["-nodefaults", "-display", "none", "-serial", "stdio"]
    for name, value in images.items():
        argv += [f"-{name}", value]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    printed = b""
    assert process.stdout is not None
    try:
        while until not in printed:
            if not select.select([process.stdout], [], [], 60)[0]:
                break
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                break
            printed += piece
    finally:
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.stdout.close()
    if until not in printed:
        raise SystemExit(f"{qemu}: {printed[-500:]!r}")
    return usage.ru_utime + usage.ru_stime, printed.decode("latin-1")


def ticks(printed: str) -> tuple[str, int]:
    """What the benchmark computed, and the ticks of 100 ns it took."""
    found = re.search(r"(\d+) (\d+)\r?\n", printed)
    assert found, printed
    return found[1], int(found[2])


def row(name: str, mips: float, ratio: float | None) -> None:
    aim = AIMS[name]
    compared = f"QEMU is {ratio:6.1f} times as fast" if ratio else "no QEMU"
    verdict = "met" if mips >= aim else "NOT MET"
    print(f"{name:<10} {mips:8.1f} MIPS   {compared}   aim {aim:.0f}: {verdict}", flush=True)


def bench(qemu: str | None, rounds: int) -> None:
    from savevm.machine.guests import BENCHMARK

    for name, count in (("compiled", ROUNDS), ("pure", ROUNDS_PURE)):
        kernel = {"bios": "none", "kernel": str(BENCHMARK)}
        best: dict[str, float] = {}
        for _ in range(rounds if name == "compiled" else 1):
            images = {**kernel, "append": f"rounds={count}"}
            here = child(images, b"\n", pure=name == "pure")
            result, took = ticks(here["printed"])
            mips = here["instructions"] / here["seconds"] / 1e6
            best["mips"] = max(mips, best.get("mips", 0))
            best["here"] = min(took / count, best.get("here", took / count))
            if qemu:
                # Long enough for a translator to be warm.
                images["append"] = f"rounds={ROUNDS}"
                theirs, took = ticks(run_qemu(qemu, images, b"\n")[1])
                if count == ROUNDS and theirs != result:
                    raise SystemExit(f"QEMU computed {theirs}, this machine {result}")
                best["qemu"] = min(took / ROUNDS, best.get("qemu", took))
        row(name, best["mips"], best["here"] / best["qemu"] if qemu else None)


def bench_linux(qemu: str | None, kernel: str, bios: str) -> None:
    from savevm.machine.guests import initramfs

    with tempfile.NamedTemporaryFile() as initrd:
        initrd.write(initramfs())
        initrd.flush()
        images = {"bios": bios, "kernel": kernel, "initrd": initrd.name, "append": COMMAND_LINE}
        here = child(images, b"tick 0")
        ratio = None
        if qemu:
            # Debian's Linux 7.2 does not start on QEMU's spike with Sstc.
            ratio = here["seconds"] / run_qemu(qemu, images, b"tick 0", "rv64,sstc=off")[0]
        row("Linux", here["instructions"] / here["seconds"] / 1e6, ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", default=os.environ.get("SAVEVM_QEMU", "qemu-system-riscv64"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", help="a Linux for RV64, as an uncompressed image")
    parser.add_argument("--bios", help="OpenSBI's fw_dynamic.bin, 1.3 or newer")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--until", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_here(json.loads(arguments.child), arguments.until.encode())))
        return
    named = Path(arguments.qemu)
    qemu = shutil.which(named / "qemu-system-riscv64" if named.is_dir() else named)
    bench(qemu, arguments.rounds)
    if arguments.kernel and arguments.bios:
        bench_linux(qemu, arguments.kernel, arguments.bios)


if __name__ == "__main__":
    main()
