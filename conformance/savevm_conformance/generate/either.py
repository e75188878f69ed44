"""Where QEMU releases differ from the rules or from each other.

Either verdict is fine from an implementation; the expectation is what the rules say.  The notes say
which QEMUs, observed with QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3, do what.
"""

from collections.abc import Iterator

from savevm_conformance.generate.accepts import accept, accepts, found, live_ram
from savevm_conformance.generate.model import (
    END,
    Change,
    Cut,
    Describe,
    Finding,
    Insert,
    Set,
    Vector,
    reject,
)
from savevm_conformance.wire import MAIN, MAIN_LENGTH, ZERO, Wire, be32, be64, counted

_DISCARDED = "QEMU 5.2 to 11.1 do not look at the text of a description and load the stream."


def eithers() -> list[Vector]:
    """The vectors that may be accepted or rejected."""
    parts = (_description, _layout, _versions, _ram)
    return [vector for part in parts for vector in part()]


def _either(
    name: str,
    rule: str,
    base: Vector,
    change: Change,
    description: str,
    notes: str,
    section: str | None = None,
    at: str | None = None,
) -> Vector:
    return reject(
        name,
        rule,
        base,
        change,
        description,
        section=section,
        at=at,
        verdict="either",
        notes=notes,
    )


def _description() -> Iterator[Vector]:
    base = accepts()["vmdesc/size-only"]
    for name, change, what in (
        ("length-absent", Cut("vmdesc.length"), "The input ends behind the byte 06."),
        ("length-cut", Cut("vmdesc.length", 3), "The input ends within the length."),
        ("text-absent", Cut("vmdesc.text"), "The input ends behind the length."),
        ("text-cut", Cut("vmdesc.text", 20), "The input ends within the text."),
    ):
        yield _either(f"vmdesc/{name}", "vmdesc.truncated", base, change, what, _DISCARDED)
    size = base.wire.marks["vmdesc.length"]
    long = int.from_bytes(base.wire.data[size.offset : size.offset + 4], "big") + 1
    yield _either(
        "vmdesc/length-one-too-big",
        "vmdesc.truncated",
        base,
        Set("vmdesc.length", be32(long)),
        "A length that is one more than the text has.",
        _DISCARDED,
        at=END,
    )
    empty = accepts()["vmdesc/length-ends-with-brace"]
    text = bytes(empty.wire.data[empty.wire.marks["vmdesc.text"].offset :])
    for name, new, what in (
        ("empty", b"", "A text of no bytes."),
        ("list", b"[]", "A text that is a list."),
        ("number", b"1", "A text that is a number."),
        ("devices-absent", b'{"page_size": 4096}', 'An object without "devices".'),
        ("devices-object", b'{"devices": {}}', 'An object whose "devices" is an object.'),
        ("devices-null", b'{"devices": null}', 'An object whose "devices" is null.'),
        ("not-closed", b'{"devices": [}', "A list that is not closed."),
        ("two-objects", b'{"devices": []}{}', "A second object behind the first."),
        ("not-utf-8", b'{"devices": ["\xff"]}', "A text that is not UTF-8."),
        ("control-character", b'{"devices": ["\x01"]}', "A control character within a string."),
    ):
        yield _either(
            f"vmdesc/text-{name}",
            "vmdesc.json",
            empty,
            Describe(text, new),
            what,
            _DISCARDED,
            at="vmdesc.text",
        )
    for size_ in ((64 << 20) + 1, 0xFFFFFFFF):
        yield _either(
            f"limit/vmdesc-size-{size_}",
            "limit.vmdesc-size",
            empty,
            Set("vmdesc.length", be32(size_)),
            f"A description of {size_} bytes.",
            _DISCARDED,
        )
    for depth in (129, 5000):
        nested = b'{"devices": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
        yield _either(
            f"limit/vmdesc-depth-{depth}",
            "limit.vmdesc-depth",
            empty,
            Describe(text, nested),
            f"A description nested {depth} levels deep.",
            _DISCARDED,
            at="vmdesc.text",
        )
    nested = b'{"devices": [], "x": 0, "x": ' + b"[" * 128 + b"]" * 128 + b"}"
    yield _either(
        "limit/vmdesc-depth-129-in-keys-twice",
        "limit.vmdesc-depth",
        empty,
        Describe(text, nested),
        "A description nested 129 levels deep behind a key that stands twice.",
        _DISCARDED,
        at="vmdesc.text",
    )
    wire = Wire().header().machine().eof().put(b"\x09\0\0\0\0", "tail")
    yield accept(
        "vmdesc/type-9-behind-eof",
        wire,
        "Another record type than 06 behind the EOF mark, which is reported.",
        "stream.trailing-data",
        findings=found(wire, "tail", "stream.trailing-data"),
        notes="QEMU 5.2 to 11.1 print that they expected a VMDESCRIPTION, and load the stream.",
        verdict="either",
    )


