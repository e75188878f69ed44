"""Streams of 2006 to 2011: RAM without block names, disks, devices that no stream describes."""

import hashlib
import json
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from streams import EOF, HEADER, accepted_vectors, counted, word
from test_mutations import mutate
from test_reader import read

from savevm import vmstate
from savevm.sink import Sink
from savevm.stream.events import Device, Event, RamChunk
from savevm.stream.handlers import Handlers
from savevm.stream.reader import Reader
from savevm.transcript import rebuild, transcribe
from savevm.vmdesc import Description
from savevm_spec.constants import LIMIT_SCHEMA_BODY
from savevm_spec.devices import schemas
from savevm_spec.rules import rules

P, K, MIB = 4096, 1024, 1 << 20
V1 = b"QEVM" + struct.pack(">I", 1)
A = bytes(range(256)) * 16
EOS = word(16)


def v2(*records: bytes) -> bytes:
    body = b"".join(records)
    return b"QEVM" + struct.pack(">IQ", 2, len(body)) + body


def record(idstr: str, version: int, body: bytes) -> bytes:
    return counted(idstr) + struct.pack(">III", 0, version, len(body)) + body


def section(section_id: int, idstr: str, version: int, body: bytes, kind: int = 4) -> bytes:
    return (
        struct.pack(">BI", kind, section_id)
        + counted(idstr)
        + struct.pack(">II", 0, version)
        + body
    )


def part(section_id: int, body: bytes, kind: int = 2) -> bytes:
    return struct.pack(">BI", kind, section_id) + body


def size(count: int) -> bytes:
    return struct.pack(">I", count)


def chunk(data: bytes) -> bytes:
    return struct.pack(">HH", 0xFABE, len(data)) + data


def chunks(*blocks: bytes, tags: bytes = b"", more: bytes = b"", cut: int = 700) -> bytes:
    """RAM of version 2 behind its size: a tag before each block, and ``more`` behind the last."""
    tags = tags or bytes(len(blocks))
    text = b"".join(bytes((t,)) + b for t, b in zip(tags, blocks, strict=True)) + more
    packed = zlib.compress(text)
    return b"".join(chunk(packed[i : i + cut]) for i in range(0, len(packed), cut))


NOISE = random.Random(0).randbytes(4 * K)
BLOCKS = [NOISE[:K], bytes(K), NOISE[K : 2 * K], b"\x07" * K]
RAM1 = size(5 * P) + b"\0" + A + b"\1\0" + b"\1\0" + b"\1\x5a" + b"\0" + NOISE
RAM2 = size(4 * K) + chunks(*BLOCKS)
LARGER = size(20 * K) + chunks(*BLOCKS * 5)
RAM3 = word(4 * P | 4) + word(8) + A + word(P | 2) + b"\x5a" + word(3 * P | 2) + b"\0" + EOS
DISK = (
    word(0 << 9 | 4)
    + word(2048 << 9 | 1)
    + b"\3hd0"
    + A * 256
    + word(9)
    + b"\3hd0"
    + word(1 << 9 | 9)
    + b"\0"
    + word(100 << 9 | 4)
    + word(5 << 9 | 2)
)
TIMER = struct.pack(">qqq", 1, -2, 3)

STREAMS = {
    "v1": V1 + record("timer", 2, TIMER) + record("ram", 1, RAM1) + record("x", 1, b"abc"),
    "v2": v2(record("ram", 2, RAM2), record("timer", 2, TIMER)),
    "v1-rest": V1 + record("ram", 1, RAM1 + b"left") + record("ram", 2, LARGER + b"\xfa"),
    "v3-ram1": HEADER + section(1, "ram", 1, RAM1, 1) + part(1, RAM1, 3) + EOF,
    "v3-ram2": HEADER + section(1, "ram", 2, RAM2) + section(2, "timer", 2, TIMER) + EOF,
    "v3-ram3": HEADER
    + section(1, "ram", 3, RAM3, 1)
    + part(1, word(2 * P | 8) + NOISE + EOS)
    + part(1, EOS, 3)
    + section(2, "timer", 2, TIMER)
    + EOF,
    "v3-block": HEADER + section(0, "block", 1, DISK, 1) + part(0, word(2), 3) + EOF,
}
EVERY = pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS)


