"""The core-local interruptor: software and timer interrupts of the harts."""

from collections.abc import Sequence
from typing import Final, Protocol

from savevm.machine.clock import Clock

__all__ = ["CLINT_BASE", "CLINT_SIZE", "MSIP", "MTIP", "NEVER", "Clint"]

CLINT_BASE: Final = 0x200_0000
CLINT_SIZE: Final = 0x1_0000

# Bits of the harts' mip.
MSIP: Final = 1 << 3
MTIP: Final = 1 << 7

NEVER: Final = (1 << 64) - 1

_MTIMECMP: Final = 0x4000
_MTIME: Final = 0xBFF8


class Interrupted(Protocol):
    """A hart, as far as the interruptor knows it."""

    mip: int


class Clint:
    """Registers, little-endian, of any access width: ``msip`` of 32 bits each from 0 on,
    ``mtimecmp`` of 64 bits each from 0x4000 on, ``mtime`` at 0xbff8; elsewhere 0.

    An interrupt is pending as long as its register says so: MTIP while ``mtime`` is not below
    ``mtimecmp``, which ``update`` finds out.
    """

    def __init__(self, harts: Sequence[Interrupted], clock: Clock) -> None:
        self._harts: Final = harts
        self._clock: Final = clock
        self.mtimecmp: Final = [NEVER] * len(harts)

    def reset(self) -> None:
        for i, hart in enumerate(self._harts):
            self.mtimecmp[i] = NEVER
            hart.mip &= ~(MSIP | MTIP)
        self._clock.set(0)

    def update(self) -> None:
        """Raise and lower the timer interrupts as of now."""
        now = self._clock.mtime()
        for hart, compare in zip(self._harts, self.mtimecmp, strict=True):
            if now >= compare:
                hart.mip |= MTIP
            else:
                hart.mip &= ~MTIP

    def _word(self, offset: int) -> int:
        """The aligned 64 bits at ``offset``."""
        if offset == _MTIME:
            return self._clock.mtime()
        if offset >= _MTIMECMP:
            index = (offset - _MTIMECMP) // 8
            return self.mtimecmp[index] if index < len(self.mtimecmp) else 0
        first = offset // 4
        pending = [hart.mip >> 3 & 1 for hart in self._harts[first : first + 2]]
        return sum(bit << 32 * i for i, bit in enumerate(pending))

    def _set_word(self, offset: int, value: int) -> None:
        if offset == _MTIME:
            self._clock.set(value)
            self.update()
        elif offset >= _MTIMECMP:
            index = (offset - _MTIMECMP) // 8
            if index < len(self.mtimecmp):
                self.mtimecmp[index] = value
                self.update()
        else:
            for i, hart in enumerate(self._harts[offset // 4 : offset // 4 + 2]):
                hart.mip = hart.mip | MSIP if value >> 32 * i & 1 else hart.mip & ~MSIP

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes at ``offset``, which do not cross a multiple of 8."""
        return self._word(offset & ~7) >> 8 * (offset & 7) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        shift = 8 * (offset & 7)
        mask = (1 << 8 * size) - 1 << shift
        word = 0 if size == 8 else self._word(offset & ~7) & ~mask
        self._set_word(offset & ~7, word | value << shift & mask)
