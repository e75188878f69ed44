"""vmstate bodies: untagged fields in the order that the description gives, then subsections.

A description is turned into constructs: a ``Layout`` of fields and subsections per vmstate.  Where
it is malformed stands ``construct.Error``, so that only reading on to there is an error.
All integers are big-endian.  Origin: vmstate_load_state, vmstate_subsection_load.
"""

import hashlib
import json
import struct
from functools import cache
from itertools import groupby
from typing import Any, BinaryIO

from construct import Bytes, Const, Container, Error, Int8ub, Int32ub, Mapping, StreamError, Struct
from construct.core import stream_read, stream_write

from .combinators import Body, Counted, Node, Ruled, Whole, Wrapper, next_byte
from .constants import (
    LIMIT_VMSTATE_FIELDS,
    LIST_ELEMENT,
    LIST_END,
    POINTER_NULL,
    POINTER_PRESENT,
    SUBSECTION,
)
from .devices import pointer_arrays
from .errors import GrammarError
from .reading import reading
from .vmdesc import Object, is_int, loads

FORMATS = {
    ("bool", 1): "B",
    ("int8", 1): "b",
    ("int16", 2): "h",
    ("int32", 4): "i",
    ("int64", 8): "q",
    ("uint8", 1): "B",
    ("uint16", 2): "H",
    ("uint32", 4): "I",
    ("uint64", 8): "Q",
    ("uint8 equal", 1): "B",
    ("uint16 equal", 2): "H",
    ("uint32 equal", 4): "I",
    ("int32 equal", 4): "i",
    ("int32 le", 4): "i",
    ("int64 equal", 8): "Q",
    ("timer", 8): "q",
    ("CPU_Double_U", 8): "Q",
}
"""``struct`` formats of the types that are one number, by type and size in bytes."""


def _left(stream: BinaryIO) -> int:
    here = stream.tell()
    left = stream.seek(0, 2) - here
    stream.seek(here)
    return left


def enter(fields: int, stream: BinaryIO, context: Any) -> None:
    """Count the fields of a structure that begins here."""
    state = reading(context)
    state.fields += fields
    if state.fields > LIMIT_VMSTATE_FIELDS:
        raise GrammarError("limit.vmstate-fields", stream.tell())


class Numbers(Node):
    """``count`` values of the same ``struct`` format, or one alone if ``count`` is None.

    A bool is the number itself when it is neither 0 nor 1.
    """

    def __init__(self, kind: str, size: int, count: int | None) -> None:
        super().__init__()
        self.size = size
        self.count = count
        self.is_bool = (kind, size) == ("bool", 1)
        self.format = ">" + FORMATS.get((kind, size), f"{size}s")

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        count = 1 if self.count is None else self.count
        if self.size * count > _left(stream):
            raise StreamError("the field reaches beyond the input", path)
        data = stream_read(stream, self.size * count, path)
        if not self.size:
            return data if self.count is None else []
        values = [value for (value,) in struct.iter_unpack(self.format, data)]
        if self.is_bool:
            values = [bool(value) if value < 2 else value for value in values]
        return values[0] if self.count is None else values

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        values = [obj] if self.count is None else obj
        data = b"".join(struct.pack(self.format, value) for value in values)
        stream_write(stream, data, len(data), path)
        return obj


class Exact(Wrapper):
    """``subcon``, which must be of the ``size`` in bytes that the description gives."""

    def __init__(self, size: int, subcon: Any) -> None:
        super().__init__(subcon)
        self.size = size

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        start = stream.tell()
        value = self.subcon._parse(stream, context, path)
        if stream.tell() - start != self.size:
            raise GrammarError("vmdesc.field.size", start)
        return value


