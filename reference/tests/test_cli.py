"""The commands, as a user runs them."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from streams import EOF, HEADER, VECTORS, configuration, guest, page, start, vmdescription, zero

P = 4096
A, B = bytes(range(256)) * 16, bytes(range(255, -1, -1)) * 16


def savevm(*argv: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "savevm.cli", *argv], input=stdin, capture_output=True, timeout=120
    )


def described() -> bytes:
    """A guest with RAM and one device, described as QEMU does it."""
    device = {
        "name": "dev/0",
        "instance_id": 3,
        "vmsd_name": "dev",
        "version": 2,
        "fields": [
            {"name": "on", "type": "bool", "size": 1},
            {"name": "regs", "array_len": 2, "type": "uint16", "size": 2},
            {"name": "state", "type": "buffer", "size": 6},
        ],
    }
    text = json.dumps({"page_size": P, "devices": [device]}).encode()
    body = start(7, "dev/0", b"\x01\x12\x34\x00\x05idle\0\0", version=2, instance=3, kind=4)
    ram = guest(page(0, A, "r"), zero(P), page(2 * P, B), size=4 * P)
    return ram[:-1] + body + EOF + vmdescription(text)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "stream"
    path.write_bytes(described())
    return path


def test_inspect_shows_every_record_with_its_offset(stream: Path) -> None:
    done = savevm("inspect", str(stream))
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    assert "dialect v3-configuration, pages of 4096 bytes, with footers" in text
    assert "block r  16 KiB" in text
    assert "pages of r: 1 zero, 2 normal" in text
    at = described().index(b"\x04\x00\x00\x00\x07\x05dev/0")
    assert f"{at}  section-full dev/0  id 7, instance 3, version 2, 11 bytes" in text
    assert "regs" not in text


def test_inspect_section_shows_fields(stream: Path) -> None:
    for pattern in ("dev*", "7"):
        text = savevm("inspect", "--section", pattern, str(stream)).stdout.decode()
        assert "on = true" in text
        assert "regs = 4660 5" in text
        assert "state = 69646c650000 ('idle')" in text
        assert "ram" not in text
    assert savevm("inspect", "--section", "nothing", str(stream)).returncode == 2


def test_inspect_json(stream: Path) -> None:
    result = json.loads(savevm("inspect", "--json", str(stream)).stdout)
    assert result["error"] is None
    device = next(r for r in result["records"] if r.get("idstr") == "dev/0")
    assert device["body"]["fields"] == [
        ["on", True],
        ["regs", [0x1234, 5]],
        ["state", "69646c650000"],
    ]


def test_a_cut_stream_shows_what_could_be_read_then_what_broke(tmp_path: Path) -> None:
    data = described()
    cut = data.index(B) + 100
    path = tmp_path / "cut"
    path.write_bytes(data[:cut])
    for argument, stdin in ((str(path), None), ("-", data[:cut])):
        done = savevm("inspect", argument, stdin=stdin)
        assert done.returncode == 1
        assert "block r  16 KiB" in done.stdout.decode()
        assert "pages of r: 1 zero, 1 normal" in done.stdout.decode()
        assert f"offset {cut} in section 'ram'" in done.stderr.decode()
        assert "[ram.truncated]" in done.stderr.decode()
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("implementation", ["reference", "grammar"])
def test_verify_exit_codes(tmp_path: Path, stream: Path, implementation: str) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(described()[:50])
    options = ("verify", "--with", implementation, "--rebuild")
    good = savevm(*options, str(stream))
    assert (good.returncode, good.stdout.decode()) == (
        0,
        f"{stream}: good, and the same when built again\n",
    )
    bad = savevm(*options, str(stream), str(broken))
    assert bad.returncode == 1
    assert f"{broken}: error: offset 50 in section 'ram'" in bad.stdout.decode()
    assert savevm(*options, str(broken), str(tmp_path / "absent")).returncode == 2
    assert savevm(*options, str(tmp_path)).returncode == 2
    assert savevm("verify").returncode == 2


def test_verify_reports_every_broken_rule(tmp_path: Path) -> None:
    data = (
        HEADER
        + configuration("")
        + start(2, "ram", b"\0" * 7 + b"\x04\0\0\0\0\0\0\0\x10")
        + start(2, "x", b"?", version=1, kind=4)
        + b"\x02\0\0\0\x63"
    )
    path = tmp_path / "broken"
    path.write_bytes(data)
    result = json.loads(savevm("verify", "--json", str(path)).stdout)
    assert [p["rule"] for p in result["problems"]] == [
        "configuration.machine.empty",
        "section.id.reused",
        "section.body.undescribed",
        "section.id.unknown",
    ]
    assert result["problems"][-1]["offset"] == len(data) - 4


def test_a_rule_broken_by_every_page_is_told_three_times() -> None:
    data = guest(zero(0, "r"), *(zero(P * i, fill=7) for i in range(1, 500)), size=500 * P)
    for command in ("verify", "inspect"):
        done = savevm(command, "-", stdin=data)
        assert done.returncode == 0
        said = (done.stdout + done.stderr).decode()
        assert said.count("page filled with 0x7 (QEMU 8.2 and later refuse") == 3
        assert "-: note: 496 more of the kind [ram.zero.fill]" in said


def test_verify_reads_a_pipe_in_bounded_memory() -> None:
    program = (
        "import re, sys\n"
        "from savevm.cli import main\n"
        "try: main(['verify', '--rebuild', '-'])\n"
        # Not getrusage: its peak includes the parent's from before the program was replaced.
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1],"
        " file=sys.stderr)\n"
    )
    pages = 65536
    head, tail = guest(zero(0, "r"), size=(pages + 1) * P).split(zero(0, "r"))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(head + zero(0, "r"))
        for i in range(1, pages):
            process.stdin.write(page(i * P, A))
        process.stdin.write(tail)
        process.stdin.close()
        assert b"good, and the same when built again" in process.stdout.read()
        peak = int(process.stderr.read()) << 10
    assert process.returncode == 0
    assert peak < 64 << 20


def test_extract(tmp_path: Path, stream: Path) -> None:
    out = tmp_path / "out"
    done = savevm("extract", str(stream), "-o", str(out), "--json")
    assert done.returncode == 0
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    (block,) = manifest["ram"]
    assert (out / block["file"]).read_bytes() == A + bytes(P) + B + bytes(P)
    (device,) = json.loads((out / "devices.json").read_text())
    assert device["state"] == {"on": True, "regs": [0x1234, 5], "state": "69646c650000"}
    assert savevm("extract", str(stream), "-o", str(out)).returncode == 2
    assert savevm("extract", str(stream), "-o", str(out), "--force").returncode == 0


def test_extract_is_sparse_and_later_pages_win(tmp_path: Path) -> None:
    size = 1 << 30
    data = guest(
        page(0, A, "r"),
        page(P, A),
        page(0, B),
        zero(P),
        page(2 * P, A),
        zero(2 * P, fill=0x55),
        size=size,
    )
    out = tmp_path / "out"
    assert savevm("extract", "-", "-o", str(out), stdin=data).returncode == 0
    raw = out / "ram" / "r.raw"
    assert raw.stat().st_size == size
    assert raw.stat().st_blocks * 512 < 1 << 20
    with raw.open("rb") as file:
        assert file.read(4 * P) == B + bytes(P) + b"\x55" * P + bytes(P)


def test_extract_of_a_cut_stream_keeps_what_came(tmp_path: Path) -> None:
    data = described()
    out = tmp_path / "out"
    done = savevm("extract", "-", "-o", str(out), stdin=data[: data.index(B) + 100])
    assert done.returncode == 1
    assert (out / "ram" / "r.raw").read_bytes()[:P] == A
    manifest = json.loads((out / "manifest.json").read_text())
    assert not manifest["complete"]
    assert manifest["problems"][-1]["rule"] == "ram.truncated"


def test_extract_never_leaves_its_directory(tmp_path: Path) -> None:
    data = guest(page(0, A, "../../x"), size=P).replace(b"\1r", b"\7../../x")
    out = tmp_path / "a" / "b"
    assert savevm("extract", "-", "-o", str(out), stdin=data).returncode == 0
    assert [p.name for p in (out / "ram").iterdir()] == ["%2E.%2F..%2Fx.raw"]
    assert os.listdir(tmp_path) == ["a"]


def test_extract_goes_on_behind_a_block_that_no_file_system_holds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = guest(zero(0, "r"), page(P, A), size=1 << 62)
    done = savevm("extract", "-", "-o", str(out), stdin=data)
    assert done.returncode == 2
    assert b"no files of 4611686018427387904 bytes" in done.stderr
    assert b"Traceback" not in done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["ram"] == [{"idstr": "r", "used_length": 1 << 62, "file": None}]
    assert not manifest["complete"]


def test_extract_shortens_long_names(tmp_path: Path) -> None:
    name = "/" * 200
    data = guest(page(0, A, name), size=P).replace(b"\1r", bytes((200,)) + name.encode())
    assert savevm("extract", "-", "-o", str(tmp_path / "out"), stdin=data).returncode == 0
    (raw,) = (tmp_path / "out" / "ram").iterdir()
    assert raw.read_bytes() == A


@pytest.mark.parametrize(
    ("vector", "kinds"),
    [
        ("legacy/accept/v1-0.8.1", {"vmstate"}),
        ("htab/accept/pseries-10.0", {"htab", "vmstate"}),
        ("storage-attributes/accept/each-flag", {"storage-attributes"}),
    ],
)
def test_extract_leaves_nothing_out(tmp_path: Path, vector: str, kinds: set[str]) -> None:
    out = tmp_path / "out"
    source = VECTORS / vector / "stream.bin"
    assert savevm("extract", str(source), "-o", str(out)).returncode == 0
    devices = json.loads((out / "devices.json").read_text())
    assert kinds <= {device["kind"] for device in devices}


def old(version: int, *sections: bytes) -> bytes:
    return b"QEVM" + struct.pack(">I", version) + b"".join(sections)


def test_ram_without_names_and_what_is_left_of_a_record(tmp_path: Path) -> None:
    body = struct.pack(">I", 3 * P) + b"\0" + A + b"\1\0" + b"\0" + B
    head = b"\3ram" + struct.pack(">III", 0, 1, len(body) + 4)
    unknown = b"\1x" + struct.pack(">III", 0, 1, 3) + b"abc"
    data = old(1, head + body + b"rest", unknown)
    assert savevm("extract", "-", "-o", str(tmp_path / "o"), stdin=data).returncode == 0
    assert (tmp_path / "o" / "ram" / "ram.raw").read_bytes() == A + bytes(P) + B
    entries = json.loads((tmp_path / "o" / "devices.json").read_text())
    expected = [("rest", "ram", b"rest"), ("record", "x", b"abc")]
    for entry, (kind, idstr, contents) in zip(entries, expected, strict=True):
        assert (entry["kind"], entry["idstr"], entry["length"]) == (kind, idstr, len(contents))
        assert data[entry["offset"] :].startswith(contents)
        assert (tmp_path / "o" / entry["file"]).read_bytes() == contents
    text = savevm("inspect", "-", stdin=data).stdout.decode()
    for part in ("dialect v1", "block ram  12 KiB", "1 zero, 2 normal", "4 bytes left"):
        assert part in text


def test_ram_that_is_sent_again_in_other_pages(tmp_path: Path) -> None:
    """A body of version 1 leaves what a zero page of version 3, of 1 KiB, does not cover."""
    first = struct.pack(">I", 2 * P) + b"\0" + A + b"\0" + B
    head = b"\3ram" + struct.pack(">II", 0, 1)
    again = (
        struct.pack(">QQBQB", 2 * P | 4, 1024 | 2, 0, 2048 | 2, 0)
        + struct.pack(">QB", P + 1024 | 2, 7)
        + struct.pack(">Q", 16)
    )
    data = old(
        3,
        b"\1\0\0\0\1" + head + first,
        b"\1\0\0\0\2\3ram" + struct.pack(">II", 0, 3) + again,
        EOF,
    )
    assert savevm("extract", "-", "-o", str(tmp_path / "o"), stdin=data).returncode == 0
    expected = A[:1024] + bytes(2048) + A[3072:] + B[:1024] + b"\7" * 1024 + B[2048:]
    assert (tmp_path / "o" / "ram" / "ram.raw").read_bytes() == expected


def test_disks(tmp_path: Path) -> None:
    mib = 1 << 20
    name = b"\7ide/hd0"

    def block(sector: int, contents: bytes) -> bytes:
        return struct.pack(">Q", sector << 9 | (1 if contents else 9)) + name + contents

    body = block(2048, A * 256) + block(0, B * 256) + block(2048, b"") + block(3 * 2048, b"")
    body += struct.pack(">QQ", 50 << 9 | 4, 2)
    start_of = b"\1\0\0\0\1\5block" + struct.pack(">II", 0, 1)
    data = old(3, start_of + body, EOF)
    out = tmp_path / "o"
    done = savevm("extract", "-", "-o", str(out), stdin=data)
    assert done.returncode == 0
    assert f"{out}/disk/ide%2Fhd0.raw: 4 MiB" in done.stdout.decode()
    raw = out / "disk" / "ide%2Fhd0.raw"
    assert raw.read_bytes() == B * 256 + bytes(3 * mib)
    assert raw.stat().st_blocks * 512 < 3 * mib
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["disks"] == [{"device": "ide/hd0", "file": "disk/ide%2Fhd0.raw"}]
    text = savevm("inspect", "-", stdin=data).stdout.decode()
    assert "device blocks of ide/hd0: 2 zero, 2 normal" in text
    assert "progress: 50 %" in text


def test_extract_goes_on_behind_a_disk_that_no_file_system_holds(tmp_path: Path) -> None:
    word = struct.pack(">Q", ((1 << 55) - 1) << 9 | 9)
    body = word + b"\1d" + word + b"\1d" + struct.pack(">Q", 2)
    data = old(3, b"\1\0\0\0\1\5block" + struct.pack(">II", 0, 1) + body, EOF)
    done = savevm("extract", "-", "-o", str(tmp_path / "o"), stdin=data)
    assert done.returncode == 2
    assert done.stderr.count(b"no files of") == 1
    assert b"Traceback" not in done.stderr
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["disks"] == [{"device": "d", "file": None}]


def test_names_cannot_move_the_cursor_or_forge_lines(tmp_path: Path) -> None:
    idstr = "\x1b]0;x\x07\nz: good"
    body = start(7, idstr, b"?", version=1, kind=4)
    data = guest(zero(0, "r"))[:-1] + body + EOF
    for command in ("inspect", "verify"):
        done = savevm(command, "-", stdin=data)
        assert b"\x1b" not in done.stdout + done.stderr
        assert b"\nz: good" not in done.stdout + done.stderr


def test_what_ends_a_command_early(stream: Path) -> None:
    command = f"{sys.executable} -m savevm.cli"
    for line, code in (
        (f"{command} inspect --json {stream} | true; echo ${{PIPESTATUS[0]}} >&2", "141"),
        (f"{command} verify {stream} > /dev/full; echo $? >&2", "2"),
        (f"{command} verify {stream} 2>&-; echo $?", "0"),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        assert (done.stderr + done.stdout).split()[-1] == code, line


def test_broken_rules_that_do_not_end_reading_count(tmp_path: Path) -> None:
    data = HEADER + configuration("") + EOF
    for argv in (["verify", "-"], ["inspect", "-"], ["extract", "-", "-o", str(tmp_path / "o")]):
        assert savevm(*argv, stdin=data).returncode == 1
