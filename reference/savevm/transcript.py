"""The transcript of a stream: what a reader understood of it, as JSON.

Every implementation gives the same transcript for the same bytes, so it is what they are compared
by.  Byte strings are lower-case hex, names are Latin-1, offsets and lengths are in bytes.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from mypy_extensions import i64

from savevm.rebuild import Rebuilder
from savevm.sink import Sink
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
from savevm.stream.reader import Reader
from savevm.vmdesc import find_description
from savevm_spec.constants import (
    BLOCK_DEVICE,
    BLOCK_IDSTR,
    BLOCK_PROGRESS,
    BLOCK_SECTOR_BITS,
    BLOCK_SIZE,
    COMMAND_NAMES,
    HTAB_IDSTR,
    RAM_EOS,
    RAM_HOOK,
    RAM_IDSTR,
    RAM_MULTIFD_FLUSH,
    RAM_UNNAMED_BLOCK,
    SECTION_NAMES,
    STORAGE_ATTRIBUTES_DONE,
    STORAGE_ATTRIBUTES_EOS,
    STORAGE_ATTRIBUTES_MORE,
)

__all__ = ["Transcriber", "rebuild", "transcribe"]

_ATTRIBUTE_FLAGS: Final = {
    STORAGE_ATTRIBUTES_EOS: "eos",
    STORAGE_ATTRIBUTES_MORE: "more",
    STORAGE_ATTRIBUTES_DONE: "done",
}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def jsonable(value: Any) -> Any:
    """A decoded device state with its byte strings as hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [jsonable(v) for v in value]
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    return value


class Memory(Sink):
    """Last contents of every page that is not all zero, and what else the transcript hashes.

    ``bodies``: the hashes of what was not decoded in records of version 1 and 2; ``disk``: pieces
    of device blocks.
    """

    def __init__(self) -> None:
        self.pages: dict[str, dict[int, bytes]] = {}
        self.bodies: deque[hashlib._Hash] = deque()
        self.disk: deque[memoryview] = deque()
        self._page_sizes: dict[str, int] = {}
        self._partial = bytearray()
        self._filled: dict[int, bytes] = {}

    def block(self, name: str, used_length: int, page_size: int) -> None:
        self._page_sizes[name] = page_size

    def page_data(self, block: str, address: i64, data: bytes, start: i64, end: i64) -> None:
        self._partial += data[start:end]
        if len(self._partial) == self._page_sizes[block]:
            page = bytes(self._partial)
            self._partial.clear()
            self._put(block, address + (end - start) - len(page), page)

    def fill(self, block: str, address: i64, count: i64, byte: i64) -> None:
        size = self._page_sizes[block]
        addresses = range(address, address + count * size, size)
        pages = self.pages.setdefault(block, {})
        if byte:
            if (page := self._filled.get(byte)) is None or len(page) != size:
                page = self._filled[byte] = bytes((byte,)) * size
            pages.update(dict.fromkeys(addresses, page))
        elif pages:
            for at in addresses:
                pages.pop(at, None)

    def _put(self, block: str, address: int, page: bytes) -> None:
        pages = self.pages.setdefault(block, {})
        if page.count(0) == len(page):
            pages.pop(address, None)
        else:
            pages[address] = page

    def record(self, idstr: str, instance_id: int, length: i64) -> None:
        self.bodies.append(hashlib.sha256())

    def body_data(self, data: bytes, start: i64, end: i64) -> None:
        self.bodies[-1].update(data[start:end])

    def disk_data(
        self, device: str, sector: i64, at: i64, data: bytes, start: i64, end: i64
    ) -> None:
        self.disk.append(memoryview(data)[start:end])

    def digest(self, block: str) -> str:
        """SHA-256 over address (be64) and contents of each page that is not all zero."""
        digest = hashlib.sha256()
        for address, page in sorted(self.pages.get(block, {}).items()):
            digest.update(address.to_bytes(8, "big"))
            digest.update(page)
        return digest.hexdigest()


