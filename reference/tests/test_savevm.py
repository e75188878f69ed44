"""Saving and loading machines, with everything that can go wrong on the way."""

import asyncio
import contextlib
import errno
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from boards import FAULTS, HARMLESS, PAGE, Blob, Board, Counter, Faulty, Log

from savevm.channel import Channel, ChannelError, End, Operations, RateLimit
from savevm.errors import StreamError, TruncatedError
from savevm.ram import RamBlock
from savevm.savevm import (
    CannotExpressError,
    Format,
    Loader,
    LoadError,
    Ram,
    Registry,
    Saver,
    load,
    load_async,
    save,
    save_async,
)
from savevm.transcript import transcribe
from savevm.transport.memory import MemoryInput, MemoryOutput
from savevm.transport.socket import Socket
from savevm_spec.dialects import DIALECTS

WRITTEN = [name for name in DIALECTS if name != "v1"]
V3 = [name for name in WRITTEN if name != "v2"]


def saved(board: Board, dialect: str = "v3-configuration", **options: Any) -> bytes:
    output = MemoryOutput()
    save(board.registry, Channel(output), Format(dialect, "board"), board, **options)
    return bytes(output.data)


def loaded(data: bytes, board: Board) -> Loader:
    return load(board.registry, Channel(MemoryInput(data)), board, machine_name="board")


def scribbled(board: Board, seed: int = 1) -> Board:
    chance = random.Random(seed)
    board.scribble(chance, 40)
    board.counter.state = [chance.randrange(1 << 62) for _ in range(3)]
    return board


def refused(data: bytes, board: Board) -> StreamError:
    with pytest.raises(LoadError) as caught:
        loaded(data, board)
    assert isinstance(caught.value.cause, StreamError)
    return caught.value.cause


@pytest.mark.parametrize("dialect", WRITTEN)
def test_what_was_saved_loads_over_another_state(dialect: str) -> None:
    source = scribbled(Board())
    data = saved(source, dialect)
    assert not source.running
    target = scribbled(Board(), seed=2)
    loader = loaded(data, target)
    assert target.memory() == source.memory()
    assert target.counter.state == source.counter.state
    assert loader.applied == ["ram", "counter"]
    assert loader.missing == []
    assert target.running


@pytest.mark.parametrize("dialect", WRITTEN)
def test_the_reader_finds_the_dialect_that_was_written(dialect: str) -> None:
    transcript = transcribe(saved(scribbled(Board()), dialect))
    assert transcript["dialect"] == dialect
    # Nothing describes the body of a device that is in none of QEMU's machines.
    described = dialect in ("v2", "v3-vmdesc", "v3-configuration")
    assert [finding["rule"] for finding in transcript["findings"]] == (
        [] if described else ["section.body.undescribed", "stream.undelimited"]
    )
    assert transcript["error"] is None


def test_a_device_is_described_by_its_layout_or_its_size() -> None:
    blob = Blob(33)
    blob.data = random.Random(3).randbytes(33)
    data = saved(Board(blob))
    bodies = {r["idstr"]: r["body"] for r in transcribe(data)["records"] if "body" in r}
    assert bodies["counter"]["fields"] == [["c0", 1], ["c1", 2], ["c2", 3]]
    assert (bodies["blob"]["kind"], bodies["blob"]["length"]) == ("buffer", 33)
    target = Board(Blob(33))
    loaded(data, target)
    entry = target.registry.find("blob", 0)
    assert isinstance(entry, Blob)
    assert entry.data == blob.data


def test_several_blocks_need_names() -> None:
    def board() -> Board:
        return Board(ram=[RamBlock("pc.ram", 32 * PAGE), RamBlock("vga.vram", 8 * PAGE)])

    source = scribbled(board())
    target = board()
    loaded(saved(source), target)
    assert target.memory() == source.memory()
    for dialect in ("v3-ram3", "v3-2008", "v2"):
        with pytest.raises(CannotExpressError, match="no block names, and there are 2 blocks"):
            saved(source, dialect)
    assert source.running is False


GIB = 1 << 30


