"""What a reader refuses: good streams with one declared fault each."""

from collections.abc import Iterator

from savevm_conformance.generate.accepts import TEXT, accepts
from savevm_conformance.generate.model import (
    END,
    Accepted,
    Change,
    Cut,
    Describe,
    Drop,
    Insert,
    Keep,
    Patch,
    Rename,
    Set,
    Vector,
    reject,
    seed,
    seed_source,
)
from savevm_conformance.wire import MAIN, Wire, be16, be32, be64, counted, split, stored


def rejects() -> list[Vector]:
    """The rejected vectors."""
    parts = (
        _header,
        _configuration,
        _section,
        _footer,
        _command,
        _vmstate,
        _known,
        _vmdesc,
        _ram,
        _ram_truncated,
        _block_lengths,
        _ram_plain,
        _ram_chunked,
        _ram_words,
        _ram_records,
        _block,
        _htab,
        _storage_attributes,
        _stream,
        _legacy,
        _limit,
        _real,
    )
    return [vector for part in parts for vector in part()]


def _header() -> Iterator[Vector]:
    base = accepts()["header/shortest"]
    for name, change, what in (
        ("empty", Cut("magic"), "An input of no bytes."),
        ("magic-cut", Cut("magic", 2), "The input ends within the magic."),
        ("version-absent", Cut("version"), "The input ends behind the magic."),
        ("version-cut", Cut("version", 3), "The input ends within the version."),
    ):
        yield reject(f"header/{name}", "header.truncated", base, change, what)
    for name, magic, what in (
        ("magic-wrong", b"QEVN", "One bit of the magic is wrong."),
        ("magic-little-endian", b"MVEQ", "The magic with its bytes the other way round."),
        ("magic-multifd", b"\x11\x22\x33\x44", "The magic of a multifd channel."),
        ("magic-cpr", b"QCPR", "The magic of a CPR state file."),
    ):
        yield reject(f"header/{name}", "header.magic", base, Set("magic", magic), what)
    for version in (0, 4, 0x103, 0x80000003, 0x03000000):
        yield reject(
            f"header/version-{version:x}",
            "header.version",
            base,
            Set("version", be32(version)),
            f"Version {version:#x}.",
        )


def _configuration() -> Iterator[Vector]:
    base = accepts()["configuration/all-subsections"]
    for name, change, what in (
        ("length-cut", Cut("configuration.length", 3), "The input ends within the name length."),
        ("machine-cut", Cut("configuration.machine", 2), "The input ends within the machine name."),
        ("subsection-name-absent", Cut("bits.name.length"), "The input ends behind the byte 05."),
        ("subsection-name-cut", Cut("bits.name", 20), "The input ends within a subsection name."),
        ("subsection-version-cut", Cut("bits.version", 1), "The input ends within a version."),
        ("page-bits-cut", Cut("bits", 2), "The input ends within the target page bits."),
        ("capabilities-count-cut", Cut("capabilities.count", 3), "The input ends in the count."),
        ("capability-absent", Cut("capability.length"), "The input ends before a capability."),
        ("capability-cut", Cut("capability#2", 3), "The input ends within a capability."),
        ("uuid-cut", Cut("uuid", 15), "The input ends within the uuid."),
        (
            "machine-length-overruns",
            Set("configuration.length", be32(1000)),
            "The machine name is longer than the input.",
        ),
    ):
        yield reject(f"configuration/{name}", "configuration.truncated", base, change, what, at=END)
    yield reject(
        "configuration/capabilities-count-overruns",
        "configuration.capability.unknown",
        base,
        Set("capabilities.count", be32(3)),
        "One capability more than there are, so that the next subsection begins one.",
        at="uuid.mark",
    )
    yield reject(
        "configuration/twice",
        "configuration.misplaced",
        base,
        Insert("eof", b"\x07" + be32(4) + b"virt"),
        "A second configuration behind the first.",
    )
    yield reject(
        "configuration/after-section",
        "configuration.misplaced",
        accepts()["ram/live"],
        Insert("part.type", b"\x07" + be32(4) + b"none"),
        "A configuration between two sections.",
    )
    for name, mark, value, what in (
        ("subsection-unknown", "bits.name", b"configuration/target-page-bitz", "An unknown name."),
        ("subsection-not-its-own", "uuid.name", b"timer/uuid", "A name with another prefix."),
        ("subsection-nameless", "uuid.name", b"", "A name of no bytes."),
        ("subsection-with-nul", "uuid.name", b"configuration/uuid\0", "A name and a NUL."),
    ):
        yield reject(
            f"configuration/{name}",
            "configuration.subsection.unknown",
            base,
            Rename(mark, value),
            f"A subsection of the configuration: {what[0].lower()}{what[1:]}",
            at=f"{mark}.length",
        )
    yield reject(
        "configuration/subsection-repeated",
        "configuration.subsection.repeated",
        base,
        Insert("eof", bytes(Wire().uuid().data)),
        "A subsection of the configuration that comes twice.",
        plus=1,
    )
    for mark, version in (("bits", 2), ("capabilities", 0), ("uuid", 0xFFFFFFFF)):
        yield reject(
            f"configuration/{mark}-version-{version:x}",
            "configuration.subsection.version",
            base,
            Set(f"{mark}.version", be32(version)),
            f"Version {version:#x} of a subsection of the configuration.",
        )
    for bits in (0, 7, 17, 0x8000000C):
        yield reject(
            f"configuration/page-bits-{bits:x}",
            "configuration.target-page-bits",
            base,
            Set("bits", be32(bits)),
            f"Target page bits {bits}.",
        )
    for name, rule, value, what in (
        ("capability-unknown", "unknown", b"validate-uiud", "A capability that none has defined."),
        ("capability-nameless", "unknown", b"", "A capability without a name."),
        ("capability-with-nul", "unknown", b"validate-uuid\0", "The name of one and a NUL."),
        ("capability-ignore-shared", "unsupported", b"x-ignore-shared", "x-ignore-shared is on."),
        ("capability-mapped-ram", "unsupported", b"mapped-ram", "mapped-ram is on."),
    ):
        yield reject(
            f"configuration/{name}",
            f"configuration.capability.{rule}",
            base,
            Rename("capability", value),
            what,
            at="capability.length",
        )