def pages(contents: dict[int, bytes]) -> str:
    digest = hashlib.sha256()
    for address, page in sorted(contents.items()):
        digest.update(word(address) + page)
    return digest.hexdigest()


def test_ram_of_each_version() -> None:
    filled = b"\x5a" * P
    expected = {
        "v1": (1, 5 * P, {0: A, 3 * P: filled, 4 * P: NOISE}, (2, 1, 2)),
        "v3-ram1": (1, 5 * P, {0: A, 3 * P: filled, 4 * P: NOISE}, (2, 1, 2)),
        "v2": (2, 4 * K, {0: BLOCKS[0], 2 * K: BLOCKS[2], 3 * K: BLOCKS[3]}, (0, 0, 4)),
        "v3-ram2": (2, 4 * K, {0: BLOCKS[0], 2 * K: BLOCKS[2], 3 * K: BLOCKS[3]}, (0, 0, 4)),
        "v3-ram3": (3, 4 * P, {0: A, P: filled, 2 * P: NOISE}, (1, 1, 1)),
    }
    for name, (version, used, contents, counts) in expected.items():
        transcript = transcribe(STREAMS[name])
        assert transcript["error"] is None, name
        assert transcript["findings"] == []
        assert transcript["ram"] == [
            {"idstr": "ram", "used_length": used, "digest": pages(contents)}
        ], name
        body = next(r for r in transcript["records"] if r.get("idstr") == "ram")["body"]
        assert body["kind"] == "ram"
        assert body["blocks"] == [{"idstr": "ram", "used_length": used}]
        assert tuple(body["pages"]["ram"].values()) == counts, name
        assert ("chunks" in body) == (version == 2)
        assert transcript["page_size"] == (P if version == 3 else None)


def test_dialects() -> None:
    names = {"v1": "v1", "v2": "v2", "v3-ram2": "v3-2008", "v3-ram3": "v3-ram3"}
    assert {name: transcribe(STREAMS[name])["dialect"] for name in names} == names