@pytest.mark.parametrize("dialect", [name for name in V3 if DIALECTS[name].ram_version >= 3])
def test_six_gib_in_every_dialect_with_64_bit_sizes(dialect: str) -> None:
    def board() -> Board:
        return Board(ram=[RamBlock("pc.ram", 6 * GIB)])

    source = board()
    places = (0, 4 * GIB - 2, 5 * GIB + 12345, 6 * GIB - 7)
    for place in places:
        source.blocks[0].write(place, b"savevm!")
    output = MemoryOutput()
    save(source.registry, Channel(output), Format(dialect, "board"), source)
    # A zero page takes 9 bytes.
    assert len(output.data) < 6 * GIB // PAGE * 9 + 8 * PAGE + 4096
    target = board()
    target.blocks[0].write(2 * GIB, b"old")
    loaded(bytes(output.data), target)
    for place in places:
        assert target.blocks[0].view[place : place + 7] == b"savevm!"
    assert bytes(target.blocks[0].view[2 * GIB : 2 * GIB + 3]) == bytes(3)


@pytest.mark.parametrize("dialect", ["v2", "v3-2008"])
def test_six_gib_are_refused_where_sizes_have_32_bits(dialect: str) -> None:
    board = Board(ram=[RamBlock("pc.ram", 6 * GIB)])
    output = MemoryOutput()
    with pytest.raises(CannotExpressError, match=f"32 bits for the size of RAM.*{6 * GIB} bytes"):
        save(board.registry, Channel(output), Format(dialect), board)
    assert not output.data
    assert board.running


def test_version_2_needs_an_output_that_seeks() -> None:
    output = MemoryOutput()
    output.seekable = False
    with pytest.raises(CannotExpressError, match="written again"):
        save(Board().registry, Channel(output), Format("v2"))


def test_version_1_is_not_written() -> None:
    with pytest.raises(CannotExpressError, match="v1"):
        Format("v1")


@pytest.mark.parametrize("dialect", WRITTEN)
def test_ram_that_is_no_whole_number_of_pages_has_no_form(dialect: str) -> None:
    board = Board(ram=[RamBlock("pc.ram", 5 * PAGE + 256)])
    with pytest.raises(CannotExpressError, match=r"in units of .* has 20736 bytes"):
        saved(board, dialect)
    assert board.running


@pytest.mark.parametrize("dialect", [name for name in V3 if DIALECTS[name].ram_version >= 3])
@pytest.mark.parametrize("page_size", [256, 1024, 65536])
def test_pages_have_the_size_of_the_machine(dialect: str, page_size: int) -> None:
    def board() -> Board:
        return Board(ram=[RamBlock("pc.ram", 1 << 18, page_size)])

    source = scribbled(board())
    target = scribbled(board(), seed=2)
    loaded(saved(source, dialect), target)
    assert target.memory() == source.memory()


def test_blocks_whose_pages_differ_in_size_are_no_ram() -> None:
    with pytest.raises(ValueError, match="'b' has pages of 65536 bytes, others of 4096"):
        Ram([RamBlock("a", 1 << 16), RamBlock("b", 1 << 16, 1 << 16)])


@pytest.mark.parametrize("sizes", [(), (0,), (0, 1, 0), (2, 0), (0, 3, 0, 1)])
def test_empty_blocks_are_not_listed(sizes: tuple[int, ...]) -> None:
    def board() -> Board:
        blocks = [RamBlock(f"ram{i}", size * PAGE) for i, size in enumerate(sizes)]
        for block in blocks:
            block.write(0, bytes((7,)) * block.used_length)
        return Board(ram=blocks)

    source, target = board(), board()
    for block in target.blocks:
        block.write(0, bytes(block.used_length))
    loaded(saved(source), target)
    assert target.memory() == source.memory()


# What the machine writes while it is saved


def test_pages_written_meanwhile_are_sent_again() -> None:
    source = scribbled(Board())
    output = MemoryOutput()
    saver = Saver(source.registry, Channel(output), Format(machine="board"), source)
    chance = random.Random(4)
    left = saver.begin()
    assert left == 64 * PAGE
    assert source.running
    for _ in range(5):
        left = saver.iterate()
        source.scribble(chance, 3)
        assert source.running
        assert left < 64 * PAGE
    assert saver.left > 0
    assert saver.complete() == 0
    assert source.stops == 1
    assert not source.running
    target = Board()
    loaded(bytes(output.data), target)
    assert target.memory() == source.memory()
    saver.release()
    assert source.running


def test_a_save_that_never_gets_done_is_ended_by_its_timeout() -> None:
    board = scribbled(Board())
    log = Log("log")
    board.registry.register(log)
    iterate = log.iterate

    def growing(out: Channel, budget: int) -> int:
        log.numbers += [7] * 10
        return iterate(out, 4)

    log.iterate = growing  # type: ignore[method-assign]
    assert saved(board, timeout=0.05)
    assert not board.running


