"""What a reader takes to the end: streams of real QEMUs, and streams written by hand.

Every vector that is damaged elsewhere stands here undamaged, so a reject differs from an accept by
exactly the change that it declares.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from savevm_conformance.generate.model import (
    SPIKE,
    Accepted,
    Finding,
    Machine,
    Vector,
    Verdict,
    seed,
    seed_source,
)
from savevm_conformance.seeds import fill_offsets
from savevm_conformance.wire import (
    MAIN,
    MAIN_LENGTH,
    PAGE,
    ROM,
    ROM_LENGTH,
    ZERO,
    Wire,
    be16,
    be32,
    be64,
    counted,
    pattern,
    split,
    stored,
    tagged,
)

HAND = "generator"
# What a machine that stands still says of itself: be32 length of the word, 100 bytes for it.
PAUSED = be32(7) + b"paused".ljust(100, b"\0")
UNDESCRIBED, UNDELIMITED = "section.body.undescribed", "stream.undelimited"
_WHOLE = ("stream.truncated", "section.truncated", "footer.id", "vmdesc.truncated")


def accept(
    name: str,
    wire: Wire,
    description: str,
    *rules: str,
    findings: tuple[Finding, ...] = (),
    dialect: str = "v3-configuration",
    source: str = HAND,
    notes: str | None = None,
    verdict: Verdict = "accept",
    loader: Verdict | None = None,
    bound: str | None = None,
    machine: Machine | None = None,
) -> Vector:
    """A vector ``<area>/<slug>`` that is read to the end; it also cites its findings' rules."""
    area, slug = name.split("/")
    rules = tuple(dict.fromkeys((*rules, *(finding.rule for finding in findings))))
    return Vector(
        area=area,
        verdict=verdict,
        slug=slug,
        description=description,
        rules=rules,
        source=source,
        wire=wire,
        expect=Accepted(dialect, findings),
        notes=notes,
        loader=loader,
        bound=bound,
        machine=machine,
    )


def found(wire: Wire, mark: str, *rules: str, section: str | None = None) -> tuple[Finding, ...]:
    """Findings at a mark."""
    return tuple(Finding(rule, wire.marks[mark].offset, section) for rule in rules)


@cache
def accepts() -> dict[str, Vector]:
    """The accepted vectors by ``<area>/<slug>``."""
    parts = (
        _header,
        _configuration,
        _section,
        _footer,
        _command,
        _vmstate,
        _vmdesc,
        _ram,
        _ram_plain,
        _ram_chunked,
        _ram_words,
        _block,
        _htab,
        _storage_attributes,
        _known,
        _stream,
        _legacy,
        _limit,
        _real,
        _real_history,
    )
    return {f"{v.area}/{v.slug}": v for part in parts for v in part()}


# By hand


def _header() -> Iterator[Vector]:
    yield accept(
        "header/shortest",
        Wire().header().eof(),
        "The shortest stream: file header and EOF mark.",
        "header.magic",
        "header.version",
        "header.truncated",
        dialect="v3-2008",
        notes="QEMU since 2.4 refuses a stream without a configuration, unless told that there is none.",
        loader="reject",
    )


def _configuration() -> Iterator[Vector]:
    yield accept(
        "configuration/all-subsections",
        Wire()
        .header()
        .machine()
        .page_bits(12)
        .capabilities(b"validate-uuid", b"events")
        .uuid()
        .eof(),
        "A configuration with each of the subsections that there are.",
        "configuration.truncated",
        "configuration.subsection.unknown",
        "configuration.subsection.version",
        "configuration.target-page-bits",
        "configuration.capability.unknown",
        loader="either",
    )
    wire = Wire().header().machine(b"").eof()
    yield accept(
        "configuration/machine-empty",
        wire,
        "A machine name of no bytes, which is reported.",
        "configuration.machine.empty",
        findings=found(wire, "configuration.length", "configuration.machine.empty"),
        notes="QEMU 5.2 to 11.1 take any prefix of their own machine name, the empty one too.",
        loader="either",
    )
    yield accept(
        "configuration/machine-longest",
        Wire().header().machine(b"m" * 1024).eof(),
        "A machine name as long as the default limit allows.",
        "limit.machine-name",
    )
    yield accept(
        "configuration/no-capabilities",
        Wire().header().machine().capabilities().eof(),
        "A capabilities subsection that lists none.",
        "configuration.capability.unknown",
    )
    for bits in (8, 16):
        yield accept(
            f"configuration/page-bits-{bits}",
            Wire().header().machine().page_bits(bits).eof(),
            f"Target page bits {bits}, an end of the allowed range.",
            "configuration.target-page-bits",
            loader="reject",
        )


def opaque(
    wire: Wire, number: int, idstr: bytes, body: bytes, version: int = 1, instance: int = 0
) -> Wire:
    """A FULL section with a footer, whose body nothing describes.  Mark: <idstr>.body."""
    name = idstr.decode("latin-1")
    wire.section(4, number, idstr, instance, version).put(body, f"{name}.body")
    return wire.footer(number, f"{name}.footer")


def live_ram(wire: Wire, number: int = 2, *, footers: bool = True) -> Wire:
    """START, PART and END of a small ram section: all of block main, of 4 pages, and a page of block rom.

    Marks: start.eos, part.eos, end.eos (the EOS words) besides those of `Wire`.
    """

    def ends(mark: str) -> None:
        wire.word(0x10, f"{mark}.eos")
        if footers:
            wire.footer(number, f"{mark}.footer")

    wire.section(1, number, b"ram", 0, 4).blocks(main=MAIN_LENGTH, rom=ROM_LENGTH)
    ends("start")
    wire.again(2, number, "part").page(ZERO, MAIN).page(0x1000 | ZERO)
    wire.page(0x2000 | PAGE, content=pattern(4096))
    ends("part")
    wire.again(3, number, "end").page(0x3000 | ZERO).page(ZERO, ROM)
    ends("end")
    return wire


def _section() -> Iterator[Vector]:
    wire = opaque(Wire().header().machine(), 7, b"timer", bytes(range(24)), 2)
    opaque(wire, 8, b"globalstate", PAUSED)
    yield accept(
        "section/opaque",
        wire.eof(),
        "Two bodies that only their footers delimit.",
        UNDESCRIBED,
        findings=(
            *found(wire, "timer.body", UNDESCRIBED, section="timer"),
            *found(wire, "globalstate.body", UNDESCRIBED, section="globalstate"),
        ),
    )
    lookalike = b"\x7e" + be32(7) + b"\x05" + b"\x7e" + be32(8) + b"\x7e\x00"
    wire = opaque(Wire().header().machine(), 7, b"fdc", lookalike).eof()
    yield accept(
        "section/opaque-with-footer-lookalikes",
        wire,
        "An undescribed body that holds what looks like a footer: one before a byte that begins no "
        "record, one with another section id, one cut short.",
        UNDESCRIBED,
        findings=found(wire, "fdc.body", UNDESCRIBED, section="fdc"),
    )
    wire = opaque(Wire().header().machine(), 7, b"fdc", b"\x01")
    opaque(wire, 7, b"rtc", b"").eof()
    yield accept(
        "section/id-reused",
        wire,
        "A section id that stands for a second device, of no bytes, which is reported.",
        "section.id.reused",
        findings=(
            *found(wire, "fdc.body", UNDESCRIBED, section="fdc"),
            *found(wire, "rtc.id", "section.id.reused", section="rtc"),
            *found(wire, "rtc.body", UNDESCRIBED, section="rtc"),
        ),
    )
    wire = Wire().header().machine()
    for _ in range(2):
        wire.section(1, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH).end_of_section().footer(2)
    wire.again(3, 2, "end").end_of_section().footer(2)
    wire.again(2, 2, "part").page(ZERO, MAIN).end_of_section().footer(2).eof()
    yield accept(
        "section/start-twice-part-after-end",
        wire,
        "A START that comes twice and a PART behind the END, as every QEMU takes it.",
        "section.id.unknown",
        "ram.block.duplicate",
        findings=found(wire, "main.name.length#2", "ram.block.duplicate", section="ram"),
    )
    longest = bytes(range(1, 256))
    wire = opaque(Wire().header().machine(), 0xFFFFFFFF, longest, b"\x01").eof()
    name = longest.decode("latin-1")
    yield accept(
        "section/idstr-255",
        wire,
        "An idstr of 255 bytes, every byte but 00, with the highest section id.",
        "section.idstr.empty",
        findings=found(wire, f"{name}.body", UNDESCRIBED, section=name),
    )
    wire = Wire().header().machine().section(4, 1, b"timer\0zz", 0xFFFFFFFF, 2)
    wire.put(bytes(24), "body").footer(1).eof()
    yield accept(
        "section/idstr-with-nul",
        wire,
        "An idstr with a NUL and bytes behind it, and instance ffffffff.",
        "section.idstr.empty",
        findings=found(wire, "body", UNDESCRIBED, section="timer\0zz"),
        notes="QEMU 5.2 to 11.1 compare up to the NUL, and match any instance with ffffffff.",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH)
    opaque(wire.end_of_section().footer(2), 7, b"timer", bytes(24), 2)
    wire.again(2, 2, "part").page(ZERO, MAIN).end_of_section().footer(2)
    opaque(wire, 8, b"globalstate", PAUSED)
    wire.again(3, 2, "end").end_of_section().footer(2).eof()
    yield accept(
        "section/opaque-between-parts",
        wire,
        "Bodies that only their footers delimit, with a PART and an END behind those.",
        UNDESCRIBED,
        findings=(
            *found(wire, "timer.body", UNDESCRIBED, section="timer"),
            *found(wire, "globalstate.body", UNDESCRIBED, section="globalstate"),
        ),
    )


