"""What a writer is given: the state of a machine, and what the stream that it writes must have.

A state is JSON: ``dialect``, ``machine``, ``page_size``; ``ram``: blocks with ``name``,
``used_length`` and ``pages``, each with ``address``, ``count`` (pages, 1) and ``hex``, the contents,
or ``byte``, which fills it, all others being zero; ``devices``: ``idstr``, ``instance_id``,
``version_id``, and either ``body`` in hex or ``layout`` (as in a VMDESCRIPTION) with ``state`` (as
in a transcript).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from savevm_conformance.generate.accepts import UART
from savevm_conformance.generate.model import SPIKE, Machine
from savevm_conformance.transcripts import canonical, section_line
from savevm_conformance.wire import MAIN, MAIN_LENGTH, ROM, ROM_LENGTH, be64, pattern

State = dict[str, Any]
# What makes no difference to a stream that has it: which features each dialect needs of a writer.
_FEATURES = {
    "v3-configuration": ["configuration", "footers", "vmdesc"],
    "v3-vmdesc": ["vmdesc"],
    "v3-ram4": [],
    "v3-ram3": [],
    "v3-2008": [],
    "v2": ["version-2"],
    "v1": ["version-1"],
}
_RAM_VERSION = {"v3-ram3": 3, "v3-2008": 2, "v2": 2, "v1": 1}


@dataclass(frozen=True, slots=True)
class Write:
    """One case for writers; ``refused``: there is no such stream."""

    area: str
    slug: str
    description: str
    rules: tuple[str, ...]
    state: State = field(repr=False)
    refused: bool = False
    machine: Machine | None = None

    @property
    def id(self) -> str:
        """``<area>/write/<slug>``."""
        return f"{self.area}/write/{self.slug}"

    @property
    def data(self) -> bytes:
        """The state, as a file."""
        return (json.dumps(self.state, indent=1) + "\n").encode()

    @property
    def ram_version(self) -> int:
        """That of the section "ram"."""
        return _RAM_VERSION.get(self.state["dialect"], 4)

    def requires(self) -> list[str]:
        """The features that a writer needs."""
        found = set(_FEATURES[self.state["dialect"]])
        if self.state["ram"]:
            found.add(f"ram-{self.ram_version}")
            if self.state["page_size"] != 4096:
                found.add("page-size")
        if any("layout" in device for device in self.state["devices"]):
            found.add("vmstate")
        return sorted(found)

    def expect(self) -> dict[str, Any]:
        """What there must be in the stream."""
        if self.refused:
            return {"verdict": "write", "outcome": "reject"}
        footer = self.state["dialect"] == "v3-configuration"
        whole = "record" if self.state["dialect"] == "v2" else "full"
        kinds = (whole,) if self.ram_version < 3 else ("start", "end")
        ram = ("ram", 0, self.ram_version)
        # What is sent while the machine runs comes before the devices.
        lines = [section_line(k, *ram, footer=footer) for k in kinds if self.state["ram"]]
        for device in self.state["devices"]:
            body = device.get("body")
            seen = canonical(device["state"]) if body is None else bytes.fromhex(body)
            key = (device["idstr"], device["instance_id"], device["version_id"])
            digest = hashlib.sha256(seen).hexdigest()
            lines.append(section_line(whole, *key, digest, footer=footer))
        return {
            "verdict": "write",
            "outcome": "written",
            # What else a machine has is its own affair.
            **({} if self.machine else {"dialect": self.state["dialect"]}),
            "ram": {self._name(b): _digest(b, self._unit) for b in self.state["ram"]},
            "sections": lines,
        }

    def _name(self, block: dict[str, Any]) -> str:
        return str(block["name"]) if self.ram_version == 4 else "ram"

    @property
    def _unit(self) -> int:
        return 1024 if self.ram_version == 2 else int(self.state["page_size"])


def _digest(block: dict[str, Any], unit: int) -> str:
    memory = bytearray(block["used_length"])
    for page in block["pages"]:
        data = bytes.fromhex(page["hex"]) if "hex" in page else bytes([page["byte"]]) * page["size"]
        for at in range(page.get("count", 1)):
            begin = page["address"] + at * len(data)
            memory[begin : begin + len(data)] = data
    seen = hashlib.sha256()
    for at in range(0, len(memory), unit):
        if any(memory[at : at + unit]):
            seen.update(be64(at) + memory[at : at + unit])
    return seen.hexdigest()


def _state(
    *devices: dict[str, Any],
    ram: Sequence[dict[str, Any]] = (),
    dialect: str = "v3-configuration",
    page_size: int = 4096,
) -> State:
    return {
        "dialect": dialect,
        "machine": "spike",
        "page_size": page_size,
        "ram": list(ram),
        "devices": list(devices),
    }


def _block(name: bytes, length: int, *pages: dict[str, Any]) -> dict[str, Any]:
    return {"name": name.decode("latin-1"), "used_length": length, "pages": list(pages)}


def _page(address: int, data: bytes) -> dict[str, Any]:
    return {"address": address, "hex": data.hex()}


def _filled(address: int, byte: int, count: int = 1, size: int = 4096) -> dict[str, Any]:
    return {"address": address, "byte": byte, "size": size, "count": count}


def _device(idstr: str, body: bytes, instance: int = 0, version: int = 1) -> dict[str, Any]:
    return {"idstr": idstr, "instance_id": instance, "version_id": version, "body": body.hex()}


_MAIN = _block(MAIN, MAIN_LENGTH, _page(0x1000, pattern(4096)), _filled(0x3000, 0x5A))


def writes() -> list[Write]:
    """The cases for writers."""
    return [case for part in (_stream, _ram, _section, _vmstate, _legacy) for case in part()]


def _stream() -> Iterator[Write]:
    rules = ("header.magic", "header.version", "configuration.truncated", "vmdesc.truncated")
    yield Write("stream", "empty", "A machine without RAM and devices.", rules, _state())
    devices = (_device("timer", bytes(range(24)), version=2), _device("rtc", b"\0\1\2"))
    yield Write(
        "stream",
        "small",
        "A machine with RAM and two devices.",
        ("stream.truncated", "footer.id", "section.truncated", "vmdesc.json", "vmdesc.layout"),
        _state(*devices, ram=[_MAIN, _block(ROM, ROM_LENGTH)]),
    )
    for slug, what, pages in (
        ("spike", "pages with contents and of one byte", _MAIN["pages"]),
        ("spike-last-byte", "one byte, the last", [_page(0x3000, bytes(4095) + b"\1")]),
        ("spike-filled", "one byte everywhere, not 00", [_filled(0, 0xA5, 4)]),
    ):
        yield Write(
            "stream",
            slug,
            f"The RAM of a machine that QEMU has, too: {what}.",
            ("stream.truncated", "ram.truncated"),
            _state(ram=[_block(MAIN, MAIN_LENGTH, *pages)]),
            machine=SPIKE,
        )


def _ram() -> Iterator[Write]:
    rules = ("ram.blocks.total", "ram.flags.combination", "ram.page.outside-block", "ram.truncated")
    for slug, what, blocks in (
        ("zero", "RAM that nobody has written.", [_block(MAIN, MAIN_LENGTH)]),
        ("zeros-written", "A page of zeros.", [_block(MAIN, MAIN_LENGTH, _filled(0x1000, 0))]),
        (
            "fill",
            "A page of one byte, not 00: no ZERO record.",
            [_block(MAIN, 0x2000, _filled(0, 0x5A))],
        ),
        (
            "last-byte",
            "One byte, the last.",
            [_block(MAIN, 0x2000, _page(0x1000, bytes(4095) + b"\1"))],
        ),
        ("one-page", "A block of one page.", [_block(MAIN, 0x1000, _page(0, pattern(4096)))]),
        (
            "two-blocks",
            "Pages at the same addresses of two blocks.",
            [_block(name, 0x3000, _page(0x1000, pattern(4096))) for name in (MAIN, ROM)],
        ),
        (
            "name-longest",
            "A block name of 255 bytes.",
            [_block(b"b" * 255, 0x1000, _page(0, pattern(4096)))],
        ),
        (
            "long-run",
            "1100 pages, more than one write takes.",
            [_block(MAIN, 1100 * 4096, _filled(0, 0xA5, 1), _filled(600 * 4096, 1, 500))],
        ),
        (
            "above-16-mib",
            "Pages whose addresses have more than 24 bits, with and without contents.",
            [
                _block(
                    MAIN,
                    36 << 20,
                    _filled(0x1000, 2, 4095),
                    _page(17 << 20, pattern(4096)),
                    _filled(33 << 20, 1),
                )
            ],
        ),
    ):
        yield Write("ram", slug, what, rules, _state(ram=blocks))
    for size in (1024, 8192, 65536):
        block = _block(
            MAIN, 4 * size, _page(size, pattern(size)), _filled(3 * size, 0xFF, size=size)
        )
        yield Write(
            "ram",
            f"page-size-{size}",
            f"Pages of {size} bytes.",
            ("ram.page.misaligned",),
            _state(ram=[block], page_size=size),
        )


def _section() -> Iterator[Write]:
    lookalike = b"\x7e\0\0\0\1\0" + b"\x06\0\0\0\x02{}"
    for slug, what, devices in (
        ("no-bytes", "A device whose body has no bytes.", [_device("rtc", b"")]),
        (
            "instances",
            "Three instances of a device.",
            [_device("uart", bytes([n]), n) for n in range(3)],
        ),
        (
            "instances-with-gap",
            "Instances 2 and 7.",
            [_device("uart", bytes([n]), n) for n in (2, 7)],
        ),
        (
            "lookalike",
            "A body like a footer, an end and a description.",
            [_device("rtc", lookalike)],
        ),
        ("idstr-longest", "An idstr of 255 bytes.", [_device("d" * 255, b"abc")]),
        ("idstr-latin-1", "An idstr that is not ASCII.", [_device("\xb5art", b"abc")]),
        ("version-highest", "The highest version.", [_device("rtc", b"abc", version=0x7FFFFFFF)]),
        ("large", "A body of 40,000 bytes.", [_device("nvram", pattern(40_000))]),
    ):
        yield Write("section", slug, what, ("section.truncated", "footer.id"), _state(*devices))


# What of the vectors' device every writer of fields can be given.
_UART = {
    "vmsd_name": "uart",
    "version": 3,
    "fields": UART["fields"][:3],
    "subsections": UART["subsections"],
}


def _vmstate() -> Iterator[Write]:
    fields = [["ticks", -2], ["enabled", True], ["divisor", [1, 0x8000, 0xFFFF]]]
    irq = {"name": "uart/irq", "version": 2, "fields": [["level", -1]], "subsections": []}
    plain = {key: value for key, value in _UART.items() if key != "subsections"}
    for slug, what, layout, subsections in (
        ("fields", "Numbers with signs, a boolean and an array.", plain, []),
        ("subsection", "A subsection.", _UART, [irq]),
    ):
        device = {
            "idstr": "board/uart",
            "instance_id": 0,
            "version_id": 3,
            "layout": layout,
            "state": {"fields": fields, "subsections": subsections},
        }
        yield Write(
            "vmstate",
            slug,
            what,
            ("vmdesc.layout", "section.version.differs-from-description"),
            _state(device),
        )


def _legacy() -> Iterator[Write]:
    single = _block(b"ram", 0x4000, _page(0x1000, pattern(4096)), _filled(0x3000, 0x5A))
    for dialect in ("v3-vmdesc", "v3-ram4", "v3-ram3", "v3-2008", "v2"):
        yield Write(
            "legacy",
            dialect,
            f"RAM in one block, in the dialect {dialect}.",
            ("ram.truncated", "header.version"),
            _state(ram=[single], dialect=dialect),
        )
    yield Write(
        "legacy",
        "v1",
        "Version 1, which nobody writes.",
        ("header.version",),
        _state(dialect="v1"),
        refused=True,
    )
    yield Write(
        "legacy",
        "v2-devices",
        "Records of devices, one without a body, behind that of RAM.",
        ("record.truncated", "record.outside-total"),
        _state(_device("board", pattern(30)), _device("none", b""), ram=[single], dialect="v2"),
    )
    odd = _block(b"ram", 0x4400, _filled(0x4000, 0x5A, size=1024))
    for dialect in ("v3-2008", "v2"):
        yield Write(
            "legacy",
            f"{dialect}-size-4400",
            f"RAM of whole blocks of 1 KiB, but not of whole pages, in the dialect {dialect}.",
            ("ram.size",),
            _state(ram=[odd], dialect=dialect),
        )
    for dialect, length in (("v3-ram3", 0x4400), ("v3-2008", 0x4200), ("v2", 1 << 32)):
        yield Write(
            "legacy",
            f"{dialect}-size-{length:x}",
            f"RAM of {length:#x} bytes in the dialect {dialect}, which has no form for that.",
            ("ram.size",),
            _state(ram=[_block(b"ram", length)], dialect=dialect),
            refused=True,
        )
    for dialect in ("v3-ram3", "v3-2008", "v2"):
        yield Write(
            "legacy",
            f"{dialect}-two-blocks",
            f"Two blocks in the dialect {dialect}, which has no names for them.",
            ("ram.block.unknown",),
            _state(ram=[single, _block(ROM, 0x1000)], dialect=dialect),
            refused=True,
        )
