"""What of a stream depends on the rest of it, or is found by looking ahead: here it is chosen.

This is all that the strategies know of the stream beyond what its constructs say.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import construct as c
from hypothesis import reject
from hypothesis import strategies as st

from savevm_spec import (
    command,
    configuration,
    header,
    legacy,
    schema,
    section,
    stream,
    vmdesc,
    vmstate,
)
from savevm_spec.combinators import Body
from savevm_spec.constants import (
    BLOCK_DEVICE,
    BLOCK_EOS,
    BLOCK_PROGRESS,
    BLOCK_SECTOR_BITS,
    BLOCK_ZERO,
    COMMAND,
    COMMAND_LENGTHS,
    COMMAND_NAMES,
    CONFIGURATION,
    EOF,
    LIVE_VERSIONS,
    RAM_CHUNK_MAGIC,
    RAM_IDSTR,
    SECTION_END,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_PART,
    STORAGE_ATTRIBUTES_DONE,
    STORAGE_ATTRIBUTES_EOS,
    STORAGE_ATTRIBUTES_FLAG_MASK,
    STORAGE_ATTRIBUTES_MORE,
    VERSION_2,
    VERSION_3,
    VMDESCRIPTION,
)
from savevm_spec.devices import _layouts, schemas
from savevm_spec.vmdesc import is_int

from .derive import (
    SHORT,
    Drawing,
    announced,
    chosen,
    concluded,
    drawing,
    drawn,
    drawn_struct,
    special,
)
from .vmstate import documents, dumps

__all__: list[str] = []

# In bytes: the body that schemas give a device.  Larger ones take the grammar long.
SCHEMA_BODY_MAX: Final = 4096

_NO_DEVICES: Final = vmdesc.Object([("devices", [])])

_IDSTRS: Final = st.text(st.characters(codec="latin-1"), min_size=1, max_size=SHORT)
_PRINTABLE: Final = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1)

Name = tuple[str, int, int]
"""Idstr, instance id and version of a section."""


def _given(value: Any) -> Callable[..., Any]:
    return lambda *_: value


# The stream as a whole


@chosen("header.version")
def _(con: Any, context: Any) -> int:
    return drawing(context).dialect.version


@special(stream.Grammar)
def _(con: Any, context: Any) -> Any:
    """Where records of version 1 and 2 end, and their total length, is known when all is there."""
    found = drawn_struct(con, context)
    if found.header.version != VERSION_3:
        begin = end = len(header.Header.build(found.header))
        for record in found.body.records:
            record.end = end = record.end + end
        if found.header.version == VERSION_2:
            found.header.total_length = end - begin
    return found


@special(stream.Version3)
def _(con: Any, context: Any) -> Any:
    state = drawing(context)
    state.footers = state.dialect.configuration and state.choice([True, False])
    return drawn_struct(con, context)


@announced(CONFIGURATION)
def _(context: Any) -> bool:
    return drawing(context).dialect.configuration


@concluded(stream._find_description)
def _(context: Any) -> None:
    """A description, which a stream with a configuration may lack."""
    state = drawing(context)
    if state.dialect.vmdescription:
        described = documents()
        if state.dialect.configuration:
            document = state.of(st.none() | described, None)
        else:
            document = state.of(described, _NO_DEVICES)
        if document is not None:
            state.text = dumps(document).encode()
            state.description = vmdesc.Description(state.text)
            state.ram.page_size = state.description.page_size


@announced(VMDESCRIPTION)
def _(context: Any) -> bool:
    return drawing(context).description is not None


@special(vmdesc.VmDescription.subcon)
def _(con: Any, context: Any) -> Any:
    state = drawing(context)
    text = state.text or dumps(state.of(documents(), _NO_DEVICES)).encode()
    return drawn_struct(con, context, text=_given(text))


@chosen("stream.trailing-data")
def _(con: Any, body: Any) -> bytes:
    """Nothing that would be read as something else."""
    state = drawing(body)
    if state.by_schema or _is_undelimited(body.records) or state.choice([True, True, False]):
        return b""
    found = state.binary(0, SHORT)
    return found if state.description else found.lstrip(bytes([VMDESCRIPTION]))


def _is_undelimited(records: list[Any]) -> bool:
    content = records[-1].get("content") if records else None
    return content is not None and "schema" in content and content.schema.kind == "undelimited"


# The configuration


@chosen("configuration.subsection.repeated")
def _(con: Any, subsection: Any) -> str:
    seen = subsection._.get("seen", set())
    return drawing(subsection).choice([n for n in configuration.BODIES if n not in seen])


# Records


_PARTS: Final = (SECTION_PART, SECTION_END)


def _is_told_by_ram(state: Drawing) -> bool:
    """Whether the dialect is told by the section "ram", which is not there yet."""
    dialect = state.dialect
    told = dialect.ram_version > 2 and not dialect.vmdescription
    return told and not any(identity.idstr == RAM_IDSTR for identity in state.sections.values())


def _order(kind: int) -> tuple[bool, bool, int]:
    """What is always possible comes first."""
    return kind in _PARTS, kind == COMMAND, -kind


@chosen("section.type")
def _(con: Any, context: Any) -> int:
    state = drawing(context)
    told = _is_told_by_ram(state)
    if state.simplest and not told:
        return EOF
    excluded = {EOF} if state.sections else {EOF, *_PARTS}
    if state.by_schema:
        excluded.add(COMMAND)
    kinds = sorted(section.RECORD_TYPES - excluded, key=_order)
    kind = state.choice(kinds)
    return SECTION_FULL if told and kind == COMMAND else kind


@special(section.Start)
def _(con: Any, context: Any) -> Any:
    """A section that the stream can carry, mostly of a new id.

    What is drawn is the same whether or not it must be RAM, so that shrinking can leave out others.
    """
    state = drawing(context)
    subject = state.choice(_subjects(state))
    name = (_live if _is_told_by_ram(state) else subject)(state)
    fresh = next(number for number in itertools.count() if number not in state.sections)
    id_ = state.choice([fresh, fresh, next(iter(state.sections), fresh), None])
    return drawn_struct(
        con,
        context,
        section_id=lambda con, start: drawn(con, start) if id_ is None else id_,
        idstr=_given(name[0]),
        instance_id=_given(name[1]),
        version_id=_given(name[2]),
    )


@special(section.Part)
def _(con: Any, context: Any) -> Any:
    known = [*drawing(context).sections]
    return drawn_struct(con, context, section_id=_given(drawing(context).choice(known)))


@chosen("footer.id")
def _(con: Any, footer: Any) -> int:
    return int(footer._.head.section_id)


@concluded(section._has_footer)
def _(context: Any) -> bool:
    return bool(drawing(context).footers)


def _subjects(state: Drawing) -> list[Callable[[Drawing], Name]]:
    """What a section can be of, so that a reader knows where its body ends.

    The simplest is what every stream can have, so that shrinking can leave out the others.
    """
    found: list[Callable[[Drawing], Name]] = [_live]
    if state.description and state.description.devices:
        found += [_described, _described]
    if state.footers:
        return [*found, _unknown]
    if state.description:
        return found
    return [*found, _unknown] if state.dialect.configuration else [*found, _with_schema, _unknown]


def _live(state: Drawing) -> Name:
    ram = RAM_IDSTR, state.dialect.ram_version
    key = state.choice([ram, ram, *(key for key in section.LIVE_BODIES if key[0] != RAM_IDSTR)])
    idstr, version = ram if _is_told_by_ram(state) else key
    return idstr, state.choice([0, 1]), version


def _described(state: Drawing) -> Name:
    assert state.description is not None
    key = state.choice([*state.description.devices])
    devices = state.description.devices[key]
    version: Any = devices[min(state.uses[key] + 1, len(devices)) - 1].get("version")
    return *key, version if is_int(version) else state.integer(0, 0xFFFFFFFF)


def _with_schema(state: Drawing) -> Name:
    idstr, version = state.choice(_keys())
    return idstr, state.integer(0, 3), version


def _unknown(state: Drawing) -> Name:
    """One that nothing knows, and nothing describes."""
    idstr = state.of(_PRINTABLE if state.by_schema else _IDSTRS, "0")
    instance, version = state.integer(0, 0xFFFFFFFF), state.integer(0, 0xFFFFFFFF)
    described = state.description and (idstr, instance) in state.description.devices
    known = described or idstr in LIVE_VERSIONS or schemas(idstr, version)
    return reject() if known else (idstr, instance, version)


@cache
def _keys() -> list[tuple[str, int]]:
    """Idstr and version of the devices whose bodies by schemas are small."""
    return [
        key
        for key, layouts in _layouts().items()
        if all(_size(layout) <= SCHEMA_BODY_MAX for layout in layouts)
    ]


def _size(layout: dict[str, Any]) -> int:
    """Bytes of a body with all that there can be, but for arrays of a number that it tells."""

    def size(field: dict[str, Any]) -> int:
        size = _size(field["struct"]) if "struct" in field else field["size"]
        count = field.get("array_len", 1)
        return 1 if isinstance(size, str) or isinstance(count, str) else size * count

    parts = sum(map(_size, layout.get("subsections", ())))
    return parts + sum(map(size, layout["fields"]))


@concluded(section._body)
def _(context: Any) -> Body:
    state, identity = drawing(context), context.head.identity
    key = identity.idstr, identity.version_id
    state.by_schema = False
    if key in section.LIVE_BODIES:
        return section.LIVE_BODIES[key]
    if identity.device is not None:
        return state.body(identity.device, vmstate.body)
    if state.footers:
        return _opaque(state, context.head.section_id)
    if layouts := schemas(*key):
        state.by_schema = True
        return state.body(state.choice(layouts), schema.body)
    # It ends where the stream does.
    return Body("undelimited", c.Const(state.binary(0, SHORT) + bytes([EOF])), vmstate.digest)


def _opaque(state: Drawing, number: int) -> Body:
    """Bytes in which there is nothing like the footer behind them."""
    data, footer = state.binary(0, SHORT), bytes([SECTION_FOOTER, *number.to_bytes(4)])
    if (data + footer).find(footer) < len(data):
        reject()
    return Body("opaque", c.Const(data), vmstate.digest)


# Words of live sections: what the flags leave is an address


@chosen("block.flags")
def _(con: Any, context: Any) -> int:
    """Rarely contents, as they have a MiB."""
    often = [BLOCK_EOS, BLOCK_PROGRESS, BLOCK_DEVICE | BLOCK_ZERO]
    return _flagged(context, [*often, *often[1:], *often[1:], BLOCK_DEVICE], BLOCK_SECTOR_BITS)


@chosen("storage-attributes.flags")
def _(con: Any, context: Any) -> int:
    flags = [STORAGE_ATTRIBUTES_EOS, STORAGE_ATTRIBUTES_MORE, STORAGE_ATTRIBUTES_DONE]
    return _flagged(context, flags, STORAGE_ATTRIBUTES_FLAG_MASK.bit_length())


def _flagged(context: Any, flags: list[int], bits: int) -> int:
    state = drawing(context)
    flag = state.choice(flags)
    return state.integer(0, (1 << 64 - bits) - 1) << bits | flag


# Commands


@special(command.Command.subcon)
def _(con: Any, context: Any) -> Any:
    """The length is that of the payload, where it varies."""
    state = drawing(context)
    number = state.choice(sorted(COMMAND_NAMES))
    varies = number not in COMMAND_LENGTHS
    length = 0 if varies else state.choice(COMMAND_LENGTHS[number])

    def head(con: Any, this: Any) -> Any:
        return drawn_struct(_struct(con), this, number=_given(number), length=_given(length))

    found = drawn_struct(con, context, head=head)
    if varies:
        found.head.length = len(command.Payload.build(found.payload, head=found.head))
    return found


def _struct(con: Any) -> Any:
    while not isinstance(con, c.Struct):
        con = con.subcon
    return con


@special(command.RamDiscard)
def _(con: Any, context: Any) -> Any:
    """A command of the least length has a name of one byte."""
    return drawn_struct(con, context, block=lambda con, this: drawn(con, this) or "0")


@chosen("command.packaged.empty")
def _(con: Any, context: Any) -> int:
    return drawing(context).integer(1, SHORT)


# Records of version 1 and 2


@special(legacy.Fields)
def _(con: Any, context: Any) -> Any:
    """The length is that of the body with what is left behind it; the record begins at 0."""
    state = drawing(context)
    idstr, instance, version = state.choice([_record, _with_schema, _unknown])(state)

    def rest(con: Any, this: Any) -> bytes:
        """Nothing that would be read as more of the body."""
        left = this.schema.kind == "ram" and state.choice([False, False, True])
        data = state.binary(0, SHORT) if left else b""
        return b"" if data.startswith(RAM_CHUNK_MAGIC.to_bytes(2)) else data

    found = drawn_struct(
        con,
        context,
        idstr=_given(idstr),
        instance_id=_given(instance),
        version_id=_given(version),
        rest=rest,
    )
    body = found.schema.grammar.build(found.body)
    found.length = len(body) + len(found.rest)
    before = c.Struct(*itertools.takewhile(lambda field: field.name != "rest", con.subcons))
    found.end = len(before.build(found)) + len(found.rest)
    return found


def _record(state: Drawing) -> Name:
    return RAM_IDSTR, state.choice([0, 1]), state.dialect.ram_version


@concluded(legacy._end)
def _(record: Any) -> int:
    return 0


@concluded(legacy._body)
def _(record: Any) -> Body:
    """Bytes that no schema fits are a body, too."""
    state, key = drawing(record), (record.idstr, record.version_id)
    if key in legacy.LIVE_BODIES:
        return legacy.LIVE_BODIES[key]
    layouts = schemas(*key)
    layout = state.choice([*layouts, None])
    if layout is None:
        return Body("buffer", c.Const(state.binary(0, SHORT)), vmstate.digest)
    return state.body(layout, schema.body)