def test_a_transport_that_wants_a_pause_gets_it() -> None:
    class Slow(MemoryOutput):
        asked = 0

        def rate_limit(self) -> int:
            self.asked += 1
            return self.asked < 50

    board = scribbled(Board())
    output = Slow()
    saver = save(board.registry, Channel(output), Format(machine="board"), board)
    assert output.asked >= 50
    # No empty bodies fill the stream meanwhile.
    assert saver.round == 1


def test_a_save_whose_section_fails_ends_for_all_of_them() -> None:
    class Failing(Log):
        @property
        def left(self) -> int:
            raise OSError(errno.EIO, "no log")

    class Clinging(Log):
        def cancel(self) -> None:
            raise RuntimeError("not yet")

        def complete(self, out: Channel) -> None:
            raise OSError(errno.EIO, "no log")

    board = Board(Failing("log"))
    with pytest.raises(OSError, match="no log"):
        saved(board)
    assert board.running
    assert board.blocks[0].dirty is None
    board = Board(Clinging("log"))
    with pytest.raises(RuntimeError, match="not yet"):
        saved(board)
    assert board.running


def three_sections(*sizes: int) -> Board:
    ram = [RamBlock(f"ram{i}", size * PAGE) for i, size in enumerate(sizes)]
    return Board(Log("short"), Log("long"), ram=ram)


@pytest.mark.parametrize("block", range(10))
def test_three_live_sections_in_any_order_load_equal(block: int) -> None:
    """A hundred seeds each: who writes what when, and where the channel asks to pause."""

    class Moody(MemoryOutput):
        def rate_limit(self) -> int:
            return chance.random() < 0.3

    for seed in range(block * 100, block * 100 + 100):
        chance = random.Random(seed)
        sizes = [1, 30, 400]
        chance.shuffle(sizes)

        source, target = three_sections(*sizes[:2]), three_sections(*sizes[:2])
        source.scribble(chance, chance.randrange(60))
        target.scribble(chance, chance.randrange(60))
        logs = [e for e in source.registry.entries if isinstance(e, Log)]
        output = Moody()
        dialect = chance.choice(["v3-configuration", "v3-vmdesc", "v3-ram4"])
        saver = Saver(source.registry, Channel(output), Format(dialect, "board"), source)
        saver.begin()
        for _ in range(chance.randrange(12)):
            for log, most in zip(logs, (3, sizes[2]), strict=True):
                log.numbers += [chance.randrange(1 << 32) for _ in range(chance.randrange(most))]
            source.scribble(chance, chance.randrange(5))
            saver.iterate()
        saver.complete()
        loader = Loader(target.registry)
        data = bytes(output.data)
        at = 0
        while at < len(data):
            size = chance.choice((1, 100, 5000, 1 << 20))
            loader.feed(data[at : at + size])
            at += size
        loader.finish()
        assert target.memory() == source.memory(), seed
        assert [e.numbers for e in target.registry.entries if isinstance(e, Log)] == [
            log.numbers for log in logs
        ], seed


def test_every_live_section_has_its_turn_when_the_channel_allows_one_at_a_time() -> None:
    class Slow(MemoryOutput):
        def rate_limit(self) -> int:
            return 1

    logs = [Log("a"), Log("b"), Log("c")]
    board = Board(*logs)
    for log in logs:
        log.numbers = list(range(1000))
    output = Slow()
    saver = Saver(board.registry, Channel(output), Format(machine="board"), board)
    saver.begin()
    for _ in range(8):
        saver.iterate()
    saver.complete()
    parts = [
        record["idstr"]
        for record in transcribe_logs(bytes(output.data), board)
        if record["record"] == "section-part"
    ]
    assert parts == ["ram", "a", "b", "c"] * 2


def transcribe_logs(data: bytes, board: Board) -> list[dict[str, str]]:
    names = {1: "section-start", 2: "section-part", 3: "section-end", 4: "section-full"}
    records = []
    loader = Loader(board.registry)
    take = loader._event

    def watch(event: Any) -> None:
        if type(event).__name__ == "Section":
            records.append({"record": names[event.type], "idstr": event.idstr})
        take(event)

    loader._event = watch  # type: ignore[method-assign]
    loader.feed(data)
    loader.finish()
    return records


# Every operation of a save and of a load fails once