def _footer() -> Iterator[Vector]:
    yield accept(
        "footer/none",
        live_ram(Wire().header().machine(), footers=False).eof(),
        "Sections without footers.",
        "footer.unexpected",
        notes="QEMU since 2.4 refuses it, unless told that there are none.",
        loader="reject",
    )


DISCARD = b"\0" + counted(MAIN) + b"\0" + be64(0x1000) + be64(0x2000)


def _command() -> Iterator[Vector]:
    wire = Wire().header().machine()
    wire.command(1).command(2, be32(1)).command(3, be64(4096) * 2).command(3)
    wire.command(4).command(6, DISCARD).command(7, be32(3)).put(b"abc", "package")
    wire.command(8).command(9).command(10, counted(MAIN)).command(11).command(5).eof()
    yield accept(
        "command/each",
        wire,
        "Every command once, ADVISE with both of its lengths.",
        "command.truncated",
        "command.unknown",
        "command.length",
        "command.packaged.empty",
        "command.postcopy-ram-discard.payload",
        "command.recv-bitmap.payload",
        loader="reject",
    )
    ranges = be64(0) + be64(0x1000) + be64(0x3000) + be64(0x1000)
    wire = Wire().header().machine()
    yield accept(
        "command/discard-two-ranges",
        wire.command(6, b"\0" + counted(MAIN) + b"\0" + ranges).eof(),
        "A discard of two ranges.",
        "command.postcopy-ram-discard.payload",
        loader="reject",
    )


UART: dict[str, Any] = {
    "name": "board/uart",
    "instance_id": 0,
    "vmsd_name": "uart",
    "version": 3,
    "fields": [
        {"name": "ticks", "type": "timer", "size": 8},
        {"name": "enabled", "type": "bool", "size": 1},
        {"name": "divisor", "array_len": 3, "type": "uint16", "size": 2},
        {
            "name": "fifo",
            "type": "struct",
            "struct": {
                "vmsd_name": "uart/fifo",
                "version": 1,
                "fields": [
                    {"name": "head", "type": "uint8", "size": 1},
                    {"name": "data", "type": "buffer", "size": 4},
                ],
            },
            "size": 5,
        },
    ],
    "subsections": [
        {
            "vmsd_name": "uart/irq",
            "version": 2,
            "fields": [{"name": "level", "type": "int32", "size": 4}],
        }
    ],
}


def uart(wire: Wire, number: int = 5) -> Wire:
    """The FULL section that ``UART`` describes.  Marks: uart.body and one per field."""
    wire.section(4, number, b"board/uart", 0, 3).put(be64(123456789), "uart.body")
    wire.put(b"\x01", "enabled").put(be16(1) + be16(2) + be16(0xFFFF), "divisor")
    wire.put(b"\x04", "fifo.head").put(b"fifo", "fifo.data")
    wire.subsection(b"uart/irq", 2, "irq").put(be32(0xFFFFFFFE), "level")
    return wire.footer(number, "uart.footer")


def _device(name: str, vmsd: str, body: bytes, fields: str, what: str, *rules: str) -> Vector:
    """One described device ``name`` with the JSON text ``fields``.  Mark: body."""
    text = (
        f'{{"page_size": 4096, "devices": [{{"name": "{vmsd}", "instance_id": 0, '
        f'"vmsd_name": "{vmsd}", "version": 1, "fields": [{fields}]}}]}}'
    )
    wire = Wire().header().machine().section(4, 9, vmsd.encode(), 0, 1).put(body, "body")
    return accept(name, wire.footer(9).eof().vmdesc(text.encode()), what, *rules)


SCALARS = (
    ("bool", 1, "00"),
    ("bool", 1, "01"),
    ("bool", 1, "ff"),
    ("int8", 1, "80"),
    ("int16", 2, "8000"),
    ("int32", 4, "80000000"),
    ("int64", 8, "8000000000000000"),
    ("uint8", 1, "80"),
    ("uint16", 2, "8000"),
    ("uint32", 4, "80000000"),
    ("uint64", 8, "8000000000000000"),
    ("uint8 equal", 1, "fe"),
    ("uint16 equal", 2, "fffe"),
    ("uint32 equal", 4, "fffffffe"),
    ("int32 equal", 4, "fffffffe"),
    ("int32 le", 4, "fffffffd"),
    ("int64 equal", 8, "fffffffffffffffe"),
    ("timer", 8, "ffffffffffffffff"),
    ("CPU_Double_U", 8, "c00921fb54442d18"),
    ("buffer", 3, "0a0b0c"),
    ("unused_buffer", 2, "0000"),
    ("bitmap", 16, "00000000000000010000000000000002"),
    ("gtree", 18, "00000001 01 0000000000000005 00000007 00"),
    ("uint32", 2, "abcd"),
    ("virtio", 0, ""),
)


