"""Reads a stream: chunks of bytes in, events out.  Does no I/O and never asks for a chunk size."""

import struct
from collections.abc import Callable
from typing import Any, Final

from savevm import vmstate
from savevm.errors import StreamError, stream_error
from savevm.sink import Sink
from savevm.stream.events import (
    AttributesWord,
    BodyEnd,
    Command,
    Configuration,
    ConfigurationSubsection,
    Device,
    DiskWord,
    Eof,
    Event,
    Finding,
    Footer,
    Header,
    HtabChunk,
    HtabHeader,
    RecordBody,
    Section,
    VmDescription,
)
from savevm.stream.handlers import Handlers, LiveBody
from savevm.stream.ram import PageRuns, RamBody
from savevm.stream.ram_unnamed import UnnamedRam
from savevm.vmdesc import Description, DescriptionError, find_description
from savevm_spec.constants import (
    BLOCK_DEVICE,
    BLOCK_EOS,
    BLOCK_IDSTR,
    BLOCK_PROGRESS,
    BLOCK_SECTOR_BITS,
    BLOCK_SIZE,
    BLOCK_ZERO,
    CAPABILITIES,
    CAPABILITIES_THAT_CHANGE_RAM,
    CAPABILITY_NAMES,
    CMD_PACKAGED,
    CMD_POSTCOPY_RAM_DISCARD,
    CMD_RECV_BITMAP,
    COMMAND,
    COMMAND_LENGTHS,
    COMMAND_NAMES,
    CONFIGURATION,
    CONFIGURATION_OFFSET,
    CONFIGURATION_SUBSECTION_VERSION,
    EOF,
    HTAB_ENTRY_SIZE,
    HTAB_IDSTR,
    LIMIT_CAPABILITIES,
    LIMIT_MACHINE_NAME,
    LIMIT_PACKAGED,
    LIMIT_SCHEMA_BODY,
    LIMIT_STORAGE_ATTRIBUTES,
    LIMIT_UNDESCRIBED,
    LIMIT_VMDESC,
    LIVE_VERSIONS,
    MAGIC,
    RAM_DISCARD_LENGTH_MIN,
    RAM_DISCARD_RANGE_SIZE,
    RAM_DISCARD_VERSION,
    RAM_IDSTR,
    RAM_PAGE_SIZE_DEFAULT,
    RAM_VERSION,
    RAM_VERSIONS,
    SECTION_END,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_PART,
    SECTION_START,
    STORAGE_ATTRIBUTES_DONE,
    STORAGE_ATTRIBUTES_EOS,
    STORAGE_ATTRIBUTES_FLAG_MASK,
    STORAGE_ATTRIBUTES_MORE,
    SUBSECTION,
    TARGET_PAGE_BITS,
    TARGET_PAGE_BITS_MAX,
    TARGET_PAGE_BITS_MIN,
    UUID,
    UUID_SIZE,
    VERSION_1,
    VERSION_2,
    VERSION_3,
    VMDESCRIPTION,
)
from savevm_spec.devices import schemas
from savevm_spec.dialects import dialect

__all__ = ["Reader"]

# Records that may follow a footer; 05 and 07 may not.
_AFTER_FOOTER: Final = bytes((EOF, SECTION_START, SECTION_PART, SECTION_END, SECTION_FULL, COMMAND))


# First three bytes of what streams are often packed with.
_COMPRESSED: Final = {
    0x1F8B08: "gzip",
    0x425A68: "bzip2",
    0xFD377A: "xz",
    0x28B52F: "zstd",
    0x894C5A: "lzop",
}


# How much of a chunk is joined with what the chunk before it left, in bytes.
_OVERLAP: Final = 512


class _NeedMore(Exception):
    """``count`` bytes from the position on are wanted, or the rest of the input."""

    def __init__(self, count: int) -> None:
        self.count = count


