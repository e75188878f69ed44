"""The machine's time: ticks of 100 ns, of real time or of instructions executed."""

import time
from typing import Final

__all__ = ["FREQUENCY", "Clock"]

FREQUENCY: Final = 10_000_000  # ticks per second

_MASK: Final = (1 << 64) - 1


class Clock:
    """``mtime``, an unsigned number of 64 bits; it stands still until ``resume`` and after ``stop``.

    With ``shift`` time depends on nothing but the program: a tick passes every ``1 << shift``
    instructions that are told by ``advance``.
    """

    def __init__(self, shift: int | None = None) -> None:
        self.shift: Final = shift
        self.running = False
        self._mtime = 0  # as of _since
        self._since = 0  # real time in ticks, or instructions
        self._executed = 0

    def _now(self) -> int:
        return self._executed if self.shift is not None else time.monotonic_ns() // 100

    def mtime(self) -> int:
        """The time in ticks."""
        if not self.running:
            return self._mtime
        return (self._mtime + ((self._now() - self._since) >> (self.shift or 0))) & _MASK

    def set(self, mtime: int) -> None:
        """Go on from a time."""
        self._mtime = mtime & _MASK
        self._since = self._now()

    def stop(self) -> None:
        if self.running:
            self._mtime = self.mtime()
            self.running = False

    def resume(self) -> None:
        if not self.running:
            self._since = self._now()
            self.running = True

    def advance(self, instructions: int) -> None:
        """So many instructions were executed."""
        self._executed += instructions
