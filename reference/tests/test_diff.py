"""What is not the same in two saved machines, and what is although the bytes are not."""

import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from boards import PAGE, Blob, Board, Counter
from streams import (
    EOF,
    EOS,
    HEADER,
    VECTORS,
    blocks,
    configuration,
    counted,
    guest,
    page,
    part,
    start,
    vmdescription,
    word,
    zero,
)
from test_cli import savevm
from test_convert import LIVE, board, chunk, live
from test_qcow2 import QEMU_IMG, Guest, create

from savevm.channel import Channel
from savevm.diff import Contents, Ignored, differences
from savevm.ram import RamBlock
from savevm.savevm import Format, save
from savevm.transport.memory import MemoryOutput
from savevm.vmdesc import find_description

A, B = bytes(range(256)) * 16, bytes(range(255, -1, -1)) * 16


def diff(a: bytes, b: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    """The command, over files that are called a and b."""
    with tempfile.TemporaryDirectory() as directory:
        for name, data in (("a", a), ("b", b)):
            Path(directory, name).write_bytes(data)
        done = savevm("diff", f"{directory}/a", f"{directory}/b", *options)
    assert b"Traceback" not in done.stderr
    here = f"{directory}/".encode()
    done.stdout, done.stderr = (text.replace(here, b"") for text in (done.stdout, done.stderr))
    return done


def lines(a: bytes, b: bytes, *options: str) -> list[str]:
    done = diff(a, b, *options)
    said = done.stdout.decode().splitlines()
    assert done.returncode == (1 if said else 0), done.stderr.decode()
    return said


def written(machine: Board, dialect: str = "v3-configuration") -> bytes:
    output = MemoryOutput()
    save(machine.registry, Channel(output), Format(dialect, "board"), machine)
    return bytes(output.data)


def device(fields: list[dict[str, Any]], body: bytes, *subsections: Any, **options: Any) -> bytes:
    """A stream with a device as described."""
    idstr, version = options.get("idstr", "dev"), options.get("version", 1)
    entry = {"name": idstr, "instance_id": 0, "vmsd_name": idstr, "version": version}
    entry |= {"fields": fields}
    if subsections:
        entry["subsections"] = list(subsections)
    text = json.dumps({"page_size": PAGE, "devices": [entry]}).encode()
    section = start(3, idstr, body, version=version, kind=4)
    return guest(zero(0, "r"), size=PAGE)[:-1] + section + EOF + vmdescription(text)


# Devices


def test_fields_by_path() -> None:
    inner = {
        "vmsd_name": "in",
        "version": 1,
        "fields": [{"name": "x", "type": "uint8", "size": 1}],
    }
    fields: list[dict[str, Any]] = [
        {"name": "env.regs", "array_len": 4, "type": "uint16", "size": 2},
        {"name": "on", "type": "bool", "size": 1},
        {"name": "n", "type": "int8", "size": 1},
        {"name": "two", "array_len": 2, "type": "struct", "size": 1, "struct": inner},
        {"name": "data", "type": "buffer", "size": 6},
    ]
    more = {**inner, "vmsd_name": "dev/more"}

    def body(last: int, on: int, n: int, x: int, data: bytes, more: int) -> bytes:
        head = struct.pack(">HHHHBbBB", 1, 2, 3, last, on, n, 0, x) + data
        return head + b"\5" + counted("dev/more") + struct.pack(">IB", 1, more)

    a = device(fields, body(0x10, 0, 5, 7, b"abcdef", 1), more)
    b = device(fields, body(0x11, 1, -100, 8, b"abXdeX", 2), more)
    assert lines(a, b) == [
        "dev/env.regs[3]: 0x10 != 0x11",
        "dev/on: false != true",
        "dev/n: 5 != -0x64",
        "dev/two[1].x: 7 != 8",
        "dev/data: 2 of 6 bytes differ, first at 0x2: 63 64 65 66 != 58 64 65 58",
        "dev/dev/more.x: 1 != 2",
    ]
    assert lines(a, a) == []
    found = json.loads(diff(a, b, "--json").stdout)
    assert found["equal"] is False
    assert found["a"] == {"file": "a", "dialect": "v3-configuration"}
    assert found["differences"][0] == {
        "path": "dev/env.regs[3]",
        "kind": "value",
        "a": 0x10,
        "b": 0x11,
    }
    assert found["differences"][4] == {
        "path": "dev/data",
        "kind": "bytes",
        "a": "63646566",
        "b": "58646558",
        "count": 2,
        "first": 2,
        "lengths": [6, 6],
    }


def test_fields_and_elements_that_are_not_in_both() -> None:
    one = [{"name": "x", "type": "uint8", "size": 1}, {"name": "y", "type": "uint8", "size": 1}]
    two = [{"name": "x", "type": "uint8", "array_len": 3, "size": 1}]
    assert lines(device(one, b"ab"), device(two, b"abc")) == [
        "dev/x: 0x61 != 3 elements",
        "dev/y: only in a",
    ]
    four = [{"name": "x", "type": "uint8", "array_len": 4, "size": 1}]
    assert lines(device(two, b"abc"), device(four, b"aXcd")) == [
        "dev/x.length: 3 != 4",
        "dev/x[1]: 0x62 != 0x58",
    ]


def test_versions_instances_and_sections() -> None:
    a = Board(Counter("one"), Counter("two", instance_id=7), Counter("three"))
    older = Counter("one", version_id=1)
    older.state = [1, 2]
    b = Board(older, Counter("two", instance_id=8))
    assert lines(written(a), written(b)) == [
        "one/version_id: 2 != 1",
        "one/c2: only in a",
        "two#7: only in a",
        "three: only in a",
        "two#8: only in b",
    ]


def test_bodies_that_nothing_describes() -> None:
    blobs = [Blob(6000) for _ in range(3)]
    blobs[1].data = bytes(4500) + b"x" + bytes(1499)
    blobs[2].data = bytes(6000) + b"yy"
    a, b, c = (written(Board(blob)) for blob in blobs)
    assert lines(a, a) == []
    first = "00 00 00 00 00 00 00 00"
    assert lines(a, b) == [
        f"blob: 1 of 6000 bytes differ, first at 0x1194: {first} != 78 {first[3:]}"
    ]
    assert lines(a, c) == [
        "blob: 2 of 6000 and 6002 bytes differ, first at 0x1770: nothing != 79 79"
    ]
    # Nor in records without a description.
    assert lines(written(Board(blobs[0]), "v2"), written(Board(blobs[0]))) == [
        "configuration: only in b"
    ]
    assert lines(written(Board(blobs[1]), "v2"), a, "-i", "configuration")[0].startswith("blob: 1")


def test_the_same_fields_in_other_bytes() -> None:
    """Subsections of different versions have the same fields here."""
    sub = {"vmsd_name": "dev/s", "version": 1, "fields": []}
    a, b = (
        device([], b"\5" + counted("dev/s") + struct.pack(">I", v), {**sub, "version": v})
        for v in (1, 2)
    )
    assert lines(a, b) == ["dev: 1 of 11 bytes differ, first at 0xa: 01 != 02"]


# RAM


def test_pages(tmp_path: Path) -> None:
    size = 1 << 30
    a = guest(page(0, A, "r"), zero(PAGE), page(2 * PAGE, B), page(5 * PAGE, A), size=size)
    b = guest(
        page(0, A, "r"),
        page(PAGE, A),
        zero(2 * PAGE),
        page(5 * PAGE, A[:-1] + b"x"),
        page(size - PAGE, bytes(PAGE)),
        size=size,
    )
    assert lines(a, b) == [
        "ram/r: 3 pages differ: 0x1000-0x2fff, 0x5000-0x5fff; first at 0x1001: "
        "00 00 00 00 00 00 00 00 != 01 02 03 04 05 06 07 08"
    ]
    found = json.loads(diff(a, b, "--json").stdout)["differences"]
    assert found == [
        {
            "path": "ram/r",
            "kind": "units",
            "a": "00" * 8,
            "b": "0102030405060708",
            "count": 3,
            "first": 0x1001,
            "size": PAGE,
            "ranges": [[0x1000, 0x2FFF], [0x5000, 0x5FFF]],
        }
    ]
    # From a pipe there is no second look.
    (tmp_path / "b").write_bytes(b)
    piped = savevm("diff", "-", str(tmp_path / "b"), stdin=a)
    assert piped.stdout == b"ram/r: 3 pages differ: 0x1000-0x2fff, 0x5000-0x5fff\n"


def test_the_last_of_several_contents_counts() -> None:
    size = 4 * PAGE
    a = guest(page(0, A, "r"), page(PAGE, B), size=size)
    b = guest(
        page(PAGE, A, "r"), page(0, B), zero(0, fill=7), page(0, A), zero(PAGE), page(PAGE, B),
        zero(2 * PAGE, fill=9), zero(2 * PAGE), size=size,
    )  # fmt: skip
    assert lines(a, b) == []
    filled = guest(zero(0, "r", fill=0x55), size=size)
    same = guest(page(0, b"\x55" * PAGE, "r"), size=size)
    assert lines(filled, same) == []


def test_blocks() -> None:
    def with_blocks(*listed: tuple[str, int]) -> bytes:
        zeros = b"".join(zero(0, name) for name, _ in listed)
        return (
            HEADER
            + configuration()
            + start(2, "ram", blocks(*listed) + EOS)
            + part(2, zeros + EOS)
            + part(2, EOS, kind=3)
            + EOF
        )

    a = with_blocks(("x", PAGE), ("y", PAGE))
    b = with_blocks(("x", 2 * PAGE), ("z", PAGE))
    assert lines(a, b) == [
        "ram/x/used_length: 0x1000 != 0x2000",
        "ram/y: only in a",
        "ram/z: only in b",
    ]


@pytest.mark.parametrize("dialect", ["v2", "v3-2008", "v3-ram3", "v3-ram4", "v3-vmdesc"])
@pytest.mark.parametrize("page_size", [PAGE, 1024, 16384])
def test_dialects_do_not_matter(dialect: str, page_size: int) -> None:
    def machine(extra: bytes = b"") -> Board:
        made = Board(ram=[RamBlock("pc.ram", 64 * page_size, page_size)])
        made.scribble(random.Random(5), 30)
        made.blocks[0].write(9 * page_size + 5, extra)
        return made

    options = ["-i", "configuration"]
    if dialect in ("v3-2008", "v3-ram3", "v3-ram4"):
        # Nothing says there where the body of the device ends.
        options += ["-i", "counter"]
    older, modern, other = (
        written(machine(), dialect),
        written(machine()),
        written(machine(b"other")),
    )
    assert lines(older, modern, *options) == []
    assert lines(modern, older, *options) == []
    name = "ram/pc.ram"
    said = f"{name}: 1 page differs: {9 * page_size:#x}-{10 * page_size - 1:#x}; first at "
    assert lines(older, other, *options)[0].startswith(said)
    assert lines(other, older, *options)[0].startswith(said)


def test_memory_is_that_of_hashes() -> None:
    """A pipe of 256 MiB that are all different takes no more than 16 bytes for each page."""
    program = (
        "import re, sys\n"
        "from savevm.cli import main\n"
        "try: main(['diff', '-', sys.argv[1]])\n"
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1],"
        " file=sys.stderr)\n"
    )
    pages = 65536
    head, tail = guest(zero(0, "r"), size=(pages + 1) * PAGE).split(zero(0, "r"))
    other = VECTORS / "header" / "accept" / "shortest" / "stream.bin"
    chance = random.Random(2)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(other)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(head + zero(0, "r"))
        for i in range(1, pages):
            process.stdin.write(page(i * PAGE, chance.randbytes(PAGE)))
        process.stdin.write(tail)
        process.stdin.close()
        assert b"ram/r: only in -" in process.stdout.read()
        peak = int(process.stderr.read()) << 10
    assert process.returncode == 1
    assert peak < 64 << 20