def _layout() -> Iterator[Vector]:
    base = accepts()["vmstate/uart"]
    for name, old, new, what in (
        ("name-absent", b'"name": "head", ', b"", "A field without name."),
        ("name-number", b'"name": "head"', b'"name": 1', "A field whose name is a number."),
        ("name-object", b'"name": "head"', b'"name": {}', "A field whose name is an object."),
        ("type-absent", b'"type": "timer", ', b"", "A field without type."),
        ("size-absent", b'"type": "bool", "size": 1', b'"type": "bool"', "A field without size."),
        ("size-negative", b'"bool", "size": 1', b'"bool", "size": -1', "A negative size."),
        ("size-true", b'"bool", "size": 1', b'"bool", "size": true', "A size that is true."),
        ("size-text", b'"bool", "size": 1', b'"bool", "size": "1"', "A size that is text."),
        ("array-len-zero", b'"array_len": 3', b'"array_len": 0', "An array of no elements."),
        ("array-len-text", b'"array_len": 3', b'"array_len": "3"', "An array length that is text."),
        (
            "field-number",
            b'{"name": "ticks", "type": "timer", "size": 8}',
            b"8",
            "A field that is a number.",
        ),
        (
            "struct-nameless",
            b'"vmsd_name": "uart/fifo", ',
            b"",
            "A nested struct without vmsd_name.",
        ),
        (
            "struct-versionless",
            b'"vmsd_name": "uart/fifo", "version": 1',
            b'"vmsd_name": "uart/fifo"',
            "A nested struct without version.",
        ),
        (
            "struct-list",
            b'{"vmsd_name": "uart/fifo", "version": 1, "fields"',
            b'[], "x": {"fields"',
            "A nested struct that is a list.",
        ),
        (
            "subsection-nameless",
            b'"vmsd_name": "uart/irq", "version": 2',
            b'"version": 2',
            "A subsection without vmsd_name.",
        ),
        (
            "subsection-versionless",
            b'"vmsd_name": "uart/irq", "version": 2',
            b'"vmsd_name": "uart/irq"',
            "A subsection without version.",
        ),
        (
            "subsections-object",
            b'"subsections": [',
            b'"subsections": {}, "x": [',
            "Subsections that are an object.",
        ),
    ):
        yield _either(
            f"vmdesc/layout-{name}",
            "vmdesc.layout",
            base,
            Describe(old, new),
            what,
            _DISCARDED,
            section="board/uart",
            at="uart.body",
        )
    yield _either(
        "vmdesc/layout-struct-fieldless",
        "vmdesc.layout",
        accepts()["vmstate/arrays-of-one-and-none"],
        Describe(b'"version": 1, "fields": []', b'"version": 1'),
        "A nested struct of no bytes without a list of fields.",
        _DISCARDED,
        section="arrays",
        at="body",
    )
    yield _either(
        "vmdesc/layout-pointer-array-unknown",
        "vmdesc.layout",
        accepts()["vmstate/pointer-array"],
        Describe(b'"name": "css"', b'"name": "xyz"'),
        "An array of pointers whose elements neither the description nor the tables tell.",
        _DISCARDED,
        section="s390_css",
        at="body",
    )
    yield _either(
        "vmdesc/layout-pointer-array-part-typeless",
        "vmdesc.layout",
        accepts()["vmstate/pointer-array-present-first"],
        Describe(b'"array_len": 2, "type": "ptr-marker"', b'"array_len": 2'),
        "A part of an array of pointers without a type, and so no part of it.",
        _DISCARDED,
        section="timers",
        at="body",
    )
    yield _either(
        "vmdesc/layout-device-size-absent",
        "vmdesc.layout",
        accepts()["vmdesc/size-only"],
        Describe(b'"instance_id": 0, "size": 3, ', b'"instance_id": 0, '),
        "A device with neither fields of its own nor a size.",
        _DISCARDED,
        section="slirp",
        at="body",
    )
    yield _either(
        "vmdesc/layout-device-size-negative",
        "vmdesc.layout",
        accepts()["vmdesc/size-only"],
        Describe(b'"instance_id": 0, "size": 3, ', b'"instance_id": 0, "size": -1, '),
        "A device without fields of its own whose size is negative.",
        _DISCARDED,
        section="slirp",
        at="body",
    )
    for name, new in (("struct-too-small", b'}, "size": 4}'), ("struct-too-big", b'}, "size": 6}')):
        yield _either(
            f"vmdesc/{name}",
            "vmdesc.field.size",
            base,
            Describe(b'}, "size": 5}', new),
            "A struct's size is not what its fields add up to.",
            _DISCARDED,
            section="board/uart",
            at="fifo.head",
        )
    yield _either(
        "vmdesc/list-too-big",
        "vmdesc.field.size",
        accepts()["vmstate/lists"],
        Describe(b'"size": 7}', b'"size": 8}'),
        "A list's size is not what its elements and markers add up to.",
        _DISCARDED,
        section="queue",
        at="body",
    )
    for name, old, new, what in (
        ("buffer-overruns", b'"buffer", "size": 4', b'"buffer", "size": 70000', "A field"),
        ("array-overruns", b'"array_len": 3', b'"array_len": 4000000000', "An array"),
    ):
        yield _either(
            f"vmstate/{name}",
            "vmstate.truncated",
            base,
            Describe(old, new),
            f"{what} is described as longer than the input.",
            _DISCARDED,
            section="board/uart",
            at=END,
        )
    yield _either(
        "vmstate/size-overruns",
        "vmstate.truncated",
        accepts()["vmdesc/size-only"],
        Describe(b'"instance_id": 0, "size": 3, ', b'"instance_id": 0, "size": 9999, '),
        "A body is described as longer than the input.",
        _DISCARDED,
        section="slirp",
        at=END,
    )
    yield _either(
        "vmdesc/version-differs",
        "section.version.differs-from-description",
        base,
        Describe(b'"vmsd_name": "uart", "version": 3', b'"vmsd_name": "uart", "version": 2'),
        "A device of version 3 whose description says 2.",
        _DISCARDED,
        section="board/uart",
        at="board/uart.version",
    )


