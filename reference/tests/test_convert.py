"""Streams written anew in other dialects and envelopes: what comes out, and what is refused."""

import errno
import json
import lzma
import os
import random
import shutil
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boards import PAGE, Blob, Board, Counter
from streams import (
    EOF,
    EOS,
    HEADER,
    VECTORS,
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
from test_cli import described, savevm
from test_qcow2 import QEMU_IMG, Guest, checked, create

from savevm.channel import Channel
from savevm.convert import CannotConvertError, ReadBack, Saved, plan, write
from savevm.diff import Contents, Difference, Ignored, differences
from savevm.envelope import libvirt
from savevm.ram import RamBlock
from savevm.savevm import Format, Ram, Registry, save
from savevm.transcript import transcribe
from savevm.transport.memory import MemoryOutput
from savevm.vmdesc import find_description
from savevm.vmstate import by_name
from savevm_spec.dialects import DIALECTS

WRITTEN = [name for name in DIALECTS if name != "v1"]
MIB = 1 << 20
NEVER = "/nonexistent"


def vector(name: str) -> bytes:
    return (VECTORS / name / "stream.bin").read_bytes()


def saved(data: bytes, block: str | None = None) -> Saved:
    whole = Saved(description=find_description(data), searched=True, block_name=block)
    whole.take(whole.reader.feed(data))
    whole.take(whole.reader.finish())
    assert whole.reader.error is None
    whole.finish()
    return whole


def rewritten(data: bytes, target: str, block: str | None = None, **options: Any) -> bytes:
    """``data`` in another dialect, and held against what it was."""
    planned = plan(saved(data, block), target, **options)
    output = MemoryOutput()
    assert write(planned, output, lambda done, left: None) == len(output.data)
    result = bytes(output.data)
    back = ReadBack(planned, find_description(result))
    back.take(back.reader.feed(result))
    back.take(back.reader.finish())
    assert back.difference() is None
    return result


def contents(data: bytes, page_size: int = PAGE) -> Contents:
    whole = Contents(description=find_description(data), searched=True, page_size=page_size)
    whole.take(whole.reader.feed(data))
    whole.take(whole.reader.finish())
    whole.finish()
    return whole


def unlike(a: bytes, b: bytes, *ignored: str) -> list[Difference]:
    first = contents(a)
    return list(differences(first, contents(b, first.page_size), Ignored(ignored)))


def devices(data: bytes) -> dict[tuple[str, int], Any]:
    """Fields of the devices that have any."""
    return {
        (record["idstr"], record["instance_id"]): by_name(record["body"])
        for record in transcribe(data)["records"]
        if record.get("body", {}).get("kind") == "vmstate"
    }


def board(dialect: str = "v3-configuration", *extra: Any, **options: Any) -> bytes:
    machine = Board(*extra, **options)
    machine.scribble(random.Random(3), 40)
    output = MemoryOutput()
    save(machine.registry, Channel(output), Format(dialect, "board"), machine)
    return bytes(output.data)


def old_pc(dialect: str = "v2") -> bytes:
    """RAM without a name, between two devices that have a schema."""
    registry = Registry()
    ram = RamBlock("pc.ram", 64 * PAGE)
    chance = random.Random(8)
    for place in range(0, 60 * PAGE, 9999):
        ram.write(place, chance.randbytes(5000))
    for idstr in ("timer", "ram", "0000:00:01.0/timer"):
        if idstr == "ram":
            registry.register(Ram([ram], priority=0))
        else:
            timer = Counter(idstr, version_id=1)
            timer.state = [chance.randrange(1 << 60), -chance.randrange(1 << 60)]
            registry.register(timer)
    output = MemoryOutput()
    save(registry, Channel(output), Format(dialect))
    return bytes(output.data)


# What was written is what was read


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("path", accepted_vectors(), ids=lambda p: "/".join(p.parts[-4:-1:2]))
def test_what_is_written_is_the_same_machine(path: Path, target: str) -> None:
    """Every good stream that there is: in any dialect it is the same, or it is refused."""
    data = path.read_bytes()
    if len(data) > 16 * MIB:
        pytest.skip("takes too long here")
    drop = ("configuration", "commands")
    machine = "none" if DIALECTS[target].configuration else None
    try:
        result = rewritten(data, target, "pc.ram", machine=machine, drop=drop)
    except CannotConvertError:
        return
    except OSError as error:
        # RAM of 2^62 bytes.
        if error.errno != errno.ENOMEM:
            raise
        assert max(b["used_length"] for b in transcribe(data)["ram"]) > 1 << 60
        return
    assert transcribe(result)["error"] is None
    assert transcribe(result)["dialect"] == target or b"\3ram" not in result
    assert unlike(data, result, "configuration") == []
    if DIALECTS[target].vmdescription:
        # What the fields of devices are is not forgotten.
        assert devices(result) == devices(data)


CHAINS: dict[str, list[str]] = {
    "made": ["v3-2008", "v3-ram3", "v3-ram4", "v3-vmdesc", "v3-configuration", "v2"],
    "v2-0.9.1": ["v3-2008", "v3-ram3", "v3-ram4", "v3-vmdesc", "v3-configuration", "v2"],
    "v3-r5434": ["v2", "v3-ram3", "v3-configuration", "v3-ram4", "v3-2008"],
    "v3-0.14.1": ["v3-vmdesc", "v3-configuration", "v3-ram4", "v3-vmdesc", "v3-ram4"],
    "v3-0.10.6": ["v2", "v3-ram4", "v3-2008", "v3-ram3"],
    "v1-0.8.1": ["v3-2008", "v3-vmdesc", "v2"],
}


@pytest.mark.parametrize("name", CHAINS)
def test_through_the_dialects_and_back(name: str) -> None:
    first = data = old_pc() if name == "made" else vector(f"legacy/accept/{name}")
    for target in CHAINS[name]:
        machine = "pc" if DIALECTS[target].configuration else None
        block = None if name == "v3-0.14.1" else "pc.ram"
        data = rewritten(data, target, block, machine=machine, drop=("configuration",))
        assert transcribe(data)["dialect"] == target or not transcribe(data)["ram"]
        assert unlike(first, data, "configuration") == []
    if CHAINS[name][-1] == transcribe(first)["dialect"] == "v2":
        # RAM in between, and all in its order.
        assert data == first or "ng" in zlib.ZLIB_RUNTIME_VERSION


STREAMS = sorted(Path(os.environ.get("SAVEVM_STREAMS", NEVER)).glob("*.bin.xz"))


@pytest.mark.skipif(not STREAMS, reason="SAVEVM_STREAMS names no folder with *.bin.xz")
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name.partition(".bin")[0])
def test_real_streams_in_every_dialect_that_has_a_form_for_them(path: Path) -> None:
    data = lzma.decompress(path.read_bytes())
    written = []
    for target in WRITTEN:
        machine = "pc" if DIALECTS[target].configuration else None
        try:
            result = rewritten(data, target, "pc.ram", machine=machine, drop=("configuration",))
        except CannotConvertError:
            continue
        written.append(target)
        assert unlike(data, result, "configuration") == []
    rules = [finding["rule"] for finding in transcribe(data)["findings"]]
    # QEMU 5.2 and 7.2 give both IDE channels of an isapc the same instance id.
    if "stream.undelimited" in rules or path.name[:16] in ("5.2_x86_64_isapc", "7.2_x86_64_isapc"):
        assert written == []
    else:
        assert {"v3-vmdesc", "v3-configuration"} <= set(written)
    if "v0.9.1" in path.name or "r5434" in path.name:
        there = rewritten(rewritten(data, "v3-2008"), "v2")
        again = rewritten(there, "v2" if data[7] == 2 else "v3-2008")
        assert again == data or "ng" in zlib.ZLIB_RUNTIME_VERSION


