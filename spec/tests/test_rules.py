"""Every rule broken by a stream assembled by hand.

A case is the rule, the section, the bytes before the reported offset and those from there on."""

import json
import zlib
from struct import pack
from typing import Any

import pytest

from savevm_spec.errors import GrammarError
from savevm_spec.rules import rules
from savevm_spec.stream import build, parse

HEADER = b"QEVM" + pack(">I", 3)
EOF = b"\x00"
NAME = b"\x07" + pack(">I", 4) + b"none"


def section(kind: int, idstr: bytes, version: int = 1, instance: int = 0, id: int = 5) -> bytes:
    return pack(">BIB", kind, id, len(idstr)) + idstr + pack(">II", instance, version)


def footer(id: int = 5) -> bytes:
    return b"\x7e" + pack(">I", id)


def vmdesc(*devices: Any, **more: Any) -> bytes:
    text = json.dumps({**more, "devices": devices}).encode()
    return b"\x06" + pack(">I", len(text)) + text


def word(address: int, flags: int) -> bytes:
    return pack(">Q", address | flags)


def blocks(*listed: tuple[bytes, int]) -> bytes:
    entries = [pack(">B", len(name)) + name + pack(">Q", length) for name, length in listed]
    return word(sum(length for _, length in listed), 4) + b"".join(entries)


def device(*fields: Any, **more: Any) -> dict[str, Any]:
    vmstate = {"vmsd_name": "dev", "version": 1, "fields": fields}
    return {"name": "dev", "instance_id": 0, **vmstate, **more}


def behind_eof(entry: dict[str, Any]) -> bytes:
    """What follows the body of the section "dev" in a stream that describes it as ``entry``."""
    return footer() + EOF + vmdesc(entry)


def counted(name: bytes) -> bytes:
    return pack(">B", len(name)) + name


def command(number: int, length: int) -> bytes:
    return HEADER + b"\x08" + pack(">HH", number, length)