def _vmstate() -> Iterator[Vector]:
    wire = uart(Wire().header().machine()).eof()
    yield accept(
        "vmstate/uart",
        wire.vmdesc({"page_size": 4096, "devices": [UART]}),
        "A device with fields, an array, a nested struct and a subsection.",
        "vmstate.subsection.missing",
        "vmstate.subsection.name",
        "vmstate.subsection.version",
        "vmdesc.layout",
    )
    yield _device(
        "vmstate/each-type",
        "types",
        b"".join(bytes.fromhex(value) for _, _, value in SCALARS),
        ", ".join(
            f'{{"name": "f{index}", "type": "{type_}", "size": {size}}}'
            for index, (type_, size, _) in enumerate(SCALARS)
        ),
        "A field of each type, and some whose size is not that of their type.",
        "vmstate.truncated",
    )
    element = '"vmsd_name": "request", "version": 1, "fields": [{"name": "n", "type": "uint16", '
    element += '"size": 2}]'
    yield _device(
        "vmstate/lists",
        "queue",
        bytes.fromhex("01 0001 01 0002 00  00  01 0003 00"),
        f'{{"name": "waiting", "type": "qtailq", {element}, {element}, "size": 7}}, '
        '{"name": "empty", "type": "qtailq", "size": 1}, '
        f'{{"name": "done", "type": "qlist", {element}, "size": 4}}',
        "A list of two elements, described by keys that stand twice, an empty one and one of one.",
        "vmstate.list-marker",
        "vmdesc.field.size",
    )
    struct = '{"vmsd_name": "unit", "version": 1, "fields": [{"name": "id", "type": "uint8", '
    struct += '"size": 1}]}'
    yield _device(
        "vmstate/pointer-markers",
        "units",
        bytes.fromhex("30 30 09 30 31 08"),
        '{"name": "unit", "array_len": 2, "type": "nullptr", "size": 1}, '
        f'{{"name": "unit", "type": "struct", "struct": {struct}, "size": 1}}, '
        '{"name": "slot", "type": "ptr-marker", "size": 1}, '
        '{"name": "slot", "type": "ptr-marker", "size": 1}, '
        f'{{"name": "slot", "type": "struct", "struct": {struct}, "size": 1}}',
        "Null pointers as 10.0 describes them, null and present ones as 11.0 does.",
        "vmstate.pointer-marker",
    )
    yield _device(
        "vmstate/pointer-array-present-first",
        "timers",
        b"\xff" * 16 + b"\x30\x30" + b"\xff" * 8 + b"\x30" * 3,
        '{"name": "timers", "array_len": 8, "type": "timer", "size": 8}, '
        '{"name": "timers", "array_len": 2, "type": "ptr-marker", "size": 1}, '
        '{"name": "timers", "array_len": 1, "type": "timer", "size": 8}, '
        '{"name": "timers", "array_len": 3, "type": "ptr-marker", "size": 1}',
        "An array of pointers, two present, two null, one present, three null, whose first part "
        "states the length of the whole array, as 11.1 describes it.",
        "vmdesc.layout",
    )
    yield _device(
        "vmstate/same-name",
        "units",
        bytes(range(4)),
        '{"name": "n", "array_len": 3, "type": "uint8", "size": 1}, '
        '{"name": "n", "array_len": 1, "type": "uint8", "size": 1}',
        "Two arrays of the same name, which are not parts of an array of pointers.",
        "vmdesc.layout",
    )
    yield _device(
        "vmstate/pointer-array-one-by-one",
        "timers",
        b"\xff" * 8 + b"\x30" + b"\xff" * 8,
        '{"name": "timers", "array_len": 3, "type": "timer", "size": 8}, '
        '{"name": "timers", "type": "ptr-marker", "size": 1}, '
        '{"name": "timers", "type": "timer", "size": 8}',
        "An array of three pointers, the second null, whose other parts have no length of their own.",
        "vmdesc.layout",
    )
    yield _device(
        "vmstate/pointer-array",
        "s390_css",
        b"\x30" + bytes(range(3)) * 256 + b"\x30",
        '{"name": "css", "array_len": 3, "type": "struct", "struct": {}, "size": 1}',
        "An array of pointers whose first is null and whose description says nothing of the rest.",
        "vmdesc.layout",
    )
    yield _device(
        "vmstate/pointer-array-part-without-bytes",
        "units",
        b"\x07\x30",
        '{"name": "unit", "array_len": 3, "type": "uint8", "size": 1}, '
        '{"name": "unit", "type": "buffer", "size": 0}, '
        '{"name": "unit", "type": "ptr-marker", "size": 1}',
        "An array of three pointers, to a byte, to nothing that has bytes, and null.",
        "vmdesc.layout",
    )
    array = _device(
        "vmstate/pointer-array-of-one",
        "s390_css",
        b"\x30",
        '{"name": "css", "array_len": 1, "type": "struct", "struct": {}, "size": 1}',
        "",
    )
    wire = array.wire.put(b"\x30" * 900, "tail")
    yield accept(
        "vmstate/pointer-array-then-more",
        wire,
        "A null pointer, and bytes like it behind the stream.",
        "vmstate.truncated",
        findings=found(wire, "tail", "stream.trailing-data"),
    )
    inner = '"vmsd_name": "inner", "version": 2, "fields": [{"name": "x", "type": "uint8", '
    inner += '"size": 1}]'
    sub = ', "subsections": [{"vmsd_name": "inner/more", "version": 1, "fields": []}]'
    yield _device(
        "vmstate/tmp-and-vstruct",
        "outer",
        b"\x01" + b"\x02" + b"\x05" + counted(b"inner/more") + be32(1),
        f'{{"name": "t", "type": "tmp", {inner}, "size": 1}}, '
        f'{{"name": "v", "type": "vstruct", {inner}{sub}, "size": 17}}',
        "A tmp and a vstruct field; the second ends with a subsection without fields.",
        "vmdesc.field.size",
    )
    yield _device(
        "vmstate/arrays-of-one-and-none",
        "arrays",
        b"\x07",
        '{"name": "one", "array_len": 1, "type": "uint8", "size": 1}, '
        '{"name": "none", "array_len": 4, "type": "buffer", "size": 0}, '
        '{"name": "empty", "type": "struct", "struct": {"vmsd_name": "e", "version": 1, '
        '"fields": []}, "size": 0}',
        "An array of one element, one of elements without bytes, and a struct without fields.",
        "vmdesc.layout",
    )


DATA = {
    "name": "slirp",
    "instance_id": 0,
    "size": 3,
    "fields": [{"name": "data", "size": 3, "type": "buffer"}],
}


def _vmdesc() -> Iterator[Vector]:
    wire = Wire().header().machine().section(4, 3, b"slirp", 0, 4).put(b"\x06\x00{", "body")
    yield accept(
        "vmdesc/size-only",
        wire.footer(3).eof().vmdesc({"page_size": 4096, "devices": [DATA]}),
        "A device of which the description gives only the size.",
        "vmdesc.json",
        "vmdesc.layout",
    )
    wire = Wire().header().machine().section(4, 3, b"slirp", 0, 4).put(b"", "body")
    device = {**DATA, "size": 0, "fields": []}
    yield accept(
        "vmdesc/size-only-zero",
        wire.footer(3).eof().vmdesc({"page_size": 4096, "devices": [device]}),
        "A device of no bytes, of which the description gives only the size.",
        "vmdesc.layout",
    )
    text = b'{"devices": [' + b" " * 109 + b"]}"
    assert len(text) == 0x7C
    wire = Wire().header().machine().eof().vmdesc(text[:-3] + b"]}")
    yield accept(
        "vmdesc/length-ends-with-brace",
        wire,
        "A length whose last byte is 7b, the brace that the text begins with.",
        "vmdesc.truncated",
    )
    wire = Wire().header().machine().page_bits(12).eof()
    wire.vmdesc({"page_size": 8192, "devices": []})
    yield accept(
        "vmdesc/page-size-differs",
        wire,
        "A page size other than the target page bits say, which is reported.",
        "vmdesc.page-size",
        findings=found(wire, "vmdesc", "vmdesc.page-size"),
    )
    wire = uart(Wire().header().machine()).eof()
    wire.vmdesc({"page_size": 4096, "devices": [UART]}).put(b"\x06\0\0\0\x02{}", "tail")
    yield accept(
        "vmdesc/then-more",
        wire,
        "A description with bytes behind it, which are reported; the device is described all the "
        "same.",
        "stream.trailing-data",
        findings=found(wire, "tail", "stream.trailing-data"),
    )
    decoy = b'\x00\x06\x00\x00\x00\x0e{"devices":[]}'
    wire = Wire().header().machine().section(4, 3, b"slirp", 0, 4).put(decoy, "body").footer(3)
    device = {**DATA, "size": len(decoy)}
    yield accept(
        "vmdesc/decoy-in-body",
        wire.eof().vmdesc({"page_size": 4096, "devices": [device]}),
        "A device body that holds a whole, empty VMDESCRIPTION; the real one is at the end.",
        "vmdesc.json",
    )
    twice = b'{"devices": [%s], "devices": []}'
    one = b'{"name": "slirp", "instance_id": 0, "size": 3, "size": 4}'
    wire = Wire().header().machine().section(4, 3, b"slirp", 0, 4).put(b"abc", "body").footer(3)
    yield accept(
        "vmdesc/keys-twice",
        wire.eof().vmdesc(twice % one),
        "Keys that stand twice; the first one counts.",
        "vmdesc.json",
    )
    wire = Wire().header().machine()
    for kind, body in ((1, b"aaa"), (4, b"bbb"), (4, b"ccc")):
        wire.section(kind, 3, b"slirp", 0, 4).put(body).footer(3)
    wire.again(2, 3, "part").put(b"ddd").footer(3).eof()
    devices = [{**DATA, "note": 1}, {**DATA, "instance_id": 1, "size": 9}, DATA, "junk"]
    yield accept(
        "vmdesc/section-repeated",
        wire.vmdesc({"devices": devices}),
        "A device that comes three times and then as PART, with two entries and some that are "
        "nobody's.",
        "section.version.differs-from-description",
    )
    wire = Wire().header().machine()
    for body in (b"aaa", b"bbbb", b"ccccc", b"ddddd"):
        wire.section(4, 3, b"slirp", 0, 4).put(body).footer(3)
    sizes = [{**DATA, "size": size} for size in (3, 4, 5)]
    nobody = [{**DATA, "name": []}, {**DATA, "instance_id": {}}]
    yield accept(
        "vmdesc/section-repeated-in-order",
        wire.eof().vmdesc({"devices": [*nobody, *sizes]}),
        "A device that comes four times, with three entries: the last one counts for the rest.",
        "section.version.differs-from-description",
    )
    wire = opaque(Wire().header().machine(), 3, b"slirp", b"abc").eof()
    wire.vmdesc(b'{"devices": [{"name": "slirp", "instance_id": 0, "size": 3}]}\n')
    yield accept(
        "vmdesc/newline-behind",
        wire,
        "A text that ends with a line feed: good JSON, but not found before the walk is there.",
        "vmdesc.json",
        findings=found(wire, "slirp.body", UNDESCRIBED, section="slirp"),
    )
    yield accept(
        "vmdesc/without-configuration",
        live_ram(Wire().header(), footers=False).eof().vmdesc({"page_size": 4096, "devices": []}),
        "A description in a stream with neither configuration nor footers.",
        "vmdesc.truncated",
        dialect="v3-vmdesc",
    )


