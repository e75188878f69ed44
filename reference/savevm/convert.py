"""A saved machine written anew in another dialect.

``Saved`` takes a stream apart without knowing what its devices are, ``plan``
says how that is written, or why it cannot be, ``write`` does it, and ``ReadBack`` holds what was
written against it.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from mypy_extensions import i64

from savevm import vmstate
from savevm.channel import Channel, Operations
from savevm.errors import StreamError
from savevm.ram import RamBlock, RamLoader
from savevm.savable import CannotExpressError, Device, Format, Live, Ram, Registry, Savable
from savevm.savevm import Saver
from savevm.sink import Sink
from savevm.stream.events import (
    AttributesWord,
    BodyEnd,
    Command,
    Configuration,
    DiskWord,
    Event,
    HtabChunk,
    HtabHeader,
    RamWord,
    RecordBody,
    Section,
)
from savevm.stream.events import Device as DeviceEvent
from savevm.stream.reader import Reader
from savevm.stream.writer import Writer
from savevm_spec.constants import (
    BLOCK_DEVICE,
    BLOCK_EOS,
    BLOCK_IDSTR,
    BLOCK_SECTOR_BITS,
    BLOCK_SIZE,
    CMD_OPEN_RETURN_PATH,
    CMD_PACKAGED,
    CMD_PING,
    CMD_SWITCHOVER_START,
    COMMAND_NAMES,
    HTAB_IDSTR,
    LIVE_VERSIONS,
    RAM_IDSTR,
    RAM_MULTIFD_FLUSH,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_UNNAMED_BLOCK,
    RAM_V2_BLOCK_SIZE,
    RAM_VERSION,
    SECTION_END,
    SECTION_FULL,
    SECTION_PART,
    SECTION_START,
    STORAGE_ATTRIBUTES_EOS,
    STORAGE_ATTRIBUTES_IDSTR,
    VERSION_2,
    VERSION_3,
)
from savevm_spec.devices import schemas
from savevm_spec.dialects import DIALECTS, Dialect

__all__ = ["CannotConvertError", "Plan", "ReadBack", "Saved", "plan", "write"]

# Bodies of PART that say nothing.
_NOTHING: Final = {
    HTAB_IDSTR: bytes(12),
    STORAGE_ATTRIBUTES_IDSTR: STORAGE_ATTRIBUTES_EOS.to_bytes(8, "big"),
    BLOCK_IDSTR: BLOCK_EOS.to_bytes(8, "big"),
}
# Commands that mean nothing to who reads a file.
_CONVERSATION: Final = frozenset({CMD_OPEN_RETURN_PATH, CMD_PING, CMD_SWITCHOVER_START})
_DISK_FLAGS: Final = (1 << BLOCK_SECTOR_BITS) - 1
_VERSION_2_BODY_MAX: Final = (1 << 31) - 1
# Live sections stay in memory up to this many bytes, then go to a temporary file.
_SPOOL: Final = 16 << 20


class CannotConvertError(CannotExpressError):
    """What is in a stream has no form in the dialect that is wanted: all the ``reasons``."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons: Final = tuple(reasons)


# What a stream holds


class Body(Device):
    """A device of which nothing is known but its body, and its layout if that has one."""

    def __init__(self, section: Section, data: bytes, layout: dict[str, Any] | None) -> None:
        super().__init__(section.idstr, section.instance_id, version_id=section.version_id)
        self.data: Final = data
        self._layout: Final = layout or {"size": len(data)}

    def layout(self, version_id: int) -> dict[str, Any]:
        return self._layout

    def save(self) -> bytes:
        return self.data