def test_a_modern_stream_keeps_its_order_ids_and_configuration() -> None:
    data = vector("configuration/accept/uuid-7.2")
    again = rewritten(data, "v3-configuration")
    names = ("idstr", "instance_id", "version_id", "section_id", "machine", "subsections")

    def outline(data: bytes) -> list[dict[str, Any]]:
        records = [{n: r[n] for n in names if n in r} for r in transcribe(data)["records"]]
        # How often a live section has its turn is the writer's business.
        return [r for i, r in enumerate(records) if r and r not in records[:i]]

    assert outline(again) == outline(data)


def live(idstr: str, version: int, *bodies: bytes) -> bytes:
    """A live section of another kind than RAM, and more RAM than goes into one of its turns."""
    pages = [page(0, random.Random(1).randbytes(PAGE), "r")]
    pages += [page(i * PAGE, random.Random(i).randbytes(PAGE)) for i in range(1, 600)]
    return (
        HEADER
        + configuration()
        + start(2, "ram", blocks(("r", 600 * PAGE)) + EOS)
        + start(3, idstr, bodies[0], version=version)
        + part(2, b"".join(pages) + EOS)
        + b"".join(part(3, body) for body in bodies[1:-1])
        + part(2, EOS, kind=3)
        + part(3, bodies[-1], kind=3)
        + EOF
    )


