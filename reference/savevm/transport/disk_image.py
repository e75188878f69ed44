"""The VM state of a snapshot in a qcow2 image."""

import errno
from collections.abc import Sequence
from typing import Final

from savevm.channel import Data
from savevm.errors import StreamError
from savevm.qcow2 import Image, Snapshot
from savevm.transport.fd import Transport

__all__ = ["StateInput", "StateOutput"]


class StateInput(Transport):
    """Reads the VM state of a snapshot, at any position, and ends where it ends.

    ``tag`` is a name or an id.  Raises ``OSError`` and ``StreamError`` as ``Image`` does, and
    ``OSError`` (ENOENT, or ENODATA for a snapshot of the disk only).  A broken rule met later is
    ``broken``, and its errno what the operation returns.
    """

    def __init__(self, path: str, tag: str) -> None:
        super().__init__(f"{path}:{tag}")
        self.seekable = True
        self.broken: StreamError | None = None
        self._image: Final = Image(path)
        try:
            self.snapshot: Final[Snapshot] = self._image.find(tag)
            if not self.snapshot.vm_state_size:
                raise OSError(errno.ENODATA, f"snapshot {tag!r} is of the disk only", path)
        except BaseException:
            self._image.close()
            raise

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        try:
            return self._image.read_state_into(self.snapshot, position, buffer)
        except (StreamError, OSError) as error:
            return _failed(self, error)

    def close(self) -> int:
        self._image.close()
        return 0


class StateOutput(Transport):
    """Writes the VM state of a new snapshot, at any position; ``close`` makes the snapshot.

    What is not closed, or was given up with ``abandon``, leaves the image as it was, and so does an
    error: ``close`` then returns it again.  ``replace`` allows the place of a snapshot of the same
    name to be taken; ``vm_clock`` in ns.  Raises as ``Image`` and ``Image.write_state``.
    """

    def __init__(self, path: str, name: str, *, replace: bool = False, vm_clock: int = 0) -> None:
        super().__init__(f"{path}:{name}")
        self.seekable = True
        self.broken: StreamError | None = None
        self._error = 0
        self._image: Final = Image(path, writable=True)
        try:
            self._state: Final = self._image.write_state(name, replace=replace, vm_clock=vm_clock)
        except BaseException:
            self._image.close()
            raise

    def put_buffer(self, data: memoryview, position: int) -> int:
        try:
            self._state.write(position, data)
        except OSError as error:
            self._error = _failed(self, error)
            return self._error
        return len(data)

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """As ``put_buffer``, of what lies in several places."""
        start = position
        for data in buffers:
            count = self.put_buffer(memoryview(data).cast("B"), position)
            if count < 0:
                return count
            position += count
        return position - start

    def abandon(self) -> None:
        """Make no snapshot."""
        self._image.close()

    def close(self) -> int:
        """0 once the snapshot is on the disk, or if it was abandoned; else a negative errno."""
        try:
            if not self._error and self._image.is_open:
                self._state.commit()
        except (StreamError, OSError) as error:
            self._error = _failed(self, error)
        except ValueError as error:
            self.reason = str(error)
            self._error = -errno.EINVAL
        self._image.close()
        return self._error


def _failed(transport: StateInput | StateOutput, error: StreamError | OSError) -> int:
    if isinstance(error, StreamError):
        transport.broken = error
    transport.reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return -(error.errno or errno.EIO)