def _section() -> Iterator[Vector]:
    base = accepts()["ram/live"]
    for value in (0x05, 0x09, 0x10, 0x7D, 0xFF):
        yield reject(
            f"section/type-{value:02x}",
            "section.type",
            base,
            Set("part.type", bytes([value])),
            f"A record of type {value:02x}.",
        )
    yield reject(
        "section/type-05-first",
        "section.type",
        base,
        Set("configuration", b"\x05"),
        "A subsection where the configuration or a record should begin.",
    )
    for name, change, section, what in (
        ("start-id-cut", Cut("ram.id", 3), None, "The input ends within the id of a START."),
        ("idstr-length-absent", Cut("ram.idstr.length"), None, "The input ends before the idstr."),
        ("idstr-cut", Cut("ram.idstr", 2), None, "The input ends within the idstr."),
        ("instance-cut", Cut("ram.instance", 1), "ram", "The input ends within the instance id."),
        ("version-absent", Cut("ram.version"), "ram", "The input ends before the version."),
        ("version-cut", Cut("ram.version", 3), "ram", "The input ends within the version."),
        ("part-id-absent", Cut("part.id"), None, "The input ends behind the type of a PART."),
        ("end-id-cut", Cut("end.id", 2), None, "The input ends within the id of an END."),
        ("footer-absent", Cut("part.footer"), "ram", "The input ends where a footer should be."),
    ):
        yield reject(f"section/{name}", "section.truncated", base, change, what, section=section)
    yield reject(
        "section/idstr-length-overruns",
        "section.truncated",
        accepts()["section/opaque"],
        Set("globalstate.idstr.length", b"\xff"),
        "The idstr is longer than the input.",
        at=END,
    )
    opaque = accepts()["section/opaque"]
    for name, change, section, what in (
        ("full-id-absent", Cut("timer.id"), None, "The input ends behind the type of a FULL."),
        ("full-id-cut", Cut("timer.id", 1), None, "The input ends within the id of a FULL."),
        ("full-idstr-length-absent", Cut("timer.idstr.length"), None, "It ends behind the id."),
        ("full-idstr-cut", Cut("timer.idstr", 1), None, "It ends within the idstr of a FULL."),
        ("full-instance-absent", Cut("timer.instance"), "timer", "It ends behind the idstr."),
        ("full-version-cut", Cut("timer.version", 2), "timer", "It ends within a FULL's version."),
        (
            "full-body-cut",
            Cut("globalstate.footer"),
            "globalstate",
            "It ends behind a body that footers delimit.",
        ),
        (
            "full-footer-cut",
            Cut("globalstate.footer", 1),
            "globalstate",
            "It ends within the footer of a FULL.",
        ),
    ):
        yield reject(
            f"section/{name}",
            "section.truncated",
            opaque,
            change,
            what.replace("It ends", "The input ends"),
            section=section,
            loader="reject",
        )
    yield reject(
        "section/opaque-without-footer",
        "section.truncated",
        opaque,
        Set("globalstate.footer.id", be32(9)),
        "No footer with the section's id follows a body that only a footer delimits.",
        loader="reject",
        section="globalstate",
        at=END,
    )
    yield reject(
        "section/idstr-empty",
        "section.idstr.empty",
        opaque,
        Rename("globalstate.idstr", b""),
        "An idstr of no bytes.",
        at="globalstate.idstr.length",
    )
    # Of a stream that needs nothing but the head of a section.
    alone = accepts()["stream/undelimited"]
    for byte, rule, plus, what in (
        (0x02, "section.id.unknown", 1, "A PART as the first record."),
        (0x03, "section.id.unknown", 1, "An END as the first record."),
        (0x05, "section.type", 0, "A subsection as the first record."),
        (0x06, "vmdesc.misplaced", 0, "A description as the first record."),
        (0x09, "section.type", 0, "A first record of type 09."),
        (0x7E, "footer.unexpected", 0, "A footer as the first record."),
    ):
        yield reject(
            f"section/first-{byte:02x}",
            rule,
            alone,
            Set("board.type", bytes([byte])),
            what,
            plus=plus,
        )
    yield reject(
        "section/first-idstr-empty",
        "section.idstr.empty",
        alone,
        Rename("board.idstr", b""),
        "An idstr of no bytes in the first section.",
        at="board.idstr.length",
    )
    for name, change, section, what in (
        ("id-cut", Cut("board.id", 3), None, "three bytes of the id"),
        ("idstr-absent", Cut("board.idstr"), None, "the length of the idstr"),
        ("instance-absent", Cut("board.instance"), "board", "the idstr"),
        ("version-cut", Cut("board.version", 3), "board", "three bytes of the version"),
    ):
        yield reject(
            f"section/first-{name}",
            "section.truncated",
            alone,
            change,
            f"The input ends behind {what} of the first section.",
            section=section,
        )
    for name, mark in (("part", "part.id"), ("end", "end.id")):
        yield reject(
            f"section/{name}-id-unknown",
            "section.id.unknown",
            base,
            Set(mark, be32(3)),
            f"{name.upper()} with an id that no START or FULL had.",
        )
    yield reject(
        "section/part-id-0-of-none",
        "section.id.unknown",
        opaque,
        Insert("eof", b"\2" + be32(0) + be64(2) + b"\x7e" + be32(0)),
        "PART with the id 0, that no START or FULL had, and the end of a section of block in it.",
        plus=1,
    )
    yield reject(
        "section/part-before-start",
        "section.id.unknown",
        base,
        Drop("ram.type", "part.type"),
        "PART without any START before it.",
        at="ram.type",
        plus=1,
    )
    for version in (5, 0x104, 0x80000004):
        yield reject(
            f"section/ram-version-{version:x}",
            "section.version.newer-than-supported",
            base,
            Set("ram.version", be32(version)),
            f"Version {version:#x} of ram.",
            section="ram",
        )
    yield reject(
        "section/htab-version-2",
        "section.version.newer-than-supported",
        accepts()["htab/chunks"],
        Set("spapr/htab.version", be32(2)),
        "Version 2 of spapr/htab.",
        section="spapr/htab",
    )
    yield reject(
        "section/storage-attributes-version-1",
        "section.version.newer-than-supported",
        accepts()["storage-attributes/each-flag"],
        Set("s390-storage_attributes.version", be32(1)),
        "Version 1 of s390-storage_attributes.",
        section="s390-storage_attributes",
    )
    for version in (0, 4, 0x103):
        yield reject(
            f"section/version-{version:x}-not-described",
            "section.version.differs-from-description",
            accepts()["vmstate/uart"],
            Set("board/uart.version", be32(version)),
            f"A device of version {version:#x} whose description says 3.",
            section="board/uart",
        )


