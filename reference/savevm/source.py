"""Files, standard input and pipes as sources of a stream."""

import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from savevm.vmdesc import Description, find_description
from savevm_spec.constants import LIMIT_DESCRIPTION_WINDOW

__all__ = ["Source"]

# Larger reads are slower: the chunk falls out of the processor's cache before it is looked at.
CHUNK: Final = 256 << 10


class Source:
    """An open input.  ``name`` is a path or ``-``; raises ``OSError`` as ``open`` does.

    ``size`` in bytes, None for what has no size (pipes).
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._fd: Final = 0 if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise IsADirectoryError(21, os.strerror(21), name)
        self.size: int | None = None
        if stat.S_ISREG(status.st_mode) and os.lseek(self._fd, 0, os.SEEK_CUR) == 0:
            self.size = status.st_size

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the input, unless it is standard input."""
        if self._fd:
            os.close(self._fd)

    def description(self) -> Description | None:
        """The VMDESCRIPTION at the end of a file; None where there is none, or for a pipe."""
        if self.size is None:
            return None
        for window in (1 << 17, 1 << 21, LIMIT_DESCRIPTION_WINDOW + 1):
            start = max(0, self.size - window)
            found = find_description(self._read_at(start, self.size - start))
            if found is not None or start == 0:
                return found
        return None

    def _read_at(self, start: int, count: int) -> bytes:
        pieces = []
        while count > 0 and (piece := os.pread(self._fd, count, start)):
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the input, in order."""
        while chunk := os.read(self._fd, CHUNK):
            yield chunk