class Carried(Live):
    """A live section of another kind than RAM, in the records that it came in."""

    def __init__(self, section: Section) -> None:
        super().__init__(section.idstr, section.instance_id, version_id=section.version_id)
        self.digest: Final = _digest()  # of what its bodies say
        self._bodies: Final = tempfile.SpooledTemporaryFile(_SPOOL)  # noqa: SIM115
        # Type of each record, and where its body ends among the bodies.
        self._records: Final[list[tuple[int, int]]] = []
        self._next = 0

    def record(self, kind: int) -> None:
        """Another record begins."""
        self._records.append((kind, self._bodies.tell()))

    def add(self, data: bytes) -> None:
        """More of the body of the last record."""
        self._bodies.write(data)
        self._records[-1] = self._records[-1][0], self._bodies.tell()

    @property
    def kinds(self) -> list[int]:
        """The types of its records, in order."""
        return [kind for kind, _ in self._records]

    def _copy(self, out: Channel) -> None:
        start = self._records[self._next - 1][1] if self._next else 0
        left = self._records[self._next][1] - start
        self._bodies.seek(start)
        while left:
            piece = self._bodies.read(min(left, BLOCK_SIZE))
            out.write(piece)
            left -= len(piece)
        self._next += 1

    def begin(self, out: Channel, form: Format, live: bool) -> None:
        self._next = 0
        self._copy(out)

    def iterate(self, out: Channel, budget: int) -> None:
        if self.left:
            self._copy(out)
        else:
            out.write(_NOTHING[self.idstr])

    def complete(self, out: Channel) -> None:
        self._copy(out)

    @property
    def left(self) -> int:
        """Bytes in the records of type PART that are to come."""
        return self._records[-2][1] - self._records[max(self._next, 1) - 1][1]


class _Held(Sink):
    """Holds bodies of records and blocks of disks until their events come."""

    def __init__(self) -> None:
        self._bodies = bytearray()
        self._disks = bytearray()

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        self._bodies += data[start:end]

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        self._disks += data[start:end]

    def body(self, size: int) -> bytes:
        """The next body, of ``size`` bytes."""
        data = bytes(memoryview(self._bodies)[:size])
        del self._bodies[:size]
        return data

    def disk_block(self) -> bytes:
        """The next block of a disk."""
        data = bytes(memoryview(self._disks)[:BLOCK_SIZE])
        del self._disks[:BLOCK_SIZE]
        return data


class _Contents(_Held):
    """RAM goes to ``ram``, whose blocks are made as they come."""

    def __init__(self, block_name: str | None) -> None:
        super().__init__()
        self.ram: Final = RamLoader([])
        self.reader: Reader | None = None
        self._block_name: Final = block_name

    @property
    def unnamed(self) -> bool:
        """Whether the stream does not name its RAM."""
        assert self.reader is not None
        ram_version = self.reader.ram_version
        return self.reader.version < VERSION_3 or (ram_version or RAM_VERSION) < RAM_VERSION

    def make(self, name: str, used_length: int) -> None:
        """Have a block, if there is none of that name."""
        assert self.reader is not None
        if name not in self.ram.blocks:
            called = self._block_name if self.unnamed and self._block_name else name
            page_size = self.reader.page_size or RAM_PAGE_SIZE_DEFAULT
            try:
                self.ram.blocks[name] = RamBlock(called, used_length, page_size)
            except OSError as e:
                why = f"no room for block {name!r} of RAM, of {used_length} bytes"
                raise OSError(e.errno, why) from None

    def block(self, name: str, used_length: int, page_size: int) -> None:
        self.make(name, used_length)
        self.ram.block(name, used_length, page_size)

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        self.ram.page_data(block, address, data, start, end)

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        self.ram.fill(block, address, count, byte)


class _Bodies:
    """Turns the events of live sections other than RAM into bytes again."""

    def __init__(self, held: _Held) -> None:
        self._writer: Final = Writer()
        self._held: Final = held

    def bytes(self, event: Event) -> tuple[bytes, bool]:
        """The bytes of an event, and whether they say more than that a body ends."""
        contents = b""
        said = True
        match event:
            case HtabHeader():
                said = event.header != 0
            case HtabChunk():
                said = bool(event.index or event.valid or event.invalid)
            case AttributesWord():
                said = event.flag != STORAGE_ATTRIBUTES_EOS
            case DiskWord():
                flags = event.word & _DISK_FLAGS
                said = flags != BLOCK_EOS
                if flags == BLOCK_DEVICE:
                    contents = self._held.disk_block()
        return self._writer.write(event, contents), said


