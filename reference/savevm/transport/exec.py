"""The pipe of a shell command."""

import contextlib
import errno
import os
import signal
import subprocess
from typing import Final

from savevm.transport.address import Address, named
from savevm.transport.fd import Descriptor, widen

__all__ = ["Command"]

# Seconds: for a command to end once its pipe is closed, as it may have much to bring to a disk; and
# for a reader that must not block to see whether it has.
GRACE: Final = 30.0
GLANCE: Final = 0.01
# How a shell says that SIGPIPE ended a command of its own.
PIPE_STATUS: Final = 128 + signal.SIGPIPE


class Command(Descriptor):
    """Writes to, or reads from, what ``/bin/sh`` runs, in a session and process group of its own.

    A command that fails or is killed is an error (-EIO): when closing, and for a reader also
    instead of the end of the input.  ``close`` waits ``grace`` seconds for the command to end, then
    ends it and its whole process group (-ETIMEDOUT).  Raises ``OSError`` where there is no shell.
    """

    def __init__(
        self, address: Address, *, writing: bool, blocking: bool = True, grace: float = GRACE
    ) -> None:
        try:
            # A terminal would stop a background group that reads it; a session has none to read.
            self._process: Final = subprocess.Popen(
                ["/bin/sh", "-c", address.target],
                bufsize=0,
                stdin=subprocess.PIPE if writing else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if writing else subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise named(error, address) from error
        self._pipe: Final = self._process.stdin if writing else self._process.stdout
        assert self._pipe is not None
        super().__init__(self._pipe.fileno(), str(address), owned=False, blocking=blocking)
        widen(self._fd)
        self._blocking: Final = blocking
        self._grace: Final = grace
        # A reader that goes early breaks the pipe itself.
        self._early = not writing

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        count = super().get_buffer(buffer, position)
        return count or self._ended()

    def get_bytes(self, size: int, position: int) -> bytes | int:
        """As ``Descriptor``, but a command that failed gives its error for the end."""
        return super().get_bytes(size, position) or self._ended() or b""

    def _ended(self) -> int:
        """0 if the command went well, and where it goes on without its pipe."""
        self._early = False
        try:
            self._process.wait(self._grace if self._blocking else GLANCE)
        except subprocess.TimeoutExpired:
            return 0 if self._blocking else -errno.EAGAIN
        return self._status()

    def _status(self) -> int:
        status = self._process.returncode
        if status == 0 or (self._early and status in (-signal.SIGPIPE, PIPE_STATUS)):
            return 0
        try:
            ending = f"killed by {signal.Signals(-status).name}"
        except ValueError:
            ending = f"exit status {status}"
        self.reason = (
            f"the command ended with {ending}" if status > 0 else f"the command was {ending}"
        )
        return -errno.EIO

    def close(self) -> int:
        if self._fd < 0:
            return 0
        self._fd = -1
        assert self._pipe is not None
        with contextlib.suppress(OSError):
            self._pipe.close()
        try:
            self._process.wait(self._grace)
        except subprocess.TimeoutExpired:
            # Before it is waited for, so that the group's number cannot be anybody else's.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.reason = f"the command did not end within {self._grace:g} s and was killed"
            return -errno.ETIMEDOUT
        return self._status()