def _ram() -> Iterator[Vector]:
    yield accept(
        "ram/live",
        live_ram(Wire().header().machine()).eof(),
        "START, PART and END; the first page of the END continues the block of the PART.",
        "ram.truncated",
        "ram.blocks.total",
        "ram.flags.combination",
        "ram.page.misaligned",
        "ram.page.continue-needs-block",
        "ram.page.unknown-block",
        "ram.page.outside-block",
        "section.id.unknown",
        "section.version.newer-than-supported",
    )
    wire = Wire().header().machine().section(4, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH)
    wire.page(ZERO, MAIN).page(0x1000 | PAGE, content=pattern(4096)).page(0x1000 | ZERO)
    yield accept(
        "ram/full-section",
        wire.page(PAGE, content=bytes(4096)).end_of_section().footer(2).eof(),
        "A ram section sent as FULL; a page that becomes zero again, and a page of zeros.",
        "section.type",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=0x1000)
    wire.blocks(main=0x1000, more=0x1000).page(ZERO, MAIN).end_of_section()
    yield accept(
        "ram/block-listed-twice",
        wire.footer(2).eof(),
        "A block that a second list has again, which is reported.",
        "ram.block.duplicate",
        findings=found(wire, "main.name.length#2", "ram.block.duplicate", section="ram"),
    )
    for name, size, kind in (
        ("256-bytes", 256, PAGE),
        ("1-kib", 1024, ZERO),
        ("2-kib", 2048, PAGE),
        ("8-kib", 8192, ZERO),
        ("16-kib", 16384, PAGE),
        ("64-kib", 65536, ZERO),
    ):
        content = b"\0" if kind == ZERO else pattern(size)
        wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=size * 4)
        wire.page(kind, MAIN, content).page(size | kind, content=content)
        yield accept(
            f"ram/page-size-{name}",
            wire.page(size * 3 | ZERO).end_of_section().footer(2).eof(),
            f"Pages of {size} bytes, told only by where the second page record stands.",
            "ram.page.misaligned",
        )
    wire = Wire().header().machine().page_bits(8).section(1, 2, b"ram", 0, 4).blocks(main=0x400)
    wire.page(0x300 | PAGE, MAIN, pattern(256)).page(0x100 | ZERO).end_of_section()
    yield accept(
        "ram/page-size-from-configuration",
        wire.footer(2).eof(),
        "Pages of 256 bytes, as the configuration says.",
        "ram.page.misaligned",
        "configuration.target-page-bits",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH)
    wire.page(0x1000 | ZERO, MAIN).page(ZERO).end_of_section().footer(2).eof()
    yield accept(
        "ram/page-size-from-description",
        wire.vmdesc({"page_size": 4096, "devices": []}),
        "Pages of 4096 bytes, as the description says.",
        "ram.page.misaligned",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH)
    wire.page(PAGE, MAIN, pattern(4096)).page(0x1000 | PAGE, content=pattern(4096))
    wire.end_of_section().footer(2).again(3, 2, "end").page(ZERO, MAIN).end_of_section()
    yield accept(
        "ram/page-turned-zero",
        wire.footer(2).eof().vmdesc({"page_size": 4096, "devices": []}),
        "A page that comes with contents, and in the next section as zeros.",
        "ram.page.continue-needs-block",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks().end_of_section()
    yield accept(
        "ram/no-blocks",
        wire.footer(2).again(3, 2, "end").end_of_section().footer(2).eof(),
        "A block list with the total 0, which lists nothing.",
        "ram.blocks.total",
    )

    for first, second, name in ((ZERO, PAGE, "zero-then-page"), (PAGE, ZERO, "page-then-zero")):
        wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=0x1000)
        for address, kind in ((0, first), (1024, second), (3072, ZERO)):
            content = pattern(1024) if kind == PAGE else b"\0"
            wire.page(address | kind, None if address else MAIN, content)
        yield accept(
            f"ram/page-size-{name}",
            wire.end_of_section().footer(2).eof(),
            "Pages of 1 KiB, told by the first two page records, which are not of the same kind.",
            "ram.page.misaligned",
        )
    wire = Wire().header().machine().page_bits(8).section(1, 2, b"ram", 0, 4)
    wire.blocks(main=1 << 62).page(ZERO, MAIN)
    for shift in range(8, 62):
        wire.page(0x100 + (1 << shift) | ZERO).page(ZERO).page(ZERO)
    yield accept(
        "ram/zeros-that-jump",
        wire.end_of_section().footer(2).eof(),
        "Zero pages whose addresses differ in one bit from the one behind the page before, and a "
        "page that comes again at once.",
        "ram.page.outside-block",
    )
    wire = Wire().header().machine().page_bits(8).section(1, 2, b"ram", 0, 4)
    wire.blocks(main=1 << 62).page(PAGE, MAIN, pattern(256))
    for shift in range(8, 62, 6):
        wire.page(1 << shift | PAGE, content=pattern(255) + bytes([shift]))
    yield accept(
        "ram/addresses",
        wire.page((1 << 62) - 256 | PAGE, content=pattern(256)).end_of_section().footer(2).eof(),
        "Pages all over a block of 2^62 bytes.",
        "ram.page.outside-block",
    )
    for bits, name in ((8, "256-bytes"), (16, "64-kib")):
        size = 1 << bits
        wire = Wire().header().machine().page_bits(bits)
        wire.section(1, 2, b"ram", 0, 4).blocks(main=900 * size).page(ZERO, MAIN)
        for number in range(1, 900):
            # So many that a reader may take them together; but for one, and one of another byte.
            if number != 400:
                wire.page(number * size | ZERO, content=b"\1" if number == 650 else b"\0")
        yield accept(
            f"ram/zeros-of-{name}",
            wire.end_of_section().footer(2).eof(),
            f"900 zero pages of {size} bytes, but for one that is left out and one of another byte.",
            "ram.page.outside-block",
            findings=found(wire, "page.content#650", "ram.zero.fill", section="ram"),
        )


# RAM without block names (until 0.12)

PAGES = (pattern(4096), 0, 0x5A, bytes(4096))
BLOCKS = tuple(pattern(5120)[1024 * n : 1024 * (n + 1)] for n in (0, 1, 2, 4))
TEXT = tagged(*BLOCKS)
# What zlib makes of the plain text of 4 blocks of zeros.
ZEROS_COMPRESSED = bytes.fromhex("789cedc101010000008220ffaf6e4840010000000f0610040001")


def timer(wire: Wire, number: int = 9, version: int = 2) -> Wire:
    """A device of the time that says nothing of itself, in 24 bytes.  Mark: timer.body."""
    return wire.section(4, number, b"timer", 0, version).put(pattern(24), "timer.body")


