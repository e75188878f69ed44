"""RAM bodies: page sizes, placing of pages, blocks, and how much of it there may be."""

import time
from collections.abc import Callable
from hashlib import sha256
from struct import pack
from typing import Any

import pytest

from savevm_spec.ram.pages import infer_page_size
from savevm_spec.stream import build, parse, transcript

HEADER = b"QEVM" + pack(">I", 3)
START = b"\x01" + pack(">IB", 1, 3) + b"ram" + pack(">II", 0, 4)
PART = b"\x02" + pack(">I", 1)
ZERO, SIZE, PAGE, EOS, CONTINUE, HOOK, FLUSH = 0x02, 0x04, 0x08, 0x10, 0x20, 0x80, 0x200


def word(address: int, flags: int) -> bytes:
    return pack(">Q", address | flags)


def blocks(**listed: int) -> bytes:
    entries = [
        pack(">B", len(name)) + name.encode() + pack(">Q", size) for name, size in listed.items()
    ]
    return word(sum(listed.values()), SIZE) + b"".join(entries)


def told(*words: bytes) -> dict[str, Any]:
    data = HEADER + START + b"".join(words) + word(0, EOS) + b"\0"
    stream = parse(data)
    assert stream.error is None
    assert build(stream) == data
    return transcript(stream)


def digest(*pages: tuple[int, bytes]) -> str:
    return sha256(b"".join(pack(">Q", address) + page for address, page in pages)).hexdigest()


def test_blocks_keep_the_order_of_the_list() -> None:
    said = told(blocks(vga=4096, pc=8192))
    assert [block["idstr"] for block in said["ram"]] == ["vga", "pc"]
    assert said["page_size"] is None
    assert said["ram"][0]["digest"] == digest()


def test_the_last_content_of_a_page_counts() -> None:
    one, two, zero = b"\x01" * 4096, bytes(range(256)) * 16, bytes(4096)
    said = told(
        blocks(a=16384, b=4096),
        word(8192, PAGE) + b"\x01a" + one,
        word(0, PAGE | CONTINUE) + one,
        word(4096, PAGE | CONTINUE) + one,
        word(0, ZERO) + b"\x01b\x07",
        word(0, HOOK) + word(0, FLUSH),
        word(8192, PAGE) + b"\x01a" + two,
        word(0, ZERO | CONTINUE) + b"\x00",
        word(4096, PAGE | CONTINUE) + zero,
    )
    assert [block["digest"] for block in said["ram"]] == [
        digest((8192, two)),
        digest((0, b"\x07" * 4096)),
    ]
    body = said["records"][1]["body"]
    assert body["pages"] == {
        "a": {"zero": 1, "fill": 0, "normal": 5},
        "b": {"zero": 0, "fill": 1, "normal": 0},
    }
    assert (body["hooks"], body["multifd_flushes"]) == (1, 1)


def test_the_current_block_outlives_its_body() -> None:
    said = told(
        blocks(a=8192) + word(0, ZERO) + b"\x01a\x00" + word(0, EOS),
        PART + word(4096, ZERO | CONTINUE) + b"\x00",
    )
    assert said["records"][2]["body"]["pages"] == {"a": {"zero": 1, "fill": 0, "normal": 0}}


def test_a_block_may_be_listed_again() -> None:
    said = told(blocks(a=8192), blocks(a=8192), word(4096, ZERO) + b"\x01a\x00")
    assert said["ram"] == [{"idstr": "a", "used_length": 8192, "digest": digest()}]
    assert said["records"][1]["body"]["blocks"] == [{"idstr": "a", "used_length": 8192}] * 2


def zeros(size: int) -> bytes:
    return word(0, ZERO) + b"\x01a\x00" + word(size, ZERO | CONTINUE) + b"\x00"


def pages(size: int) -> bytes:
    return word(0, PAGE) + b"\x01a" + bytes(size) + word(size, PAGE | CONTINUE) + bytes(size)


@pytest.mark.parametrize("size", [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
@pytest.mark.parametrize("records", [zeros, pages])
def test_the_page_size_shows_in_the_first_two_records(
    records: Callable[[int], bytes], size: int
) -> None:
    assert told(blocks(a=65536 * 2), records(size))["page_size"] == size


@pytest.mark.parametrize(
    "data",
    [
        word(0, ZERO),
        word(0, ZERO) + b"\x01a\x00",
        word(0, ZERO) + b"\x01a\x00" + word(4096 * 3, ZERO | CONTINUE),
        word(0, ZERO) + b"\x01a\x00" + word(128, ZERO | CONTINUE),
        word(0, ZERO) + b"\x01a\x00" + word(8192, ZERO),
        word(0, PAGE) + b"\x01a" + bytes(65536),
    ],
)
def test_the_page_size_is_4096_where_nothing_shows_it(data: bytes) -> None:
    assert infer_page_size(data, 0, named=True) == 4096


def test_a_guest_of_128_mib_is_read_in_seconds() -> None:
    size = 128 << 20
    records = (word(address, ZERO | CONTINUE) + b"\0" for address in range(4096, size, 4096))
    started = time.perf_counter()
    said = told(blocks(a=size), word(0, ZERO) + b"\x01a\x00", *records)
    assert time.perf_counter() - started < 10
    assert said["records"][1]["body"]["pages"]["a"]["zero"] == 32768
