"""VM state in qcow2 images that qemu-img and QEMU made, and theirs in those that were written here."""

import hashlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from savevm.channel import Channel, End
from savevm.errors import StreamError, UnsupportedError
from savevm.qcow2 import Image, Snapshot
from savevm.stream.reader import Reader
from savevm.transport.disk_image import StateInput, StateOutput
from savevm_spec.envelope.qcow2 import parse
from savevm_spec.errors import GrammarError

QEMU_IMG = shutil.which("qemu-img")
pytestmark = pytest.mark.skipif(
    QEMU_IMG is None, reason="no qemu-img on PATH: qcow2 images are not held against it"
)

DISK = 8 << 20
FORMS = {
    "v2": "compat=0.10",
    "v3": "compat=1.1",
    "clusters-512": "cluster_size=512",
    "clusters-2M": "cluster_size=2M",
    "extended-l2": "extended_l2=on,cluster_size=16k",
    "refcounts-4": "refcount_bits=4,cluster_size=4k",
    "refcounts-8": "refcount_bits=8,cluster_size=1k",
    "refcounts-32": "refcount_bits=32,cluster_size=2k",
    "refcounts-64": "refcount_bits=64,cluster_size=512",
}


def qemu_img(*argv: str | Path) -> str:
    done = subprocess.run([QEMU_IMG or "", *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def qemu_io(path: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *words, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout + done.stderr


def create(path: Path, options: str = "compat=1.1", size: int = DISK) -> Path:
    qemu_img("create", "-qf", "qcow2", "-o", options, path, str(size))
    return path


def create_filled(path: Path, options: str = "compat=1.1") -> Path:
    create(path, options)
    qemu_io(path, "write -P 5 0 1M", "write -P 6 3M 300k", "write -z 512k 64k")
    return path


def checked(path: Path) -> None:
    """Nothing wrong, and no cluster that nothing uses."""
    found = json.loads(qemu_img("check", "--output=json", path))
    assert not any(found.get(kind) for kind in ("leaks", "corruptions", "check-errors")), found


def disk_of(path: Path, snapshot: str | None = None) -> str:
    """SHA-256 of what a guest sees, as the disk is or was."""
    raw = path.with_suffix(".raw")
    choice = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    qemu_img("convert", *choice, "-f", "qcow2", "-O", "raw", path, raw)
    return hashlib.sha256(raw.read_bytes()).hexdigest()


def state_of(image: Image, snapshot: Snapshot) -> bytes:
    return image.read_state(snapshot, 0, snapshot.vm_state_size)


def write(path: Path, name: str, data: bytes, *, replace: bool = False) -> Snapshot:
    with Image(path, writable=True) as image:
        writer = image.write_state(name, replace=replace)
        writer.write(0, data)
        return writer.commit()


def read(path: Path, name: str) -> bytes:
    with Image(path) as image:
        return state_of(image, image.find(name))


def delete(path: Path, name: str) -> None:
    with Image(path, writable=True) as image:
        image.delete(image.find(name))


@pytest.fixture(params=[*FORMS.values()], ids=[*FORMS])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return create_filled(tmp_path / "image", request.param)


def test_write_replace_delete(filled: Path) -> None:
    before, size = disk_of(filled), filled.stat().st_size
    random.seed(0)
    first, second = random.randbytes(3_000_001), random.randbytes(77_777)
    one = write(filled, "one", first)
    checked(filled)
    assert read(filled, "one") == first
    assert (one.id, one.name, one.vm_state_size, one.disk_size) == ("1", "one", len(first), DISK)
    two = write(filled, "two", second)
    assert two.id == "2"
    checked(filled)
    assert write(filled, "one", second + first, replace=True).id == "3"
    checked(filled)
    assert read(filled, "one") == second + first
    assert read(filled, "two") == second
    assert disk_of(filled) == disk_of(filled, "one") == disk_of(filled, "two") == before
    listed = json.loads(qemu_img("info", "--output=json", filled))["snapshots"]
    assert [(s["id"], s["name"], s["vm-state-size"]) for s in listed] == [
        ("2", "two", len(second)),
        ("3", "one", len(second + first)),
    ]
    with Image(filled, writable=True) as image:
        image.delete(two)
        with pytest.raises(FileNotFoundError):
            image.delete(two)
    checked(filled)
    delete(filled, "one")
    checked(filled)
    assert disk_of(filled) == before
    assert filled.stat().st_size <= size + 4 * (2 << 20)
    qemu_io(filled, "write -P 7 0 2M")
    checked(filled)


def test_a_snapshot_keeps_the_disk_of_its_time(filled: Path) -> None:
    before = disk_of(filled)
    write(filled, "then", b"state" * 1000)
    qemu_io(filled, "write -P 9 0 4M", "discard 4M 1M")
    checked(filled)
    assert disk_of(filled) != before
    assert disk_of(filled, "then") == before
    qemu_img("snapshot", "-a", "then", filled)
    checked(filled)
    assert disk_of(filled) == before
    # The active table now has the VM state too.
    assert write(filled, "again", b"other" * 5000).id == "2"
    checked(filled)
    delete(filled, "then")
    checked(filled)
    assert disk_of(filled) == disk_of(filled, "again") == before
    assert read(filled, "again") == b"other" * 5000
    qemu_img("snapshot", "-d", "again", filled)
    checked(filled)


def test_written_in_any_order(filled: Path) -> None:
    """As a stream of version 2 is, whose lengths are known late; what is passed over is zeros."""
    rng = random.Random(1)
    with Image(filled, writable=True) as image:
        writer = image.write_state("state")
        model = bytearray()
        for _ in range(300):
            position = rng.choice([len(model), rng.randrange(len(model) + 9000)])
            data = rng.randbytes(rng.choice([1, 8, 700, 4096, 70_000]))
            model.extend(bytes(max(0, position + len(data) - len(model))))
            model[position : position + len(data)] = data
            writer.write(position, data)
            assert writer.size == len(model)
        # Larger than what is gathered, at once and behind a gap.
        large = rng.randbytes(9 << 20)
        writer.write(len(model) + 5, large)
        writer.write(3, b"abc")
        model[3:6] = b"abc"
        snapshot = writer.commit()
        assert state_of(image, snapshot) == bytes(model) + bytes(5) + large
        for _ in range(300):
            position, count = rng.randrange(len(model)), rng.randrange(200_000)
            expected = (model + bytes(5))[position : position + count]
            assert image.read_state(snapshot, position, count)[: len(expected)] == expected
        assert image.read_state(snapshot, snapshot.vm_state_size, 1) == b""
        assert image.read_state(snapshot, snapshot.vm_state_size - 1, 9) == large[-1:]
    checked(filled)


def test_given_up(filled: Path) -> None:
    write(filled, "kept", b"k" * 100_000)
    before, size = disk_of(filled), filled.stat().st_size
    listed = qemu_img("info", "--output=json", filled)
    with Image(filled, writable=True) as image:
        image.write_state("a").abandon()
        writer = image.write_state("b", replace=True)
        writer.write(0, bytes(10 << 20))
        with pytest.raises(RuntimeError):
            image.write_state("c")
        with pytest.raises(RuntimeError):
            image.delete(image.find("kept"))
        writer.abandon()
        with pytest.raises(RuntimeError):
            writer.write(0, b"late")
        writer = image.write_state("empty")
        with pytest.raises(ValueError, match="without VM state"):
            writer.commit()
        image.write_state("kept", replace=True).write(0, b"x" * (5 << 20))
    checked(filled)
    assert filled.stat().st_size == size
    assert qemu_img("info", "--output=json", filled) == listed
    assert read(filled, "kept") == b"k" * 100_000
    assert disk_of(filled) == before


def test_what_is_free_is_used_again(filled: Path) -> None:
    for name in "abc":
        write(filled, name, name.encode() * 2_000_000)
    delete(filled, "b")
    end = json.loads(qemu_img("check", "--output=json", filled))["image-end-offset"]
    write(filled, "d", b"d" * 1_500_000)
    checked(filled)
    # The old snapshot table stays until the new one is there.
    with Image(filled) as image:
        assert filled.stat().st_size <= end + image.cluster
    assert [read(filled, name)[:1] for name in "acd"] == [b"a", b"c", b"d"]


@pytest.mark.parametrize("form", ["v2", "v3", "extended-l2", "refcounts-4", "refcounts-64"])
@pytest.mark.parametrize("seed", range(3))
def test_taking_turns_with_qemu_img(tmp_path: Path, form: str, seed: int) -> None:
    rng = random.Random(f"{form} {seed}")
    path = create_filled(tmp_path / "image", FORMS[form])
    # Name → disk and VM state.
    there: dict[str, tuple[str, bytes]] = {}
    current = disk_of(path)
    for turn in range(25):
        name = f"s{turn}"
        kind = rng.choice(
            ["write", "write", "replace", "delete", "-c", "-a", "-d", "io", "give up"]
        )
        state = rng.randbytes(rng.randrange(1, 400_000))
        old = rng.choice(sorted(there)) if there else None
        if kind == "write" and len(there) < 6:
            write(path, name, state)
            there[name] = current, state
        elif kind == "give up":
            with Image(path, writable=True) as image:
                image.write_state(name).write(0, state)
        elif kind == "-c" and len(there) < 6:
            qemu_img("snapshot", "-c", name, path)
            there[name] = current, b""
        elif kind == "io":
            at = rng.randrange(DISK >> 16) << 16
            qemu_io(path, f"write -P {rng.randrange(256)} {at} {rng.randrange(1, 17) * 4096}")
            current = disk_of(path)
        elif old is not None and kind == "replace":
            write(path, old, state, replace=True)
            there[old] = current, state
        elif old is not None and kind == "delete":
            delete(path, old)
            del there[old]
        elif old is not None and kind == "-d":
            qemu_img("snapshot", "-d", old, path)
            del there[old]
        elif old is not None and kind == "-a":
            qemu_img("snapshot", "-a", old, path)
            current = there[old][0]
        checked(path)
        assert disk_of(path) == current
    with Image(path) as image:
        assert {s.name: state_of(image, s) for s in image.snapshots()} == {
            name: state for name, (_, state) in there.items()
        }
    assert all(disk_of(path, name) == disk for name, (disk, _) in there.items())


def test_the_refcount_table_grows(tmp_path: Path) -> None:
    # A table of one cluster: 64 blocks of 64 counts for clusters of 512 bytes.
    path = create_filled(tmp_path / "image", "cluster_size=512,refcount_bits=64")
    before = disk_of(path)
    table = struct.unpack_from(">QI", path.read_bytes(), 48)
    data = random.Random(2).randbytes(20 << 20)
    write(path, "large", data)
    assert struct.unpack_from(">QI", path.read_bytes(), 48)[1] > table[1]
    checked(path)
    assert read(path, "large") == data
    assert disk_of(path) == before


def test_one_bit_of_reference_count(tmp_path: Path) -> None:
    path = create(tmp_path / "image", "refcount_bits=1")
    write(path, "of an empty disk", b"state")
    checked(path)
    assert read(path, "of an empty disk") == b"state"
    path = create_filled(tmp_path / "filled", "refcount_bits=1")
    before = path.read_bytes()
    with Image(path, writable=True) as image, pytest.raises(StreamError) as error:
        image.write_state("one")
    assert error.value.rule == "envelope.qcow2.refcount.width"
    assert path.read_bytes() == before


@pytest.mark.parametrize("bits", [2, 4])
def test_as_many_snapshots_as_the_width_allows(tmp_path: Path, bits: int) -> None:
    path = create_filled(tmp_path / "image", f"refcount_bits={bits},cluster_size=4k")
    for count in range((1 << bits) - 2):
        write(path, str(count), b"state")
    checked(path)
    with Image(path, writable=True) as image, pytest.raises(StreamError) as error:
        image.write_state("one more")
    assert error.value.rule == "envelope.qcow2.refcount.width"
    delete(path, "0")
    write(path, "one more", b"state")
    checked(path)


def crashes(
    path: Path, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, bytes]]:
    """The image as a crash during ``change`` may leave it, at every point.

    All that was synchronised is there, and of what was written since any part.
    """
    before = path.read_bytes()
    epochs: list[list[tuple[int, bytes]]] = [[]]
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def writing(fd: int, data: memoryview, offset: int) -> int:
        epochs[-1].append((offset, bytes(data)))
        return pwrite(fd, data, offset)

    def syncing(fd: int) -> None:
        epochs.append([])
        fdatasync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", writing)
        patch.setattr(os, "fdatasync", syncing)
        change()

    def with_writes(data: bytes, writes: list[tuple[int, bytes]]) -> bytes:
        room = bytearray(data)
        for offset, piece in writes:
            room.extend(bytes(max(0, offset + len(piece) - len(room))))
            room[offset : offset + len(piece)] = piece
        return bytes(room)

    rng = random.Random(3)
    seen = set()
    for number, epoch in enumerate(epochs):
        # Sectors are written whole or not at all.
        sectors = [
            (offset + at, piece[at : at + 512])
            for offset, piece in epoch
            for at in range(0, len(piece), 512)
        ]
        some = [[sector for sector in sectors if rng.random() < 0.5] for _ in range(3)]
        cuts = sorted({0, len(epoch) // 2, len(epoch) - 1, len(epoch)} - {-1})
        some += [epoch[:cut] for cut in cuts] + [epoch[cut:] for cut in cuts]
        # Pointers and table entries: each there before what it points to.
        some += [[(offset, piece)] for offset, piece in epoch if len(piece) < 16]
        for index, writes in enumerate(some):
            data = with_writes(before, writes)
            if (digest := hashlib.sha256(data).digest()) not in seen:
                seen.add(digest)
                yield f"{number}.{index} of {len(epochs)}", data
        before = with_writes(before, epoch)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("write", "v2"),
        ("write", "refcounts-64"),
        ("write", "extended-l2"),
        ("replace", "refcounts-64"),
        ("replace", "v3"),
        ("delete", "v2"),
    ],
)
def test_a_crash_leaves_what_a_repair_of_leaks_repairs(
    tmp_path: Path, kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_filled(tmp_path / "image", FORMS[form])
    disk = disk_of(path)
    states = {name: (name.encode() * size, disk) for name, size in (("a", 70_000), ("b", 30_000))}
    for name, (state, _) in states.items():
        write(path, name, state)
    # Clusters that belong to nothing else, so that those are, too, which lose their COPIED flag.
    qemu_io(path, "write -P 4 0 256k")
    disk = disk_of(path)
    # The larger one moves the refcount table where counts take much room.
    new = b"N" * (3 << 20 if kind == "write" else 200_000)
    after = dict(states)
    if kind == "delete":
        del after["a"]
    else:
        after["n" if kind == "write" else "a"] = new, disk

    def change() -> None:
        if kind == "delete":
            delete(path, "a")
        else:
            write(path, "n" if kind == "write" else "a", new, replace=True)

    def there(path: Path) -> dict[str, tuple[bytes, str]]:
        with Image(path) as image:
            return {s.name: (state_of(image, s), disk_of(path, s.name)) for s in image.snapshots()}

    crashed = tmp_path / "crashed"
    seen = set()
    for point, data in crashes(path, change, monkeypatch):
        crashed.write_bytes(data)
        found = there(crashed)
        assert found in (states, after), point
        seen.add(found == after)
        assert disk_of(crashed) == disk, point
        # Written to as it is, and then repaired.
        qemu_io(crashed, "write -P 8 0 64k")
        assert there(crashed) == found, point
        subprocess.run([QEMU_IMG or "", "check", "-qr", "leaks", crashed], capture_output=True)
        checked(crashed)
        assert there(crashed) == found, point
    assert seen == {True, False}


def content(size: int) -> bytes:
    """What compresses, in part."""
    rng = random.Random(4)
    return b"".join(
        rng.choice([bytes(5000), rng.randbytes(3000), b"pattern " * 900]) for _ in range(size >> 12)
    )[:size].ljust(size, b"\0")


def move_to_state(path: Path, cover: int, size: int) -> None:
    """Have the ``size`` bytes of disk behind ``cover`` be the VM state of the only snapshot."""
    data = bytearray(path.read_bytes())
    entry = struct.unpack_from(">Q", data, 64)[0]
    struct.pack_into(">Q", data, 24, cover)
    struct.pack_into(">QQ", data, entry + 40, size, cover)
    path.write_bytes(data)


def test_compressed_vm_state(tmp_path: Path) -> None:
    cover, state = 2 << 20, content(1 << 20)
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(bytes(cover) + state)
    options = ["convert", "-cf", "raw", "-O", "qcow2", "-o", "cluster_size=4k"]
    qemu_img(*options, raw, path)
    qemu_img("snapshot", "-c", "s", path)
    move_to_state(path, cover, len(state) - 100)
    assert read(path, "s") == state[:-100]
    with Image(path) as image:
        snapshot = image.find("s")
        for at in range(0, len(state), 7001):
            assert image.read_state(snapshot, at, 100) == state[:-100][at : at + 100]
    # And beside it one of ours.
    write(path, "ours", state)
    checked(path)
    assert read(path, "ours") == state
    delete(path, "s")
    checked(path)


def test_vm_state_compressed_with_zstd(tmp_path: Path) -> None:
    cover, state = 2 << 20, content(1 << 20)
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(bytes(cover) + state)
    options = "cluster_size=4k,compression_type=zstd"
    qemu_img("convert", "-cf", "raw", "-O", "qcow2", "-o", options, raw, path)
    qemu_img("snapshot", "-c", "s", path)
    move_to_state(path, cover, len(state))
    if find_spec("backports.zstd") if find_spec("backports") else find_spec("compression"):
        assert read(path, "s") == state
    else:
        with pytest.raises(UnsupportedError, match="zstd, and no Python package"):
            read(path, "s")


@pytest.mark.parametrize(
    ("options", "cover"),
    [("cluster_size=4k", 2 << 20), ("extended_l2=on,cluster_size=16k", 16 << 20)],
)
def test_zeros_and_holes_in_vm_state(tmp_path: Path, options: str, cover: int) -> None:
    size = 1 << 20
    path = create(tmp_path / "image", options, cover + size)
    qemu_io(
        path,
        f"write -P 1 {cover} 200k",
        f"write -z {cover + 0x4000} 8k",
        f"write -P 2 {cover + 0x40200} 512",
        f"write -z {cover + 0x48200} 3584",
        f"discard {cover + 0x8000} 16k",
        f"write -P 3 {cover + 0x80000} 100k",
    )
    raw = tmp_path / "raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    state = raw.read_bytes()[cover:]
    assert len(set(state)) == 4
    qemu_img("snapshot", "-c", "s", path)
    move_to_state(path, cover, size)
    assert read(path, "s") == state


def test_a_table_entry_of_2009(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image", "compat=0.10")
    write(path, "a long name to begin with", b"state" * 9999)
    data = bytearray(path.read_bytes())
    at = struct.unpack_from(">Q", data, 64)[0]
    head = bytearray(data[at : at + 40])
    struct.pack_into(">HH", head, 12, 1, 3)
    struct.pack_into(">II", head, 32, 5 * 9999, 0)
    data[at : at + 44] = head + b"1old"
    path.write_bytes(data)
    assert "old" in qemu_img("snapshot", "-l", path)
    with Image(path) as image:
        (old,) = image.snapshots()
        assert (old.id, old.name, old.vm_state_size, old.disk_size) == ("1", "old", 49995, DISK)
        assert old.icount is None
        assert state_of(image, old) == b"state" * 9999
    write(path, "new", b"n")
    checked(path)
    with Image(path) as image:
        assert image.snapshots()[0] == old._replace(offset=image.snapshots()[0].offset)
    delete(path, "old")
    checked(path)


def test_what_a_snapshot_says(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    date = 1_700_000_000_123_456_789
    with Image(path, writable=True) as image:
        writer = image.write_state("ä \udcff", vm_clock=5_000_000_007, icount=12, date=date)
        writer.write(0, b"s")
        snapshot = writer.commit()
        assert image.snapshots() == [snapshot]
        with pytest.raises(FileExistsError):
            image.write_state("ä \udcff")
        for name in ("", "x" * 256, "ä" * 128):
            with pytest.raises(ValueError, match="1 to 255 bytes"):
                image.write_state(name)
        with pytest.raises(FileNotFoundError):
            image.find("none")
    assert (snapshot.name, snapshot.date, snapshot.vm_clock) == ("ä \udcff", date, 5_000_000_007)
    assert snapshot.icount == 12
    checked(path)


def test_names_come_before_ids(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    write(path, "2", b"named 2")
    write(path, "two", b"numbered 2")
    assert read(path, "2") == b"named 2"
    assert read(path, "1") == b"named 2"


REFUSALS = [
    ("dirty", "compat=1.1", 79, 1),
    ("corrupt", "compat=1.1", 79, 2),
    ("features", "compat=1.1", 79, 32),
    ("features", "compat=1.1", 72, 128),
    ("encrypted", "compat=0.10", 35, 1),
    ("encrypted", "compat=1.1", 35, 2),
]


@pytest.mark.parametrize(("rule", "options", "at", "value"), REFUSALS)
def test_images_that_are_not_written(
    tmp_path: Path, rule: str, options: str, at: int, value: int
) -> None:
    path = create_filled(tmp_path / "image", options)
    write(path, "s", b"state")
    data = bytearray(path.read_bytes())
    data[at] |= value
    path.write_bytes(data)
    with pytest.raises(UnsupportedError) as error:
        write(path, "new", b"x")
    assert error.value.rule == f"envelope.qcow2.{rule}"
    assert error.value.offset == at // 8 * 8 if at > 70 else 32
    with pytest.raises(UnsupportedError) as error:
        delete(path, "s")
    assert path.read_bytes() == bytes(data)
    if rule in ("dirty", "corrupt"):
        assert read(path, "s") == b"state"
    elif rule == "encrypted":
        with pytest.raises(UnsupportedError):
            read(path, "s")


def test_an_external_data_file(tmp_path: Path) -> None:
    path = create(tmp_path / "image", f"data_file={tmp_path / 'data'}")
    with Image(path, writable=True) as image:
        assert image.snapshots() == []
        with pytest.raises(UnsupportedError, match="external data file"):
            image.write_state("s")


def test_an_unknown_autoclear_feature_is_cleared(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    data = bytearray(path.read_bytes())
    data[88] = 0x80
    path.write_bytes(data)
    write(path, "s", b"state")
    assert path.read_bytes()[88:96] == bytes(8)


def test_what_is_in_use_and_counts_as_free_is_not_written_over(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image")
    write(path, "s", b"state" * 50_000)
    good = path.read_bytes()
    block = struct.unpack_from(">Q", good, struct.unpack_from(">Q", good, 48)[0])[0]
    used = [i for i in range(len(good) >> 16) if good[block + 2 * i : block + 2 * i + 2] != b"\0\0"]
    for cluster in used:
        data = bytearray(good)
        data[block + 2 * cluster : block + 2 * cluster + 2] = b"\0\0"
        path.write_bytes(data)
        for change in (lambda: write(path, "new", b"x"), lambda: delete(path, "s")):
            with pytest.raises(StreamError) as error:
                change()
            assert error.value.rule == "envelope.qcow2.refcount"
            assert path.read_bytes() == bytes(data)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Image(tmp_path)
    with pytest.raises(FileNotFoundError):
        Image(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Invalid argument"):
        Image(tmp_path / "fifo")
    for data in (b"", b"QFI", b"QFI\xfb\0\0\0\3", b"raw" * 1000):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(StreamError):
            Image(tmp_path / "file")


def numbers(rng: random.Random, size: int) -> int:
    top = (1 << 8 * size) - 1
    choices = [0, 1, 2, 511, 512, 513, 1 << 31, 1 << 63, 1 << 62, top, top - 1, 0xFFFFFFFF, 65537]
    choices += [rng.getrandbits(8 * size), rng.getrandbits(9), 512 * rng.getrandbits(6)]
    return rng.choice(choices) & top


@pytest.mark.parametrize(
    ("form", "count"), [("clusters-512", 2000), ("v2", 1500), ("extended-l2", 700)]
)
def test_mutations(tmp_path: Path, form: str, count: int) -> None:
    """Nothing but a StreamError or an OSError comes out, and no more memory than there is image."""
    options = {"v2": "compat=0.10,cluster_size=1k"}.get(form, FORMS[form])
    path = create(tmp_path / "image", options, 256 << 10)
    qemu_io(path, "write -P 5 0 20k", "write -P 6 100k 5k")
    write(path, "one", content(5000))
    qemu_io(path, "write -P 7 0 3k")
    write(path, "two", content(3000))
    good = path.read_bytes()
    cluster = 1 << good[23]
    # Everything but the pages of zeros and of data, which nothing can be wrong with.
    targets = list(range(112))
    for start in range(cluster, len(good), cluster):
        words = range(start, min(start + cluster, len(good)), 8)
        targets += [i for i in words if good[i : i + 8].strip(b"\0\5\6\7")]
    rng = random.Random(form)
    rules = set()
    outcomes = {True: 0, False: 0}
    mutated = tmp_path / "mutated"
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.choice(targets)
            size = rng.choice([1, 2, 4, 8])
            data[at : at + size] = numbers(rng, size).to_bytes(size)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        mutated.write_bytes(data)
        tracemalloc.start()
        try:
            fine = []
            for use in (list_and_read, delete_and_write):
                try:
                    use(mutated)
                    fine.append(True)
                except (StreamError, OSError) as error:
                    fine.append(False)
                    rules.add(error.rule if isinstance(error, StreamError) else type(error))
            outcomes[all(fine)] += 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 80 << 20
    assert outcomes[True] > 50
    assert outcomes[False] > 200
    assert len(rules) > 9


@pytest.mark.parametrize("form", ["clusters-512", "v2", "extended-l2", "v3"])
def test_the_grammar_finds_the_same(tmp_path: Path, form: str) -> None:
    path = create(tmp_path / "image", FORMS[form])
    write(path, "one", b"1")
    write(path, "the other", b"2")
    good = path.read_bytes()
    table = struct.unpack_from(">Q", good, 64)[0]
    fields = [(0, 4), (4, 4), (20, 4), (60, 4), (64, 8), (72, 8), (96, 4), (100, 4), (104, 1)]
    fields += [(table + at, size) for at, size in ((8, 4), (12, 2), (14, 2), (32, 4), (36, 4))]
    fields += [(table + at, 8) for at in range(40, 72, 8)]
    rng = random.Random(form)
    found = set()
    mutated = tmp_path / "mutated"
    for _ in range(600):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 1, 2])):
            at, size = rng.choice(fields[:6] if good[7] == 2 and rng.random() < 0.5 else fields)
            data[at : at + size] = numbers(rng, size).to_bytes(size)
        if rng.random() < 0.2:
            del data[rng.choice([rng.randrange(120), rng.randrange(len(data))]) :]
        mutated.write_bytes(data)
        outcomes: list[object] = []
        for use in (in_reference, in_grammar):
            try:
                outcomes.append(use(mutated))
            except (StreamError, GrammarError) as error:
                outcomes.append((error.rule, error.offset))
        reference, grammar = outcomes
        cut = ("envelope.qcow2.truncated", len(data))
        if grammar == cut and reference != cut:
            # The reference has no use for the extensions, which come before the snapshots.
            assert not isinstance(reference, tuple) or reference[1] in (
                64,
                *range(table, len(good)),
            )
            continue
        assert reference == grammar
        if isinstance(grammar, tuple):
            found.add(grammar[0])
    assert len(found) >= (6 if form == "v2" else 9)


def in_reference(path: Path) -> list[tuple[str, str, int, int]]:
    with Image(path) as image:
        return [(s.id, s.name, s.l1_offset, s.l1_entries) for s in image.snapshots()]


def in_grammar(path: Path) -> list[tuple[str, str, int, int]]:
    entries = parse(path.read_bytes()).snapshots or ()
    return [(e.id, e.name, e.l1_table_offset, e.l1_size) for e in entries]


def broken(data: bytearray, path: Path, at: int, value: bytes) -> None:
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_rules_of_clusters(tmp_path: Path) -> None:
    """Those that need more than the header and the snapshot table."""
    path = create_filled(tmp_path / "image", "compat=0.10")
    snapshot = write(path, "s", b"state")
    good = path.read_bytes()
    l2 = struct.unpack_from(">Q", good, snapshot.l1_offset + 8)[0]
    for rule, offset, at, value in (
        ("cluster", l2, l2 + 7, b"\1"),
        ("alignment", l2, l2 + 6, b"\2"),
        ("compressed", l2, l2, b"\x40"),
        ("truncated", l2, l2, b"\x40\0\xff"),
        ("truncated", l2, l2 + 1, b"\xff"),
        ("truncated", snapshot.l1_offset + 8, snapshot.l1_offset + 9, b"\xff"),
        ("alignment", snapshot.l1_offset + 8, snapshot.l1_offset + 14, b"\2"),
        ("alignment", snapshot.offset, snapshot.offset + 6, b"\2"),
        ("truncated", snapshot.offset, snapshot.offset, b"\2"),
        ("snapshot.vm-state", snapshot.offset, snapshot.offset + 8, b"\0\0\0\1"),
        ("snapshot.vm-state", snapshot.offset, snapshot.offset + 40, b"\1"),
        ("limit", snapshot.offset + 8, snapshot.offset + 8, b"\x7f"),
    ):
        broken(bytearray(good), path, at, value)
        with pytest.raises(StreamError) as error:
            read(path, "s")
        assert (error.value.rule, error.value.offset) == (f"envelope.qcow2.{rule}", offset), value
    block = struct.unpack_from(">Q", good, 48)[0]
    for rule, offset, at, value in (
        ("l1-size", 36, 36, bytes(4)),
        ("limit", 40, 36, b"\x7f"),
        ("truncated", 40, 36, b"\0\x3f"),
        ("alignment", 48, 54, b"\2"),
        ("limit", 48, 56, b"\x7f"),
        ("truncated", 48, 56, b"\0\0\0\x7f"),
        ("alignment", block, block + 6, b"\2"),
        ("shared", block + 8, block + 8, good[block : block + 8]),
    ):
        broken(bytearray(good), path, at, value)
        with pytest.raises(StreamError) as error:
            write(path, "new", b"x")
        assert (error.value.rule, error.value.offset) == (f"envelope.qcow2.{rule}", offset), value


def list_and_read(path: Path) -> None:
    with Image(path) as image:
        for snapshot in image.snapshots():
            for at in (0, max(0, snapshot.vm_state_size - 4096)):
                image.read_state(snapshot, at, 1 << 20)


def delete_and_write(path: Path) -> None:
    with Image(path, writable=True) as image:
        for snapshot in image.snapshots()[:1]:
            image.delete(snapshot)
        writer = image.write_state("new")
        writer.write(0, b"new" * 1000)
        writer.commit()


def test_claims_cost_nothing(tmp_path: Path) -> None:
    """Sizes that a few bytes claim are refused before anything is made of them."""
    path = create(tmp_path / "image", "cluster_size=2M", 1 << 50)
    write(path, "s", b"state")
    good = path.read_bytes()
    table = struct.unpack_from(">Q", good, 64)[0]
    for use, at, value in (
        (delete_and_write, 36, b"\xff" * 4),  # entries of the active L1 table
        (delete_and_write, 56, b"\xff" * 4),  # clusters of the refcount table
        (list_and_read, 60, b"\xff" * 4),  # snapshots
        (list_and_read, 60, b"\0\1\0\0"),
        (delete_and_write, table + 8, b"\xff" * 4),  # entries of the snapshot's L1 table
        (list_and_read, table + 36, b"\0\0\4\1"),  # extra data
        (list_and_read, table + 40, b"\x7f" + b"\xff" * 7),  # VM state
        (list_and_read, table + 48, b"\xff" * 8),  # disk
    ):
        data = bytearray(good)
        data[at : at + len(value)] = value
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(StreamError):
                use(path)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()


def test_one_l2_table_for_all_of_a_large_disk(tmp_path: Path) -> None:
    """Ten million entries from a few kilobytes: refused at the second reference."""
    path = create(tmp_path / "image", "cluster_size=512", 16 << 20)
    qemu_io(path, "write -P 1 0 512")
    data = bytearray(path.read_bytes())
    l1 = struct.unpack_from(">Q", data, 40)[0]
    data[l1 : l1 + 8 * 512] = data[l1 : l1 + 8] * 512
    path.write_bytes(data)
    with Image(path, writable=True) as image, pytest.raises(StreamError) as error:
        image.write_state("s")
    assert (error.value.rule, error.value.offset) == ("envelope.qcow2.shared", l1 + 8)


def test_l1_tables_within_each_other(tmp_path: Path) -> None:
    """Else some megabytes of file have a hundred thousand times as many entries."""
    path = create_filled(tmp_path / "image")
    for name in "ab":
        write(path, name, b"state")
    data = bytearray(path.read_bytes())
    table = struct.unpack_from(">Q", data, 64)[0]
    with Image(path) as image:
        first, second = image.snapshots()
    assert data[second.offset : second.offset + 8] == second.l1_offset.to_bytes(8)
    data[second.offset : second.offset + 8] = first.l1_offset.to_bytes(8)
    path.write_bytes(data)
    with Image(path, writable=True) as image, pytest.raises(StreamError) as error:
        image.write_state("c")
    assert error.value.rule == "envelope.qcow2.shared"
    assert error.value.offset in (table, second.offset)


def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """What is large here is mostly not allocated: one L1 entry covers 512 GiB."""
    path = create(tmp_path / "image", "cluster_size=2M")
    with Image(path, writable=True) as image:
        snapshot = image.write_state("s")
        snapshot.write(0, b"begin")
        offset = snapshot.commit().offset
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, offset + 32, 0)
    struct.pack_into(">Q", data, offset + 40, 5 << 30)
    path.write_bytes(data)
    assert "5 GiB" in qemu_img("snapshot", "-l", path)
    with Image(path) as image:
        large = image.find("s")
        assert large.vm_state_size == 5 << 30
        assert image.read_state(large, 0, 7) == b"begin\0\0"
        assert image.read_state(large, (5 << 30) - 3, 7) == bytes(3)


def test_beside_a_persistent_bitmap(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image", "cluster_size=4k")
    qemu_img("bitmap", "--add", path, "changes")
    qemu_io(path, "write -P 1 0 64k")
    bitmaps = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]
    write(path, "s", content(1 << 20))
    checked(path)
    delete(path, "s")
    checked(path)
    after = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]
    assert after == bitmaps
    assert after["bitmaps"][0]["name"] == "changes"


def test_memory_does_not_grow_with_the_state(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    piece = random.Random(5).randbytes(1 << 20)
    tracemalloc.start()
    try:
        with Image(path, writable=True) as image:
            writer = image.write_state("large")
            for index in range(400):
                writer.write(index << 20, piece)
            snapshot = writer.commit()
            for index in range(400):
                assert image.read_state(snapshot, index << 20, 1 << 20) == piece
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    checked(path)


# The transport


def test_through_a_channel(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image")
    data = content(3 << 20)
    output = StateOutput(str(path), "s")
    channel = Channel(output)
    for at in range(0, len(data), 5000):
        channel.write(data[at : at + 5000])
    assert channel.close() == 0
    assert output.close() == 0
    checked(path)
    source = Channel(StateInput(str(path), "s"))
    found = bytearray()
    while piece := source.read(70_000):
        found += piece
    # QEMU would go on with zeros.
    assert found == data
    assert source.end is End.CLEAN
    assert source.close() == 0


def test_an_output_that_is_abandoned_or_fails(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image")
    before = path.read_bytes()
    output = StateOutput(str(path), "s")
    assert output.put_buffer(memoryview(bytes(9 << 20)), 0) == 9 << 20
    output.abandon()
    assert output.close() == 0
    output = StateOutput(str(path), "s")
    assert output.close() < 0
    assert "without VM state" in output.reason
    assert path.read_bytes() == before


def test_a_full_disk(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from savevm.transport.disk_image import StateOutput\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))\n"
        "output = StateOutput(sys.argv[1], 's')\n"
        "print(output.put_buffer(memoryview(bytes(1 << 20)), 0), output.close())\n"
    )
    path = create_filled(tmp_path / "image", "cluster_size=4k")
    before = path.read_bytes()
    # The last of them let the VM state in, but not all the tables for it.
    limits = [len(before), len(before) + 70_000, *range(len(before) + 1_020_000, 1 << 30, 4096)]
    failed = 0
    for limit in limits:
        done = subprocess.run(
            [sys.executable, "-c", program, path, str(limit)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        put, closed = map(int, done.stdout.split())
        if closed == 0:
            break
        assert closed == -27
        assert put in (1 << 20, -27)
        assert path.read_bytes() == before
        failed += 1
    assert failed > 4
    checked(path)


def test_input_that_is_not_there(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    qemu_img("snapshot", "-c", "disk", path)
    with pytest.raises(OSError, match="disk only"):
        StateInput(str(path), "disk")
    with pytest.raises(FileNotFoundError):
        StateInput(str(path), "none")


def test_a_broken_rule_in_the_middle(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    snapshot = write(path, "s", content(1 << 20))
    data = bytearray(path.read_bytes())
    l2 = struct.unpack_from(">Q", data, snapshot.l1_offset + 8)[0]
    data[l2 + 8 * 3 + 6] ^= 2
    path.write_bytes(data)
    source = StateInput(str(path), "s")
    room = memoryview(bytearray(1 << 20))
    assert source.get_buffer(room[: 3 << 16], 0) == 3 << 16
    assert source.get_buffer(room, 3 << 16) == -22
    assert source.broken is not None
    assert (source.broken.rule, source.broken.offset) == ("envelope.qcow2.alignment", l2 + 24)


# The command


def savevm(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "savevm.cli", *argv], capture_output=True, text=True, timeout=60
    )


def test_the_command(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image")
    assert savevm("snapshots", path).stdout == ""
    with Image(path, writable=True) as image:
        writer = image.write_state("first\n", vm_clock=3_723_004_000_000, date=10**18)
        writer.write(0, bytes(1 << 20))
        writer.commit()
    qemu_img("snapshot", "-c", "disk", path)
    done = savevm("snapshots", path)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["1", r"first\n", "1", "MiB", "2001-09-09", "01:46:40", "01:02:03.004"]
    assert lines[2][:3] == ["2", "disk", "-"]
    listed = json.loads(savevm("snapshots", "--json", path).stdout)
    assert listed[0] == {
        "id": "1",
        "name": "first\n",
        "vm_state_size": 1 << 20,
        "disk_size": DISK,
        "date": 10**18,
        "vm_clock": 3_723_004_000_000,
        "icount": None,
    }
    done = savevm("snapshots", "--delete", "1", "--json", path)
    assert [s["name"] for s in json.loads(done.stdout)] == ["disk"]
    checked(path)
    done = savevm("snapshots", "--delete", "1", path)
    assert done.returncode == 2
    assert "no snapshot '1'" in done.stderr
    assert savevm("snapshots", tmp_path / "absent").returncode == 2
    path.write_bytes(b"QFI\xfb\0\0\0\4")
    done = savevm("snapshots", path)
    assert done.returncode == 1
    assert "error: offset 4: version 4" in done.stderr
    assert "[envelope.qcow2.version]" in done.stderr


# Real machines


def find_qemu() -> str:
    """From SAVEVM_QEMU (a file or directory) or PATH; skips where there is none."""
    name = "qemu-system-x86_64"
    named = Path(os.environ.get("SAVEVM_QEMU", name))
    found = shutil.which(named / name if named.is_dir() else named)
    if found is None or Path(found).name != name:
        pytest.skip(f"no {name} on PATH or at SAVEVM_QEMU: images are not held against a real QEMU")
    return found


class Guest:
    """A PC whose disk is ``path``, driven over QMP."""

    def __init__(self, path: Path, *options: str) -> None:
        self.directory = path.parent
        argv = [find_qemu(), "-M", "pc", "-m", "16M", "-nodefaults", "-display", "none"]
        argv += ["-accel", "tcg", "-drive", f"file={path},if=virtio,format=qcow2", *options]
        argv += ["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"]
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        self._monitor = ours.makefile("rw", encoding="utf-8")
        ours.close()
        if not self._monitor.readline():
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read().decode())
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        json.dump({"execute": command, "arguments": arguments}, self._monitor)
        self._monitor.flush()
        while line := self._monitor.readline():
            answer = json.loads(line)
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]
        raise AssertionError(f"QEMU ended over {command}")

    def monitor(self, command: str) -> str:
        said = self.execute("human-monitor-command", **{"command-line": command})
        assert isinstance(said, str)
        return said.strip()

    def memory(self) -> bytes:
        path = self.directory / "memory"
        self.execute("pmemsave", val=0, size=16 << 20, filename=str(path))
        return path.read_bytes()

    def ticks(self) -> int:
        """What the firmware counts while it waits for something to boot."""
        return int.from_bytes(self.memory()[0x46C:0x470], "little")

    def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not what():
            assert time.monotonic() < end
            time.sleep(0.05)

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._monitor.close()
        self.process.kill()
        self.process.communicate()


def reads_to_the_end(stream: bytes) -> None:
    reader = Reader()
    reader.feed(stream)
    reader.finish()
    assert reader.error is None
    assert reader.trailing is None


@pytest.mark.parametrize("form", ["v2", "v3", "clusters-512", "extended-l2"])
def test_with_a_machine(tmp_path: Path, form: str) -> None:
    """QEMU saves, we read; we write, QEMU loads and runs; and both live in one image."""
    path = create_filled(tmp_path / "image", FORMS[form])
    disk = disk_of(path)
    stream = tmp_path / "stream"
    with Guest(path) as guest:
        guest.until(lambda: guest.ticks() > 10)
        guest.execute("stop")
        memory = guest.memory()
        assert guest.monitor("savevm theirs") == ""
        guest.execute("migrate", uri=f"exec:cat > {stream}")
        guest.until(lambda: guest.execute("query-migrate")["status"] == "completed")
        guest.execute("quit")
        guest.process.wait()
    with Image(path) as image:
        theirs = image.find("theirs")
        saved = state_of(image, theirs)
        assert theirs.vm_clock > 0
    reads_to_the_end(saved)
    migrated = stream.read_bytes()
    for name, data in (("copied", saved), ("ours", migrated)):
        channel = Channel(StateOutput(str(path), name, vm_clock=theirs.vm_clock))
        channel.write(data)
        assert channel.close() == 0
    checked(path)
    assert disk_of(path) == disk
    for name in ("theirs", "copied", "ours"):
        with Guest(path, "-loadvm", name, "-S") as guest:
            assert guest.memory() == memory
            ticks = guest.ticks()
            guest.execute("cont")
            guest.until(lambda t=ticks: guest.ticks() > t)  # type: ignore[misc]
            assert guest.execute("query-status")["status"] == "running"
            if name == "ours":
                assert guest.monitor("savevm theirs") == ""
                assert guest.monitor("delvm copied") == ""
            guest.execute("quit")
            guest.process.wait()
        checked(path)
    with Image(path, writable=True) as image:
        assert [s.name for s in image.snapshots()] == ["ours", "theirs"]
        reads_to_the_end(state_of(image, image.find("theirs")))
        assert state_of(image, image.find("ours")) == migrated
        image.delete(image.find("ours"))
    checked(path)
    with Guest(path, "-loadvm", "theirs") as guest:
        assert guest.execute("query-status")["status"] == "running"


def test_locks(tmp_path: Path) -> None:
    path = create_filled(tmp_path / "image")
    write(path, "s", b"state")
    with Guest(path, "-S"):
        with pytest.raises(BlockingIOError):
            Image(path, writable=True)
        with pytest.raises(BlockingIOError):
            Image(path)
        with Image(path, locked=False) as image:
            assert image.find("s").vm_state_size == 5
        assert "written by another process" in savevm("snapshots", path).stderr
        assert savevm("snapshots", "-U", path).returncode == 0
        assert savevm("snapshots", "-U", "--delete", "s", path).returncode == 2
    with Image(path) as image, Image(path), pytest.raises(BlockingIOError):
        Image(path, writable=True)
    for writable in (True, False):
        with Image(path, writable=writable) as image:
            # QEMU sees our locks too.
            done = subprocess.run(
                [QEMU_IMG or "", "snapshot", "-d", "s", path], capture_output=True, text=True
            )
            assert done.returncode != 0
            assert "lock" in done.stderr
            done = subprocess.run([QEMU_IMG or "", "info", path], capture_output=True, text=True)
            assert (done.returncode == 0) is not writable
    assert read(path, "s") == b"state"