# Other live sections


@pytest.mark.parametrize(
    ("idstr", "body", "said"),
    [
        (
            "spapr/htab",
            struct.pack(">I", 0) + chunk(3, 99) + chunk(20, 1, 1) + chunk(0),
            "spapr/htab: 3 entries differ: 0x30-0x3f, 0x140-0x15f",
        ),
        (
            "s390-storage_attributes",
            word(1 << 14 | 2) + word(3) + b"xbx" + word(1),
            "s390-storage_attributes: 2 attributes differ: 0x4000-0x4fff, 0x6000-0x6fff",
        ),
        (
            "block",
            word(2 << 20 | 1) + b"\2hd" + b"\2" * ((1 << 20) - 1) + b"x" + word(2),
            "block/hd: 1 MiB differs: 0x200000-0x2fffff",
        ),
    ],
)
def test_other_live_sections(idstr: str, body: bytes, said: str) -> None:
    version, *bodies = LIVE[idstr]
    assert isinstance(version, int)
    a = live(idstr, version, *bodies)  # type: ignore[arg-type]
    b = live(idstr, version, *bodies[:-1], body, bodies[-1])  # type: ignore[arg-type]
    assert lines(a, a) == []
    # The same twice is the same.
    assert lines(a, live(idstr, version, *bodies[:-1], *bodies[1:])) == []  # type: ignore[arg-type]
    assert lines(a, b) == [said]
    assert lines(b, guest(zero(0, "r"), size=PAGE), "-i", "ram") == [f"{idstr}: only in a"]


