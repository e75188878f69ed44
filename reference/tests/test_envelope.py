"""What a stream comes wrapped in: save images of a real libvirt, compressed data, disk images."""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from streams import EOF, HEADER, configuration, counted, guest, page, zero

from savevm.envelope import compressed, libvirt
from savevm.errors import StreamError
from savevm.source import Source, SourceError
from savevm_spec.constants import LIBVIRT_FORMATS
from savevm_spec.envelope import libvirt as grammar
from savevm_spec.errors import GrammarError

P = 4096
NOISE = random.Random(2).randbytes(16 * P)
STREAM = guest(
    page(0, NOISE[:P], "r"),
    *(page(i * P, NOISE[i * P : (i + 1) * P]) for i in range(1, 15)),
    zero(15 * P),
)
XML = "<domain type='qemu'>\n  <name>a &amp; ä</name>\n</domain>\n"


def savevm(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "savevm.cli", *argv]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def program(name: str, *options: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        if shutil.which(name) is None:
            pytest.skip(f"no {name} here: its compression is not tested")
        argv = [name, *options]
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout

    return run


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzop": program("lzop", "-c"),
    "zstd": program("zstd", "-c"),
}
each_compression = pytest.mark.parametrize("name", COMPRESS)


def image(
    text: bytes = XML.encode() + b"\0",
    *,
    magic: bytes = b"LibvirtQemudSave",
    order: str = "<",
    version: int = 2,
    format: int = 0,
    cookie: int = 0,
) -> bytes:
    return magic + struct.pack(order + "5I56x", version, len(text), 1, format, cookie) + text


def read(path: Path) -> bytes:
    with Source(str(path)) as source:
        return b"".join(source.chunks())


def broken(path: Path, data: bytes) -> tuple[str, int]:
    """The rule that the input breaks, and where."""
    path.write_bytes(data)
    with pytest.raises(StreamError) as error:
        read(path)
    return error.value.rule, error.value.offset


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


# A real libvirt


class Libvirt:
    """A libvirt of our own, inside of virsh: no daemon, and nothing outside of its directory."""

    def __init__(self, directory: Path, emulator: str) -> None:
        self.directory = directory
        self.xml = directory / "domain.xml"
        self.xml.write_text(
            "<domain type='qemu'><name>tiny</name><memory unit='MiB'>1</memory>"
            "<os><type arch='x86_64' machine='isapc'>hvm</type></os><devices>"
            f"<emulator>{emulator}</emulator><controller type='usb' model='none'/>"
            "<memballoon model='none'/></devices></domain>"
        )
        (directory / "etc").mkdir()
        self.configure("raw")

    def configure(self, format: str) -> None:
        (self.directory / "etc" / "qemu.conf").write_text(
            'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\n'
            'cgroup_controllers = []\nstdio_handler = "file"\nremember_owner = 0\n'
            f'dynamic_ownership = 0\nsave_image_format = "{format}"\n'
        )

    def virsh(self, *commands: str) -> str:
        """What virsh says; it goes on behind a command that fails."""
        command = ["virsh", "-q", "-c", f"qemu:///embed?root={self.directory}", "; ".join(commands)]
        for patience in (60, 120):
            try:
                done = subprocess.run(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "LC_ALL": "C"},
                    timeout=patience,
                )
                break
            except subprocess.TimeoutExpired:
                # It hangs now and then, and leaves its QEMU.
                for process in psutil.process_iter(["cmdline"]):
                    if any(str(self.directory) in word for word in process.info["cmdline"] or ()):
                        process.kill()
        else:
            pytest.fail(f"virsh does not end: {command}")
        return done.stdout.decode()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    emulator = shutil.which("qemu-system-x86_64", path=os.environ.get("SAVEVM_QEMU"))
    if shutil.which("virsh") is None or emulator is None:
        pytest.skip("no virsh and qemu-system-x86_64 here: not held against a real libvirt")
    libvirt = Libvirt(tmp_path_factory.mktemp("libvirt"), emulator)
    said = libvirt.virsh("domcapabilities")
    if "<domainCapabilities>" not in said:
        pytest.skip(f"no libvirt with QEMU's driver here, so not held against it: {said}")
    yield libvirt
    libvirt.virsh("destroy tiny")