def _footer() -> Iterator[Vector]:
    base = accepts()["ram/live"]
    for mark in (b"\x7f", b"\x00", b"\x04"):
        yield reject(
            f"footer/mark-{mark.hex()}",
            "footer.missing",
            base,
            Set("part.footer", mark),
            f"{mark.hex()} in the place of a footer mark.",
            section="ram",
        )
    yield reject(
        "footer/left-out",
        "footer.missing",
        base,
        Drop("part.footer", "end.type"),
        "A section without footer in a stream with footers.",
        section="ram",
    )
    yield reject(
        "footer/first-mark-wrong",
        "section.type",
        base,
        Set("start.footer", b"\x7f"),
        "7f in the place of the first footer mark: then the stream has none.",
    )
    for name, change in (
        ("id-absent", Cut("start.footer.id")),
        ("id-cut", Cut("end.footer.id", 3)),
    ):
        yield reject(
            f"footer/{name}",
            "footer.truncated",
            base,
            change,
            "The input ends within a footer.",
            section="ram",
        )
    for value in (0, 3, 0x02000000):
        yield reject(
            f"footer/id-{value:x}",
            "footer.id",
            base,
            Set("part.footer.id", be32(value)),
            f"A footer with the id {value:#x} behind section 2.",
            section="ram",
        )
    yield reject(
        "footer/id-described",
        "footer.id",
        accepts()["vmstate/uart"],
        Set("uart.footer.id", be32(0x105)),
        "A footer with another id behind a described body.",
        section="board/uart",
    )
    extra = b"\x7e" + be32(2)
    yield reject(
        "footer/twice",
        "footer.unexpected",
        base,
        Insert("end.type", extra),
        "A second footer behind a section.",
    )
    yield reject(
        "footer/first-record",
        "footer.unexpected",
        base,
        Insert("ram.type", extra),
        "A footer before any section.",
    )
    yield reject(
        "footer/where-there-are-none",
        "footer.unexpected",
        accepts()["footer/none"],
        Insert("eof", extra),
        "A footer behind the last section of a stream whose first section has none.",
    )


def _command() -> Iterator[Vector]:
    base = accepts()["command/each"]
    for name, change, what in (
        ("number-cut", Cut("command.number", 1), "The input ends within the number."),
        ("length-cut", Cut("command.length", 1), "The input ends within the length."),
        ("payload-cut", Cut("command.payload#2", 3), "The input ends within a payload."),
        ("package-size-cut", Cut("command.payload#7", 2), "The input ends within a package size."),
        ("package-cut", Cut("package", 2), "The input ends within a package."),
        ("package-absent", Cut("package"), "The input ends before a package."),
    ):
        yield reject(f"command/{name}", "command.truncated", base, change, what)
    yield reject(
        "command/length-overruns",
        "command.truncated",
        base,
        Set("command.length#6", be16(0xFFFF)),
        "A payload that is longer than the input.",
        at=END,
    )
    for number in (0, 12, 0x100):
        yield reject(
            f"command/number-{number:x}",
            "command.unknown",
            base,
            Set("command.number", be16(number)),
            f"Command {number:#x}.",
        )
    for index, name, length in (
        (1, "open-return-path", 4),
        (2, "ping", 3),
        (3, "advise", 8),
        (5, "listen", 1),
        (6, "discard", 19),
        (7, "packaged", 8),
        (8, "enable-colo", 1),
        (9, "resume", 4),
        (10, "recv-bitmap", 0),
        (11, "switchover-start", 1),
        (12, "run", 2),
    ):
        suffix = "" if index == 1 else f"#{index}"
        yield reject(
            f"command/{name}-length-{length}",
            "command.length",
            base,
            Set(f"command.length{suffix}", be16(length)),
            f"A length of {length} that {name.upper()} does not have.",
        )
    yield reject(
        "command/package-empty",
        "command.packaged.empty",
        base,
        Set("command.payload#7", be32(0)),
        "A package of no bytes.",
    )
    for name, skip, value, what in (
        ("discard-version", 0, b"\x01", "Version 1 of a discard."),
        ("discard-name-shorter", 1, bytes([len(MAIN) - 1]), "A block name length one too small."),
        (
            "discard-name-longer",
            1,
            bytes([len(MAIN) + 16]),
            "A block name length that leaves no range.",
        ),
        ("discard-name-overruns", 1, b"\xff", "A block name that is longer than the payload."),
        (
            "discard-zero-byte",
            2 + len(MAIN),
            b"\x01",
            "Another byte than 00 behind the block name.",
        ),
    ):
        yield reject(
            f"command/{name}",
            "command.postcopy-ram-discard.payload",
            base,
            Patch("command.payload#6", skip, value),
            what,
            at="command.payload#6",
        )
    two = accepts()["command/discard-two-ranges"]
    yield reject(
        "command/discard-half-a-range",
        "command.postcopy-ram-discard.payload",
        two,
        Patch("command.length", 0, be16(two.wire.marks["command.payload"].size - 8)),
        "A discard whose second range is cut in half.",
        at="command.payload",
    )
    for length in (3, 5):
        yield reject(
            f"command/recv-bitmap-name-{length}",
            "command.recv-bitmap.payload",
            base,
            Patch("command.payload#10", 0, bytes([length])),
            f"A block name length of {length} in a payload for 4.",
            at="command.payload#10",
        )


def _vmstate() -> Iterator[Vector]:
    base = accepts()["vmstate/uart"]
    for name, change, what in (
        ("subsection-mark", Set("irq.mark", b"\x06"), "06 where a subsection should begin."),
        ("subsection-left-out", Drop("irq.mark", "uart.footer"), "A subsection is not there."),
    ):
        yield reject(
            f"vmstate/{name}",
            "vmstate.subsection.missing",
            base,
            change,
            what,
            section="board/uart",
        )
    for value in (b"uart/irr", b"uart/ir", b"uart/irq2", b""):
        yield reject(
            f"vmstate/subsection-name-{value.decode().replace('/', '-') or 'empty'}",
            "vmstate.subsection.name",
            base,
            Rename("irq.name", value),
            f"A subsection with the name {value.decode()!r} where uart/irq is described.",
            section="board/uart",
            at="irq.name.length",
        )
    for version in (1, 3):
        yield reject(
            f"vmstate/subsection-version-{version}",
            "vmstate.subsection.version",
            base,
            Set("irq.version", be32(version)),
            f"Version {version} of a subsection that is described as version 2.",
            section="board/uart",
        )
    for name, skip, marker, what in (
        ("nullptr-00", 0, 0x00, "A null pointer that is 00."),
        ("nullptr-31", 1, 0x31, "31 for a pointer that is described as null."),
        ("ptr-marker-32", 3, 0x32, "A pointer marker that is 32."),
    ):
        yield reject(
            f"vmstate/{name}",
            "vmstate.pointer-marker",
            accepts()["vmstate/pointer-markers"],
            Patch("body", skip, bytes([marker])),
            what,
            section="units",
        )
    yield reject(
        "vmstate/pointer-array-overruns",
        "vmstate.truncated",
        accepts()["vmstate/pointer-array-then-more"],
        Describe(b'"array_len": 1', b'"array_len": 2000'),
        "An array of more pointers than the input has bytes; the last that are there are null.",
        section="s390_css",
        at=END,
    )
    for name, skip, marker, what in (
        ("list-marker-02", 0, 0x02, "A list element that begins with 02."),
        ("list-too-short", 3, 0x00, "A list that ends before its second described element."),
        ("list-too-long", 6, 0x01, "A third element in a list of two described ones."),
        ("list-not-empty", 7, 0x01, "An element in a list that is described as empty."),
    ):
        yield reject(
            f"vmstate/{name}",
            "vmstate.list-marker",
            accepts()["vmstate/lists"],
            Patch("body", skip, bytes([marker])),
            what,
            section="queue",
        )


