"""Changes to streams, made where the grammar knows something to be.

Each says which rules it may break where it is made.  Others it can break only further on, and before it
only where a reader looks ahead: to the description, and behind a body that nothing delimits.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any, Final, NamedTuple

from savevm_fuzz.seeds import Seed
from savevm_spec.fields import Field
from savevm_spec.rules import rules
from savevm_spec.stream import Type

__all__ = ["Mutant", "Mutation", "mutate"]

# Bytes: of the longest piece that is put in or left out, and of the longest mutant.
_PIECE: Final = 64
_LARGEST: Final = 1 << 18
# How often a change of the header is given up for another one.
_HEADER: Final = 0.9
# A token of a description: a number or a string.
_TOKEN: Final = re.compile(rb'-?\d+|"[^"\\]*"')
_TOKENS: Final = (
    b"0",
    b"-1",
    b"1",
    b"2",
    b"2147483648",
    b"18446744073709551616",
    b'""',
    b"1.5",
    b"{}",
)


class Mutation(NamedTuple):
    """What was changed at ``offset`` of the seed, in bytes, in the field ``path``.

    ``rules`` are those that can be broken there.
    """

    what: str
    offset: int
    path: str
    rules: frozenset[str]


class Mutant(NamedTuple):
    """A changed stream, and what was changed in the seed of that name."""

    data: bytes
    seed: str
    mutations: tuple[Mutation, ...]


class _Edit(NamedTuple):
    """Other bytes in the place of ``length`` bytes at ``offset`` of the seed."""

    offset: int
    length: int
    new: bytes


class _Change(NamedTuple):
    """Edits that belong together, at a field."""

    what: str
    field: Field
    edits: tuple[_Edit, ...]


def mutate(seed: Seed, random: Random, others: Sequence[Seed], times: int = 1) -> Mutant:
    """A stream with up to ``times`` changes; ``others`` are streams to take records and names from.

    The same seed and the same state of ``random`` give the same.
    """
    changes: list[_Change] = []
    taken: list[tuple[int, int]] = []
    for _ in range(times):
        change = _change(seed, random, others)
        places = [(edit.offset, edit.offset + edit.length) for edit in change.edits]
        # What overlaps would change what is no longer there.
        if all(end < begin or finish < start for start, end in places for begin, finish in taken):
            changes.append(change)
            taken += places
    data = seed.data
    for edit in sorted((e for c in changes for e in c.edits), reverse=True):
        data = data[: edit.offset] + edit.new + data[edit.offset + edit.length :]
    data = _totalled(data, random)[:_LARGEST]
    return Mutant(data, seed.name, tuple(_told(change, seed, len(data)) for change in changes))


def _told(change: _Change, seed: Seed, size: int) -> Mutation:
    """A change, in a stream that then has ``size`` bytes."""
    offset = min(edit.offset for edit in change.edits)
    found = set(breakable(change.field))
    for edit in change.edits:
        number = bisect_right(seed.fields, edit.offset, key=lambda field: field.offset)
        found |= breakable(seed.fields[number - 1]) if number else frozenset()
    if offset >= size:
        found |= _of_cuts()
    if offset == len(seed.data):
        found.update(_of_area("record") + _of_area("stream"))
    return Mutation(change.what, offset, change.field.path, frozenset(found))


@cache
def breakable(field: Field) -> frozenset[str]:
    """The rules that other bytes in the place of a field can break at the field."""
    found = {*field.rules}
    # Some live sections are an area of their own.
    for area in ((field.truncated or "stream").partition(".")[0], field.section):
        found.update(_of_area(area) if area else ())
    # A byte that announces something is, when it is another one, the type of a record or a footer.
    if field.length == 1:
        found.update(_of_area("section") + _of_types())
    return frozenset(found)


@cache
def _of_types() -> tuple[str, ...]:
    """The rules of the type of a record."""
    found = ["footer.missing"]
    con: Any = Type
    while con is not None:
        found.append(getattr(con, "rule", "stream.truncated"))
        con = getattr(con, "subcon", None)
    return tuple(found)


@cache
def _of_area(area: str) -> tuple[str, ...]:
    """Rules that the grammar checks in passing and not at one field."""
    limits = f"limit.{area}"
    return tuple(id for id in rules() if id.startswith((f"{area}.", limits)))


@cache
def _of_cuts() -> frozenset[str]:
    """The rules that input which ends too early breaks."""
    return frozenset(rule.id for rule in rules().values() if rule.errno == "EIO")


def _totalled(data: bytes, random: Random) -> bytes:
    """Version 2 states its length: as often as not it is made to fit, or all changes break one rule."""
    if data[:8] == b"QEVM\0\0\0\2" and len(data) >= 16 and random.random() < 0.5:
        return data[:8] + (len(data) - 16).to_bytes(8) + data[16:]
    return data


# Changes

_Maker = Callable[[Seed, Field, int, Random, Sequence[Seed]], "_Change | None"]


def _change(seed: Seed, random: Random, others: Sequence[Seed]) -> _Change:
    """Some change.  Where one of a kind cannot be made, one of another kind is."""
    while seed.fields:
        # A field of many bytes is no more worth than a small one, and the header is soon refused.
        number = random.randrange(len(seed.fields))
        if seed.fields[number].path.startswith("header.") and random.random() < _HEADER:
            continue
        maker = random.choices(_MAKERS, _WEIGHTS)[0]
        if change := maker(seed, seed.fields[number], number, random, others):
            return change
    nothing = Field(0, 0, "", (), None, None)
    new = random.randbytes(random.randint(1, 16))
    return _Change(f"{new.hex()} put in", nothing, (_Edit(0, 0, new),))


def _number(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    if field.length not in (1, 2, 4, 8):
        return None
    bits = 8 * field.length
    old = int.from_bytes(seed.data[field.offset : field.end])
    # Flags are the low bits of words.
    low = random.randrange(12 if bits == 64 and random.random() < 0.5 else bits)
    peer = seed.fields[random.randrange(len(seed.fields))]
    new = random.choice(
        (
            old + 1,
            old - 1,
            old ^ 1 << low,
            old ^ 1 << random.randrange(bits),
            0,
            (1 << bits) - 1,
            1 << (bits - 1),
            old << 1,
            int.from_bytes(old.to_bytes(field.length), "little"),
            int.from_bytes(seed.data[peer.offset : peer.end][-field.length :]),
            random.getrandbits(bits),
        )
    ) % (1 << bits)
    return (
        _set(field, new.to_bytes(field.length), f"{old:#x} became {new:#x}") if new != old else None
    )


def _set(field: Field, new: bytes, what: str) -> _Change:
    return _Change(what, field, (_Edit(field.offset, field.length, new),))


def _bytes(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    if not field.length:
        return None
    at = random.randrange(field.offset, field.end)
    size = min(random.randint(1, 8), field.end - at)
    new = random.randbytes(size)
    if new == seed.data[at : at + size]:
        return None
    return _Change(f"{size} bytes became {new.hex()}", field, (_Edit(at, size, new),))


def _length_of(seed: Seed, number: int) -> Field | None:
    """The field before one, if that states its length."""
    field, before = seed.fields[number], seed.fields[number - 1]
    if number == 0 or before.length not in (1, 2, 4, 8):
        return None
    stated = int.from_bytes(seed.data[before.offset : before.end])
    return before if stated == field.length else None


def _resized(
    seed: Seed, number: int, random: Random, edit: _Edit, what: str, *, always: bool = False
) -> _Change | None:
    """An edit within a field, mostly with the length before it made to fit."""
    field, length = seed.fields[number], _length_of(seed, number)
    if always and length is None:
        return None
    edits = [edit]
    if length is not None and (always or random.random() < 0.75):
        new = field.length + len(edit.new) - edit.length
        if new.bit_length() > 8 * length.length:
            return None
        edits.append(_Edit(length.offset, length.length, new.to_bytes(length.length)))
        what += ", with its length"
    return _Change(what, field, tuple(edits))


def _piece(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    """Something put in or left out."""
    at = random.randint(field.offset, field.end)
    size = min(random.choice((1, 2, 4, 8, random.randint(1, _PIECE))), field.end - at)
    if random.random() < 0.5 and size:
        return _resized(seed, number, random, _Edit(at, size, b""), f"{size} bytes left out")
    new = random.randbytes(size or 1)
    return _resized(seed, number, random, _Edit(at, 0, new), f"{new.hex()} put in")


def _name(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    """Another name, of this stream or of another one."""
    length = _length_of(seed, number)
    if length is None or length.length != 1:
        return None
    source = random.choice([seed, *others[:1], random.choice(others) if others else seed])
    names = [
        source.data[f.offset : f.end]
        for n, f in enumerate(source.fields)
        if (before := _length_of(source, n)) is not None and before.length == 1
    ]
    old = seed.data[field.offset : field.end]
    new = random.choice([*names, old[:-1], old + b"x", old.swapcase(), b"", old + b"\0"])
    if new == old:
        return None
    edit = _Edit(field.offset, field.length, new[:255])
    return _resized(seed, number, random, edit, f"{old!r} became {new[:255]!r}", always=True)


def _cut(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    at = random.choice((field.offset, random.randint(field.offset, field.end)))
    if at == len(seed.data):
        return None
    return _Change(f"cut at {at}", field, (_Edit(at, len(seed.data) - at, b""),))


def _field(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    """A field left out, twice, or in the place of another."""
    data = seed.data[field.offset : field.end]
    match random.randrange(3):
        case 0:
            return _set(field, b"", "left out")
        case 1:
            return _set(field, data * 2, "there twice")
    other = seed.fields[random.randrange(len(seed.fields))]
    new = seed.data[other.offset : other.end]
    return _set(field, new, f"the field at {other.offset} in its place") if new != data else None


def _records(seed: Seed) -> list[tuple[int, int]]:
    """Begin and end of each record; what stands behind the last field is part of the last."""
    of_record = [f for f in seed.fields if f.path.startswith("body.records.")]
    if not of_record:
        return []
    first = of_record[0].path
    begins = [
        f.offset
        for before, f in zip([None, *of_record], of_record, strict=False)
        if f.path == first and (before is None or before.path != first)
    ]
    return list(zip(begins, [*begins[1:], of_record[-1].end], strict=True))


def _record(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    """A record left out, twice, in another place, or one of another stream put in."""
    records = _records(seed)
    if not records:
        return None
    begin, end = random.choice(records)
    place = random.choice(records)[0]
    record = seed.data[begin:end]
    at = next(f for f in seed.fields if f.offset == begin)
    match random.randrange(4):
        case 0:
            return _Change("record left out", at, (_Edit(begin, end - begin, b""),))
        case 1:
            return _Change(f"record also at {place}", at, (_Edit(place, 0, record),))
        case 2 if not begin <= place <= end:
            moved = (_Edit(place, 0, record), _Edit(begin, end - begin, b""))
            return _Change(f"record moved to {place}", at, moved)
        case 3 if others:
            source = random.choice(others)
            if found := _records(source):
                start, stop = random.choice(found)
                what = f"the record at {start} of {source.name} put in"
                return _Change(what, at, (_Edit(begin, 0, source.data[start:stop]),))
    return None


def _token(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    """A number or a string of the description, with the length of the text made to fit."""
    texts = [n for n, f in enumerate(seed.fields) if f.path == "body.vmdescription.text"]
    if not texts:
        return None
    text = seed.fields[texts[-1]]
    tokens = list(_TOKEN.finditer(seed.data, text.offset, text.end))
    if not tokens:
        return None
    token = random.choice(tokens)
    old = token[0]
    near = [str(int(old) + step).encode() for step in (1, -1)] if old[:1] != b'"' else []
    new = random.choice([*near, *_TOKENS, random.choice(tokens)[0]])
    if new == old:
        return None
    edit = _Edit(token.start(), len(old), new)
    what = f"{old.decode('latin-1')} became {new.decode('latin-1')}"
    return _resized(seed, texts[-1], random, edit, what)


def _behind(
    seed: Seed, field: Field, number: int, random: Random, others: Sequence[Seed]
) -> _Change | None:
    new = random.choice((b"\0", random.randbytes(random.randint(1, 16))))
    last = seed.fields[-1]
    return _Change(f"{new.hex()} behind the end", last, (_Edit(len(seed.data), 0, new),))


_KINDS: Final[dict[_Maker, int]] = {
    _number: 40,
    _bytes: 15,
    _piece: 8,
    _name: 8,
    _cut: 6,
    _field: 6,
    _record: 10,
    _token: 8,
    _behind: 1,
}
_MAKERS: Final = tuple(_KINDS)
_WEIGHTS: Final = tuple(_KINDS.values())
