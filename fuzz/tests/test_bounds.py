"""What a stream costs: memory that its bytes justify, and work in proportion to them."""

import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from boards import Board, Counter, Log
from streams import (
    EOF,
    EOS,
    HEADER,
    blocks,
    configuration,
    counted,
    footer,
    guest,
    page,
    part,
    vmdescription,
    word,
    zero,
)
from streams import start as section
from verdicts import agreed, good

from savevm.channel import Channel
from savevm.savevm import Format, Loader, LoadError, save
from savevm.stream import reader as reader_module
from savevm.stream.reader import Reader
from savevm.transcript import transcribe
from savevm.transport.memory import MemoryInput, MemoryOutput
from savevm.vmdesc import find_description
from savevm_fuzz.seeds import Seed
from savevm_spec.stream import parse

# Bytes of streams that are changed, and how much more than the unchanged one each may take.
SMALL = 3000
MORE = 1 << 18
NUMBERS = (1 << 31, (1 << 31) - 1, (1 << 62) + 1, 1 << 63, (1 << 64) - 1)
TEXTS = (b"2147483647", b"4611686018427387904", b"1" + b"0" * 40, b"-2147483648")
# A number in a description.
NUMBER = re.compile(rb'"(\w+)": ?(-?\d+)')


def enlarged(seed: Seed) -> Iterator[tuple[str, bytes]]:
    """A stream with every number that it has made large, and what was made so."""
    data, done = seed.data, set()
    for field in seed.fields:
        if field.length in (1, 2, 4, 8) and (field.path, field.section) not in done:
            done.add((field.path, field.section))
            for number in NUMBERS:
                large = (number & (1 << 8 * field.length) - 1).to_bytes(field.length)
                yield field.path, data[: field.offset] + large + data[field.end :]
        elif field.path == "body.vmdescription.text":
            yield from in_text(data, field.offset, field.end)


def in_text(data: bytes, begin: int, end: int) -> Iterator[tuple[str, bytes]]:
    """The same for the numbers of a description, whose length is in the four bytes before."""
    text, done = data[begin:end], set()
    for found in NUMBER.finditer(text):
        if found[1] not in done:
            done.add(found[1])
            for large in TEXTS:
                new = text[: found.start(2)] + large + text[found.end(2) :]
                yield found[1].decode(), data[: begin - 4] + len(new).to_bytes(4) + new + data[end:]


