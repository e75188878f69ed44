"""The return path: what a destination says to its source, and how a source asks for it again.

Over the same connection as the stream, the other way: messages of a be16 type, a be16 length and a
payload.  Between two machines of this package it settles who goes on when a connection breaks after
all was sent.  The source numbers its migration with the value of its first PING, whose upper byte is
``TAG``; a destination that knows the tag says ``KEEPS`` before the PONG, which no other does: for
``LINGER`` seconds after it took over it answers, at the address where it listened, whoever asks for
that number.  A question is a file header, OPEN_RETURN_PATH and PING; the answer PONG and SHUT, 0 for
a machine that was taken over and 1 for one that was not, and then never will be.
"""

import secrets
import struct
from collections.abc import Callable
from typing import Final

from savevm.channel import Channel, ChannelError, End
from savevm.savevm import descriptor
from savevm.stream.events import Command, Header
from savevm.stream.writer import Writer
from savevm_spec.constants import (
    CMD_OPEN_RETURN_PATH,
    CMD_PING,
    RETURN_PONG,
    RETURN_SHUT,
    VERSION_3,
)

__all__ = [
    "KEEPS",
    "LINGER",
    "QUESTION",
    "ReturnPathError",
    "listen_to",
    "message",
    "new_number",
    "opening",
    "question",
    "tagged",
]

TAG: Final = 0x53
KEEPS: Final = 0x4B656570
LINGER: Final = 20.0


class ReturnPathError(Exception):
    """What came on the return path has no meaning."""


def new_number() -> int:
    """A number for a migration, of 32 bits."""
    return TAG << 24 | secrets.randbits(24)


def tagged(value: int) -> bool:
    """Whether a PING carries the number of a migration."""
    return value >> 24 == TAG


def opening(number: int) -> list[Command]:
    """The commands that open a return path."""
    return [
        Command(0, CMD_OPEN_RETURN_PATH, b"", b""),
        Command(0, CMD_PING, number.to_bytes(4, "big"), b""),
    ]


def question(number: int) -> bytes:
    """What asks whether the machine of a migration was taken over."""
    events = [Header(0, VERSION_3, 0), *opening(number)]
    return b"".join(map(Writer().write, events))


# Of a stream of this machine, a configuration follows the header: with 13 bytes a question is known.
QUESTION: Final = len(question(0))


def message(kind: int, value: int) -> bytes:
    """A message with a payload of be32."""
    return struct.pack(">HHI", kind, 4, value)


async def listen_to(channel: Channel, heard: Callable[[int, int], None]) -> None:
    """Tell ``heard`` the kind and the value of every SHUT and PONG, until SHUT or the end.

    Raises ``ChannelError`` and ``ReturnPathError``.
    """
    held = b""
    while True:
        while len(held) >= 4:
            kind, length = struct.unpack_from(">HH", held)
            if kind not in (RETURN_SHUT, RETURN_PONG) or length != 4:
                raise ReturnPathError(f"a message of type {kind} with {length} bytes came back")
            if len(held) < 8:
                break
            heard(kind, int.from_bytes(held[4:8], "big"))
            held = held[8:]
            if kind == RETURN_SHUT:
                return
        chunk = channel.read_chunk()
        held += chunk
        if chunk:
            continue
        if channel.error:
            raise ChannelError(channel.error, channel.end)
        if channel.end is not End.OPEN:
            return
        await descriptor(channel, writing=False)
