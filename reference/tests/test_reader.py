"""The reader: events, chunking, truncation."""

import random
import struct
import time
from pathlib import Path

import pytest
from streams import (
    EOF,
    EOS,
    HEADER,
    accepted_vectors,
    blocks,
    configuration,
    guest,
    page,
    part,
    start,
    vmdescription,
    word,
    zero,
)

from savevm.sink import Sink
from savevm.stream.events import Event, PageRun
from savevm.stream.reader import Reader
from savevm.transcript import rebuild, transcribe
from savevm.vmdesc import find_description

P = 4096


def read(
    data: bytes, sizes: list[int] | None = None, **options: object
) -> tuple[list[Event], Reader]:
    reader = Reader(**options)  # type: ignore[arg-type]
    events: list[Event] = []
    at = 0
    for size in sizes if sizes is not None else [len(data)]:
        events += reader.feed(data[at : at + size])
        at += size
    return events + reader.finish(), reader


class Collected(Sink):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, bytes]] = []

    def page_data(self, block: str, address: int, data: bytes, start: int, end: int) -> None:
        self.calls.append((block, address, data[start:end]))


def test_pages_come_as_runs() -> None:
    a, b, c = (bytes((n,)) * P for n in (1, 2, 3))
    data = guest(zero(0, "r"), zero(P), zero(2 * P), page(3 * P, a), page(4 * P, b), page(8 * P, c))
    sink = Collected()
    events, reader = read(data, sink=sink)
    assert reader.error is None
    runs = [e for e in events if isinstance(e, PageRun)]
    assert [(r.fill, r.address, r.count, r.named) for r in runs] == [
        (0, 0, 3, True),
        (-1, 3 * P, 2, False),
        (-1, 8 * P, 1, False),
    ]
    assert sink.calls == [("r", 3 * P, a), ("r", 4 * P, b), ("r", 8 * P, c)]
    assert rebuild(data) == data


def test_current_block_outlives_its_section() -> None:
    data = (
        HEADER
        + configuration()
        + start(2, "ram", blocks(("a", P), ("b", P)) + zero(0, "b") + EOS)
        + part(2, zero(0) + EOS)
        + EOF
    )
    transcript = transcribe(data)
    assert transcript["error"] is None
    assert transcript["records"][3]["body"]["pages"] == {"b": {"zero": 1, "fill": 0, "normal": 0}}