def operations_of_a_save(dialect: str) -> int:
    board = scribbled(Board())
    faulty = Faulty(MemoryOutput())
    channel = Channel(faulty)
    save(board.registry, channel, Format(dialect, "board"), board)
    assert channel.close() == 0
    return faulty.calls


def saving(board: Board, channel: Channel, dialect: str) -> ChannelError | None:
    try:
        save(board.registry, channel, Format(dialect, "board"), board)
    except ChannelError as error:
        return error
    return None


def loading(board: Board, operations: Operations) -> LoadError | None:
    try:
        load(board.registry, Channel(operations, pause=0.0), board)
    except LoadError as error:
        return error
    return None


def expected_end(fault: str) -> End:
    return End.CLOSED if fault in ("EPIPE", "ECONNRESET") else End.FAILED


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dialect", ["v3-configuration", "v3-ram3", "v2"])
def test_a_save_meets_every_fault_of_every_operation(dialect: str, fault: str) -> None:
    count = operations_of_a_save(dialect)
    assert count > 20
    good = saved(scribbled(Board()), dialect)
    for index in range(count):
        board = scribbled(Board())
        output = MemoryOutput()
        channel = Channel(Faulty(output, index, FAULTS[fault]), pause=0.0)
        error = saving(board, channel, dialect)
        closing = channel.close()
        if fault in HARMLESS:
            assert error is None
            assert closing == 0 or index == count - 1
            assert output.data == good, index
        elif index == count - 1:
            # Only closing failed: the bytes have all been taken.
            assert error is None
            assert (closing < 0) == (fault != "nothing")
        else:
            assert error is not None, index
            assert error.errno == getattr(errno, fault, errno.EIO)
            assert error.end is expected_end(fault)
            assert closing == -error.errno
            assert board.running, index
            assert all(block.dirty is None for block in board.blocks)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dialect", ["v3-configuration", "v3-ram3", "v2"])
def test_a_load_meets_every_fault_of_every_operation(dialect: str, fault: str) -> None:
    source = scribbled(Board())
    data = saved(source, dialect)
    counting = Faulty(MemoryInput(data))
    load(Board().registry, Channel(counting))
    assert counting.calls > 20
    for index in range(counting.calls):
        board = scribbled(Board(), seed=2)
        before = board.memory(), board.counter.state
        error = loading(board, Faulty(MemoryInput(data), index, FAULTS[fault]))
        # Only the operation that finds the end may find it again.
        if fault in HARMLESS or (fault == "nothing" and index == counting.calls - 1):
            assert error is None
            assert board.memory() == source.memory()
            assert board.counter.state == source.counter.state
            assert board.running
            continue
        assert error is not None, index
        assert board.memory() == before[0] or error.applied == ["ram"]
        assert board.counter.state == before[1]
        assert board.running == (not error.applied)
        if fault == "nothing":
            assert isinstance(error.cause, TruncatedError)
        else:
            assert isinstance(error.cause, ChannelError)
            assert error.cause.errno == getattr(errno, fault)
            assert error.cause.end is expected_end(fault)


@pytest.mark.parametrize("dialect", ["v3-configuration", "v3-ram4", "v2"])
def test_a_stream_that_ends_too_early_is_truncated_wherever_it_is_cut(dialect: str) -> None:
    data = saved(scribbled(Board(ram=[RamBlock("pc.ram", PAGE)])), dialect)
    description = data.rfind(b"\0\x06\0") + 1 or len(data)
    for size in range(len(data)):
        error = loading(Board(ram=[RamBlock("pc.ram", PAGE)]), MemoryInput(data[:size]))
        if size == description:
            assert error is None
        else:
            assert error is not None, size
            assert isinstance(error.cause, TruncatedError)


@pytest.mark.parametrize("index", range(6))
def test_version_2_is_patched_over_a_channel_that_does_not_block(index: int) -> None:
    board, output = scribbled(Board()), MemoryOutput()
    operations = Faulty(output, index, FAULTS["EAGAIN"], piece=1 << 20)
    channel = Channel(operations, blocking=False)
    save(board.registry, channel, Format("v2"), board)
    assert operations.calls > index
    assert channel.close() == 0
    assert output.data == saved(scribbled(Board()), "v2")


# What is refused


def edited(board: Board, edit: Callable[[bytearray], None]) -> bytes:
    data = bytearray(saved(board))
    edit(data)
    return bytes(data)


