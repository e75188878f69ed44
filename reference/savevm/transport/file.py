"""Files, from an offset on: what lies before it is somebody else's."""

import errno
import os
import stat
from typing import Final

from savevm.transport.address import Address, named
from savevm.transport.fd import Descriptor

__all__ = ["open_file"]

MODE: Final = 0o600


def open_file(address: Address, *, writing: bool, blocking: bool = True) -> Descriptor:
    """The file of ``address``, whose offset is position 0.

    Writing makes the file (mode 0600) where there is none and cuts it off at the offset.  A FIFO, a
    terminal and the like are written and read in sequence; with an offset they are refused (ESPIPE).
    Raises ``OSError``.
    """
    flags = os.O_WRONLY | os.O_CREAT if writing else os.O_RDONLY
    fd = -1
    try:
        fd = os.open(address.target, flags | os.O_CLOEXEC | os.O_NOCTTY, MODE)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        placed = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        if address.offset and not placed:
            raise OSError(errno.ESPIPE, "an offset in what cannot be positioned")
        if writing and stat.S_ISREG(mode):
            os.ftruncate(fd, address.offset)
        start = address.offset if placed else None
        return Descriptor(fd, str(address), start=start, blocking=blocking)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise named(error, address) from error