def chunk(index: int, *entries: int, invalid: int = 0) -> bytes:
    body = b"".join(struct.pack(">QQ", entry, entry) for entry in entries)
    return struct.pack(">IHH", index, len(entries), invalid) + body


END_OF_TABLE = struct.pack(">II", 0, 0)
LIVE = {
    "spapr/htab": (
        1,
        struct.pack(">I", 16),
        *(struct.pack(">I", 0) + chunk(8 * i, i + 1) + END_OF_TABLE for i in range(9)),
        struct.pack(">I", 0) + chunk(7, invalid=2) + END_OF_TABLE,
    ),
    "s390-storage_attributes": (
        0,
        word(1),
        *(word(i << 14 | 2) + word(3) + b"abc" + word(1) for i in range(9)),
        word(8) + word(1),
    ),
    "block": (
        1,
        word(4) + word(2),
        *(word(i << 20 | 1) + b"\2hd" + bytes((i,)) * MIB + word(2) for i in range(4)),
        word(9 << 20 | 9) + b"\2hd" + word(100 << 9 | 4) + word(2),
    ),
}


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("idstr", LIVE)
def test_other_live_sections_are_carried_as_they_came(idstr: str, target: str) -> None:
    version, *bodies = LIVE[idstr]
    assert isinstance(version, int)
    data = live(idstr, version, *bodies)  # type: ignore[arg-type]
    assert transcribe(data)["error"] is None
    machine = "none" if DIALECTS[target].configuration else None
    if target == "v2":
        with pytest.raises(CannotConvertError, match=f"{idstr!r} is live"):
            rewritten(data, target, drop=("configuration",))
        without = rewritten(data, target, drop=("configuration", idstr))
        assert [d.path for d in unlike(data, without, "configuration")] == [idstr]
        return
    result = rewritten(data, target, machine=machine, drop=("configuration",))
    assert unlike(data, result, "configuration") == []

    def said(data: bytes) -> list[Any]:
        found = [r["body"] for r in transcribe(data)["records"] if r.get("idstr") == idstr]
        chunks = [c for body in found for c in body.get("chunks", ())]
        words = [w for body in found for w in body.get("words", ()) if w["flag"] != "eos"]
        disks = [body["devices"] for body in found if body.get("devices")]
        return [chunks, words, disks, [p for body in found for p in body.get("progress", ())]]

    assert said(result) == said(data)


# What is refused, and why


def fields(count: int) -> dict[str, Any]:
    return {
        "name": "dev",
        "instance_id": 0,
        "vmsd_name": "dev",
        "version": 1,
        "fields": [{"name": "x", "type": "buffer", "size": count}],
    }


def with_device(idstr: str = "dev", body: bytes = b"abc") -> bytes:
    text = json.dumps({"page_size": PAGE, "devices": [fields(len(body)) | {"name": idstr}]})
    section = start(3, idstr, body, version=1, kind=4)
    return guest(zero(0, "r"), size=PAGE)[:-1] + section + EOF + vmdescription(text.encode())


def early() -> bytes:
    """A section before RAM, as QEMU 8.0 and later have them."""
    data = guest(zero(0, "r"), size=PAGE)
    head = len(HEADER + configuration())
    section = start(9, "dev", b"abc", version=1, kind=4)
    text = json.dumps({"page_size": PAGE, "devices": [fields(3)]})
    return data[:head] + section + data[head:] + vmdescription(text.encode())


def command(number: int, payload: bytes = b"", package: bytes = b"") -> bytes:
    record = struct.pack(">BHH", 8, number, len(payload)) + payload + package
    head = len(HEADER + configuration())
    data = guest(zero(0, "r"), size=PAGE)
    return data[:head] + record + data[head:]


