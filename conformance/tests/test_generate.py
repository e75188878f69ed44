"""The generator: vectors as they are, changes, seeds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from savevm_conformance.generate import files, vectors
from savevm_conformance.generate.model import (
    END,
    Accepted,
    Change,
    Cut,
    Drop,
    Insert,
    Patch,
    Rejected,
    Rename,
    Set,
    Vector,
    reject,
)
from savevm_conformance.locate import VARIABLE, vectors_directory
from savevm_conformance.seeds import (
    drop_ram,
    fill_offsets,
    pack,
    seeds,
    seeds_directory,
    shrink,
    wipe_ram,
)
from savevm_conformance.wire import MAIN, ROM, Wire


def test_check_is_clean() -> None:
    problems: list[str] = []
    assert files.generate(vectors_directory(), check=True, problem=problems.append) == 0, problems


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    root = tmp_path / "vectors"
    shutil.copytree(vectors_directory(), root)
    return root


def _remove(root: Path) -> None:
    (root / "header/reject/empty/stream.bin").unlink()


def _damage(root: Path) -> None:
    (root / "header/reject/magic-wrong/expect.json").write_text("{}\n")


def _add(root: Path) -> None:
    (root / "header/accept/nobodys").mkdir()


@pytest.mark.parametrize("harm", [_remove, _damage, _add])
def test_check_finds_and_generate_mends(copy: Path, harm: Callable[[Path], None]) -> None:
    harm(copy)
    problems: list[str] = []
    assert files.generate(copy, check=True, problem=problems.append) == len(problems) == 1
    assert files.generate(copy) == 1
    assert files.generate(copy, check=True) == 0


def test_digests_made_afresh_are_the_same(copy: Path) -> None:
    shutil.rmtree(copy / "ram/accept")
    files.generate(copy)
    assert files.generate(copy, check=True, afresh=True) == 0


BASE = Vector(
    area="header",
    verdict="accept",
    slug="base",
    description="",
    rules=(),
    source="generator",
    wire=Wire().put(b"ab", "one").name(b"cd", "two").put(b"ef", "three"),
    expect=Accepted("v3-2008"),
)


@pytest.mark.parametrize(
    ("change", "data", "offset"),
    [
        (Set("one", b"xyz"), b"xyz\x02cdef", 0),
        (Patch("three", 1, b"x"), b"ab\x02cdex", 6),
        (Rename("two", b"long"), b"ab\x04longef", 2),
        (Insert("three", b"xy"), b"ab\x02cdxyef", 5),
        (Drop("one", "three"), b"ef", 0),
        (Cut("two", 1), b"ab\x02c", 4),
    ],
)
def test_changes(change: Change, data: bytes, offset: int) -> None:
    vector = reject("header/x", "header.magic", BASE, change, "")
    assert vector.data == data
    assert vector.change == change.says(BASE.wire)
    assert vector.expect == expected(offset)
    assert reject("header/x", "header.magic", BASE, change, "", at=END).expect == expected(
        len(data)
    )


def expected(offset: int) -> Rejected:
    return Rejected("header.magic", offset, None)


def test_fault_behind_a_change_moves_with_it() -> None:
    vector = reject("header/x", "header.magic", BASE, Set("one", b"xyz"), "", at="three", plus=1)
    assert vector.expect == expected(7)


def test_every_vector_is_generated_once() -> None:
    assert all(name == vector.id for name, vector in vectors().items())


def test_a_disagreement_is_told(tmp_path: Path) -> None:
    good = vectors()["header/accept/shortest"]
    wrong = Vector(
        area=good.area,
        verdict=good.verdict,
        slug=good.slug,
        description=good.description,
        rules=good.rules,
        source=good.source,
        wire=good.wire,
        expect=Accepted("v1"),
    )
    readers = files.Readers(tmp_path)
    try:
        assert files.make(good, readers)["requires"] == []
        with pytest.raises(files.DisagreementError, match="dialect: 'v1' and 'v3-2008'"):
            files.make(wrong, readers)
    finally:
        readers.close()


def test_seeds_have_files_and_entries() -> None:
    names = {path.name.removesuffix(".bin.xz") for path in seeds_directory().glob("*.bin.xz")}
    assert names == set(seeds())


@pytest.mark.parametrize("name", seeds())
def test_seed_packs_to_itself(name: str) -> None:
    path = seeds_directory() / f"{name}.bin.xz"
    data = seeds()[name].data()
    assert data.startswith(b"QEVM")
    assert len(path.read_bytes()) < len(data)
    assert len(pack(data)) <= len(path.read_bytes()) + 64


@pytest.mark.parametrize(
    ("name", "page_size"),
    [("avr-7.2", 256), ("microbit-10.0", 1024), ("v3-0.12.5", 4096), ("v3-0.14.1", 4096)],
)
def test_shrinking_twice_changes_nothing(name: str, page_size: int) -> None:
    data = seeds()[name].data()
    assert shrink(data, page_size, keep=3) == data
    assert len(shrink(data, page_size, keep=1)) < len(data)


def test_shrink_takes_disks_out() -> None:
    wire = Wire().header().section(1, 1, b"block", 0, 1).word(4, "progress")
    wire.word(1).name(b"hda", "name").put(bytes(1 << 20), "data").word(9).name(b"hda", "name")
    wire.word(2).section(4, 2, b"timer", 0, 2).put(bytes(24)).eof()
    wanted = Wire().header().section(1, 1, b"block", 0, 1).word(4).word(2)
    wanted.section(4, 2, b"timer", 0, 2).put(bytes(24)).eof()
    assert shrink(bytes(wire.data), 4096) == bytes(wanted.data)


def test_ram_without_block_names_is_wiped_or_dropped() -> None:
    page = bytes(range(256)) * 16
    before, behind = Wire().record(b"timer", 0, 1, bytes(16)), Wire().record(b"cpu", 0, 1, b"state")

    def stream(*records: Wire) -> bytes:
        wire = Wire().header(1)
        for record in records:
            wire.append(record)
        return bytes(wire.data)

    full = Wire().record(b"ram", 0, 1, Wire().plain_ram(page, page, 7, page))
    wiped = Wire().record(b"ram", 0, 1, Wire().plain_ram(0, page, 7, 0))
    data = stream(before, full, behind)
    assert wipe_ram(data, frozenset({0x1000})) == stream(before, wiped, behind)
    with pytest.raises(ValueError, match="no single record"):
        wipe_ram(stream(before, behind), frozenset())

    def second(data: bytes) -> bytes:
        return b"QEVM\0\0\0\2" + (len(data) - 8).to_bytes(8, "big") + data[8:]

    assert drop_ram(second(data)) == second(stream(before, behind))


def test_fill_offsets() -> None:
    data = seeds()["v3-1.0-rc2-no-block"].data()
    offsets = fill_offsets(data, 4096)
    assert offsets
    assert all(data[offset] for offset in offsets)


def test_shrink_keeps_what_it_is_told_to() -> None:
    page = bytes(range(256)) * 16
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4)
    wire.blocks(main=0x5000, rom=0x1000).page(8, MAIN, page)
    for address in (0x1000, 0x2000, 0x3000, 0x4000):
        wire.page(address | 2)
    wire.page(8, ROM, page).end_of_section().footer(2).eof()
    small = shrink(bytes(wire.data), 4096, keep=1, keep_pages=frozenset({ROM}))
    wanted = Wire().header().machine().section(1, 2, b"ram", 0, 4)
    wanted.blocks(main=0x5000, rom=0x1000).page(2, MAIN).page(0x4002)
    wanted.page(8, ROM, page).end_of_section().footer(2).eof()
    assert small == bytes(wanted.data)


def test_vectors_elsewhere(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(copy))
    assert vectors_directory() == copy
    monkeypatch.setenv(VARIABLE, str(copy / "nowhere"))
    with pytest.raises(FileNotFoundError, match=VARIABLE):
        vectors_directory()
