"""vmstate bodies that nothing in the stream describes (until 2.2): their layout is known beforehand.

``devices.schemas`` has the layouts.  In one, a field may depend on the values before it: on whether
it is there at all, on the number of its elements, on the bytes of a buffer.  Subsections may be
absent.  All integers are big-endian.  Origin: the save functions of each device.
"""

import operator
from collections import ChainMap
from typing import Any, BinaryIO, NamedTuple

from construct import Array, Container

from .combinators import Body, Node, Whole
from .constants import SUBSECTION
from .errors import GrammarError
from .reading import Reading
from .vmstate import Numbers, enter, subsection, transcript

Values = ChainMap[str, Any]
"""What fields hold by name: those of the innermost structure first, then of the ones around it."""

CONDITIONS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": operator.and_,
}
"""When a field is there, by the operator between another field's value and a number."""


class Field(NamedTuple):
    """A field of a layout; a str as ``size`` or ``elements`` names the field that holds the number.

    ``condition`` is None, or field, operator and number.
    """

    name: str
    kind: str
    size: int | str
    elements: int | str | None
    condition: list[Any] | None
    struct: "Layout | None"

    def grammar(self, values: Values) -> Any:
        """The construct of the field behind ``values``; None if it is absent."""

        def number(stated: Any) -> Any:
            return max(values[stated], 0) if isinstance(stated, str) else stated

        if self.condition is not None:
            name, condition, operand = self.condition
            if not CONDITIONS[condition](values[name], operand):
                return None
        count = number(self.elements)
        if self.struct is None:
            return Numbers(self.kind, number(self.size), count)
        state = State(self.struct, values)
        return state if count is None else Array(count, state)


class Layout(NamedTuple):
    """Fields and subsections of a device or of a part of it."""

    name: str
    version: int
    fields: list[Field]
    subsections: "dict[str, Layout]"


class State(Node):
    """What follows ``layout``, inside of structures with the values ``around`` so far.

    Its value is that of a described vmstate, with the absent fields and subsections left out.
    """

    def __init__(self, layout: Layout, around: Values) -> None:
        super().__init__()
        self.layout = layout
        self.around = around

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        enter(len(self.layout.fields), stream, context)
        values = self.around.new_child()
        fields = []
        for field in self.layout.fields:
            grammar = field.grammar(values)
            if grammar is not None:
                values[field.name] = grammar._parse(stream, context, path)
                fields.append([field.name, values[field.name]])
        subsections = [
            _subsection(part, values)._parse(stream, context, path)
            for part in self.layout.subsections.values()
            if _begins(stream, part.name)
        ]
        return Container(fields=fields, subsections=subsections)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        values = self.around.new_child()
        given = iter(obj.fields)
        for field in self.layout.fields:
            grammar = field.grammar(values)
            if grammar is not None:
                _, values[field.name] = next(given)
                grammar._build(values[field.name], stream, context, path)
        for part in obj.subsections:
            layout = self.layout.subsections[part.name]
            _subsection(layout, values)._build(part, stream, context, path)
        return obj


def _begins(stream: BinaryIO, name: str) -> bool:
    """Whether the next bytes are the mark and the name of a subsection."""
    head = bytes([SUBSECTION, len(name)]) + name.encode("latin-1")
    found = stream.read(len(head))
    stream.seek(-len(found), 1)
    return found == head


def _subsection(layout: Layout, values: Values) -> Any:
    return subsection(layout.name, layout.version, State(layout, values))


def _layout(schema: dict[str, Any]) -> Layout:
    fields = [
        Field(
            field["name"],
            field["type"],
            field.get("size", 0),
            field.get("array_len"),
            field.get("if"),
            _layout(field["struct"]) if "struct" in field else None,
        )
        for field in schema["fields"]
    ]
    parts = [_layout(part) for part in schema.get("subsections", [])]
    return Layout(schema["vmsd_name"], schema["version"], fields, {p.name: p for p in parts})


def body(schema: dict[str, Any]) -> Body:
    """The body of a section by a layout of ``devices.schemas``."""
    return Body("vmstate", Whole("vmstate.truncated", State(_layout(schema), Values())), transcript)


def end(body: Body, stream: BinaryIO, state: Reading) -> int | None:
    """Where ``body`` would end if it began here, None if it cannot be read; nothing is read yet."""
    start, fields = stream.tell(), state.fields
    try:
        body.grammar.parse_stream(stream, reading=state)
        return stream.tell()
    except GrammarError:
        return None
    finally:
        stream.seek(start)
        state.fields = fields