def pages_elsewhere() -> bytes:
    return (
        HEADER
        + configuration()
        + start(2, "ram", blocks(("r", PAGE)) + EOS)
        + part(2, word(0x200) + EOS, kind=3)
        + EOF
    )


def unfinished() -> bytes:
    return HEADER + start(2, "ram", blocks(("r", PAGE)) + zero(0, "r") + EOS) + EOF


TWO_BLOCKS = (
    HEADER
    + configuration()
    + start(2, "ram", blocks(("a", PAGE), ("b", PAGE)) + zero(0, "a") + zero(0, "b") + EOS)
    + part(2, EOS, kind=3)
    + EOF
)
REFUSED: list[tuple[Callable[[], bytes], list[str], str]] = [
    (lambda: TWO_BLOCKS, ["v2", "--drop", "configuration"], "no block names, and there are 2"),
    (lambda: TWO_BLOCKS, ["v3-ram3", "--drop", "configuration"], "no block names"),
    (old_pc, ["v3-ram4"], "pc.ram (--block NAME)"),
    (lambda: old_pc("v3-ram3"), ["v3-vmdesc"], "pc.ram (--block NAME)"),
    (lambda: vector("legacy/accept/v1-nameless"), ["v3-vmdesc"], "has no idstr"),
    (
        lambda: vector("ram/accept/v1-empty"),
        ["v3-ram4", "--block", "x"],
        "'x' of 0 bytes is the last in the list",
    ),
    (lambda: vector("legacy/accept/v3-0.14.1"), ["v3-configuration"], "(--machine NAME)"),
    (with_device, ["v3-vmdesc"], "no configuration (machine 'none') (--drop configuration)"),
    (with_device, ["v3-ram4", "--drop", "configuration"], "no schema does so for 'dev' version 1"),
    (
        lambda: with_device("timer", b"x"),
        ["v3-ram4", "--drop", "configuration"],
        "no schema does so for 'timer' version 1 (1 bytes)",
    ),
    (with_device, ["v3-configuration", "--drop", "devx*"], "no section matches 'devx*'"),
    (early, ["v3-configuration"], "before RAM came 'dev'"),
    (lambda: command(3, bytes(16)), ["v3-configuration"], "commands (postcopy-advise)"),
    (
        lambda: command(7, struct.pack(">I", 2), b"??"),
        ["v3-configuration", "--drop", "commands"],
        "package of postcopy",
    ),
    (pages_elsewhere, ["v3-configuration"], "in channels beside it"),
    (unfinished, ["v3-ram4"], "does not end with its END"),
    (lambda: vector("stream/accept/ram-then-undelimited"), ["v3-vmdesc"], "nothing tells where"),
    (lambda: vector("vmdesc/accept/section-repeated"), ["v3-configuration"], "comes twice"),
]


@pytest.mark.parametrize(("make", "options", "reason"), REFUSED)
def test_what_has_no_form_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[], bytes], options: list[str], reason: str
) -> None:
    done = savevm("convert", "-", str(tmp_path / "out"), "--to", *options, stdin=make())
    assert reason in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(CannotConvertError) as caught:
        plan(saved(vector("legacy/accept/v3-0.14.1")), "v2", drop=["nothing"])
    text = str(caught.value)
    assert all(part in text for part in ("'nothing'", "'block' is live", "there are 5 blocks"))


def test_what_may_be_dropped() -> None:
    data = early()
    result = rewritten(data, "v3-configuration", drop=("order",))
    assert unlike(data, result) == []
    for data, drop in ((command(3, bytes(16)), ("commands",)), (command(1), ())):
        assert unlike(data, rewritten(data, "v3-configuration", drop=drop)) == []
    result = rewritten(with_device(), "v3-ram4", drop=("configuration", "d*"))
    assert [d.path for d in unlike(with_device(), result)] == ["configuration", "dev"]
    planned = plan(saved(command(1)), "v3-vmdesc", drop=("configuration",))
    assert planned.dropped == ["commands: open-return-path", "configuration: machine 'none'"]


def test_ram_that_never_came_is_zero() -> None:
    data = guest(page(PAGE, b"x" * PAGE, "r"), size=1 << 30)
    result = rewritten(data, "v3-configuration")
    assert len(result) < (1 << 30) // PAGE * 9 + (1 << 16)
    assert unlike(data, result) == []


