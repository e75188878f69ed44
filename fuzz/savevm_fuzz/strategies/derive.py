"""Values of the grammar's constructs, drawn as a parse would find them.

A construct is walked as when it parses, but every field is drawn instead of read.  The walk has the
context of a parse, runs the same hooks and keeps the same ``Reading``, so what depends on earlier
bytes is asked of the grammar itself, and a field that is added to a schema is drawn without more.

What the grammar takes from the input where a value must be chosen is registered from outside, with
`special`, `chosen`, `concluded` and `announced`.
"""

import inspect
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, singledispatch
from types import FunctionType
from typing import Any, Final, Protocol, TypeVar

import construct as c
from hypothesis import reject
from hypothesis import strategies as st

from savevm_spec.combinators import (
    Announced,
    Chosen,
    Noted,
    Reported,
    Ruled,
    While,
    Whole,
    Wrapper,
)
from savevm_spec.dialects import DIALECTS, Dialect
from savevm_spec.reading import Reading, reading

__all__ = ["built", "simplest", "values"]

NEWEST_FIRST: Final = [*reversed(DIALECTS.values())]
# Elements of a list, bytes of a name or of contents that are drawn one by one.
FEW: Final = 6
SHORT: Final = 24

T = TypeVar("T")
Draw = Callable[[Any, Any], Any]


class Drawer(Protocol):
    """The function that a composite strategy draws with."""

    def __call__(self, strategy: st.SearchStrategy[T], /) -> T: ...


class Exhausted(Exception):
    """There is no value any more, so the list that it would be in ends."""