def record(idstr: bytes, body: bytes, version: int = 1) -> bytes:
    return counted(idstr) + pack(">III", 0, version, len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"\xfa\xbe" + pack(">H", len(data)) + data


U16 = {"name": "a", "type": "uint16", "size": 2}
PTR = {"name": "p", "type": "ptr-marker", "size": 1}
INNER = {"vmsd_name": "in", "version": 1, "fields": [U16]}
LIST = {"name": "l", "type": "qtailq", "size": 4, **INNER}
SHORT = {"name": "s", "type": "struct", "struct": INNER, "size": 3}
SUB = {"subsections": [{**INNER, "vmsd_name": "dev/s"}]}
PADDING = {"name": "tail", "type": "buffer", "size": 1 << 20}

V1 = b"QEVM" + pack(">I", 1)
V2 = b"QEVM" + pack(">I", 2)
DEV = HEADER + section(4, b"dev")
PAGE_BITS = HEADER + NAME + b"\x05" + counted(b"configuration/target-page-bits")
CAPABILITIES = HEADER + NAME + b"\x05" + counted(b"configuration/capabilities") + pack(">I", 1)
RAM = HEADER + section(1, b"ram", 4)
LISTED = RAM + blocks((b"b", 8192))
HTAB = HEADER + section(1, b"spapr/htab", 1)
ATTRIBUTES = HEADER + section(1, b"s390-storage_attributes", 0)
FOOTED = HEADER + section(1, b"ram", 4) + word(0, 16) + footer()
UNTAGGED = zlib.compress(b"\1" + bytes(1024))
RAM_1 = HEADER + section(4, b"ram", 1)
RAM_2 = HEADER + section(4, b"ram", 2)
RAM_3 = HEADER + section(1, b"ram", 3)
RAM_2_1024 = RAM_2 + pack(">I", 1024)
BLOCK = HEADER + section(1, b"block")
TIMER = HEADER + section(4, b"timer", 2)
PLAIN = HEADER + section(1, b"ram", 4) + word(0, 16) + b"\x02" + pack(">I", 5) + word(0, 16)
WIDE = b'{"devices":[' + b"0," * (1 << 20) + b"0]}"
DEEP = b'{"devices": ' + b"[" * 128 + b"]" * 128 + b"}"
MANY = word(65537 << 8, 4) + b"".join(b"\2" + pack(">HQ", n, 256) for n in range(65536))

ERRORS: list[tuple[str, str | None, bytes, bytes]] = [
    ("header.truncated", None, b"QEV", b""),
    ("header.truncated", None, b"QEVM\0\0", b""),
    ("header.truncated", None, V2 + bytes(4), b""),
    ("header.magic", None, b"", b"QEVN" + bytes(4)),
    ("header.version", None, b"QEVM", pack(">I", 4)),
    ("record.truncated", None, V1 + b"\x05a", b""),
    ("record.truncated", "ab", V1 + b"\x02ab\0", b""),
    ("record.truncated", "ab", V2 + pack(">Q", 100) + record(b"ab", b"xyz")[:-1], b""),
    ("record.length", "", V1 + bytes(9), pack(">I", 1 << 31)),
    ("record.outside-total", "ab", V2 + pack(">Q", 17), record(b"ab", b"xyz")),
    ("record.outside-total", None, V2 + pack(">Q", 2), record(b"ab", b"xyz")),
    ("record.truncated", "ram", V1 + record(b"ram", pack(">IH", 4096, 7))[:-1], b""),
    ("record.length", "ram", V1 + record(b"ram", b"")[:-4], b"\xff" * 4),
    (
        "record.outside-total",
        "ram",
        V2 + pack(">Q", 17),
        record(b"ram", pack(">IH", 4096, 7), version=2),
    ),
    ("record.body.outside", "ram", V1 + record(b"ram", pack(">IH", 4096, 1)), bytes(5000)),
    ("record.body.outside", "ram", V1 + record(b"ram", b"\0\0\x10"), b""),
    (
        "record.body.outside",
        "ram",
        V2 + pack(">Q", 999) + record(b"ram", pack(">IH", 1024, 0xFABE), 2),
        bytes(980),
    ),
    ("stream.truncated", None, V2 + pack(">Q", 100) + record(b"ab", b"xyz"), b""),
    ("stream.truncated", None, HEADER, b""),
    ("stream.truncated", None, HEADER + NAME, b""),
    ("stream.eof-mark", "dev", DEV + b"ab", b"\x01"),
    ("stream.eof-mark", "dev", DEV, b""),
    ("configuration.truncated", None, HEADER + NAME[:3], b""),
    ("configuration.truncated", None, HEADER + NAME + b"\x05\x05", b""),
    ("configuration.misplaced", None, HEADER + NAME, NAME),
    ("configuration.subsection.unknown", None, HEADER + NAME + b"\x05", counted(b"x")),
    ("configuration.subsection.version", None, PAGE_BITS, pack(">II", 2, 12)),
    (
        "configuration.subsection.repeated",
        None,
        PAGE_BITS + pack(">II", 1, 12) + b"\x05",
        counted(b"configuration/target-page-bits"),
    ),
    (
        "ram.block.length",
        "ram",
        RAM + blocks((b"b", 4096)) + word(8192, 4) + counted(b"b"),
        pack(">Q", 8192),
    ),
    ("configuration.target-page-bits", None, PAGE_BITS + pack(">I", 1), pack(">I", 25)),
    ("configuration.target-page-bits", None, PAGE_BITS + pack(">I", 1), pack(">I", 5)),
    ("configuration.capability.unknown", None, CAPABILITIES + pack(">I", 1), counted(b"?")),
    (
        "configuration.capability.unsupported",
        None,
        CAPABILITIES + pack(">I", 2) + counted(b"events"),
        counted(b"mapped-ram"),
    ),
    ("section.type", None, HEADER, b"\x05"),
    ("section.type", None, HEADER, b"\xff"),
    ("section.truncated", None, HEADER + b"\x04\0\0", b""),
    ("section.truncated", None, HEADER + b"\x04\0\0\0\5\x03de", b""),
    ("section.truncated", "dev", DEV[:-5], b""),
    ("section.truncated", "ram", FOOTED + b"\x02" + pack(">I", 5) + word(0, 16), b""),
    ("section.truncated", "dev", FOOTED + section(4, b"dev") + b"body", b""),
    ("section.idstr.empty", None, HEADER + b"\x04\0\0\0\5", b"\0" + bytes(8)),
    ("section.id.unknown", None, HEADER + b"\x02", pack(">I", 5)),
    ("section.version.newer-than-supported", "ram", RAM[:-4], pack(">I", 5)),
    (
        "section.version.differs-from-description",
        "dev",
        DEV[:-4],
        pack(">I", 1) + b"ab" + behind_eof(device(U16, version=2)),
    ),
    ("footer.missing", "ram", FOOTED + b"\x02" + pack(">I", 5) + word(0, 16), b"\0"),
    ("footer.truncated", "ram", FOOTED[:-1], b""),
    ("footer.id", "ram", FOOTED[:-4], pack(">I", 6)),
    ("footer.unexpected", None, PLAIN, footer()),
    ("footer.unexpected", None, HEADER, footer()),
    ("command.truncated", None, HEADER + b"\x08\0", b""),
    ("command.truncated", None, command(2, 4) + b"abc", b""),
    ("command.truncated", None, command(7, 4) + pack(">I", 5) + b"abcd", b""),
    ("command.unknown", None, HEADER + b"\x08", pack(">HH", 12, 0)),
    ("command.unknown", None, HEADER + b"\x08", pack(">HH", 0, 0)),
    ("command.length", None, HEADER + b"\x08\0\2", pack(">H", 5)),
    ("command.length", None, HEADER + b"\x08\0\6", pack(">H", 19)),
    ("command.length", None, HEADER + b"\x08\0\x0a", pack(">H", 0)),
    ("command.packaged.empty", None, command(7, 4), bytes(4)),
    ("command.postcopy-ram-discard.payload", None, command(6, 20), b"\1\1a\0" + bytes(16)),
    ("command.postcopy-ram-discard.payload", None, command(6, 20), b"\0\1a\1" + bytes(16)),
    ("command.postcopy-ram-discard.payload", None, command(6, 21), b"\0\1a\0" + bytes(17)),
    ("command.postcopy-ram-discard.payload", None, command(6, 20), b"\0\xff" + bytes(18)),
    ("command.postcopy-ram-discard.payload", None, command(6, 20), b"\0\x11" + bytes(18)),
    ("command.recv-bitmap.payload", None, command(10, 3), b"\1ab"),
    ("command.recv-bitmap.payload", None, command(10, 3), b"\3ab"),
    ("ram.truncated", "ram", RAM, b""),
    ("ram.truncated", "ram", RAM + word(4096, 4) + b"\2b", b""),
    ("ram.truncated", "ram", LISTED + word(0, 2) + b"\1b", b""),
    ("ram.truncated", "ram", LISTED + word(0, 8) + b"\1b" + bytes(4095), b""),
    ("ram.blocks.total", "ram", RAM + word(4096, 4) + b"\1b", pack(">Q", 4097)),
    ("ram.flags.combination", "ram", LISTED, word(0, 10)),
    ("ram.flags.combination", "ram", LISTED, word(0, 0)),
    ("ram.flags.combination", "ram", LISTED, word(4096, 16)),
    ("ram.flags.combination", "ram", LISTED, word(0, 0x30)),
    ("ram.flags.unsupported", "ram", LISTED, word(0, 0x40)),
    ("ram.flags.unsupported", "ram", LISTED, word(0, 0x100)),
    ("ram.page.misaligned", "ram", LISTED, word(1024, 8)),
    ("ram.page.continue-needs-block", "ram", LISTED, word(0, 0x22) + b"\0"),
    ("ram.page.unknown-block", "ram", LISTED + word(0, 2), b"\1c\0"),
    ("ram.page.outside-block", "ram", LISTED, word(8192, 2) + b"\1b\0"),
    ("ram.truncated", "ram", RAM_1 + b"\0\0\0", b""),
    ("ram.truncated", "ram", RAM_1 + pack(">I", 4096) + bytes(4096), b""),
    ("ram.truncated", "ram", RAM_2_1024 + chunk(zlib.compress(bytes(1025))[:-6]), b""),
    ("ram.truncated", "ram", RAM_2_1024 + b"\xfa", b""),
    ("ram.truncated", "ram", RAM_3 + word(4096, 4) + word(0, 2), b""),
    ("ram.size", "ram", RAM_1, pack(">I", 1024) + bytes(1025)),
    ("ram.size", "ram", V1 + record(b"ram", b"")[:-4] + pack(">I", 4), pack(">I", 1)),
    ("ram.size", "ram", RAM_2, pack(">I", 1023)),
    ("ram.size.differs", "ram", RAM_3 + word(4096, 4), word(8192, 4)),
    (
        "ram.size.differs",
        "ram",
        V1 + record(b"ram", bytes(4)) + record(b"ram", b"")[:-4] + pack(">I", 4),
        pack(">I", 4096),
    ),
    ("ram.page.tag", "ram", RAM_1 + pack(">IBB", 8192, 1, 0), b"\2"),
    ("ram.page.tag", "ram", V1 + record(b"ram", pack(">IH", 4096, 0x200))[:-2], b"\2\0"),
    ("ram.page.tag", "ram", RAM_2_1024, chunk(UNTAGGED)),
    ("ram.page.tag", "ram", RAM_2_1024 + chunk(UNTAGGED[:2]), chunk(UNTAGGED[2:])),
    ("ram.chunk.magic", "ram", RAM_2_1024, b"\xfa\xbf"),
    ("ram.chunk.length", "ram", RAM_2_1024 + b"\xfa\xbe", bytes(2)),
    ("ram.chunk.length", "ram", RAM_2_1024 + b"\xfa\xbe", pack(">H", 4097)),
    ("ram.chunk.data", "ram", RAM_2_1024, chunk(b"noise")),
    ("ram.chunk.data", "ram", RAM_2_1024, chunk(zlib.compress(bytes(1024)))),
    ("ram.chunk.data", "ram", RAM_2_1024, chunk(zlib.compress(bytes(1026)))),
    ("ram.chunk.data", "ram", RAM_2_1024, chunk(zlib.compress(bytes(1 << 21)))),
    ("ram.chunk.data", "ram", RAM_2_1024, chunk(zlib.compress(bytes(1025)) + b"\0")),
    ("ram.flags.unsupported", "ram", RAM_3 + word(8192, 4), word(0, 1)),
    ("ram.flags.combination", "ram", RAM_3 + word(8192, 4), word(0, 0x22) + b"\0"),
    ("ram.flags.combination", "ram", RAM_3 + word(8192, 4), word(0, 0x80)),
    ("ram.flags.combination", "ram", RAM_3 + word(8192, 4), word(0, 0x200)),
    ("ram.flags.combination", "ram", RAM_3 + word(8192, 4), word(4096, 0x10)),
    ("ram.page.misaligned", "ram", RAM_3 + word(8192, 4), word(1024, 8)),
    ("ram.page.outside-block", "ram", RAM_3 + word(8192, 4), word(8192, 2)),
    ("ram.page.outside-block", "ram", RAM_3, word(0, 2)),
    ("limit.ram-size", "ram", RAM_3, word(1 << 63, 4)),
    ("block.truncated", "block", BLOCK + word(0, 9), b""),
    ("block.truncated", "block", BLOCK + word(0, 1) + b"\1a" + bytes((1 << 20) - 1), b""),
    ("block.truncated", "block", BLOCK + word(100 << 9, 4), b""),
    ("block.flags", "block", BLOCK, word(0, 8)),
    ("block.flags", "block", BLOCK + word(100 << 9, 4), word(0, 0x101)),
    ("htab.truncated", "spapr/htab", HTAB + bytes(11), b""),
    ("storage-attributes.truncated", "s390-storage_attributes", ATTRIBUTES + bytes(7), b""),
    (
        "storage-attributes.truncated",
        "s390-storage_attributes",
        ATTRIBUTES + word(0, 2) + pack(">Q", 1 << 24),
        b"",
    ),
    (
        "limit.storage-attributes",
        "s390-storage_attributes",
        ATTRIBUTES + word(0, 2),
        pack(">Q", (1 << 24) + 1),
    ),
    ("storage-attributes.flags", "s390-storage_attributes", ATTRIBUTES, word(4096, 3)),
    ("vmstate.truncated", "dev", DEV + b"ab" + behind_eof(device(U16, PADDING)), b""),
    ("vmstate.truncated", "timer", TIMER + bytes(23), b""),
    ("vmstate.subsection.missing", "dev", DEV + b"ab", behind_eof(device(U16, **SUB))),
    (
        "vmstate.subsection.name",
        "dev",
        DEV + b"ab\x05",
        counted(b"dev/t") + pack(">I", 1) + behind_eof(device(U16, **SUB)),
    ),
    (
        "vmstate.subsection.version",
        "dev",
        DEV + b"ab\x05" + counted(b"dev/s"),
        pack(">I", 257) + b"ab" + behind_eof(device(U16, **SUB)),
    ),
    ("vmstate.pointer-marker", "dev", DEV, b"2" + behind_eof(device(PTR))),
    ("vmstate.list-marker", "dev", DEV, b"\0abc" + behind_eof(device(LIST))),
    ("vmstate.list-marker", "dev", DEV + b"\1ab", b"\1" + behind_eof(device(LIST))),
    ("vmdesc.field.size", "dev", DEV, b"abc" + behind_eof(device(SHORT))),
    ("vmdesc.layout", "dev", DEV, b"ab" + behind_eof(device(U16, {"name": "b"}))),
    ("vmdesc.layout", "dev", DEV, b"ab" + behind_eof({"name": "dev", "instance_id": 0})),
    ("vmdesc.truncated", None, HEADER + EOF + b"\x06\0\0", b""),
    ("vmdesc.truncated", None, HEADER + EOF + b"\x06\0\0\0\3{}", b""),
    ("vmdesc.json", None, HEADER + EOF + b"\x06\0\0\0\2", b"{}"),
    ("vmdesc.json", None, HEADER + EOF + b"\x06\0\0\0\2", b"{\xff"),
    ("vmdesc.misplaced", None, HEADER, vmdesc()),
    ("limit.machine-name", None, HEADER + b"\x07", pack(">I", 1025)),
    ("limit.capabilities", None, CAPABILITIES, pack(">I", 257)),
    ("limit.ram-blocks", "ram", RAM + MANY, counted(b"one more") + pack(">Q", 256)),
    ("limit.ram-size", "ram", RAM, word(1 << 63, 4)),
    ("limit.packaged", None, command(7, 4), pack(">I", (64 << 20) + 1)),
    ("limit.vmdesc-size", None, HEADER + EOF + b"\x06", pack(">I", (64 << 20) + 1)),
    ("limit.vmdesc-values", None, HEADER + EOF + b"\x06" + pack(">I", len(WIDE)), WIDE),
    ("limit.vmdesc-depth", None, HEADER + EOF + b"\x06" + pack(">I", len(DEEP)), DEEP),
]

FINDINGS: list[tuple[str, str | None, bytes, bytes]] = [
    ("configuration.machine.empty", None, HEADER + b"\x07", bytes(4) + EOF),
    (
        "section.id.reused",
        "spapr/htab",
        FOOTED + b"\x01",
        section(1, b"spapr/htab")[1:] + pack(">I", 7) + footer() + EOF,
    ),
    ("section.body.undescribed", "dev", FOOTED + section(4, b"dev"), b"body" + footer() + EOF),
    ("stream.undelimited", "dev", PLAIN + section(4, b"dev"), b"body" + EOF),
    ("stream.trailing-data", None, HEADER + EOF, b"\x07"),
    ("stream.trailing-data", None, HEADER + EOF + vmdesc(), b"\0"),
    ("stream.trailing-data", None, V2 + pack(">Q", 15) + record(b"a", b"x")[:15], b"\0"),
    (
        "record.body.rest",
        "ram",
        V1 + record(b"ram", bytes(6))[:-2],
        bytes(2) + record(b"ab", b"xyz"),
    ),
    (
        "ram.block.duplicate",
        "ram",
        RAM + blocks((b"b", 4096)) + word(4096, 4),
        counted(b"b") + pack(">Q", 4096) + word(0, 16) + EOF,
    ),
    ("ram.zero.fill", "ram", LISTED + word(0, 2) + b"\1b", b"\xaa" + word(0, 16) + EOF),
    (
        "vmdesc.page-size",
        None,
        PAGE_BITS + pack(">II", 1, 13) + EOF,
        vmdesc(page_size=4096),
    ),
]

# Rules that no stream alone breaks, and where they are tested
ELSEWHERE = {
    "what a stream lies in: test_envelope*.py": {
        "limit.libvirt-data",
        "limit.decompressor",
        *(rule for rule in rules() if rule.startswith("envelope.")),
    },
    "loading into a machine: reference/tests": {
        "command.unsupported",
        "device.riscv-cpu.misa-mxl",
        "configuration.machine.differs",
        "ram.block.size",
        "ram.block.unknown",
        "section.end.missing",
        "section.instance.unknown",
        "section.kind",
        "section.part.after-end",
        "section.part.not-started",
        "section.repeated",
        "section.state.refused",
        "section.unknown",
        "section.version.older-than-minimum",
    },
    "only a reader that has not got the whole input waits: reference/tests": {"limit.undescribed"},
    "four million fields take too long: conformance/tests, with a lower limit": {
        "limit.vmstate-fields"
    },
}


def test_every_rule_has_a_case() -> None:
    cases = [case[0] for case in ERRORS + FINDINGS]
    assert sorted(rules()) == sorted([*set(cases), *(r for rs in ELSEWHERE.values() for r in rs)])


def ids(cases: list[tuple[str, str | None, bytes, bytes]]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(("rule", "section", "before", "after"), ERRORS, ids=ids(ERRORS))
def test_error(rule: str, section: str | None, before: bytes, after: bytes) -> None:
    error = parse(before + after).error
    assert error is not None
    assert (error.rule, error.offset, error.section) == (rule, len(before), section)
    assert error.errno == rules()[rule].errno


@pytest.mark.parametrize(("rule", "section", "before", "after"), FINDINGS, ids=ids(FINDINGS))
def test_finding(rule: str, section: str | None, before: bytes, after: bytes) -> None:
    stream = parse(before + after)
    assert stream.error is None
    assert (rule, len(before), section) in stream.findings
    assert build(stream) == before + after


def test_a_stream_that_could_not_be_read_is_not_built() -> None:
    with pytest.raises(GrammarError, match=r"stream\.truncated at offset 8: Records follow"):
        build(parse(HEADER))