def _vmdesc() -> Iterator[Vector]:
    text = b"\x06" + be32(14) + b'{"devices":[]}'
    yield reject(
        "vmdesc/before-eof",
        "vmdesc.misplaced",
        accepts()["stream/configuration-only"],
        Insert("eof", text),
        "A VMDESCRIPTION before the EOF mark.",
    )
    yield reject(
        "vmdesc/between-sections",
        "vmdesc.misplaced",
        accepts()["ram/live"],
        Insert("end.type", text),
        "A VMDESCRIPTION between two sections.",
    )


def _ram() -> Iterator[Vector]:
    base = accepts()["ram/live"]

    def ram(
        name: str, rule: str, change: Change, what: str, at: str | None = None, plus: int = 0
    ) -> Vector:
        return reject(f"ram/{name}", rule, base, change, what, section="ram", at=at, plus=plus)

    for flags, what in (
        (0x00, "no flag"),
        (0x20, "CONTINUE alone"),
        (0x01, "the flag of old zlib bodies"),
        (0x0A, "both ZERO and PAGE"),
        (0x2A, "ZERO, PAGE and CONTINUE"),
        (0x24, "MEM_SIZE and CONTINUE"),
        (0x26, "MEM_SIZE, ZERO and CONTINUE"),
        (0x62, "XBZRLE, ZERO and CONTINUE"),
        (0x12, "EOS and ZERO"),
        (0x2A0, "HOOK, MULTIFD_FLUSH and CONTINUE"),
    ):
        word = be64(0x1000 | flags)
        yield ram(
            f"flags-{flags:03x}",
            "ram.flags.combination",
            Set("page#2", word),
            f"A RAM word with {what}.",
        )
    yield ram(
        "flags-compress-page",
        "ram.flags.unsupported",
        Set("page#3", be64(0x2000 | 0x120)),
        "A page compressed on its own, as QEMU 2.4 to 9.0 could send it.",
    )
    for bits in (0x400, 0x800, 0xC00):
        yield ram(
            f"page-misaligned-{bits:x}",
            "ram.page.misaligned",
            Set("page#2", be64(0x1000 | bits | 0x22)),
            f"A page address with {bits:#x} below the page size.",
        )
    for mark, address, what in (
        ("page#2", 0x4000, "A zero page right behind the end of its block."),
        ("page#3", 0x5000, "A page with contents beyond its block."),
        ("page#5", 0xF000, "A page right behind the end of the second block."),
        ("page#4", 0xFFFFFFFFFFFFF000, "A page at the highest address there is."),
        ("page#2", 1 << 63, "A page whose address has but the highest bit."),
    ):
        kind = {"page#2": 0x22, "page#3": 0x28, "page#4": 0x22, "page#5": 0x02}[mark]
        yield ram(
            f"page-outside-{address:x}",
            "ram.page.outside-block",
            Set(mark, be64(address | kind)),
            what,
        )
    yield ram(
        "continue-first",
        "ram.page.continue-needs-block",
        Set("page", be64(0x22)),
        "CONTINUE in the first page record.",
    )
    for name, value in (
        ("shorter", MAIN[:-1]),
        ("in-capitals", MAIN.upper()),
        ("longer", MAIN + b"2"),
        ("other", b"main"),
        ("empty", b""),
    ):
        yield ram(
            f"block-unknown-{name}",
            "ram.page.unknown-block",
            Rename("page.block", value),
            f"A page of a block {value.decode()!r} where others are listed.",
            at="page.block.length",
        )
    yield ram(
        "block-name-overruns",
        "ram.page.unknown-block",
        Set("page.block.length", b"\xff"),
        "A block name length of 255, so that the name swallows what follows.",
    )
    total = "ram.blocks.total"
    yield ram(
        "first-block-above-total",
        total,
        Set("main.length", be64(0x14000)),
        "The first block is longer than all are together.",
    )
    yield ram(
        "second-block-above-total",
        total,
        Set("rom.length", be64(0x10000)),
        "The second block is longer than what is left of the total.",
    )
    yield ram(
        "first-block-too-short",
        total,
        Set("main.length", be64(0x3000)),
        "The blocks add up to less than the total, so what follows is read as a block.",
        at="start.eos",
        plus=1,
    )
    yield ram(
        "total-too-small",
        total,
        Set("blocks", be64(0x1004)),
        "A total that is less than the first block.",
        at="main.length",
    )
    yield ram(
        "total-too-big",
        total,
        Set("blocks", be64(0x14004)),
        "A total that is more than the blocks add up to.",
        at="start.eos",
        plus=1,
    )
    yield ram(
        "total-zero",
        "ram.page.misaligned",
        Set("blocks", be64(4)),
        "A total of 0 with blocks behind it, which are then read as words.",
        at="main.name.length",
    )
    yield ram(
        "listed-name-overruns",
        total,
        Set("main.name.length", b"\xff"),
        "A listed block whose name length is 255, so that its length lies in a page.",
        at="main.name.length",
        plus=256,
    )


def _ram_truncated() -> Iterator[Vector]:
    base = accepts()["ram/live"]
    for name, mark, keep in (
        ("blocks-cut", "blocks", 4),
        ("list-absent", "main.name.length", 0),
        ("listed-name-cut", "main.name", 2),
        ("listed-length-absent", "main.length", 0),
        ("listed-length-cut", "main.length", 7),
        ("second-block-absent", "rom.name.length", 0),
        ("start-eos-absent", "start.eos", 0),
        ("start-eos-cut", "start.eos", 7),
        ("word-absent", "page#2", 0),
        ("word-cut", "page#2", 5),
        ("block-name-absent", "page.block.length", 0),
        ("block-name-cut", "page.block", 1),
        ("fill-absent", "page.content", 0),
        ("second-fill-absent", "page.content#2", 0),
        ("page-absent", "page.content#3", 0),
        ("page-cut", "page.content#3", 4095),
        ("part-eos-absent", "part.eos", 0),
        ("end-eos-cut", "end.eos", 1),
    ):
        what = f"within {mark}" if keep else f"before {mark}"
        yield reject(
            f"ram/{name}",
            "ram.truncated",
            base,
            Cut(mark, keep),
            f"The input ends {what}.",
            section="ram",
        )