# What is left out, and how it is told


def test_ignore() -> None:
    a = device([{"name": "env.regs", "array_len": 2, "type": "uint8", "size": 1}], b"ab")
    b = device([{"name": "env.regs", "array_len": 2, "type": "uint8", "size": 1}], b"cd")
    for pattern in ("dev", "d?v", "dev/*", "dev/env.regs", "dev/env", "*regs*", "*"):
        assert lines(a, b, "--ignore", pattern) == [], pattern
    for pattern in ("de", "ev", "dev/env.reg", "regs"):
        assert len(lines(a, b, "--ignore", pattern)) == 2, pattern
    assert lines(a, b, "-i", "dev/env.regs[0]") == ["dev/env.regs[1]: 0x62 != 0x64"]
    assert diff(a, b, "-q").stdout == b""
    assert diff(a, b, "-q").returncode == 1
    assert json.loads(diff(a, a, "--json").stdout)["equal"] is True


def test_long_lists_are_shortened() -> None:
    fields = [{"name": "x", "array_len": 30, "type": "uint8", "size": 1}]
    a, b = device(fields, bytes(30)), device(fields, b"x" * 30)
    said = lines(a, b)
    assert (len(said), said[-1]) == (11, "dev: 20 more (--all)")
    assert len(lines(a, b, "--all")) == 30
    many = [page(i * PAGE, A, "r") for i in range(0, 20, 2)]
    a, b = (guest(*pages, size=20 * PAGE) for pages in (many, [zero(0, "r")]))
    assert lines(a, b)[0].count("-0x") == 4
    assert "0x6000-0x6fff …; first at 0x1: " in lines(a, b)[0]
    assert lines(a, b, "--all")[0].count("-0x") == 10


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    good = guest(zero(0, "r"), size=PAGE)
    cut = diff(good, good[:-20])
    assert cut.returncode == 2
    assert b"b: error: offset" in cut.stderr
    elsewhere = (
        HEADER + start(2, "ram", blocks(("r", PAGE)) + EOS, end=b"")
        + b"\3\0\0\0\2" + word(0x200) + EOS + EOF
    )  # fmt: skip
    assert b"in channels beside it" in diff(elsewhere, good).stderr
    assert diff(elsewhere, good).returncode == 2
    other = board(ram=[RamBlock("r", PAGE, 1024)])
    sizes = diff(good, other)
    assert b"pages of 4096 bytes and pages of 1024 bytes" in sizes.stderr
    assert sizes.returncode == 2
    absent, there = str(tmp_path / "absent"), str(VECTORS / "header/accept/shortest/stream.bin")
    for argv in ([there, absent], ["-", "-"], [there], [there, there, "--snapshot-a", "x"]):
        assert savevm("diff", *argv).returncode == 2