_LIVE_EVENTS: Final = (HtabHeader, HtabChunk, AttributesWord, DiskWord)


def _digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def _called(savable: Savable) -> str:
    """A section, for people."""
    return f"section {savable.idstr!r}" + (
        f", instance {savable.instance_id}" if savable.instance_id else ""
    )


class Saved:
    """What a stream holds, taken apart without knowing what its devices are.

    Feed ``reader`` and give its events to ``take``; in the end call ``finish``.  RAM of versions 1
    to 3 gets the name ``block_name``, if given.  RAM is held in memory, live sections of other
    kinds in a temporary file if they are large.

    ``entries`` are the sections other than RAM in stream order, ``before_ram`` how many of them come
    before RAM, ``early`` those of them that came before any live section; ``section_ids`` are by
    idstr and instance id, none in versions 1 and 2; ``flaws`` say why the stream has no other form
    at all.
    """

    def __init__(
        self, *, description: Any = None, searched: bool = False, block_name: str | None = None
    ) -> None:
        self._contents: Final = _Contents(block_name)
        self.reader: Final = Reader(description=description, searched=searched, sink=self._contents)
        self._contents.reader = self.reader
        self.block_name: Final = block_name
        self.configuration: Configuration | None = None
        self.commands: Final[list[int]] = []
        self.entries: Final[list[Body | Carried]] = []
        self.section_ids: Final[dict[tuple[str, int], int]] = {}
        self.early: Final[list[Body]] = []
        self.flaws: Final[list[str]] = []
        self.has_ram = False
        self.before_ram: int | None = None
        self._bodies: Final = _Bodies(self._contents)
        self._section: Section | None = None
        self._record: RecordBody | None = None
        self._whole = bytearray()  # the body of a live section that comes as FULL
        self._carried: dict[tuple[str, int], Carried] = {}
        self._started = False
        self._without_pages = False
        self._ram_kinds: Final[list[int]] = []

    def take(self, events: Iterable[Event]) -> None:
        """Events of ``reader``, in order."""
        for event in events:
            if isinstance(event, Section):
                self._begin(event)
            elif isinstance(event, DeviceEvent):
                self._device(event)
            elif isinstance(event, _LIVE_EVENTS):
                self._live(event)
            elif isinstance(event, BodyEnd):
                self._end_body()
            elif isinstance(event, Configuration):
                self.configuration = event
            elif isinstance(event, Command):
                self.commands.append(event.number)
            elif isinstance(event, RamWord):
                self._without_pages |= event.word == RAM_MULTIFD_FLUSH
            elif isinstance(event, RecordBody):
                self._record = event

    def _begin(self, section: Section) -> None:
        self._section = section
        key = section.idstr, section.instance_id
        if section.idstr == RAM_IDSTR and (section.type or section.version_id in (1, 2)):
            self.has_ram = True
            self.before_ram = len(self.entries) if self.before_ram is None else self.before_ram
            self._number(section)
            self._ram_kinds.append(section.type)
            self._started |= section.type == SECTION_START
        elif section.type in (SECTION_START, SECTION_PART, SECTION_END):
            self._started = True
            if section.type == SECTION_START:
                if key in self._carried:
                    self.flaws.append(f"{_called(self._carried[key])} is started again")
                    return
                self._carried[key] = Carried(section)
                self._add(self._carried[key])
            if key in self._carried:
                self._carried[key].record(section.type)

    def _number(self, section: Section) -> None:
        if section.type:
            self.section_ids[section.idstr, section.instance_id] = section.section_id

    def _add(self, entry: Body | Carried) -> None:
        assert self._section is not None
        self._number(self._section)
        self.entries.append(entry)
        if isinstance(entry, Body) and self._section.type and not self._started:
            self.early.append(entry)

    def _device(self, event: DeviceEvent) -> None:
        section = self._section
        assert section is not None
        data = event.raw
        if event.kind == "vmstate":
            data = vmstate.encode(event.layout, event.state)
        entry = Body(section, data, event.layout if event.kind == "vmstate" else None)
        if event.kind == "undelimited":
            self.flaws.append(
                f"nothing tells where the body of {_called(entry)} ends, nor what comes behind it"
            )
        if section.type in (SECTION_START, SECTION_PART, SECTION_END):
            self.flaws.append(f"{_called(entry)} is of an unknown kind, and in parts")
        else:
            self._add(entry)

    def _live(self, event: Event) -> None:
        section = self._section
        assert section is not None
        data, said = self._bodies.bytes(event)
        if section.type in (0, SECTION_FULL):
            self._whole += data
        elif (carried := self._carried.get((section.idstr, section.instance_id))) is not None:
            carried.add(data)
            if said:
                carried.digest.update(data)

    def _end_body(self) -> None:
        section = self._section
        assert section is not None
        if self._whole:
            self._add(Body(section, bytes(self._whole), None))
            self._whole.clear()
        elif self._record is not None:
            data = self._contents.body(self._record.length)
            self._record = None
            if len(data) < section.body_length:
                self.flaws.append(
                    f"section {section.idstr!r}: {len(data)} bytes are left in its record"
                )
            else:
                self._add(Body(section, data, None))

    def finish(self) -> None:
        """The stream has been read whole."""
        self._contents.ram.mark()
        pages = bool(self._contents.ram.blocks)
        for name, used_length in self.reader.blocks.items():
            self._contents.make(name, used_length)
        if self._without_pages or (any(self.reader.blocks.values()) and not pages):
            self.flaws.append("the pages of RAM are not in the stream, but in channels beside it")
        seen = Counter((entry.idstr, entry.instance_id) for entry in self.entries)
        self.flaws.extend(f"section {key[0]!r} comes twice" for key, n in seen.items() if n > 1)
        in_parts = {_called(carried): carried.kinds for carried in self._carried.values()}
        if SECTION_START in self._ram_kinds:
            in_parts[f"section {RAM_IDSTR!r}"] = self._ram_kinds
        for called, kinds in in_parts.items():
            if kinds.count(SECTION_END) != 1 or kinds[-1] != SECTION_END:
                self.flaws.append(f"{called} does not end with its END")

    @property
    def blocks(self) -> list[RamBlock]:
        """RAM, in the order in which the stream lists it."""
        return [self._contents.ram.blocks[name] for name in self.reader.blocks]

    @property
    def unnamed(self) -> bool:
        """Whether RAM had no name in the stream, and was not given one."""
        return self._contents.unnamed and not self.block_name

    @property
    def dialect(self) -> str:
        """The name of the stream's dialect."""
        return self.reader.dialect


