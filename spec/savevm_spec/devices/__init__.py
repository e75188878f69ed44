"""vmstate layouts that no stream describes, as data with their origin.

The files of layouts are read like this:

- ``structs``: fields by name, for all files.  One with subsections is ``{"fields", "subsections"}``.
- ``layouts``: ``{"idstr", "version", "origin", "fields"}``, perhaps with "subsections".  Where
  "idstr" or "version" is a list, or there are "variants", each of them has a layout.  The files
  and the layouts in them are in order of likelihood.
- a field: ``[name, type, number, options]``, the last two optional.  The type is one of a
  VMDESCRIPTION or "struct NAME"; the number is that of the bytes of a buffer or the elements of an
  array, or the name of an earlier field with it.  A key of the variant in the place of a type or a
  number stands for its value.  Options: "if", as in `schemas`; "since" and "until", versions of the
  device, and "target", the variant's, say which layouts have the field.
- ``{"fields": ...}`` among the fields, a list or the name of a struct: those fields in its place;
  with "repeat", that many times.
- a subsection: ``{"name", "version", "fields"}``, perhaps with "subsections", "since" and "until";
  "version" may give one for each of the device's.

``riscv.json`` is of devices whose streams describe themselves, and only for `layouts`.  In it,
``releases`` says the version of each device by QEMU release; "releases" of a layout or a subsection,
of which there are others with the same version of the device, says which have it.
"""

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

# Type name → bytes
_SIZES: Final = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "timer": 8,
}
_FILES: Final = (
    "pc.json",
    "storage.json",
    "network.json",
    "virtio.json",
    "display.json",
    "audio.json",
    "usb.json",
    "kvm.json",
)


class _Build(NamedTuple):
    """What the layout being built is for."""

    version: int
    variant: dict[str, Any]
    structs: dict[str, Any]


def _read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text("utf-8"))


@cache
def pointer_arrays() -> dict[str, dict[str, Any]]:
    """Layout of one element of an array of pointers, by ``"<vmsd name>.<field name>"``.

    QEMU up to 9.2 describes such an array as if every element were like the first: when that is
    null, the description says ``"struct": {}`` and nothing of the others.
    """
    arrays: dict[str, dict[str, Any]] = _read("pointer_arrays.json")["arrays"]
    return arrays


def schemas(idstr: str, version: int) -> tuple[dict[str, Any], ...]:
    """Layouts of a device's body in streams that describe nothing (until 2.2), likeliest first.

    ``idstr`` may begin with a device path (since 0.13).  A layout has the shape of an entry of a
    VMDESCRIPTION, and in addition: a field's "if" ``[field, operator, number]`` says when it is
    there; "array_len", and "size" of a buffer, may be the name of the field with the number; a
    "struct" has no size; subsections may be absent.  A name is that of the latest field before of
    the same layout, else of those around it.
    """
    return _layouts().get((idstr.rpartition("/")[2], version), ())


@cache
def layouts(file: str, release: str, **numbers: int) -> dict[str, dict[str, Any]]:
    """Layouts of a board's devices as a QEMU release has them, by idstr, in the order of a stream.

    They have the shape of entries of a VMDESCRIPTION, with every subsection that there can be.
    ``file``: "riscv", the only one yet; ``numbers`` are the values of the names that stand for
    numbers in it ("harts").  No stream is read by these unless the reader is told to.  Raises
    ``KeyError`` for a release that is not there.
    """
    data = _read(f"{file}.json")
    found = {}
    for idstr, version in data["releases"][release].items():
        build = _Build(version, {"release": release, **numbers}, data["structs"])
        device = next(
            d
            for d in data["layouts"]
            if d["idstr"] == idstr and version in _each(d["version"]) and _has(d, build)
        )
        found[idstr] = _sized(_layout(idstr, version, device, build))
    return found


def _sized(layout: dict[str, Any]) -> dict[str, Any]:
    """``layout`` as descriptions have it: with the sizes of structs, and no arrays of one element."""
    for field in layout["fields"]:
        if "struct" in field:
            parts = _sized(field["struct"])["fields"]
            field["size"] = sum(p["size"] * p.get("array_len", 1) for p in parts)
        if field.get("array_len") == 1:
            del field["array_len"]
    for part in layout.get("subsections", ()):
        _sized(part)
    return layout


@cache
def _layouts() -> dict[tuple[str, int], tuple[dict[str, Any], ...]]:
    files = [_read(name) for name in _FILES]
    structs = {name: struct for data in files for name, struct in data["structs"].items()}
    found: dict[tuple[str, int], tuple[dict[str, Any], ...]] = {}
    for device in (device for data in files for device in data["layouts"]):
        for idstr, version, variant in product(
            _each(device["idstr"]), _each(device["version"]), device.get("variants", [{}])
        ):
            layout = _layout(idstr, version, device, _Build(version, variant, structs))
            others = found.get((idstr, version), ())
            # Variants may differ only in what other versions have.
            if layout not in others:
                found[idstr, version] = (*others, layout)
    return found


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _layout(name: str, version: int, data: Any, build: _Build) -> dict[str, Any]:
    if isinstance(data, list):
        data = {"fields": data}
    layout = {"vmsd_name": name, "version": version, "fields": _fields(data["fields"], build)}
    if "subsections" in data:
        layout["subsections"] = [
            _layout(part["name"], _version(part["version"], build), part, build)
            for part in data["subsections"]
            if _has(part, build)
        ]
    return layout


def _version(stated: int | dict[str, int], build: _Build) -> int:
    return stated[str(build.version)] if isinstance(stated, dict) else stated


def _has(options: dict[str, Any], build: _Build) -> bool:
    """Whether what ``options`` belong to is in the layout."""
    since, until = options.get("since", build.version), options.get("until", build.version)
    target, release = build.variant.get("target"), build.variant.get("release")
    return bool(
        since <= build.version <= until
        and options.get("target", target) == target
        and release in options.get("releases", [release])
    )


def _fields(fields: list[Any], build: _Build) -> list[dict[str, Any]]:
    built = []
    for field in fields:
        if isinstance(field, dict):
            group = field["fields"]
            inner = build.structs[group] if isinstance(group, str) else group
            built += _fields(inner, build) * field.get("repeat", 1)
            continue
        name, kind, *rest = field
        options = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        if _has(options, build):
            built.append(_field(name, kind, rest, options, build))
    return built


def _field(
    name: str, kind: str, numbers: list[int | str], options: dict[str, Any], build: _Build
) -> dict[str, Any]:
    kind, _, struct = str(build.variant.get(kind, kind)).partition(" ")
    field: dict[str, Any] = {"name": name, "type": kind}
    if struct:
        field["struct"] = _layout(struct, 0, build.structs[struct], build)
    elif kind in _SIZES:
        field["size"] = _SIZES[kind]
    for number in numbers:
        key = "array_len" if struct or kind in _SIZES else "size"
        field[key] = build.variant.get(str(number), number)
    if "if" in options:
        field["if"] = options["if"]
    return field