def peak(run: Callable[[bytes], object], data: bytes) -> int:
    """Bytes that were allocated at most."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    run(data)
    return tracemalloc.get_traced_memory()[1] - before


@pytest.fixture(scope="module")
def warm() -> None:
    """Rules and schemas are loaded once, and kept."""
    for seed, _ in good():
        parse(seed.data[:-1])
        transcribe(seed.data[:-1])


@pytest.fixture
def traced(warm: None) -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def first_of_each_path() -> Iterator[Seed]:
    """Few streams that have all fields there are."""
    seen: set[str] = set()
    for seed, _ in good():
        if len(seed.data) <= SMALL and not {field.path for field in seed.fields} <= seen:
            seen |= {field.path for field in seed.fields}
            yield seed


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("run", [transcribe, parse], ids=["reference", "grammar"])
def test_no_number_makes_a_reader_take_memory(run: Callable[[bytes], object]) -> None:
    for seed in first_of_each_path():
        usual = peak(run, seed.data)
        for what, data in enlarged(seed):
            assert peak(run, data) < 2 * usual + MORE, (seed.name, what)


def board() -> Board:
    return Board(Log("log"), Counter("later"))


def loading(data: bytes) -> None:
    loader = Loader(board().registry, "board")
    try:
        loader.feed(data)
        loader.finish()
    except LoadError:
        pass


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("dialect", ["v3-configuration", "v3-ram4", "v3-ram3", "v3-2008", "v2"])
def test_no_number_makes_a_machine_take_memory(dialect: str) -> None:
    output, source = MemoryOutput(), Board() if dialect == "v2" else board()
    source.blocks[0].write(0, bytes(range(256)) * 16)
    save(source.registry, Channel(output), Format(dialect, "board"))
    seed = Seed(dialect, bytes(output.data))
    usual = peak(loading, seed.data)
    for what, data in enlarged(seed):
        assert peak(loading, data) < 2 * usual + MORE, what


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "read", [lambda c: c.read(1 << 62), lambda c: c.read_whole(1 << 62)], ids=["some", "whole"]
)
def test_a_channel_takes_no_more_than_comes(read: Callable[[Channel], bytes]) -> None:
    assert peak(lambda data: read(Channel(MemoryInput(data))), b"little") < 1 << 20


def described(fields: list[dict[str, Any]], body: bytes, **more: Any) -> bytes:
    device = {"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 1, "fields": fields}
    text = json.dumps({"page_size": 4096, "devices": [device | more]}).encode()
    return (
        HEADER
        + configuration()
        + section(3, "dev", body, version=1, kind=4)
        + EOF
        + vmdescription(text)
    )


def subsection(number: int) -> tuple[dict[str, Any], bytes]:
    name = f"dev/{number}"
    return {"vmsd_name": name, "version": 1, "fields": []}, b"\5" + counted(name) + b"\0\0\0\1"


def with_subsections(n: int) -> bytes:
    layouts, bodies = zip(*map(subsection, range(n)), strict=True)
    return described([], b"".join(bodies), subsections=list(layouts))


def with_blocks(n: int) -> bytes:
    listed = blocks(*((f"r{i}", 4096) for i in range(n))) + EOS
    pages = b"".join(zero(0, f"r{i}") for i in range(n)) + EOS
    ram = section(2, "ram", listed) + part(2, pages) + part(2, EOS, kind=3)
    return HEADER + configuration() + ram + EOF


U8 = {"type": "uint8", "size": 1}
# Streams of any length, of much that is alike.
SHAPES: dict[str, Callable[[int], bytes]] = {
    "pages": lambda n: guest(
        zero(0, "r"), *(page(4096 * i, b"p" * 4096) for i in range(1, n)), size=4096 * n
    ),
    "empty pages": lambda n: guest(
        zero(0, "r"), *(zero(4096 * i) for i in range(1, n)), size=4096 * n
    ),
    "the same page": lambda n: guest(zero(0, "r"), *(zero(0, fill=1) for _ in range(n))),
    "blocks": with_blocks,
    "sections": lambda n: (
        HEADER
        + configuration()
        + b"".join(section(i, f"d{i}", b"body", version=1, kind=4) for i in range(n))
        + EOF
    ),
    "parts": lambda n: (
        HEADER
        + configuration()
        + section(2, "ram", blocks(("r", 4096)) + EOS)
        + part(2, EOS) * n
        + part(2, EOS, kind=3)
        + EOF
    ),
    "commands": lambda n: HEADER + configuration() + b"\10\0\2\0\4\0\0\0\1" * n + EOF,
    "words": lambda n: guest(word(0x200) * n),
    "body without a description": lambda n: (
        HEADER + configuration() + section(3, "dev", bytes(n), version=1, kind=4) + EOF
    ),
    "body that looks like footers": lambda n: (
        HEADER + configuration() + section(3, "dev", footer(3) * n, version=1, kind=4) + EOF
    ),
    "fields": lambda n: described([{"name": f"f{i}", **U8} for i in range(n)], bytes(n)),
    "array": lambda n: described([{"name": "f", "array_len": n, **U8}], bytes(n)),
    "elements": lambda n: described([{"name": "f", "index": i, **U8} for i in range(n)], bytes(n)),
    "subsections": with_subsections,
    "records of version 1": lambda n: (
        b"QEVM\0\0\0\1" + (counted("dev") + bytes(7) + b"\1" + b"\0\0\0\4body") * n
    ),
}


def lines(run: Callable[[bytes], object], data: bytes) -> int:
    """How many lines of Python it takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run(data)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", SHAPES)
def test_work_is_in_proportion_to_the_input(shape: str) -> None:
    make = SHAPES[shape]
    told = agreed(make(64))
    assert told["outcome"] == "accept", told
    for run in (transcribe, parse):
        few, more, most = (lines(run, make(n)) for n in (40, 120, 200))
        # What is the same for all is in the first difference and in the second.
        assert most - more <= 1.2 * (more - few) + 100, (shape, few, more, most)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_byte_at_a_time_is_joined_once(shape: str) -> None:
    if not str(reader_module.__file__).endswith(".py"):
        pytest.skip("only what is not compiled can be counted")

    class Counting(Reader):
        joined = 0

        def _run(self) -> None:
            self.joined += self._buffered
            super()._run()

    data = SHAPES[shape](16)
    for description in (None, find_description(data)):
        reader = Counting(description=description)
        for at in range(len(data)):
            reader.feed(data[at : at + 1])
        reader.finish()
        assert reader.error is None
        # A word or a string that has not come whole is looked at again when it has.
        assert reader.joined < 3 * len(data)
