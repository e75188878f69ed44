"""What a vector is, and the changes that make a good stream a bad one."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from savevm_conformance.seeds import seeds
from savevm_conformance.wire import Wire, be32, counted
from savevm_spec.rules import rules

Verdict = Literal["accept", "reject", "either"]
# Of which architecture, with which options, and of which releases a QEMU is that loads a stream.
Machine = dict[str, Any]
# That which the streams written by hand are of.
SPIKE: Final[Machine] = {
    "arch": "riscv64",
    "argv": ["-M", "spike", "-m", "16K", "-bios", "none"],
    "since": "5.2",
}
END: Final = "end of the input"


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that is reported while reading goes on; offset in the input, section or None."""

    rule: str
    offset: int
    section: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """Reading to the end.  ``findings`` in the order met."""

    dialect: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """Reading ends with this error; offset in the input, section or None."""

    rule: str
    offset: int
    section: str | None

    @property
    def errno(self) -> str:
        """The error class that the rule has.

        Raises:
            ValueError: the rule is one that is only reported.
        """
        errno = rules()[self.rule].errno
        if errno is None:
            raise ValueError(f"{self.rule} is only reported")
        return errno


@dataclass(frozen=True, slots=True)
class Vector:
    """One case: bytes, what they are for, and what a reader makes of them.

    ``base`` is the vector that was changed.  ``loader`` is what the machine that the stream is of makes
    of it, where that is not what a reader does, and ``bound`` the rule behind that; ``machine`` is
    that machine, where the stream does not tell.  ``requires`` are the features of what is no vector
    itself, but changed into some.
    """

    area: str
    verdict: Verdict
    slug: str
    description: str
    rules: tuple[str, ...]
    source: str
    wire: Wire = field(repr=False)
    expect: Accepted | Rejected
    change: str | None = None
    notes: str | None = None
    base: "Vector | None" = field(default=None, repr=False)
    loader: Verdict | None = None
    bound: str | None = None
    machine: "Machine | None" = None
    requires: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """``<area>/<verdict>/<slug>``."""
        return f"{self.area}/{self.verdict}/{self.slug}"

    @property
    def data(self) -> bytes:
        """The stream."""
        return bytes(self.wire.data)


def seed(name: str) -> Wire:
    """A seed to find places in."""
    return Wire(seeds()[name].data())


def seed_source(name: str) -> str:
    """Where a seed comes from, in one line."""
    entry = seeds()[name]
    return f"QEMU {entry.qemu}: {entry.argv}; changed: {entry.changed}"


class Change(Protocol):
    """One declared change to a stream."""

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """The changed stream, the offset of the change, and by how much later bytes moved."""

    def says(self, wire: Wire) -> str:
        """The change in words."""


@dataclass(frozen=True, slots=True)
class Set:
    """Bytes in the place of those at a mark."""

    mark: str
    value: bytes

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        offset, size = wire.marks[self.mark]
        data = bytes(wire.data)
        changed = data[:offset] + self.value + data[offset + size :]
        return changed, offset, len(self.value) - size

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        offset, size = wire.marks[self.mark]
        before = bytes(wire.data[offset : offset + size])
        return f"{self.mark} at {offset}: {_hex(before)} became {_hex(self.value)}"


@dataclass(frozen=True, slots=True)
class Patch:
    """Other bytes in the place of some at ``skip`` behind the start of a mark."""

    mark: str
    skip: int
    value: bytes

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        begin = wire.marks[self.mark].offset + self.skip
        data = bytes(wire.data)
        return data[:begin] + self.value + data[begin + len(self.value) :], begin, 0

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        begin = wire.marks[self.mark].offset + self.skip
        before = bytes(wire.data[begin : begin + len(self.value)])
        return f"in {self.mark} at {begin}: {_hex(before)} became {_hex(self.value)}"


@dataclass(frozen=True, slots=True)
class Rename:
    """Another name in the place of a counted one, with its length byte made to fit."""

    mark: str
    value: bytes

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        offset, size = wire.marks[self.mark]
        data = bytes(wire.data)
        changed = data[: offset - 1] + counted(self.value) + data[offset + size :]
        return changed, offset - 1, len(self.value) - size

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        offset, size = wire.marks[self.mark]
        before = bytes(wire.data[offset : offset + size]).decode("latin-1")
        after = self.value.decode("latin-1")
        return f"the name {self.mark} at {offset}: {before!r} became {after!r}"