@dataclass(slots=True, kw_only=True)
class Drawing(Reading):
    """What is known of the stream that is being drawn.

    While ``simplest`` is set nothing is drawn: every value is the one that shrinking goes to.
    ``few`` is set while a number is drawn that says how many bytes follow.  ``shows`` is the latest
    word of RAM if it is the page that a reader infers the page size from, ``text`` that of the
    description.  ``by_schema``: the body before is one of which the record behind tells that it is.
    """

    draw: Drawer
    dialect: Dialect
    simplest: bool = False
    few: bool = False
    shows: Any = None
    text: bytes = b""
    by_schema: bool = False

    def of(self, strategy: st.SearchStrategy[T], simplest: T) -> T:
        """A value of the strategy, which shrinks to ``simplest``."""
        return simplest if self.simplest else self.draw(strategy)

    def integer(self, least: int, most: int) -> int:
        """An integer, at most ``FEW`` of what ``few`` counts."""
        most = min(most, max(FEW, least)) if self.few else most
        return self.of(st.integers(least, most), least)

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``, of which the first is the simplest; raises ``Exhausted``."""
        if not options:
            raise Exhausted
        return options[0] if len(options) == 1 else self.of(st.sampled_from(options), options[0])

    def binary(self, least: int, most: int) -> bytes:
        """Bytes; long ones repeat what is short, as they cost much to draw and to shrink."""
        if not most:
            return b""
        if least <= SHORT:
            return self.of(st.binary(min_size=least, max_size=min(most, SHORT)), bytes(least))
        piece = self.of(st.binary(min_size=1, max_size=SHORT), b"\0")
        return (piece * (least // len(piece) + 1))[:least]

    def several(self, element: Callable[[], T], least: int = 0, most: int = FEW) -> list[T]:
        """A list of what ``element`` draws."""
        found: list[T] = []
        while len(found) < (least if self.simplest else most):
            sure = len(found) < least
            try:
                another = [element()] if self.simplest else self.draw(_another(element, sure))
            except Exhausted:
                break
            if not another:
                break
            found += another
        return found

    def many(self, element: Callable[[], T], count: int) -> list[T]:
        """A list of ``count`` elements, of which the last ones are the same if they are many."""
        found = [element() for _ in range(min(count, FEW))]
        return found + found[-1:] * (count - len(found))

    @contextmanager
    def simply(self) -> Iterator[None]:
        """Where ``simplest`` is set."""
        before, self.simplest = self.simplest, True
        try:
            yield
        finally:
            self.simplest = before


@st.composite
def _another(draw: Drawer, element: Callable[[], T], sure: bool) -> list[T]:
    """One element, or none; as a strategy, so that shrinking sees what belongs together."""
    return [element()] if sure or draw(st.integers(0, 7)) else []


def drawing(context: Any) -> Drawing:
    """The state of the drawing that ``context`` is of."""
    state = reading(context)
    assert isinstance(state, Drawing)
    return state


@st.composite
def values(
    draw: Drawer, /, construct: Any, dialect: str | Dialect | None = None, **context: Any
) -> Any:
    """What ``construct``, any of the grammar, builds: ``construct.build(value, **context)``.

    Where it depends on the stream around it, that is one of ``dialect`` (None: of any), with
    nothing before.  Raises ``NotImplementedError`` for a class of constructs that the grammar does
    not have.
    """
    if dialect is None:
        dialect = draw(st.sampled_from(NEWEST_FIRST))
    elif isinstance(dialect, str):
        dialect = DIALECTS[dialect]
    return drawn(construct, _root(draw, dialect, context))


def built(
    construct: Any, dialect: str | Dialect | None = None, **context: Any
) -> st.SearchStrategy[bytes]:
    """The bytes of `values`."""

    def build(value: Any) -> bytes:
        data: bytes = construct.build(value, **context)
        return data

    return values(construct, dialect, **context).map(build)


def simplest(construct: Any, dialect: str | None = None, **context: Any) -> Any:
    """The value that `values` shrinks to if nothing else is asked of it."""
    root = _root(_nothing, DIALECTS[dialect] if dialect else NEWEST_FIRST[0], context)
    with drawing(root).simply():
        return drawn(construct, root)


def _nothing(strategy: st.SearchStrategy[T]) -> T:
    raise AssertionError("nothing is drawn")


def _root(draw: Drawer, dialect: Dialect, given: Mapping[str, Any]) -> Any:
    """A context with nothing before; footers came with the configuration."""
    state = Drawing(draw=draw, dialect=dialect, footers=dialect.configuration)
    root = c.Container(given)
    root._params = c.Container(given, reading=state)
    return root


_SPECIAL: Final[dict[Any, Draw]] = {}
_CHOSEN: Final[dict[str, Draw]] = {}
_CONCLUDED: Final[dict[Callable[[Any], Any], Callable[[Any], Any]]] = {}
_ANNOUNCED: Final[dict[int, Callable[[Any], bool]]] = {}


def special(*constructs: Any) -> Callable[[Draw], Draw]:
    """The function draws the values of these constructs, from construct and context."""
    return lambda draw: _SPECIAL.update(dict.fromkeys(constructs, draw)) or draw


def chosen(*rules: str) -> Callable[[Draw], Draw]:
    """The function draws what is held to one of these rules, from the construct under all of its
    rules and the context; the predicates are still asked, once."""
    return lambda draw: _CHOSEN.update(dict.fromkeys(rules, draw)) or draw


def concluded(*conclusions: Any) -> Callable[[Callable[[Any], T]], Callable[[Any], T]]:
    """The function draws from the context what these conclude from the input."""
    return lambda draw: _CONCLUDED.update(dict.fromkeys(conclusions, draw)) or draw


def announced(byte: int) -> Callable[[Callable[[Any], bool]], Callable[[Any], bool]]:
    """The function tells from the context whether there is what ``byte`` announces."""
    return lambda there: _ANNOUNCED.update({byte: there}) or there


def drawn(con: Any, context: Any) -> Any:
    """A value of ``con`` in ``context``, as if it had been parsed there."""
    value = _SPECIAL.get(con, _drawn)(con, context)
    if con.parsed is not None:
        con.parsed(value, context)
    return value


@singledispatch
def _drawn(con: Any, context: Any) -> Any:
    raise NotImplementedError(f"nothing draws {type(con).__name__}: register what does")


register = _drawn.register


def drawn_struct(con: Any, context: Any, **given: Draw) -> Any:
    """A value of a Struct; ``given`` draw the fields of these names."""
    inner = c.Container(_=context, _params=context._params, _parsing=True, _building=False)
    inner._root = context.get("_root", inner)
    state = drawing(context)
    counts = _counts(con)
    found = c.Container()
    # What is made of other fields when it is built needs all of them.
    for field in sorted(con.subcons, key=_is_rebuilt):
        if field.name in given:
            value = _given(field, inner, given[field.name])
        else:
            before, state.few = state.few, field.name in counts
            value = drawn(field, inner)
            state.few = before
        if field.name:
            inner[field.name] = found[field.name] = value
    return found


def _given(field: Any, context: Any, draw: Draw) -> Any:
    if not isinstance(field, c.Renamed):
        return draw(field, context)
    value = _given(field.subcon, context, draw)
    if field.parsed is not None:
        field.parsed(value, context)
    return value


def _is_rebuilt(field: Any) -> bool:
    while isinstance(field, c.Renamed):
        field = field.subcon
    return isinstance(field, c.Rebuild)


class _Probe(int):
    """Stands for a context, and for all in it; notes what it is asked for."""

    def __init__(self, _: int) -> None:
        self.asked: Final[set[Any]] = set()

    def __getitem__(self, name: str) -> "_Probe":
        self.asked.add(name)
        return self

    def __getattr__(self, name: str) -> "_Probe":
        return self[name]


@cache
def _counts(con: Any) -> Set[str]:
    """Names of the fields of a Struct that the length of another one depends on."""
    probe = _Probe(1)
    for field in con.subcons:
        while isinstance(field, c.Subconstruct):
            field = field.subcon
        if isinstance(field, c.Bytes):
            _length(field, probe)
    return probe.asked


def _length(con: Any, context: Any) -> int:
    return int(con.length(context) if callable(con.length) else con.length)


@register
def _(con: c.Struct, context: Any) -> Any:
    return drawn_struct(con, context)


# What has a value of its own


@register
def _(con: c.FormatField, context: Any) -> Any:
    low, high = _range(con)
    return drawing(context).integer(low, high)


def _range(con: Any) -> tuple[int, int]:
    """The integers that a FormatField can be."""
    bits = 8 * struct.calcsize(con.fmtstr)
    signed = con.fmtstr[-1].islower()
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


@register
def _(con: c.Bytes, context: Any) -> Any:
    length = _length(con, context)
    return drawing(context).binary(length, length)


@register(type(c.GreedyBytes))
def _(con: Any, context: Any) -> Any:
    return drawing(context).binary(0, SHORT)


@register
def _(con: c.Const, context: Any) -> Any:
    return con.value


@register
def _(con: c.Mapping, context: Any) -> Any:
    return drawing(context).choice([*con.encmapping])


@register(type(c.Tell))
def _(con: Any, context: Any) -> Any:
    return 0


@register(type(c.Pass))
@register(type(c.Terminated))
def _(con: Any, context: Any) -> Any:
    return None


@register
def _(con: c.Check, context: Any) -> Any:
    return None if con.func(context) else reject()


@register(c.Computed)
@register(c.Rebuild)
def _(con: Any, context: Any) -> Any:
    return con.func(context) if callable(con.func) else con.func


@register
def _(con: Noted, context: Any) -> Any:
    return _CONCLUDED.get(con.conclude, con.conclude)(context)


# What decides between others


@register(c.Renamed)
@register(c.FixedSized)
@register(Wrapper)
def _(con: Any, context: Any) -> Any:
    return drawn(con.subcon, context)


@register
def _(con: c.Switch, context: Any) -> Any:
    key = con.keyfunc(context) if callable(con.keyfunc) else con.keyfunc
    return drawn(con.cases.get(key, con.default), context)


@register
def _(con: c.IfThenElse, context: Any) -> Any:
    true = con.condfunc(context) if callable(con.condfunc) else con.condfunc
    return drawn(con.thensubcon if true else con.elsesubcon, context)


@register
def _(con: Announced, context: Any) -> Any:
    there = _ANNOUNCED.get(con.byte, lambda context: drawing(context).choice([False, True]))
    return drawn(con.subcon, context) if there(context) else None


@register
def _(con: Chosen, context: Any) -> Any:
    return drawn(context.schema.grammar, context)


# Lists


@register
def _(con: While, context: Any) -> Any:
    return drawing(context).several(lambda: drawn(con.subcon, context))


@register
def _(con: c.Array, context: Any) -> Any:
    count = con.count(context) if callable(con.count) else con.count
    return drawing(context).many(lambda: drawn(con.subcon, context), count)


@register
def _(con: c.RepeatUntil, context: Any) -> Any:
    """The simplest element is one that ends the list."""
    state = drawing(context)
    found: list[Any] = []

    def ended() -> bool:
        return bool(found) and con.predicate(found[-1], found, context)

    def element() -> None:
        if ended():
            raise Exhausted
        found.append(drawn(con.subcon, context))

    state.several(element, most=2 * FEW)
    with state.simply():
        while not ended():
            element()
    return found


@register
def _(con: c.FocusedSeq, context: Any) -> Any:
    """Only that of a PrefixedArray: the focus is an Array, behind the number of its elements."""
    fields = {field.name: field.subcon for field in con.subcons}
    element = fields[con.parsebuildfrom].subcon
    least, most = _lengths(fields["count"].subcon, context)
    return drawing(context).several(lambda: drawn(element, context), least, min(most, FEW))


@register
def _(con: c.Prefixed, context: Any) -> Any:
    least, most = _lengths(con.lengthfield, context)
    return drawing(context).binary(least, min(most, SHORT))


@register
def _(con: c.StringEncoded, context: Any) -> Any:
    state = drawing(context)
    least, most = _lengths(con.subcon.lengthfield, context)
    letters = st.characters(codec=con.encoding)
    # Of characters, of which a code may have more than one byte for each.
    text = st.text(letters, min_size=least, max_size=min(most // 4, SHORT))
    return state.of(text, "0" * least)


# What is held to rules

_HOLDS: Final = (Whole, Ruled, Reported, c.ExprValidator)


class _Held:
    """What is under rules and predicates, in a context."""

    def __init__(self, con: Any, context: Any) -> None:
        self.rules: list[str] = []
        self.context: Final = context
        self._predicates: list[Callable[..., bool]] = []
        while isinstance(con, _HOLDS):
            if isinstance(con, (Ruled, Reported)):
                self.rules.append(con.rule)
            if isinstance(con, c.ExprValidator):
                self._predicates.insert(0, con._validate)
            con = con.subcon
        self.base: Final = con

    def admits(self, value: Any) -> bool:
        """Whether all predicates are true, asked from the innermost on."""
        return all(true(value, self.context, "") for true in self._predicates)

    def drawn(self) -> Any:
        """A value that may be admitted."""
        for rule in self.rules:
            if rule in _CHOSEN:
                return _CHOSEN[rule](self.base, self.context)
        if self._predicates and isinstance(self.base, c.FormatField):
            return self._integer()
        if named := [*filter(self.admits, self._named(str))]:
            return drawing(self.context).choice(sorted(named))
        return drawn(self.base, self.context)

    def _integer(self) -> int:
        low, high, some = self.bounds()
        state = drawing(self.context)
        return state.choice(some) if some else state.integer(low, high)

    def bounds(self) -> tuple[int, int, list[int]]:
        """The least and the greatest integer, and all if they are few and apart from each other."""
        low, high = _range(self.base)
        near = {n + by for n in self._named(int) for by in (-1, 0, 1)}
        tried = sorted(n for n in {low, high, *near} if low <= n <= high)
        found = [n for n in tried if self.admits(n)] or [low, high]
        low, high = found[0], found[-1]
        between = {n for n in tried if low <= n <= high}
        apart = len(between) > len(found) and not self.admits((low + high) // 2)
        return low, high, found if apart else []

    def _named(self, kind: type[T]) -> set[T]:
        """Constants of a kind that the predicates know."""
        return {
            value
            for predicate in self._predicates
            for value in _constants(predicate)
            if type(value) is kind
        }


@cache
def _constants(predicate: Callable[..., Any]) -> frozenset[int | str]:
    """Numbers and strings that a predicate, or what it calls, names, also in collections."""
    found: set[int | str] = set()
    seen: set[int] = set()
    left: list[Any] = [predicate]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        match value:
            case int() | str():
                found.add(value)
            case Mapping():
                left += [*value.keys(), *value.values()]
            case Set() | list() | tuple():
                left += value
            case FunctionType():
                names = inspect.getclosurevars(value)
                left += [*names.nonlocals.values(), *names.globals.values()]
                left += value.__code__.co_consts
    return frozenset(found)


@register(Whole)
@register(Ruled)
@register(Reported)
@register(c.ExprValidator)
def _(con: Any, context: Any) -> Any:
    held = _Held(con, context)
    value = held.drawn()
    return value if held.admits(value) else reject()


def _lengths(con: Any, context: Any) -> tuple[int, int]:
    """The least and the greatest length that a field can say."""
    low, high, _ = _Held(con, context).bounds()
    return low, high
