"""Device bodies that follow a VMDESCRIPTION or a schema: decoding and encoding.

A decoded state is ``{"fields": [[name, value], ...], "subsections": [...]}`` with each subsection
``{"name", "version", "fields", "subsections"}``.  A value is an int, a bool, bytes (buffers and
device-own types), None (null pointer), a list (arrays and lists) or again a state (structs).
All integers are big-endian.
"""

import operator
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from savevm.errors import stream_error
from savevm.vmdesc import JsonObject
from savevm_spec.constants import (
    LIMIT_VMSTATE_FIELDS,
    LIST_ELEMENT,
    LIST_END,
    POINTER_NULL,
    POINTER_PRESENT,
    SUBSECTION,
)
from savevm_spec.devices import pointer_arrays

__all__ = ["EndOfData", "by_name", "decode", "decode_schema", "encode"]

# Type name in the description → (bytes, signed)
_SCALARS: Final = {
    "int8": (1, True),
    "uint8": (1, False),
    "uint8 equal": (1, False),
    "int16": (2, True),
    "uint16": (2, False),
    "uint16 equal": (2, False),
    "int32": (4, True),
    "int32 equal": (4, True),
    "int32 le": (4, True),
    "uint32": (4, False),
    "uint32 equal": (4, False),
    "int64": (8, True),
    "uint64": (8, False),
    # The type behind this name is unsigned.
    "int64 equal": (8, False),
    "timer": (8, True),
    "CPU_Double_U": (8, False),
}
# Operator of a schema's condition → whether it holds
_CONDITIONS: Final[dict[str, Callable[[int, int], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": lambda value, bits: value & bits != 0,
}
_POINTERS: Final = ("nullptr", "ptr-marker")
_LISTS: Final = ("qtailq", "qlist")
_INLINE: Final = ("tmp", "vstruct")


class EndOfData(Exception):
    """The body goes on behind the end of the data: at least up to ``need`` in it."""

    def __init__(self, need: int) -> None:
        self.need = need


class _Malformed(Exception):
    """The description is not well formed."""


def _get(entry: Any, key: str, kind: type) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise _Malformed(f"no {kind.__name__} {key!r}")
    return value


def _vmstate(layout: Any) -> dict[str, Any]:
    """``layout``, once it is known to be that of a vmstate."""
    _get(layout, "vmsd_name", str)
    _get(layout, "version", int)
    _get(layout, "fields", list)
    if "subsections" in layout:
        _get(layout, "subsections", list)
    return layout  # type: ignore[no-any-return]


def _count(field: dict[str, Any]) -> int | None:
    if "array_len" not in field:
        return None
    count = _get(field, "array_len", int)
    if count < 1:
        raise _Malformed(f"array_len {count}")
    return int(count)


def _is_field(field: Any, name: str) -> bool:
    try:
        _get(field, "type", str)
        _count(field)
        return bool(_get(field, "name", str) == name and _get(field, "size", int) >= 0)
    except _Malformed:
        return False


def _present(fields: list[Any], i: int) -> int | None:
    """How many elements field ``i`` has if it begins an array of pointers, some of them null.

    QEMU 10.0 to 11.1 describes such an array in parts of the same name.  When the first element is
    present, the first part says the length of the whole array instead of its own.
    """
    name = fields[i]["name"]
    if "array_len" not in fields[i] or not _is_field(fields[i], name):
        return None
    if fields[i]["type"] in _POINTERS:
        return None
    others = 0
    null = False
    for field in fields[i + 1 :]:
        if not _is_field(field, name):
            break
        others += _count(field) or 1
        null = null or field["type"] in _POINTERS
    present = fields[i]["array_len"] - others
    return present if null and present > 0 else None


def _groups(field: dict[str, Any]) -> list[dict[str, Any]]:
    """The element layouts of a list: keys that repeat once per element."""
    if not isinstance(field, JsonObject):
        return _grouped(list(field.items()))
    # The field may be that of many elements, with as many keys.
    if field.groups is None:
        field.groups = _grouped(field.pairs)
    return field.groups


def _grouped(pairs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for key, value in pairs:
        if key == "vmsd_name":
            groups.append({})
        if key in ("vmsd_name", "version", "fields", "subsections") and groups:
            groups[-1].setdefault(key, value)
    return groups


class _Decoder:
    def __init__(
        self, data: bytes, pos: int, end: int, base: int, section: str, fields: int
    ) -> None:
        self.fields = fields
        self.data = data
        self.pos = pos
        self.end = end
        self.base = base
        self.section = section

    def error(self, rule: str, pos: int, detail: str) -> Exception:
        return stream_error(rule, self.base + pos, self.section, detail)

    def take(self, size: int) -> bytes:
        end = self.pos + size
        if end > self.end:
            raise EndOfData(end)
        piece = self.data[self.pos : end]
        self.pos = end
        return piece

    def enter(self, layout: dict[str, Any]) -> None:
        self.fields += len(layout["fields"])
        if self.fields > LIMIT_VMSTATE_FIELDS:
            raise self.error(
                "limit.vmstate-fields", self.pos, f"more than {LIMIT_VMSTATE_FIELDS} fields"
            )

    def state(self, layout: dict[str, Any]) -> dict[str, Any]:
        self.enter(layout)
        vmsd = layout["vmsd_name"]
        described = layout["fields"]
        fields: list[list[Any]] = []
        previous: str | None = None
        for i, field in enumerate(described):
            name = _get(field, "name", str)
            present = _present(described, i) if name != previous else None
            fields.append([name, self.field(field, f"{vmsd}.{name}", present)])
            previous = name
        return {
            "fields": fields,
            "subsections": [self.subsection(_vmstate(s)) for s in layout.get("subsections", ())],
        }

    def subsection(self, layout: dict[str, Any]) -> dict[str, Any]:
        name: str = layout["vmsd_name"]
        version: int = layout["version"]
        at = self.pos
        mark = self.take(1)[0]
        if mark != SUBSECTION:
            raise self.error(
                "vmstate.subsection.missing", at, f"{mark:#04x} instead of subsection {name!r}"
            )
        at = self.pos
        found = self.take(self.take(1)[0]).decode("latin-1")
        if found != name:
            raise self.error(
                "vmstate.subsection.name", at, f"subsection {found!r}, described as {name!r}"
            )
        self.version(name, version)
        return {"name": name, "version": version, **self.state(layout)}

    def version(self, name: str, version: int) -> None:
        at = self.pos
        number = int.from_bytes(self.take(4), "big")
        if number != version:
            raise self.error(
                "vmstate.subsection.version",
                at,
                f"version {number} of {name!r}, described as {version}",
            )

    def field(self, field: dict[str, Any], path: str, present: int | None) -> Any:
        kind: str = _get(field, "type", str)
        size: int = _get(field, "size", int)
        if size < 0:
            raise _Malformed(f"size {size}")
        count = present or _count(field)
        if kind == "struct":
            if field.get("struct") == {}:
                layout = pointer_arrays().get(path)
                if layout is None:
                    raise _Malformed(f"elements of {path} are not described")
                return [self.pointer(layout) for _ in range(count or 1)]
            layouts = [_vmstate(field.get("struct"))]
        elif kind in _INLINE:
            layouts = [_vmstate(field)]
        else:
            layouts = [_vmstate(g) for g in _groups(field)] if kind in _LISTS else []
        if self.pos + size * (count or 1) > self.end:
            raise EndOfData(self.pos + size * (count or 1))
        if count is None:
            return self.element(field["name"], kind, size, layouts)
        if not size:
            return []
        return [self.element(field["name"], kind, size, layouts) for _ in range(count)]

    def pointer(self, layout: dict[str, Any]) -> dict[str, Any] | None:
        if self.pos >= self.end:
            raise EndOfData(self.pos + 1)
        if self.data[self.pos] == POINTER_NULL:
            self.pos += 1
            return None
        return self.state(layout)

    def element(self, name: str, kind: str, size: int, layouts: list[dict[str, Any]]) -> Any:
        scalar = _SCALARS.get(kind)
        if scalar is not None and scalar[0] == size:
            return int.from_bytes(self.take(size), "big", signed=scalar[1])
        if kind == "bool" and size == 1:
            byte = self.take(1)[0]
            return bool(byte) if byte < 2 else byte
        at = self.pos
        if kind == "struct" or kind in _INLINE:
            value: Any = self.state(layouts[0])
        elif kind in _LISTS:
            value = self.list(layouts)
        elif kind in _POINTERS:
            byte = self.take(1)[0]
            if byte == POINTER_NULL:
                return None
            if byte == POINTER_PRESENT and kind == "ptr-marker":
                return True
            raise self.error("vmstate.pointer-marker", at, f"pointer marker {byte:#04x}")
        else:
            return self.take(size)
        if self.pos - at != size:
            raise self.error(
                "vmdesc.field.size",
                at,
                f"{name!r} has {self.pos - at} bytes, described as {size}",
            )
        return value

    def list(self, layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        values: list[dict[str, Any]] = []
        for layout in layouts:
            self.marker(LIST_ELEMENT)
            values.append(self.state(layout))
        self.marker(LIST_END)
        return values

    def marker(self, expected: int) -> None:
        at = self.pos
        byte = self.take(1)[0]
        if byte != expected:
            raise self.error(
                "vmstate.list-marker", at, f"list marker {byte:#04x}, described as {expected:#04x}"
            )


class _SchemaDecoder(_Decoder):
    """Also makes the plain layout of what there is: without conditions, with numbers for names.

    ``complete``: the body cannot go on behind ``end``.
    """

    def __init__(
        self,
        data: bytes,
        pos: int,
        end: int,
        base: int,
        section: str,
        fields: int,
        complete: bool,
    ) -> None:
        super().__init__(data, pos, end, base, section, fields)
        self.complete = complete
        # The fields so far of the layout at hand, behind those of the layouts around it.
        self.scopes: list[list[list[Any]]] = []

    def number(self, value: Any) -> int:
        """``value``, or that of the field whose name it is."""
        if isinstance(value, int):
            return value
        for fields in reversed(self.scopes):
            for name, number in reversed(fields):
                if name == value:
                    if not isinstance(number, int):
                        raise _Malformed(f"field {value!r} is no number")
                    return number
        raise _Malformed(f"no field {value!r} before")

    def plain(self, schema: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and plain layout."""
        self.enter(schema)
        fields: list[list[Any]] = []
        state: dict[str, Any] = {"fields": fields, "subsections": []}
        layout: dict[str, Any] = {
            "vmsd_name": schema["vmsd_name"],
            "version": schema["version"],
            "fields": [],
        }
        self.scopes.append(fields)
        for field in schema["fields"]:
            if "if" in field:
                name, condition, number = field["if"]
                if not _CONDITIONS[condition](self.number(name), number):
                    continue
            value, described = self.described(field)
            fields.append([_get(field, "name", str), value])
            layout["fields"] += described
        for sub in schema.get("subsections", ()):
            head = _subsection_head(_vmstate(sub)["vmsd_name"])
            if not self.follows(head):
                continue
            self.pos += len(head)
            self.version(sub["vmsd_name"], sub["version"])
            value, inner = self.plain(sub)
            state["subsections"].append(
                {"name": sub["vmsd_name"], "version": sub["version"], **value}
            )
            layout.setdefault("subsections", []).append(inner)
        self.scopes.pop()
        return state, layout

    def follows(self, head: bytes) -> bool:
        piece = self.data[self.pos : min(self.pos + len(head), self.end)]
        if len(piece) < len(head) and head.startswith(piece) and not self.complete:
            raise EndOfData(self.pos + len(piece) + 1)
        return piece == head

    def described(self, field: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """Value and plain fields; more than one for an array of structs that are not alike."""
        kind: str = _get(field, "type", str)
        if kind in _INLINE or kind in _LISTS:
            return self.field(field, field["name"], None), [field]
        count = max(0, self.number(field["array_len"])) if "array_len" in field else None
        if kind == "struct":
            values: list[dict[str, Any]] = []
            plain: list[dict[str, Any]] = []
            for _ in range(1 if count is None else count):
                value, described = self.struct(field)
                values.append(value)
                plain.append(plain[0] if plain and described == plain[0] else described)
            if count is None:
                return values[0], plain
            if count and (plain[0]["size"] == 0 or any(p is not plain[0] for p in plain)):
                return values, [{**p, "index": i} for i, p in enumerate(plain)]
            if count:
                return values, [{**plain[0], "array_len": count}]
            empty = {"vmsd_name": "", "version": 0, "fields": []}
            return [], [_plain(field, "struct", 0, 0) | {"struct": empty}]
        size = max(0, self.number(field.get("size")))
        layout = _plain(field, kind, size, count)
        if count is None:
            return self.element(field["name"], kind, size, []), [layout]
        if self.pos + size * count > self.end:
            raise EndOfData(self.pos + size * count)
        if not size:
            return [], [layout]
        return [self.element(field["name"], kind, size, []) for _ in range(count)], [layout]

    def struct(self, field: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        at = self.pos
        state, layout = self.plain(_vmstate(field.get("struct")))
        return state, _plain(field, "struct", self.pos - at, None) | {"struct": layout}


def _plain(field: dict[str, Any], kind: str, size: int, count: int | None) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": field["name"], "type": kind, "size": size}
    if count is not None:
        # A description has no arrays of no elements, but arrays of no bytes.
        plain.update(array_len=count or 1, size=size if count else 0)
    return plain


def _subsection_head(name: str) -> bytes:
    return bytes((SUBSECTION, len(name))) + name.encode("latin-1")


def decode_schema(
    schema: dict[str, Any],
    data: bytes,
    pos: int,
    end: int,
    base: int,
    section: str,
    fields: int,
    complete: bool,
) -> tuple[Any, dict[str, Any], int, int]:
    """Decode the body at ``data[pos:end]`` by a schema of ``savevm_spec.devices``.

    ``complete``: the body does not go on behind ``end``.  Returns the state, the layout of what was there, in the shape of an entry of a VMDESCRIPTION
    (an array of structs that are not alike is a field for each of them, with an "index"), the end
    and the new number of fields.  The rest is as for ``decode``.
    """
    decoder = _SchemaDecoder(data, pos, end, base, section, fields, complete)
    try:
        state, layout = decoder.plain(_vmstate(schema))
    except _Malformed as e:
        raise stream_error("vmdesc.layout", base + pos, section, str(e)) from None
    return state, layout, decoder.pos, decoder.fields


def decode(
    entry: dict[str, Any], data: bytes, pos: int, end: int, base: int, section: str, fields: int
) -> tuple[str, Any, int, int]:
    """Decode the body at ``data[pos:end]``, stream offset ``base + pos``, by its description.

    ``fields``: how many the stream has had before.  Returns kind, state, end and the new number of
    fields; the kind is "vmstate", or "buffer", without a state, for a device that is described by
    its size alone.  Raises ``EndOfData`` and ``StreamError`` (rules ``vmstate.*``, ``vmdesc.layout``,
    ``vmdesc.field.size``, ``limit.vmstate-fields``).
    """
    decoder = _Decoder(data, pos, end, base, section, fields)
    try:
        if "vmsd_name" in entry:
            state = decoder.state(_vmstate(entry))
            return "vmstate", state, decoder.pos, decoder.fields
        size = _get(entry, "size", int)
        if size < 0:
            raise _Malformed(f"size {size}")
        decoder.take(size)
        return "buffer", None, decoder.pos, fields
    except _Malformed as e:
        raise stream_error("vmdesc.layout", base + pos, section, str(e)) from None


class _Encoder:
    def __init__(self) -> None:
        self.out = bytearray()

    def state(self, layout: dict[str, Any], state: dict[str, Any]) -> None:
        vmsd = layout.get("vmsd_name")
        described = iter(layout["fields"])
        for name, value in state["fields"]:
            field = next(described)
            unlike = "index" in field and "array_len" not in field and field.get("struct")
            if unlike and isinstance(value, list):
                # Structs that are not alike: a field for each.
                fields = [field, *islice(described, len(value) - 1)]
                for field, element in zip(fields, value, strict=True):
                    self.element(field, "struct", element)
            else:
                self.field(field, value, f"{vmsd}.{name}")
        for sub, value in zip(layout.get("subsections", ()), state["subsections"], strict=True):
            self.out += _subsection_head(value["name"])
            self.out += value["version"].to_bytes(4, "big")
            self.state(sub, value)

    def field(self, field: dict[str, Any], value: Any, path: str) -> None:
        kind: str = field["type"]
        if kind == "struct" and field["struct"] == {}:
            for element in value:
                if element is None:
                    self.out.append(POINTER_NULL)
                else:
                    self.state(pointer_arrays()[path], element)
        elif "array_len" in field:
            for element in value:
                self.element(field, kind, element)
        else:
            self.element(field, kind, value)

    def element(self, field: dict[str, Any], kind: str, value: Any) -> None:
        if isinstance(value, bytes):
            self.out += value
        elif kind == "struct":
            self.state(field["struct"], value)
        elif kind in _INLINE:
            self.state(field, value)
        elif kind in _LISTS:
            for group, element in zip(_groups(field), value, strict=True):
                self.out.append(LIST_ELEMENT)
                self.state(group, element)
            self.out.append(LIST_END)
        elif kind in _POINTERS:
            self.out.append(POINTER_NULL if value is None else POINTER_PRESENT)
        elif kind == "bool":
            self.out.append(value)
        else:
            size, signed = _SCALARS[kind]
            self.out += value.to_bytes(size, "big", signed=signed)


def encode(layout: dict[str, Any], state: dict[str, Any]) -> bytes:
    """The body whose ``decode`` by ``layout`` gives ``state``."""
    encoder = _Encoder()
    encoder.state(layout, state)
    return bytes(encoder.out)


def by_name(state: dict[str, Any]) -> dict[str, Any]:
    """A decoded state with fields by name; a name that comes more than once has a list of values."""
    fields: dict[str, Any] = {}
    repeated: set[str] = set()
    for name, value in state["fields"]:
        value = _by_name(value)
        if name not in fields:
            fields[name] = value
        elif name in repeated:
            fields[name].append(value)
        else:
            repeated.add(name)
            fields[name] = [fields[name], value]
    if state["subsections"]:
        fields["subsections"] = {s["name"]: by_name(s) for s in state["subsections"]}
    return fields


def _by_name(value: Any) -> Any:
    if isinstance(value, dict):
        return by_name(value)
    return [_by_name(v) for v in value] if isinstance(value, list) else value