def test_chunks_of_ram_are_counted_and_kept() -> None:
    events, _ = read(STREAMS["v3-ram2"])
    found = [e for e in events if isinstance(e, RamChunk)]
    assert b"".join(e.data for e in found) == RAM2[4:]
    assert sum(e.blocks for e in found) == 4
    body = transcribe(STREAMS["v3-ram2"])["records"][1]["body"]
    assert body["chunks"] == len(found) == -(-(len(RAM2) - 4) // 704)
    assert body["length"] == len(RAM2)


def test_disk_blocks() -> None:
    body = transcribe(STREAMS["v3-block"])["records"][1]["body"]
    assert body["progress"] == [0, 100]
    first = hashlib.sha256(word(2048) + A * 256 + word(0)).hexdigest()
    assert body["devices"] == {
        "hd0": {"normal": 1, "zero": 1, "sha256": first},
        "": {"normal": 0, "zero": 1, "sha256": hashlib.sha256(word(1)).hexdigest()},
    }
    assert body["length"] == len(DISK)


def test_what_a_body_leaves_of_its_record() -> None:
    data = STREAMS["v1-rest"]
    transcript = transcribe(data)
    first, second = (r["body"] for r in transcript["records"][1:])
    assert (first["length"], first["rest"]) == (len(RAM1), 4)
    assert (second["length"], second["rest"]) == (len(LARGER), 1)
    assert transcript["findings"] == [
        {"rule": "record.body.rest", "offset": at, "section": "ram"}
        for at in (data.index(b"left"), len(data) - 1)
    ]


class Contents(Sink):
    """Everything that comes, independent of how it is cut."""

    def __init__(self) -> None:
        self.ram: dict[int, int] = {}
        self.disk: list[int] = []
        self.raw = b""

    def page_data(self, block: str, address: int, data: bytes, start: int, end: int) -> None:
        self.ram.update(zip(range(address, address + end - start), data[start:end], strict=True))

    def fill(self, block: str, address: int, count: int, byte: int) -> None:
        self.ram.update(dict.fromkeys(range(address, address + count * P), byte))

    def body_data(self, data: bytes, start: int, end: int) -> None:
        self.raw += data[start:end]

    def disk_data(
        self, device: str, sector: int, at: int, data: bytes, start: int, end: int
    ) -> None:
        assert at == sum(self.disk)
        self.disk.append(end - start)


@EVERY
def test_chunks_do_not_matter(data: bytes) -> None:
    randomness = random.Random(len(data))
    cuts = [randomness.choice((1, 2, 7, 100, 5000)) for _ in range(len(data))]
    sinks = [Contents(), Contents(), Contents()]
    whole, reader = read(data, sink=sinks[0])
    assert reader.error is None
    # A disk's megabyte byte by byte takes too long.
    single = [1] * len(data) if len(data) < MIB else [len(data) - 100, *[1] * 100]
    for sink, sizes in zip(sinks[1:], (single, cuts), strict=True):
        events, other = read(data, sizes, sink=sink)
        assert events == whole
        assert (other.page_size, other.footers) == (reader.page_size, reader.footers)
        assert (sink.ram, sink.raw, sum(sink.disk)) == (
            sinks[0].ram,
            sinks[0].raw,
            sum(sinks[0].disk),
        )


@EVERY
def test_built_again_they_are_the_same(data: bytes) -> None:
    assert rebuild(data) == data


@EVERY
def test_every_truncation_is_noticed(data: bytes) -> None:
    for cut in range(8, len(data), 1 + len(data) // 300):
        error = transcribe(data[:cut])["error"]
        # Version 1 has no end.
        if error is None:
            assert data.startswith(V1)
            continue
        assert error["errno"] == "EIO"
        assert error["offset"] == cut


BODY = len(HEADER) + 5 + 4 + 8


def in_v3(version: int, body: bytes) -> bytes:
    return HEADER + section(1, "ram", version, body) + EOF


def in_v1(version: int, body: bytes) -> bytes:
    return V1 + record("ram", version, body)


def twice(version: int, body: bytes, other: bytes) -> bytes:
    return HEADER + section(1, "ram", version, body, 1) + part(1, other) + EOF


@pytest.mark.parametrize(
    ("data", "rule", "offset"),
    [
        (in_v3(1, size(P + 1)), "ram.size", BODY),
        (in_v3(2, size(K - 1)), "ram.size", BODY),
        (twice(1, size(0), size(P)), "ram.size.differs", BODY + 9),
        (twice(1, size(0), size(P + 1)), "ram.size", BODY + 9),
        (twice(3, word(P | 4) + EOS, word(4) + EOS), "ram.size.differs", BODY + 21),
        (in_v3(1, size(P) + b"\2"), "ram.page.tag", BODY + 4),
        (in_v3(2, size(K) + chunks(NOISE[:K], tags=b"\1")), "ram.page.tag", BODY + 4),
        (in_v3(2, size(K) + b"\xfa\xbf"), "ram.chunk.magic", BODY + 4),
        (in_v3(2, size(K) + b"\xfa\xbe\0\0"), "ram.chunk.length", BODY + 6),
        (in_v3(2, size(K) + b"\xfa\xbe\x10\1" + bytes(5000)), "ram.chunk.length", BODY + 6),
        (in_v3(2, size(K) + chunk(b"not zlib")), "ram.chunk.data", BODY + 4),
        (in_v3(2, size(2 * K) + chunks(bytes(K))), "ram.chunk.data", BODY + 4),
        (in_v3(2, size(K) + chunks(bytes(K), more=b"\0")), "ram.chunk.data", BODY + 4),
        (in_v3(2, size(0) + chunks(more=b"\0")), "ram.chunk.data", BODY + 4),
        (in_v3(2, size(K) + chunk(zlib.compress(bytes(K + 1)) + b"x")), "ram.chunk.data", BODY + 4),
        # The tag is looked at before what is too much.
        (in_v3(2, size(K) + chunks(bytes(K), tags=b"\1", more=b"x")), "ram.page.tag", BODY + 4),
        (in_v3(3, word(2) + b"\0" + EOS), "ram.page.outside-block", BODY),
        (in_v3(3, word(P | 4) + word(P | 2) + b"\0"), "ram.page.outside-block", BODY + 8),
        (in_v3(3, word(P | 4) + word(1)), "ram.flags.unsupported", BODY + 8),
        (in_v3(3, word(P | 4) + word(0x22)), "ram.flags.combination", BODY + 8),
        (in_v3(3, word(P | 4) + word(0x80)), "ram.flags.combination", BODY + 8),
        (in_v3(3, word(P | 4) + word(0x802)), "ram.page.misaligned", BODY + 8),
        (in_v3(3, word(1 << 63 | 4)), "limit.ram-size", BODY),
        (in_v3(5, b""), "section.version.newer-than-supported", BODY - 4),
        (HEADER + section(1, "block", 1, word(2 << 9 | 3)), "block.flags", BODY + 2),
        # Only the record counts, and whether it is whole counts first.
        (in_v1(1, size(2 * P) + b"\0" + A) + b"\0" + A, "record.body.outside", 8 + 16 + 4097 + 4),
        (in_v1(2, RAM2[:-1]) + RAM2[-1:], "record.body.outside", 8 + 16 + len(RAM2) - 1),
        (in_v1(1, size(P) + b"\2..")[:-1], "record.truncated", 8 + 16 + 6),
        (in_v1(1, size(P) + b"\2.."), "ram.page.tag", 8 + 16 + 4),
    ],
)
def test_broken_rules(data: bytes, rule: str, offset: int) -> None:
    for sizes in (None, [1] * len(data)):
        _, reader = read(data, sizes)
        assert reader.error is not None
        assert (reader.error.rule, reader.error.offset) == (rule, offset)


@pytest.mark.parametrize("page_size", [256, 1024, 4096, 65536])
def test_page_size_of_version_3_is_inferred(page_size: int) -> None:
    contents = NOISE * 16
    for first in (word(2) + b"\x11", word(8) + contents[:page_size]):
        body = word(page_size * 4 | 4) + first + word(page_size | 2) + b"\0" + EOS
        assert transcribe(in_v3(3, body))["page_size"] == page_size


def test_a_zlib_stream_may_end_behind_the_ram() -> None:
    """Its last chunks then hold no RAM; they belong to the body as long as they look like chunks."""
    packed = zlib.compress(b"\0" + NOISE[:K])
    body = size(K) + chunk(packed[:-4]) + b"".join(chunk(packed[i:][:1]) for i in (-4, -3, -2))
    for end, behind in ((chunk(packed[-1:]), 0), (b"", 1)):
        transcript = transcribe(in_v3(2, body + end))
        assert transcript["error"] is None
        assert transcript["records"][1]["body"]["chunks"] == 5 - behind
    behind_the_end = in_v3(2, body + chunk(packed[-1:]) + chunk(b"x"))
    assert transcribe(behind_the_end)["error"]["rule"] == "section.type"


def test_compressed_ram_takes_no_more_memory_than_a_chunk_can_hold() -> None:
    """4 GiB of zeros come as 4 MiB; only what a chunk holds may be there at once."""
    count = (1 << 32) // K - 1
    deflate = zlib.compressobj(9)
    packed = b"".join(deflate.compress(bytes(1025 * 4096)) for _ in range(64)) + deflate.flush()
    reader = Reader()
    reader.feed(HEADER + section(1, "ram", 2, size(count * K)))
    tracemalloc.start()
    try:
        for i in range(0, len(packed), P):
            reader.feed(chunk(packed[i : i + P]))
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    # The zlib stream has ended far before the RAM does.
    assert reader.error is not None
    assert reader.error.rule == "ram.chunk.data"


def test_mutations_raise_nothing_but_stream_errors() -> None:
    randomness = random.Random(8)
    outcomes = set()
    for data in STREAMS.values():
        if len(data) > MIB:
            continue
        for _ in range(300):
            broken = mutate(data, randomness)
            error = transcribe(broken)["error"]
            if error is None:
                assert rebuild(broken) == broken
            else:
                assert 0 <= error["offset"] <= len(broken)
                assert rules()[error["rule"]].violation == "reject"
            outcomes.add(error and error["rule"])
    assert len(outcomes) > 15


# Devices by schema


def devices(events: list[Event]) -> list[Device]:
    return [e for e in events if isinstance(e, Device)]


def test_records_follow_a_schema_that_takes_them_exactly() -> None:
    exact, short, long = (record("timer", 2, (TIMER + b".")[:n]) for n in (24, 23, 25))
    kinds = [r["body"]["kind"] for r in transcribe(V1 + exact + short + long)["records"][1:]]
    assert kinds == ["vmstate", "buffer", "buffer"]
    (device,) = devices(read(V1 + exact)[0])
    assert device.state["fields"] == [
        ["cpu_ticks_offset", 1],
        ["ticks_per_sec", -2],
        ["cpu_clock_offset", 3],
    ]


def test_a_device_path_is_no_part_of_the_name() -> None:
    data = HEADER + section(2, "0000:00:01.0/1/timer", 2, TIMER) + EOF
    transcript = transcribe(data)
    assert transcript["error"] is None
    assert transcript["records"][1]["body"]["kind"] == "vmstate"
    assert transcript["footers"] is False
    assert transcript["findings"] == []


def test_a_cut_body_by_schema() -> None:
    error = transcribe(HEADER + section(2, "timer", 2, TIMER[:20]))["error"]
    assert (error["rule"], error["section"]) == ("vmstate.truncated", "timer")


def test_the_schema_behind_which_a_record_begins_is_the_right_one() -> None:
    """The processor has other lengths for other targets, in the same version."""
    idstr, version = "cpu", 7
    lengths = []
    for schema in schemas(idstr, version):
        zeros = bytes(1 << 16)
        lengths.append(vmstate.decode_schema(schema, zeros, 0, 1 << 16, 0, "", 0, True)[2])
    assert len(set(lengths)) > 1
    for length in lengths:
        for behind in (section(3, "timer", 2, TIMER) + EOF, EOF, part(2, bytes(length), 3) + EOF):
            data = HEADER + section(2, idstr, version, bytes(length), 1) + behind
            for sizes in (None, [1] * len(data)):
                events, reader = read(data, sizes)
                assert reader.error is None
                assert devices(events)[0].length == length


def test_long_records_are_not_decoded() -> None:
    body = bytes(LIMIT_SCHEMA_BODY + 1)
    (_, found) = transcribe(V1 + record("timer", 2, body))["records"]
    assert found["body"]["kind"] == "buffer"


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in accepted_vectors()
        if p.parts[-4] == "legacy" and p.parent.name.startswith(("v1-0", "v2-0", "v3-"))
    ],
    ids=lambda p: p.parent.name,
)
def test_devices_of_old_qemus(path: Path) -> None:
    """Each is decoded; what it is decoded to gives the body and, with its layout, a description."""
    data = path.read_bytes()
    events, reader = read(data)
    assert reader.error is None
    assert len(devices(events)) > 10
    for device in devices(events):
        assert device.kind == "vmstate"
        body = data[device.offset : device.offset + device.length]
        assert vmstate.encode(device.layout, device.state) == body
        _, _, end, _ = vmstate.decode(device.layout, body, 0, len(body), 0, "", 0)
        assert end == len(body)