class Transcriber:
    """Collects the events of one stream.

    ``memory`` must be the reader's sink; without it there are no RAM digests and no findings, and
    memory grows with the records alone.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory
        self.records: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self._current: dict[str, Any] = {}
        self._body: dict[str, Any] = {}
        self._disks: dict[str, hashlib._Hash] = {}
        self._raw: RecordBody | None = None

    def add(self, events: Iterable[Event]) -> None:
        """Take the next events."""
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        match event:
            case PageRun():
                kind = "normal" if event.fill < 0 else "fill" if event.fill else "zero"
                self._count(event.block, kind, event.count)
            case RamChunk():
                self._body["chunks"] += 1
                if event.blocks:
                    self._count(RAM_UNNAMED_BLOCK, "normal", event.blocks)
            case RamWord():
                if event.word == RAM_HOOK:
                    self._body["hooks"] += 1
                elif event.word == RAM_MULTIFD_FLUSH:
                    self._body["multifd_flushes"] += 1
                else:
                    assert event.word == RAM_EOS
            case RamBlocks():
                self._body["blocks"] += [
                    {"idstr": name, "used_length": used} for name, used in event.blocks
                ]
            case Section():
                self._section(event)
            case Device():
                self._device(event)
            case BodyEnd():
                self._end_body(event)
            case Footer():
                self._current["footer"] = True
            case DiskWord():
                self._disk_word(event)
            case RecordBody():
                self._raw = event
            case HtabHeader():
                self._body.update(kind="htab", header=event.header, chunks=[])
                self._body["offset"] = event.offset
            case HtabChunk():
                chunk = [event.index, event.valid, event.invalid, event.entries.hex()]
                if any(chunk):
                    self._body["chunks"].append(chunk)
            case AttributesWord():
                word: dict[str, Any] = {
                    "flag": _ATTRIBUTE_FLAGS[event.flag],
                    "address": event.address,
                }
                if event.flag == STORAGE_ATTRIBUTES_MORE:
                    word["data"] = event.data.hex()
                self._body["words"].append(word)
            case Finding() if self.memory is None:
                pass
            case Finding():
                self.findings.append(
                    {"rule": event.rule, "offset": event.offset, "section": event.section}
                )
            case Header():
                self._record("header", event, version=event.version)
                if event.version == 2:
                    self._current["total_length"] = event.total_length
            case Configuration():
                self._record("configuration", event, machine=event.machine)
                self._current["subsections"] = [
                    {
                        "name": s.name,
                        "version": s.version,
                        s.name.rpartition("/")[2].replace("-", "_"): jsonable(s.value),
                    }
                    for s in event.subsections
                ]
            case Command():
                self._record(
                    "command",
                    event,
                    command=event.number,
                    name=COMMAND_NAMES[event.number],
                    payload=event.payload.hex(),
                )
                if event.package:
                    self._current["package"] = {
                        "length": len(event.package),
                        "sha256": _sha256(event.package),
                    }
            case Eof():
                self._record("eof", event)
            case VmDescription():
                self._record("vmdescription", event, length=len(event.text), devices=event.devices)

    def _record(self, kind: str, event: Event, **values: Any) -> None:
        self._current = {"record": kind, "offset": event.offset, **values}
        self.records.append(self._current)

    def _count(self, block: str, kind: str, count: int) -> None:
        pages = self._body["pages"].setdefault(block, {"zero": 0, "fill": 0, "normal": 0})
        pages[kind] += count

    def _disk_word(self, event: DiskWord) -> None:
        sector, flags = event.word >> BLOCK_SECTOR_BITS, event.word & ((1 << BLOCK_SECTOR_BITS) - 1)
        if flags == BLOCK_PROGRESS:
            self._body["progress"].append(sector)
        if not flags & BLOCK_DEVICE:
            return
        disk = self._body["devices"].setdefault(event.device, {"normal": 0, "zero": 0})
        disk["normal" if flags == BLOCK_DEVICE else "zero"] += 1
        if self.memory is None:
            return
        digest = self._disks.setdefault(event.device, hashlib.sha256())
        digest.update(sector.to_bytes(8, "big"))
        left = BLOCK_SIZE if flags == BLOCK_DEVICE else 0
        while left:
            piece = self.memory.disk.popleft()
            digest.update(piece)
            left -= len(piece)
        disk["sha256"] = digest.hexdigest()

    def _section(self, event: Section) -> None:
        self._record(
            SECTION_NAMES.get(event.type, "record"),
            event,
            idstr=event.idstr,
            instance_id=event.instance_id,
            version_id=event.version_id,
        )
        size = len(event.idstr) + 13
        if event.type:
            size = size + 1 if event.type in (1, 4) else 5
            self._current["section_id"] = event.section_id
            self._current["footer"] = False
        offset = event.offset + size
        if event.idstr == RAM_IDSTR and (event.type or event.version_id in (1, 2)):
            self._body = {
                "kind": "ram",
                "blocks": [],
                "pages": {},
                "hooks": 0,
                "multifd_flushes": 0,
            }
            if event.version_id == 2:
                self._body["chunks"] = 0
        elif event.type == 0:
            self._body = {"kind": "buffer"}
        elif event.idstr == BLOCK_IDSTR:
            self._body = {"kind": "block", "devices": {}, "progress": []}
            self._disks = {}
        elif event.idstr == HTAB_IDSTR:
            self._body = {}
        else:
            self._body = {"kind": "storage-attributes", "words": []}
        self._body["offset"] = offset
        self._current["body"] = self._body

    def _device(self, event: Device) -> None:
        self._body = {"kind": event.kind, "offset": event.offset, "length": event.length}
        if event.kind == "vmstate":
            self._body.update(jsonable(event.state))
        else:
            self._body["sha256"] = _sha256(event.raw)
        self._current["body"] = self._body

    def _end_body(self, event: BodyEnd) -> None:
        raw, self._raw = self._raw, None
        end = event.offset
        if raw is not None:
            digest = self.memory.bodies.popleft().hexdigest() if self.memory else None
            if raw.offset > self._body["offset"]:
                self._body["rest"] = raw.length
                end = raw.offset
            elif digest is not None:
                self._body["sha256"] = digest
        self._body["length"] = end - self._body["offset"]

    def result(self, reader: Reader) -> dict[str, Any]:
        """The transcript, once ``reader`` has finished."""
        error = reader.error
        result: dict[str, Any] = {
            "dialect": reader.dialect,
            "version": reader.version,
            "page_size": reader.page_size,
            "footers": reader.footers,
            "records": self.records,
            "ram": [{"idstr": n, "used_length": used} for n, used in reader.blocks.items()],
            "error": error
            and {
                "rule": error.rule,
                "offset": error.offset,
                "section": error.section,
                "errno": error.errno_name,
            },
        }
        if self.memory is not None:
            for block in result["ram"]:
                block["digest"] = self.memory.digest(block["idstr"])
            result["findings"] = self.findings
        return result


def transcribe(data: bytes) -> dict[str, Any]:
    """Transcript of a whole stream.  Never raises for bad input: see its "error"."""
    memory = Memory()
    reader = Reader(description=find_description(data), sink=memory)
    transcriber = Transcriber(memory)
    transcriber.add(reader.feed(data))
    transcriber.add(reader.finish())
    return transcriber.result(reader)


def rebuild(data: bytes) -> bytes:
    """``data`` built again from the events that reading it gives, as far as it could be read.

    What follows the end of the stream is carried over.
    """
    rebuilder = Rebuilder()
    reader = Reader(description=find_description(data), sink=rebuilder.sink)
    out = rebuilder.write(reader.feed(data), reader)
    out += rebuilder.write(reader.finish(), reader)
    return out if reader.trailing is None else out + data[reader.trailing :]
