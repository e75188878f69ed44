"""Sections: be32 section id, for START and FULL the identification, then body and footer.

The identification is a u8 length, idstr, be32 instance id and be32 version; PART and END refer to
it by the section id.  A body tells neither its kind nor its length: live sections frame
themselves, and the description gives the layout of the others.  Where it has none, a footer (``7e``,
be32 section id; since 2.4) shows where the body ends, or else what is known of the device.
Origin: qemu_loadvm_section_start_full, qemu_loadvm_section_part_end, check_section_footer.
"""

from collections.abc import Container
from typing import Any, NamedTuple

from construct import (
    Bytes,
    Check,
    Const,
    If,
    IfThenElse,
    Int8ub,
    Int32ub,
    PascalString,
    Struct,
    Tell,
    ValidationError,
    this,
)

from . import schema, vmstate
from .block import BLOCK
from .combinators import Body, Chosen, Noted, Ruled, Whole, held, next_byte
from .constants import (
    BLOCK_IDSTR,
    BLOCK_VERSION,
    COMMAND,
    EOF,
    HTAB_IDSTR,
    HTAB_VERSION,
    LIVE_VERSIONS,
    RAM_IDSTR,
    SECTION_END,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_NAMES,
    SECTION_PART,
    SECTION_START,
    STORAGE_ATTRIBUTES_IDSTR,
    STORAGE_ATTRIBUTES_VERSION,
)
from .devices import schemas
from .errors import GrammarError
from .htab import HTAB
from .ram.body import RAM
from .reading import Reading, enter, reading
from .storage_attributes import STORAGE_ATTRIBUTES
from .vmdesc import Object, is_int
from .vmstate import digest

LIVE_BODIES = {
    **{
        (RAM_IDSTR, version): ram._replace(grammar=Whole("ram.truncated", ram.grammar))
        for version, ram in RAM.items()
    },
    (HTAB_IDSTR, HTAB_VERSION): HTAB,
    (STORAGE_ATTRIBUTES_IDSTR, STORAGE_ATTRIBUTES_VERSION): STORAGE_ATTRIBUTES,
    (BLOCK_IDSTR, BLOCK_VERSION): BLOCK,
}
"""The bodies that frame themselves, by idstr and version."""

RECORD_TYPES = frozenset({EOF, *SECTION_NAMES, COMMAND})
"""Bytes with which a record may begin anywhere behind the header."""


class Identity(NamedTuple):
    """Whose state a section carries; ``device`` is its entry in the description, if any."""

    idstr: str
    instance_id: int
    version_id: int
    device: Object | None


def _device(start: Any) -> Object | None:
    """The entry of the device: its n-th section has the n-th, or the last."""
    state = reading(start)
    key = start.idstr, start.instance_id
    devices = state.description.devices.get(key) if state.description else None
    if devices is None or (start.idstr, start.version_id) in LIVE_BODIES:
        return None
    state.uses[key] += 1
    return devices[min(state.uses[key], len(devices)) - 1]


def _identify(start: Any) -> Identity:
    state = reading(start)
    identity = Identity(start.idstr, start.instance_id, start.version_id, _device(start))
    earlier = state.sections.get(start.section_id, identity)
    if earlier[:2] != identity[:2]:
        state.report("section.id.reused", start.offset)
    state.sections[start.section_id] = identity
    return identity


def _as_described(start: Any) -> bool:
    version = (start.identity.device or {}).get("version")
    return not is_int(version) or bool(version == start.version_id)


Start = Struct(
    "offset" / Tell,
    "section_id" / Int32ub,
    "idstr"
    / PascalString(held("section.idstr.empty", Int8ub, lambda n, _: n > 0), "latin-1")
    * enter,
    "instance_id" / Int32ub,
    "version_id"
    / held(
        "section.version.newer-than-supported",
        Int32ub,
        lambda version, start: version <= LIVE_VERSIONS.get(start.idstr, version),
    ),
    "identity" / Noted(_identify),
    Ruled("section.version.differs-from-description", Check(_as_described), at=-4),
)


def _recall(part: Any) -> Identity:
    state = reading(part)
    if part.section_id not in state.sections:
        raise ValidationError(f"no section has the id {part.section_id}")
    identity: Identity = state.sections[part.section_id]
    state.section = identity.idstr
    return identity


Part = Struct(
    "section_id" / Int32ub,
    "identity" / Ruled("section.id.unknown", Noted(_recall), at=-4),
)