class Elements(Node):
    """``count`` elements that the description gives ``size`` bytes each, or one alone if ``count`` is None."""

    def __init__(self, element: Any, size: int, count: int | None) -> None:
        super().__init__()
        self.element = element
        self.size = size
        self.count = count

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        if self.size * (self.count or 1) > _left(stream):
            raise StreamError("the field reaches beyond the input", path)
        if self.count is None:
            return self.element._parse(stream, context, path)
        count = self.count if self.size else 0
        return [self.element._parse(stream, context, path) for _ in range(count)]

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for value in [obj] if self.count is None else obj:
            self.element._build(value, stream, context, path)
        return obj


MARKERS = {
    "nullptr": Mapping(Int8ub, {None: POINTER_NULL}),
    "ptr-marker": Mapping(Int8ub, {None: POINTER_NULL, True: POINTER_PRESENT}),
}
"""A pointer that is null, or present (since 11.0): then the element follows as the next field."""


class Linked(Node):
    """A linked list: every element behind the byte 01, and 00 behind the last (since 2.9)."""

    NEXT = Ruled("vmstate.list-marker", Const(LIST_ELEMENT, Int8ub))
    LAST = Ruled("vmstate.list-marker", Const(LIST_END, Int8ub))

    def __init__(self, layouts: list[Any]) -> None:
        super().__init__()
        self.layouts = layouts

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        values = []
        for element in self.layouts:
            self.NEXT._parse(stream, context, path)
            values.append(element._parse(stream, context, path))
        self.LAST._parse(stream, context, path)
        return values

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for element, value in zip(self.layouts, obj, strict=True):
            self.NEXT._build(LIST_ELEMENT, stream, context, path)
            element._build(value, stream, context, path)
        self.LAST._build(LIST_END, stream, context, path)
        return obj


class Pointers(Node):
    """``count`` elements that are absent, as the byte 30 (since 2.9), or of the given layout."""

    def __init__(self, element: Any, count: int) -> None:
        super().__init__()
        self.element = element
        self.count = count

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return [self._pointer(stream, context, path) for _ in range(self.count)]

    def _pointer(self, stream: BinaryIO, context: Any, path: str) -> Any:
        if next_byte(stream) == POINTER_NULL:
            stream.read(1)
            return None
        return self.element._parse(stream, context, path)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for value in obj:
            if value is None:
                Int8ub._build(POINTER_NULL, stream, context, path)
            else:
                self.element._build(value, stream, context, path)
        return obj


class Layout(Node):
    """The fields and subsections of one vmstate, as a Container of two lists.

    ``fields`` has pairs of name and value, in which bytes stand for every type that is no number.
    """

    def __init__(self, fields: list[tuple[str, Any]], subsections: list[Any]) -> None:
        super().__init__()
        self.fields = fields
        self.subsections = subsections

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        enter(len(self.fields), stream, context)
        return Container(
            fields=[[name, field._parse(stream, context, path)] for name, field in self.fields],
            subsections=[s._parse(stream, context, path) for s in self.subsections],
        )

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        for (_, field), (_, value) in zip(self.fields, obj.fields, strict=True):
            field._build(value, stream, context, path)
        for subsection, value in zip(self.subsections, obj.subsections, strict=True):
            subsection._build(value, stream, context, path)
        return obj


def _is_vmstate(description: Any) -> bool:
    return (
        isinstance(description, Object)
        and isinstance(description.get("vmsd_name"), str)
        and is_int(description.get("version"))
        and isinstance(description.get("fields"), list)
        and isinstance(description.get("subsections", []), list)
    )


def _is_field(description: Any) -> bool:
    return (
        isinstance(description, Object)
        and isinstance(description.get("name"), str)
        and isinstance(description.get("type"), str)
        and is_int(description.get("size"))
        and is_int(description.get("array_len", 1))
        and description["size"] >= 0
        and description.get("array_len", 1) >= 1
    )


def layout(description: Any) -> Any:
    """The construct of a vmstate: an object with vmsd_name, version, fields and subsections."""
    if not _is_vmstate(description):
        return Error
    owner = description["vmsd_name"]
    fields = _own_lengths(description["fields"])
    return Layout(
        [_field(field, owner) for field in fields],
        [_subsection(described) for described in description.get("subsections", [])],
    )