def _versions() -> Iterator[Vector]:
    notes = "QEMU keeps 8 bits of the version of a subsection, and loads this as version 1."
    yield _either(
        "configuration/uuid-version-101",
        "configuration.subsection.version",
        accepts()["configuration/all-subsections"],
        Set("uuid.version", be32(0x101)),
        "Version 0x101 of a subsection of the configuration.",
        notes,
    )
    yield _either(
        "vmstate/subsection-version-102",
        "vmstate.subsection.version",
        accepts()["vmstate/uart"],
        Set("irq.version", be32(0x102)),
        "Version 0x102 of a subsection that is described as version 2.",
        notes.replace("version 1", "version 2"),
        section="board/uart",
    )


def _ram() -> Iterator[Vector]:
    yield _either(
        "ram/xbzrle",
        "ram.flags.unsupported",
        accepts()["ram/live"],
        Insert("end.eos", be64(0x40) + counted(MAIN) + b"\x01" + b"\x00\x03\x01\x01\x5a"),
        "A page sent as what changed in it.",
        "QEMU 5.2 to 11.1 decode XBZRLE whether or not the capability is on.",
        section="ram",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(main=MAIN_LENGTH)
    wire.page(ZERO, MAIN, b"\x55").page(0x1000 | ZERO, content=b"\xff").end_of_section()
    fills = ("page.content", "page.content#2")
    yield accept(
        "ram/fill-bytes",
        wire.footer(2).eof(),
        "Pages filled with another byte than 00, which is reported.",
        "ram.zero.fill",
        findings=tuple(Finding("ram.zero.fill", wire.marks[m].offset, "ram") for m in fills),
        notes="QEMU 5.2 and 7.2 fill the page; 10.0 and 11.1 refuse the stream.",
        verdict="either",
    )
    for name, word, what, notes in (
        ("hook", 0x80, "HOOK", "QEMU 5.2 and 7.2 refuse it without RDMA; 10.0 and 11.1 ignore it."),
        (
            "multifd-flush",
            0x200,
            "MULTIFD_FLUSH",
            "QEMU before 8.1 does not know it; 10.0 and 11.1 ignore it without multifd.",
        ),
    ):
        wire = live_ram(Wire().header().machine())
        start = wire.marks["part.eos"].offset
        wire.data[start:start] = be64(word) * 2
        yield accept(
            f"ram/{name}",
            Wire(bytes(wire.eof().data)),
            f"Two {what} words in a ram section.",
            "ram.flags.combination",
            notes=notes,
            verdict="either",
        )
    base = accepts()["ram/live"]
    end = "QEMU 5.2 to 11.1 end the section there all the same."
    ignored = "QEMU 10.0 and 11.1 ignore the word all the same; 5.2 and 7.2 refuse it."
    changes: tuple[tuple[str, Change, str, str], ...] = (
        ("eos-with-address", Set("part.eos", be64(0x1010)), "EOS with an address.", end),
        ("eos-and-continue", Set("part.eos", be64(0x30)), "EOS with CONTINUE.", end),
        ("hook-with-address", Insert("part.eos", be64(0x1080)), "HOOK with an address.", ignored),
        ("hook-and-continue", Insert("part.eos", be64(0xA0)), "HOOK with CONTINUE.", ignored),
        (
            "multifd-flush-with-address",
            Insert("part.eos", be64(0x1200)),
            "MULTIFD_FLUSH with an address.",
            ignored,
        ),
        (
            "multifd-flush-and-continue",
            Insert("part.eos", be64(0x220)),
            "MULTIFD_FLUSH with CONTINUE.",
            ignored,
        ),
    )
    for name, change, what, notes in changes:
        rule = "ram.flags.combination"
        yield _either(f"ram/{name}", rule, base, change, what, notes, section="ram")