Footer = Struct(
    "mark" / Ruled("footer.missing", Const(SECTION_FOOTER, Int8ub)),
    "section_id"
    / Whole(
        "footer.truncated",
        held("footer.id", Int32ub, lambda value, footer: value == footer._.head.section_id),
    ),
)


def _begins_record(data: bytes, offset: int, sections: Container[int]) -> bool | None:
    """Whether ``data`` from ``offset`` on looks like a section, or is the EOF mark; None: as far as it goes."""
    head = data[offset : offset + 6]
    if not head:
        return None
    if head[0] in (SECTION_PART, SECTION_END):
        return None if len(head) < 5 else int.from_bytes(head[1:5]) in sections
    if head[0] in (SECTION_START, SECTION_FULL):
        if len(head) < 6:
            return None
        name = data[offset + 6 : offset + 6 + head[5]]
        if not head[5] or not all(0x20 <= byte <= 0x7E for byte in name):
            return False
        return True if len(name) == head[5] else None
    return data[offset:] == bytes([EOF])


def _may_have_footer(state: Reading) -> bool:
    return state.configured if state.footers is None else state.footers


def _likeliest(section: Any, bodies: list[Body]) -> Body | None:
    """Of bodies that schemas give, the first with a record behind it, else with a part of one.

    If there is no such, the first that cannot be read; None if all can.
    """
    state = reading(section)
    data = section._io.getvalue()
    ends = [(body, schema.end(body, section._io, state)) for body in bodies]
    behind = [
        (body, _begins_record(data, end, state.sections)) for body, end in ends if end is not None
    ]
    likely = [
        *(body for body, begins in behind if begins),
        *(body for body, begins in behind if begins is None),
        *(body for body, end in ends if end is None),
    ]
    return next(iter(likely), None)


def _undescribed(section: Any) -> Body:
    """The body from here as bytes: up to its footer, or to the end of the input."""
    state = reading(section)
    data, offset = section._io.getvalue(), section._io.tell()
    state.report("section.body.undescribed", offset)
    if _may_have_footer(state):
        footer = bytes([SECTION_FOOTER, *section.head.section_id.to_bytes(4)])
        end = data.find(footer, offset)
        while end >= 0 and end + 5 < len(data) and data[end + 5] not in RECORD_TYPES:
            end = data.find(footer, end + 1)
        if end >= 0:
            state.footers = True
            return Body("opaque", Bytes(end - offset), digest)
        if state.footers:
            raise GrammarError("section.truncated", len(data))
    state.footers = False
    state.report("stream.undelimited", offset)
    if len(data) == offset or data[-1] != EOF:
        raise GrammarError("stream.eof-mark", max(offset, len(data) - 1))
    return Body("undelimited", Bytes(len(data) - offset), digest)


def _body(section: Any) -> Body:
    """The kind of body that the section has."""
    identity, state = section.head.identity, reading(section)
    key = identity.idstr, identity.version_id
    if key in LIVE_BODIES:
        return LIVE_BODIES[key]
    if identity.device is not None:
        return state.body(identity.device, vmstate.body)
    if not _may_have_footer(state) and (layouts := schemas(*key)):
        state.footers = False
        known = _likeliest(section, [state.body(layout, schema.body) for layout in layouts])
        if known is not None:
            return known
    return _undescribed(section)


def _has_footer(section: Any) -> bool:
    """Whether a footer must follow: what follows the first body decides for the stream."""
    state = reading(section)
    byte = next_byte(section._io)
    if state.footers is None and byte is not None:
        state.footers = byte == SECTION_FOOTER
    return bool(state.footers)


Section = Whole(
    "section.truncated",
    Struct(
        "head"
        / IfThenElse(lambda section: section._.type in (SECTION_START, SECTION_FULL), Start, Part),
        "schema" / Noted(_body),
        "body_offset" / Tell,
        "body" / Chosen(),
        "body_end" / Tell,
        "has_footer" / Noted(_has_footer),
        "footer" / If(this.has_footer, Footer),
    ),
)


def transcript(record: Any) -> dict[str, Any]:
    """The entry of a section in a transcript; a PART or END has the identity of its START."""
    section = record.content
    identity = section.head.identity
    return {
        "record": SECTION_NAMES[record.type],
        "offset": record.offset,
        "section_id": section.head.section_id,
        "idstr": identity.idstr,
        "instance_id": identity.instance_id,
        "version_id": identity.version_id,
        "body": {
            "kind": section.schema.kind,
            "offset": section.body_offset,
            "length": section.body_end - section.body_offset,
            **section.schema.transcript(section.body),
        },
        "footer": section.has_footer,
    }
