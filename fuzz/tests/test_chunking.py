"""In whatever pieces a stream comes, it says the same, to who reads it and to who loads it."""

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import pytest
from boards import Board, Counter, Log
from hypothesis import given, settings
from hypothesis import strategies as st

from savevm.channel import Channel
from savevm.rebuild import Rebuilder
from savevm.savevm import Format, Loader, LoadError, save
from savevm.stream.reader import Reader
from savevm.transcript import Memory, Transcriber
from savevm.transport.memory import MemoryOutput
from savevm.vmdesc import find_description
from savevm_fuzz.mutations import mutate
from savevm_fuzz.seeds import Seed, seeds
from savevm_fuzz.strategies import streams

SEEDS = [seed for seed in seeds() if len(seed.data) <= 1 << 14]
# Bytes: of the streams that are read one byte at a time, and of those in small pieces.
TINY = 1 << 10
LARGEST = 1 << 15

SIZES = st.lists(
    st.sampled_from((0, 1, 1, 2, 3, 5, 8, 100, 511, 513, 5000)), min_size=1, max_size=8
)


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Of these sizes by turns, and the rest as one where all are 0."""
    sizes = list(sizes)
    at = 0
    while any(sizes) and at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size
    yield data[at:]


def said(chunks: Iterable[bytes], description: bytes | None) -> dict[str, Any]:
    """The transcript of a reader that has or has not seen the end of ``description`` before."""
    memory = Memory()
    transcriber = Transcriber(memory)
    known = None if description is None else find_description(description)
    reader = Reader(description=known, sink=memory)
    for chunk in chunks:
        transcriber.add(reader.feed(chunk))
    transcriber.add(reader.finish())
    return transcriber.result(reader) | {"trailing": reader.trailing}


def written_again(chunks: Iterable[bytes], description: bytes) -> bytes:
    """What a writer makes of it."""
    rebuilder = Rebuilder()
    reader = Reader(description=find_description(description), sink=rebuilder.sink)
    out = [rebuilder.write(reader.feed(chunk), reader) for chunk in chunks]
    return b"".join(out) + rebuilder.write(reader.finish(), reader)


def same(data: bytes, sizes: Iterable[int]) -> None:
    cut = list(pieces(data, sizes))
    assert b"".join(cut) == data
    for description in (data, None):
        assert said(cut, description) == said([data], description)
    assert written_again(cut, data) == written_again([data], data)


@pytest.mark.parametrize(
    "data", [pytest.param(s.data, id=s.name) for s in SEEDS if len(s.data) <= TINY]
)
def test_a_byte_at_a_time(data: bytes) -> None:
    same(data, [1])


@settings(max_examples=4 * settings().max_examples)
@given(st.sampled_from(SEEDS), st.integers(0, 1 << 64), st.integers(0, 3), SIZES)
def test_changed_seeds_in_pieces(seed: Seed, number: int, times: int, sizes: list[int]) -> None:
    same(mutate(seed, Random(number), SEEDS, times).data, sizes)


@given(streams().filter(lambda data: len(data) <= LARGEST), SIZES)
def test_streams_of_the_grammar_in_pieces(data: bytes, sizes: list[int]) -> None:
    same(data, sizes)


def board() -> Board:
    return Board(Log("log"), Counter("later"))


def outcome(chunks: Iterable[bytes]) -> tuple[Any, ...]:
    """What a machine is after loading, and what it was told."""
    target = board()
    loader = Loader(target.registry, "board")
    cause: Any = None
    try:
        for chunk in chunks:
            loader.feed(chunk)
        loader.finish()
    except LoadError as error:
        cause = str(error), error.applied
    counters = [e.state for e in target.registry.entries if isinstance(e, Counter)]
    logs = [e.numbers for e in target.registry.entries if isinstance(e, Log)]
    # Where a stream is broken, how much of RAM came before depends on the pieces.
    memory = None if cause else target.memory()
    return cause, memory, counters, logs if not cause else None, loader.missing, loader.warnings


def saved(dialect: str) -> bytes:
    source = board()
    source.scribble(Random(1), 8)
    log = source.registry.entries[2]
    assert isinstance(log, Log)
    log.numbers = list(range(40))
    output = MemoryOutput()
    save(source.registry, Channel(output), Format(dialect, "board"), source)
    return bytes(output.data)


SAVED = [Seed(dialect, saved(dialect)) for dialect in ("v3-configuration", "v3-vmdesc", "v3-ram4")]


@given(
    st.sampled_from(SAVED),
    SIZES,
    st.lists(st.tuples(st.randoms(), st.integers(1, 255)), max_size=2),
)
def test_machines_load_it_in_pieces(
    seed: Seed, sizes: list[int], changes: list[tuple[Random, int]]
) -> None:
    data = bytearray(seed.data)
    for random, bits in changes:
        # As often where a small field is as where a page is.
        field = random.choice(seed.fields)
        data[random.randrange(field.offset, field.end)] ^= bits
    assert outcome(pieces(bytes(data), sizes)) == outcome([bytes(data)])