def at_section(data: bytes | bytearray, kind: int, idstr: str) -> int:
    """Where the record of a START or FULL begins."""
    name = bytes((len(idstr),)) + idstr.encode()
    at = data.find(name)
    while data[at - 5] != kind:
        at = data.find(name, at + 1)
    return at - 5


def test_an_unknown_section_is_refused() -> None:
    data = saved(Board(Counter("other")))
    error = refused(data, Board())
    assert error.rule == "section.unknown"
    assert error.offset == at_section(data, 4, "other") + 5
    assert error.section == "other"


def test_an_unknown_instance_is_refused() -> None:
    data = saved(Board(Counter(instance_id=7)))
    error = refused(data, Board())
    assert error.rule == "section.instance.unknown"
    assert "instance 7" in error.detail


def test_a_version_that_is_too_new_or_too_old_is_refused() -> None:
    new, old = Board(), Board()
    new.counter.version_id = 3
    new.counter.state = [1, 2, 3, 4]
    old.counter.version_id = 0
    old.counter.state = [1]
    error = refused(saved(new), Board())
    assert (error.rule, error.detail) == (
        "section.version.newer-than-supported",
        "version 3, supported up to 2",
    )
    error = refused(saved(old), Board())
    assert (error.rule, error.detail) == (
        "section.version.older-than-minimum",
        "version 0, supported from 1",
    )


def test_an_older_version_loads_in_its_own_layout() -> None:
    source = Board()
    source.counter.version_id = 1
    source.counter.state = [8, 9]
    target = Board()
    loaded(saved(source), target)
    assert target.counter.state == [8, 9, 3]


def test_a_part_of_an_id_that_never_started_is_refused() -> None:
    data = bytearray(saved(Board()))
    end = data.rfind(b"\x03\x00\x00\x00\x00", 0, at_section(data, 4, "counter"))
    data[end + 4] = 9
    assert refused(bytes(data), Board()).rule == "section.id.unknown"


@pytest.mark.parametrize("kind", [b"\2", b"\3"])
def test_a_part_of_a_section_that_came_whole_is_refused(kind: bytes) -> None:
    data = saved(Board())
    full = at_section(data, 4, "counter")
    behind = data.find(b"\x7e", full) + 5
    part = kind + data[full + 1 : full + 5] + data[full + 18 : behind]
    board = Board()
    error = refused(data[:behind] + part + data[behind:], board)
    assert (error.rule, error.offset) == ("section.part.not-started", behind + 1)
    assert board.counter.state == [1, 2, 3]


@pytest.mark.parametrize(("kind", "idstr"), [(4, "counter"), (1, "log")])
def test_an_id_that_stands_for_a_live_section_is_not_given_again(kind: int, idstr: str) -> None:
    data = bytearray(saved(Board(Log("log"))))
    at = at_section(data, kind, idstr)
    ram = at_section(data, 1, "ram")
    data[at + 1 : at + 5] = data[ram + 1 : ram + 5]
    error = refused(bytes(data), Board(Log("log")))
    assert (error.rule, error.offset) == ("section.id.reused", at + 1)


def test_a_footer_of_another_section_is_refused() -> None:
    data = bytearray(saved(Board()))
    footer = data.find(b"\x7e\x00\x00\x00\x00")
    data[footer + 4] = 1
    assert refused(bytes(data), Board()).rule == "footer.id"


def test_sections_that_come_twice_are_refused() -> None:
    data = saved(Board())
    full = at_section(data, 4, "counter")
    behind = data.find(b"\x7e", full) + 5
    error = refused(data[:behind] + data[full:], Board())
    assert (error.rule, error.offset) == ("section.repeated", behind)
    end = data.rfind(b"\x03\x00\x00\x00\x00", 0, full)
    error = refused(data[:full] + data[end:], Board())
    assert (error.rule, error.offset) == ("section.part.after-end", full + 1)


def test_a_section_without_its_end_is_refused() -> None:
    data = saved(Board())
    full = at_section(data, 4, "counter")
    end = data.rfind(b"\x03\x00\x00\x00\x00", 0, full)
    board = Board()
    error = refused(data[:end] + data[full:], board)
    assert error.rule == "section.end.missing"
    assert board.counter.state == [1, 2, 3]


@pytest.mark.parametrize(("kind", "idstr", "other"), [(4, "counter", 1), (1, "ram", 4)])
def test_a_section_of_the_wrong_kind_is_refused(kind: int, idstr: str, other: int) -> None:
    data = bytearray(saved(Board()))
    at = at_section(data, kind, idstr)
    data[at] = other
    error = refused(bytes(data), Board())
    assert (error.rule, error.offset) == ("section.kind", at)


