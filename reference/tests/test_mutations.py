"""Broken streams: nothing but a StreamError comes out, in bounded time and memory."""

import random
import time
import tracemalloc

import pytest
from streams import VECTORS, guest, page, zero

from savevm.errors import StreamError
from savevm.stream.reader import Reader
from savevm.transcript import Transcriber, transcribe
from savevm.vmdesc import find_description
from savevm_spec.rules import rules

MUTATIONS = 10_000
# A real stream: devices with subsections, lists and arrays, commands, and a description.
SEEDS = sorted(VECTORS.glob("*/accept/*/stream.bin"))


def mutate(data: bytes, randomness: random.Random) -> bytes:
    """One to three random edits: flips, overwrites, cuts, splices, repeats."""
    out = bytearray(data)
    for _ in range(randomness.choice((1, 1, 1, 2, 3))):
        if not out:
            break
        at = randomness.randrange(len(out))
        end = min(len(out), at + randomness.choice((1, 4, 8, 64, 1000)))
        match randomness.randrange(7):
            case 0:
                out[at] ^= 1 << randomness.randrange(8)
            case 1:
                out[at] = randomness.choice((0, 1, 4, 5, 6, 7, 8, 0x10, 0x7E, 0x7F, 0x80, 0xFF))
            case 2:
                del out[at:]
            case 3:
                del out[at:end]
            case 4:
                out[at:at] = out[at:end]
            case 5:
                other = randomness.randrange(len(out))
                out[at:end] = out[other : other + end - at]
            case 6:
                size = randomness.choice((2, 4, 8))
                value = randomness.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 64) - 1))
                out[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big")
    return bytes(out)


def largest_seed() -> bytes:
    return max(
        (path.read_bytes() for path in SEEDS), key=lambda data: (len(data) < 16384, len(data))
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_mutations_of_a_real_stream(seed: int) -> None:
    data = largest_seed()
    randomness = random.Random(seed)
    outcomes: dict[str, int] = {}
    for _ in range(MUTATIONS // 8):
        broken = mutate(data, randomness)
        begin = time.process_time()
        error = transcribe(broken)["error"]
        # A hang, not slowness: a good one of these takes milliseconds.
        assert time.process_time() - begin < 5
        if error is not None:
            assert 0 <= error["offset"] <= len(broken)
            assert rules()[error["rule"]].violation == "reject"
        rule = error["rule"] if error else "none"
        outcomes[rule] = outcomes.get(rule, 0) + 1
    # Damage is noticed, and in many different places.
    assert len(outcomes) > 15
    assert sum(outcomes.values()) == MUTATIONS // 8


def test_memory_of_mutations_stays_near_the_input() -> None:
    data = largest_seed()
    randomness = random.Random(99)
    # The first error loads the rules, which are kept.
    transcribe(b"")
    tracemalloc.start()
    try:
        transcribe(data)
        usual = tracemalloc.get_traced_memory()[1]
        for _ in range(300):
            broken = mutate(data, randomness)
            tracemalloc.reset_peak()
            transcribe(broken)
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < 4 * usual + (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_long_stream_is_read_in_constant_memory() -> None:
    contents = bytes(range(256)) * 16
    run = b"".join(page(4096 * i, contents) for i in range(1, 257))
    reader = Reader()
    transcriber = Transcriber()
    head, _, _ = guest(zero(0, "r"), size=1 << 30).partition(zero(0, "r"))
    head += zero(0, "r")
    tracemalloc.start()
    try:
        transcriber.add(reader.feed(head))
        tracemalloc.reset_peak()
        for _ in range(100):
            transcriber.add(reader.feed(run))
        assert reader.error is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    pages = transcriber.records[-1]["body"]["pages"]["r"]
    # The last run is reported when something ends it.
    assert pages["normal"] == 99 * 256


def test_errors_say_what_where_and_which_rule() -> None:
    reader = Reader(description=find_description(b""))
    reader.feed(guest(zero(0x20000, "r")))
    reader.finish()
    error = reader.error
    assert isinstance(error, StreamError)
    assert (error.rule, error.section, error.errno_name) == (
        "ram.page.outside-block",
        "ram",
        "EINVAL",
    )
    for part in ("0x20000", "'r'", "0x10000", str(error.offset), "'ram'", error.rule):
        assert part in str(error)
