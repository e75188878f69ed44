"""RAM without block names: versions 1 and 2, in records and in sections, and version 3."""

import zlib
from hashlib import sha256
from itertools import pairwise
from struct import pack
from typing import Any

import pytest

from savevm_spec.constants import RAM_VERSIONS
from savevm_spec.ram.body import RAM
from savevm_spec.stream import build, parse, transcript

V1 = b"QEVM" + pack(">I", 1)
V3 = b"QEVM" + pack(">I", 3)
ZERO, SIZE, PAGE, EOS = 0x02, 0x04, 0x08, 0x10
RANGE = bytes(range(256))


def record(version: int, body: bytes) -> bytes:
    return b"\x03ram" + pack(">III", 0, version, len(body)) + body


def section(version: int, body: bytes, kind: int = 4) -> bytes:
    return bytes([kind]) + pack(">IB", 1, 3) + b"ram" + pack(">II", 0, version) + body


def word(address: int, flags: int) -> bytes:
    return pack(">Q", address | flags)


def chunks(data: bytes, *ends: int) -> bytes:
    """``data`` in chunks that end at ``ends``, and the last of them with it."""
    bounds = [0, *ends, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds)]
    return b"".join(b"\xfa\xbe" + pack(">H", len(piece)) + piece for piece in pieces)


def told(data: bytes) -> dict[str, Any]:
    stream = parse(data)
    assert stream.error is None, stream.error
    assert build(stream) == data
    return transcript(stream)


def digest(*pages: tuple[int, bytes]) -> str:
    return sha256(b"".join(pack(">Q", address) + page for address, page in pages)).hexdigest()


PLAIN = pack(">I", 16384) + b"\1\0" + b"\0" + RANGE * 16 + b"\1\x55" + b"\0" + bytes(4096)
PLAIN_TOLD = {
    "kind": "ram",
    "length": len(PLAIN),
    "blocks": [{"idstr": "ram", "used_length": 16384}],
    "pages": {"ram": {"zero": 1, "fill": 1, "normal": 2}},
    "hooks": 0,
    "multifd_flushes": 0,
}
TEXT = b"\0" + bytes(1024) + b"\0" + RANGE * 4
PACKED = zlib.compress(TEXT, 1)
CHUNKED_TOLD = {
    "kind": "ram",
    "blocks": [{"idstr": "ram", "used_length": 2048}],
    "pages": {"ram": {"zero": 0, "fill": 0, "normal": 2}},
    "hooks": 0,
    "multifd_flushes": 0,
}


def test_version_1_as_a_record() -> None:
    said = told(V1 + record(1, PLAIN))
    assert said["records"][1]["body"] == {**PLAIN_TOLD, "offset": 24}
    assert said["ram"] == [
        {
            "idstr": "ram",
            "used_length": 16384,
            "digest": digest((4096, RANGE * 16), (8192, b"\x55" * 4096)),
        }
    ]
    assert (said["page_size"], said["dialect"], said["findings"]) == (None, "v1", [])


@pytest.mark.parametrize("kind", [1, 4])
def test_version_1_as_a_section(kind: int) -> None:
    said = told(V3 + section(1, PLAIN, kind) + b"\0")
    assert said["records"][1]["body"] == {**PLAIN_TOLD, "offset": 25}
    assert said["page_size"] is None
    assert said["footers"] is False


def test_a_part_has_the_version_of_its_start() -> None:
    said = told(V3 + section(1, PLAIN, 1) + b"\x03" + pack(">I", 1) + PLAIN + b"\0")
    assert said["records"][2]["body"]["pages"] == PLAIN_TOLD["pages"]
    assert said["records"][2]["version_id"] == 1


def test_every_version_is_read() -> None:
    assert tuple(RAM) == RAM_VERSIONS


def test_no_ram_at_all() -> None:
    said = told(V1 + record(1, bytes(4)) + record(2, bytes(4)))
    assert said["ram"] == [{"idstr": "ram", "used_length": 0, "digest": digest()}]
    assert [r["body"]["pages"] for r in said["records"][1:]] == [{}, {}]
    assert said["records"][2]["body"]["chunks"] == 0


def test_what_a_record_has_behind_the_body() -> None:
    said = told(V1 + record(1, PLAIN + b"\1\0\xff") + record(1, PLAIN))
    body = said["records"][1]["body"]
    assert (body["length"], body["rest"]) == (len(PLAIN), 3)
    assert said["findings"] == [
        {"rule": "record.body.rest", "offset": 24 + len(PLAIN), "section": "ram"}
    ]
    assert "rest" not in said["records"][2]["body"]


