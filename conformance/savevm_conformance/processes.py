"""Processes and what they have started, as Linux tells of them."""

import contextlib
import os
from pathlib import Path

__all__ = ["descendants", "resident"]


def descendants(pid: int) -> list[int]:
    """The processes below one, parents before their children; none where the system does not say."""
    found = [pid]
    for parent in found:
        # It can end at any moment, and so can its threads.
        with contextlib.suppress(OSError):
            for task in Path("/proc", str(parent), "task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, task.read_text().split())
    return found[1:]


def resident(pid: int) -> int:
    """Bytes of memory that a process and those below it have; 0 where the system does not say."""
    pages = 0
    for each in (pid, *descendants(pid)):
        try:
            pages += int(Path("/proc", str(each), "statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
