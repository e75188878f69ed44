"""Small programs for the board, built from reference/guests."""

from pathlib import Path
from typing import Final

__all__ = ["ARITHMETIC", "BENCHMARK", "CONSOLE", "INIT", "INTERRUPTS", "SWEEPER", "initramfs"]

_HERE: Final = Path(__file__).parent

# Increments a byte of every page of a window of RAM, over and over; prints a letter per sweep.
SWEEPER: Final = _HERE / "sweeper.elf"
# Checks instructions; prints PASS or FAIL and powers off with the number of groups that failed.
ARITHMETIC: Final = _HERE / "arithmetic.elf"
# Has the harts interrupt each other (harts= on the command line), and the timer; prints PASS.
INTERRUPTS: Final = _HERE / "interrupts.elf"
# Computes; prints a result and the ticks it took.
BENCHMARK: Final = _HERE / "benchmark.elf"
# Says where HTIF is for software that has no symbols for it.
CONSOLE: Final = _HERE / "console.elf"
# The first process of a Linux: prints a tick per second.
INIT: Final = _HERE / "init.elf"


def initramfs() -> bytes:
    """An archive (newc) for Linux: ``INIT``, and the devices that it and the kernel open."""
    entries = (
        ("dev", 0o40755, b"", (0, 0)),
        ("dev/console", 0o20600, b"", (5, 1)),
        ("dev/kmsg", 0o20600, b"", (1, 11)),
        ("init", 0o100755, INIT.read_bytes(), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    )
    archive = b""
    for inode, (name, mode, data, device) in enumerate(entries):
        path = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        archive += b"070701" + b"".join(b"%08x" % n for n in numbers) + path
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return archive