def test_names_cannot_move_the_cursor() -> None:
    fields = [{"name": "\x1b[2J", "type": "uint8", "size": 1}]
    said = diff(device(fields, b"a"), device(fields, b"b")).stdout
    assert b"\x1b" not in said
    assert said == b"dev/\\x1b[2J: 0x61 != 0x62\n"


def test_a_vector_is_as_itself_in_another_chunking() -> None:
    """What is fed at once and byte by byte holds the same."""
    for name in ("legacy/accept/v2-0.9.1", "legacy/accept/v3-0.12.5", "htab/accept/chunks"):
        data = (VECTORS / name / "stream.bin").read_bytes()
        sides = []
        for step in (len(data), 7):
            whole = Contents(description=find_description(data), searched=True)
            for at in range(0, min(len(data), 1 << 20), step):
                whole.take(whole.reader.feed(data[at : at + step]))
            whole.take(whole.reader.feed(data[1 << 20 :]) if step < len(data) else [])
            whole.take(whole.reader.finish())
            whole.finish()
            sides.append(whole)
        assert list(differences(sides[0], sides[1], Ignored(()))) == []


# A real QEMU


def test_a_machine_that_is_stopped_differs_by_its_clocks(tmp_path: Path) -> None:
    """Two saves of one stopped PC, and one of a second QEMU that has loaded it."""
    if QEMU_IMG is None:
        pytest.skip("no qemu-img: not held against a real QEMU")
    path = create(tmp_path / "image")
    with Guest(path, "-rtc", "base=utc") as qemu:
        qemu.until(lambda: qemu.ticks() > 5)
        qemu.execute("stop")
        for name in ("one", "two"):
            assert qemu.monitor(f"savevm {name}") == ""
            # Until the clock of the host shows another second.
            time.sleep(1.5)
        qemu.execute("cont")
        ticks = qemu.ticks()
        qemu.until(lambda: qemu.ticks() > ticks + 5)
        qemu.execute("stop")
        assert qemu.monitor("savevm later") == ""
        qemu.execute("quit")
        qemu.process.wait()
    with Guest(path, "-S", "-loadvm", "two") as qemu:
        assert qemu.monitor("savevm again") == ""
        qemu.execute("quit")
        qemu.process.wait()

    def compare(b: str, *options: str) -> list[str]:
        argv = ["diff", str(path), str(path), "--snapshot-a", "one", "--snapshot-b", b, *options]
        done = savevm(*argv, "--all")
        said = done.stdout.decode().splitlines()
        assert done.returncode == bool(said), done.stderr.decode()
        return said

    # The clock of the host went on.
    moved = compare("two")
    assert moved
    assert all(line.startswith("mc146818rtc/") for line in moved)
    assert compare("two", "--ignore", "clocks") == []
    # How a machine came to be stopped is not how it is.
    assert compare("again", "-i", "clocks", "-i", "globalstate") == []
    later = compare("later")
    assert any(line.startswith("timer/cpu_clock_offset: ") for line in later)
    assert any(line.startswith("ram/pc.ram: ") for line in later)
    kept = compare("later", "-i", "clocks")
    # What index the firmware has chosen, or how often it is woken, is its own doing.
    own = "cmos_index|period|irq_"
    clocks = re.compile(f"timer/|mc146818rtc/(?!{own})|i8254/.*next_transition")
    assert [line for line in kept if clocks.match(line)] == []
    assert any(line.startswith("ram/pc.ram: ") for line in kept)


def test_the_clocks_are_no_more_than_clocks() -> None:
    ignored = Ignored(["clocks"])
    for path in ("cpu/env.tsc", "hpet/hpet_counter", "timer", "timer/x", "kvm/clock", "a/b_timer"):
        assert path in ignored, path
    for path in ("cpu/env.tsc_aux", "hpet/timer[0].config", "cpu", "ram/pc.ram", "mc146818rtc"):
        assert path not in ignored, path