@pytest.fixture(scope="module")
def saved(daemon: Libvirt) -> Callable[[str], Path]:
    """The file that libvirt saved in a format; skips where it does not have the format."""

    def save(format: str) -> Path:
        path = daemon.directory / format
        if not path.exists():
            daemon.configure(format)
            said = daemon.virsh(f"create {daemon.xml}", f"save tiny {path}", "destroy tiny")
            daemon.configure("raw")
            if "Invalid save image format" in said or "isn't available" in said:
                pytest.skip(f"this libvirt does not save as {format}")
            assert path.exists(), said
        return path

    return save


@pytest.mark.parametrize("format", [f for f in LIBVIRT_FORMATS if f != "sparse"])
def test_what_libvirt_saves_is_read(
    daemon: Libvirt, saved: Callable[[str], Path], format: str
) -> None:
    path = saved(format)
    told = savevm("verify", "--rebuild", str(path))
    assert told.stdout.decode() == f"{path}: good, and the same when built again\n"
    told = savevm("inspect", "--json", str(path))
    result = json.loads(told.stdout)
    envelope = result["envelope"]["libvirt"]
    assert result["problems"] == []
    assert [b["used_length"] for b in result["ram"] if b["idstr"] == "pc.ram"] == [1 << 20]
    assert result["envelope"]["compression"] == (None if format == "raw" else format)
    assert envelope["format"] == format
    assert envelope["complete"]
    assert envelope["was_running"]
    assert envelope["byte_order"] == sys.byteorder
    assert envelope["cookie"].startswith("<cookie>")
    # libvirt's own reading of it, to which it adds the devices that every machine has.
    told = savevm("inspect", "--xml", str(path))
    theirs = daemon.virsh(f"save-image-dumpxml {path}")
    ours = told.stdout.decode()
    assert set(ours.splitlines()) <= set(theirs.splitlines())
    assert "<name>tiny</name>" in ours
    assert savevm("inspect", "--xml", "-", stdin=path.open("rb")).stdout == told.stdout
    with path.open("rb") as whole, subprocess.Popen(["cat"], stdin=whole, stdout=-1) as cat:
        piped = savevm("inspect", "--json", "-", stdin=cat.stdout)
    assert json.loads(piped.stdout) == result
    if format != "raw":
        data = path.read_bytes()[envelope["stream_offset"] :]
        assert read(path) == program(format, "-dc")(data)


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_libvirt_restores_what_is_built(
    daemon: Libvirt, saved: Callable[[str], Path], file: Path, byte_order: Any
) -> None:
    with Source(str(saved("raw"))) as source:
        assert source.envelope is not None
        theirs = source.envelope.libvirt
        stream = b"".join(source.chunks())
    assert theirs is not None
    head = libvirt.build(
        theirs.domain_xml, theirs.cookie, was_running=True, byte_order=theirs.byte_order
    )
    assert saved("raw").read_bytes() == head + stream
    head = libvirt.build(
        theirs.domain_xml, theirs.cookie, was_running=True, format="gzip", byte_order=byte_order
    )
    file.write_bytes(head + gzip.compress(stream))
    said = daemon.virsh(f"restore {file}", "domstate tiny", "destroy tiny")
    assert "\nrunning\n" in said, said
    assert read(file) == stream


