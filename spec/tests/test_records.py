"""Streams written out byte by byte, and what they say; each is also built again."""

import json
from hashlib import sha256
from typing import Any

import pytest

from savevm_spec.errors import GrammarError
from savevm_spec.header import Header
from savevm_spec.stream import build, parse, transcript


def told(data: bytes) -> dict[str, Any]:
    stream = parse(data)
    assert stream.error is None
    assert build(stream) == data
    said = transcript(stream)
    assert json.loads(json.dumps(said)) == said
    return said


def hexed(*lines: str) -> bytes:
    return b"".join(map(bytes.fromhex, lines))


def digest(*pages: tuple[int, bytes]) -> str:
    return sha256(b"".join(address.to_bytes(8) + page for address, page in pages)).hexdigest()


HEADER = hexed("5145564d 00000003")
# A section "dev" with one described field and one section "ram" with one block "b" of two pages
# of 256 bytes: the first is not zero, the second is.
SMALL = hexed(
    "5145564d 00000003",
    "07 00000004 6e6f6e65",
    "05 1e 636f6e66696775726174696f6e2f7461726765742d706167652d62697473 00000001 00000008",
    "01 00000002 03 72616d 00000000 00000004",
    "0000000000000204 01 62 0000000000000200 0000000000000010",
    "7e 00000002",
    "03 00000002",
    "0000000000000008 01 62",
    "a5" * 256,
    "0000000000000122 00 0000000000000010",
    "7e 00000002",
    "04 00000005 03 646576 00000000 00000001",
    "fffe",
    "7e 00000005",
    "00",
)
TEXT = json.dumps(
    {
        "page_size": 256,
        "devices": [
            {
                "name": "dev",
                "instance_id": 0,
                "vmsd_name": "dev",
                "version": 1,
                "fields": [{"name": "a", "type": "int16", "size": 2}],
            }
        ],
    }
).encode()
SMALL_DESCRIBED = SMALL + b"\x06" + len(TEXT).to_bytes(4) + TEXT


def test_a_whole_stream() -> None:
    start = {"record": "section-start", "section_id": 2, "idstr": "ram", "instance_id": 0}
    assert told(SMALL_DESCRIBED) == {
        "dialect": "v3-configuration",
        "version": 3,
        "page_size": 256,
        "footers": True,
        "records": [
            {"record": "header", "offset": 0, "version": 3},
            {
                "record": "configuration",
                "offset": 8,
                "machine": "none",
                "subsections": [
                    {
                        "name": "configuration/target-page-bits",
                        "version": 1,
                        "target_page_bits": 8,
                    }
                ],
            },
            {
                **start,
                "offset": 57,
                "version_id": 4,
                "body": {
                    "kind": "ram",
                    "blocks": [{"idstr": "b", "used_length": 512}],
                    "pages": {},
                    "hooks": 0,
                    "multifd_flushes": 0,
                    "offset": 74,
                    "length": 26,
                },
                "footer": True,
            },
            {
                **start,
                "record": "section-end",
                "offset": 105,
                "version_id": 4,
                "body": {
                    "kind": "ram",
                    "blocks": [],
                    "pages": {"b": {"zero": 1, "fill": 0, "normal": 1}},
                    "hooks": 0,
                    "multifd_flushes": 0,
                    "offset": 110,
                    "length": 283,
                },
                "footer": True,
            },
            {
                "record": "section-full",
                "offset": 398,
                "section_id": 5,
                "idstr": "dev",
                "instance_id": 0,
                "version_id": 1,
                "body": {
                    "kind": "vmstate",
                    "fields": [["a", -2]],
                    "subsections": [],
                    "offset": 415,
                    "length": 2,
                },
                "footer": True,
            },
            {"record": "eof", "offset": 422},
            {"record": "vmdescription", "offset": 423, "length": len(TEXT), "devices": 1},
        ],
        "ram": [{"idstr": "b", "used_length": 512, "digest": digest((0, b"\xa5" * 256))}],
        "findings": [],
        "error": None,
    }


def test_every_truncation_is_noticed() -> None:
    whole = len(SMALL)
    body = SMALL_DESCRIBED.index(b"\xff\xfe")
    for length in range(len(SMALL_DESCRIBED)):
        stream = parse(SMALL_DESCRIBED[:length])
        if length == whole:
            # Nothing announces a description; without it, the footer delimits the body.
            assert stream.error is None
            assert stream.findings == [("section.body.undescribed", body, "dev")]
        else:
            assert stream.error is not None, length
            assert stream.error.offset == length
            assert stream.error.errno == "EIO"


