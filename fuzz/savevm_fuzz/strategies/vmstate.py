"""Device state: descriptions as a VMDESCRIPTION has them, and bodies that follow them."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import construct as c
from hypothesis import strategies as st

from savevm_spec import schema, vmstate
from savevm_spec.constants import POINTER_NULL, RAM_PAGE_SIZES
from savevm_spec.devices import pointer_arrays
from savevm_spec.vmdesc import Object

from .derive import SHORT, Drawer, drawing, drawn, register, values

__all__ = ["DeviceState", "descriptions", "devices", "documents", "dumps"]

# Structures in structures.
DEPTH: Final = 2
ELEMENTS_MAX: Final = 3


# Bodies by a description


@register
def _(con: vmstate.Numbers, context: Any) -> Any:
    size = con.size * (1 if con.count is None else con.count)
    return con.parse(drawing(context).binary(size, size))


@register
def _(con: vmstate.Elements, context: Any) -> Any:
    if con.count is None:
        return drawn(con.element, context)
    count = con.count if con.size else 0
    return drawing(context).many(lambda: drawn(con.element, context), count)


@register
def _(con: vmstate.Linked, context: Any) -> Any:
    return [drawn(element, context) for element in con.layouts]


@register
def _(con: vmstate.Pointers, context: Any) -> Any:
    """What begins like a null pointer cannot be told from one."""
    state = drawing(context)

    def element() -> Any:
        if state.choice([True, False]):
            return None
        value = drawn(con.element, context)
        return None if con.element.build(value)[:1] == bytes([POINTER_NULL]) else value

    return state.many(element, con.count)


@register
def _(con: vmstate.Layout, context: Any) -> Any:
    return c.Container(
        fields=[[name, drawn(field, context)] for name, field in con.fields],
        subsections=[drawn(subsection, context) for subsection in con.subsections],
    )


# Bodies by a schema


@register
def _(con: schema.State, context: Any) -> Any:
    """Numbers that others depend on are small."""
    state = drawing(context)
    counts = _counts(con.layout)
    found = con.around.new_child()
    fields = []
    for field in con.layout.fields:
        grammar = field.grammar(found)
        if grammar is not None:
            number = field.name in counts and field.struct is None and field.elements is None
            value = state.integer(0, ELEMENTS_MAX) if number else drawn(grammar, context)
            found[field.name] = value
            fields.append([field.name, value])
    parts = [part for part in con.layout.subsections.values() if state.choice([False, True])]
    subsections = [drawn(schema._subsection(part, found), context) for part in parts]
    return c.Container(fields=fields, subsections=subsections)


def _counts(layout: schema.Layout) -> set[str]:
    """Names of the fields, of this structure or around it, that sizes and numbers of elements are."""
    parts = [f.struct for f in layout.fields if f.struct is not None]
    inner = (_counts(part) for part in [*parts, *layout.subsections.values()])
    own = {n for f in layout.fields for n in (f.size, f.elements) if isinstance(n, str)}
    return own.union(*inner)


# Descriptions


def dumps(value: Any) -> str:
    """``value`` as JSON; the keys of an `Object` repeat as its pairs do."""
    match value:
        case Object():
            pairs = (f"{json.dumps(key)}: {dumps(item)}" for key, item in value.pairs)
            return "{" + ", ".join(pairs) + "}"
        case dict():
            return dumps(Object([*value.items()]))
        case list():
            return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


_Described = tuple[Object, int]
"""Descriptions of a field or a vmstate, and its size in bytes."""

_NAMES: Final = st.text(st.characters(codec="utf-8"), max_size=8)
_SHORT_NAMES: Final = st.text(st.characters(codec="latin-1"), max_size=8)
_VERSIONS: Final = st.integers(0, 0x7FFFFFFF)


def _object(pairs: dict[str, Any]) -> Object:
    return Object([*pairs.items()])


_NUMBERS: Final = st.sampled_from([*vmstate.FORMATS])
_BYTES: Final = st.tuples(
    st.sampled_from(["buffer", "unused_buffer", "bitmap"]), st.integers(0, SHORT)
)


@cache
@st.composite
def _plain(draw: Drawer, types: st.SearchStrategy[tuple[str, int]]) -> list[_Described]:
    """A value of one of ``types``, a name and a size in bytes, or an array of them."""
    kind, size = draw(types)
    return [_array(draw, {"name": draw(_NAMES), "type": kind, "size": size})]


@cache
@st.composite
def _plain_structure(draw: Drawer, depth: int) -> list[_Described]:
    """A structure of numbers, or an array of one."""
    nested, size = draw(_layouts(depth - 1, plain=True))
    return [_array(draw, {"name": draw(_NAMES), "type": "struct", "size": size, "struct": nested})]


def _array(draw: Drawer, field: dict[str, Any]) -> _Described:
    count = draw(st.none() | st.integers(1, ELEMENTS_MAX))
    if count is not None:
        field["array_len"] = count
    return _object(field), field["size"] * (count or 1)


@cache
@st.composite
def _structure(draw: Drawer, depth: int) -> list[_Described]:
    """A structure, or an array of one; or a temporary, whose vmstate is the field itself."""
    nested, size = draw(_layouts(depth - 1))
    kind = draw(st.sampled_from(["struct", "tmp", "vstruct"]))
    inner = {"struct": nested} if kind == "struct" else nested
    return [_array(draw, {"name": draw(_NAMES), "type": kind, "size": size, **inner})]


@cache
@st.composite
def _linked(draw: Drawer, depth: int) -> list[_Described]:
    """A list, whose description has the keys of every element."""
    elements = draw(st.lists(_layouts(depth - 1), max_size=ELEMENTS_MAX))
    kind = draw(st.sampled_from(["qtailq", "qlist"]))
    size = sum(1 + size for _, size in elements) + 1
    pairs = [("name", draw(_NAMES)), ("type", kind), ("size", size)]
    for element, _ in elements:
        pairs += element.pairs
    return [(Object(pairs), size)]


@cache
@st.composite
def _pointers(draw: Drawer, depth: int) -> list[_Described]:
    """An array of pointers (since 10.0): parts of one name, null or, behind a mark, present.

    The first part says how many elements there are, unless it is null.
    """
    nested, size = draw(_layouts(depth - 1))
    marker = draw(st.sampled_from(["nullptr", "ptr-marker"]))
    counts = draw(st.lists(st.integers(1, ELEMENTS_MAX), min_size=2, max_size=3))
    null = draw(st.booleans())
    # No other field has such a name.
    name = draw(_NAMES) + "[]\0"
    parts: list[_Described] = []
    for number, count in enumerate(counts):
        field = {"name": name, "array_len": count if number else sum(counts)}
        if null:
            field |= {"type": marker, "size": 1, "array_len": count}
        else:
            field |= {"type": "struct", "size": size, "struct": nested}
        parts.append((_object(field), (1 if null else size) * count))
        null = not null
    return parts


@cache
@st.composite
def _layouts(draw: Drawer, depth: int, plain: bool = False) -> _Described:
    """A vmstate with at most ``depth`` structures in each other, ``plain``: of numbers alone."""
    simple = _plain(_NUMBERS) if plain else _plain(_NUMBERS | _BYTES)
    deep = [_plain_structure] if plain else [_structure, _linked, _pointers]
    field = st.one_of(simple, simple, *(kind(depth) for kind in deep)) if depth else simple
    fields = [f for group in draw(st.lists(field, max_size=4)) for f in group]
    parts = draw(st.lists(_layouts(depth - 1, plain), max_size=2)) if depth else []
    layout = {"vmsd_name": draw(_SHORT_NAMES), "version": draw(_VERSIONS)}
    layout["fields"] = [description for description, _ in fields]
    if parts:
        layout["subsections"] = [description for description, _ in parts]
    heads = (6 + len(description["vmsd_name"]) for description, _ in parts)
    return _object(layout), sum(heads) + sum(size for _, size in [*fields, *parts])


@cache
@st.composite
def _pointer_array(draw: Drawer) -> Object:
    """A vmstate with an array of pointers as QEMU until 9.2 describes it if the first is null."""
    owner, _, name = draw(st.sampled_from(sorted(pointer_arrays()))).rpartition(".")
    field = {"name": name, "type": "struct", "struct": _object({}), "size": 1}
    description, _ = _array(draw, field)
    return _object({"vmsd_name": owner, "version": draw(_VERSIONS), "fields": [description]})


@st.composite
def descriptions(draw: Drawer, depth: int = DEPTH, plain: bool = False) -> Object:
    """A device as it stands in the list "devices" of a VMDESCRIPTION, see `dumps`.

    Its fields have at most ``depth`` structures in each other.  It has a vmstate, or, as devices
    of the oldest kind do, only the size of the body in bytes; ``plain``: a vmstate of numbers,
    their arrays and structures.
    """
    head = {"name": draw(_SHORT_NAMES.filter(bool)), "instance_id": draw(st.integers(0, 3))}
    buffer = st.integers(0, SHORT).map(lambda size: _object({"size": size}))
    layout = _layouts(depth, plain).map(lambda described: described[0])
    others = st.one_of(layout, layout, layout, buffer, _pointer_array())
    body = draw(layout if plain else others)
    return Object([*head.items(), *body.pairs])


@st.composite
def documents(draw: Drawer) -> Object:
    """The document of a VMDESCRIPTION: up to three devices and, mostly, the page size in bytes."""
    document: dict[str, Any] = {}
    if size := draw(st.sampled_from([*sorted(RAM_PAGE_SIZES), None])):
        document["page_size"] = size
    # A key of two devices would make the second section of one that of the other.
    document["devices"] = draw(st.lists(descriptions(), max_size=3))
    return _object(document)


@dataclass(frozen=True)
class DeviceState:
    """What a device is described as, the values of its fields and the bytes of its body.

    ``value`` is what the grammar of the body builds; ``state`` the same as in a transcript.
    """

    description: Object
    value: Any
    body: bytes

    @property
    def state(self) -> dict[str, Any]:
        """Fields and subsections, bytes in hex; their digest if only the size is described."""
        return vmstate.body(self.description).transcript(self.value)


@st.composite
def devices(draw: Drawer, description: st.SearchStrategy[Object] | None = None) -> DeviceState:
    """A description and a state that follows it."""
    described = draw(descriptions() if description is None else description)
    grammar = vmstate.body(described).grammar
    value = draw(values(grammar))
    return DeviceState(described, value, grammar.build(value))
