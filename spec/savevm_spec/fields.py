"""Where the fields of a stream lie: everything that the grammar reads at once, in stream order.

The grammar is watched while it parses, so a field that is added to a schema is found without more.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from construct import Bytes, Construct, FormatField, Renamed

from .combinators import Reported, Ruled, Whole
from .errors import GrammarError
from .ram.pages import ZeroRecords
from .reading import Reading
from .stream import Grammar, Stream

__all__ = ["Field", "fields"]


class Field(NamedTuple):
    """Bytes that belong together, ``length`` of them from ``offset`` on.

    ``path`` names it and what it is in, without the numbers of lists: ``records.content.head.idstr``.
    ``rules`` are those which the grammar holds it, or what it is in, to, the innermost first;
    ``truncated`` is the one that input breaks which ends inside.  ``section`` is the idstr of the
    section that it is in, None outside of sections.
    """

    offset: int
    length: int
    path: str
    rules: tuple[str, ...]
    truncated: str | None
    section: str | None

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.length

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]


class _Frame(NamedTuple):
    """What is known of a place from the constructs around it."""

    path: str = ""
    rules: tuple[str, ...] = ()
    truncated: str | None = None

    def inner(self, con: Any) -> "_Frame":
        """In ``con``, too."""
        # What has a hook is a name around the name.
        if isinstance(con, Renamed) and con.name and not isinstance(con.subcon, Renamed):
            return self._replace(path=f"{self.path}.{con.name}".lstrip("."))
        if isinstance(con, (Ruled, Reported)):
            return self._replace(rules=(con.rule, *self.rules))
        if isinstance(con, Whole):
            return self._replace(truncated=con.rule)
        return self


class _Watched(io.BytesIO):
    """Input that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.frames: Final = [_Frame()]
        self.state: Final = Reading()
        # By offset: what is read again, as by a look ahead, counts as it was read last.
        self.found: Final[dict[int, Field]] = {}

    def read(self, size: int | None = -1, /) -> bytes:
        """As of ``io.BytesIO``."""
        offset = self.tell()
        data = super().read(size)
        self.note(offset, len(data))
        return data

    def note(self, offset: int, length: int) -> None:
        """These bytes were read."""
        if length:
            self.found[offset] = Field(offset, length, *self.frames[-1], self.state.section)


_lock: Final = threading.Lock()


@contextmanager
def _watching(stream: _Watched) -> Iterator[None]:
    """Make every construct tell ``stream`` where it is."""
    plain, many = Construct._parsereport, ZeroRecords._parse

    def watched(con: Any, source: Any, context: Any, path: str) -> Any:
        stream.frames.append(stream.frames[-1].inner(con))
        start = source.tell()
        try:
            value = plain(con, source, context, path)
            # What was read before as a whole, such as a payload, is read here from a copy.
            if source is not stream and isinstance(con, (Bytes, FormatField)):
                stream.note(start, source.tell() - start)
            return value
        finally:
            stream.frames.pop()

    with _lock:
        Construct._parsereport = watched
        # Empty pages are not taken together, so that each is seen.
        ZeroRecords._parse = lambda *_: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            Construct._parsereport, ZeroRecords._parse = plain, many  # type: ignore[method-assign]


def fields(data: bytes) -> tuple[list[Field], Stream]:
    """The fields of a stream from its start to its end, and what ``stream.parse`` makes of it.

    Where reading ended before the end of the input, or went over bytes without a look, there is a
    field without name, with the rules of the one before.
    """
    stream = _Watched(data)
    state = stream.state
    with _watching(stream):
        try:
            parsed = Stream(Grammar.parse_stream(stream, reading=state), state, None)
        except GrammarError as error:
            error.section = state.section
            parsed = Stream(None, state, error)
    return list(_in_order(stream.found, len(data))), parsed


def _in_order(found: dict[int, Field], size: int) -> Iterator[Field]:
    last = Field(0, 0, "", (), None, None)
    starts = [*sorted(found), size]
    for start in starts:
        if start > last.end:
            last = last._replace(offset=last.end, length=start - last.end, path="")
            yield last
        if start == last.end and start < size:
            last = found[start]
            yield last