def test_libvirt_refuses_what_is_refused(
    daemon: Libvirt, saved: Callable[[str], Path], file: Path
) -> None:
    with Source(str(saved("raw"))) as source:
        assert source.envelope is not None
        theirs = source.envelope.libvirt
    assert theirs is not None
    text = theirs.domain_xml.encode() + b"\0"
    cases = {
        "good": (image(text), None),
        "other-order": (image(text, order=">"), None),
        "version-1": (image(text, version=1), None),
        "version-3": (image(text, version=3), "envelope.libvirt.version"),
        "partial": (image(text, magic=b"LibvirtQemudPart"), "envelope.libvirt.partial"),
        "magic": (image(text, magic=b"LibvirtQemudSome"), "envelope.libvirt.magic"),
        "empty": (image(b"") + text, "envelope.libvirt.data-length"),
        "cut": (image(text)[:-10], "envelope.libvirt.truncated"),
        "header": (image(text)[:50], "envelope.libvirt.truncated"),
    }
    for name, (data, rule) in cases.items():
        path = file.with_name(name)
        path.write_bytes(data + (STREAM if rule is None else b""))
        said = daemon.virsh(f"save-image-dumpxml {path}")
        assert ("<name>tiny</name>" in said) == (rule is None), (name, said)
        result = json.loads(savevm("verify", "--json", str(path)).stdout)
        assert [p["rule"] for p in result["problems"]][:1] == ([rule] if rule else []), name
    # Some releases look at the format only when they need it.
    file.write_bytes(image(text, format=99) + STREAM)
    assert "save" in (said := daemon.virsh(f"restore {file}")), said
    assert " format" in said, said
    rule, offset = broken(file, file.read_bytes())
    assert (rule, offset) == ("envelope.libvirt.format", 28)


# Its header, byte by byte


def test_an_image_is_told_of(file: Path) -> None:
    cookie = b"<cookie/>\0" + bytes(99)
    text = XML.encode() + b"\0" + cookie
    file.write_bytes(image(text, order=">", version=1, cookie=len(text) - len(cookie)) + STREAM)
    done = savevm("inspect", str(file))
    assert done.stdout.decode().splitlines()[0] == (
        f"{file}: libvirt save image version 1, big-endian, raw, domain 'a & ä', was running; "
        f"stream from {92 + len(text)} on"
    )
    assert savevm("inspect", "--xml", str(file)).stdout == XML.encode()
    assert json.loads(savevm("inspect", "--json", str(file)).stdout)["envelope"] == {
        "kind": "libvirt",
        "compression": None,
        "libvirt": {
            "complete": True,
            "byte_order": "big",
            "version": 1,
            "was_running": True,
            "format": "raw",
            "stream_offset": 92 + len(text),
            "domain_xml": XML,
            "cookie": "<cookie/>",
        },
    }
    out = file.with_name("out")
    assert savevm("extract", str(file), "-o", str(out)).returncode == 0
    assert (out / "ram" / "r.raw").read_bytes() == NOISE[: 15 * P] + bytes(P)
    assert json.loads((out / "manifest.json").read_text())["envelope"]["kind"] == "libvirt"


def test_without_xml_there_is_none_to_print(file: Path) -> None:
    file.write_bytes(STREAM)
    done = savevm("inspect", "--xml", str(file))
    assert (done.returncode, done.stdout) == (2, b"")


def test_an_image_that_was_not_finished_shows_what_there_is(file: Path) -> None:
    file.write_bytes(image(magic=b"LibvirtQemudPart") + STREAM[:3000])
    done = savevm("inspect", str(file))
    assert done.returncode == 1
    assert "block r  64 KiB" in done.stdout.decode()
    assert "offset 0: libvirt did not finish" in done.stderr.decode()
    assert "[envelope.libvirt.partial]" in done.stderr.decode()
    assert "offset 3000 in section 'ram'" in done.stderr.decode()


def test_xml_that_is_no_text_is_printed_as_it_is(file: Path) -> None:
    file.write_bytes(image(b"<\xff\x1b>\0") + STREAM)
    assert savevm("inspect", "--xml", str(file)).stdout == b"<\xff\x1b>"
    done = savevm("inspect", str(file))
    assert b"offset 92: the domain XML is not UTF-8 from offset 93 on" in done.stderr