def _ram_plain() -> Iterator[Vector]:
    yield accept(
        "ram/v1-record",
        Wire()
        .header(1)
        .record(b"ram", 0, 1, Wire().plain_ram(*PAGES))
        .record(b"timer", 0, 1, pattern(16)),
        "RAM of version 1 in its record: a page with contents, one of zeros, a filled one and one "
        "of zeros that is sent whole.",
        "ram.size",
        "ram.page.tag",
        "record.body.outside",
        dialect="v1",
    )
    yield accept(
        "ram/v1-empty",
        Wire().header(1).record(b"ram", 0, 1, Wire().plain_ram()),
        "A RAM of version 1 of no bytes.",
        "ram.size",
        dialect="v1",
    )
    body = Wire().plain_ram(*PAGES).put(b"r", "rest")
    wire = Wire().header(1).record(b"ram", 0, 1, body).record(b"timer", 0, 1, pattern(16))
    yield accept(
        "ram/v1-rest-of-one-byte",
        wire,
        "A byte of the record behind RAM of version 1, which is reported.",
        "record.body.rest",
        findings=found(wire, "rest", "record.body.rest", section="ram"),
        dialect="v1",
    )
    body = Wire().plain_ram(*PAGES).put(b"rest", "rest")
    wire = Wire().header(1).record(b"ram", 0, 1, body).record(b"timer", 0, 1, pattern(16))
    yield accept(
        "ram/v1-rest",
        wire,
        "Four bytes of the record behind RAM of version 1, which are reported.",
        "record.body.rest",
        findings=found(wire, "rest", "record.body.rest", section="ram"),
        dialect="v1",
    )
    again = Wire().plain_ram(0, pattern(4096), 0, 0)
    yield accept(
        "ram/v1-repeated",
        Wire().header(1).record(b"ram", 0, 1, Wire().plain_ram(*PAGES)).record(b"ram", 0, 1, again),
        "RAM of version 1 twice, of the same size; what the second says holds.",
        "ram.size.differs",
        dialect="v1",
    )
    records = Wire().record(b"ram", 0, 1, Wire().plain_ram(*PAGES))
    yield accept(
        "ram/v1-in-version-2",
        Wire().header(2).put(be64(len(records.data)), "total").append(records),
        "RAM of version 1 in a stream of version 2.",
        "ram.page.tag",
        dialect="v2",
    )
    wire = Wire().header().section(4, 1, b"ram", 0, 1).append(Wire().plain_ram(*PAGES))
    yield accept(
        "ram/v1-section",
        timer(wire).eof(),
        "RAM of version 1 in a section of version 3, which it delimits itself.",
        "ram.truncated",
        "ram.size",
        "ram.page.tag",
        dialect="v3-2008",
    )


def v2_of(*records: Wire) -> Wire:
    """Version 2 with these records."""
    size = sum(len(record.data) for record in records)
    wire = Wire().header(2).put(be64(size), "total")
    for record in records:
        wire.append(record)
    return wire


def chunked_record(size: int, *chunks: bytes, rest: bytes = b"") -> Wire:
    """The record "ram" of version 2.  Marks: those of `Wire.chunked_ram`, rest."""
    return Wire().record(b"ram", 0, 2, Wire().chunked_ram(size, *chunks).put(rest, "rest"))


TIMER = Wire().record(b"timer", 0, 2, pattern(24))


def _ram_chunked() -> Iterator[Vector]:
    yield accept(
        "ram/v2-record",
        v2_of(chunked_record(4096, *split(stored(TEXT), 4096)), TIMER),
        "RAM of version 2 in its record: the longest chunk, and what is left.",
        "ram.size",
        "ram.page.tag",
        "ram.chunk.magic",
        "ram.chunk.length",
        "ram.chunk.data",
        "record.body.outside",
        dialect="v2",
    )
    yield accept(
        "ram/v2-compressed",
        v2_of(chunked_record(4096, ZEROS_COMPRESSED)),
        "RAM of version 2 that is smaller when compressed.",
        "ram.chunk.data",
        dialect="v2",
    )
    yield accept(
        "ram/v2-split-anywhere",
        v2_of(chunked_record(4096, *split(stored(TEXT), 1, 1, 5, 1, 1023, 2, 1024, 1))),
        "Chunks that end anywhere: in the zlib header, behind a tag, before one, in a block.",
        "ram.chunk.length",
        dialect="v2",
    )
    packed = stored(TEXT)
    yield accept(
        "ram/v2-ends-late",
        v2_of(chunked_record(4096, *split(packed, 3000, len(packed) - 3004, 1, 2)), TIMER),
        "The zlib stream ends two chunks behind the one with the last block.",
        "ram.chunk.data",
        dialect="v2",
    )
    yield accept(
        "ram/v2-unfinished",
        v2_of(chunked_record(4096, *split(packed[:-4], 2048)), TIMER),
        "All blocks are there, and the record ends before the zlib stream does.",
        "record.body.outside",
        "ram.chunk.data",
        dialect="v2",
    )
    yield accept(
        "ram/v2-empty",
        v2_of(chunked_record(0), TIMER),
        "A RAM of version 2 of no bytes without any chunk.",
        "ram.size",
        dialect="v2",
    )
    yield accept(
        "ram/v2-empty-stream",
        v2_of(chunked_record(0, stored(b""))),
        "A RAM of version 2 of no bytes, and a zlib stream that holds as much.",
        "ram.chunk.data",
        dialect="v2",
    )
    wire = v2_of(chunked_record(4096, *split(packed, 2048), rest=b"\xfa\xberest"), TIMER)
    yield accept(
        "ram/v2-rest",
        wire,
        "Bytes of the record behind the end of the zlib stream, which are reported; that they "
        "begin like a chunk does not matter.",
        "record.body.rest",
        findings=found(wire, "rest", "record.body.rest", section="ram"),
        dialect="v2",
    )
    wire = Wire().header().section(4, 1, b"ram", 0, 2)
    yield accept(
        "ram/v2-section",
        timer(wire.append(Wire().chunked_ram(4096, *split(packed, 2000, 1000)))).eof(),
        "RAM of version 2 in a FULL section, as svn r5434 sends it.",
        "ram.truncated",
        "ram.size",
        "ram.chunk.magic",
        "ram.chunk.length",
        dialect="v3-2008",
    )
    wire = Wire().header().section(4, 1, b"ram", 0, 2)
    yield accept(
        "ram/v2-section-unfinished",
        timer(wire.append(Wire().chunked_ram(4096, *split(packed[:-1], 2048)))).eof(),
        "RAM of version 2 whose zlib stream has not ended where the next section begins.",
        "ram.chunk.data",
        dialect="v3-2008",
    )


def unnamed_ram(wire: Wire, number: int = 2) -> Wire:
    """START, PART and END of a ram section of version 3 with 8 pages.

    Marks: blocks (the size), {start,part,end}.eos, and those of `Wire`.
    """
    wire.section(1, number, b"ram", 0, 3).word(0x8004, "blocks").word(0x10, "start.eos")
    wire.again(2, number, "part").word(ZERO).put(b"\0", "fill")
    wire.word(0x1000 | ZERO).put(b"\x5a", "fill").word(0x2000 | PAGE)
    wire.put(pattern(4096), "content").word(0x10, "part.eos")
    wire.again(3, number, "end").word(0x7000 | PAGE).put(bytes(4096), "content")
    return wire.word(0x1000 | ZERO).put(b"\0", "fill").word(0x10, "end.eos")


def _ram_words() -> Iterator[Vector]:
    yield accept(
        "ram/v3-live",
        timer(unnamed_ram(Wire().header())).eof(),
        "RAM of version 3: words as in version 4, without block names; a page that was filled "
        "becomes zero in the END.",
        "ram.truncated",
        "ram.flags.combination",
        "ram.flags.unsupported",
        "ram.page.misaligned",
        "ram.page.outside-block",
        dialect="v3-ram3",
    )
    for name, size, kind in (("1-kib", 1024, ZERO), ("8-kib", 8192, PAGE)):
        content = b"\0" if kind == ZERO else pattern(size)
        wire = Wire().header().section(1, 2, b"ram", 0, 3).word(size * 4 | 4, "blocks")
        wire.word(kind).put(content).word(size | kind).put(content).word(0x10, "eos")
        yield accept(
            f"ram/v3-page-size-{name}",
            wire.eof(),
            f"RAM of version 3 in pages of {size} bytes, told only by where the second page record "
            "stands.",
            "ram.page.misaligned",
            dialect="v3-ram3",
        )
    wire = Wire().header().section(1, 2, b"ram", 0, 3).word(0x2004, "blocks").word(ZERO)
    wire.put(b"\0").word(0x2004, "blocks").word(0x10, "start.eos")
    wire.again(3, 2, "end").word(0x2004, "blocks").word(0x10, "end.eos")
    empty = Wire().header().section(1, 2, b"ram", 0, 3).word(4, "blocks").word(0x10, "start.eos")
    yield accept(
        "ram/v3-empty",
        empty.again(3, 2, "end").word(4, "blocks").word(0x10, "end.eos").eof(),
        "A RAM of version 3 of no bytes.",
        "ram.size.differs",
        dialect="v3-ram3",
    )
    yield accept(
        "ram/v3-size-repeated",
        wire.eof(),
        "RAM of version 3 that states its size three times.",
        "ram.size.differs",
        dialect="v3-ram3",
    )
    wire = Wire().header().section(1, 2, b"ram", 0, 3).word(1 << 62 | 4, "blocks")
    for shift in (12, 20, 28, 36, 44, 52, 60):
        wire.word(1 << shift | PAGE).put(pattern(4095) + bytes([shift]))
        if shift == 12:
            wire.word(2 << shift | ZERO).put(b"\0")
    yield accept(
        "ram/v3-addresses",
        wire.word(0x10, "eos").eof(),
        "Pages all over a RAM of version 3 of 2^62 bytes.",
        "ram.page.outside-block",
        dialect="v3-ram3",
    )
    mixed = Wire().header().section(4, 1, b"ram", 0, 1).append(Wire().plain_ram(0, 0x11))
    mixed.section(4, 2, b"ram", 0, 3).word(0x2004, "blocks")
    mixed.word(0x1000 | PAGE).put(pattern(4096)).word(0x10, "eos")
    yield accept(
        "ram/v1-then-v3",
        mixed.eof(),
        "Two ram sections, of version 1 and of version 3, which are of the same block.",
        "ram.size.differs",
        dialect="v3-2008",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 3).word(0x1004, "blocks")
    yield accept(
        "ram/version-3",
        wire.word(0x10, "eos").footer(2).eof(),
        "RAM of version 3 in a stream with configuration and footers.",
        "ram.size.differs",
    )