def _ram_plain() -> Iterator[Vector]:
    for base_name in ("v1-record", "v1-section"):
        base = accepts()[f"ram/{base_name}"]
        for size in (1, 4095, 0x4800, 0xFFFFFFFF):
            yield reject(
                f"ram/{base_name}-size-{size:x}",
                "ram.size",
                base,
                Set("size", be32(size)),
                f"RAM of version 1 of {size:#x} bytes.",
                section="ram",
            )
        for mark, tag in (("tag", 2), ("tag#2", 0x80), ("tag#4", 0xFF)):
            yield reject(
                f"ram/{base_name}-tag-{tag:02x}",
                "ram.page.tag",
                base,
                Set(mark, bytes([tag])),
                f"A page with the tag {tag:02x}.",
                section="ram",
            )
    section = accepts()["ram/v1-section"]
    for name, change, what in (
        ("size-absent", Cut("size"), "before the size"),
        ("size-cut", Cut("size", 3), "within the size"),
        ("tag-absent", Cut("tag#3"), "before a tag"),
        ("fill-absent", Cut("fill"), "before a fill byte"),
        ("page-absent", Cut("page"), "before a page"),
        ("page-cut", Cut("page#2", 4095), "within a page"),
    ):
        yield reject(
            f"ram/v1-section-{name}",
            "ram.truncated",
            section,
            change,
            f"RAM of version 1: the input ends {what}.",
            section="ram",
        )
    yield reject(
        "ram/v1-size-differs",
        "ram.size.differs",
        accepts()["ram/v1-repeated"],
        Set("size#2", be32(0x3000)),
        "RAM of version 1 that a second record has with another size.",
        section="ram",
    )


def _ram_chunked() -> Iterator[Vector]:
    for base_name in ("v2-record", "v2-section"):
        base = accepts()[f"ram/{base_name}"]
        for size in (1, 0x1001, 0x1200, 0xFFFFFFFF):
            yield reject(
                f"ram/{base_name}-size-{size:x}",
                "ram.size",
                base,
                Set("size", be32(size)),
                f"RAM of version 2 of {size:#x} bytes.",
                section="ram",
            )
        for mark, magic in (
            ("chunk.magic", b"\xfa\xbf"),
            ("chunk.magic#2", b"\xfb\xbe"),
            ("chunk.magic#2", bytes(2)),
        ):
            yield reject(
                f"ram/{base_name}-magic-{magic.hex()}",
                "ram.chunk.magic",
                base,
                Set(mark, magic),
                f"A chunk that begins with {magic.hex()} while blocks are missing.",
                section="ram",
            )
        for length in (0, 4097, 0xFFFF):
            yield reject(
                f"ram/{base_name}-chunk-of-{length}",
                "ram.chunk.length",
                base,
                Set("chunk.length#2", be16(length)),
                f"A chunk of {length} bytes.",
                section="ram",
            )
    section = accepts()["ram/v2-section"]
    for name, change, what in (
        ("size-cut", Cut("size", 2), "within the size"),
        ("chunk-absent", Cut("chunk"), "before the first chunk"),
        ("magic-cut", Cut("chunk.magic#2", 1), "within the magic"),
        ("length-cut", Cut("chunk.length#2", 1), "within a length"),
        ("chunk-cut", Cut("chunk.data#2", 5), "within a chunk"),
        ("chunks-missing", Cut("chunk#3"), "before the last chunk"),
    ):
        yield reject(
            f"ram/v2-section-{name}",
            "ram.truncated",
            section,
            change,
            f"RAM of version 2: the input ends {what}.",
            section="ram",
        )
    record = accepts()["ram/v2-record"]
    checksum = stored(TEXT)[4096:]
    for name, mark, skip, value, what in (
        ("method", "chunk", 0, b"\x79", "A compression method that is not 8."),
        ("check", "chunk", 1, b"\x02", "A zlib header with a wrong check."),
        ("dictionary", "chunk", 0, b"\x78\xbb", "A zlib stream that wants a dictionary."),
        ("block-type", "chunk", 2, b"\x07", "A deflate block of the type 3."),
        (
            "checksum",
            "chunk#2",
            len(checksum) - 1,
            bytes([checksum[-1] ^ 1]),
            "The checksum of the plain text has one wrong bit.",
        ),
    ):
        yield reject(
            f"ram/v2-chunk-{name}",
            "ram.chunk.data",
            record,
            Patch(mark, 4 + skip, value),
            what,
            section="ram",
            at=mark,
        )
    compressed = accepts()["ram/v2-compressed"]
    for name, size, what in (
        ("block-too-few", 5120, "The zlib stream ends a block too early."),
        ("block-too-many", 3072, "There is a block more than the RAM has."),
        ("block-in-none", 0, "There is plain text although the RAM has no bytes."),
    ):
        yield reject(
            f"ram/v2-chunk-{name}",
            "ram.chunk.data",
            compressed,
            Set("size", be32(size)),
            what,
            section="ram",
            at="chunk",
        )
    last = split(stored(TEXT), 3000)[1] + b"\0"
    yield reject(
        "ram/v2-chunk-more-behind",
        "ram.chunk.data",
        section,
        Set("chunk#3", b"\xfa\xbe" + be16(len(last)) + last),
        "A byte of the last chunk behind the end of the zlib stream.",
        section="ram",
    )
    # Without a checksum a wrong tag is the only fault.
    unfinished = accepts()["ram/v2-unfinished"]
    for block, mark, skip in (
        (1, "chunk", 7),
        (2, "chunk", 7 + 1025),
        (3, "chunk#2", 7 + 2050 - 2048),
        (4, "chunk#2", 7 + 3075 - 2048),
    ):
        yield reject(
            f"ram/v2-tag-of-block-{block}",
            "ram.page.tag",
            unfinished,
            Patch(mark, 4 + skip, bytes([1 << block])),
            f"Block {block} of four has another tag than 00.",
            section="ram",
            at=mark,
        )
    yield reject(
        "ram/v1-then-v3-size",
        "ram.size.differs",
        accepts()["ram/v1-then-v3"],
        Set("blocks", be64(0x4004)),
        "RAM of version 1, then of version 3 and another size.",
        section="ram",
    )


