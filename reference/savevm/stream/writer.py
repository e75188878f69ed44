"""Writes a stream: events in, bytes out.  The inverse of ``reader``; does no I/O."""

import struct

from savevm import vmstate
from savevm.stream.events import (
    AttributesWord,
    BodyEnd,
    Command,
    Configuration,
    Device,
    DiskWord,
    Eof,
    Event,
    Finding,
    Footer,
    Header,
    HtabChunk,
    HtabHeader,
    PageRun,
    RamBlocks,
    RamChunk,
    RamWord,
    RecordBody,
    Section,
    VmDescription,
)
from savevm_spec.constants import (
    BLOCK_DEVICE,
    CAPABILITIES,
    CMD_PACKAGED,
    COMMAND,
    CONFIGURATION,
    EOF,
    MAGIC,
    RAM_CONTINUE,
    RAM_IDSTR,
    RAM_MEM_SIZE,
    RAM_PAGE,
    RAM_TAG_FILL,
    RAM_TAG_NORMAL,
    RAM_V1_PAGE_SIZE,
    RAM_VERSION,
    RAM_ZERO,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_START,
    STORAGE_ATTRIBUTES_MORE,
    SUBSECTION,
    TARGET_PAGE_BITS,
    VERSION_2,
    VMDESCRIPTION,
)

__all__ = ["Writer"]


def _counted(text: str) -> bytes:
    data = text.encode("latin-1")
    return bytes((len(data),)) + data


class Writer:
    """Turns events into the bytes of a stream, each exactly as the event says."""

    def __init__(self) -> None:
        self._page_size: int = 0
        self._legacy: bool = False
        self._ram_version: int = RAM_VERSION

    def set_page_size(self, page_size: int) -> None:
        """Target page size, in bytes; needed before the first ``PageRun``."""
        self._page_size = page_size

    @property
    def page_size(self) -> int:
        """Bytes in a page of the last ``Section``, if that is of RAM."""
        return RAM_V1_PAGE_SIZE if self._ram_version == 1 else self._page_size

    def write(self, event: Event, contents: bytes = b"") -> bytes:
        """Bytes of one event.  ``contents``: the pages of a ``PageRun`` of PAGE records in order,
        a device block (with its ``DiskWord``), or what a ``RecordBody`` announced (with its
        ``BodyEnd``)."""
        if isinstance(event, PageRun):
            return self._page_run(event, contents)
        if isinstance(event, Section):
            return self._section(event)
        if isinstance(event, Device):
            if event.kind == "vmstate":
                return vmstate.encode(event.layout, event.state)
            return event.raw
        if isinstance(event, BodyEnd):
            return contents
        if isinstance(event, RamChunk):
            return event.data
        if isinstance(event, DiskWord):
            head = event.word.to_bytes(8, "big")
            return head + _counted(event.device) + contents if event.word & BLOCK_DEVICE else head
        if isinstance(event, Footer):
            return struct.pack(">BI", SECTION_FOOTER, event.section_id)
        if isinstance(event, RamWord):
            return event.word.to_bytes(8, "big")
        if isinstance(event, RamBlocks):
            total = sum([used for _, used in event.blocks])
            if self._ram_version < 3:
                return total.to_bytes(4, "big")
            if self._ram_version == 3:
                return (total | RAM_MEM_SIZE).to_bytes(8, "big")
            out = [(total | RAM_MEM_SIZE).to_bytes(8, "big")]
            for name, used in event.blocks:
                out.append(_counted(name) + used.to_bytes(8, "big"))
            return b"".join(out)
        if isinstance(event, HtabHeader):
            return event.header.to_bytes(4, "big")
        if isinstance(event, HtabChunk):
            return struct.pack(">IHH", event.index, event.valid, event.invalid) + event.entries
        if isinstance(event, AttributesWord):
            data = (event.address | event.flag).to_bytes(8, "big")
            if event.flag == STORAGE_ATTRIBUTES_MORE:
                data += len(event.data).to_bytes(8, "big") + event.data
            return data
        if isinstance(event, Header):
            self._legacy = event.version < 3
            data = struct.pack(">II", MAGIC, event.version)
            if event.version == VERSION_2:
                data += event.total_length.to_bytes(8, "big")
            return data
        if isinstance(event, Configuration):
            return self._configuration(event)
        if isinstance(event, Command):
            data = struct.pack(">BHH", COMMAND, event.number, len(event.payload)) + event.payload
            return data + event.package if event.number == CMD_PACKAGED else data
        if isinstance(event, Eof):
            return bytes((EOF,))
        if isinstance(event, VmDescription):
            return struct.pack(">BI", VMDESCRIPTION, len(event.text)) + event.text
        assert isinstance(event, (Finding, RecordBody))
        return b""

    def _section(self, event: Section) -> bytes:
        if event.idstr == RAM_IDSTR:
            self._ram_version = event.version_id
        identity = _counted(event.idstr) + struct.pack(">II", event.instance_id, event.version_id)
        if self._legacy:
            return identity + event.body_length.to_bytes(4, "big")
        start = struct.pack(">BI", event.type, event.section_id)
        return start + identity if event.type in (SECTION_START, SECTION_FULL) else start

    def _configuration(self, event: Configuration) -> bytes:
        name = event.machine.encode("latin-1")
        out = [struct.pack(">BI", CONFIGURATION, len(name)) + name]
        for sub in event.subsections:
            out.append(bytes((SUBSECTION,)) + _counted(sub.name) + sub.version.to_bytes(4, "big"))
            if sub.name == TARGET_PAGE_BITS:
                out.append(sub.value.to_bytes(4, "big"))
            elif sub.name == CAPABILITIES:
                out.append(len(sub.value).to_bytes(4, "big"))
                out += [_counted(name) for name in sub.value]
            else:
                out.append(sub.value)
        return b"".join(out)

    def _page_run(self, run: PageRun, contents: bytes) -> bytes:
        size = self.page_size
        if self._ram_version == 1:
            if run.fill >= 0:
                return bytes((RAM_TAG_FILL, run.fill)) * run.count
            pages = [contents[i * size : (i + 1) * size] for i in range(run.count)]
            return b"".join([bytes((RAM_TAG_NORMAL,)) + page for page in pages])
        word = run.address | (RAM_PAGE if run.fill < 0 else RAM_ZERO)
        if self._ram_version == RAM_VERSION:
            word |= RAM_CONTINUE
        out: list[bytes] = []
        for i in range(run.count):
            if i == 0 and run.named:
                out.append((word & ~RAM_CONTINUE).to_bytes(8, "big") + _counted(run.block))
            else:
                out.append(word.to_bytes(8, "big"))
            if run.fill < 0:
                out.append(contents[i * size : (i + 1) * size])
            else:
                out.append(bytes((run.fill,)))
            word += size
        return b"".join(out)