def outcome(data: bytes, ours: bool) -> object:
    """What an implementation makes of a header and its texts, in terms of both."""
    try:
        if ours:
            read = libvirt.read(data)
            findings = [(f.rule, f.offset) for f in read.findings]
            return read.byte_order, read.version, read.domain_xml, read.cookie, findings
        value, found = grammar.parse(data)
    except (StreamError, GrammarError) as error:
        return error.rule, error.offset
    cookie = value.cookie and value.cookie.text
    findings = [(f.rule, f.offset) for f in found]
    return value.header.byte_order, value.header.version, value.domain_xml.text, cookie, findings


@pytest.mark.parametrize("order", ["<", ">"])
def test_grammar_and_reference_agree_on_every_header(order: str) -> None:
    whole = image(b"<domain/>\0<cookie/>\0\0\0", order=order, cookie=10)
    variants = [whole[:length] for length in range(len(whole))]
    for at in range(len(whole)):
        for value in {0, 1, 2, 3, 6, 7, 0x80, 0xFF, whole[at] ^ 1, whole[at] + 1 & 0xFF}:
            variants.append(whole[:at] + bytes([value]) + whole[at + 1 :])
    for data in variants:
        assert outcome(data, ours=True) == outcome(data, ours=False), data


def test_a_domain_xml_of_gigabytes_is_not_waited_for() -> None:
    header = b"LibvirtQemudSave" + struct.pack("<5I56x", 2, 0xFFFFFFFF, 1, 0, 0)
    result = json.loads(savevm("inspect", "--json", "-", input=header).stdout)
    assert (result["error"]["rule"], result["error"]["offset"]) == ("limit.libvirt-data", 20)


def test_sparse_is_shown_and_refused_with_the_readers_rule(file: Path) -> None:
    name = b"configuration/capabilities"
    capability = bytes([5, len(name)]) + name + struct.pack(">II", 1, 1) + counted("mapped-ram")
    file.write_bytes(image(format=6) + HEADER + configuration("none", capability) + EOF)
    result = json.loads(savevm("inspect", "--json", str(file)).stdout)
    assert result["envelope"]["libvirt"]["format"] == "sparse"
    assert result["envelope"]["libvirt"]["domain_xml"] == XML
    assert result["error"]["rule"] == "configuration.capability.unsupported"
    assert result["error"]["errno"] == "ENOTSUP"


def test_texts_that_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="NUL"):
        libvirt.build("<a>\0</a>")
    with pytest.raises(ValueError, match="bytes of text"):
        libvirt.build("x" * (16 << 20))
    with pytest.raises(ValueError, match="lzma"):
        libvirt.build("<a/>", format="lzma")


# Compressed


@each_compression
def test_compressed_streams_are_read_by_every_command(file: Path, name: str) -> None:
    file.write_bytes(COMPRESS[name](STREAM))
    done = savevm("verify", "--rebuild", str(file))
    assert done.stdout.decode() == f"{file}: good, and the same when built again\n"
    assert savevm("verify", "--with", "grammar", "-q", str(file)).stdout == b""
    done = savevm("inspect", "-", stdin=file.open("rb"))
    assert done.stdout.decode().startswith(f"-: {name} data\n-: dialect v3-configuration")
    out = file.with_name("out")
    assert savevm("extract", str(file), "-o", str(out)).returncode == 0
    assert (out / "ram" / "r.raw").read_bytes() == NOISE[: 15 * P] + bytes(P)


@each_compression
def test_compressed_data_of_several_members(file: Path, name: str) -> None:
    third = len(STREAM) // 3
    for pieces in ((STREAM[:third], STREAM[third:]), (b"", STREAM, b"")):
        file.write_bytes(b"".join(map(COMPRESS[name], pieces)))
        assert read(file) == STREAM