def _ram_words() -> Iterator[Vector]:
    base = accepts()["ram/v3-live"]

    def ram(name: str, rule: str, change: Change, what: str) -> Vector:
        return reject(f"ram/v3-{name}", rule, base, change, what, section="ram")

    for name, change, what in (
        ("blocks-cut", Cut("blocks", 7), "within the word with the size"),
        ("start-eos-absent", Cut("start.eos"), "before the end-of-section word"),
        ("fill-absent", Cut("fill"), "before a fill byte"),
        ("word-cut", Cut("word#3", 1), "within a word"),
        ("page-cut", Cut("content", 4095), "within a page"),
        ("end-eos-cut", Cut("end.eos", 4), "within the last end-of-section word"),
    ):
        yield ram(name, "ram.truncated", change, f"RAM of version 3: the input ends {what}.")
    for flags, what in (
        (0x00, "no flag"),
        (0x0A, "both ZERO and PAGE"),
        (0x20, "CONTINUE alone"),
        (0x22, "ZERO and CONTINUE, which is none before version 4"),
        (0x28, "PAGE and CONTINUE"),
        (0x40, "XBZRLE, which is none before version 4"),
        (0x80, "HOOK, which is none before version 4"),
        (0x200, "MULTIFD_FLUSH, which is none before version 4"),
    ):
        yield ram(
            f"flags-{flags:03x}",
            "ram.flags.combination",
            Set("word#2", be64(0x1000 | flags)),
            f"A RAM word of version 3 with {what}.",
        )
    yield ram(
        "eos-with-address",
        "ram.flags.combination",
        Set("part.eos", be64(0x1010)),
        "EOS with an address in RAM of version 3.",
    )
    yield ram(
        "flags-full",
        "ram.flags.unsupported",
        Set("word#2", be64(1)),
        "The flag of old zlib bodies, which only the reader of svn r5437 knows.",
    )
    for bits in (0x400, 0xC00):
        yield ram(
            f"page-misaligned-{bits:x}",
            "ram.page.misaligned",
            Set("word#2", be64(0x1000 | bits | 2)),
            f"A page address of version 3 with {bits:#x} below the page size.",
        )
    for address in (0x8000, 1 << 63, 0xFFFFFFFFFFFFF000):
        yield ram(
            f"page-outside-{address:x}",
            "ram.page.outside-block",
            Set("word#2", be64(address | 2)),
            "A page behind the end of RAM of version 3.",
        )
    yield reject(
        "ram/v3-page-before-size",
        "ram.page.outside-block",
        base,
        Drop("blocks", "start.eos"),
        "A page of version 3 before the size is stated.",
        section="ram",
        at="word",
    )
    yield reject(
        "ram/v3-size-differs",
        "ram.size.differs",
        accepts()["ram/v3-size-repeated"],
        Set("blocks#3", be64(0x3004)),
        "RAM of version 3 that states another size in its END.",
        section="ram",
    )
    yield reject(
        "ram/v3-size-differs-from-none",
        "ram.size.differs",
        accepts()["ram/v3-empty"],
        Set("blocks#2", be64(0x3004)),
        "RAM of version 3 that states a size in its END, and none in its START.",
        section="ram",
    )
    for size in (1 << 63, 2**64 - 256):
        yield reject(
            f"limit/ram-v3-size-{size:x}",
            "limit.ram-size",
            base,
            Set("blocks", be64(size | 4)),
            f"RAM of version 3 of {size:#x} bytes.",
            section="ram",
        )


def _ram_records() -> Iterator[Vector]:
    """Faults of bodies within records of version 1 and 2, whose framing is looked at before."""
    plain, chunked = accepts()["ram/v1-record"], accepts()["ram/v2-record"]
    yield reject(
        "ram/v1-record-size-too-big",
        "record.body.outside",
        plain,
        Set("size", be32(0x5000)),
        "RAM of version 1 reaches behind its record: its size is a page more than it has.",
        section="ram",
        at="timer.idstr.length",
    )
    length = plain.wire.marks["ram.body"].size
    for name, short, what in (
        ("page-cut", 1, "it ends within the last page"),
        ("page-absent", 4096, "it ends behind the last tag"),
        ("tag-absent", 4097, "it ends where the last page should begin"),
        ("size-cut", length - 3, "it ends within the size"),
    ):
        yield reject(
            f"ram/v1-record-{name}",
            "record.body.outside",
            plain,
            Set("ram.length", be32(length - short)),
            f"RAM of version 1 reaches behind its record: {what}.",
            section="ram",
            at="ram.body",
            plus=length - short,
        )
    length, last = (chunked.wire.marks[mark].size for mark in ("ram.body", "chunk#2"))
    for name, short, what in (
        ("chunk-cut", 5, "it ends within a chunk whose blocks are missing"),
        ("length-cut", last - 3, "it ends within the length of a chunk"),
        ("magic-cut", last - 1, "it ends within the magic of a chunk"),
        ("chunk-absent", last, "it ends where a chunk should begin"),
    ):
        yield reject(
            f"ram/v2-record-{name}",
            "record.body.outside",
            chunked,
            Set("ram.length", be32(length - short)),
            f"RAM of version 2 reaches behind its record: {what}.",
            section="ram",
            at="ram.body",
            plus=length - short,
        )
    for version, base in ((1, plain), (2, chunked)):
        mark = "page#2" if version == 1 else "chunk.data#2"
        yield reject(
            f"ram/v{version}-record-cut",
            "record.truncated",
            base,
            Cut(mark, 8),
            f"RAM of version {version}: the input ends within its record.",
            section="ram",
        )
        yield reject(
            f"ram/v{version}-record-size-then-cut",
            "record.truncated",
            base,
            Cut("size", 3),
            f"RAM of version {version}: the input ends within the size.",
            section="ram",
        )


def _block() -> Iterator[Vector]:
    base = accepts()["block/disks"]

    def block(name: str, rule: str, change: Change, what: str, at: str | None = None) -> Vector:
        return reject(f"block/{name}", rule, base, change, what, section="block", at=at)

    for name, change, what in (
        ("word-absent", Cut("progress"), "The input ends before the first word."),
        ("word-cut", Cut("device#2", 7), "The input ends within a word."),
        ("name-absent", Cut("device.name.length"), "The input ends before the name of a disk."),
        ("name-cut", Cut("device.name", 4), "The input ends within the name of a disk."),
        ("eos-absent", Cut("part.eos"), "The input ends before the end-of-section word."),
        ("eos-cut", Cut("end.eos", 4), "The input ends within the end-of-section word."),
        ("name-overruns", Set("device.name.length#3", b"\xff"), "A name longer than the input."),
        ("data-cut", Set("device", be64(1)), "A piece of a disk that is longer than the input."),
    ):
        yield block(name, "block.truncated", change, what, END)
    for flags in (0, 3, 5, 6, 8, 0xA, 0xC, 0x10, 0x101, 0x1FF):
        yield block(
            f"flags-{flags:03x}",
            "block.flags",
            Set("progress#2", be64(50 << 9 | flags)),
            f"A word with the flags {flags:#x}.",
        )
    yield reject(
        "block/version-2",
        "section.version.newer-than-supported",
        base,
        Set("block.version", be32(2)),
        "Version 2 of block.",
        section="block",
    )