@dataclass(frozen=True, slots=True)
class Insert:
    """Bytes before a mark."""

    mark: str
    value: bytes

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        offset, data = wire.marks[self.mark].offset, bytes(wire.data)
        return data[:offset] + self.value + data[offset:], offset, len(self.value)

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        return f"{_hex(self.value)} inserted at {wire.marks[self.mark].offset}, before {self.mark}"


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing in the place of what goes from one mark to right before another."""

    mark: str
    upto: str

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        begin, end = wire.marks[self.mark].offset, wire.marks[self.upto].offset
        return bytes(wire.data[:begin] + wire.data[end:]), begin, begin - end

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        begin, end = wire.marks[self.mark].offset, wire.marks[self.upto].offset
        return f"the {end - begin} bytes at {begin}, from {self.mark} to {self.upto}, left out"


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing behind the first ``keep`` bytes of a mark."""

    mark: str
    keep: int = 0

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        end = wire.marks[self.mark].offset + self.keep
        return bytes(wire.data[:end]), end, 0

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        end = wire.marks[self.mark].offset + self.keep
        where = f"{self.keep} bytes into {self.mark}" if self.keep else f"before {self.mark}"
        return f"cut at {end}, {where}"


@dataclass(frozen=True, slots=True)
class Describe:
    """Another text in the VMDESCRIPTION, with its length made to fit."""

    old: bytes
    new: bytes

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        length, (offset, size) = wire.marks["vmdesc.length"], wire.marks["vmdesc.text"]
        text = bytes(wire.data[offset : offset + size])
        if text.count(self.old) != 1:
            raise ValueError(f"{self.old!r} occurs {text.count(self.old)} times")
        new = text.replace(self.old, self.new)
        before = bytes(wire.data[: length.offset])
        after = bytes(wire.data[offset + size :])
        return before + be32(len(new)) + new + after, offset, len(new) - size

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        return f"in the VMDESCRIPTION {_text(self.old)} became {_text(self.new)}"


@dataclass(frozen=True, slots=True)
class Keep:
    """No change: the stream itself has the fault, at a mark."""

    mark: str

    def apply(self, wire: Wire) -> tuple[bytes, int, int]:
        """See `Change`."""
        return bytes(wire.data), wire.marks[self.mark].offset, 0

    def says(self, wire: Wire) -> str:
        """See `Change`."""
        return "nothing"


def reject(
    name: str,
    rule: str,
    base: Vector,
    change: Change,
    description: str,
    *,
    section: str | None = None,
    at: str | None = None,
    plus: int = 0,
    verdict: Verdict = "reject",
    notes: str | None = None,
    loader: Verdict | None = None,
) -> Vector:
    """``base`` with one fault.

    Args:
        name: ``<area>/<slug>``.
        at: the mark of ``base`` whose (possibly moved) offset the error has, or END; by default the
            end of the input for a Cut, and the place of the change for everything else.
        plus: what is added to that offset, in bytes.
        loader: as of `Vector`.
    """
    area, slug = name.split("/")
    data, begin, moved = change.apply(base.wire)
    if at == END or (at is None and isinstance(change, Cut)):
        offset = len(data)
    elif at is None:
        offset = begin
    else:
        offset = base.wire.marks[at].offset
        if offset > begin:
            offset += moved
    return Vector(
        area=area,
        verdict=verdict,
        slug=slug,
        description=description,
        rules=(rule,),
        source=f"{base.id} with one change" if not isinstance(change, Keep) else base.source,
        wire=Wire(data),
        expect=Rejected(rule, offset + plus, section),
        change=change.says(base.wire) if not isinstance(change, Keep) else None,
        notes=notes,
        base=base,
        loader=loader,
    )


def _hex(data: bytes) -> str:
    if len(data) <= 32:
        return data.hex() or "nothing"
    return f"{data[:32].hex()}… ({len(data)} bytes)"


def _text(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    return text if len(text) <= 120 else f"{text[:120]}… ({len(text)} characters)"
