"""Versions 1 and 2 (until 0.9.1): named records that tell the length of their bodies.

u8 length, idstr, be32 instance id, be32 version, be32 record length and as many bytes of body.
Version 1 has records until the end of the input; in version 2 they fill the total length of the
file header exactly.  Origin: qemu_loadvm_state of 0.8.2 and 0.9.1.
"""

import io
from typing import Any, BinaryIO

from construct import Bytes, GreedyBytes, Int32ub, StreamError, Struct, Tell, this

from . import schema
from .combinators import (
    Body,
    Chosen,
    Counted,
    Noted,
    Reported,
    While,
    Whole,
    Wrapper,
    held,
    next_byte,
)
from .constants import LIMIT_SCHEMA_BODY, RAM_IDSTR
from .devices import schemas
from .errors import GrammarError
from .ram.body import RAM
from .reading import enter, keep, reading
from .vmstate import digest

LIVE_BODIES = {(RAM_IDSTR, version): RAM[version] for version in (1, 2)}
"""The bodies that frame themselves, by idstr and version."""


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


class WithinRecord(Wrapper):
    """``subcon``, which must end within the record."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        try:
            return self.subcon._parsereport(Bounded(stream, context.end), context, path)
        except StreamError as error:
            raise GrammarError("record.body.outside", context.end) from error


def _end(record: Any) -> int:
    """Where the record ends: within the total length, if the header has one, and within the input.

    A record of which bytes are missing is that first of all, whatever the others are.
    """
    end: int = record.body_offset + record.length
    total = record._._.header.total_length
    if total is not None and end > 16 + total:
        raise GrammarError("record.outside-total", record.offset)
    if end > record._io.seek(0, 2):
        raise StreamError("the record reaches beyond the input")
    record._io.seek(record.body_offset)
    return end


def _body(record: Any) -> Body:
    key = record.idstr, record.version_id
    if key in LIVE_BODIES:
        return LIVE_BODIES[key]
    if record.length <= LIMIT_SCHEMA_BODY:
        content = io.BytesIO(record._io.read(record.length))
        record._io.seek(record.body_offset)
        state = reading(record)
        for layout in schemas(*key):
            body = state.body(layout, schema.body)
            if schema.end(body, content, state) == record.length:
                return body
    return Body("buffer", Bytes(record.length), digest)


Fields = Struct(
    "offset" / Tell,
    "idstr" / Counted * enter,
    "instance_id" / Int32ub,
    "version_id" / Int32ub,
    "length" / held("record.length", Int32ub, lambda length, _: length < 1 << 31),
    "body_offset" / Tell,
    "end" / Noted(_end),
    "schema" / Noted(_body),
    "body" / WithinRecord(Chosen()),
    "body_end" / Tell,
    "rest" / Reported("record.body.rest", Bytes(this.end - this.body_end), lambda rest: not rest),
)


def transcript(record: Any) -> dict[str, Any]:
    """The entry of a record of version 1 or 2 in a transcript."""
    rest = {"rest": len(record.rest)} if record.rest else {}
    return {
        "record": "record",
        "offset": record.offset,
        "idstr": record.idstr,
        "instance_id": record.instance_id,
        "version_id": record.version_id,
        "body": {
            "kind": record.schema.kind,
            "offset": record.body_offset,
            "length": record.body_end - record.body_offset,
            **record.schema.transcript(record.body),
            **rest,
        },
    }


def _total_end(version2: Any) -> int:
    """Where the total length of the header ends."""
    return int(version2._.header.total_length) + 16


class WithinTotal(Wrapper):
    """``subcon``, which must end within the total length of version 2."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        start = stream.tell()
        bounded = Bounded(stream, _total_end(context))
        try:
            return self.subcon._parsereport(bounded, context, path)
        except StreamError as error:
            if bounded.exceeded:
                raise GrammarError("record.outside-total", start) from error
            raise


def _before_end(stream: BinaryIO, version2: Any) -> bool:
    if stream.tell() == _total_end(version2):
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