# How it is written


@dataclass
class Plan:
    """What is written, and how; ``dropped`` are lines for people."""

    registry: Registry
    form: Format
    dropped: list[str]


def plan(
    saved: Saved, target: str, *, machine: str | None = None, drop: Sequence[str] = ()
) -> Plan:
    """How ``saved`` is written in the dialect ``target``.

    ``machine`` is the name in a configuration, None for that of the stream.  ``drop``:
    "configuration", "commands", "order" (that sections came before RAM), or shell patterns of the
    idstr of sections.  Raises ``CannotConvertError``.
    """
    known = DIALECTS.get(target)
    if known is None or known.version < VERSION_2:
        raise CannotConvertError([f"streams of dialect {target!r} are not written"])
    reasons = list(saved.flaws)
    dropped: list[str] = []
    patterns = [word for word in drop if word not in ("configuration", "commands", "order")]
    idstrs = {entry.idstr for entry in saved.entries} | ({RAM_IDSTR} if saved.has_ram else set())
    for pattern in patterns:
        matched = sorted(idstr for idstr in idstrs if fnmatchcase(idstr, pattern))
        dropped += [f"section {idstr!r}" for idstr in matched]
        if not matched:
            reasons.append(f"no section matches {pattern!r}, which is to be dropped")

    def kept(idstr: str) -> bool:
        return not any(fnmatchcase(idstr, pattern) for pattern in patterns)

    entries = [entry for entry in saved.entries if kept(entry.idstr)]
    reasons += _commands(saved, drop, dropped)
    form = _form(saved, known, machine, drop, dropped, reasons)
    reasons += _unfit(entries, known)
    early = [entry for entry in saved.early if entry in entries]
    if early and saved.section_ids and known.ram_version >= 3 and _in_parts(saved):
        names = ", ".join(repr(entry.idstr) for entry in early)
        if "order" in drop:
            dropped.append(f"that {names} came before RAM")
        else:
            reasons.append(f"before RAM came {names}, which is written behind it (--drop order)")
    ram = _ram(saved, form, reasons) if saved.has_ram and kept(RAM_IDSTR) else None
    if reasons:
        raise CannotConvertError(reasons)
    return Plan(_registry(saved, entries, ram), form, dropped)