@pytest.mark.parametrize("dialect", WRITTEN)
def test_a_body_that_nothing_reads_is_refused(dialect: str) -> None:
    class Unknown(Counter):
        def layout(self, version_id: int) -> None:  # type: ignore[override]
            return None

    board = Board(Unknown("unknown"))
    error = refused(saved(Board(Counter("unknown")), dialect), board)
    assert (error.rule, error.section) == ("section.body.undescribed", "unknown")
    assert not board.running
    assert board.counter.state == [1, 2, 3]


def test_a_record_of_ram_in_a_version_without_lengths_is_refused() -> None:
    data = bytearray(saved(scribbled(Board()), "v2"))
    version = data.find(b"\x03ram") + 11
    data[version] = 4
    board = Board()
    error = refused(bytes(data), board)
    assert (error.rule, error.section) == ("section.body.undescribed", "ram")
    assert board.running


def test_another_machine_is_refused_before_anything_changes() -> None:
    board = scribbled(Board())
    before = board.memory()
    with pytest.raises(LoadError, match="nothing was changed") as caught:
        load(board.registry, Channel(MemoryInput(saved(Board()))), board, machine_name="other")
    assert isinstance(caught.value.cause, StreamError)
    assert caught.value.cause.rule == "configuration.machine.differs"
    assert board.memory() == before
    assert board.running


def test_ram_that_the_machine_does_not_have_is_refused() -> None:
    data = saved(Board(ram=[RamBlock("pc.ram", 32 * PAGE)]))
    board = scribbled(Board())
    before = board.memory()
    with pytest.raises(LoadError, match=r"nothing was changed$") as caught:
        loaded(data, board)
    assert isinstance(caught.value.cause, StreamError)
    assert caught.value.cause.rule == "ram.block.size"
    assert board.memory() == before
    assert board.running
    error = refused(saved(Board(ram=[RamBlock("other", 64 * PAGE)])), Board())
    assert error.rule == "ram.block.unknown"


def test_a_state_that_the_device_refuses_is_told_with_what_changed() -> None:
    source = Board(Counter("later"))
    source.counter.state = [-2000, 0, 0]
    target = Board(Counter("later"))
    with pytest.raises(LoadError, match="changed before: ram, counter") as caught:
        loaded(saved(source), target)
    assert isinstance(caught.value.cause, StreamError)
    assert caught.value.cause.rule == "section.state.refused"
    assert not target.running


def test_a_machine_whose_device_breaks_down_does_not_run() -> None:
    class Broken(Counter):
        def load(self, state: Any, version_id: int) -> None:
            super().load(state, version_id)
            raise KeyError("c9")

    board = Board()
    source, target = Registry(), Registry()
    source.register(Counter())
    target.register(Broken())
    output = MemoryOutput()
    save(source, Channel(output))
    with pytest.raises(KeyError):
        load(target, Channel(MemoryInput(output.data)), board)
    assert not board.running


def test_what_the_stream_does_not_have_is_told() -> None:
    loader = loaded(saved(Board()), Board(Counter("absent")))
    assert loader.missing == ["absent instance 0"]


def test_version_2_skips_what_is_unknown_and_says_so() -> None:
    source = scribbled(Board(Counter("other")))
    target = Board()
    loader = loaded(saved(source, "v2"), target)
    assert target.memory() == source.memory()
    (warning,) = loader.warnings
    assert "'other'" in warning


def test_version_1_and_unknown_versions_are_not_supported() -> None:
    record = b"\x07counter" + bytes(3) + b"\0" + bytes(3) + b"\1" + bytes(3) + b"\x10" + bytes(16)
    for version in (1, 4, 0):
        for rest in (record, b""):
            error = refused(b"QEVM" + version.to_bytes(4, "big") + rest, Board())
            assert (error.rule, error.errno, error.offset) == ("header.version", errno.ENOTSUP, 4)


def test_a_key_can_be_registered_once() -> None:
    registry = Registry()
    for expected in (0, 1):
        counter = Counter()
        registry.register(counter)
        assert counter.instance_id == expected
    with pytest.raises(ValueError, match="registered already"):
        registry.register(Counter(instance_id=1))


