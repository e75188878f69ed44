"""Device bodies that follow a VMDESCRIPTION: decoding and encoding.

A decoded state is ``{"fields": [[name, value], ...], "subsections": [...]}`` with each subsection
``{"name", "version", "fields", "subsections"}``.  A value is an int, a bool, bytes (buffers and
device-own types), None (null pointer), a list (arrays and lists) or again a state (structs).
All integers are big-endian.
"""

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

__all__ = ["EndOfData", "by_name", "decode", "encode"]

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
_POINTERS: Final = ("nullptr", "ptr-marker")
_LISTS: Final = ("qtailq", "qlist")
_INLINE: Final = ("tmp", "vstruct")


class EndOfData(Exception):
    """The body goes on behind the end of the data."""


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
        return bool(
            _get(field, "name", str) == name
            and _get(field, "type", str)
            and _get(field, "size", int) >= 0
            and (_count(field) or 1)
        )
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
    def __init__(self, data: bytes, pos: int, base: int, section: str, fields: int) -> None:
        self.fields = fields
        self.data = data
        self.pos = pos
        self.base = base
        self.section = section

    def error(self, rule: str, pos: int, detail: str) -> Exception:
        return stream_error(rule, self.base + pos, self.section, detail)

    def take(self, size: int) -> bytes:
        end = self.pos + size
        if end > len(self.data):
            raise EndOfData
        piece = self.data[self.pos : end]
        self.pos = end
        return piece

    def state(self, layout: dict[str, Any]) -> dict[str, Any]:
        self.fields += len(layout["fields"])
        if self.fields > LIMIT_VMSTATE_FIELDS:
            raise self.error(
                "limit.vmstate-fields", self.pos, f"more than {LIMIT_VMSTATE_FIELDS} fields"
            )
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
        at = self.pos
        number = int.from_bytes(self.take(4), "big")
        if number != version:
            raise self.error(
                "vmstate.subsection.version",
                at,
                f"version {number} of {name!r}, described as {version}",
            )
        return {"name": name, "version": version, **self.state(layout)}

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
        if size * (count or 1) > len(self.data) - self.pos:
            raise EndOfData
        if count is None:
            return self.element(field["name"], kind, size, layouts)
        if not size:
            return []
        return [self.element(field["name"], kind, size, layouts) for _ in range(count)]

    def pointer(self, layout: dict[str, Any]) -> dict[str, Any] | None:
        if self.pos >= len(self.data):
            raise EndOfData
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


def decode(
    entry: dict[str, Any], data: bytes, pos: int, base: int, section: str, fields: int
) -> tuple[str, Any, int, int]:
    """Decode the body at ``data[pos:]``, stream offset ``base + pos``, by its description.

    ``fields``: how many the stream has had before.  Returns kind, state, end and the new number of
    fields; the kind is "vmstate", or "buffer", without a state, for a device that is described by
    its size alone.  Raises ``EndOfData`` and ``StreamError`` (rules ``vmstate.*``, ``vmdesc.layout``,
    ``vmdesc.field.size``, ``limit.vmstate-fields``).
    """
    decoder = _Decoder(data, pos, base, section, fields)
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
        for field, (name, value) in zip(layout["fields"], state["fields"], strict=True):
            self.field(field, value, f"{vmsd}.{name}")
        for sub, value in zip(layout.get("subsections", ()), state["subsections"], strict=True):
            name = value["name"].encode("latin-1")
            self.out += bytes((SUBSECTION, len(name))) + name
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