def _commands(saved: Saved, drop: Sequence[str], dropped: list[str]) -> list[str]:
    if not saved.commands:
        return []
    if CMD_PACKAGED in saved.commands:
        return ["sections are in a package of postcopy, which is not opened"]
    names = ", ".join(sorted({COMMAND_NAMES[number] for number in saved.commands}))
    if "commands" not in drop and not _CONVERSATION.issuperset(saved.commands):
        return [f"commands ({names}) are not written (--drop commands)"]
    dropped.append(f"commands: {names}")
    return []


def _form(
    saved: Saved,
    known: Dialect,
    machine: str | None,
    drop: Sequence[str],
    dropped: list[str],
    reasons: list[str],
) -> Format:
    """How a stream of the dialect is written; what is missing becomes a reason."""
    configuration = saved.configuration
    if known.configuration:
        name = machine or (configuration.machine if configuration else None)
        if name is None:
            reasons.append("a configuration has the name of the machine (--machine NAME)")
        subsections = configuration.subsections if configuration else ()
        return Format(known.name, name or "", tuple(subsections))
    if configuration is not None:
        parts = [f"machine {configuration.machine!r}"]
        parts += [sub.name.rpartition("/")[2] for sub in configuration.subsections]
        if "configuration" in drop:
            dropped.append(f"configuration: {', '.join(parts)}")
        else:
            reasons.append(
                f"dialect {known.name} has no configuration ({', '.join(parts)}) "
                "(--drop configuration)"
            )
    return Format(known.name)


def _in_parts(saved: Saved) -> bool:
    """Whether RAM, or another live section, came in parts."""
    return (saved.reader.ram_version or 0) >= 3 or any(
        isinstance(entry, Carried) for entry in saved.entries
    )


def _unfit(entries: list[Body | Carried], known: Dialect) -> list[str]:
    """Why sections have no form in the dialect."""
    if known.version == VERSION_2:
        return [
            f"{_called(entry)} is live, and version 2 has no live sections (--drop {entry.idstr})"
            for entry in entries
            if isinstance(entry, Carried)
        ] + [
            f"{_called(entry)} has {len(entry.data)} bytes, and version 2 has 31 bits for that"
            for entry in entries
            if isinstance(entry, Body) and len(entry.data) > _VERSION_2_BODY_MAX
        ]
    nameless = [
        f"a section of {len(entry.data)} bytes has no idstr"
        for entry in entries
        if isinstance(entry, Body) and not entry.idstr
    ]
    if known.vmdescription:
        return nameless
    endless = [
        f"{entry.idstr!r} version {entry.version_id} ({len(entry.data)} bytes)"
        for entry in entries
        if isinstance(entry, Body)
        and LIVE_VERSIONS.get(entry.idstr) != entry.version_id
        and not any(_exact(s, entry) for s in schemas(entry.idstr, entry.version_id))
    ]
    if not endless:
        return nameless
    return [
        *nameless,
        f"nothing in dialect {known.name} says where a body ends, and no schema does so for "
        + ", ".join(endless),
    ]