@pytest.mark.parametrize("size", [256, 1024, 4096, 8192, 16384, 65536])
def test_page_size_is_inferred_from_the_first_two_records(size: int) -> None:
    contents = bytes(range(256)) * (size // 256)
    for first in (zero(0, "r"), page(0, contents, "r")):
        data = guest(first, page(size, contents), size=4 * size)
        transcript = transcribe(data)
        assert transcript["error"] is None
        assert transcript["page_size"] == size
        assert rebuild(data) == data


@pytest.mark.parametrize("path", accepted_vectors(), ids=lambda p: p.parent.name)
def test_chunks_do_not_matter(path: Path) -> None:
    data = path.read_bytes()
    randomness = random.Random(path.parent.name)
    cuts = [randomness.choice((1, 2, 7, 100, 5000)) for _ in range(len(data))]
    for description in (None, find_description(data)):
        whole, reader = read(data, description=description)
        for sizes in ([1] * len(data), cuts):
            events, other = read(data, sizes, description=description)
            assert events == whole
            assert str(other.error) == str(reader.error)
            assert (other.page_size, other.footers) == (reader.page_size, reader.footers)


@pytest.mark.parametrize("path", accepted_vectors(), ids=lambda p: p.parent.name)
def test_a_pipe_gives_the_same_devices_as_a_file(path: Path) -> None:
    data = path.read_bytes()
    described, reader = read(data, description=find_description(data))
    piped, _ = read(data)
    if reader.error is None and reader.page_size in (None, 4096):
        assert piped == described


def test_description_with_repeated_keys_and_a_wrong_length_is_no_description() -> None:
    assert find_description(EOF + vmdescription(b"{}")) is None
    assert find_description(EOF + vmdescription(b'{"devices":1}')) is None
    found = find_description(EOF + vmdescription(b'{"devices":[],"devices":[1]}'))
    assert found is not None
    assert found.devices == []


def test_the_description_that_reaches_to_the_end_counts() -> None:
    inner = vmdescription(b'{"devices":[1]}')
    outer = EOF + inner + b"x" + EOF + vmdescription(b'{"devices":[]}')
    found = find_description(outer)
    assert found is not None
    assert found.devices == []
    trailing = find_description(outer + b"y")
    assert trailing is not None
    assert trailing.devices == []


def test_a_page_size_that_nothing_shows_is_waited_for() -> None:
    """The first block has a single page, so only the description tells how large that is."""
    contents = bytes(range(256)) * 32
    listed = start(2, "ram", blocks(("one", 8192), ("two", 16384)) + EOS)
    pages = page(0, contents, "one") + zero(0, "two") + zero(8192)
    data = HEADER + configuration() + listed + part(2, pages + EOS) + EOF
    data += vmdescription(b'{"page_size":8192,"devices":[]}')
    for description in (None, find_description(data)):
        events, reader = read(data, [100] * (len(data) // 100 + 1), description=description)
        assert reader.error is None
        assert reader.page_size == 8192
        runs = [(e.block, e.fill, e.count) for e in events if isinstance(e, PageRun)]
        assert runs == [("one", -1, 1), ("two", 0, 2)]


def test_an_empty_block_name_is_a_name() -> None:
    data = guest(zero(0), size=P).replace(b"\1r", b"\0")
    assert transcribe(data)["error"]["rule"] == "ram.page.continue-needs-block"
    assert transcribe(guest(zero(0, ""), size=P).replace(b"\1r", b"\0"))["error"] is None


def test_lists_are_read_in_linear_time() -> None:
    """Every element of the array has all groups of the list, as the description would have it."""
    groups = b",".join([b'"vmsd_name":"e","version":1,"fields":[]'] * 4000)
    field = b'{"name":"l","array_len":%d,"type":"qlist","size":4001,' + groups + b"}"
    text = b'{"devices":[{"name":"d","instance_id":0,"vmsd_name":"d","version":1,"fields":[%s]}]}'
    body = (b"\1" * 4000 + b"\0") * 100
    data = HEADER + configuration() + start(1, "d", body, version=1, kind=4) + EOF
    data += vmdescription(text % (field % 100))
    before = time.process_time()
    assert transcribe(data)["error"] is None
    assert time.process_time() - before < 10


def test_huge_word_is_outside_every_block() -> None:
    data = guest(zero(0, "r"), word(1 << 63 | 0x22) + b"\0")
    error = transcribe(data)["error"]
    assert error["rule"] == "ram.page.outside-block"


def test_memory_is_not_taken_for_what_only_is_announced() -> None:
    body = word(1 << 62 | 4) + b"\1r" + word(1 << 62) + EOS
    data = HEADER + configuration() + start(2, "ram", body) + EOF
    transcript = transcribe(data)
    assert transcript["error"] is None
    assert transcript["ram"][0]["used_length"] == 1 << 62


def test_waiting_for_a_description_is_bounded() -> None:
    reader = Reader(undescribed_limit=1000)
    reader.feed(HEADER + configuration() + start(5, "x", b"", version=1, kind=4, end=b""))
    for _ in range(20):
        reader.feed(bytes(100))
    assert reader.error is not None
    assert reader.error.rule == "limit.undescribed"
    assert reader.error.section == "x"
    assert reader.error.offset == len(HEADER + configuration()) + 15
    assert reader.feed(b"") == []


@pytest.mark.parametrize("size", [256, 1024, 4096, 65536])
def test_long_sequences_of_zero_pages(size: int) -> None:
    """Compared in groups, they give the same runs as record by record."""
    randomness = random.Random(size)
    # Across several groups, and broken off in the middle of one.
    lengths = [63, 64, 65, 700, (3 << 24) // size + 5 if size >= 1024 else 1000, 129, 1, 5000]
    records: list[bytes] = []
    expected: list[tuple[int, int, int]] = []
    at = randomness.randrange(1 << 20) * size
    for length in lengths:
        records += [zero(at + i * size) for i in range(length)]
        expected.append((0, at, length))
        at += length * size
        match randomness.randrange(3):
            case 0:
                at += randomness.randrange(1, 5) * size
            case 1:
                records.append(zero(at, fill=1))
                expected.append((1, at, 1))
                at += size
            case 2:
                records.append(page(at, b"\xaa" * size))
                expected.append((-1, at, 1))
                at += size
    used = at
    records[0] = zero(expected[0][1], "r")
    bits = (
        b"\5" + b"\x1econfiguration/target-page-bits" + struct.pack(">II", 1, size.bit_length() - 1)
    )
    listed = start(2, "ram", blocks(("r", used)) + EOS)
    data = HEADER + configuration("none", bits) + listed
    data += part(2, b"".join(records) + zero(used) + EOS)
    sizes = [randomness.choice((1, 9, 600, 262144)) for _ in range(len(data) // 9)]
    for cuts in (None, sizes):
        events, reader = read(data, cuts)
        runs = [(e.fill, e.address, e.count) for e in events if isinstance(e, PageRun)]
        assert runs == expected
        # The page behind the last belongs to no block.
        assert reader.error is not None
        assert reader.error.rule == "ram.page.outside-block"


def test_large_chunks_are_not_joined_for_what_straddles_them() -> None:
    """Chunks long enough for the short cut, cut at every place of a record, also within a name."""
    contents = bytes(range(256)) * 16
    records = [zero(0, "r"), *(zero(P * i) for i in range(1, 4000))]
    for i in range(4000, 4100):
        records += [page(P * i, contents, "r" if i % 3 else None), zero(P * i, "r")]
    data = guest(*records, size=P * 5000)
    whole, reader = read(data)
    assert reader.error is None
    for shift in range(12):
        first = 33_000 + shift
        events, other = read(data, [first, 40_000 + shift, 70_000, 1, 2, len(data)])
        assert other.error is None
        assert events == whole
    events, other = read(data[:-20], [33_001, 40_002, 70_003, len(data)])
    _, at_once = read(data[:-20])
    assert str(other.error) == str(at_once.error)


def test_compressed_input_is_named() -> None:
    _, reader = read(b"\xfd7zXZ\0rest of it")
    assert "looks compressed with xz" in str(reader.error)