@each_compression
def test_every_truncation_of_compressed_data_is_noticed(file: Path, name: str) -> None:
    whole = COMPRESS[name](STREAM[:300])
    first = compressed.MAGIC_SIZE if name == "lzop" else len(whole) // 20
    step = 1 if name not in ("lzop", "zstd") else 23
    for length in range(first, len(whole), step):
        expected = "envelope.compressed.truncated", length
        assert broken(file, whole[:length]) == expected
    # Behind a header that says what it is, not even the magic need be there.
    format = LIBVIRT_FORMATS.index(name)
    head = image(format=format)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        expected = "envelope.compressed.truncated", len(head) + length
        assert broken(file, head + whole[:length]) == expected
    file.write_bytes(head + whole)
    assert read(file) == STREAM[:300]


@each_compression
def test_damaged_compressed_data_is_located(file: Path, name: str) -> None:
    data = NOISE * 40
    whole = bytearray(COMPRESS[name](data))
    middle = len(whole) // 2
    whole[middle : middle + 8] = bytes(b ^ 0x55 for b in whole[middle : middle + 8])
    rule, offset = broken(file, bytes(whole))
    assert rule == "envelope.compressed.data"
    assert middle < offset <= len(whole)


@each_compression
def test_damage_never_gives_anything_but_an_error(file: Path, name: str) -> None:
    whole = COMPRESS[name](STREAM[:2000])
    rng = random.Random(name)
    said: list[StreamError] = []
    for _ in range(20 if name in ("lzop", "zstd") else 300):
        at = rng.randrange(compressed.MAGIC_SIZE, len(whole))
        file.write_bytes(whole[:at] + rng.randbytes(rng.randrange(1, 9)) + whole[at + 4 :])
        try:
            read(file)
        except StreamError as error:
            said.append(error)
    assert said
    assert {e.rule for e in said} <= {
        "envelope.compressed.data",
        "envelope.compressed.truncated",
        "limit.decompressor",
    }
    assert all(e.offset <= len(whole) + 8 for e in said)


def test_damage_is_told_before_what_it_did_to_the_stream(file: Path) -> None:
    # Stored, so that the damage is in the stream and only the checksum tells.
    whole = bytearray(gzip.compress(STREAM, compresslevel=0))
    at = whole.index(b"QEVM") + 8
    whole[at] ^= 0x40
    file.write_bytes(whole)
    result = json.loads(savevm("inspect", "--json", str(file)).stdout)
    rules = [p["rule"] for p in result["problems"]]
    assert rules == ["envelope.compressed.data", "section.type"]
    assert result["error"]["rule"] == "envelope.compressed.data"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_what_follows_compressed_data_is_noted(file: Path, name: str) -> None:
    if name == "zstd" and compressed._zstd_module() is None:
        pytest.skip("no zstd module here: the program refuses what follows")
    whole = COMPRESS[name](STREAM)
    file.write_bytes(whole + bytes(512))
    done = savevm("verify", str(file))
    assert done.returncode == 0
    text = f"{file}: note: offset {len(whole)}: bytes behind the {name} data"
    assert text in done.stdout.decode()


def test_a_libvirt_image_that_goes_on_behind_its_data_is_told_by_verify(file: Path) -> None:
    head = image(format=LIBVIRT_FORMATS.index("xz")) + lzma.compress(STREAM)
    file.write_bytes(head + b"more")
    told = savevm("verify", "--json", str(file))
    (found,) = json.loads(told.stdout)["problems"]
    assert found["rule"] == "envelope.compressed.trailing-data"
    assert found["offset"] == len(head)
    assert told.returncode == 0


def xz_that_needs(dictionary: int) -> bytes:
    """Empty data whose block announces a dictionary size by its LZMA2 code."""
    flags = b"\0\4"
    stream = b"\xfd7zXZ\0" + flags + struct.pack("<I", zlib.crc32(flags))
    block = bytes([2, 0, 0x21, 1, dictionary]) + bytes(3)
    return stream + block + struct.pack("<I", zlib.crc32(block)) + bytes(64)