@pytest.mark.parametrize("ends", [(), (1,), (40,), tuple(range(1, len(PACKED)))])
def test_version_2(ends: tuple[int, ...]) -> None:
    body = pack(">I", 2048) + chunks(PACKED, *ends)
    told_of_body = {**CHUNKED_TOLD, "length": len(body), "chunks": 1 + len(ends)}
    in_record = told(V1 + record(2, body))
    in_section = told(V3 + section(2, body) + b"\0")
    assert in_record["records"][1]["body"] == {**told_of_body, "offset": 24}
    assert in_section["records"][1]["body"] == {**told_of_body, "offset": 25}
    assert in_record["ram"] == in_section["ram"]
    assert in_record["ram"][0]["digest"] == digest((1024, RANGE * 4))
    assert (in_section["page_size"], in_section["dialect"]) == (None, "v3-2008")


@pytest.mark.parametrize("behind", [b"", b"\xfa", b"\xfa\0", b"\0\xbe"])
def test_the_zlib_stream_need_not_end(behind: bytes) -> None:
    body = pack(">I", 2048) + chunks(PACKED[:-4])
    said = told(V1 + record(2, body + behind))
    assert said["records"][1]["body"].get("rest", 0) == len(behind)


def test_what_follows_an_ended_zlib_stream_is_no_chunk() -> None:
    body = pack(">I", 2048) + chunks(PACKED)
    said = told(V1 + record(2, body + b"\xfa\xbe\0\1\0"))
    assert said["records"][1]["body"]["chunks"] == 1
    assert said["records"][1]["body"]["rest"] == 5


def test_a_zlib_stream_without_ram() -> None:
    said = told(V3 + section(2, pack(">I", 0) + chunks(zlib.compress(b""))) + b"\0")
    assert said["records"][1]["body"]["chunks"] == 1


def test_another_body_replaces_the_ram() -> None:
    again = pack(">I", 4096) + chunks(zlib.compress((b"\0" + RANGE * 4) * 4))
    said = told(V1 + record(1, pack(">IBB", 4096, 1, 0)) + record(2, again))
    pages = [(address, RANGE * 4) for address in range(0, 4096, 1024)]
    assert said["ram"][0]["digest"] == digest(*pages)


def test_version_3() -> None:
    page = RANGE * 16
    said = told(
        V3
        + section(3, word(12288, SIZE) + word(12288, SIZE) + word(0, PAGE) + page, kind=1)
        + word(4096, ZERO)
        + b"\xff"
        + word(8192, ZERO)
        + b"\0"
        + word(0, EOS)
        + b"\x03"
        + pack(">I", 1)
        + word(0, ZERO)
        + b"\0"
        + word(0, EOS)
        + b"\0"
    )
    start, end = (r["body"] for r in said["records"][1:3])
    assert start == {
        "kind": "ram",
        "offset": 25,
        "length": 16 + 8 + 4096 + 9 + 9 + 8,
        "blocks": [{"idstr": "ram", "used_length": 12288}] * 2,
        "pages": {"ram": {"zero": 1, "fill": 1, "normal": 1}},
        "hooks": 0,
        "multifd_flushes": 0,
    }
    assert (end["blocks"], end["pages"]) == ([], {"ram": {"zero": 1, "fill": 0, "normal": 0}})
    assert said["ram"][0]["digest"] == digest((4096, b"\xff" * 4096))
    assert (said["page_size"], said["dialect"], said["findings"]) == (4096, "v3-ram3", [])


def zeros(size: int) -> bytes:
    return word(0, ZERO) + b"\0" + word(size, ZERO) + b"\0"


def pages(size: int) -> bytes:
    return word(0, PAGE) + bytes(size) + word(size, PAGE) + bytes(size)


@pytest.mark.parametrize("size", [256, 1024, 4096, 8192, 65536])
@pytest.mark.parametrize("shown", [zeros, pages])
def test_the_page_size_shows_in_the_first_two_records(shown: Any, size: int) -> None:
    said = told(V3 + section(3, word(1 << 17, SIZE) + shown(size) + word(0, EOS)) + b"\0")
    assert said["page_size"] == size


def test_the_page_size_is_4096_where_nothing_shows_it() -> None:
    body = word(1 << 17, SIZE) + word(0, ZERO) + b"\0" + word(12288, PAGE) + bytes(4096)
    assert told(V3 + section(3, body + word(0, EOS)) + b"\0")["page_size"] == 4096
