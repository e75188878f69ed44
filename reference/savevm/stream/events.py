"""What a stream is made of, in stream order.

Offsets and lengths are bytes from the start of the stream; addresses are bytes from the start of a
RAM block.  The events of a stream do not depend on how it was cut into chunks.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class Event:
    """``offset`` is that of the event's first byte."""

    offset: int


@dataclass
class Header(Event):
    """File header.  ``total_length`` is that of version 2, else 0."""

    version: int
    total_length: int


@dataclass
class ConfigurationSubsection:
    """``value``: target page bits (int), capabilities (list of str) or uuid (16 bytes)."""

    name: str
    version: int
    value: Any


@dataclass
class Configuration(Event):
    machine: str
    subsections: list[ConfigurationSubsection]


@dataclass
class Command(Event):
    """``package`` is what follows a PACKAGED command, else empty."""

    number: int
    payload: bytes
    package: bytes


@dataclass
class Section(Event):
    """Identification of START, PART, END or FULL; PART and END repeat what their id stands for.

    In versions 1 and 2 ``type`` is 0, ``section_id`` is 0 and ``body_length`` is the record length.
    """

    type: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    body_length: int = -1


@dataclass
class RamBlocks(Event):
    """A block list: idstr and used length of each RAM block, and the announced total.

    Before version 4, the size of the one block that has no name in the stream.
    """

    blocks: list[tuple[str, int]]


@dataclass
class PageRun(Event):
    """Page records of one kind at consecutive addresses of one block.

    ``fill`` is the byte of ZERO records or -1 for PAGE records, whose contents go to the reader's
    sink.  ``named``: the first record names the block; the others, or all, say CONTINUE.  Before
    version 4, no record does either.
    """

    block: str
    fill: int
    address: int
    count: int
    named: bool


@dataclass
class RamWord(Event):
    """HOOK, MULTIFD_FLUSH or EOS."""

    word: int


@dataclass
class RamChunk(Event):
    """A chunk of RAM version 2, as written; ``blocks`` blocks of 1 KiB became whole with it.

    Their contents go to the reader's sink.
    """

    data: bytes
    blocks: int


@dataclass
class HtabHeader(Event):
    header: int


@dataclass
class HtabChunk(Event):
    """``entries`` holds ``valid`` hash table entries of 16 bytes."""

    index: int
    valid: int
    invalid: int
    entries: bytes


@dataclass
class AttributesWord(Event):
    """A word of s390-storage_attributes and, with MORE, the attributes behind it."""

    flag: int
    address: int
    data: bytes


@dataclass
class DiskWord(Event):
    """A word of the section "block": sector << 9 | flags, and the device of a device block.

    The contents of a device block, 1 MiB, go to the reader's sink.
    """

    word: int
    device: str


@dataclass
class Device(Event):
    """A device's body.

    ``kind``: "vmstate" (``state`` holds the decoded fields, ``layout`` what describes them, in the
    shape of an entry of a VMDESCRIPTION),
    "buffer" (size known, contents not), "opaque" (found by its footer) or "undelimited" (reaches to
    the end of the input).  ``raw`` holds the body of all but the first.
    """

    kind: str
    length: int
    state: Any
    layout: Any
    raw: bytes


@dataclass
class RecordBody(Event):
    """``length`` bytes of a version 1 or 2 record that nothing decodes begin.

    They are its body or, behind a body that was decoded, the rest of the record, and go to the
    reader's sink.
    """

    length: int


@dataclass
class BodyEnd(Event):
    """The end of a section's body; the footer, if any, starts here."""


@dataclass
class Footer(Event):
    section_id: int


@dataclass
class Eof(Event):
    pass


@dataclass
class VmDescription(Event):
    """``text`` is the JSON as written, ``devices`` how many devices it describes."""

    text: bytes
    devices: int


@dataclass
class Finding(Event):
    """A broken rule that does not stop reading; ``offset`` is what the rule's ``at`` names."""

    rule: str
    section: str | None
    detail: str
