"""Compares what two streams hold, whatever their dialects: machines, not bytes.

``Contents`` takes one stream in, ``differences`` compares two.  RAM is compared by a hash of each
page, so that memory grows by 16 bytes for every page that is not zero; ``PageContents`` reads a
stream again for the pages of interest.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from mypy_extensions import i64

from savevm import vmstate
from savevm.sink import Sink
from savevm.stream.events import (
    AttributesWord,
    BodyEnd,
    Command,
    Configuration,
    Device,
    Event,
    HtabChunk,
    RamWord,
    RecordBody,
    Section,
)
from savevm.stream.reader import Reader
from savevm_spec.constants import (
    BLOCK_IDSTR,
    BLOCK_SIZE,
    CMD_PACKAGED,
    HTAB_ENTRY_SIZE,
    HTAB_IDSTR,
    RAM_IDSTR,
    RAM_MULTIFD_FLUSH,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_VERSION,
    STORAGE_ATTRIBUTES_IDSTR,
    STORAGE_ATTRIBUTES_MORE,
    VERSION_3,
)

__all__ = ["CLOCKS", "Contents", "Difference", "Ignored", "PageContents", "differences"]

_HASH: Final = 16
# Cells that are made together.
_SEGMENT: Final = 4096
_SECTOR: Final = 512
_S390_PAGE_SIZE: Final = 4096

# Paths of what moves with time.  The clocks that keep the host's time move from one save to the next
# even while a machine is stopped; all others while it runs, whatever it does.
CLOCKS: Final = (
    "*mc146818rtc*/cmos_data",
    "*mc146818rtc*/current_tm",
    "*mc146818rtc*/update_timer",
    "*mc146818rtc*/next_*_time",
    "*pl031*/tick_offset*",
    "*goldfish_rtc*/tick_offset*",
    "spapr/tb",
    "timer",
    "s390-tod",
    "*/*clock*",
    "*/*_timer",
    "*/*tsc",
    "*/*tsc_deadline",
    "*/*tsc_offset",
    "*/*next_second_time",
    "*/*next_transition_time",
    "*/*count_load_time",
    "*/*next_time",
    "*/*timer_expiry",
    "*/*overflow_time",
    "*hpet*/hpet_counter",
    "*hpet*/hpet_offset*",
    "*/*last_update",
    "*/*base_rtc",
    "*mc146818rtc*/offset",
)


def _hash(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()


class _Cells:
    """Values of ``width`` bytes by index, zero where none was put.

    ``size`` is what a cell stands for, in bytes.
    """

    def __init__(self, width: int, size: int) -> None:
        self.width: Final = width
        self.size: Final = size
        self.nothing: Final = bytes(width * _SEGMENT)
        # Made when something in them is not zero.
        self.segments: Final[dict[int, bytearray]] = {}

    def fill(self, index: int, count: int, value: bytes) -> None:
        """Put ``value`` into ``count`` cells."""
        end = index + count
        zero = not any(value)
        while index < end:
            number, within = divmod(index, _SEGMENT)
            some = min(end - index, _SEGMENT - within)
            segment = self.segments.get(number)
            if segment is None and not zero:
                segment = self.segments[number] = bytearray(self.nothing)
            if segment is not None:
                segment[self.width * within : self.width * (within + some)] = value * some
            index += some

    def put(self, index: int, values: bytes) -> None:
        """Put the values into as many cells."""
        for i in range(0, len(values), self.width):
            self.fill(index, 1, values[i : i + self.width])
            index += 1

    def differing(self, other: "_Cells") -> "array[int]":
        """Where runs of different cells begin and end, as pairs of indices."""
        runs: array[int] = array("Q")
        width = self.width
        for number in sorted(self.segments.keys() | other.segments.keys()):
            a = self.segments.get(number, self.nothing)
            b = other.segments.get(number, self.nothing)
            if a == b:
                continue
            for i in range(_SEGMENT):
                if a[width * i : width * (i + 1)] == b[width * i : width * (i + 1)]:
                    continue
                index = number * _SEGMENT + i
                if runs and runs[-1] == index:
                    runs[-1] += 1
                else:
                    runs.extend((index, index + 1))
        return runs


class _Units(_Cells):
    """A hash for each unit of ``size`` bytes, zero for those that are zero or never came."""

    def __init__(self, size: int) -> None:
        super().__init__(_HASH, size)
        self._zero: Final = _hash(bytes(size))
        self._constant: Final[dict[int, bytes]] = {0: bytes(_HASH)}

    def hash(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """A unit comes."""
        found = _hash(data)
        self.fill(index, 1, bytes(_HASH) if found == self._zero else found)

    def fill_byte(self, index: int, count: int, byte: int) -> None:
        """``count`` units come whose bytes are all ``byte``."""
        if byte not in self._constant:
            self._constant[byte] = _hash(bytes((byte,)) * self.size)
        self.fill(index, count, self._constant[byte])


class _Hashes(Sink):
    """Hashes pages and blocks of disks; keeps record bodies until their event comes."""

    def __init__(self, page_size: int) -> None:
        self.reader: Reader | None = None
        self.page_size: Final = page_size  # where the stream does not tell
        self.ram: Final[dict[str, _Units]] = {}
        self.disks: Final[dict[str, _Units]] = {}
        self.bodies = bytearray()
        self.mixed = False
        self._unit = 0
        self._partial = bytearray()
        self._partial_of = ("", 0)  # block and address of the next byte
        self._disk = bytearray()

    def block(self, name: str, used_length: int, page_size: int) -> None:
        assert self.reader is not None
        unit = self.reader.page_size or self.page_size
        self.ram.setdefault(name, _Units(unit))
        self.mixed |= self.ram[name].size != unit
        self._unit = page_size

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        units = self.ram[block]
        size = units.size
        if end - start == size and address % size == 0:
            units.hash(address // size, memoryview(data)[start:end])
            return
        while start < end:
            within = address % size
            some = min(size - within, end - start)
            if within == 0:
                self._partial.clear()
            elif self._partial_of != (block, address):
                self.mixed = True
                return
            self._partial += data[start : start + some]
            address += some
            start += some
            self._partial_of = block, address
            if len(self._partial) == size:
                units.hash(address // size - 1, self._partial)
                self._partial.clear()

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        units = self.ram[block]
        if self._unit != units.size:
            self.mixed = True
            return
        units.fill_byte(address // units.size, count, byte)

    def finish(self) -> None:
        """RAM that is not a whole number of units ends within one."""
        if self._partial:
            block, address = self._partial_of
            units = self.ram[block]
            self._partial += bytes(units.size - len(self._partial))
            units.hash(address // units.size, self._partial)

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        self.bodies += data[start:end]

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        self._disk += data[start:end]
        if len(self._disk) == BLOCK_SIZE:
            self._disk_block(device, sector, self._disk)
            self._disk.clear()

    def disk_zero(self, device: str, sector: i64) -> None:
        self._disk_block(device, sector, None)

    def _disk_block(self, device: str, sector: int, data: bytearray | None) -> None:
        index, rest = divmod(sector * _SECTOR, BLOCK_SIZE)
        disk = self.disks.setdefault(device, _Units(BLOCK_SIZE))
        self.mixed |= rest != 0
        if data is None:
            disk.fill_byte(index, 1, 0)
        else:
            disk.hash(index, data)


@dataclass
class _Body:
    """A device: its version, and its state or, where nothing tells that, its bytes."""

    version_id: int
    event: Device

    def data(self) -> bytes:
        event = self.event
        if event.kind == "vmstate":
            return vmstate.encode(event.layout, event.state)
        return event.raw


class Contents:
    """What a stream holds, as far as it is compared.

    Feed ``reader`` and give its events to ``take``; in the end call ``finish``.  ``flaw`` then says
    why the stream cannot be compared, if it cannot.  ``page_size`` in bytes is that of RAM in
    versions 1 and 2, which have none.
    """

    def __init__(
        self,
        *,
        description: Any = None,
        searched: bool = False,
        page_size: int = RAM_PAGE_SIZE_DEFAULT,
    ) -> None:
        self._sink: Final = _Hashes(page_size)
        self.reader: Final = Reader(description=description, searched=searched, sink=self._sink)
        self._sink.reader = self.reader
        self.configuration: Configuration | None = None
        self.bodies: Final[dict[str, _Body]] = {}
        self.live: Final[set[str]] = set()
        self.packages: Final[list[bytes]] = []
        self.hash_table: Final = _Cells(HTAB_ENTRY_SIZE, HTAB_ENTRY_SIZE)
        self.attributes: Final = _Cells(1, _S390_PAGE_SIZE)
        self.flaw: str | None = None
        self._section: Section | None = None
        self._record: RecordBody | None = None
        self._elsewhere = False

    def take(self, events: Iterable[Event]) -> None:
        """Events of ``reader``, in order."""
        for event in events:
            match event:
                case Section():
                    self._section = event
                case Device():
                    self._add(event)
                case HtabChunk():
                    self.hash_table.put(event.index, event.entries)
                    self.hash_table.fill(
                        event.index + event.valid, event.invalid, bytes(HTAB_ENTRY_SIZE)
                    )
                case AttributesWord(flag=flag) if flag == STORAGE_ATTRIBUTES_MORE:
                    self.attributes.put(event.address // _S390_PAGE_SIZE, event.data)
                case RecordBody():
                    self._record = event
                case BodyEnd():
                    self._end()
                case Configuration():
                    self.configuration = event
                case Command(number=number) if number == CMD_PACKAGED:
                    self.packages.append(event.package)
                case RamWord():
                    self._elsewhere |= event.word == RAM_MULTIFD_FLUSH

    def _end(self) -> None:
        section, record = self._section, self._record
        assert section is not None
        self._record = None
        if record is not None:
            data = bytes(memoryview(self._sink.bodies)[: record.length])
            del self._sink.bodies[: record.length]
            self._add(Device(record.offset, "buffer", len(data), None, None, data))
        elif section.idstr in (HTAB_IDSTR, STORAGE_ATTRIBUTES_IDSTR, BLOCK_IDSTR) and section.type:
            self.live.add(section.idstr)

    def _add(self, event: Device) -> None:
        section = self._section
        assert section is not None
        path = section.idstr + (f"#{section.instance_id}" if section.instance_id else "")
        if section.type == 0 and event.length < section.body_length:
            path += "/rest of the record"
        count = 1
        name = path
        while name in self.bodies:
            count += 1
            name = f"{path} ({count})"
        self.bodies[name] = _Body(section.version_id, event)

    def finish(self) -> None:
        """The stream has been read whole."""
        self._sink.finish()
        if self._elsewhere or (any(self.reader.blocks.values()) and not self._sink.ram):
            self.flaw = "the pages of RAM are not in the stream, but in channels beside it"
        elif self._sink.mixed:
            self.flaw = "RAM, or a disk, comes in pieces that do not fit on each other"

    @property
    def dialect(self) -> str:
        """The name of the stream's dialect."""
        return self.reader.dialect

    @property
    def unnamed(self) -> bool:
        """Whether RAM has no names."""
        reader = self.reader
        return reader.version < VERSION_3 or (reader.ram_version or RAM_VERSION) < RAM_VERSION

    def units(self, block: str) -> _Cells:
        """The hashes of a RAM block."""
        return self._sink.ram.get(block) or _Units(self.page_size)

    @property
    def page_size(self) -> int:
        """Bytes of what has one hash."""
        return self.reader.page_size or self._sink.page_size

    @property
    def disks(self) -> Iterable[str]:
        """The disks that are in the stream."""
        return self._sink.disks

    def disk(self, device: str) -> _Cells:
        """The hashes of a disk."""
        return self._sink.disks.get(device) or _Units(BLOCK_SIZE)