def zstd_that_needs(log: int) -> bytes:
    """One byte in a frame that announces a window of 2 to the ``log``."""
    return (
        b"\x28\xb5\x2f\xfd" + bytes([0, log - 10 << 3]) + (1 << 3 | 1).to_bytes(3, "little") + b"Q"
    )


@pytest.mark.parametrize("data", [xz_that_needs(35), zstd_that_needs(30)], ids=["xz", "zstd"])
def test_memory_for_decompressing_is_bounded(file: Path, data: bytes) -> None:
    rule, offset = broken(file, data)
    assert rule == "limit.decompressor"
    assert 0 < offset <= len(data)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_bombs_come_in_small_pieces(name: str) -> None:
    size = 64 << 20
    bomb = COMPRESS[name](bytes(size))
    tracemalloc.start()
    try:
        total = 0
        for piece in compressed.decompressed(name, iter([bomb]), 0, []):
            assert len(piece) <= 256 << 10
            total += len(piece)
        assert total == size
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture(params=["lzop", "zstd"])
def by_program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(compressed, "_zstd_module", lambda: None)
    name: str = request.param
    return name


def test_a_program_is_fed_and_read_at_once(by_program: str) -> None:
    # More than all pipes between them hold, both ways; and it is not waited for when given up.
    data = random.Random(7).randbytes(32 << 20)
    whole = COMPRESS[by_program](data)
    pieces = (whole[i : i + 100_000] for i in range(0, len(whole), 100_000))
    assert b"".join(compressed.decompressed(by_program, pieces, 0, [])) == data
    with closing(compressed.decompressed(by_program, iter([whole]), 0, [])) as abandoned:  # type: ignore[type-var]
        assert data.startswith(next(abandoned))
        assert psutil.Process().children()
    assert not psutil.Process().children()


