"""Versions 1 and 2 (until 0.9.1): named records that tell the length of their bodies.

u8 length, idstr, be32 instance id, be32 version, be32 record length and as many bytes of body.
Version 1 has records until the end of the input; in version 2 they fill the total length of the
file header exactly.  Origin: qemu_loadvm_state of 0.8.2 and 0.9.1.
"""

import hashlib
from typing import Any, BinaryIO

from construct import Bytes, GreedyBytes, Int32ub, Rebuild, StreamError, Struct, Tell, len_, this

from .combinators import Counted, Reported, While, Whole, Wrapper, held, next_byte
from .errors import GrammarError
from .reading import enter, keep

Fields = Struct(
    "offset" / Tell,
    "idstr" / Counted * enter,
    "instance_id" / Int32ub,
    "version_id" / Int32ub,
    "length"
    / Rebuild(held("record.length", Int32ub, lambda length, _: length < 1 << 31), len_(this.body)),
    "body_offset" / Tell,
    "body" / Bytes(this.length),
)


def transcript(record: Any) -> dict[str, Any]:
    """The entry of a record of version 1 or 2 in a transcript."""
    return {
        "record": "record",
        "offset": record.offset,
        "idstr": record.idstr,
        "instance_id": record.instance_id,
        "version_id": record.version_id,
        "body": {
            "kind": "buffer",
            "offset": record.body_offset,
            "length": record.length,
            "sha256": hashlib.sha256(record.body).hexdigest(),
        },
    }


class Bounded:
    """A view of a stream in which nothing can be read that reaches beyond ``end``."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self.stream = stream
        self.end = end
        self.exceeded = False
        self.tell = stream.tell
        self.seek = stream.seek

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none, and ``exceeded``, if that many reach beyond the end."""
        self.exceeded = self.tell() + size > self.end
        return b"" if self.exceeded else self.stream.read(size)


def _end(body: Any) -> int:
    """Where the total length of the header ends."""
    return int(body._.header.total_length) + 16


class WithinTotal(Wrapper):
    """``subcon``, which must end within the total length of version 2."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        start = stream.tell()
        bounded = Bounded(stream, _end(context))
        try:
            return self.subcon._parsereport(bounded, context, path)
        except StreamError as error:
            if bounded.exceeded:
                raise GrammarError("record.outside-total", start) from error
            raise


def _before_end(stream: BinaryIO, body: Any) -> bool:
    if stream.tell() == _end(body):
        return False
    if next_byte(stream) is None:
        raise GrammarError("stream.truncated", stream.tell())
    return True


Version1 = Struct(
    "records"
    / While(
        lambda stream, _: next_byte(stream) is not None,
        Whole("record.truncated", Fields) * keep(transcript),
    ),
)

Version2 = Struct(
    "records"
    / While(_before_end, Whole("record.truncated", WithinTotal(Fields)) * keep(transcript)),
    "trailing" / Reported("stream.trailing-data", GreedyBytes, lambda trailing: not trailing),
)