@dataclass
class Difference:
    """One thing that is not the same.

    ``path`` is that of the ``section``, or of what is in it, behind a "/".

    ``kind`` is "missing" (``only`` in "a" or "b"), "value" (``a`` and ``b``), "bytes" (``first``
    offset that differs, ``count`` of them, ``lengths``, ``a`` and ``b`` from there on), or "units"
    (``count`` of them, of ``size`` bytes, and ``runs``: pairs of addresses, the second behind the
    run; ``a`` and ``b`` from address ``first`` on, where they were looked at).
    """

    path: str
    kind: str
    section: str = ""
    a: Any = None
    b: Any = None
    only: str = ""
    first: int = -1
    count: int = 0
    size: int = 1
    lengths: tuple[int, int] = (0, 0)
    runs: "array[int]" = field(default_factory=lambda: array("Q"))


class Ignored:
    """What is not compared: shell patterns of paths, or the word "clocks".

    A pattern also stands for all that is in what it matches.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: Final = [
            pattern for word in patterns for pattern in (CLOCKS if word == "clocks" else (word,))
        ]

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, str)
        return any(
            path == p or fnmatchcase(path, p) or fnmatchcase(path, p + "[[/.]*")
            for p in self._patterns
        )


_SHOWN: Final = 8


def _in_bytes(path: str, a: bytes, b: bytes) -> Difference:
    some = min(len(a), len(b))
    count = abs(len(a) - len(b))
    first = -1
    for start in range(0, some, 4096):
        one, other = a[start : start + 4096], b[start : start + 4096]
        if one == other:
            continue
        unlike = [i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y]
        count += len(unlike)
        if unlike and first < 0:
            first = start + unlike[0]
    first = some if first < 0 else first
    return Difference(
        path,
        "bytes",
        a=a[first : first + _SHOWN],
        b=b[first : first + _SHOWN],
        first=first,
        count=count,
        lengths=(len(a), len(b)),
    )


def _in_state(prefix: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    for name in [*a, *(name for name in b if name not in a)]:
        path = prefix + name
        if name not in a or name not in b:
            yield Difference(path, "missing", only="a" if name in a else "b")
        elif name == "subsections" and isinstance(a[name], dict) and isinstance(b[name], dict):
            yield from _in_state(prefix, a[name], b[name])
        else:
            yield from _in_value(path, a[name], b[name])


def _in_value(path: str, a: Any, b: Any) -> Iterator[Difference]:
    # Most of what is compared is the same.
    if a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict):
        yield from _in_state(path + ".", a, b)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield Difference(path + ".length", "value", a=len(a), b=len(b))
        for i, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from _in_value(f"{path}[{i}]", one, other)
    elif isinstance(a, bytes) and isinstance(b, bytes):
        yield _in_bytes(path, a, b)
    else:
        yield Difference(path, "value", a=a, b=b)


def _in_body(path: str, a: _Body | None, b: _Body | None) -> Iterator[Difference]:
    if a is None or b is None:
        yield Difference(path, "missing", only="a" if b is None else "b")
        return
    if a.version_id != b.version_id:
        yield Difference(path + "/version_id", "value", a=a.version_id, b=b.version_id)
    one, other = a.data(), b.data()
    if one == other:
        return
    found = False
    if a.event.kind == b.event.kind == "vmstate":
        for difference in _in_state(
            path + "/", vmstate.by_name(a.event.state), vmstate.by_name(b.event.state)
        ):
            found = True
            yield difference
    if not found:
        # Nothing says what the bytes mean, or the same fields lie otherwise.
        yield _in_bytes(path, one, other)


def _in_cells(path: str, a: _Cells, b: _Cells) -> Iterator[Difference]:
    runs = a.differing(b)
    if runs:
        count = sum(runs[1::2]) - sum(runs[::2])
        yield Difference(
            path,
            "units",
            count=count,
            size=a.size,
            runs=array("Q", [index * a.size for index in runs]),
        )


def _in_configuration(a: Contents, b: Contents) -> Iterator[Difference]:
    one, other = (
        {
            "machine": c.configuration.machine,
            **{s.name.rpartition("/")[2]: s.value for s in c.configuration.subsections},
        }
        if c.configuration
        else None
        for c in (a, b)
    )
    if one is None or other is None:
        if one != other:
            yield Difference("configuration", "missing", only="a" if one else "b")
        return
    yield from _in_state("configuration/", one, other)


def _in_ram(a: Contents, b: Contents) -> Iterator[Difference]:
    ours, theirs = dict(a.reader.blocks), dict(b.reader.blocks)
    pairs = {name: (name, name) for name in [*ours, *theirs]}
    if len(ours) == len(theirs) == 1 and a.unnamed != b.unnamed:
        # Where RAM has no name, it is the RAM.
        name = next(iter(theirs if a.unnamed else ours))
        pairs = {name: (next(iter(ours)), next(iter(theirs)))}
    for name, (one, other) in pairs.items():
        path = f"{RAM_IDSTR}/{name}"
        if one not in ours or other not in theirs:
            yield Difference(path, "missing", only="a" if one in ours else "b")
            continue
        if ours[one] != theirs[other]:
            yield Difference(path + "/used_length", "value", a=ours[one], b=theirs[other])
        yield from _in_cells(path, a.units(one), b.units(other))


def _in_live(idstr: str, a: Contents, b: Contents) -> Iterator[Difference]:
    if idstr not in a.live or idstr not in b.live:
        yield Difference(idstr, "missing", only="a" if idstr in a.live else "b")
    elif idstr == HTAB_IDSTR:
        yield from _in_cells(idstr, a.hash_table, b.hash_table)
    elif idstr == STORAGE_ATTRIBUTES_IDSTR:
        yield from _in_cells(idstr, a.attributes, b.attributes)
    else:
        for device in sorted({*a.disks, *b.disks}):
            yield from _in_cells(f"{idstr}/{device}", a.disk(device), b.disk(device))


def differences(a: Contents, b: Contents, ignored: Ignored) -> Iterator[Difference]:
    """All that differs, in the order of the first stream.

    Raises ``ValueError`` where pages have different sizes.
    """
    both = a.reader.blocks and b.reader.blocks
    if both and a.page_size != b.page_size and RAM_IDSTR not in ignored:
        raise ValueError(f"pages of {a.page_size} bytes and pages of {b.page_size} bytes")
    for section, found in _sections(a, b):
        if section in ignored:
            continue
        for difference in found:
            if difference.path not in ignored:
                difference.section = section
                yield difference


def _sections(a: Contents, b: Contents) -> Iterator[tuple[str, Iterator[Difference]]]:
    """What differs in each section."""
    yield "configuration", _in_configuration(a, b)
    yield RAM_IDSTR, _in_ram(a, b)
    for idstr in sorted(a.live | b.live):
        yield idstr, _in_live(idstr, a, b)
    for path in [*a.bodies, *(path for path in b.bodies if path not in a.bodies)]:
        yield path, _in_body(path, a.bodies.get(path), b.bodies.get(path))
    one, other = (b"".join(c.packages) if c.packages else None for c in (a, b))
    yield "package", _in_value("package", one, other)


class PageContents(Sink):
    """The last contents of the page at one address of each block of ``wanted``."""

    def __init__(self, wanted: dict[str, int], page_size: int) -> None:
        self.pages: Final = {name: bytearray(page_size) for name in wanted}
        self._wanted: Final = wanted
        self._page_size: Final = page_size
        self._unit = page_size

    def block(self, name: str, used_length: int, page_size: int) -> None:
        self._unit = page_size

    def _overlap(self, block: str, address: int, size: int) -> tuple[int, int] | None:
        """Bytes of the wanted page from ``address`` on, relative to it."""
        at = self._wanted.get(block)
        if at is None or address >= at + self._page_size or address + size <= at:
            return None
        return max(address, at) - at, min(address + size, at + self._page_size) - at

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        found = self._overlap(block, address, end - start)
        if found is not None:
            low, high = found
            skip = self._wanted[block] + low - address
            self.pages[block][low:high] = data[start + skip : start + skip + high - low]

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        found = self._overlap(block, address, count * self._unit)
        if found is not None:
            low, high = found
            self.pages[block][low:high] = bytes((byte,)) * (high - low)