class Layouts(Handlers):
    def __init__(self, layout: dict[str, object]) -> None:
        self.layout = layout

    def begin(self, section: object) -> dict[str, object]:
        return self.layout


SCHEMA = {
    "vmsd_name": "d",
    "version": 1,
    "fields": [
        {"name": "flags", "type": "uint8", "size": 1},
        {"name": "a", "type": "uint16", "size": 2, "if": ["flags", "&", 2]},
        {"name": "n", "type": "int8", "size": 1},
        {"name": "list", "type": "uint16", "size": 2, "array_len": "n"},
        {"name": "text", "type": "buffer", "size": "n"},
        {
            "name": "items",
            "type": "struct",
            "array_len": "n",
            "struct": {
                "vmsd_name": "item",
                "version": 1,
                "fields": [
                    {"name": "n", "type": "uint8", "size": 1},
                    {"name": "odd", "type": "uint8", "size": 1, "if": ["n", "==", 1]},
                    {"name": "outer", "type": "bool", "size": 1, "if": ["flags", ">=", 4]},
                ],
                "subsections": [
                    {"vmsd_name": "item/s", "version": 3, "fields": []},
                ],
            },
        },
    ],
    "subsections": [
        {"vmsd_name": "d/one", "version": 1, "fields": []},
        {
            "vmsd_name": "d/two",
            "version": 2,
            "fields": [{"name": "x", "type": "buffer", "size": "n"}],
        },
    ],
}
ITEM_S = b"\5\6item/s\0\0\0\3"
TWO = b"\5\5d/two\0\0\0\2"