def _exact(schema: dict[str, Any], body: Body) -> bool:
    data = body.data
    try:
        end = vmstate.decode_schema(schema, data, 0, len(data), 0, body.idstr, 0, True)[2]
    except (StreamError, vmstate.EndOfData):
        return False
    return end == len(data)


def _ram(saved: Saved, form: Format, reasons: list[str]) -> Ram:
    blocks = saved.blocks
    known = form.dialect
    if known.ram_version == RAM_VERSION and saved.unnamed:
        reasons.append(
            f"RAM has a name in dialect {known.name}, and has none in {saved.dialect}: that of a PC "
            "is pc.ram (--block NAME)"
        )
    if known.ram_version == 2 and len(blocks) == 1 and blocks[0].used_length % RAM_V2_BLOCK_SIZE:
        reasons.append(f"RAM of {blocks[0].used_length} bytes is not a whole number of KiB")
    if known.ram_version == RAM_VERSION and blocks and not blocks[-1].used_length:
        reasons.append(
            f"block {blocks[-1].name!r} of 0 bytes is the last in the list: none reads it"
        )
    # Among the devices it has its place by its section id, as when it is registered.
    ram = Ram(blocks, priority=0)
    try:
        ram.written_version(form)
    except CannotExpressError as e:
        reasons.append(str(e))
    return ram


def _registry(saved: Saved, entries: list[Body | Carried], ram: Ram | None) -> Registry:
    every: list[Savable] = list(entries)
    ids = saved.section_ids
    if ram is not None:
        place = sum(entry in entries for entry in saved.entries[: saved.before_ram])
        if (own := ids.get((RAM_IDSTR, 0))) is not None:
            above = (i for i, e in enumerate(entries) if ids[e.idstr, e.instance_id or 0] > own)
            place = next(above, len(entries))
        every.insert(place, ram)
    registry = Registry()
    for savable in every:
        registry.register(savable)
    numbers = [ids.get((savable.idstr, savable.instance_id or 0), -1) for savable in every]
    if len(set(numbers)) == len(numbers) and min(numbers, default=-1) >= 0:
        for savable, number in zip(every, numbers, strict=True):
            savable.section_id = number
    return registry


def write(plan: Plan, operations: Operations, progress: Callable[[int, int], None]) -> int:
    """Write a whole stream; how many bytes that are.

    ``progress`` is told bytes written and bytes of live sections left.  Version 2 needs operations
    that are seekable.  Raises ``ChannelError`` and ``CannotExpressError``.
    """
    channel = Channel(operations)
    try:
        saver = Saver(plan.registry, channel, plan.form)
        saver.begin()
        while saver.left:
            saver.step()
            progress(channel.position, saver.left)
        saver.complete()
    finally:
        channel.close()
    channel.check()
    return channel.position