def disks(wire: Wire, number: int = 1) -> Wire:
    """START, PART and END of a block section: two disks, whose pieces are all zero.

    Marks: device, device.name, progress, {start,part,end}.eos.
    """

    def device(sector: int, name: bytes) -> None:
        wire.word(sector << 9 | 9, "device").name(name, "device.name")

    wire.section(1, number, b"block", 0, 1).word(4, "progress").word(2, "start.eos")
    wire.again(2, number, "part")
    device(0, b"ide0-hd0")
    device(2048, b"ide0-hd0")
    wire.word(50 << 9 | 4, "progress")
    device((1 << 55) - 2048, b"")
    wire.word(2, "part.eos")
    wire.again(3, number, "end").word(100 << 9 | 4, "progress")
    return wire.word(7 << 9 | 2, "end.eos")


def _block() -> Iterator[Vector]:
    yield accept(
        "block/disks",
        timer(disks(Wire().header())).eof(),
        "Pieces of two disks that are zero, one without a name, and how far it got; the last word "
        "has a sector that says nothing.",
        "block.truncated",
        "block.flags",
        dialect="v3-2008",
    )
    wire = Wire().header().section(1, 1, b"block", 0, 1).word(5 << 9 | 1, "device")
    wire.name(b"ide0-hd0", "device.name").put(pattern(4096) * 256, "contents")
    yield accept(
        "block/contents",
        wire.word(2, "eos").eof(),
        "A piece of a disk with its contents, which have 1 MiB, no less.",
        "block.truncated",
        dialect="v3-2008",
    )
    wire = Wire().header().machine().section(1, 1, b"block", 0, 1).word(2, "eos").footer(1)
    yield accept(
        "block/nothing",
        wire.again(3, 1, "end").word(2, "end.eos").footer(1).eof(),
        "A block section without disks, with footers.",
        "block.truncated",
    )


# Devices whose layout a reader knows, in streams that describe nothing


def device(wire: Wire, number: int, idstr: bytes, version: int, body: bytes) -> Wire:
    """A FULL section without footer.  Mark: <idstr>.body."""
    wire.section(4, number, idstr, 0, version)
    return wire.put(body, f"{idstr.decode('latin-1')}.body")


def cpu_state(size: int, format_at: int, format: int = 0) -> bytes:
    """``size`` bytes of state of version 4 of an x86 processor, with its fpregs_format there."""
    state = bytearray(pattern(size))
    state[format_at : format_at + 2] = be16(format)
    return bytes(state)


CPU_I386, CPU_X86_64 = cpu_state(492, 50), cpu_state(860, 154)
# The state of an i8259; until 0.8.2 it was a byte less.
PIC = pattern(16)
PS2 = pattern(284)
LED_STATE = b"\x05" + counted(b"ps2kbd/ledstate")


def _known() -> Iterator[Vector]:
    def known(
        name: str, wire: Wire, description: str, *rules: str, findings: tuple[Finding, ...] = ()
    ) -> Vector:
        return accept(
            f"vmstate/known-{name}",
            wire,
            description,
            *(rules or ("vmstate.truncated",)),
            findings=findings,
            dialect="v3-2008",
        )

    wire = timer(Wire().header(), 0)
    device(wire, 1, b"cpu_common", 1, be32(0) + be32(2))
    yield known(
        "devices",
        device(wire, 2, b"i2c_bus", 1, b"\0").eof(),
        "Devices that a reader knows, with neither footer nor description: what is known of them "
        "says where they end.",
    )
    for name, body in (
        ("i386", CPU_I386),
        ("x86-64", CPU_X86_64),
        ("i386-format-1", cpu_state(476, 50, 1)),
    ):
        yield known(
            f"cpu-{name}",
            timer(device(Wire().header(), 3, b"cpu", 4, body)).eof(),
            "Version 4 of cpu has a layout for each target, and floating point registers of a size "
            f"that a field before them tells; this one has {len(body)} bytes.",
        )
    for name, size in (("16", 16), ("15", 15)):
        yield known(
            f"i8259-{name}",
            device(Wire().header(), 1, b"i8259", 1, PIC[:size]).eof(),
            f"Version 1 of i8259 has two layouts; of {name} bytes it is the one behind which the "
            "last byte is an EOF mark.",
        )
    wire = device(Wire().header(), 1, b"i8259", 1, PIC[:15])
    yield known(
        "layout-by-part",
        device(wire.again(2, 1, "part").put(PIC[:15], "part.body"), 2, b"i2c_bus", 1, b"\1").eof(),
        "The layout is the one behind which a PART of a section begins that began before, then the "
        "one behind which a FULL does.",
        "section.id.unknown",
    )
    wire = device(Wire().header(), 1, b"i8259", 1, PIC[:15])
    yield known(
        "layout-by-idstr",
        timer(timer(timer(device(wire, 0x04000001, b"i2c_bus", 1, PIC[1:2]), 2), 3), 4).eof(),
        "The layout is the one behind which a FULL begins whose idstr is text, not the one behind "
        "which its id would make another.",
    )
    wire = device(Wire().header(), 1, b"i8259", 1, PIC[:15])
    device(wire, 2, b" ~", 1, b"abc").eof()
    yield known(
        "layout-by-idstr-printable",
        wire,
        "The layout is the one behind which a FULL begins whose idstr has the first and the last "
        "character that is text.",
        findings=found(wire, " ~.body", UNDESCRIBED, UNDELIMITED, section=" ~"),
    )
    wire = device(Wire().header(), 1, b"ps2kbd", 3, PS2)
    wire.put(LED_STATE, "led").put(be32(3), "led.version").put(be32(0xFFFFFFFF), "level")
    yield known(
        "subsection",
        timer(wire).eof(),
        "A known subsection is there if the bytes begin like it.",
        "vmstate.subsection.version",
    )
    yield known(
        "subsection-absent",
        timer(device(Wire().header(), 1, b"ps2kbd", 3, PS2)).eof(),
        "A known subsection that is not there.",
        "vmstate.subsection.version",
    )
    changed = b"\x05" + counted(b"fdrive/media_changed") + be32(1) + b"\1"
    floppies = pattern(538) + b"\x02" + b"\1\2\3" + changed + b"\4\5\6"
    yield known(
        "count-and-nested-subsection",
        timer(device(Wire().header(), 1, b"fdc", 2, floppies)).eof(),
        "As many drives as a field says, the first with a subsection of its own.",
    )
    for name, count, body in (("four", 4, be32(1) * 4), ("negative", -4, b"")):
        yield known(
            f"count-{name}",
            device(Wire().header(), 1, b"PCIBUS", 1, be32(count & 0xFFFFFFFF) + body).eof(),
            f"An array of as many elements as the field before it says, which is {count}.",
        )
    wire = Wire().header()
    for number, version, levels in ((1, 2, be32(9) * 4), (2, 1, b"")):
        body = be32(version) + pattern(256) + levels + b"\1"
        device(wire, number, b"0000:00:00.0/I440FX", 3, body)
    yield known(
        "path-and-condition",
        wire.eof(),
        "A device path before the name; a field that is there in version 2 of an inner structure "
        "and not in version 1.",
    )
    wire = timer(Wire().header(), 0)
    wire.section(4, 1, b"timer", 0, 3).put(pattern(24), "body").eof()
    yield known(
        "version-unknown",
        wire,
        "A known device, and then a version of it that is not known, which reaches to the end.",
        "stream.undelimited",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="timer"),
    )
    wire = timer(Wire().header(), 0)
    wire.section(4, 1, b"timer", 1, 2).put(pattern(24), "body")
    wire.subsection(b"timer/later", 1, "later").put(pattern(4)).eof()
    yield known(
        "changed-since",
        wire,
        "Behind what is known of a device no record begins, so it reaches to the end.",
        "stream.undelimited",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="timer"),
    )