def test_a_block_that_no_memory_holds(tmp_path: Path) -> None:
    data = guest(zero(0, "r"), size=1 << 62)
    done = savevm("convert", "-", str(tmp_path / "out"), "--to", "v3-configuration", stdin=data)
    assert done.returncode == 2
    assert b"no room for block 'r' of RAM, of 4611686018427387904 bytes" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page_size", [256, 1024, 16384, 65536])
def test_the_page_size_stays(page_size: int) -> None:
    data = board(ram=[RamBlock("r", 64 * page_size, page_size)])
    result = rewritten(data, "v3-vmdesc", drop=("configuration",))
    assert transcribe(result)["page_size"] == transcribe(data)["page_size"] == page_size
    assert unlike(data, rewritten(data, "v2", drop=("configuration",)), "configuration") == []


def test_written_by_the_engine_and_again() -> None:
    blob = Blob(33)
    blob.data = random.Random(3).randbytes(33)
    data = board("v3-configuration", blob, Counter("c", instance_id=7))
    for target in ("v2", "v3-vmdesc", "v3-configuration"):
        machine = "board" if target == "v3-configuration" else None
        data = rewritten(data, target, "pc.ram", machine=machine, drop=("configuration",))
    assert unlike(board("v3-configuration", blob, Counter("c", instance_id=7)), data) == []


# Envelopes


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "stream"
    path.write_bytes(described())
    return path


def run(*argv: str | Path, code: int = 0, stdin: bytes | None = None) -> tuple[bytes, str]:
    done = savevm("convert", *map(str, argv), stdin=stdin)
    assert b"Traceback" not in done.stderr
    assert done.returncode == code, done.stderr.decode()
    return done.stdout, done.stderr.decode()