def test_what_a_program_says_tells_truncated_from_damaged(by_program: str) -> None:
    whole = COMPRESS[by_program](STREAM)
    for data, rule in (
        (whole[: len(whole) // 2], "envelope.compressed.truncated"),
        (whole[:-1], "envelope.compressed.truncated"),
        (whole[:5], "envelope.compressed.truncated"),
        (whole[:3000] + b"????????" + whole[3008:], "envelope.compressed.data"),
    ):
        with pytest.raises(StreamError) as error:
            list(compressed.decompressed(by_program, iter([data]), 100, []))
        assert error.value.rule == rule
        assert error.value.offset == 100 + len(data)


def test_without_the_program_the_envelope_is_shown(
    file: Path, by_program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(image(format=LIBVIRT_FORMATS.index(by_program)) + COMPRESS[by_program](STREAM))
    monkeypatch.setenv("PATH", "")
    with Source(str(file)) as source:
        assert source.envelope is not None
        assert source.envelope.compression == by_program
        with pytest.raises(SourceError, match=f"needs the program '{by_program}'"):
            list(source.chunks())


def test_a_command_says_which_program_it_needs(file: Path) -> None:
    file.write_bytes(b"\x89LZO\0\r\n\x1a\n" + bytes(100))
    environment = {k: v for k, v in os.environ.items() if k != "PATH"} | {"PATH": ""}
    done = savevm("verify", str(file), env=environment)
    assert done.returncode == 2
    assert b"lzop data needs the program 'lzop'" in done.stderr


# Disk images and others


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk image into which QEMU saved two snapshots, after one of the disk only."""
    found = os.environ.get("SAVEVM_QEMU")
    emulator = shutil.which("qemu-system-x86_64", path=found)
    tool = shutil.which("qemu-img", path=found) or shutil.which("qemu-img")
    if emulator is None or tool is None:
        pytest.skip("no qemu-system-x86_64 and qemu-img here: no real disk image is read")
    path = tmp_path_factory.mktemp("disk") / "disk.qcow2"
    subprocess.run([tool, "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    subprocess.run([tool, "snapshot", "-c", "disk-only", path], check=True)
    subprocess.run(
        [
            *(emulator, "-M", "isapc", "-m", "1", "-nodefaults", "-display", "none", "-S"),
            *("-drive", f"file={path},if=ide,format=qcow2", "-monitor", "stdio"),
        ],
        input=b"savevm one\nsavevm two\nquit\n",
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    return path


def test_a_snapshot_is_chosen_by_its_tag(disk: Path) -> None:
    for tag, id in (("one", "2"), ("two", "3"), ("3", "3")):
        done = savevm("verify", "--rebuild", "--snapshot", tag, str(disk))
        assert done.stdout.decode() == f"{disk}: good, and the same when built again\n"
        done = savevm("inspect", "--json", "--snapshot", tag, str(disk))
        assert json.loads(done.stdout)["envelope"]["snapshot"]["id"] == id
    done = savevm("inspect", "--snapshot", "one", "-", stdin=disk.open("rb"))
    assert b"-: disk image, snapshot 'one' with id '2'" in done.stdout
    for tags, said in (
        ((), b"which snapshot? with VM state are 'one', 'two'"),
        (("--snapshot", "disk-only"), b"snapshot 'disk-only' is of the disk only"),
        (("--snapshot", "none"), b"no snapshot 'none'"),
    ):
        done = savevm("inspect", *tags, str(disk))
        assert done.returncode == 2
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
    done = savevm("inspect", "-", input=disk.read_bytes())
    assert done.returncode == 2
    assert b"a disk image cannot be read from a pipe" in done.stderr


def test_the_only_snapshot_needs_no_tag(disk: Path, file: Path) -> None:
    shutil.copy(disk, file)
    tool = shutil.which("qemu-img", path=os.environ.get("SAVEVM_QEMU")) or "qemu-img"
    subprocess.run([tool, "snapshot", "-d", "two", file], check=True)
    with Source(str(file)) as source, Source(str(disk), "one") as other:
        assert source.description() is not None
        stream = b"".join(source.chunks())
        assert len(stream) == source.size
        assert stream == b"".join(other.chunks())
    done = savevm("extract", str(file), "-o", str(file.with_name("out")))
    assert done.returncode == 0


def test_a_broken_disk_image_is_a_broken_input(file: Path) -> None:
    file.write_bytes(b"QFI\xfb" + bytes(100))
    result = json.loads(savevm("verify", "--json", str(file)).stdout)
    assert [p["rule"] for p in result["problems"]] == ["envelope.qcow2.version"]


@pytest.mark.parametrize("wrapped", [b"", image()])
def test_only_disk_images_have_snapshots(file: Path, wrapped: bytes) -> None:
    file.write_bytes(wrapped + STREAM)
    done = savevm("inspect", "--snapshot", "a", str(file))
    assert done.returncode == 2
    assert b"only disk images have snapshots" in done.stderr


@pytest.mark.parametrize(
    ("magic", "name"),
    [(b"LibxlFmt", "Xen"), (b"QCPR", "CPR"), (b"\x11\x22\x33\x44", "multifd")],
)
def test_other_files_are_named(magic: bytes, name: str) -> None:
    result = json.loads(savevm("inspect", "--json", "-", input=magic + bytes(100)).stdout)
    assert (result["error"]["rule"], result["error"]["offset"]) == ("header.magic", 0)
    assert name in result["problems"][0]["detail"]


@pytest.mark.parametrize("data", [b"", b"Q", b"QEV", b"Libvirt", b"\x1f", b"QFI", bytes(20)])
def test_short_and_strange_inputs(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert read(file) == data
    piped = savevm("verify", "--json", "-", input=data)
    named = savevm("verify", "--json", str(file))
    assert json.loads(piped.stdout)["problems"] == json.loads(named.stdout)["problems"] != []