class _RamCheck(_Held):
    """Compares RAM that comes with that of ``blocks``; ``wrong`` says where they first differ."""

    def __init__(self, blocks: dict[str, RamBlock]) -> None:
        super().__init__()
        self.wrong: str | None = None
        self.seen: Counter[str] = Counter()
        self._blocks: Final = blocks
        self._units: dict[str, int] = {}

    def block(self, name: str, used_length: int, page_size: int) -> None:
        self._units[name] = page_size
        if name not in self._blocks:
            self._differs(name, 0)

    def _differs(self, name: str, address: int) -> None:
        self.wrong = self.wrong or f"block {name!r} of RAM differs at {address:#x}"

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        size = end - start
        self.seen[block] += size
        if self.wrong is None:
            view = self._blocks[block].view
            if view[address : address + size].tobytes() != data[start:end]:
                self._differs(block, address)

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        end = address + count * self._units[block]
        self.seen[block] += end - address
        if self.wrong is not None:
            return
        found = self._blocks[block]
        if byte:
            if found.view[address:end].tobytes().count(byte) != end - address:
                self._differs(block, address)
            return
        size = found.page_size
        # Pages that were never written are zero, and there may be very many of them.
        page = found.touched.find(b"\x01", address // size, -(-end // size))
        while page >= 0:
            low, high = max(page * size, address), min((page + 1) * size, end)
            if found.view[low:high].tobytes().count(byte) != high - low:
                self._differs(block, low)
                return
            page = found.touched.find(b"\x01", page + 1, -(-end // size))


class ReadBack:
    """Holds a stream that was written by ``plan`` against what was to be written.

    Feed ``reader`` and give its events to ``take``; then ``difference`` says what is wrong, if
    anything is.
    """

    def __init__(self, plan: Plan, description: Any = None) -> None:
        blocks: dict[str, RamBlock] = {}
        self._left: Final[dict[tuple[str, int], Body | Carried]] = {}
        for entry in plan.registry.entries:
            assert entry.instance_id is not None
            if isinstance(entry, Ram):
                named = plan.form.dialect.ram_version == RAM_VERSION
                blocks = {b.name if named else RAM_UNNAMED_BLOCK: b for b in entry.blocks}
            elif isinstance(entry, (Body, Carried)):
                self._left[entry.idstr, entry.instance_id] = entry
        self._blocks: Final = blocks
        self._ram: Final = _RamCheck(blocks)
        self.reader: Final = Reader(description=description, searched=True, sink=self._ram)
        self._bodies: Final = _Bodies(self._ram)
        self._section: Section | None = None
        self._digests: Final[dict[tuple[str, int], hashlib.blake2b]] = {}
        self._wrong: str | None = None
        self._record: RecordBody | None = None
        self._whole = bytearray()

    def take(self, events: Iterable[Event]) -> None:
        """Events of ``reader``, in order."""
        for event in events:
            if isinstance(event, Section):
                self._section = event
            elif isinstance(event, DeviceEvent):
                vm = event.kind == "vmstate"
                self._body(vmstate.encode(event.layout, event.state) if vm else event.raw)
            elif isinstance(event, _LIVE_EVENTS):
                assert self._section is not None
                data, said = self._bodies.bytes(event)
                if self._section.type == SECTION_FULL:
                    self._whole += data
                elif said:
                    key = self._section.idstr, self._section.instance_id
                    self._digests.setdefault(key, _digest()).update(data)
            elif isinstance(event, RecordBody):
                self._record = event
            elif isinstance(event, BodyEnd):
                if self._record is not None:
                    self._body(self._ram.body(self._record.length))
                    self._record = None
                elif self._whole:
                    self._body(bytes(self._whole))
                    self._whole.clear()
                elif self._section is not None and self._section.type == SECTION_END:
                    self._end_live(self._section)

    def _body(self, data: bytes) -> None:
        assert self._section is not None
        entry = self._left.pop((self._section.idstr, self._section.instance_id), None)
        if not isinstance(entry, Body) or entry.data != data:
            self._wrong = self._wrong or f"section {self._section.idstr!r} is read as another"

    def _end_live(self, section: Section) -> None:
        key = section.idstr, section.instance_id
        entry = self._left.get(key)
        if isinstance(entry, Carried):
            del self._left[key]
            if self._digests.get(key, _digest()).digest() != entry.digest.digest():
                self._wrong = self._wrong or f"section {section.idstr!r} is read as another"

    def difference(self) -> str | None:
        """What differs, or None; once ``reader`` has finished."""
        if self.reader.error is not None:
            return str(self.reader.error)
        if self._wrong or self._ram.wrong:
            return self._wrong or self._ram.wrong
        if self._left:
            return f"{_called(next(iter(self._left.values())))} is not there"
        for name, block in self._blocks.items():
            if self._ram.seen[name] < block.used_length:
                return f"block {name!r} of RAM is not all there"
        return None