def there(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


COMPRESSIONS = ["gzip", "bzip2", "xz", "lzop", "zstd"]


def needs(compression: str) -> None:
    if compression in ("lzop", "zstd") and shutil.which(compression) is None:
        pytest.skip(f"no program {compression}")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_and_back(tmp_path: Path, stream: Path, compression: str) -> None:
    needs(compression)
    packed, again = tmp_path / "packed", tmp_path / "again"
    run(stream, packed, "--envelope", compression)
    assert packed.read_bytes() != stream.read_bytes()
    run(packed, again)
    assert again.read_bytes() == stream.read_bytes()
    out, _ = run("-", "-", "--envelope", compression, stdin=stream.read_bytes())
    assert run("-", "-", stdin=out)[0] == stream.read_bytes()


@pytest.mark.parametrize("compression", ["raw", *COMPRESSIONS])
def test_libvirt_and_back(tmp_path: Path, stream: Path, compression: str) -> None:
    needs(compression)
    xml = "<domain type='qemu'><name>d\u00e9j\u00e0</name></domain>\n"
    (tmp_path / "xml").write_text(xml)
    image = tmp_path / "image"
    options = ("--envelope", "libvirt", "--compress", compression)
    said = run(stream, image, *options, "--xml", tmp_path / "xml", "--json")[0]
    summary = json.loads(said)
    assert (summary["envelope"], summary["bytes"]) == ("libvirt", len(described()))
    found = libvirt.read(image.read_bytes())
    assert (found.complete, found.format, found.domain_xml) == (True, compression, xml)
    # Another compression keeps the rest, and another dialect does, too.
    whole = libvirt.build(xml, "<cookie/>", was_running=True) + described()
    for more in ([], ["--to", "v3-configuration"]):
        out, _ = run("-", "-", *options, *more, stdin=whole)
        kept = libvirt.read(out)
        assert (kept.domain_xml, kept.cookie, kept.was_running) == (xml, "<cookie/>", True)
        bare, _ = run("-", "-", stdin=out)
        assert unlike(bare, described()) == []
        assert more or bare == described()


def test_libvirt_needs_a_domain(tmp_path: Path, stream: Path) -> None:
    _, said = run(stream, tmp_path / "image", "--envelope", "libvirt", code=2)
    assert "--xml FILE" in said
    _, said = run(stream, tmp_path / "image", "--envelope", "libvirt", "--xml", NEVER, code=2)
    assert NEVER in said
    assert there(tmp_path) == {"stream"}


@pytest.mark.parametrize(
    "options",
    [
        ["--machine", "x"],
        ["--to", "v3-ram4", "--machine", "x"],
        ["--to", "v1"],
        ["--to", "nothing"],
        ["--block", "x"],
        ["--drop", "commands"],
        ["--xml", "x"],
        ["--compress", "gzip"],
        ["--tag", "x"],
        ["--envelope", "qcow2"],
        ["--envelope", "sparse"],
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, stream: Path, options: list[str]) -> None:
    _, said = run(stream, tmp_path / "out", *options, code=2)
    assert said.startswith("Usage:")
    assert there(tmp_path) == {"stream"}


def test_nothing_good_is_lost(tmp_path: Path, stream: Path) -> None:
    good, broken = tmp_path / "good", tmp_path / "broken"
    good.write_bytes(b"good")
    good.chmod(0o640)
    broken.write_bytes(described()[:-100])
    _, said = run(stream, good, code=2)
    assert "--force" in said
    for options in ([], ["--force"], ["--force", "--envelope", "gzip"]):
        run(broken, good, *options, code=2 if not options else 1)
    run(broken, good, "--to", "v3-configuration", "--force", code=1)
    run(stream, good, "--to", "v2", "--force", code=2)
    assert good.read_bytes() == b"good"
    # What breaks a rule is written where there is nothing, and only by force.
    run(broken, tmp_path / "new", code=1)
    assert there(tmp_path) == {"stream", "good", "broken"}
    _, said = run(broken, tmp_path / "new", "--force", code=1)
    assert "error: offset" in said
    assert (tmp_path / "new").read_bytes() == broken.read_bytes()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    run(stream, good, "--force")
    assert good.read_bytes() == described()
    assert stat.S_IMODE(good.stat().st_mode) == 0o640
    assert there(tmp_path) == {"stream", "good", "broken", "new"}


def test_a_broken_rule_that_does_not_end_reading(tmp_path: Path) -> None:
    data = HEADER + configuration("") + EOF
    for options in ([], ["--to", "v3-configuration"]):
        run("-", tmp_path / "out", *options, code=1, stdin=data)
        assert there(tmp_path) == set()
    run("-", tmp_path / "out", "--force", code=1, stdin=data)
    assert (tmp_path / "out").read_bytes() == data


def test_a_damaged_envelope(tmp_path: Path, stream: Path) -> None:
    packed = run(stream, "-", "--envelope", "gzip")[0]
    _, said = run("-", tmp_path / "out", code=1, stdin=packed[:-4])
    assert "envelope.compressed.truncated" in said
    assert there(tmp_path) == {"stream"}


def test_outputs_that_are_no_files(tmp_path: Path, stream: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_bytes(b"old")
    link.symlink_to(target)
    run(stream, link, "--force")
    assert link.is_symlink()
    assert target.read_bytes() == described()
    for options in ([], ["--to", "v3-configuration"], ["--envelope", "gzip"]):
        run(stream, "/dev/null", *options)
        run(stream, tmp_path, *options, code=2)
        run(stream, tmp_path / "absent" / "out", *options, code=2)
        if os.path.exists("/dev/full"):
            _, said = run(stream, "/dev/full", *options, code=2)
            assert "No space left" in said
    assert there(tmp_path) == {"stream", "link", "target"}
    run(stream, stream, "--force", "--to", "v3-vmdesc", "--drop", "configuration")
    assert transcribe(stream.read_bytes())["dialect"] == "v3-vmdesc"


def test_standard_output_takes_every_dialect(stream: Path) -> None:
    for target in ("v2", "v3-vmdesc"):
        out, _ = run(stream, "-", "--to", target, "--drop", "configuration")
        assert transcribe(out)["dialect"] == target
    assert "terminal" not in run(stream, "-")[1]
    run(stream, "-", "--json", code=2)
    run(stream, "-", "--envelope", "qcow2", "--tag", "x", code=2)


def test_the_summary(tmp_path: Path, stream: Path) -> None:
    options = ("--to", "v3-vmdesc", "--drop", "configuration", "--json")
    summary = json.loads(run(stream, tmp_path / "out", *options)[0])
    assert summary["dialect"] == {"from": "v3-configuration", "to": "v3-vmdesc"}
    assert summary["dropped"] == ["configuration: machine 'none'"]
    assert summary["ram"] == [{"idstr": "r", "used_length": 4 * PAGE}]
    assert summary["bytes"] == (tmp_path / "out").stat().st_size
    said = run(stream, tmp_path / "out2", *options[:-1])[0].decode()
    assert "without configuration: machine 'none'" in said
    assert "from v3-configuration to v3-vmdesc" in said


@pytest.mark.skipif(QEMU_IMG is None, reason="no qemu-img: nothing to make images with")
def test_snapshots_of_a_disk_image(tmp_path: Path, stream: Path) -> None:
    image = create(tmp_path / "image")
    into = ("--envelope", "qcow2", "--tag")
    run(stream, image, *into, "one")
    broken = described()[:-100]
    _, said = run(stream, image, *into, "one", code=2)
    assert "--force" in said
    run("-", image, *into, "two", code=1, stdin=broken)
    run("-", image, *into, "one", "--force", code=1, stdin=broken)
    run(stream, image, *into, "one", "--to", "v2", code=2)
    listed = json.loads(savevm("snapshots", "--json", str(image)).stdout)
    assert [(s["name"], s["vm_state_size"]) for s in listed] == [("one", len(described()))]
    assert run(image, "-")[0] == described()
    drop = ("--to", "v2", "--drop", "configuration", "--force")
    run(stream, image, *into, "one", *drop)
    run(stream, image, *into, "two")
    checked(image)
    assert transcribe(run(image, "-", "--snapshot", "one")[0])["dialect"] == "v2"
    assert run(image, "-", "--snapshot", "two")[0] == described()
    for bad in (stream, tmp_path / "absent", tmp_path):
        _, said = run(stream, bad, *into, "x", code=2)
        assert str(bad) in said
    assert there(tmp_path) == {"stream", "image"}


# Real QEMUs


def test_a_real_qemu_takes_what_was_converted(tmp_path: Path) -> None:
    """A PC that was saved runs on from each of its forms."""
    if QEMU_IMG is None:
        pytest.skip("no qemu-img: not held against a real QEMU")
    path = create(tmp_path / "image")
    stream = tmp_path / "stream"
    with Guest(path) as qemu:
        qemu.until(lambda: qemu.ticks() > 10)
        qemu.execute("stop")
        memory = qemu.memory()
        qemu.execute("migrate", uri=f"exec:cat > {stream}")
        qemu.until(lambda: qemu.execute("query-migrate")["status"] == "completed")
        qemu.execute("quit")
        qemu.process.wait()
    (tmp_path / "xml").write_text("<domain><name>pc</name></domain>")
    image, bare = tmp_path / "saved", tmp_path / "bare"
    run(stream, image, "--envelope", "libvirt", "--compress", "gzip", "--xml", tmp_path / "xml")
    run(image, bare)
    assert bare.read_bytes() == stream.read_bytes()
    rewritten, older = tmp_path / "rewritten", tmp_path / "older"
    run(image, rewritten, "--to", "v3-configuration")
    run(rewritten, older, "--to", "v3-vmdesc", "--drop", "configuration")
    run(bare, path, "--envelope", "qcow2", "--tag", "same")
    run(older, path, "--envelope", "qcow2", "--tag", "anew", "--to", "v3-configuration",
        "--machine", transcribe(stream.read_bytes())["records"][1]["machine"])  # fmt: skip
    checked(path)
    plain = ("-global", "migration.send-configuration=off",
             "-global", "migration.send-section-footer=off")  # fmt: skip
    ways: dict[str, tuple[str, ...]] = {
        "rewritten": ("-incoming", f"exec:cat {rewritten}"),
        "older": ("-incoming", f"exec:cat {older}", *plain),
        "same": ("-loadvm", "same"),
        "anew": ("-loadvm", "anew"),
    }
    for name, options in ways.items():
        with Guest(path, *options, "-S") as qemu:
            qemu.until(lambda: qemu.execute("query-status")["status"] != "inmigrate")
            assert qemu.memory() == memory, name
            ticks = qemu.ticks()
            qemu.execute("cont")
            qemu.until(lambda t=ticks: qemu.ticks() > t)  # type: ignore[misc]
            qemu.execute("quit")
            qemu.process.wait()