class Reader:
    """Turns the bytes of one stream into events.

    ``description``: that of this very stream, when the caller could look at its end beforehand;
    without it, device bodies are kept (at most ``undescribed_limit`` bytes) until the description
    arrives.  ``searched``: there is no other description than the one given, so that nothing waits
    for it.  ``sink`` receives the contents that are too much for events.

    ``handlers`` are asked how to read each section; with them nothing waits for a description, nor
    for more bytes than the body at hand must have.  ``page_size``: target page size in bytes, if it
    is known beforehand; a configuration must not state another.

    ``version``, ``footers``, ``page_size``, ``blocks`` and ``trailing`` (where data behind the end
    of the stream begins) say what was found so far.

    ``feed`` and ``finish`` return the events that became complete.  They do not raise for bad
    input: ``error`` then holds the ``StreamError`` that ended reading.
    """

    def __init__(
        self,
        *,
        description: Description | None = None,
        sink: Sink | None = None,
        undescribed_limit: int = LIMIT_UNDESCRIBED,
        handlers: Handlers | None = None,
        page_size: int = 0,
        searched: bool = False,
    ) -> None:
        self.error: StreamError | None = None
        self.version = 0
        self.footers: bool | None = None
        self.configured = False
        self.described = False
        self.trailing: int | None = None
        self.ram_version: int | None = None
        self._description = description
        self._searched = searched or description is not None or handlers is not None
        self._handlers = handlers
        self._sink = sink
        self._undescribed_limit = undescribed_limit
        self._events: list[Event] = []
        self._ram = RamBody(self._events, sink, handlers)
        self._ram.page_size = page_size
        self._given_page_size = page_size
        self._unnamed = UnnamedRam(self._events, sink, self._ram)
        self._pages: PageRuns = self._ram
        self._live = LiveBody()
        self._data = b""
        self._pos: int = 0
        self._base: int = 0
        self._final = False
        self._chunks: list[bytes] = []
        self._buffered: int = 0
        self._need: int = 1
        self._label: str | None = None
        self._section: Section | None = None
        self._ids: dict[int, Section] = {}
        self._entries: dict[int, dict[str, Any] | None] = {}
        self._entry: dict[str, Any] | None = None
        self._occurrences: dict[tuple[str, int], int] = {}
        self._configuration: Configuration | None = None
        self._page_bits = 0
        self._fields: int = 0
        self._end: int = -1
        self._record_end: int = 0
        self._left: int = 0
        self._word: int = 0
        self._word_at: int = 0
        self._device = ""
        self._deferred: StreamError | None = None
        self._step: Callable[[], bool] = self._read_header

    @property
    def dialect(self) -> str:
        """The name of the dialect of what has been read."""
        return dialect(
            self.version,
            configuration=self.configured,
            vmdescription=self.described,
            ram_version=self.ram_version or 0,
        )

    @property
    def page_size(self) -> int | None:
        """Target page size in bytes, as far as it is known; versions 1 and 2 have none."""
        if self.version < VERSION_3:
            return None
        return int(self._ram.page_size) or self._stated_page_size()

    @property
    def blocks(self) -> dict[str, int]:
        """Used length in bytes of each RAM block listed so far, in order."""
        return self._ram.blocks

    def feed(self, data: bytes) -> list[Event]:
        """Read ``data``, the next bytes of the stream, of any length."""
        if self.error is None:
            self._chunks.append(data)
            self._buffered += len(data)
            if self._buffered >= self._need:
                self._run()
        return self._drain()

    def finish(self) -> list[Event]:
        """The stream has no more bytes."""
        if self.error is None and not self._final:
            self._final = True
            self._run()
        return self._drain()

    def _drain(self) -> list[Event]:
        events = self._events[:]
        self._events.clear()
        return events

    def _run(self) -> None:
        chunks = self._chunks
        last = chunks[-1] if chunks else b""
        before = self._buffered - len(last)
        self._pos = 0
        if 0 < before <= _OVERLAP and len(last) > 64 * _OVERLAP and not self._final:
            # Only what straddles the chunks is joined: a chunk is too large to be copied for it.
            self._data = b"".join(chunks[:-1]) + last[:_OVERLAP]
            self._steps()
            if self._pos >= before:
                self._data = last
                self._base += before
                self._pos -= before
            else:
                self._data = b"".join(chunks)
        else:
            self._data = last if len(chunks) == 1 else b"".join(chunks)
        self._steps()
        if self._final:
            self._step = _ended
        rest = self._data[self._pos :]
        self._base += self._pos
        self._data = b""
        self._chunks = [rest] if rest else []
        self._buffered = len(rest)

    def _steps(self) -> None:
        """Read on in the buffer for as long as it goes."""
        if self.error is not None:
            return
        self._need = 1
        try:
            while self._step():
                pass
        except _NeedMore as more:
            self._need = max(more.count, 1)
        except StreamError as error:
            self._ram.flush()
            self._unnamed.flush()
            # The frames would keep the input alive, and this reader in a cycle with it.
            error.__traceback__ = error.__context__ = None
            self.error = error

    # Access to the buffer: a step peeks at what it needs and advances only when it has all of it.

    def _have(self, count: int, rule: str) -> None:
        """Bytes ``[0, count)`` from the position on are there, or ``rule`` is broken at the end."""
        if len(self._data) - self._pos < count:
            if self._final:
                end = self._base + len(self._data)
                raise self._error(rule, end, f"the input ends at offset {end}")
            raise _NeedMore(count)

    def _at(self, offset: int) -> int:
        return self._base + self._pos + offset

    def _int(self, offset: int, size: int) -> int:
        at = self._pos + offset
        return int.from_bytes(self._data[at : at + size], "big")

    def _bytes(self, offset: int, size: int) -> bytes:
        at = self._pos + offset
        return self._data[at : at + size]

    def _counted(self, offset: int, rule: str) -> str:
        """A string behind its length byte."""
        self._have(offset + 1, rule)
        length = self._data[self._pos + offset]
        self._have(offset + 1 + length, rule)
        return self._bytes(offset + 1, length).decode("latin-1")

    def _error(self, rule: str, offset: int, detail: str) -> StreamError:
        return stream_error(rule, offset, self._label, detail)

    def _find(self, rule: str, offset: int, detail: str) -> None:
        self._events.append(Finding(offset, rule, self._label, detail))

    # File header and configuration

    def _read_header(self) -> bool:
        self._have(4, "header.truncated")
        magic = self._int(0, 4)
        if magic != MAGIC:
            packed = _COMPRESSED.get(magic >> 8)
            hint = f": looks compressed with {packed}, unpack it first" if packed else ""
            raise self._error("header.magic", 0, f"magic {magic:#010x}, not {MAGIC:#010x}{hint}")
        self._have(8, "header.truncated")
        version = self._int(4, 4)
        if version not in (VERSION_1, VERSION_2, VERSION_3):
            raise self._error("header.version", 4, f"version {version}")
        total = 0
        size = 8
        if version == VERSION_2:
            size = 16
            self._have(size, "header.truncated")
            total = self._int(8, 8)
            self._end = 16 + total
        self.version = version
        self._events.append(Header(0, version, total))
        self._pos += size
        self._step = self._read_type if version == VERSION_3 else self._read_legacy
        return True

    def _read_configuration(self) -> bool:
        rule = "configuration.truncated"
        self._have(5, rule)
        length = self._int(1, 4)
        if length > LIMIT_MACHINE_NAME:
            raise self._error("limit.machine-name", self._at(1), f"a name of {length} bytes")
        self._have(5 + length, rule)
        if not length:
            self._find("configuration.machine.empty", self._at(1), "the machine name is empty")
        self._configuration = Configuration(
            self._at(0), self._bytes(5, length).decode("latin-1"), []
        )
        self.configured = True
        self._pos += 5 + length
        self._step = self._read_configuration_end
        return True

    def _read_configuration_end(self) -> bool:
        assert self._configuration is not None
        if len(self._data) == self._pos and not self._final:
            raise _NeedMore(1)
        if len(self._data) > self._pos and self._data[self._pos] == SUBSECTION:
            subsection, size = self._read_configuration_subsection(0)
            self._configuration.subsections.append(subsection)
            self._pos += size
        else:
            self._events.append(self._configuration)
            if self._handlers is not None:
                self._handlers.configuration(self._configuration)
            self._step = self._read_type
        return True

    def _read_configuration_subsection(self, at: int) -> tuple[ConfigurationSubsection, int]:
        rule = "configuration.truncated"
        name = self._counted(at + 1, rule)
        if name not in (TARGET_PAGE_BITS, CAPABILITIES, UUID):
            raise self._error(
                "configuration.subsection.unknown", self._at(at + 1), f"subsection {name!r}"
            )
        assert self._configuration is not None
        if name in [earlier.name for earlier in self._configuration.subsections]:
            raise self._error(
                "configuration.subsection.repeated",
                self._at(at + 1),
                f"subsection {name!r} comes again",
            )
        at += 2 + len(name)
        self._have(at + 4, rule)
        version = self._int(at, 4)
        if version != CONFIGURATION_SUBSECTION_VERSION:
            raise self._error(
                "configuration.subsection.version", self._at(at), f"version {version} of {name!r}"
            )
        at += 4
        value: Any
        if name == UUID:
            self._have(at + UUID_SIZE, rule)
            value = self._bytes(at, UUID_SIZE)
            return ConfigurationSubsection(name, version, value), at + UUID_SIZE
        self._have(at + 4, rule)
        number = self._int(at, 4)
        if name == TARGET_PAGE_BITS:
            given = self._given_page_size
            if not TARGET_PAGE_BITS_MIN <= number <= TARGET_PAGE_BITS_MAX or (
                given and given != 1 << number
            ):
                raise self._error(
                    "configuration.target-page-bits", self._at(at), f"{number} target page bits"
                )
            self._page_bits = number
            return ConfigurationSubsection(name, version, number), at + 4
        if number > LIMIT_CAPABILITIES:
            raise self._error("limit.capabilities", self._at(at), f"{number} capabilities")
        at += 4
        names: list[str] = []
        for _ in range(number):
            capability = self._counted(at, rule)
            if capability not in CAPABILITY_NAMES:
                raise self._error(
                    "configuration.capability.unknown",
                    self._at(at),
                    f"capability {capability!r}",
                )
            if capability in CAPABILITIES_THAT_CHANGE_RAM:
                raise self._error(
                    "configuration.capability.unsupported",
                    self._at(at),
                    f"capability {capability!r} changes what RAM sections hold",
                )
            names.append(capability)
            at += 1 + len(capability)
        return ConfigurationSubsection(name, version, names), at

    # Records

    def _read_type(self) -> bool:
        self._label = None
        self._have(1, "stream.truncated")
        kind = self._data[self._pos]
        if kind in (SECTION_START, SECTION_FULL):
            return self._read_section_start(kind)
        if kind in (SECTION_PART, SECTION_END):
            return self._read_section_part(kind)
        if kind == EOF:
            self._events.append(Eof(self._at(0)))
            self._pos += 1
            self._step = self._read_after_eof
            return True
        if kind == COMMAND:
            return self._read_command()
        if kind == CONFIGURATION:
            if self._at(0) == CONFIGURATION_OFFSET:
                return self._read_configuration()
            raise self._error(
                "configuration.misplaced", self._at(0), "a configuration not behind the file header"
            )
        if kind == VMDESCRIPTION:
            raise self._error(
                "vmdesc.misplaced", self._at(0), "a VMDESCRIPTION before the EOF mark"
            )
        if kind == SECTION_FOOTER:
            raise self._error("footer.unexpected", self._at(0), "a footer where a record begins")
        raise self._error("section.type", self._at(0), f"record type {kind:#04x}")

    def _read_command(self) -> bool:
        rule = "command.truncated"
        self._have(5, rule)
        number, length = self._int(1, 2), self._int(3, 2)
        if number not in COMMAND_NAMES:
            raise self._error("command.unknown", self._at(1), f"command {number}")
        allowed = COMMAND_LENGTHS.get(number)
        if allowed is not None:
            bad = length not in allowed
        elif number == CMD_POSTCOPY_RAM_DISCARD:
            bad = length < RAM_DISCARD_LENGTH_MIN
        else:
            bad = length < 1
        if bad:
            raise self._error(
                "command.length", self._at(3), f"{COMMAND_NAMES[number]} of {length} bytes"
            )
        self._have(5 + length, rule)
        payload = self._bytes(5, length)
        package = b""
        size = 5 + length
        if number == CMD_POSTCOPY_RAM_DISCARD:
            ranges = length - 3 - payload[1]
            if (
                payload[0] != RAM_DISCARD_VERSION
                or ranges < RAM_DISCARD_RANGE_SIZE
                or ranges % RAM_DISCARD_RANGE_SIZE
                or payload[2 + payload[1]]
            ):
                raise self._error(
                    "command.postcopy-ram-discard.payload",
                    self._at(5),
                    "not version 0, a block name and ranges",
                )
        elif number == CMD_RECV_BITMAP:
            if payload[0] + 1 != length:
                raise self._error(
                    "command.recv-bitmap.payload", self._at(5), "not one counted block name"
                )
        elif number == CMD_PACKAGED:
            count = int.from_bytes(payload, "big")
            if count == 0:
                raise self._error("command.packaged.empty", self._at(5), "an empty package")
            if count > LIMIT_PACKAGED:
                raise self._error("limit.packaged", self._at(5), f"a package of {count} bytes")
            self._have(size + count, rule)
            package = self._bytes(size, count)
            size += count
        self._events.append(Command(self._at(0), number, payload, package))
        self._pos += size
        return True

    def _read_section_start(self, kind: int) -> bool:
        rule = "section.truncated"
        self._have(6, rule)
        length = self._data[self._pos + 5]
        if not length:
            raise self._error("section.idstr.empty", self._at(5), "the idstr is empty")
        idstr = self._counted(5, rule)
        self._label = idstr
        at = 6 + length
        self._have(at + 8, rule)
        section_id, instance_id, version_id = (
            self._int(1, 4),
            self._int(at, 4),
            self._int(at + 4, 4),
        )
        newest = LIVE_VERSIONS.get(idstr)
        if newest is not None and version_id > newest:
            raise self._error(
                "section.version.newer-than-supported",
                self._at(at + 4),
                f"version {version_id}, supported up to {newest}",
            )
        section = Section(self._at(0), kind, section_id, idstr, instance_id, version_id)
        if idstr == RAM_IDSTR and self.ram_version is None:
            self.ram_version = version_id
        live = _is_live(section)
        if not live and not self._searched:
            self._wait(at + 8)
            self._search()
        known = self._ids.get(section_id)
        if known is not None and (known.idstr, known.instance_id) != (idstr, instance_id):
            self._find(
                "section.id.reused",
                self._at(1),
                f"section id {section_id} already stands for {known.idstr!r}",
            )
        if not live:
            self._look_up(section, self._at(at + 4))
        self._ids[section_id] = section
        self._begin(section, at + 8)
        return True

    def _look_up(self, section: Section, version_at: int) -> None:
        """Find the section's entry in the description."""
        key = (section.idstr, section.instance_id)
        entry: dict[str, Any] | None = None
        if self._description is not None:
            entry = self._description.device(
                section.idstr, section.instance_id, self._occurrences.get(key, 0)
            )
            self._occurrences[key] = self._occurrences.get(key, 0) + 1
        if entry is not None:
            version = entry.get("version")
            if type(version) is int and version != section.version_id:
                raise self._error(
                    "section.version.differs-from-description",
                    version_at,
                    f"version {section.version_id}, described as {version}",
                )
        self._entries[section.section_id] = entry

    def _read_section_part(self, kind: int) -> bool:
        self._have(5, "section.truncated")
        section_id = self._int(1, 4)
        first = self._ids.get(section_id)
        if first is None:
            raise self._error(
                "section.id.unknown", self._at(1), f"no section has had the id {section_id}"
            )
        self._label = first.idstr
        self._begin(
            Section(
                self._at(0), kind, section_id, first.idstr, first.instance_id, first.version_id
            ),
            5,
        )
        return True

    def _begin(self, section: Section, size: int) -> None:
        self._events.append(section)
        self._section = section
        self._pos += size
        handler = None if self._handlers is None else self._handlers.begin(section)
        if isinstance(handler, LiveBody):
            self._live = handler
            self._step = self._read_live
        elif handler is not None:
            self._entry = handler
            self._step = self._read_device
        elif not _is_live(section):
            self._entry = self._entries.get(section.section_id)
            self._step = self._read_device
        elif section.idstr == RAM_IDSTR:
            if not self._ram.page_size:
                self._ram.page_size = self._stated_page_size() or 0
            if section.version_id == RAM_VERSION:
                self._ram.start()
                self._pages = self._ram
            else:
                self._unnamed.begin(section.version_id)
                self._pages = self._unnamed
            self._step = self._read_ram
        elif section.idstr == HTAB_IDSTR:
            self._step = self._read_htab
        elif section.idstr == BLOCK_IDSTR:
            self._step = self._read_disk_word
        else:
            self._step = self._read_attributes

    def _stated_page_size(self) -> int | None:
        if self._page_bits:
            return 1 << self._page_bits
        return self._description.page_size if self._description is not None else None

    # Bodies

    def _read_ram(self) -> bool:
        ram = self._pages
        self._pos = int(ram.read(self._data, self._pos, self._base, self._final))
        if ram.done:
            self._end_body()
            return True
        if not ram.need:
            if not self._searched:
                self._wait(0)
                self._search()
            self._ram.page_size = self._stated_page_size() or RAM_PAGE_SIZE_DEFAULT
            return True
        self._have(max(int(ram.need), len(self._data) - self._pos + 1), "ram.truncated")
        return True

    def _read_live(self) -> bool:
        live = self._live
        self._pos = int(live.read(self._data, self._pos, self._base, self._final))
        if live.done:
            self._end_body()
        else:
            self._have(max(int(live.need), len(self._data) - self._pos + 1), "section.truncated")
        return True

    def _read_htab(self) -> bool:
        rule = "htab.truncated"
        self._have(4, rule)
        header = self._int(0, 4)
        self._events.append(HtabHeader(self._at(0), header))
        self._pos += 4
        if header:
            self._end_body()
        else:
            self._step = self._read_htab_chunk
        return True

    def _read_htab_chunk(self) -> bool:
        rule = "htab.truncated"
        self._have(8, rule)
        index, valid, invalid = self._int(0, 4), self._int(4, 2), self._int(6, 2)
        size = valid * HTAB_ENTRY_SIZE
        self._have(8 + size, rule)
        self._events.append(HtabChunk(self._at(0), index, valid, invalid, self._bytes(8, size)))
        self._pos += 8 + size
        if not (index or valid or invalid):
            self._end_body()
        return True

    def _read_attributes(self) -> bool:
        rule = "storage-attributes.truncated"
        self._have(8, rule)
        word = self._int(0, 8)
        flag = word & STORAGE_ATTRIBUTES_FLAG_MASK
        size = 8
        data = b""
        if flag == STORAGE_ATTRIBUTES_MORE:
            self._have(16, rule)
            count = self._int(8, 8)
            if count > LIMIT_STORAGE_ATTRIBUTES:
                raise self._error("limit.storage-attributes", self._at(8), f"{count} attributes")
            self._have(16 + count, rule)
            data = self._bytes(16, count)
            size = 16 + count
        elif flag not in (STORAGE_ATTRIBUTES_EOS, STORAGE_ATTRIBUTES_DONE):
            raise self._error("storage-attributes.flags", self._at(0), f"flags {flag:#x}")
        self._events.append(AttributesWord(self._at(0), flag, word - flag, data))
        self._pos += size
        if flag == STORAGE_ATTRIBUTES_EOS:
            self._end_body()
        return True

    def _read_disk_word(self) -> bool:
        rule = "block.truncated"
        self._have(8, rule)
        word = self._int(0, 8)
        flags = word & ((1 << BLOCK_SECTOR_BITS) - 1)
        device = ""
        size = 8
        if flags in (BLOCK_DEVICE, BLOCK_DEVICE | BLOCK_ZERO):
            device = self._counted(8, rule)
            size += 1 + len(device)
        elif flags not in (BLOCK_EOS, BLOCK_PROGRESS):
            raise self._error("block.flags", self._at(0), f"flags {flags:#x}")
        if flags == BLOCK_DEVICE:
            self._word = word
            self._device = device
            self._left = BLOCK_SIZE
            self._word_at = self._at(0)
            self._step = self._read_disk_block
        else:
            if flags == BLOCK_DEVICE | BLOCK_ZERO and self._sink is not None:
                self._sink.disk_zero(device, word >> BLOCK_SECTOR_BITS)
            self._events.append(DiskWord(self._at(0), word, device))
        self._pos += size
        if flags == BLOCK_EOS:
            self._end_body()
        return True

    def _read_disk_block(self) -> bool:
        piece = min(self._left, len(self._data) - self._pos)
        if self._sink is not None and piece:
            sector = self._word >> BLOCK_SECTOR_BITS
            at = BLOCK_SIZE - self._left
            end = self._pos + piece
            self._sink.disk_data(self._device, sector, at, self._data, self._pos, end)
        self._pos += piece
        self._left -= piece
        if self._left:
            self._have(1, "block.truncated")
        self._events.append(DiskWord(self._word_at, self._word, self._device))
        self._step = self._read_disk_word
        return True

    def _read_device(self) -> bool:
        entry = self._entry
        if entry is None:
            return self._read_undescribed()
        try:
            self._take_device(entry, self._within_limit(), self._final)
        except vmstate.EndOfData as e:
            self._wait_within(e.need - self._pos, "vmstate.truncated")
            raise
        self._end_body()
        return True

    def _take_device(self, entry: dict[str, Any], end: int, complete: bool) -> None:
        """A body that follows a layout and lies in the data before ``end``."""
        assert self._section is not None
        data, pos, base, idstr = self._data, self._pos, self._base, self._section.idstr
        kind, layout = "vmstate", entry
        if "name" in entry:
            kind, state, end, self._fields = vmstate.decode(
                entry, data, pos, end, base, idstr, self._fields
            )
        else:
            state, layout, end, self._fields = vmstate.decode_schema(
                entry, data, pos, end, base, idstr, self._fields, complete
            )
        if kind == "vmstate":
            self._events.append(Device(self._at(0), kind, end - pos, state, layout, b""))
        else:
            self._events.append(Device(self._at(0), kind, end - pos, None, None, data[pos:end]))
        self._pos = end

    def _read_by_schema(self, known: tuple[dict[str, Any], ...]) -> bool:
        """Read the body by the first schema with a record behind it, else with a part of one.

        Whether there is such.  Raises the error of the first that cannot be read.
        """
        assert self._section is not None
        chosen: tuple[Any, dict[str, Any], int, int] | None = None
        error: StreamError | None = None
        for schema in known:
            try:
                decoded = self._decode_by(schema)
            except StreamError as e:
                error = error or e
                continue
            begins = self._record_begins(decoded[2] - self._pos)
            if begins or (begins is None and chosen is None):
                chosen = decoded
            if begins:
                break
        if chosen is None:
            if error is not None:
                raise error
            return False
        state, layout, end, self._fields = chosen
        size = end - self._pos
        self._events.append(Device(self._at(0), "vmstate", size, state, layout, b""))
        self._pos = end
        self._end_body()
        return True

    def _decode_by(self, schema: dict[str, Any]) -> tuple[Any, dict[str, Any], int, int]:
        assert self._section is not None
        try:
            return vmstate.decode_schema(
                schema,
                self._data,
                self._pos,
                self._within_limit(),
                self._base,
                self._section.idstr,
                self._fields,
                self._final,
            )
        except vmstate.EndOfData as e:
            self._wait_within(e.need - self._pos, "vmstate.truncated")
            raise

    def _record_begins(self, at: int) -> bool | None:
        """Whether what begins ``at`` bytes from the position looks like a record.

        None: it does, and the input ends before the record can be told.
        """
        if not self._there(at + 1):
            return None
        kind = self._int(at, 1)
        if kind == EOF:
            return not self._there(at + 2)
        if kind in (SECTION_PART, SECTION_END):
            return self._int(at + 1, 4) in self._ids if self._there(at + 5) else None
        if kind not in (SECTION_START, SECTION_FULL):
            return False
        if not self._there(at + 6):
            return None
        length = self._int(at + 5, 1)
        whole = self._there(at + 6 + length)
        if not length or not all(0x20 <= byte <= 0x7E for byte in self._bytes(at + 6, length)):
            return False
        return True if whole else None

    def _there(self, count: int) -> bool:
        """Whether the input has ``count`` bytes from the position on."""
        if len(self._data) - self._pos >= count:
            return True
        if self._final:
            return False
        raise _NeedMore(count)

    def _read_undescribed(self) -> bool:
        assert self._section is not None
        size = -1
        if not self.footers and (self.footers is not None or not self.configured):
            known = schemas(self._section.idstr, self._section.version_id)
            if known:
                self.footers = False
                if self._read_by_schema(known):
                    return True
        else:
            size = self._distance_to_footer(self._section.section_id)
        if size < 0 and not self._final:
            have = len(self._data) - self._pos
            self._wait_within(have + 1, "section.truncated")
        start = self._at(0)
        self._find("section.body.undescribed", start, "nothing describes the body")
        if size < 0:
            if self.footers:
                end = self._base + len(self._data)
                raise self._error("section.truncated", end, "the input ends before the footer")
            self.footers = False
            raw = self._data[self._pos :]
            self._find("stream.undelimited", start, "nothing delimits the body")
            self._events.append(Device(start, "undelimited", len(raw), None, None, raw))
            self._pos = len(self._data)
            if not raw or raw[-1] != EOF:
                raise self._error(
                    "stream.eof-mark",
                    self._base + len(self._data) - (1 if raw else 0),
                    "the input does not end with the EOF mark",
                )
            self._step = _ended
            return True
        self.footers = True
        self._events.append(Device(start, "opaque", size, None, None, self._bytes(0, size)))
        self._pos += size
        self._end_body()
        return True

    def _distance_to_footer(self, section_id: int) -> int:
        """Bytes from the position to what looks like the section's footer, -1 if nothing does."""
        mark = struct.pack(">BI", SECTION_FOOTER, section_id)
        end = self._within_limit()
        found = self._data.find(mark, self._pos, end)
        while found >= 0:
            after = found + 5
            if after == end:
                return found - self._pos if self._final else -1
            if self._data[after] in _AFTER_FOOTER:
                return found - self._pos
            found = self._data.find(mark, found + 1, end)
        return -1

    def _end_body(self) -> None:
        self._events.append(BodyEnd(self._at(0)))
        self._step = self._read_footer

    def _read_footer(self) -> bool:
        if self.footers is None:
            if len(self._data) == self._pos:
                if not self._final:
                    raise _NeedMore(1)
                self._step = self._read_type
                return True
            self.footers = self._data[self._pos] == SECTION_FOOTER
        if self.footers:
            assert self._section is not None
            self._have(1, "section.truncated")
            mark = self._data[self._pos]
            if mark != SECTION_FOOTER:
                raise self._error("footer.missing", self._at(0), f"{mark:#04x} instead of a footer")
            self._have(5, "footer.truncated")
            section_id = self._int(1, 4)
            if section_id != self._section.section_id:
                raise self._error(
                    "footer.id",
                    self._at(1),
                    f"footer of section {section_id}, not {self._section.section_id}",
                )
            self._events.append(Footer(self._at(0), section_id))
            self._pos += 5
        self._step = self._read_type
        return True

    # Waiting for the description, or for the end of a body

    def _wait_within(self, need: int, rule: str) -> None:
        """A body needs ``need`` bytes, more than there are."""
        have = len(self._data) - self._pos
        if have > self._undescribed_limit:
            raise self._limited(self._at(0))
        # Reading the body begins anew each time: where nobody waits for it, that is done seldom.
        want = need if self._handlers is not None else max(need, 2 * have)
        self._have(min(want, self._undescribed_limit + 1), rule)

    def _within_limit(self) -> int:
        """Where a body that is being waited for must have ended, or the data ends."""
        return min(len(self._data), self._pos + self._undescribed_limit + 1)

    def _wait(self, at: int) -> None:
        """Go on only when the input is complete: what tells where bodies end is its last part."""
        if self._final:
            return
        waiting = len(self._data) - self._pos
        if waiting > self._undescribed_limit:
            raise self._limited(self._at(at))
        raise _NeedMore(self._undescribed_limit + 1)

    def _limited(self, offset: int) -> StreamError:
        return self._error(
            "limit.undescribed",
            offset,
            f"more than {self._undescribed_limit} bytes wait for what tells where the body ends",
        )

    def _search(self) -> None:
        if not self._searched:
            self._searched = True
            self._description = find_description(self._data)

    # The end

    def _read_after_eof(self) -> bool:
        if len(self._data) == self._pos:
            return False
        if self._data[self._pos] != VMDESCRIPTION:
            self._find("stream.trailing-data", self._at(0), "data behind the EOF mark")
            self._step = self._skip
            return True
        rule = "vmdesc.truncated"
        self._have(5, rule)
        length = self._int(1, 4)
        if length > LIMIT_VMDESC:
            raise self._error("limit.vmdesc-size", self._at(1), f"a text of {length} bytes")
        self._have(5 + length, rule)
        text = self._bytes(5, length)
        description = self._description
        if description is None or description.text != text:
            try:
                description = Description(text)
            except DescriptionError as e:
                raise self._error(e.rule, self._at(5), str(e)) from None
        self._events.append(VmDescription(self._at(0), text, len(description.devices)))
        if self._page_bits and description.page_size not in (None, 1 << self._page_bits):
            self._find(
                "vmdesc.page-size",
                self._at(0),
                f"pages of {description.page_size} bytes, {1 << self._page_bits} configured",
            )
        self.described = True
        self._pos += 5 + length
        self._step = self._read_behind
        return True

    def _read_behind(self) -> bool:
        if len(self._data) > self._pos:
            self._find("stream.trailing-data", self._at(0), "data behind the stream")
            self._step = self._skip
            return True
        return False

    def _skip(self) -> bool:
        if self.trailing is None:
            self.trailing = self._at(0)
        self._pos = len(self._data)
        return False

    # Versions 1 and 2

    def _within(self, at: int) -> None:
        """The record's first ``at`` bytes lie within the stream and are there."""
        if 0 <= self._end < self._at(at):
            raise self._error(
                "record.outside-total",
                self._at(0),
                f"the record exceeds the total length, which ends at offset {self._end}",
            )
        self._have(at, "record.truncated")

    def _read_legacy(self) -> bool:
        self._label = None
        here = self._at(0)
        if here == self._end:
            self._step = self._read_behind
            return True
        if len(self._data) == self._pos:
            if self._end >= 0:
                self._have(1, "stream.truncated")
            return False
        self._within(1)
        length = self._data[self._pos]
        self._within(1 + length)
        idstr = self._bytes(1, length).decode("latin-1")
        self._label = idstr
        at = 1 + length
        for end in (at + 4, at + 8, at + 12):
            self._within(end)
        size = self._int(at + 8, 4)
        if size >= 1 << 31:
            raise self._error("record.length", self._at(at + 8), f"a body of {size} bytes")
        if 0 <= self._end < self._at(at + 12 + size):
            self._within(at + 12 + size)
        section = Section(here, 0, 0, idstr, self._int(at, 4), self._int(at + 4, 4), size)
        self._events.append(section)
        self._section = section
        self._pos += at + 12
        self._record_end = self._at(size)
        self._begin_record(section)
        return True

    def _begin_record(self, section: Section) -> None:
        handler = None if self._handlers is None else self._handlers.begin(section)
        if isinstance(handler, LiveBody):
            self._live = handler
            self._step = self._read_live_record
        elif handler is not None:
            self._entry = handler
            self._step = self._read_described_record
        elif section.idstr == RAM_IDSTR and section.version_id in (1, 2):
            self._unnamed.begin(section.version_id)
            self._step = self._read_ram_record
        elif section.body_length <= LIMIT_SCHEMA_BODY and schemas(
            section.idstr, section.version_id
        ):
            self._step = self._read_device_record
        else:
            self._begin_record_body()

    def _in_record(self) -> tuple[int, bool]:
        """Where in the data the record ends, and whether it does; else where the data ends."""
        end = self._record_end - self._base
        return (end, True) if end <= len(self._data) else (len(self._data), False)

    def _have_in_record(self, need: int) -> None:
        """``need`` bytes are wanted, which are not all there; nothing behind the record is."""
        self._have(min(need, self._record_end - self._at(0)), "record.truncated")

    def _outside(self) -> StreamError:
        return self._error(
            "record.body.outside", self._record_end, "the body goes on behind its record"
        )

    def _defer(self, error: StreamError) -> bool:
        """A body is wrong; that the input ends within its record would be said first."""
        if self._in_record()[1]:
            raise error
        error.__traceback__ = error.__context__ = None
        self._deferred = error
        self._step = self._skip_record
        return True

    def _skip_record(self) -> bool:
        assert self._deferred is not None
        end, whole = self._in_record()
        self._pos = end
        if whole:
            raise self._deferred
        self._have(1, "record.truncated")
        return True

    def _read_ram_record(self) -> bool:
        ram = self._unnamed
        end, whole = self._in_record()
        try:
            self._pos = int(ram.read_within(self._data, self._pos, end, self._base, whole))
        except StreamError as e:
            return self._defer(e)
        return self._continue_record(ram, whole)

    def _read_live_record(self) -> bool:
        live = self._live
        end, whole = self._in_record()
        try:
            if whole:
                data = self._data[self._pos : end]
                self._pos += int(live.read(data, 0, self._base + self._pos, True))
            else:
                self._pos = int(live.read(self._data, self._pos, self._base, False))
        except StreamError as e:
            return self._defer(e)
        return self._continue_record(live, whole)

    def _continue_record(self, live: LiveBody, whole: bool) -> bool:
        if live.done:
            return self._end_record()
        if whole:
            raise self._outside()
        self._have_in_record(max(int(live.need), len(self._data) - self._pos + 1))
        return True

    def _read_described_record(self) -> bool:
        assert self._entry is not None
        end, whole = self._in_record()
        try:
            self._take_device(self._entry, end, whole)
        except vmstate.EndOfData as e:
            if whole:
                raise self._outside() from None
            self._have_in_record(e.need - self._pos)
            raise
        except StreamError as e:
            return self._defer(e)
        return self._end_record()

    def _read_device_record(self) -> bool:
        assert self._section is not None
        section = self._section
        size = section.body_length
        self._have(size, "record.truncated")
        end = self._pos + size
        for schema in schemas(section.idstr, section.version_id):
            try:
                state, layout, stop, fields = vmstate.decode_schema(
                    schema,
                    self._data,
                    self._pos,
                    end,
                    self._base,
                    section.idstr,
                    self._fields,
                    True,
                )
            except (StreamError, vmstate.EndOfData):
                continue
            if stop == end:
                self._fields = fields
                self._events.append(Device(self._at(0), "vmstate", size, state, layout, b""))
                self._pos = end
                return self._end_record()
        self._begin_record_body()
        return True

    def _end_record(self) -> bool:
        """A body has been read; what it left of the record is kept, but means nothing."""
        if self._at(0) < self._record_end:
            self._begin_record_body()
        else:
            self._events.append(BodyEnd(self._at(0)))
            self._step = self._read_legacy
        return True

    def _begin_record_body(self) -> None:
        assert self._section is not None
        self._left = self._record_end - self._at(0)
        self._events.append(RecordBody(self._at(0), self._left))
        if self._sink is not None:
            self._sink.record(self._section.idstr, self._section.instance_id, self._left)
        self._step = self._read_record_body

    def _read_record_body(self) -> bool:
        assert self._section is not None
        end, whole = self._in_record()
        if self._sink is not None and end > self._pos:
            self._sink.body_data(self._data, self._pos, end)
        self._pos = end
        if not whole:
            self._have(1, "record.truncated")
        if self._left < self._section.body_length:
            rest = self._record_end - self._left
            self._find("record.body.rest", rest, f"{self._left} bytes behind the body")
        self._events.append(BodyEnd(self._at(0)))
        self._step = self._read_legacy
        return True


def _ended() -> bool:
    return False


def _is_live(section: Section) -> bool:
    """Whether the body frames itself in the version at hand."""
    if section.idstr == RAM_IDSTR:
        return section.version_id in RAM_VERSIONS
    return LIVE_VERSIONS.get(section.idstr) == section.version_id