def _htab() -> Iterator[Vector]:
    wire = Wire().header().machine(b"pseries").section(1, 22, b"spapr/htab", 0, 1)
    wire.put(be32(18), "shift").footer(22)
    wire.again(2, 22, "part").put(be32(0), "part.header")
    wire.put(be32(4) + be16(2) + be16(3), "chunk").put(pattern(32), "entries")
    wire.put(be32(0x100) + be16(0) + be16(1), "chunk").put(bytes(8), "part.end").footer(22)
    wire.again(3, 22, "end").put(be32(0), "end.header").put(bytes(8), "end.end").footer(22)
    yield accept(
        "htab/chunks",
        wire.eof(),
        "A hash table: its size, then two chunks, then none.",
        "htab.truncated",
    )
    wire = Wire().header().machine(b"pseries").section(1, 22, b"spapr/htab", 0, 1)
    wire.put(be32(18), "shift").footer(22).again(3, 22, "end").put(be32(0), "header")
    wire.put(be32(0) + be16(1) + be16(0), "valid").put(pattern(16), "entries")
    wire.put(be32(0) + be16(0) + be16(2), "invalid").put(be32(3) + bytes(4), "index")
    yield accept(
        "htab/chunks-of-one-number",
        wire.put(bytes(8), "end.end").footer(22).eof(),
        "Chunks with but one number that is not 0, none of which is the last.",
        "htab.truncated",
    )
    none = be32(0xFFFFFFFF)
    wire = Wire().header().machine(b"pseries").section(1, 22, b"spapr/htab", 0, 1).put(none)
    yield accept(
        "htab/none",
        wire.footer(22).again(3, 22, "end").put(none).footer(22).eof(),
        "No hash table: ffffffff in START and END.",
        "htab.truncated",
    )


def _storage_attributes() -> Iterator[Vector]:
    wire = Wire().header().machine(b"s390-ccw-virtio")
    wire.section(1, 3, b"s390-storage_attributes", 0, 0).word(1, "start.eos").footer(3)
    wire.again(2, 3, "part").word(0x10000 | 2, "more").put(be64(5), "count")
    wire.put(b"\0\1\2\3\4", "attributes").word(1, "part.eos").footer(3)
    wire.again(3, 3, "end").word(0x20000 | 2, "more").put(be64(0), "count").word(8, "done")
    yield accept(
        "storage-attributes/each-flag",
        wire.word(1, "end.eos").footer(3).eof(),
        "MORE with five attributes and with none, DONE and EOS.",
        "storage-attributes.truncated",
        "storage-attributes.flags",
    )


def _stream() -> Iterator[Vector]:
    yield accept(
        "stream/configuration-only",
        Wire().header().machine().eof(),
        "A configuration and no section at all.",
        "stream.truncated",
    )
    wire = Wire().header().machine().eof().put(b"\0", "tail")
    yield accept(
        "stream/eof-twice",
        wire,
        "A second EOF mark, which is reported.",
        "stream.trailing-data",
        findings=found(wire, "tail", "stream.trailing-data"),
    )
    wire = Wire().header().section(4, 0, b"board", 0, 2).put(bytes(24), "body").eof()
    yield accept(
        "stream/undelimited",
        wire,
        "A body of which nothing is known reaches to the end, and so does the EOF mark in it.",
        "stream.undelimited",
        "stream.eof-mark",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="board"),
        dialect="v3-2008",
    )
    wire = Wire().header().section(4, 7, b"board", 0, 1)
    wire.put(b"\x01", "body").footer(7).eof()
    yield accept(
        "stream/undelimited-with-footer-lookalike",
        wire,
        "What looks like a footer delimits nothing in a stream without configuration.",
        "stream.undelimited",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="board"),
        dialect="v3-2008",
    )
    wire = Wire().header().machine().section(4, 7, b"fdc", 0, 1)
    wire.put(b"\x01\x7e\0\0\0\x08", "body").eof()
    yield accept(
        "stream/configured-and-undelimited",
        wire,
        "A body without footer in a stream that has a configuration, where a footer was to come: "
        "what is known of the device is not asked.",
        "stream.undelimited",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="fdc"),
    )
    wire = live_ram(Wire().header(), footers=False)
    wire.section(4, 0, b"board", 0, 2).put(b"\x7e", "body").eof()
    yield accept(
        "stream/ram-then-undelimited",
        wire,
        "Live RAM without footers, then a body that nothing delimits.",
        "stream.undelimited",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="board"),
        dialect="v3-ram4",
    )


def v1() -> Wire:
    """Two records of version 1."""
    wire = Wire().header(1).record(b"timer", 0, 1, pattern(16))
    return wire.record(b"serial", 0x3F8, 1, pattern(9))


def v2(total: int | None = None) -> Wire:
    """Two records of version 2; ``total`` in the place of the right total length.  Mark: total."""
    records = Wire().record(b"timer", 0, 2, pattern(24)).record(b"serial", 0x3F8, 2, pattern(10))
    wire = Wire().header(2).put(be64(len(records.data) if total is None else total), "total")
    wire.record(b"timer", 0, 2, pattern(24))
    return wire.record(b"serial", 0x3F8, 2, pattern(10))


def _legacy() -> Iterator[Vector]:
    yield accept(
        "legacy/v1",
        v1(),
        "Two records of version 1.",
        "record.truncated",
        "record.length",
        dialect="v1",
    )
    yield accept(
        "legacy/v2",
        v2(),
        "Two records of version 2.",
        "record.outside-total",
        "record.truncated",
        dialect="v2",
    )
    wire = Wire().header(1)
    for number, idstr, version, body in (
        (1, b"board", 1, pattern(30)),
        (0, b"timer", 1, pattern(17)),
        (0, b"timer", 3, pattern(16)),
        (0x20, b"i8259", 1, PIC),
        (0xA0, b"i8259", 1, PIC[:15]),
    ):
        wire.record(idstr, number, version, body)
    yield accept(
        "legacy/v1-known-by-length",
        wire,
        "Records of a device that is not known, of known ones with a byte too many and in another "
        "version, and of one with two layouts, of which the length tells the right one.",
        "record.truncated",
        dialect="v1",
    )
    yield accept(
        "legacy/v2-cpu",
        v2_of(Wire().record(b"cpu", 0, 4, CPU_I386), Wire().record(b"cpu", 1, 4, CPU_X86_64)),
        "Records of processors of two targets, of which the length tells the right layout.",
        "record.truncated",
        dialect="v2",
    )
    yield accept(
        "legacy/v1-shortest",
        Wire().header(1),
        "Version 1 without any record.",
        "record.truncated",
        dialect="v1",
    )
    yield accept(
        "legacy/v2-shortest",
        Wire().header(2).put(be64(0)),
        "Version 2 with a total length of 0.",
        "record.outside-total",
        dialect="v2",
    )
    # The last four bytes of a zlib stream are a checksum: without them it has not ended.
    records = (
        chunked_record(4096, *split(stored(TEXT)[:-4], 2000), rest=b"\xfa"),
        Wire().record(b"n" * 0xBE, 0, 1, b""),
    )
    wire = v2_of(*records)
    yield accept(
        "ram/v2-rest-like-a-chunk",
        wire,
        "A byte of the record behind RAM of version 2, with which, and the first one of the next "
        "record, a chunk would begin.",
        "record.body.rest",
        findings=found(wire, "rest", "record.body.rest", section="ram"),
        dialect="v2",
    )
    yield accept(
        "legacy/v2-last-empty",
        v2_of(Wire().record(b"timer", 0, 2, pattern(24)), Wire().record(b"none", 0, 1, b"")),
        "A last record without a body, whose head ends where the total length does.",
        "record.outside-total",
        "record.truncated",
        dialect="v2",
    )
    yield accept(
        "legacy/v1-nameless",
        Wire().header(1).record(b"", 0xFFFFFFFF, 0, b""),
        "A record with neither name nor body.",
        "record.truncated",
        dialect="v1",
    )
    wire = v2().put(b"\0", "tail")
    yield accept(
        "legacy/v2-then-more",
        wire,
        "A byte behind the total length, which is reported.",
        "stream.trailing-data",
        findings=found(wire, "tail", "stream.trailing-data"),
        dialect="v2",
    )