def test_priority_decides_the_order_and_registration_the_ids() -> None:
    board = Board(Counter("late", priority=-1), Counter("early", priority=200))
    records = transcribe(saved(board))["records"]
    fulls = [(r["idstr"], r["section_id"]) for r in records if r["record"] == "section-full"]
    assert fulls == [("early", 3), ("counter", 1), ("late", 2)]


# The asynchronous interface


class Pair:
    """A channel into one end of a socket pair that does not block, and what the other end reads."""

    def __init__(self, rate: RateLimit | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        operations = Socket(self.ours, "pair", blocking=False)
        self.channel = Channel(operations, rate=rate, blocking=False)
        self.data = bytearray()
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while piece := self.theirs.recv(1 << 20):
            self.data += piece

    def finish(self) -> bytes:
        self.ours.close()
        self.thread.join(10)
        self.theirs.close()
        return bytes(self.data)


def test_a_machine_is_saved_over_a_socket_that_blocks_now_and_then() -> None:
    source = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    source.blocks[0].write(0, random.Random(5).randbytes(1024 * PAGE))
    pair = Pair()
    held = 0

    async def run() -> list[Any]:
        nonlocal held
        steps = []
        async for progress in save_async(
            source.registry, pair.channel, Format(machine="board"), source
        ):
            steps.append(progress)
            held = max(held, pair.channel.held_back)
            if len(steps) == 2:
                pair.thread.start()
        return steps

    steps = asyncio.run(run())
    data = pair.finish()
    assert [step.phase for step in steps[:2]] == ["live", "live"]
    # What the socket does not take stays where it is.
    assert held < 2 << 20
    assert steps[-1].phase == "completed"
    assert steps[-1].left == 0
    assert steps[-1].written == len(data)
    assert pair.channel.held_back == 0
    target = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    loaded(data, target)
    assert target.memory() == source.memory()


def test_a_channel_that_does_not_block_need_not_be_saved_to_asynchronously() -> None:
    source = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    source.blocks[0].write(0, random.Random(5).randbytes(1024 * PAGE))
    pair = Pair()
    operations = pair.channel._operations
    refusals = 0
    put_buffer = operations.put_buffer

    def counted(data: memoryview, position: int) -> int:
        nonlocal refusals
        count = put_buffer(data, position)
        if count == -errno.EAGAIN:
            refusals += 1
            # Nothing is read before we had to wait.
            if refusals == 1:
                pair.thread.start()
        return count

    operations.put_buffer = counted  # type: ignore[method-assign]
    saver = save(source.registry, pair.channel, Format(machine="board"), source)
    data = pair.finish()
    assert refusals
    assert len(data) < 1024 * (PAGE + 8) + (64 << 10)
    assert saver.phase == "completed"
    target = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    loaded(data, target)
    assert target.memory() == source.memory()


def test_an_interrupt_while_the_last_bytes_wait_lets_the_machine_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    board.blocks[0].write(0, random.Random(5).randbytes(1024 * PAGE))
    pair = Pair()

    def sleep(_: float) -> None:
        assert not board.running
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        save(board.registry, pair.channel, Format(machine="board"), board, timeout=0)
    assert board.running
    pair.ours.close()
    pair.theirs.close()


class Late(Log):
    """All that it has comes in its END."""

    @property
    def left(self) -> int:
        return 0

    def iterate(self, out: Channel, budget: int) -> int:
        self._write(out, 0)
        return 0


def test_a_save_is_completed_when_the_transport_has_it_all() -> None:
    late = Late("late")
    late.numbers = list(range(1 << 20))
    board = Board(late)
    pair = Pair()
    steps = []

    async def run() -> None:
        async for progress in save_async(
            board.registry, pair.channel, Format(machine="board"), board
        ):
            steps.append(progress)
            if progress.phase == "stopped" and not pair.thread.is_alive():
                pair.thread.start()

    asyncio.run(run())
    pair.finish()
    assert [s.phase for s in steps].count("completed") == 1
    assert steps[-2].phase == "stopped"
    assert steps[-2].left > 0


def test_the_rate_is_not_limited_while_the_machine_stands_still() -> None:
    board = Board(ram=[RamBlock("pc.ram", 16 << 20)])
    board.blocks[0].write(0, random.Random(5).randbytes(16 << 20))
    # An hour for all of it.
    pair = Pair(RateLimit((16 << 20) // 3600))
    pair.thread.start()

    async def run() -> None:
        async for _ in save_async(
            board.registry, pair.channel, Format(machine="board"), board, timeout=0
        ):
            pass

    asyncio.run(asyncio.wait_for(run(), 30))
    target = Board(ram=[RamBlock("pc.ram", 16 << 20)])
    loaded(pair.finish(), target)
    assert target.memory() == board.memory()


def test_what_was_peeked_at_is_loaded() -> None:
    data = saved(Board())
    for blocking in (False, True):
        channel = Channel(MemoryInput(data), blocking=blocking)
        assert channel.peek(1 << 15) == data
        board = Board()
        if blocking:
            load(board.registry, channel, board)
        else:
            asyncio.run(load_async(board.registry, channel, board))
        assert board.running


def test_a_load_waits_for_a_channel_that_does_not_block() -> None:
    data = saved(scribbled(Board()))
    ours, theirs = socket.socketpair()
    channel = Channel(Socket(ours, "pair", blocking=False), blocking=False)
    waited = threading.Event()
    get_bytes = channel._operations.get_bytes

    def watched(size: int, position: int) -> bytes | int:
        found = get_bytes(size, position)
        if found == -errno.EAGAIN:
            waited.set()
        return found

    channel._operations.get_bytes = watched  # type: ignore[method-assign]

    def write() -> None:
        waited.wait(10)
        theirs.sendall(data)
        theirs.close()

    writer = threading.Thread(target=write)
    writer.start()
    board = Board()
    try:
        load(board.registry, channel, board)
    finally:
        waited.set()
        writer.join(10)
        channel.close()
    assert board.memory() == scribbled(Board()).memory()


@pytest.mark.parametrize("how", ["cancel", "close", "peer"])
def test_a_save_that_is_given_up_lets_the_machine_run(how: str) -> None:
    board = Board(ram=[RamBlock("pc.ram", 1024 * PAGE)])
    board.blocks[0].write(0, random.Random(5).randbytes(1024 * PAGE))
    pair = Pair()

    async def run() -> None:
        # Nobody reads: the last step cannot be done.
        steps = save_async(board.registry, pair.channel, Format(machine="board"), board, timeout=0)
        async for progress in steps:
            if progress.phase == "completed" or not board.running:
                break
        assert not board.running
        if how == "close":
            await steps.aclose()  # type: ignore[attr-defined]
        elif how == "peer":
            pair.theirs.close()
            with pytest.raises(ChannelError) as caught:
                async for _ in steps:
                    pass
            assert caught.value.end is End.CLOSED
        else:
            task = asyncio.ensure_future(anext(steps))
            await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert board.running
    assert board.blocks[0].dirty is None
    pair.ours.close()
    pair.theirs.close()


def test_the_rate_limit_holds_on_a_socket() -> None:
    board = Board(ram=[RamBlock("pc.ram", 16 << 20)])
    board.blocks[0].write(0, random.Random(5).randbytes(16 << 20))
    rate = 8 << 20
    pair = Pair(RateLimit(rate))
    pair.thread.start()

    async def run() -> float:
        start = time.monotonic()
        async for progress in save_async(
            board.registry, pair.channel, Format(machine="board"), board
        ):
            if progress.phase == "live" and progress.written > rate:
                return progress.written / (time.monotonic() - start)
        raise AssertionError("the limit was not met")

    speed = asyncio.run(run())
    pair.finish()
    assert speed / rate < 1.1


def test_a_machine_is_loaded_from_a_socket_that_has_nothing_now_and_then() -> None:
    source = scribbled(Board())
    data = saved(source)
    ours, theirs = socket.socketpair()
    target = scribbled(Board(), seed=2)

    async def write() -> None:
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        for start in range(0, len(data), 50_000):
            await loop.sock_sendall(theirs, data[start : start + 50_000])
            await asyncio.sleep(0.001)
        theirs.close()

    async def run() -> Loader:
        channel = Channel(Socket(ours, "pair", blocking=False), blocking=False)
        writer = asyncio.ensure_future(write())
        loader = await load_async(target.registry, channel, target)
        await writer
        channel.close()
        return loader

    assert asyncio.run(run()).missing == []
    assert target.memory() == source.memory()
    assert target.running


def test_a_load_that_is_cancelled_before_anything_changed_lets_the_machine_run() -> None:
    ours, theirs = socket.socketpair()
    target = Board()

    async def run() -> None:
        channel = Channel(Socket(ours, "pair", blocking=False), blocking=False)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(load_async(target.registry, channel, target), 0.02)
        channel.close()

    asyncio.run(run())
    theirs.close()
    assert target.running
    assert target.stops == 1
