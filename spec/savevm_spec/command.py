"""Commands (since 2.5): be16 number, be16 length, payload and, for PACKAGED, the package.

Origin: loadvm_process_command.  A package is itself a stream of records, carried as bytes here.
"""

import hashlib
from typing import Any

from construct import (
    Bytes,
    Const,
    FixedSized,
    If,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Struct,
    Switch,
    Terminated,
    this,
)

from .combinators import Counted, Ruled, While, Whole, held, next_byte
from .constants import (
    CMD_PACKAGED,
    CMD_PING,
    CMD_POSTCOPY_ADVISE,
    CMD_POSTCOPY_RAM_DISCARD,
    CMD_RECV_BITMAP,
    COMMAND_LENGTHS,
    COMMAND_NAMES,
    LIMIT_PACKAGED,
    RAM_DISCARD_LENGTH_MIN,
    RAM_DISCARD_VERSION,
)

LENGTH_MINIMA = {CMD_POSTCOPY_RAM_DISCARD: RAM_DISCARD_LENGTH_MIN, CMD_RECV_BITMAP: 1}
"""Shortest payload in bytes of the commands whose length varies."""


def _length_allowed(head: Any, _: Any) -> bool:
    if head.number in COMMAND_LENGTHS:
        return head.length in COMMAND_LENGTHS[head.number]
    return bool(head.length >= LENGTH_MINIMA[head.number])


Head = held(
    "command.length",
    held(
        "command.unknown",
        Struct("number" / Int16ub, "length" / Int16ub),
        lambda head, _: head.number in COMMAND_NAMES,
    ),
    _length_allowed,
    at=2,
)

Range = Struct("start" / Int64ub, "length" / Int64ub)

RamDiscard = Struct(
    "version" / Const(RAM_DISCARD_VERSION, Int8ub),
    "block" / Counted,
    "end_of_name" / Const(b"\0"),
    "first" / Range,
    "others" / While(lambda stream, _: next_byte(stream) is not None, Range),
)

PageSizes = Struct("host_page_sizes" / Int64ub, "target_page_size" / Int64ub)
"""Page sizes in bytes: the host's, or-ed over all blocks, and the target's."""

PackageLength = held(
    "limit.packaged",
    held("command.packaged.empty", Int32ub, lambda length, _: length > 0),
    lambda length, _: length <= LIMIT_PACKAGED,
)

PAYLOADS = {
    CMD_PING: Int32ub,
    CMD_POSTCOPY_ADVISE: If(this.head.length > 0, PageSizes),
    CMD_POSTCOPY_RAM_DISCARD: Ruled("command.postcopy-ram-discard.payload", RamDiscard, frame=True),
    CMD_PACKAGED: PackageLength,
    CMD_RECV_BITMAP: Ruled(
        "command.recv-bitmap.payload",
        Struct("block" / Counted, Terminated),
        frame=True,
    ),
}

Payload = Switch(this.head.number, PAYLOADS)
"""The payload of the command that ``head`` in the context begins; most are empty."""

Command = Whole(
    "command.truncated",
    Struct(
        "head" / Head,
        "payload" / FixedSized(this.head.length, Payload),
        "package" / If(this.head.number == CMD_PACKAGED, Bytes(this.payload)),
    ),
)


def transcript(record: Any) -> dict[str, Any]:
    """The entry of a command in a transcript; payload in hex, package as its digest."""
    command = record.content
    entry = {
        "record": "command",
        "offset": record.offset,
        "command": command.head.number,
        "name": COMMAND_NAMES[command.head.number],
        "payload": Payload.build(command.payload, head=command.head).hex(),
    }
    if command.package is not None:
        digest = hashlib.sha256(command.package).hexdigest()
        entry["package"] = {"length": len(command.package), "sha256": digest}
    return entry