def plain(*fields: list[object], subsections: list[object] | None = None) -> dict[str, object]:
    return {"fields": list(fields), "subsections": subsections or []}


S_STATE = {"name": "item/s", "version": 3, "fields": [], "subsections": []}


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (b"\0\0", plain(["flags", 0], ["n", 0], ["list", []], ["text", b""], ["items", []])),
        (b"\0\xff", plain(["flags", 0], ["n", -1], ["list", []], ["text", b""], ["items", []])),
        (
            b"\2\1\2\1\0\7t\5",
            plain(
                ["flags", 2],
                ["a", 0x102],
                ["n", 1],
                ["list", [7]],
                ["text", b"t"],
                ["items", [plain(["n", 5])]],
            ),
        ),
        (
            b"\4\2\0\1\0\2ab" + b"\1\x09\1" + ITEM_S + b"\3\0" + TWO + b"xy",
            plain(
                ["flags", 4],
                ["n", 2],
                ["list", [1, 2]],
                ["text", b"ab"],
                [
                    "items",
                    [
                        plain(["n", 1], ["odd", 9], ["outer", True], subsections=[S_STATE]),
                        plain(["n", 3], ["outer", False]),
                    ],
                ],
                subsections=[
                    {"name": "d/two", "version": 2, "fields": [["x", b"xy"]], "subsections": []}
                ],
            ),
        ),
        # The items are alike: the layout has one field for them.
        (
            b"\0\2\0\1\0\2ab\2\3",
            plain(
                ["flags", 0],
                ["n", 2],
                ["list", [1, 2]],
                ["text", b"ab"],
                ["items", [plain(["n", 2]), plain(["n", 3])]],
            ),
        ),
    ],
)
def test_conditions_counts_and_subsections(body: bytes, state: dict[str, object]) -> None:
    data = HEADER + section(1, "d", 1, body) + EOF
    for sizes in (None, [1] * len(data)):
        events, reader = read(data, sizes, handlers=Layouts(SCHEMA))
        assert reader.error is None
        (device,) = devices(events)
        assert device.state == state
    assert vmstate.encode(device.layout, device.state) == body
    decoded = vmstate.decode(device.layout, body, 0, len(body), 0, "", 0)
    assert decoded[2] == len(body)
    alike = not any(field.get("index") for field in device.layout["fields"])
    assert (decoded[1] == state) == alike


def test_a_layout_without_conditions_can_be_described() -> None:
    body = b"\0\2\0\1\0\2ab\2\3"
    (device,) = devices(read(HEADER + section(1, "d", 1, body), handlers=Layouts(SCHEMA))[0])
    entry = {"name": "d", "instance_id": 0, **device.layout}
    description = Description(json.dumps({"devices": [entry]}).encode())
    described, _ = read(HEADER + section(1, "d", 1, body) + EOF, description=description)
    assert devices(described)[0].state == device.state


def test_a_subsection_of_another_version() -> None:
    data = HEADER + section(1, "d", 1, b"\0\0\5\5d/one\0\0\0\2") + EOF
    _, reader = read(data, handlers=Layouts(SCHEMA))
    assert reader.error is not None
    assert reader.error.rule == "vmstate.subsection.version"
