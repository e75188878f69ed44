"""What the grammar adds to ``construct``: rules, and fields that the bytes themselves announce.

Everything here parses and builds.  Rules are checked against bytes, so they bind parsing; a value
that a validator of ``construct`` refuses raises its ``ConstructError`` when built.
"""

from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from construct import (
    Construct,
    ConstructError,
    ExprValidator,
    GreedyBytes,
    Int8ub,
    PascalString,
    Prefixed,
    StreamError,
    Subconstruct,
)

from .errors import GrammarError
from .reading import reading

Counted = PascalString(Int8ub, "latin-1")
"""A name behind its u8 length in bytes; every byte is one character of the same code."""


class Node(Construct):  # type: ignore[misc]
    """Base of the constructs that read and write by themselves."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        raise NotImplementedError

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        raise NotImplementedError


class Wrapper(Subconstruct):  # type: ignore[misc]
    """Base of the constructs around one other, as which they build."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return self.subcon._parsereport(stream, context, path)


class Whole(Wrapper):
    """Input that ends inside ``subcon`` breaks ``rule`` at the end of the input."""

    def __init__(self, rule: str, subcon: Any) -> None:
        super().__init__(subcon)
        self.rule = rule

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        try:
            return super()._parse(stream, context, path)
        except StreamError as error:
            raise GrammarError(self.rule, stream.seek(0, 2)) from error


class Ruled(Wrapper):
    """Bytes that ``subcon`` refuses break ``rule``, ``at`` bytes behind where it starts.

    Input that ends inside is not refused bytes, unless it is a ``frame`` of its own.
    """

    def __init__(self, rule: str, subcon: Any, at: int = 0, frame: bool = False) -> None:
        super().__init__(subcon)
        self.rule = rule
        self.at = at
        self.frame = frame

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        start = stream.tell()
        try:
            return super()._parse(stream, context, path)
        except ConstructError as error:
            if isinstance(error, StreamError) and not self.frame:
                raise
            raise GrammarError(self.rule, start + self.at, str(error)) from error


def held(rule: str, subcon: Any, true: Callable[[Any, Any], bool], at: int = 0) -> Ruled:
    """``subcon`` whose value breaks ``rule`` unless ``true(value, context)``."""
    return Ruled(rule, ExprValidator(subcon, true), at)


class Reported(Wrapper):
    """A value of which ``fine(value)`` is false is a finding of ``rule`` where it starts."""

    def __init__(self, rule: str, subcon: Any, fine: Callable[[Any], bool]) -> None:
        super().__init__(subcon)
        self.rule = rule
        self.fine = fine

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        start = stream.tell()
        value = super()._parse(stream, context, path)
        if not self.fine(value):
            reading(context).report(self.rule, start)
        return value


class Noted(Node):
    """No bytes: what a parse concludes from its context; building takes it as given."""

    def __init__(self, conclude: Callable[[Any], Any]) -> None:
        super().__init__()
        self.flagbuildnone = True
        self.conclude = conclude

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return self.conclude(context)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        return obj


def next_byte(stream: BinaryIO) -> int | None:
    """The byte that the next read begins with; None at the end of the input."""
    byte = stream.read(1)
    stream.seek(-len(byte), 1)
    return byte[0] if byte else None


class Announced(Wrapper):
    """``subcon`` if the next byte is ``byte``, else None."""

    def __init__(self, byte: int, subcon: Any) -> None:
        super().__init__(subcon)
        self.flagbuildnone = True
        self.byte = byte

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return super()._parse(stream, context, path) if next_byte(stream) == self.byte else None

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        return None if obj is None else super()._build(obj, stream, context, path)


class While(Wrapper):
    """A list of ``subcon`` for as long as ``more(stream, context)``."""

    def __init__(self, more: Callable[[BinaryIO, Any], bool], subcon: Any) -> None:
        super().__init__(subcon)
        self.more = more

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        values = []
        while self.more(stream, context):
            values.append(super()._parse(stream, context, path))
        return values

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        return [super(While, self)._build(value, stream, context, path) for value in obj]


class Body(NamedTuple):
    """A kind of section body: its grammar, and what a transcript tells of its value."""

    kind: str
    grammar: Any
    transcript: Callable[[Any], dict[str, Any]]


class Chosen(Node):
    """The grammar of the ``Body`` that stands as ``schema`` in the context."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return context.schema.grammar._parsereport(stream, context, path)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        return context.schema.grammar._build(obj, stream, context, path)


def limited_bytes(length: Any) -> Any:
    """Bytes behind their ``length``."""
    return Prefixed(length, GreedyBytes)