def _known() -> Iterator[Vector]:
    devices = accepts()["vmstate/known-devices"]
    for name, change, section, what in (
        ("cut", Cut("timer.body", 23), "timer", "within a device that is known"),
        ("absent", Cut("cpu_common.body"), "cpu_common", "before a device that is known"),
    ):
        yield reject(
            f"vmstate/known-{name}",
            "vmstate.truncated",
            devices,
            change,
            f"The input ends {what}.",
            section=section,
        )
    yield reject(
        "vmstate/known-behind-nothing",
        "stream.truncated",
        devices,
        Cut("eof"),
        "The input ends behind a device that is known.",
    )
    yield reject(
        "vmstate/known-no-layout-fits",
        "vmstate.truncated",
        accepts()["vmstate/known-i8259-16"],
        Cut("i8259.body", 14),
        "The input ends before either layout does.",
        section="i8259",
    )
    yield reject(
        "vmstate/known-count-overruns",
        "vmstate.truncated",
        accepts()["vmstate/known-count-four"],
        Patch("PCIBUS.body", 0, be32(0x7FFFFFFF)),
        "More elements than the input holds, as a field says.",
        section="PCIBUS",
        at=END,
    )
    subsection = accepts()["vmstate/known-subsection"]
    for version in (0, 2, 0x103):
        yield reject(
            f"vmstate/known-subsection-version-{version:x}",
            "vmstate.subsection.version",
            subsection,
            Set("led.version", be32(version)),
            f"Version {version:#x} of a subsection that is known as version 3.",
            section="ps2kbd",
        )


def _htab() -> Iterator[Vector]:
    base = accepts()["htab/chunks"]
    for name, change, what in (
        ("shift-cut", Cut("shift", 2), "The input ends within the START's header."),
        ("header-absent", Cut("part.header"), "The input ends before a PART's header."),
        ("chunk-cut", Cut("chunk", 5), "The input ends within a chunk's head."),
        ("entries-cut", Cut("entries", 31), "The input ends within the entries."),
        ("entries-absent", Cut("entries"), "The input ends before the entries."),
        ("end-absent", Cut("part.end"), "The input ends before the terminating chunk."),
        ("end-cut", Cut("end.end", 6), "The input ends within the terminating chunk."),
        ("entries-overrun", Patch("chunk", 4, b"\xff\xff"), "More entries than the input holds."),
    ):
        yield reject(
            f"htab/{name}",
            "htab.truncated",
            base,
            change,
            what,
            section="spapr/htab",
            at=END,
        )


def _block_lengths() -> Iterator[Vector]:
    yield reject(
        "ram/block-listed-with-another-length",
        "ram.block.length",
        accepts()["ram/block-listed-twice"],
        Set("main.length#2", be64(0x2000)),
        "A block that a second list has with another length.",
        section="ram",
    )


def _storage_attributes() -> Iterator[Vector]:
    base = accepts()["storage-attributes/each-flag"]
    for name, change, what in (
        ("word-cut", Cut("start.eos", 7), "The input ends within a word."),
        ("count-absent", Cut("count"), "The input ends before the count."),
        ("count-cut", Cut("count", 4), "The input ends within the count."),
        ("attributes-cut", Cut("attributes", 4), "The input ends within the attributes."),
        ("eos-absent", Cut("part.eos"), "The input ends before the end-of-section word."),
        ("count-overruns", Set("count", be64(1000)), "More attributes than the input holds."),
        ("count-at-limit", Set("count", be64(1 << 24)), "The largest count that is waited for."),
    ):
        yield reject(
            f"storage-attributes/{name}",
            "storage-attributes.truncated",
            base,
            change,
            what,
            section="s390-storage_attributes",
            at=END,
        )
    for name, count in (("beyond-limit", (1 << 24) + 1), ("highest", 2**64 - 1)):
        yield reject(
            f"storage-attributes/count-{name}",
            "limit.storage-attributes",
            base,
            Set("count", be64(count)),
            f"A count of {count:#x}.",
            section="s390-storage_attributes",
        )
    for flags in (0, 3, 4, 9, 0x10, 0xFFF):
        yield reject(
            f"storage-attributes/flags-{flags:03x}",
            "storage-attributes.flags",
            base,
            Set("more", be64(0x10000 | flags)),
            f"A word with the flags {flags:#x}.",
            section="s390-storage_attributes",
        )


def _stream() -> Iterator[Vector]:
    base = accepts()["ram/live"]
    for name, change, what in (
        ("ends-behind-configuration", Cut("ram.type"), "The input ends behind the configuration."),
        ("ends-behind-section", Cut("part.type"), "The input ends behind a START."),
        ("ends-without-eof", Cut("eof"), "The input ends where the EOF mark should be."),
        (
            "ends-behind-first-body",
            Cut("start.footer"),
            "The input ends behind the first body, when it is not known yet whether there are "
            "footers.",
        ),
    ):
        yield reject(f"stream/{name}", "stream.truncated", base, change, what)
    yield reject(
        "stream/ends-behind-header",
        "stream.truncated",
        accepts()["header/shortest"],
        Cut("eof"),
        "The input ends behind the file header.",
    )
    yield reject(
        "stream/ends-behind-command",
        "stream.truncated",
        accepts()["command/each"],
        Cut("command#3"),
        "The input ends behind a command.",
    )
    undelimited = accepts()["stream/undelimited"]
    yield reject(
        "stream/last-byte-not-eof",
        "stream.eof-mark",
        undelimited,
        Set("eof", b"\x01"),
        "The last byte of a stream that nothing delimits is not 00.",
        section="board",
    )
    yield reject(
        "stream/ends-behind-undelimited-head",
        "stream.eof-mark",
        undelimited,
        Cut("body"),
        "The input ends where a body that nothing delimits should begin.",
        section="board",
    )