def _own_lengths(fields: list[Any]) -> list[Any]:
    """The fields with the length of its own for the first part of an array of pointers.

    Since 10.0 such an array is described in parts of one name, null or present.  If the first part
    is present, it states the length of the whole array (observed in 11.1).
    """
    own: list[Any] = []
    for name, group in groupby(fields, lambda field: field["name"] if _is_field(field) else None):
        first, *others = group
        if name is not None and first["type"] not in MARKERS and "array_len" in first:
            count = first["array_len"] - sum(part.get("array_len", 1) for part in others)
            if count > 0 and any(part["type"] in MARKERS for part in others):
                first = Object([("array_len", count), *first.pairs])
        own += [first, *others]
    return own


def subsection(name: str, version: int, content: Any) -> Any:
    """``05``, u8 length, name, be32 version and a vmstate of its own (since 0.13)."""
    return Struct(
        "mark" / Ruled("vmstate.subsection.missing", Const(SUBSECTION, Int8ub)),
        "name" / Ruled("vmstate.subsection.name", Const(name, Counted)),
        "version" / Ruled("vmstate.subsection.version", Const(version, Int32ub)),
        "content" / content,
    )


def _subsection(description: Any) -> Any:
    if not _is_vmstate(description):
        return Error
    return subsection(description["vmsd_name"], description["version"], layout(description))


def _field(description: Any, owner: str) -> tuple[str, Any]:
    """Name and construct of a field of the vmstate named ``owner``."""
    if not _is_field(description):
        return "", Error
    name, kind, size = description["name"], description["type"], description["size"]
    count = description.get("array_len")
    nested = description.get("struct")
    match kind:
        case "struct" if nested == {}:
            element = _pointer_arrays().get(f"{owner}.{name}", Error)
            return name, element if element is Error else Pointers(element, count or 1)
        case "struct":
            element = layout(nested)
        case "tmp" | "vstruct":
            element = layout(description)
        case "qtailq" | "qlist":
            elements = [layout(group) for group in _groups(description)]
            element = Error if Error in elements else Linked(elements)
        case "nullptr" | "ptr-marker":
            marker = Ruled("vmstate.pointer-marker", MARKERS[kind])
            return name, Elements(marker, size, count)
        case _:
            return name, Numbers(kind, size, count)
    return name, element if element is Error else Elements(Exact(size, element), size, count)


def _groups(description: Object) -> list[Object]:
    """The vmstates of the elements of a linked list, whose keys repeat once per element."""
    groups: list[list[tuple[str, Any]]] = []
    for key, value in description.pairs:
        if key == "vmsd_name":
            groups.append([])
        if groups and key in ("vmsd_name", "version", "fields", "subsections"):
            groups[-1].append((key, value))
    return [Object(group) for group in groups]


@cache
def _pointer_arrays() -> dict[str, Any]:
    arrays = loads(json.dumps(pointer_arrays()))
    return {name: layout(description) for name, description in arrays.items()}


def body(device: Object) -> Body:
    """The body of a section by the entry of its device in the description."""
    if "vmsd_name" not in device and is_int(device.get("size")) and device["size"] >= 0:
        return Body("buffer", Whole("vmstate.truncated", Bytes(device["size"])), digest)
    grammar = layout(device)
    return Body("vmstate", Whole("vmstate.truncated", Ruled("vmdesc.layout", grammar)), transcript)


def digest(content: bytes) -> dict[str, Any]:
    """What a transcript tells of bytes that nothing describes further."""
    return {"sha256": hashlib.sha256(content).hexdigest()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_value(element) for element in value]
    return transcript(value) if isinstance(value, Container) else value


def transcript(vmstate: Any) -> dict[str, Any]:
    """What a transcript tells of a vmstate: fields and subsections, bytes in hex."""
    return {
        "fields": [[name, _value(value)] for name, value in vmstate.fields],
        "subsections": [
            {"name": s.name, "version": s.version, **transcript(s.content)}
            for s in vmstate.subsections
        ],
    }