@pytest.mark.parametrize(
    ("dialect", "data"),
    [
        ("v1", hexed("5145564d 00000001")),
        ("v2", hexed("5145564d 00000002 0000000000000000")),
        ("v3-2008", HEADER + hexed("00")),
        ("v3-2008", HEADER + hexed("04 00000000 03 72616d 00000000 00000001 00000000 00")),
        (
            "v3-ram3",
            HEADER + hexed("04 00000000 03 72616d 00000000 00000003 0000000000000010 00"),
        ),
        (
            "v3-ram4",
            HEADER + hexed("04 00000000 03 72616d 00000000 00000004 0000000000000010 00"),
        ),
        ("v3-vmdesc", HEADER + hexed("00 06 0000000e") + b'{"devices":[]}'),
        ("v3-configuration", HEADER + hexed("07 00000001 61 00")),
    ],
)
def test_dialects(dialect: str, data: bytes) -> None:
    assert told(data)["dialect"] == dialect


@pytest.mark.parametrize(
    ("header", "more"),
    [
        ("5145564d 00000001", {}),
        ("5145564d 00000002 0000000000000013", {"total_length": 19}),
    ],
)
def test_records_of_version_1_and_2(header: str, more: dict[str, int]) -> None:
    data = hexed(header, "03 637075 00000001 00000002 00000003 616263")
    said = told(data)
    start = len(hexed(header))
    assert said["records"] == [
        {"record": "header", "offset": 0, "version": said["version"], **more},
        {
            "record": "record",
            "offset": start,
            "idstr": "cpu",
            "instance_id": 1,
            "version_id": 2,
            "body": {
                "kind": "buffer",
                "offset": start + 16,
                "length": 3,
                "sha256": sha256(b"abc").hexdigest(),
            },
        },
    ]
    assert said["page_size"] is None
    assert said["footers"] is None


def test_configuration_subsections() -> None:
    data = HEADER + hexed(
        "07 00000000",
        "05 1a 636f6e66696775726174696f6e2f6361706162696c6974696573 00000001",
        "00000002 06 6576656e7473 07 6d756c74696664",
        "05 12 636f6e66696775726174696f6e2f75756964 00000001 000102030405060708090a0b0c0d0e0f",
        "00",
    )
    said = told(data)
    assert said["records"][1] == {
        "record": "configuration",
        "offset": 8,
        "machine": "",
        "subsections": [
            {
                "name": "configuration/capabilities",
                "version": 1,
                "capabilities": ["events", "multifd"],
            },
            {
                "name": "configuration/uuid",
                "version": 1,
                "uuid": "000102030405060708090a0b0c0d0e0f",
            },
        ],
    }
    assert [finding["rule"] for finding in said["findings"]] == ["configuration.machine.empty"]


@pytest.mark.parametrize(
    ("number", "name", "payload", "rest"),
    [
        (1, "open-return-path", "", b""),
        (2, "ping", "00000001", b""),
        (3, "postcopy-advise", "", b""),
        (3, "postcopy-advise", "0000000000001000 0000000000002000", b""),
        (4, "postcopy-listen", "", b""),
        (5, "postcopy-run", "", b""),
        (6, "postcopy-ram-discard", "00 01 62 00" + "0000000000001000 0000000000002000" * 2, b""),
        (7, "packaged", "00000003", b"\x08\x00\x05"),
        (8, "enable-colo", "", b""),
        (9, "postcopy-resume", "", b""),
        (10, "recv-bitmap", "02 7063", b""),
        (11, "switchover-start", "", b""),
    ],
)
def test_commands(number: int, name: str, payload: str, rest: bytes) -> None:
    length = len(bytes.fromhex(payload)).to_bytes(2)
    data = HEADER + b"\x08" + number.to_bytes(2) + length + bytes.fromhex(payload) + rest + b"\0"
    package = {"package": {"length": len(rest), "sha256": sha256(rest).hexdigest()}}
    assert told(data)["records"][1] == {
        "record": "command",
        "offset": 8,
        "command": number,
        "name": name,
        "payload": bytes.fromhex(payload).hex(),
        **(package if rest else {}),
    }