def _limit() -> Iterator[Vector]:
    for depth in (128,):
        nested = b'{"devices": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
        yield accept(
            f"limit/vmdesc-depth-{depth}",
            Wire().header().machine().eof().vmdesc(nested),
            "A description nested as deep as the default limit allows.",
            "limit.vmdesc-depth",
        )
    names = (b"events",) * 256
    yield accept(
        "limit/capabilities-256",
        Wire().header().machine().capabilities(*names).eof(),
        "As many capabilities as the default limit allows.",
        "limit.capabilities",
    )


# From real QEMUs


def real(
    name: str,
    seed_name: str,
    description: str,
    *rules: str,
    dialect: str = "v3-configuration",
    machine: Machine | None = None,
) -> Vector:
    """A seed as it is, in which everything is described."""
    return accept(
        name,
        seed(seed_name),
        description,
        *rules,
        dialect=dialect,
        source=seed_source(seed_name),
        machine=machine,
    )


def _real() -> Iterator[Vector]:
    for version in ("5.2", "7.2", "10.0", "11.1"):
        yield real(
            f"stream/spike-{version}",
            f"spike-{version}",
            f"A RISC-V machine of 16 KiB, spike, as QEMU {version} writes it.",
            *_WHOLE,
            machine={**SPIKE, "since": version, "until": version},
        )
        yield real(
            f"stream/avr-{version}",
            f"avr-{version}",
            f"The smallest machine, arduino-duemilanove, as QEMU {version} writes it.",
            *_WHOLE,
        )
        yield real(
            f"stream/microbit-{version}",
            f"microbit-{version}",
            f"An Arm machine with many devices, microbit, as QEMU {version} writes it.",
            *_WHOLE,
        )
    for version in ("5.2", "10.0"):
        yield real(
            f"stream/tricore-{version}",
            f"tricore-{version}",
            f"A machine with many RAM blocks, tricore_testboard, as QEMU {version} writes it.",
            "ram.blocks.total",
            *_WHOLE,
        )
    for name, seed_name, what in (
        ("nios2", "nios2-7.2", "A machine of an architecture that QEMU no longer has."),
        ("rx", "rx-11.1", "gdbsim-r5f562n7 as QEMU 11.1 writes it."),
        ("or1k", "or1k-5.2", "or1k-sim as QEMU 5.2 writes it, with pages of 8 KiB."),
        ("alpha", "alpha-10.0", "clipper as QEMU 10.0 writes it, with pages of 8 KiB."),
        ("riscv-virt", "riscv-virt-10.0", "A RISC-V machine with PCI as QEMU 10.0 writes it."),
        ("microvm", "microvm-7.2", "A small x86 machine as QEMU 7.2 writes it."),
        ("isapc", "isapc-10.0", "An old x86 machine as QEMU 10.0 writes it."),
    ):
        yield real(f"stream/{name}", seed_name, what, *_WHOLE)
    yield real(
        "vmdesc/length-contains-brace",
        "mips-malta-11.1",
        "A length in which 7b stands, the brace that a text begins with: 31727 is 7bef.",
        "vmdesc.truncated",
        "vmdesc.json",
    )
    for version in ("10.0", "11.1"):
        yield real(
            f"configuration/target-page-bits-{version}",
            f"arm-virt-{version}",
            f"The configuration of an Arm machine states its page size, as QEMU {version} has it.",
            "configuration.target-page-bits",
        )
    for version in ("7.2", "10.0"):
        yield real(
            f"configuration/uuid-{version}",
            f"spike-uuid-{version}",
            f"The configuration carries the uuid, as QEMU {version} has it.",
            "configuration.subsection.version",
        )
        yield real(
            f"command/return-path-{version}",
            f"avr-return-path-{version}",
            f"QEMU {version} with a return path: OPEN_RETURN_PATH, PING and POSTCOPY_ADVISE.",
            "command.length",
        )
    yield real(
        "command/postcopy-7.2",
        "spike-postcopy-7.2",
        "A postcopy migration: discards, a package with the devices, RAM behind it, no description.",
        "command.packaged.empty",
        "command.postcopy-ram-discard.payload",
    )
    yield real(
        "configuration/absent-7.2",
        "avr-no-configuration-7.2",
        "QEMU 7.2 told not to send the configuration.",
        "configuration.misplaced",
        dialect="v3-vmdesc",
    )
    yield real(
        "footer/absent-7.2",
        "avr-no-footers-7.2",
        "QEMU 7.2 told not to send footers.",
        "footer.unexpected",
    )
    yield real(
        "footer/neither-7.2",
        "avr-neither-7.2",
        "QEMU 7.2 told to send neither configuration nor footers.",
        "footer.unexpected",
        dialect="v3-vmdesc",
    )
    yield real(
        "htab/pseries-2.3-7.2",
        "pseries-2.3-7.2",
        "A machine of 2.3: hash table, description, neither configuration nor footers.",
        "htab.truncated",
        dialect="v3-vmdesc",
    )
    yield real(
        "htab/pseries-10.0",
        "pseries-10.0",
        "A hash table as QEMU 10.0 writes it.",
        "htab.truncated",
    )
    for version, what in (
        ("7.2", "a pointer array that the description does not tell"),
        ("10.0", "null pointers described as nullptr"),
        ("11.1", "null pointers described as ptr-marker"),
    ):
        yield real(
            f"storage-attributes/s390x-{version}",
            f"s390x-{version}",
            f"An s390x machine as QEMU {version} writes it, with storage attributes and {what}.",
            "storage-attributes.flags",
            "vmstate.pointer-marker",
        )


def _real_history() -> Iterator[Vector]:
    yield real(
        "legacy/v1-0.8.1",
        "v1-0.8.1",
        "Version 1 as QEMU 0.8.1 wrote it.",
        "record.truncated",
        dialect="v1",
    )
    yield real(
        "legacy/v2-0.9.1",
        "v2-0.9.1",
        "Version 2 as QEMU 0.9.1 wrote it.",
        "record.outside-total",
        dialect="v2",
    )
    for name, seed_name, what, dialect in (
        ("v3-r5434", "v3-r5434", "The first version 3, from svn r5434: FULL sections.", "v3-2008"),
        ("v3-r5478", "v3-r5478", "The first live migration, from svn r5478.", "v3-ram3"),
        ("v3-0.10.6", "v3-0.10.6", "Version 3 as QEMU 0.10.6 wrote it.", "v3-ram3"),
        ("v3-0.12.5", "v3-0.12.5", "RAM and a disk, live, as QEMU 0.12.5 wrote them.", "v3-ram3"),
        ("v3-0.14.1", "v3-0.14.1", "Version 3 as QEMU 0.14.1 wrote it.", "v3-ram4"),
        (
            "v3-0.14.1-without-block",
            "v3-0.14.1-no-block",
            "Live RAM with block names as QEMU 0.14.1 wrote it.",
            "v3-ram4",
        ),
        (
            "v3-1.0-rc2-without-block",
            "v3-1.0-rc2-no-block",
            "Many rounds of live RAM as QEMU 1.0-rc2 wrote them.",
            "v3-ram4",
        ),
    ):
        wire = seed(seed_name)
        fills = fill_offsets(bytes(wire.data), 4096) if dialect == "v3-ram4" else []
        yield accept(
            f"legacy/{name}",
            wire,
            what,
            "vmstate.truncated",
            findings=tuple(Finding("ram.zero.fill", at, "ram") for at in fills),
            dialect=dialect,
            source=seed_source(seed_name),
        )
    head = b"\4\0\0\0\4\3ics" + bytes(7) + b"\1"
    wire = seed("pseries-2.1-7.2").find("body", head, len(head))
    yield accept(
        "legacy/pseries-2.1",
        wire,
        "A machine of 2.1 in QEMU 7.2, with neither configuration, footers nor description: behind "
        "timer comes what nothing delimits.",
        findings=found(wire, "body", UNDESCRIBED, UNDELIMITED, section="ics"),
        dialect="v3-ram4",
        source=seed_source("pseries-2.1-7.2"),
    )
