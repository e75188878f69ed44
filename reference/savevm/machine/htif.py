"""The host-target interface: how a guest writes to the console, reads from it and powers off."""

from collections import deque
from collections.abc import Callable
from typing import Final

from savevm.ram import RamBlock

__all__ = ["FROMHOST", "HTIF_SIZE", "TOHOST", "Htif"]

# Where the registers are if no image has symbols for them.
FROMHOST: Final = 0x100_0000
TOHOST: Final = 0x100_0008

HTIF_SIZE: Final = 16

_MASK: Final = (1 << 64) - 1
_SYSTEM: Final = 0
_CONSOLE: Final = 1
_GETCHAR: Final = 0
_PUTCHAR: Final = 1
_SYS_WRITE: Final = 64
_STDOUT: Final = (1, 2)
# Characters that wait to be read, and bytes of one write, at most.
_INPUT: Final = 1 << 16
_WRITE: Final = 1 << 20


class Htif:
    """Two registers of 64 bits, 8 bytes apart; ``offset`` below is from the lower one on.

    A request in ``tohost`` is device << 56 | command << 48 | payload; it is done when its upper
    half is written, ``tohost`` is 0 then.  ``fromhost`` has the device and command of the last
    request, and its answer: 0x100 | the character.  System calls lie in RAM, as eight numbers
    of 64 bits at the payload; only write is known.  A payload that is odd powers off, with the
    exit code payload >> 1.

    ``output`` collects what the console was sent; ``power_off`` is called with the exit code.
    """

    def __init__(
        self,
        ram: RamBlock,
        ram_base: int,
        power_off: Callable[[int], None],
    ) -> None:
        self._ram: Final = ram
        self._base: Final = ram_base
        self._power_off: Final = power_off
        self.output: Final = bytearray()
        self._input: Final[deque[int]] = deque(maxlen=_INPUT)
        self._tohost_first = False
        self.tohost = 0
        self.fromhost = 0
        self._reading = False  # a request for a character has no answer yet
        self._taken = False  # the half of tohost that is written first was

    def place(self, tohost: int, fromhost: int) -> int:
        """Take the registers' addresses; where they begin.

        Of two that are not neighbours only tohost is taken: fromhost stays memory, as on QEMU, and
        the guest can write and power off, which is all that the official ISA tests want.  Raises
        ``ValueError`` for addresses that cannot be.
        """
        if tohost % 8 or fromhost % 8 or max(tohost, fromhost) >> 56:
            raise ValueError(f"tohost cannot be at {tohost:#x} and fromhost at {fromhost:#x}")
        self._tohost_first = fromhost + 8 != tohost
        return tohost if self._tohost_first else fromhost

    def reset(self) -> None:
        self.tohost = self.fromhost = 0
        self._reading = self._taken = False
        self._input.clear()

    def adopt(self, tohost: int, fromhost: int) -> None:
        """Go on from registers, without knowing whether a character was asked for."""
        self.tohost = tohost
        self.fromhost = fromhost
        self._taken = False
        # Who types expects to be heard, and who never asks does not look at fromhost.
        self._reading = True
        self._answer_reading()

    def console_input(self, data: bytes) -> None:
        """Characters for the guest; too many at once are lost, the oldest first."""
        self._input.extend(data)
        self._answer_reading()

    def read(self, offset: int, size: int) -> int:
        register = self.tohost if (offset < 8) is self._tohost_first else self.fromhost
        return register >> 8 * (offset & 7) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        at = offset & 7
        mask = (1 << 8 * size) - 1 << 8 * at
        value = value << 8 * at & mask
        if (offset < 8) is not self._tohost_first:
            self.fromhost = self.fromhost & ~mask & _MASK | value
            self._answer_reading()
            return
        if at < 4:
            # A request that is not done yet is not overwritten.
            self._taken = self.tohost == 0
        if self._taken:
            self.tohost = self.tohost & ~mask & _MASK | value
            if at + size > 4:
                self._taken = False
                self._request()

    def _request(self) -> None:
        request = self.tohost
        device = request >> 56
        command = request >> 48 & 0xFF
        payload = request & (1 << 48) - 1
        self.tohost = 0
        answer = 0
        if device == _SYSTEM and command == 0:
            if payload & 1:
                self._power_off(payload >> 1 & 0xFF)
                return
            self._system_call(payload)
        elif device == _CONSOLE and command == _PUTCHAR:
            self.output.append(payload & 0xFF)
            answer = 0x100 | payload & 0xFF
        elif device == _CONSOLE and command == _GETCHAR:
            self._reading = True
            self._answer_reading()
            return
        self.fromhost = request >> 48 << 48 | answer

    def _answer_reading(self) -> None:
        if self._reading and self._input and not self.fromhost:
            self._reading = False
            self.fromhost = _CONSOLE << 56 | _GETCHAR << 48 | 0x100 | self._input.popleft()

    def _system_call(self, address: int) -> None:
        call = self._memory(address, 64)
        number, stream, start, count = (
            int.from_bytes(call[i : i + 8], "little") for i in (0, 8, 16, 24)
        )
        if number == _SYS_WRITE and stream in _STDOUT:
            self.output.extend(self._memory(start, min(count, _WRITE)))

    def _memory(self, address: int, count: int) -> bytes:
        """Bytes of RAM, as far as there is any."""
        at = address - self._base
        return bytes(self._ram.view[at : at + count]) if at >= 0 else b""