def _legacy() -> Iterator[Vector]:
    for version, base in ((1, accepts()["legacy/v1"]), (2, accepts()["legacy/v2"])):
        for name, change, section, what in (
            ("idstr-cut", Cut("serial.idstr", 3), None, "within the idstr"),
            ("instance-absent", Cut("serial.instance"), "serial", "behind the idstr"),
            ("instance-cut", Cut("serial.instance", 2), "serial", "within the instance id"),
            ("version-cut", Cut("serial.version", 3), "serial", "within the version"),
            ("length-cut", Cut("serial.length", 1), "serial", "within the record length"),
            ("body-absent", Cut("serial.body"), "serial", "before the body"),
            ("body-cut", Cut("timer.body", 15), "timer", "within the body"),
        ):
            yield reject(
                f"legacy/v{version}-{name}",
                "record.truncated",
                base,
                change,
                f"A record of version {version}: the input ends {what}.",
                section=section,
            )
        for length in (0x80000000, 0xFFFFFFFF):
            yield reject(
                f"legacy/v{version}-length-{length:x}",
                "record.length",
                base,
                Set("serial.length", be32(length)),
                f"A record of version {version} with the length {length:#x}.",
                section="serial",
            )
    yield reject(
        "legacy/v1-length-overruns",
        "record.truncated",
        accepts()["legacy/v1"],
        Set("serial.length", be32(10)),
        "A record that is one byte longer than the input.",
        section="serial",
        at=END,
    )
    yield reject(
        "legacy/v1-idstr-overruns",
        "record.truncated",
        accepts()["legacy/v1"],
        Set("serial.idstr.length", b"\xff"),
        "An idstr that is longer than the input.",
        at=END,
    )
    base = accepts()["legacy/v2"]
    for keep in (0, 7):
        yield reject(
            f"legacy/v2-total-cut-{keep}",
            "header.truncated",
            base,
            Cut("total", keep),
            f"The input ends behind {keep} bytes of the total length.",
        )
    size = len(base.data) - 16
    serial = base.wire.marks["serial.idstr.length"].offset - 16
    for name, total, section, what in (
        ("body", size - 1, "serial", "one byte less than the records have"),
        ("idstr", serial + 3, None, "an end within an idstr"),
        ("instance", serial + 9, "serial", "an end within an instance id"),
        ("length", serial + 16, "serial", "an end within a record length"),
    ):
        yield reject(
            f"legacy/v2-total-ends-in-{name}",
            "record.outside-total",
            base,
            Set("total", be64(total)),
            f"A total length with {what}.",
            section=section,
            at="serial.idstr.length",
        )
    yield reject(
        "legacy/v2-length-overruns",
        "record.outside-total",
        base,
        Set("serial.length", be32(11)),
        "A record that is one byte longer than the total length leaves it.",
        section="serial",
        at="serial.idstr.length",
    )
    for total in (size + 1, 2**64 - 17):
        yield reject(
            f"legacy/v2-total-{total:x}",
            "stream.truncated",
            base,
            Set("total", be64(total)),
            f"A total length of {total}, and records of {size} bytes.",
            at=END,
        )


def _limit() -> Iterator[Vector]:
    base = accepts()["configuration/all-subsections"]
    for length in (1025, 0x7FFFFFFF, 0xFFFFFFFF):
        yield reject(
            f"limit/machine-name-{length}",
            "limit.machine-name",
            base,
            Set("configuration.length", be32(length)),
            f"A machine name of {length} bytes.",
        )
    for count in (257, 0xFFFFFFFF):
        yield reject(
            f"limit/capabilities-{count}",
            "limit.capabilities",
            base,
            Set("capabilities.count", be32(count)),
            f"A list of {count} capabilities.",
        )
    for total in (1 << 63, 2**64 - 256):
        yield reject(
            f"limit/ram-size-{total:x}",
            "limit.ram-size",
            accepts()["ram/live"],
            Set("blocks", be64(total | 4)),
            f"Blocks of {total:#x} bytes together.",
            section="ram",
        )
    for size in ((64 << 20) + 1, 0xFFFFFFFF):
        yield reject(
            f"limit/package-{size}",
            "limit.packaged",
            accepts()["command/each"],
            Set("command.payload#7", be32(size)),
            f"A package of {size} bytes.",
        )


def _real() -> Iterator[Vector]:
    wire = seed("avr-ignore-shared-7.2").find("capability", b"\x0fx-ignore-shared")
    shared = Vector(
        area="configuration",
        verdict="accept",
        slug="ignore-shared-7.2",
        description="",
        rules=(),
        source=seed_source("avr-ignore-shared-7.2"),
        wire=wire,
        expect=Accepted("v3-configuration"),
        requires=("configuration",),
    )
    yield reject(
        "configuration/ignore-shared-7.2",
        "configuration.capability.unsupported",
        shared,
        Keep("capability"),
        "A stream with the capability x-ignore-shared, as QEMU 7.2 writes it.",
    )
    for version in ("5.2", "7.2", "10.0", "11.1"):
        base = accepts()[f"stream/avr-{version}"]
        wire = base.wire.find("ram", b"\x03ram\0\0\0\0", 8, 4)
        wire.find("cpu", b"\x03cpu\0\0\0\0", 8, 4).find("cpu.body", b"\x03cpu\0\0\0\0", 12, 20)
        wire.find("page", b"\2\5flash", -7, 8)
        yield reject(
            f"section/avr-{version}-cpu-version",
            "section.version.differs-from-description",
            base,
            Set("cpu", be32(99)),
            f"Version 99 of cpu in a stream of QEMU {version}.",
            section="cpu",
        )
        yield reject(
            f"section/avr-{version}-ram-version",
            "section.version.newer-than-supported",
            base,
            Set("ram", be32(5)),
            f"Version 5 of ram in a stream of QEMU {version}.",
            section="ram",
        )
        yield reject(
            f"section/avr-{version}-cut-in-cpu",
            "section.truncated",
            base,
            Cut("cpu.body", 10),
            f"A stream of QEMU {version} that ends within a device.",
            section="cpu",
        )
        yield reject(
            f"ram/avr-{version}-page-outside-block",
            "ram.page.outside-block",
            base,
            Set("page", be64(0x10000 | 2)),
            f"A page beyond its block in a stream of QEMU {version}.",
            section="ram",
        )
    base = accepts()["stream/spike-7.2"]
    base.wire.find("pmp", counted(b"cpu/pmp"), 1, 7)
    yield reject(
        "vmstate/spike-7.2-subsection-with-nul",
        "vmstate.subsection.name",
        base,
        Rename("pmp", b"cpu/pmp\0"),
        "The name of a subsection and a NUL in a stream of QEMU 7.2.",
        section="cpu",
        loader="reject",
    )
    timer = b"\x05timer" + bytes(4) + be32(2)
    for version in ("5.2", "7.2", "10.0", "11.1"):
        base = accepts()[f"stream/microbit-{version}"]
        base.wire.find("timer.footer", timer, len(timer) + 24)
        base.wire.find("timer.footer.id", timer, len(timer) + 25, 4)
        yield reject(
            f"footer/microbit-{version}-missing",
            "footer.missing",
            base,
            Set("timer.footer", b"\x7d"),
            f"A footer mark with one wrong bit in a stream of QEMU {version}.",
            section="timer",
        )
        yield reject(
            f"footer/microbit-{version}-id",
            "footer.id",
            base,
            Set("timer.footer.id", be32(0x4D)),
            f"A footer of another section in a stream of QEMU {version}.",
            section="timer",
        )
    for version, seed_name in (("v1", "v1-0.8.1"), ("v2", "v2-0.9.1")):
        base = accepts()[f"legacy/{seed_name}"]
        base.wire.find("cpu", b"\x03cpu\0\0\0\0", 16)
        yield reject(
            f"legacy/{seed_name}-cut-in-cpu",
            "record.truncated",
            base,
            Cut("cpu", 100),
            f"A real stream of version {version[1]} that ends within a record.",
            section="cpu",
        )