def test_htab() -> None:
    data = HEADER + hexed(
        "01 00000001 0a 73706170722f68746162 00000000 00000001 00000018",
        "02 00000001 00000000 00000008 0001 0002",
        "0f" * 16,
        "00000010 0000 0001 0000000000000000",
        "03 00000001 ffffffff",
        "00",
    )
    bodies = [record["body"] for record in told(data)["records"][1:4]]
    assert [(body["header"], body["chunks"]) for body in bodies] == [
        (24, []),
        (0, [[8, 1, 2, "0f" * 16], [16, 0, 1, ""]]),
        (0xFFFFFFFF, []),
    ]


def test_storage_attributes() -> None:
    data = HEADER + hexed(
        "01 00000001 17 733339302d73746f726167655f61747472696275746573 00000000 00000000",
        "0000000000003002 0000000000000002 0304",
        "0000000000000008 0000000000000001",
        "00",
    )
    assert told(data)["records"][1]["body"]["words"] == [
        {"flag": "more", "address": 0x3000, "data": "0304"},
        {"flag": "done", "address": 0},
        {"flag": "eos", "address": 0},
    ]


def test_block() -> None:
    mebibyte = bytes(range(256)) * 4096
    data = HEADER + hexed("01 00000001 05 626c6f636b 00000000 00000001")
    data += hexed("0000000000000204 0000000000000001 03 686461") + mebibyte
    data += hexed("0000000000100001 03 686462") + mebibyte + hexed("0000000000100009 03 686461")
    data += hexed("000000000000c804 fffffffffffffe02 00")
    body = told(data)["records"][1]["body"]
    assert (body["kind"], body["length"]) == ("block", len(data) - 28)
    assert body["progress"] == [1, 100]
    zero = bytes(8)
    at_1_mib = (0x800).to_bytes(8)
    assert body["devices"] == {
        "hda": {"normal": 1, "zero": 1, "sha256": sha256(zero + mebibyte + at_1_mib).hexdigest()},
        "hdb": {"normal": 1, "zero": 0, "sha256": sha256(at_1_mib + mebibyte).hexdigest()},
    }


def test_a_body_without_description_ends_at_its_footer() -> None:
    data = HEADER + hexed(
        "07 00000001 61",
        "04 00000009 03 646576 00000000 00000001",
        "01 7e00000009 ff 02",
        "7e 00000009",
        "00",
    )
    said = told(data)
    assert said["footers"] is True
    assert said["records"][2]["body"] == {
        "kind": "opaque",
        "offset": 31,
        "length": 8,
        "sha256": sha256(hexed("01 7e00000009 ff 02")).hexdigest(),
    }


def test_a_body_without_description_and_footer_takes_the_rest() -> None:
    data = HEADER + hexed("04 00000009 03 646576 00000000 00000001", "ab 7e00000009 00")
    said = told(data)
    assert said["footers"] is False
    assert said["records"][-1]["footer"] is False
    assert said["records"][-1]["body"]["kind"] == "undelimited"
    assert said["records"][-1]["body"]["length"] == 7
    assert [(f["rule"], f["offset"]) for f in said["findings"]] == [
        ("section.body.undescribed", 25),
        ("stream.undelimited", 25),
    ]


def test_a_version_2_stream_ends_where_its_total_length_says() -> None:
    data = hexed("5145564d 00000002 0000000000000000", "ff")
    assert told(data)["findings"] == [
        {"rule": "stream.trailing-data", "offset": 16, "section": None}
    ]


def test_a_record_type_parses_by_itself() -> None:
    assert Header.parse(HEADER).version == 3
    assert Header.build({"version": 3, "total_length": None}) == HEADER
    with pytest.raises(GrammarError, match=r"header\.magic"):
        Header.parse(b"MVEQ" + HEADER[4:])


@pytest.mark.parametrize("data", [b"", b"Q" * 100, bytes(100), HEADER + b"\xff" * 100])
def test_noise_is_an_error_and_nothing_else(data: bytes) -> None:
    stream = parse(data)
    said = transcript(stream)
    assert stream.error is not None
    assert said["error"] == {
        "rule": stream.error.rule,
        "offset": stream.error.offset,
        "section": None,
        "errno": stream.error.errno,
    }
